"""Units: entries of ignore lists with their reasons, written once and used by many recipes.

``- use: NAME`` in an ignore list stands for the entries of a unit: one of the catalogue by its name, or a file beside
the recipe. They are put in as text, with their comments, so that what comes out is a plain recipe whose lines still say
which file they are of.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from weighbridge.errors import RecipeError
from weighbridge.recipe.blocks import Block, Item, items_of, moved, text_of, top_level
from weighbridge.recipe.catalogue import RECIPES, UNITS, shown, unit_names
from weighbridge.text.strict_yaml import Document, parse_yaml

USE = "use"
HELD = "ignore"
"""The one key of a unit's file."""
_ALONE = re.compile(rf"\s*-\s+{USE}\s*:")


@dataclass(frozen=True)
class _Use:
    """An item of a list that stands for the entries of a unit."""

    index: int
    name: str
    place: str
    line: int


def uses_of(document: Document, at: tuple[str, ...]) -> tuple[_Use, ...]:
    """The items of the list at `at` that stand for units, in their order.

    Raises:
        RecipeError: one says anything but the name or file of a unit, or two name the same.
    """
    entries = _at(document.value, at)
    found: list[_Use] = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or USE not in entry:
            continue
        path: tuple[str | int, ...] = (*at, index)
        name, place = entry[USE], document.place(path)
        if len(entry) > 1 or not isinstance(name, str) or not name:
            what = f"{USE} stands alone, with the name or file of one unit"
            raise RecipeError(what, where=place, remedy=f"write '- {USE}: NAME', an item for each unit")
        if any(name == other.name for other in found):
            raise RecipeError(f"the unit {name} is used twice", where=place, remedy="use it once")
        found.append(_Use(index, name, place, document.line(path)))
    return tuple(found)


def with_units(blocks: Sequence[Block], at: tuple[str, ...], document: Document, directory: Path) -> tuple[Block, ...]:
    """The blocks of a list with the entries of its units in their places.

    Args:
        blocks: the one block of the top-level key that the list is under.
        at: where the list is.
        directory: what files of units are relative to.

    Raises:
        RecipeError: a unit is not there, is no unit, or has an entry that stands in the list already.
    """
    (block,) = blocks
    uses = uses_of(document, at)
    if not uses:
        return (block,)
    units = {use.index: _entries(use, directory) for use in uses}
    _check_doubles(document, at, uses, units)
    parts: list[Block] = []
    done = 0
    for use in uses:
        here = use.line - block.first
        line = block.lines[here]
        if not _ALONE.match(line):
            what = f"{USE} must stand on a line of its own"
            raise RecipeError(what, where=use.place, remedy=f"write '- {USE}: {use.name}', an item a line")
        indent = line[: len(line) - len(line.lstrip())]
        parts.append(Block(block.lines[done:here], block.where, block.first + done))
        parts.extend(part for item in units[use.index] for part in moved(item, indent))
        done = here + 1
    parts.append(Block(block.lines[done:], block.where, block.first + done))
    made = tuple(part for part in parts if part.lines)
    expected = [
        value
        for index, entry in enumerate(_at(document.value, at))
        for value in ([item.value for item in units[index]] if index in units else [entry])
    ]
    place = document.place(at)
    if _at(parse_yaml(text_of(made), where=place, error=RecipeError).value, at) != expected:
        what = f"units cannot be put into {'.'.join(at)} as it is written"
        raise RecipeError(what, where=place, remedy="write the list in blocks, an entry a line")
    return made


def _at(value: Any, at: tuple[str, ...]) -> Any:
    for key in at:
        value = value[key]
    return value


def _entries(use: _Use, directory: Path) -> tuple[Item, ...]:
    """The entries of a unit, each with the comments above it.

    Raises:
        RecipeError: there is no such unit, or its file holds anything but entries of an ignore list.
    """
    file = use.name.endswith((".yaml", ".yml"))
    path = directory / use.name if file else RECIPES / UNITS / f"{use.name}.yaml"
    if not file and use.name not in unit_names():
        close = get_close_matches(use.name, unit_names(), n=1)
        remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(unit_names())}, and files ('.yaml')"
        raise RecipeError(f"there is no unit {use.name}", where=use.place, remedy=remedy)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"the unit {use.name} cannot be read ({error.strerror})", where=use.place) from error
    unit = parse_yaml(raw, where=shown(path), error=RecipeError)
    other = next((key for key in unit.value if key != HELD), None)
    if other is not None:
        what = f"a unit holds {HELD} and nothing else, and this one has {other}"
        raise RecipeError(what, where=unit.place((other,)), remedy=f"take {other} out of it")
    entries = unit.value.get(HELD)
    if not isinstance(entries, list) or not entries:
        raise RecipeError(f"a unit holds {HELD}, a list of entries", where=unit.place((HELD,)))
    nested = next((index for index, entry in enumerate(entries) if isinstance(entry, dict) and USE in entry), None)
    if nested is not None:
        what = "a unit uses no other unit"
        raise RecipeError(what, where=unit.place((HELD, nested)), remedy="let the recipe use both")
    _, *items = items_of((top_level(raw, unit)[HELD],), (HELD,), unit.place((HELD,)))
    return tuple(items)


def _check_doubles(
    document: Document, at: tuple[str, ...], uses: Sequence[_Use], units: dict[int, tuple[Item, ...]]
) -> None:
    """Refuse a unit with an entry that the list says itself, or has of another unit.

    Raises:
        RecipeError: the place is that of the unit's use.
    """
    said = {
        _pattern(entry): f"stands on line {document.line((*at, index))}"
        for index, entry in enumerate(_at(document.value, at))
        if index not in units
    }
    for use in uses:
        for item in units[use.index]:
            pattern = _pattern(item.value)
            if pattern in said:
                what = f"{pattern} of the unit {use.name} {said[pattern]} already"
                raise RecipeError(what, where=use.place, remedy="take one of the two out")
            said[pattern] = f"is in the unit {use.name}"


def _pattern(entry: Any) -> str:
    return str(entry.get("pattern")) if isinstance(entry, dict) else str(entry)
