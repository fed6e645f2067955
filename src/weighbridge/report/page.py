"""A report as one page of HTML that needs nothing else: no network, no script, no font; it prints, and fits a phone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from weighbridge.report.findings import Area, Areas, Finding, Grid, Report, Severity

if TYPE_CHECKING:
    from jinja2 import Template

WIDTH, HEIGHT, HEAD = 1000.0, 460.0, 22.0
"""Units of a picture of areas; the head is the strip with a group's name."""
WIDEST_TABLE = 16
"""Columns of a grid that is shown as a coloured table; wider ones are drawn, with the table folded beneath."""
KINDS = 8
"""Colours that the page has for kinds; kinds beyond share the last."""
LABEL_WIDTH, LABEL_HEIGHT = 62.0, 16.0
"""The least room in which a rectangle's name is written into it."""


def as_html(report: Report) -> str:
    """The report as one self-contained page."""
    return _template().render(
        report=report,
        errors=sum(finding.severity is Severity.ERROR for finding in report.findings()),
        warnings=sum(finding.severity is Severity.WARNING for finding in report.findings()),
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("weighbridge.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "size": size, "fold": fold, "draw": draw, "shades": shades}
    environment.tests |= {
        "areas": lambda value: isinstance(value, Areas),
        "digest": is_digest,
        "wide": lambda value: len(value.columns) > WIDEST_TABLE,
    }
    return environment.get_template("page.html.j2")


def figure(value: str | float | None) -> str:
    """A figure as people read it; empty for none."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else value


def size(count: float) -> str:
    """Bytes in the largest unit (powers of 1000) of which there is one."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"


def is_digest(value: object) -> bool:
    """Whether a fact is something to copy and compare: 40 hex digits or more."""
    return isinstance(value, str) and len(value) >= 40 and set(value) <= set("0123456789abcdef")


@dataclass
class Fold:
    """Findings below one part of their names.

    Attributes:
        name: the part, e.g. ``model.language_model``.
        findings: those about exactly this.
        below: those about what lies below, by their next part.
    """

    name: str
    findings: list[Finding] = field(default_factory=list)
    below: dict[str, Fold] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Tensors or modules that the findings here and below stand for."""
        return sum(finding.count for finding in self.findings) + sum(fold.count for fold in self.below.values())

    @property
    def worst(self) -> Severity:
        """The gravest of the findings here and below."""
        found = [finding.severity for finding in self.findings] + [fold.worst for fold in self.below.values()]
        return min(found, key=list(Severity).index)


def fold(findings: Sequence[Finding]) -> list[Fold]:
    """A tree of findings by the parts of the names they are about; parts that do not branch stand together."""
    root = Fold("")
    for finding in findings:
        node = root
        for part in _parts(finding.where):
            node = node.below.setdefault(part, Fold(part))
        node.findings.append(finding)
    return [_joined(child) for child in root.below.values()]


def _parts(where: str) -> list[str]:
    """Parts of a tensor's name; anything else (a file, a line of a recipe) is one part."""
    return where.split(".") if where.count(".") > 1 and "/" not in where and " " not in where else [where]


def _joined(node: Fold) -> Fold:
    while not node.findings and len(node.below) == 1:
        (child,) = node.below.values()
        node = Fold(f"{node.name}.{child.name}", child.findings, child.below)
    return Fold(node.name, node.findings, {name: _joined(child) for name, child in node.below.items()})


@dataclass(frozen=True)
class Box:
    """A rectangle of a picture, in its units.

    Attributes:
        kind: number of its colour; None for the frame of a group.
        label: what is written in it; empty where there is no room.
        tells: what is shown when it is pointed at.
    """

    x: float
    y: float
    width: float
    height: float
    kind: int | None
    label: str
    tells: str


@dataclass(frozen=True)
class Drawing:
    """A picture of areas: boxes, and what the colours mean (name, size)."""

    boxes: tuple[Box, ...]
    legend: tuple[tuple[str, int], ...]


def draw(areas: Areas) -> Drawing:
    """Lay areas out: a rectangle for each group, in it one for each of its parts, all in proportion to their bytes.

    Squarified treemaps: M. Bruls, K. Huizing, J. van Wijk, 2000; by the library squarify.
    """
    kinds: dict[str, int] = {}
    for area in areas.areas:
        kinds[area.kind] = kinds.get(area.kind, 0) + area.size
    ordered = sorted(kinds, key=lambda kind: -kinds[kind])
    numbers = {kind: min(number, KINDS - 1) for number, kind in enumerate(ordered)}
    groups: dict[str, list[Area]] = {}
    for area in areas.areas:
        if area.size:
            groups.setdefault(area.group, []).append(area)
    return Drawing(tuple(_boxes(groups, numbers)), tuple((kind, kinds[kind]) for kind in ordered))


def _boxes(groups: dict[str, list[Area]], numbers: dict[str, int]) -> Iterator[Box]:
    sizes = {name: sum(area.size for area in members) for name, members in groups.items()}
    names = sorted(groups, key=lambda name: -sizes[name])
    for name, (x, y, width, height) in zip(
        names, _squares([sizes[name] for name in names], 0, 0, WIDTH, HEIGHT), strict=True
    ):
        tells = f"{name}: {size(sizes[name])}"
        head = HEAD if height > 2 * HEAD and width > LABEL_WIDTH else 0.0
        yield Box(x, y, width, height, None, name if head else "", tells)
        members = sorted(groups[name], key=lambda area: -area.size)
        places = _squares([area.size for area in members], x, y + head, width, height - head)
        for area, (left, top, wide, high) in zip(members, places, strict=True):
            what = f"{name}, {area.part}" if area.part else name
            label = area.part if wide > LABEL_WIDTH and high > LABEL_HEIGHT else ""
            tells = f"{what}, {area.kind}: {size(area.size)}"
            yield Box(left, top, wide, high, numbers[area.kind], label, tells)


def _squares(
    sizes: Sequence[int], x: float, y: float, width: float, height: float
) -> list[tuple[float, float, float, float]]:
    import squarify

    normal = squarify.normalize_sizes(sizes, width, height)
    boxes = squarify.squarify(normal, x, y, width, height)
    # Beside something a million million times as large, rounding puts the smallest ones outside.
    return [
        (
            min(box["x"], x + width),
            min(box["y"], y + height),
            max(0.0, min(box["dx"], x + width - box["x"])),
            max(0.0, min(box["dy"], y + height - box["y"])),
        )
        for box in boxes
    ]


def shades(grid: Grid) -> list[list[float]]:
    """How strongly each figure of a grid is coloured: from 0 for the best to 1 for the worst; 0 where there is none."""
    known = [value for row in grid.values for value in row if value is not None and math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    spread = (high - low) or 1.0

    def shade(value: float | None) -> float:
        if value is None or not math.isfinite(value):
            return 0.0
        share = (value - low) / spread
        return round(1 - share if grid.worst == "lowest" else share, 3)

    return [[shade(value) for value in row] for row in grid.values]
