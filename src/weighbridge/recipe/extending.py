"""Recipes that differ in little: one that ``extends`` another replaces some of its keys, and keeps the rest.

A list may be changed in place of being replaced: ``ignore: {add: [...], remove: [...]}``. All of it is done in the
text, so that comments and lines survive: what comes out is a plain recipe that anybody can read, and it is what a build
keeps in its evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

from weighbridge.errors import RecipeError
from weighbridge.recipe.catalogue import find_recipe
from weighbridge.text.strict_yaml import Document, Origin, parse_yaml

EXTENDS = "extends"
ADD, REMOVE = "add", "remove"
DEEPEST = 8


@dataclass(frozen=True)
class _Block:
    """The lines of one top-level key, with the comments above it, and where they stand."""

    lines: tuple[str, ...]
    where: str
    first: int


def resolve(path: Path, raw: bytes, *, where: str) -> tuple[Document, bytes]:
    """Read a recipe's file, and what it extends.

    Args:
        path: the file, which names of other files are relative to.
        raw: its bytes.
        where: how messages call it.

    Returns:
        The document, whose places are those in the files that say them; and the resolved recipe's bytes, which are
        `raw` where nothing is extended.

    Raises:
        RecipeError: not YAML; or what it extends is not there, extends it in turn, or is not written in blocks.
    """
    document = parse_yaml(raw, where=where, error=RecipeError)
    if EXTENDS not in document.value:
        return document, raw
    resolved_blocks = _resolved(path, raw, document, seen=(path.resolve(),))
    blocks = [block for parts in resolved_blocks.values() for block in parts]
    text = "".join(line for block in blocks for line in block.lines)
    origins, line = [], 1
    for block in blocks:
        origins.append(Origin(line, block.where, block.first))
        line += len(block.lines)
    resolved = parse_yaml(text.encode(), where=where, error=RecipeError)
    return replace(resolved, origins=tuple(origins)), text.encode()


def _resolved(path: Path, raw: bytes, document: Document, *, seen: tuple[Path, ...]) -> dict[str, tuple[_Block, ...]]:
    """The blocks of a recipe by key, in the order of the one that everything extends in the end."""
    own = _blocks(raw, document)
    extended = document.value.get(EXTENDS)
    if EXTENDS not in own:
        return {key: (block,) for key, block in own.items()}
    place = document.place((EXTENDS,))
    if not isinstance(extended, str) or not extended:
        raise RecipeError("extends must be the name or file of a recipe", where=place)
    parent = path.parent / extended if extended.endswith((".yaml", ".yml")) else find_recipe(extended)
    if parent.resolve() in seen or len(seen) > DEEPEST:
        raise RecipeError(f"{extended} extends this recipe in turn", where=place, remedy="extend one that does not")
    try:
        content = parent.read_bytes()
    except OSError as error:
        raise RecipeError(f"{extended} cannot be read ({error.strerror})", where=place) from error
    above = parse_yaml(content, where=shown(parent), error=RecipeError)
    del own[EXTENDS]
    theirs = _resolved(parent, content, above, seen=(*seen, parent.resolve()))
    for key in own:
        value = document.value[key]
        unknown = (
            value.keys() - {ADD, REMOVE} if isinstance(value, dict) and isinstance(above.value.get(key), list) else ()
        )
        if unknown:
            close = get_close_matches(min(unknown), (ADD, REMOVE), n=1)
            remedy = f"did you mean {close[0]}?" if close else f"say {ADD} and {REMOVE}, or the whole list"
            what = f"{key} of the recipe that is extended is a list, and {min(unknown)} does nothing to it"
            raise RecipeError(what, where=document.place((key,)), remedy=remedy)
    changed = {
        key: _changed(theirs.get(key, ()), own[key], key, document) for key in own if _changes(document.value[key])
    }
    return {**theirs, **{key: (block,) for key, block in own.items()}, **changed}


def _changes(value: object) -> bool:
    """Whether a key's value says how a list is changed."""
    return isinstance(value, dict) and bool(value) and value.keys() <= {ADD, REMOVE}


