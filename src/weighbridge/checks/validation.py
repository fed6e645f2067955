"""Structure against structure: a checkpoint held against itself, its recipe's plan and its references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from weighbridge.account import Account, Base, State, account_section, unjudged
from weighbridge.account import judge as judge_account
from weighbridge.base.references import AgainstReference
from weighbridge.checkpoint.consistency import inconsistencies
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import split_parameter
from weighbridge.checks.areas import bytes_by_role
from weighbridge.checks.diff import (
    Difference,
    DifferenceGroup,
    Explained,
    diff_settings,
    diff_structures,
    explain,
    group,
)
from weighbridge.formats.tensors import payload_bytes
from weighbridge.linting import lint_served
from weighbridge.planning import Plan
from weighbridge.planning.reasons import reasons, rules_by_tensor
from weighbridge.recipe import Explanation
from weighbridge.report import Finding, Report, Section, SectionId, Severity, first_error

_MESSAGES = {
    "only-in-reference": "missing; {other} has it as {theirs}",
    "only-in-checkpoint": "is {ours}; {other} has no such tensor",
    "dtype": "is {ours}; {other} has {theirs}",
    "shape": "is {ours}; {other} has {theirs}",
    "scheme": "gets: {ours}. In {other}: {theirs}",
    "quantization-config": "declares {ours}; {other} declares {theirs}",
    "renamed": "{ours}: there it is {theirs}",
    "layout": "is {ours}; {other} has {theirs}",
    "config": "is {ours}; {other} has {theirs}",
    "file": "is {ours}; {other} has {theirs}",
    "kv-cache": "declares the KV cache {ours}; {other} declares {theirs}",
}


OTHER_RECIPE = "build it again by this recipe, or name the recipe that it was built by"
_REMEDIES = {
    "scheme": OTHER_RECIPE,
    "quantization-config": OTHER_RECIPE,
    "only-in-reference": "find out what left it out, and build it again",
    "only-in-checkpoint": "find out where it comes from, and build it again",
    "dtype": "build it again, or explain the difference in the recipe",
    "shape": "find out which model this was made from",
    "renamed": "name tensors as the base does, or explain it in the recipe",
    "layout": "convert it (convert: experts), or explain it in the recipe",
}

SERVED = "what servers make of it"
PLANNED = "against the recipe's plan"


def validate(
    checkpoint: Checkpoint,
    *,
    plan: Plan | None = None,
    references: Sequence[AgainstReference] = (),
    base: Base | None = None,
    context: Sequence[Section] = (),
) -> Report:
    """Judge a checkpoint by its headers and its files: against itself, its base, the plan, each reference.

    Args:
        base: what its files and the keys of its config are held against.
        context: sections that are already known (the identity of the source, say) and stand first.

    Raises:
        StructureError, HubError: a file cannot be read, or its declaration is not wholly read here.
    """
    named = describe(references[0].reference) if references else ""
    account = judge_account(checkpoint, base=base, plan=plan, reference=named)
    other = [] if plan is None else other_schemes(checkpoint, plan)
    sections = [*context, _itself(checkpoint, plan), *_served(checkpoint, plan), _account(account, base, plan)]
    compared = [(against, diff_structures(checkpoint, against.reference)) for against in references]
    listed: Sequence[Difference] = ()
    if plan is not None:
        found = diff_structures(checkpoint, plan.predicted)  # its files and keys stand in the account
        differences = without_what_follows(found, {*checkpoint.schemes, *plan.schemes})
        themselves = [against for against, found in compared if not found]
        entries = [entry for against in themselves for entry in _stored_heads(plan, against)]
        explained = explain(differences, entries)
        listed = explained.unexplained
        sections.append(_compare(checkpoint, explained, id="against-plan", title=PLANNED, other="the plan"))
    sections += [_against(checkpoint, against, found, listed=listed) for against, found in compared]
    if other:
        sections.insert(0, Section("cause", WHY, "; ".join(other), judges=False))
    return Report("validate", checkpoint.label, _verdict(checkpoint, sections, other), tuple(sections))


WHY = "why it does not hold"


def other_schemes(checkpoint: Checkpoint, plan: Plan) -> list[str]:
    """How modules are quantized otherwise than a plan has it, the most of them first."""
    ours, theirs = (
        {name: str(scheme.weights) for name, scheme in side.items()} for side in (checkpoint.schemes, plan.schemes)
    )
    counts = Counter(
        (ours.get(module, ""), theirs.get(module, ""))
        for module in {**ours, **theirs}
        if ours.get(module) != theirs.get(module)
    )
    return [
        f"{own or 'not quantized'} where the recipe's plan {f'says {planned}' if planned else 'keeps floats'}: "
        f"{count:,} module{'' if count == 1 else 's'}"
        for (own, planned), count in counts.most_common()
    ]


def without_what_follows(differences: Sequence[Difference], modules: Collection[str]) -> list[Difference]:
    """Differences without those of the tensors that store a module's weight, where its scheme is another: these follow.

    Args:
        modules: those that either side quantizes.
    """
    otherwise = {item.name for item in differences if item.kind == "scheme"} & set(modules)

    def follows(item: Difference) -> bool:
        module, local = split_parameter(item.name)
        return module in otherwise and local.startswith(("weight", "input_")) and item.kind != "scheme"

    return [item for item in differences if not follows(item)]


def compare(checkpoint: Checkpoint, against: AgainstReference) -> Section:
    """The section of one reference: each difference, and whether it is explained."""
    return _against(checkpoint, against, diff_structures(checkpoint, against.reference))


def _against(
    checkpoint: Checkpoint,
    against: AgainstReference,
    found: Sequence[Difference],
    *,
    listed: Collection[Difference] = (),
) -> Section:
    """The same, of differences of structure that were found. Where there are none it is the reference itself, and
    nothing is left to explain.

    Args:
        listed: differences that stand in the section of the plan already.
    """
    title = f"against {describe(against.reference)}"
    entries = against.explanations if found else ()
    if not entries:  # entries may explain what follows from another scheme, tensor by tensor
        found = without_what_follows(found, {*checkpoint.schemes, *against.reference.schemes})
    differences = [*found, *diff_settings(checkpoint, against.reference)]
    explained = explain(differences, entries)
    return _compare(checkpoint, explained, id="against-reference", title=title, other="the reference", listed=listed)


def _stored_heads(plan: Plan, against: AgainstReference) -> list[Explanation]:
    """Why the reference itself has more than the plan: a copy of the tied output head, which servers pass over."""
    heads = {f"{head}.weight" for head in plan.tied_modules}
    return [
        entry.model_copy(update={"difference": "only-in-checkpoint"})
        for entry in against.explanations
        if entry.difference == "only-in-reference" and entry.tensors in heads
    ]


def describe(checkpoint: Checkpoint) -> str:
    """How a reference is called: repository, revision, and how its structure is known."""
    origin = checkpoint.origin
    if not origin.repository:
        return checkpoint.label
    revision = f"@{origin.revision[:7]}" if origin.revision else ""
    basis = "" if origin.basis == "read" else f" ({origin.basis})"
    return f"{origin.repository}{revision}{basis}"


def _itself(checkpoint: Checkpoint, plan: Plan | None) -> Section:
    findings = inconsistencies(checkpoint)
    declaration = checkpoint.declaration
    declared = "nothing quantized" if declaration is None else f"{len(checkpoint.schemes):,} modules quantized"
    if declaration is not None and not checkpoint.schemes and declaration.kv_cache is not None:
        declared = f"only the KV cache quantized ({declaration.kv_cache})"
    size = f"{len(checkpoint.structure):,} tensors, {payload_bytes(checkpoint.structure):,} bytes"
    wrong = any(finding.severity is Severity.ERROR for finding in findings)
    agree = "headers and quantization config disagree" if wrong else "headers, index and quantization config agree"
    why: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})
    if plan is not None:
        decided, planned = rules_by_tensor(plan), plan.predicted.structure
        # What decided how a tensor is stored is said of what is stored so.
        as_decided = {
            name: rule for name, rule in decided.items() if checkpoint.structure.get(name) == planned.get(name)
        }
        why = as_decided, reasons(plan)
    return Section(
        id="structure",
        title="the checkpoint itself",
        summary=f"{size}, {declared}; {agree}",
        findings=tuple(findings),
        figures=(bytes_by_role(checkpoint, *why),),
    )


def _served(checkpoint: Checkpoint, plan: Plan | None) -> list[Section]:
    """What the rules of serving say; nothing of a checkpoint that is not quantized."""
    if not checkpoint.schemes:
        return []
    findings = lint_served(checkpoint, plan)
    if findings is None:
        asked = "the rules of serving are known here for compressed-tensors and modelopt alone"
        return [Section("serving-rules", SERVED, asked, judges=False)]
    broken = sum(finding.severity is not Severity.NOTE for finding in findings)
    summary = f"{broken} rules of serving are broken" if broken else "no rule of serving is broken"
    return [Section("serving-rules", SERVED, summary, findings=tuple(findings))]


def _account(account: Account, base: Base | None, plan: Plan | None) -> Section:
    """The account; closed where there is something that the whole checkpoint was to be held against."""
    said = "none was named" if base is None else f"{base.name}, {base.why}"
    return account_section(account, said, () if base is None and plan is None else unjudged(account))


def _compare(
    checkpoint: Checkpoint,
    explained: Explained,
    *,
    id: SectionId,
    title: str,
    other: str,
    listed: Collection[Difference] = (),
) -> Section:
    same = set(explained.unexplained).intersection(listed)
    new = [item for item in explained.unexplained if item not in same]
    findings = [
        *(difference_finding(item, other, severity=_severity(item.kind)) for item in group(new)),
        *_as_planned(len(same)),
        *(
            Finding(
                "diff/explained-twice",
                Severity.ERROR,
                str(item.pattern),
                f"two entries explain {item.kind} here; which of them is the reason?",
                count=item.count,
                remedy="take one of the two out of the recipe",
            )
            for item in group(explained.contested)
        ),
        *(
            difference_finding(item, other, severity=Severity.NOTE, explained=entry.why)
            for entry, differences in explained.by_entry
            for item in group(differences)
        ),
        *(
            Finding(
                "diff/explains-nothing",
                Severity.ERROR,
                entry.tensors,
                f"an entry explains {entry.difference} here, but {name} has no such difference",
                remedy="take the entry out of the recipe, or narrow it",
            )
            for entry, name in explained.overreaching
        ),
    ]
    unexplained = [*explained.unexplained, *explained.contested]
    summary = _difference_summary(checkpoint, unexplained, explained.by_entry, len(same))
    return Section(id, title, summary, findings=tuple(findings))


def _as_planned(count: int) -> list[Finding]:
    """One finding for the differences that stand in the section of the plan, where each is told."""
    if not count:
        return []
    what = "the difference found there is one" if count == 1 else "the differences found there are differences"
    message = f"{what} from the reference, too, and not listed twice"
    return [Finding("diff/same-as-plan", Severity.ERROR, PLANNED, message, count=count, remedy="see that section")]


def _difference_summary(
    checkpoint: Checkpoint,
    unexplained: Sequence[Difference],
    by_entry: Sequence[tuple[Explanation, Sequence[Difference]]],
    same: int,
) -> str:
    count = sum(len(differences) for _, differences in by_entry)
    if not unexplained and not count:
        return f"all {len(checkpoint.structure):,} names, dtypes, shapes and schemes are the same"
    parts = []
    if unexplained:
        listed = f" ({same:,} of them listed against the recipe's plan)" if same else ""
        noun = "difference" if len(unexplained) == 1 else "differences"
        parts.append(f"{len(unexplained):,} unexplained {noun}{listed}")
    if count:
        parts.append(f"{count:,} explained {'difference' if count == 1 else 'differences'}")
    return ", ".join(parts)


def _severity(kind: str) -> Severity:
    """Settings and templates differ between honest builds, and are for a person to judge; tensors are not."""
    return Severity.WARNING if kind in ("config", "file") else Severity.ERROR


def difference_finding(
    item: DifferenceGroup, other: str, *, severity: Severity = Severity.ERROR, explained: str = ""
) -> Finding:
    """One thing to say of differences that are alike.

    Args:
        other: how the reference is called.
    """
    message = _MESSAGES[item.kind].format(ours=item.checkpoint, theirs=item.reference, other=other)
    remedy = _REMEDIES.get(item.kind, "") if severity is Severity.ERROR else ""
    where = str(item.pattern)
    return Finding(f"diff/{item.kind}", severity, where, message, count=item.count, explained=explained, remedy=remedy)


_COMPARED: Collection[SectionId] = ("source", "audit", "against-build", "against-plan", "against-reference")
"""Sections whose results a verdict gives; the others of a checkpoint that holds stand above it."""


def _decisive(sections: Sequence[Section]) -> Iterator[str]:
    """What a checkpoint was compared with, and how far: each section's result; of nothing, what it is by itself."""
    compared = [section for section in sections if section.id in (*_COMPARED, "capacity")]
    alone = not any(section.id in _COMPARED for section in compared)
    told = [
        section
        for section in sections
        if section in compared
        or (alone and section.id == "structure")
        or (section.id == "account" and State.NOT_JUDGED in section.summary)
    ]
    told += [section for section in sections if section.id == "weights-unread"]
    yield from (f"{section.title}: {section.summary}" for section in told)


def _verdict(checkpoint: Checkpoint, sections: Sequence[Section], other: Sequence[str]) -> str:
    failed = [section for section in sections if not section.holds]
    if not failed:
        return f"{checkpoint.label} holds: {'; '.join(_decisive(sections))}"
    if other:
        return f"{checkpoint.label} does not hold: {'; '.join(other)}"
    return f"{checkpoint.label} does not hold; {failed[0].title}: {first_error(failed)}"
