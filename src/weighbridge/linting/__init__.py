"""Lint: what is wrong with a recipe, decided from its plan before anything is built."""

from __future__ import annotations

from collections.abc import Iterator

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.linting import conversion, fused, ignored, mistral_form, quantized, serving, source, targets
from weighbridge.linting.rules import RULES, Raised, together
from weighbridge.linting.served import served_from
from weighbridge.planning import Plan
from weighbridge.recipe import Allowance
from weighbridge.report import Finding, Severity

__all__ = ["RULES", "lint", "lint_served"]

_CHECKS = (
    source.check,
    ignored.check,
    targets.check,
    conversion.check,
    quantized.check,
    fused.check,
    serving.check,
    mistral_form.check,
)


def lint(plan: Plan) -> list[Finding]:
    """Everything that lint has to say of a plan: errors first, then warnings, then notes."""
    allowances = _Allowances(plan)
    findings = [_finding(item, allowances.of(item)) for check in _CHECKS for item in check(plan)]
    findings += [_finding(item, None) for item in allowances.wrong_or_unused()]
    return _by_severity(findings)


def lint_served(checkpoint: Checkpoint, plan: Plan | None = None) -> list[Finding] | None:
    """What the rules of serving have to say of a checkpoint that lies there, in the same order; None where none is
    known for its format.

    Args:
        plan: of the recipe that it is held against, whose allowances hold here too.
    """
    served = served_from(checkpoint)
    if served is None:
        return None
    allowances = None if plan is None else _Allowances(plan)
    found = [*together(quantized.check_served(served)), *fused.check_served(served), *serving.check_served(served)]
    found += mistral_form.check_served(served)
    return _by_severity([_finding(item, None if allowances is None else allowances.of(item)) for item in found])


def _by_severity(findings: list[Finding]) -> list[Finding]:
    order = list(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def _finding(item: Raised, allowance: Allowance | None) -> Finding:
    if allowance is None:
        return Finding(item.rule, RULES[item.rule].severity, item.where, item.message, item.count, remedy=item.remedy)
    explained = f"allowed because {allowance.reason}"
    return Finding(item.rule, Severity.NOTE, item.where, item.message, item.count, explained)


class _Allowances:
    """The recipe's allowances, and which of them were needed."""

    def __init__(self, plan: Plan) -> None:
        self.loaded = plan.loaded
        recipe = plan.loaded.recipe
        self.of_entries = {index: entry.allow for index, entry in enumerate(recipe.ignore) if entry.allow is not None}
        self.of_recipe = list(recipe.allow)
        self.used: set[tuple[str, int]] = set()

    def of(self, item: Raised) -> Allowance | None:
        """The allowance that lets a finding pass: the ignore entry's own before the recipe's."""
        if not RULES[item.rule].allowable:
            return None
        if item.entry in self.of_entries and self.of_entries[item.entry].rule == item.rule:
            self.used.add(("ignore", item.entry))
            return self.of_entries[item.entry]
        for index, allowance in enumerate(self.of_recipe):
            if allowance.rule == item.rule:
                self.used.add(("allow", index))
                return allowance
        return None

    def wrong_or_unused(self) -> Iterator[Raised]:
        """What is wrong with the allowances themselves, once every finding has been held against them."""
        for index, allowance in self.of_entries.items():
            yield from self._checked(
                allowance,
                ("ignore", index),
                "take the allowance out; what is not about this very entry is allowed in the recipe's allow list",
            )
        for index, allowance in enumerate(self.of_recipe):
            yield from self._checked(allowance, ("allow", index), "take the allowance out")

    def _checked(self, allowance: Allowance, path: tuple[str, int], remedy: str) -> Iterator[Raised]:
        where = self.loaded.location(*path)
        rule = RULES.get(allowance.rule)
        if rule is None:
            yield Raised(
                "allow/unknown-rule", where, f"{allowance.rule} is no rule", "docs/reference/rules.md lists them"
            )
        elif not rule.allowable:
            remedy = "take the allowance out; docs/reference/rules.md says why"
            yield Raised("allow/unknown-rule", where, f"{allowance.rule} cannot be allowed", remedy)
        elif path not in self.used:
            yield Raised("allow/not-needed", where, f"nothing here breaks {allowance.rule}", remedy)
