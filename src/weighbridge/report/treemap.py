"""Areas laid out as a picture: a rectangle for each group, in it one for each of its parts, as large as their bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from weighbridge.report.findings import Area, Areas

WIDTH, HEIGHT = 100.0, 46.0
"""Units of a picture of areas."""
HEAD = 2.3
"""The strip with a group's name, where the group has room for one."""
MOST_ROWS = 40
"""Rows that the parts of a group may stand in."""
QUANTIZED_KINDS, KEPT_KINDS = 5, 3
"""Colours and patterns that the page has for what is quantized, and after them for what is kept; kinds beyond share
the last."""

Rectangle = tuple[float, float, float, float]
"""Left, top, width, height."""


@dataclass(frozen=True)
class Box:
    """A rectangle of a picture, in its units.

    Attributes:
        area: what it stands for; None for the frame of a group.
        name: what is written in it, where there is room.
        size: bytes.
        kind: number of its colour; None for the frame of a group.
    """

    x: float
    y: float
    width: float
    height: float
    area: Area | None
    name: str
    size: int
    kind: int | None


@dataclass(frozen=True)
class Kind:
    """What a colour means: its number, what it stands for, how many bytes that is, and whether they are kept."""

    number: int
    name: str
    size: int
    kept: bool


@dataclass(frozen=True)
class Because:
    """What decided how some bytes are stored.

    Attributes:
        by: the rule, or the entry of the recipe.
        kind: as what they are stored.
        groups: what they are of, the most bytes first; `size`: how many.
        reason: the recipe's own words; empty where it has none.
    """

    by: str
    kind: Kind
    groups: tuple[str, ...]
    size: int
    reason: str


@dataclass(frozen=True)
class Drawing:
    """A picture of areas: its boxes, each group's frame before its parts, and what the colours mean."""

    boxes: tuple[Box, ...]
    kinds: tuple[Kind, ...]


def draw(areas: Areas) -> Drawing:
    """Lay areas out in proportion to their bytes: groups squarified, the parts of each in rows in their own order.

    Squarified treemaps: M. Bruls, K. Huizing, J. van Wijk, 2000; by the library squarify. They put the largest first;
    parts are layers, which a reader looks for by their number, so these stand in rows (B. Bederson, B. Shneiderman,
    M. Wattenberg, 2002, call such a treemap a strip).
    """
    kinds = _kinds(areas)
    return Drawing(tuple(_boxes(areas, kinds)), tuple(kinds.values()))


def _kinds(areas: Areas) -> dict[tuple[bool, str], Kind]:
    """Kinds, the most bytes first; those that are quantized and those that are kept are numbered apart."""
    sizes: Counter[tuple[bool, str]] = Counter()
    for area in areas.areas:
        sizes[area.kept, area.kind] += area.size
    ordered = [kind for kind, _ in sizes.most_common()]
    quantized = [kind for kind in ordered if not kind[0]]
    kept = [kind for kind in ordered if kind[0]]
    numbers = {kind: min(number, QUANTIZED_KINDS - 1) for number, kind in enumerate(quantized)}
    numbers |= {kind: QUANTIZED_KINDS + min(number, KEPT_KINDS - 1) for number, kind in enumerate(kept)}
    return {kind: Kind(numbers[kind], kind[1], sizes[kind], kind[0]) for kind in ordered}


def why(areas: Areas) -> tuple[Because, ...]:
    """What decided about the bytes, and why; the most bytes first, and nothing where nobody knows."""
    kinds = _kinds(areas)
    found: dict[tuple[str, bool, str], Counter[str]] = {}
    for area in areas.areas:
        if area.by:
            found.setdefault((area.by, area.kept, area.kind), Counter())[area.group] += area.size
    ordered = sorted(found.items(), key=lambda item: -item[1].total())
    return tuple(
        Because(
            by,
            kinds[kept, kind],
            tuple(group for group, _ in groups.most_common()),
            groups.total(),
            areas.reasons.get(by, ""),
        )
        for (by, kept, kind), groups in ordered
    )


def _boxes(areas: Areas, kinds: dict[tuple[bool, str], Kind]) -> Iterator[Box]:
    groups: dict[str, list[Area]] = {}
    for area in _joined(areas):
        groups.setdefault(area.group, []).append(area)
    sizes = {name: sum(area.size for area in members) for name, members in groups.items()}
    names = sorted(groups, key=lambda name: -sizes[name])
    whole = (0.0, 0.0, WIDTH, HEIGHT)
    for name, (x, y, width, height) in zip(names, _squares([sizes[name] for name in names], whole), strict=True):
        yield Box(x, y, width, height, None, name, sizes[name], None)
        head = HEAD if height > 2 * HEAD and width > 2 * HEAD else 0.0
        places = _rows([area.size for area in groups[name]], (x, y + head, width, height - head))
        for area, place in zip(groups[name], places, strict=True):
            yield Box(*place, area, area.part, area.size, kinds[area.kept, area.kind].number)


def _joined(areas: Areas) -> Iterator[Area]:
    """The areas with bytes; those that differ only in what decided them are one, decided by what decided most first."""
    alike: dict[tuple[str, str, bool, str], list[Area]] = {}
    for area in areas.areas:
        if area.size:
            alike.setdefault((area.group, area.part, area.kept, area.kind), []).append(area)
    for found in alike.values():
        found.sort(key=lambda area: -area.size)
        rules = dict.fromkeys(area.by for area in found if area.by)
        yield replace(found[0], size=sum(area.size for area in found), by=", and by ".join(rules))


def _squares(sizes: Sequence[int], room: Rectangle) -> list[Rectangle]:
    import squarify

    x, y, width, height = room
    boxes = squarify.squarify(squarify.normalize_sizes(sizes, width, height), x, y, width, height)
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


def _rows(sizes: Sequence[int], room: Rectangle) -> list[Rectangle]:
    """Rectangles in rows, in order; of all numbers of rows, the one whose rectangles are nearest to squares."""
    ways = [_in_rows(sizes, room, count) for count in range(1, min(len(sizes), MOST_ROWS) + 1)]
    return min(ways, key=lambda way: sum(_oblong(place) * place[2] * place[3] for place in way))


def _in_rows(sizes: Sequence[int], room: Rectangle, count: int) -> list[Rectangle]:
    """Rectangles in about so many rows of about as many bytes."""
    x, y, width, height = room
    total = sum(sizes)
    rows: dict[int, list[int]] = {}
    for size, end in zip(sizes, accumulate(sizes), strict=True):
        rows.setdefault((2 * end - size) * count // (2 * total), []).append(size)
    placed, top = [], 0
    for row in rows.values():
        whole = sum(row)
        for size, end in zip(row, accumulate(row), strict=True):
            left = x + width * (end - size) / whole
            placed.append((left, y + height * top / total, width * size / whole, height * whole / total))
        top += whole
    return placed


def _oblong(place: Rectangle) -> float:
    """How much longer than wide a rectangle is."""
    _, _, width, height = place
    return max(width, height) / max(min(width, height), 1e-9)
