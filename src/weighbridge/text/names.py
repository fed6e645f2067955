"""Compact patterns of tensor names: ``layers.{0-29}.experts.{0-127}.down_proj.weight`` stands for 3840 names.

Only whole path components that are numbers vary; ``post_feedforward_layernorm_1`` stays as it is. A pattern stands for
every combination of its braces, so one that is written for a set of names stands for exactly that set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby, pairwise, product
from math import prod

from weighbridge.errors import StructureError

#: More names than any published checkpoint has; what a hostile pattern asks for beyond it is refused unexpanded.
MAX_NAMES = 500_000

_NUMBER = r"(?:0|[1-9][0-9]{0,6})"
_NUMBER_PART = re.compile(rf"(?<![^.]){_NUMBER}(?![^.])")
_BRACES_PART = re.compile(
    rf"(?<![^.])(?:\{{{_NUMBER}(?:-{_NUMBER})?(?:,{_NUMBER}(?:-{_NUMBER})?)*\}}|{_NUMBER})(?![^.])"
)


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A set of names: `template` with one ``{}`` for each of `indices`.

    Attributes:
        template: e.g. ``layers.{}.experts.{}.down_proj.weight``.
        indices: for each ``{}`` the sorted numbers that stand in it.
    """

    template: str
    indices: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return prod(len(numbers) for numbers in self.indices)

    def __iter__(self) -> Iterator[str]:
        if not self.indices:
            yield self.template
            return
        for numbers in product(*self.indices):
            yield self.template.format(*numbers)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        template, numbers = split_name(name)
        return (
            template == self.template
            and len(numbers) == len(self.indices)
            and all(number in allowed for number, allowed in zip(numbers, self.indices, strict=True))
        )

    def __str__(self) -> str:
        if not self.indices:
            return self.template
        return self.template.format(
            *(str(numbers[0]) if len(numbers) == 1 else "{" + _ranges(numbers) + "}" for numbers in self.indices)
        )


_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)(?:\.|$)")


@lru_cache(maxsize=1 << 18)
def layer_of(module: str) -> int | None:
    """The layer that a module belongs to, by its name; None for one that belongs to none."""
    match = _LAYER.search(module)
    return int(match[1]) if match else None


def expert_of(module: str) -> tuple[str, str] | None:
    """The experts that a module is one of, and its name within one: ``("layers.0.experts", "down_proj")``."""
    parent, found, rest = module.rpartition(".experts.")
    number, _, member = rest.partition(".")
    return (f"{parent}.experts", member) if found and number.isdigit() and member else None


@lru_cache(maxsize=1 << 18)
def split_name(name: str) -> tuple[str, tuple[int, ...]]:
    """A name's template and the numbers that stand in it: ``("layers.{}.x", (7,))`` for ``layers.7.x``.

    A name with braces of its own (a key of a stranger's config.json, say) is its own template.
    """
    if "{" in name or "}" in name:
        return name, ()
    return _NUMBER_PART.sub("{}", name), tuple(map(int, _NUMBER_PART.findall(name)))


def compact(names: Iterable[str]) -> list[NamePattern]:
    """The fewest patterns, found greedily from the left, that stand for exactly these names; sorted by template."""
    by_template: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        template, numbers = split_name(name)
        by_template.setdefault(template, []).append(numbers)
    return [
        NamePattern(template, indices)
        for template in sorted(by_template)
        for indices in _rectangles(sorted(set(by_template[template])))
    ]


def parse_pattern(text: str, *, where: str) -> NamePattern:
    """Read a pattern as `NamePattern.__str__` writes it; a plain name is the pattern of one name.

    Raises:
        StructureError: braces that do not hold ascending ranges, or a pattern that stands for too many names.
    """
    rest = _BRACES_PART.sub("", text)
    if "{" in rest or "}" in rest:
        raise StructureError(f"{text[:120]!r} has braces that hold no ranges such as {{0-4,6}}", where=where)
    parts = [_ranges_in(part, text, where=where) for part in _BRACES_PART.findall(text)]
    if prod(sum(map(len, ranges)) for ranges in parts) > MAX_NAMES:  # counted before anything is expanded
        raise StructureError(f"{text[:120]!r} stands for more than {MAX_NAMES:,} names", where=where)
    return NamePattern(_BRACES_PART.sub("{}", text), tuple(tuple(chain.from_iterable(ranges)) for ranges in parts))


def _ranges_in(part: str, text: str, *, where: str) -> list[range]:
    bounds = [tuple(map(int, bound.split("-"))) for bound in part.strip("{}").split(",")]
    ends = [end for bound in bounds for end in (bound[0], bound[-1])]
    if ends != sorted(ends) or any(first[-1] == second[0] for first, second in pairwise(bounds)):
        raise StructureError(f"the ranges {part[:40]} in {text[:120]!r} do not ascend", where=where)
    return [range(bound[0], bound[-1] + 1) for bound in bounds]


def _rectangles(points: list[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Cover sorted index tuples exactly by products of index sets: equal rests are merged, from the left."""
    if not points or not points[0]:
        if points:
            yield ()
        return
    rests: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for first, group in groupby(points, key=lambda point: point[0]):
        rests.setdefault(tuple(point[1:] for point in group), []).append(first)
    for rest, firsts in rests.items():
        for indices in _rectangles(list(rest)):
            yield (tuple(firsts), *indices)


def _ranges(numbers: tuple[int, ...]) -> str:
    # What follows on one another is equally far from its place.
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda at: at[1] - at[0])]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
