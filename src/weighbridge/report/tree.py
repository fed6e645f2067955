"""Findings as a tree that folds, by the parts of the names that they are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from weighbridge.report.findings import Finding, Severity

IN_SIGHT = 25
"""Folds and findings that a tree shows before anybody unfolds it; the first error is in sight whatever their number."""


@dataclass
class Fold:
    """Findings below one part of their names.

    Attributes:
        name: the part, e.g. ``model.language_model``.
        findings: those about exactly this.
        below: those about what lies below, by their next part.
        open: whether it is shown unfolded.
    """

    name: str
    findings: list[Finding] = field(default_factory=list)
    below: dict[str, Fold] = field(default_factory=dict)
    open: bool = False

    @property
    def count(self) -> int:
        """Tensors or modules that the findings here and below stand for."""
        return sum(finding.count for finding in self.findings) + sum(fold.count for fold in self.below.values())

    @property
    def worst(self) -> Severity:
        """The gravest of the findings here and below."""
        found = [finding.severity for finding in self.findings] + [fold.worst for fold in self.below.values()]
        return min(found, key=list(Severity).index)

    @property
    def failing(self) -> list[Fold]:
        """What lies right below and holds an error."""
        return [fold for fold in self.below.values() if fold.worst is Severity.ERROR]


def fold(findings: Sequence[Finding]) -> list[Fold]:
    """A tree of findings by the parts of the names they are about; parts that do not branch stand together."""
    root = Fold("")
    for finding in findings:
        node = root
        for part in _parts(finding.where):
            node = node.below.setdefault(part, Fold(part))
        node.findings.append(finding)
    root.below = {name: _joined(child) for name, child in root.below.items()}
    _unfold(root)
    return list(root.below.values())


def _parts(where: str) -> list[str]:
    """Parts of a tensor's name; anything else (a file, a line of a recipe) is one part."""
    return where.split(".") if where.count(".") > 1 and "/" not in where and " " not in where else [where]


def _joined(node: Fold) -> Fold:
    while not node.findings and len(node.below) == 1:
        (child,) = node.below.values()
        node = Fold(f"{node.name}.{child.name}", child.findings, child.below)
    return Fold(node.name, node.findings, {name: _joined(child) for name, child in node.below.items()})


def _unfold(root: Fold) -> None:
    """Unfold the way to the first error, and then, level by level, what else holds errors, while there is room."""
    way = root
    while way.failing:
        way = way.failing[0]
        way.open = True
    level, room = root.failing, IN_SIGHT
    while level and room > 0:
        room -= sum(len(node.findings) + len(node.below) for node in level)
        for node in level:
            node.open |= room >= 0
        level = list(chain.from_iterable(node.failing for node in level))
