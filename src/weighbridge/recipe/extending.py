"""Recipes that differ in little: one that ``extends`` another replaces some of its keys, and keeps the rest.

Replacing is done in the text, key by key at the top level, so that comments and lines survive: what comes out is a
plain recipe that anybody can read, and it is what a build keeps in its evidence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from weighbridge.errors import RecipeError
from weighbridge.recipe.catalogue import find_recipe
from weighbridge.text.strict_yaml import Document, Origin, parse_yaml

EXTENDS = "extends"
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
    blocks = _resolved(path, raw, document, seen=(path.resolve(),))
    text = "".join(line for block in blocks.values() for line in block.lines)
    origins, line = [], 1
    for block in blocks.values():
        origins.append(Origin(line, block.where, block.first))
        line += len(block.lines)
    resolved = parse_yaml(text.encode(), where=where, error=RecipeError)
    return replace(resolved, origins=tuple(origins)), text.encode()


def _resolved(path: Path, raw: bytes, document: Document, *, seen: tuple[Path, ...]) -> dict[str, _Block]:
    """The blocks of a recipe by key, in the order of the one that everything extends in the end."""
    own = _blocks(raw, document)
    extended = document.value.get(EXTENDS)
    if EXTENDS not in own:
        return own
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
    return {**_resolved(parent, content, above, seen=(*seen, parent.resolve())), **own}


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
