"""Lint: what is wrong with a recipe, decided from its plan before anything is built."""

from __future__ import annotations

from collections.abc import Iterator

from weighbridge.lint import fused, ignored, quantized, serving
from weighbridge.lint.rules import RULES, Raised
from weighbridge.plan import Plan
from weighbridge.recipe import Allowance
from weighbridge.report import Finding, Severity

__all__ = ["RULES", "lint"]


def lint(plan: Plan) -> list[Finding]:
    """Everything that lint has to say of a plan: errors first, then warnings, then notes."""
    raised = [*ignored.check(plan), *quantized.check(plan), *fused.check(plan), *serving.check(plan)]
    used: set[Allowance] = set()
    findings = [_finding(item, _allowance_for(item, plan, used)) for item in raised]
    findings += [_finding(item, None) for item in _allowances_checked(plan, used)]
    order = list(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def _finding(item: Raised, allowance: Allowance | None) -> Finding:
    severity = RULES[item.rule].severity if allowance is None else Severity.NOTE
    explained = "" if allowance is None else f"allowed because {allowance.reason}"
    return Finding(item.rule, severity, item.where, item.message, item.count, explained, item.remedy)


def _allowance_for(item: Raised, plan: Plan, used: set[Allowance]) -> Allowance | None:
    if not RULES[item.rule].allowable:
        return None
    recipe = plan.loaded.recipe
    own = recipe.ignore[item.entry].allow if item.entry is not None else None
    for allowance in (own, *recipe.allow):
        if allowance is not None and allowance.rule == item.rule:
            used.add(allowance)
            return allowance
    return None


def _allowances_checked(plan: Plan, used: set[Allowance]) -> Iterator[Raised]:
    recipe, loaded = plan.loaded.recipe, plan.loaded
    allowances = [(entry.allow, ("ignore", index)) for index, entry in enumerate(recipe.ignore) if entry.allow]
    allowances += [(allowance, ("allow", index)) for index, allowance in enumerate(recipe.allow)]
    for allowance, path in allowances:
        where = loaded.location(*path)
        rule = RULES.get(allowance.rule)
        if rule is None or not rule.allowable:
            what = "is not a rule" if rule is None else "cannot be allowed"
            yield Raised(
                "allow/unknown-rule", where, f"{allowance.rule} {what}", "the rules are listed in docs/rules.md"
            )
        elif allowance not in used:
            yield Raised("allow/not-needed", where, f"{allowance.rule} does not occur here", "take the allowance out")
