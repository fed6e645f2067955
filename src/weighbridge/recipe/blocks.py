"""A recipe's text in blocks: its top-level keys, and the items of its lists, each with the comments above it.

Recipes are put together as text, so that comments and lines survive, and every line still says which file it is of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from weighbridge.errors import RecipeError
from weighbridge.text.strict_yaml import Document, parse_yaml


@dataclass(frozen=True)
class Block:
    """Lines that follow one another in a file: of a top-level key or of an item, with the comments above it.

    Attributes:
        where: the file, as messages call it.
        first: the line (from 1) of that file on which they begin.
    """

    lines: tuple[str, ...]
    where: str
    first: int


def top_level(raw: bytes, document: Document) -> dict[str, Block]:
    """The top-level keys of a recipe, each with its lines.

    Raises:
        RecipeError: its keys do not stand each on a line of its own.
    """
    lines = raw.decode("utf-8-sig").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    starts = {key: document.line((key,)) for key in document.value}
    if any(not _unquoted(lines[line - 1]).startswith(f"{key}:") for key, line in starts.items()):
        what = "what extends, is extended or uses units has each of its keys at the beginning of a line"
        raise RecipeError(what, where=document.where, remedy="write it in blocks, without braces around it")
    ordered = sorted(starts, key=lambda key: starts[key])
    firsts = {key: _with_comments(lines, starts[key]) for key in ordered} | {ordered[0]: 1}
    ends = [*(firsts[key] for key in ordered[1:]), len(lines) + 1]
    return {
        key: Block(tuple(lines[firsts[key] - 1 : end - 1]), document.where, firsts[key])
        for key, end in zip(ordered, ends, strict=True)
    }


def _unquoted(line: str) -> str:
    return line.replace('"', "").replace("'", "")


def _with_comments(lines: list[str], line: int) -> int:
    """The first of the comment lines that stand right above a line (from 1)."""
    while line > 1 and lines[line - 2].lstrip().startswith("#") and not lines[line - 2].startswith(" "):
        line -= 1
    return line


@dataclass(frozen=True)
class Item:
    """An item of a list; or, without a value, what stands before the first.

    Attributes:
        names: what it is called by: itself, or the words in it.
    """

    value: Any
    names: tuple[str, ...]
    blocks: tuple[Block, ...]


def items_of(blocks: Sequence[Block], path: tuple[str, ...], place: str) -> list[Item]:
    """What stands before a list's items, then each with the comments above it; what follows the last is left out.

    Raises:
        RecipeError: items do not stand each on lines of their own.
    """
    lines = [(line, block.where, block.first + number) for block in blocks for number, line in enumerate(block.lines)]
    document = parse_yaml("".join(line for line, _, _ in lines).encode(), where=place, error=RecipeError)
    value: Any = document.value
    for key in path:
        value = value[key]
    if not isinstance(value, list):
        raise RecipeError(f"{'.'.join(path)} is no list", where=place)
    starts = []
    for index in range(len(value)):
        start = document.line((*path, index))
        if not lines[start - 1][0].lstrip().startswith("- "):
            what = f"each entry of {'.'.join(path)} must stand on a line of its own"
            raise RecipeError(what, where=place, remedy="write the list in blocks, an entry a line")
        while start > 1 and lines[start - 2][0].lstrip().startswith("#"):
            start -= 1
        starts.append(start)
    end = _end(lines, starts, document, path)
    edges = [1, *starts, end]
    cut = [lines[begin - 1 : after - 1] for begin, after in pairwise(edges)]
    cut[-1] = _without_what_follows(cut[-1])
    called = [(), *(_names(item) for item in value)]
    return [Item(one, names, _in_one_file(part)) for one, names, part in zip([None, *value], called, cut, strict=True)]


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, dict):
        return tuple(str(word) for word in value.values() if isinstance(word, str))
    return (str(value),)


def _without_what_follows(lines: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Lines without the comments and the empty ones at their end, which belong to what follows."""
    while lines and (not lines[-1][0].strip() or lines[-1][0].lstrip().startswith("#")):
        lines = lines[:-1]
    return lines


def _end(
    lines: Sequence[tuple[str, str, int]], starts: Sequence[int], document: Document, path: tuple[str, ...]
) -> int:
    """The line after the last item: where the next key of the same mapping begins, or the lines end."""
    if len(path) == 1:
        return len(lines) + 1
    last = starts[-1] if starts else document.line(path)
    others = [
        line for key, line in document.lines.items() if len(key) == len(path) and key[:-1] == path[:-1] and line > last
    ]
    after = min(others, default=len(lines) + 1)
    while after > last + 1 and after <= len(lines) + 1 and lines[after - 2][0].lstrip().startswith("#"):
        after -= 1
    return after


def _in_one_file(lines: Sequence[tuple[str, str, int]]) -> tuple[Block, ...]:
    """Lines as blocks of lines that follow one another in one file."""
    found: list[Block] = []
    for text, where, number in lines:
        last = found[-1] if found else None
        if last is not None and last.where == where and last.first + len(last.lines) == number:
            found[-1] = replace(last, lines=(*last.lines, text))
        else:
            found.append(Block((text,), where, number))
    return tuple(found)


def indent_of(item: Item) -> str:
    """What stands before the dash of an item."""
    line = next(line for block in item.blocks for line in block.lines if line.lstrip().startswith("- "))
    return line[: len(line) - len(line.lstrip())]


def moved(item: Item, indent: str) -> tuple[Block, ...]:
    """The blocks of an item with its dash behind `indent`; comments may stand anywhere."""
    own = indent_of(item)
    return tuple(
        replace(
            block,
            lines=tuple(
                indent + (line.removeprefix(own) if line.startswith(own) else line.lstrip()) if line.strip() else "\n"
                for line in block.lines
            ),
        )
        for block in item.blocks
    )


def text_of(blocks: Iterable[Block]) -> bytes:
    """The text that blocks are, one after the other."""
    return "".join(line for block in blocks for line in block.lines).encode()
