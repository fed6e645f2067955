"""The plan as a report: what each role gets and costs, what lint says, and how it compares with the references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from weighbridge.base.references import AgainstReference
from weighbridge.checks.areas import bytes_by_role
from weighbridge.checks.calibrating import calibration_section
from weighbridge.checks.capacity.accounting import Demand
from weighbridge.checks.capacity.report import capacity_section
from weighbridge.checks.validation import compare
from weighbridge.families import Role
from weighbridge.formats.tensors import Structure, payload_bytes
from weighbridge.linting import lint
from weighbridge.planning import Part, Plan
from weighbridge.planning.reasons import reasons, rules_by_tensor
from weighbridge.report import Report, Section, Table

COLUMNS = ("role", "scheme", "modules", "parameters", "bytes before", "bytes after", "bits a weight")


def report_plan(plan: Plan, references: Sequence[AgainstReference], demand: Demand | None = None) -> Report:
    """Judge a plan before anything is read or written: lint, the differences from each reference, and what fits.

    Args:
        demand: the card that the result is to be served on; None where nobody asks.

    Raises:
        StructureError: what fits cannot be computed.
    """
    findings = tuple(lint(plan))
    structure = plan.predicted.structure
    size = f"{len(structure):,} tensors, {payload_bytes(structure):,} bytes"
    decided = Section(
        id="plan",
        title="the plan",
        summary=f"{size}, {len(plan.schemes):,} modules quantized",
        findings=findings,
        tables=(_roles(plan),),
        figures=(bytes_by_role(plan.predicted, rules_by_tensor(plan), reasons(plan)),),
    )
    judged = (decided, *(compare(plan.predicted, against) for against in references))
    takes = (calibration_section(plan),) if plan.loaded.recipe.method == "oneshot" else ()
    card = () if demand is None else (capacity_section(plan.predicted, demand),)
    return Report("plan", plan.source.label, _verdict(plan, judged, card), (*judged, *takes, *card))


def _verdict(plan: Plan, judged: Sequence[Section], card: Sequence[Section]) -> str:
    for sections, failure in ((judged, "cannot be built as written"), (card, "can be built, but would not be served")):
        failed = next((section for section in sections if not section.holds), None)
        if failed is not None:
            first = next(finding for finding in failed.findings if finding.severity == "error")
            family = next((finding for finding in failed.findings if finding.rule == "base/another-family"), None)
            if family is not None:  # all else follows from that
                said = f"{failure}: {family.where} {family.message}; {family.remedy}"
                return f"{plan.loaded.document.where} {said}"
            return f"{plan.loaded.document.where} {failure}; {failed.title}: {first.where} {first.message}"
    held = "; ".join(f"{section.title}: {section.summary}" for section in (*judged, *card))
    return f"{plan.loaded.document.where} on {plan.source.label}: {held}"


def _roles(plan: Plan) -> Table:
    """One row for each role and scheme, and their sum."""
    rows: dict[tuple[Role, str], list[Part]] = {}
    family, kinds = plan.source.family, {id(scheme): str(scheme.weights) for scheme in plan.schemes.values()}
    for part in plan.parts:
        scheme = kinds[id(part.scheme)] if part.scheme is not None else f"kept {part.weight.dtype}"
        rows.setdefault((family.role_of(part.module), scheme), []).append(part)
    order = list(Role)
    ordered = sorted(rows, key=lambda row: (order.index(row[0]), row[1]))
    source = plan.source.structure
    counted = [_sizes(rows[row], source) for row in ordered]
    table = [
        _row(str(role), scheme, rows[role, scheme], own) for (role, scheme), own in zip(ordered, counted, strict=True)
    ]
    total = _Sizes(*map(sum, zip(*counted, strict=True))) if counted else _Sizes(0, 0, 0)
    return Table(COLUMNS, (*table, _row("total", "", plan.parts, total)))


class _Sizes(NamedTuple):
    """Elements of some parts, and their bytes before and after."""

    parameters: int
    before: int
    after: int


def _sizes(parts: Sequence[Part], source: Structure) -> _Sizes:
    return _Sizes(
        sum(part.weight.parameters for part in parts),
        sum(_bytes_before(part, source) for part in parts),
        sum(tensor.nbytes for tensor in {n: t for part in parts for n, t in part.outputs.items()}.values()),
    )


def _row(role: str, scheme: str, parts: Sequence[Part], sizes: _Sizes) -> tuple[str | int | float, ...]:
    bits = sizes.after * 8 / sizes.parameters if sizes.parameters else 0.0
    return role, scheme, len({part.module for part in parts}), *sizes, bits


def _bytes_before(part: Part, source: Structure) -> int:
    """Bytes of the source that a part is made from: its weight, or what the weight is stored as."""
    if part.stored is None:
        return part.weight.nbytes
    total = 0
    for place in part.stored.places.values():
        tensor = source[place.tensor]
        whole = place.expert is None
        total += tensor.nbytes if whole else tensor.nbytes * part.weight.shape[0] // (tensor.shape[0] * tensor.shape[1])
    return total