def _changed(theirs: Sequence[_Block], own: _Block, key: str, document: Document) -> tuple[_Block, ...]:
    """The blocks of a list that a recipe adds to and takes from.

    Args:
        theirs: those of the list as the extended recipe has it.

    Raises:
        RecipeError: there is no such list, an entry is not in it, or is there already; or one is not written in blocks.
    """
    place = document.place((key,))
    if not theirs:
        raise RecipeError(f"the recipe that this one extends has no {key} to change", where=place)
    head, *items = _items(theirs, (key,), place)
    added = _items((own,), (key, ADD), place)[1:] if document.value[key].get(ADD) else []
    removed = document.value[key].get(REMOVE) or []
    if not isinstance(removed, list) or not all(isinstance(name, str) for name in removed):
        raise RecipeError(f"{key}.{REMOVE} is a list of entries", where=place)
    names = [name for item in items for name in item.names]
    for name in removed:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"it has {', '.join(names)}"
            raise RecipeError(f"{name} is not in the {key} of the recipe that is extended", where=place, remedy=remedy)
    kept = [item for item in items if not {*item.names} & {*removed}]
    twice = next(
        (name for item in added for name in item.names if name in {n for one in kept for n in one.names}), None
    )
    if twice is not None:
        raise RecipeError(f"{twice} is in the {key} of the recipe that is extended already", where=place)
    if not kept and not added:
        return (_Block((f"{key}: []\n",), own.where, own.first),)
    indent = _indent(items[0]) if items else "  "
    moved = [
        replace(block, lines=_moved(block.lines, _indent(item), indent)) for item in added for block in item.blocks
    ]
    blocks = (*head.blocks, *(block for item in kept for block in item.blocks), *moved)
    made = parse_yaml(
        "".join(line for block in blocks for line in block.lines).encode(), where=place, error=RecipeError
    )
    if made.value.get(key) != [item.value for item in (*kept, *added)]:
        what = f"{key} cannot be changed as it is written in the recipe that is extended"
        raise RecipeError(what, where=place, remedy="write the whole list here")
    return blocks


@dataclass(frozen=True)
class _Item:
    """An item of a list; or, without a value, what stands before the first.

    Attributes:
        names: what it is called by: itself, or the words in it.
    """

    value: Any
    names: tuple[str, ...]
    blocks: tuple[_Block, ...]


def _items(blocks: Sequence[_Block], path: tuple[str, ...], place: str) -> list[_Item]:
    """What stands before a list's items, then each of them with the comments above it.

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
            what = f"each entry of {'.'.join(path)} must stand on a line of its own to be changed"
            raise RecipeError(what, where=place, remedy="write the list in blocks, an entry a line")
        while start > 1 and lines[start - 2][0].lstrip().startswith("#"):
            start -= 1
        starts.append(start)
    end = _end(lines, starts, document, path)
    edges = [1, *starts, end]
    cut = [lines[begin - 1 : after - 1] for begin, after in pairwise(edges)]
    cut[-1] = _without_what_follows(cut[-1]) if len(path) > 1 else cut[-1]
    called = [(), *(_names(item) for item in value)]
    return [_Item(one, names, _blocks_of(part)) for one, names, part in zip([None, *value], called, cut, strict=True)]


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


def _blocks_of(lines: Sequence[tuple[str, str, int]]) -> tuple[_Block, ...]:
    """Lines as blocks of lines that follow one another in one file."""
    found: list[_Block] = []
    for text, where, number in lines:
        last = found[-1] if found else None
        if last is not None and last.where == where and last.first + len(last.lines) == number:
            found[-1] = replace(last, lines=(*last.lines, text))
        else:
            found.append(_Block((text,), where, number))
    return tuple(found)


def _indent(item: _Item) -> str:
    """What stands before the dash of an item."""
    line = next(line for block in item.blocks for line in block.lines if line.lstrip().startswith("- "))
    return line[: len(line) - len(line.lstrip())]


def _moved(lines: Sequence[str], own: str, indent: str) -> tuple[str, ...]:
    """Lines of an item whose dash stands behind `own`, as if it stood behind `indent`; comments may stand anywhere."""
    return tuple(
        indent + (line.removeprefix(own) if line.startswith(own) else line.lstrip()) if line.strip() else "\n"
        for line in lines
    )


def _blocks(raw: bytes, document: Document) -> dict[str, _Block]:
    """The top-level keys of a recipe, each with its lines.

    Raises:
        RecipeError: its keys do not stand each on a line of its own.
    """
    lines = raw.decode("utf-8-sig").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    starts = {key: document.line((key,)) for key in document.value}
    if any(not _unquoted(lines[line - 1]).startswith(f"{key}:") for key, line in starts.items()):
        what = "a recipe that extends or is extended has each of its keys at the beginning of a line"
        raise RecipeError(what, where=document.where, remedy="write it in blocks, without braces around it")
    ordered = sorted(starts, key=lambda key: starts[key])
    firsts = {key: _with_comments(lines, starts[key]) for key in ordered} | {ordered[0]: 1}
    ends = [*(firsts[key] for key in ordered[1:]), len(lines) + 1]
    return {
        key: _Block(tuple(lines[firsts[key] - 1 : end - 1]), document.where, firsts[key])
        for key, end in zip(ordered, ends, strict=True)
    }


def _unquoted(line: str) -> str:
    return line.replace('"', "").replace("'", "")


def _with_comments(lines: list[str], line: int) -> int:
    """The first of the comment lines that stand right above a line (from 1)."""
    while line > 1 and lines[line - 2].lstrip().startswith("#") and not lines[line - 2].startswith(" "):
        line -= 1
    return line


def shown(path: Path) -> str:
    """A path as a person would name it: relative where it lies below the working directory."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)
