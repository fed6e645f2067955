"""That a checkpoint derives from its base, and how closely: an audit as a statement that other programs read.

docs/reference/derivation-predicate.md defines it. Builder and verifier make it by the same function of the audit's
report, so that it says no more than that.
"""

from __future__ import annotations

from collections.abc import Mapping

from weighbridge.errors import StructureError
from weighbridge.evidence.provenance import RECIPE
from weighbridge.evidence.statements import (
    AUDITOR,
    Derivation,
    DerivationStatement,
    Elements,
    Judge,
    Relation,
    Resource,
    sha256_of,
)
from weighbridge.report import Report

DERIVATION = "derivation"
"""How provenance names the statement among its by-products."""

RELATIONS: Mapping[Relation, frozenset[str]] = {
    "exact": frozenset({"identical", "exact", "recomputed"}),
    "nearest": frozenset({"identical", "exact", "recomputed", "nearest"}),
    "compensated": frozenset({"identical", "exact", "recomputed", "nearest", "dequantized", "paired", "compensated"}),
}
"""How closely a checkpoint derives, the closest first, by the verdicts of its weights and kept tensors."""

_PREFIX, _SUFFIX = "judged_", "_count"


def verdicts_of(report: Report) -> Mapping[str, int | float]:
    """How many weights and kept tensors came to each verdict, of an audit's report: verdict -> count, where any did."""
    found = (
        (name.removeprefix(_PREFIX).removesuffix(_SUFFIX), value)
        for name, value in report.metrics.items()
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX)
    )
    return {name: value for name, value in found if value}


def relation_of(verdicts: Mapping[str, object]) -> Relation:
    """How closely a checkpoint of these verdicts derives from its base.

    Raises:
        StructureError: it does not, or nothing was judged.
    """
    for relation, accepted in RELATIONS.items():
        if verdicts and verdicts.keys() <= accepted:
            return relation
    raise StructureError("states no verdict by which the checkpoint derives from its base", where="audit.json")


def derivation_statement(
    audit: Report, content: bytes, *, subject: Resource, base: Resource, recipe: str, version: str
) -> DerivationStatement:
    """What an audit that holds comes to.

    Args:
        content: the bytes of the report, as ``audit.json`` has them.
        base: as the provenance names it.
        recipe: SHA-256 (hex) of its bytes.
        version: of what judged.

    Raises:
        StructureError: the audit states no verdict by which the checkpoint derives.
    """
    verdicts = verdicts_of(audit)
    checked, total = (int(audit.metrics.get(name, 0)) for name in ("elements_checked_count", "elements_count"))
    return DerivationStatement(
        subject=[subject],
        predicate=Derivation(
            base=base,
            relation=relation_of(verdicts),
            verdicts={name: int(count) for name, count in verdicts.items()},
            elements=Elements(checked=checked, total=total),
            recipe=Resource(name=RECIPE, digest={"sha256": recipe}),
            report=Resource(name="evidence/audit.json", digest=sha256_of(content)),
            judged_by=Judge(id=AUDITOR, version={"weighbridge": version}),
        ),
    )
