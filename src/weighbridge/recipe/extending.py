"""Recipes that differ in little: one that ``extends`` another replaces some of its keys, and keeps the rest.

A list may be changed in place of being replaced: ``ignore: {add: [...], remove: [...]}``. All of it is done in the
text, so that comments and lines survive: what comes out is a plain recipe that anybody can read, and it is what a build
keeps in its evidence. Units that an ignore list uses (`weighbridge.recipe.units`) are put in before, file by file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from weighbridge.errors import RecipeError
from weighbridge.recipe.blocks import Block, indent_of, items_of, moved, text_of, top_level
from weighbridge.recipe.catalogue import find_recipe, shown
from weighbridge.recipe.units import USE, uses_of, with_units
from weighbridge.text.strict_yaml import Document, Origin, parse_yaml

EXTENDS = "extends"
ADD, REMOVE = "add", "remove"
IGNORE = "ignore"
DEEPEST = 8

Blocks = dict[str, tuple[Block, ...]]
"""Top-level key -> its blocks."""


def resolve(path: Path, raw: bytes, *, where: str) -> tuple[Document, bytes]:
    """Read a recipe's file, what it extends, and the units that are used.

    Args:
        path: the file, which names of other files are relative to.
        raw: its bytes.
        where: how messages call it.

    Returns:
        The document, whose places are those in the files that say them; and the resolved recipe's bytes, which are
        `raw` where nothing is extended or used.

    Raises:
        RecipeError: not YAML; or what it extends or uses is not there, is not what it should be, or is not written in
            blocks.
    """
    document = parse_yaml(raw, where=where, error=RecipeError)
    if EXTENDS not in document.value and not any(uses_of(document, at) for at in _lists(document)):
        return document, raw
    resolved_blocks = _resolved(path, raw, document, seen=(path.resolve(),))
    blocks = [block for parts in resolved_blocks.values() for block in parts]
    origins, line = [], 1
    for block in blocks:
        origins.append(Origin(line, block.where, block.first))
        line += len(block.lines)
    text = text_of(blocks)
    resolved = parse_yaml(text, where=where, error=RecipeError)
    return replace(resolved, origins=tuple(origins)), text


def _resolved(path: Path, raw: bytes, document: Document, *, seen: tuple[Path, ...]) -> Blocks:
    """The blocks of a recipe by key, in the order of the one that everything extends in the end."""
    own: Blocks = {key: (block,) for key, block in top_level(raw, document).items()}
    for at in _lists(document):
        own[IGNORE] = with_units(own[IGNORE], at, document, path.parent)
    extended = document.value.get(EXTENDS)
    if EXTENDS not in own:
        return own
    place = document.place((EXTENDS,))
    if not isinstance(extended, str) or not extended:
        raise RecipeError("extends must be the name or file of a recipe", where=place)
    parent = path.parent / extended if extended.endswith((".yaml", ".yml")) else find_recipe(extended)
    if parent.resolve() in seen:
        raise RecipeError(f"{extended} extends this recipe in turn", where=place, remedy="extend one that does not")
    if len(seen) > DEEPEST:
        what = f"is recipe {len(seen)} of those that extend one another, and {DEEPEST} may"
        raise RecipeError(what, where=place, remedy=f"say here what {extended} says")
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
        key: _changed(theirs.get(key, ()), blocks, key, document)
        for key, blocks in own.items()
        if _changes(document.value[key])
    }
    return {**theirs, **own, **changed}


def _lists(document: Document) -> tuple[tuple[str, ...], ...]:
    """Where a recipe has entries of an ignore list: its own, or those that it adds to another's."""
    value = document.value.get(IGNORE)
    if isinstance(value, list):
        return ((IGNORE,),)
    return ((IGNORE, ADD),) if isinstance(value, dict) and isinstance(value.get(ADD), list) else ()


def _changes(value: object) -> bool:
    """Whether a key's value says how a list is changed."""
    return isinstance(value, dict) and bool(value) and value.keys() <= {ADD, REMOVE}


def _changed(theirs: Sequence[Block], own: Sequence[Block], key: str, document: Document) -> tuple[Block, ...]:
    """The blocks of a list that a recipe adds to and takes from.

    Args:
        theirs: those of the list as the extended recipe has it.

    Raises:
        RecipeError: there is no such list, an entry is not in it, or is there already; or one is not written in blocks.
    """
    place = document.place((key,))
    if not theirs:
        raise RecipeError(f"the recipe that this one extends has no {key} to change", where=place)
    head, *items = items_of(theirs, (key,), place)
    added = items_of(own, (key, ADD), place)[1:] if document.value[key].get(ADD) else []
    removed = document.value[key].get(REMOVE) or []
    if isinstance(removed, list) and any(isinstance(name, dict) and USE in name for name in removed):
        what = f"{key}.{REMOVE} names a unit, and units are removed by their entries"
        raise RecipeError(what, where=place, remedy="name the entries that are not to be ignored")
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
        return (Block((f"{key}: []\n",), own[0].where, own[0].first),)
    indent = indent_of(items[0]) if items else "  "
    blocks = (
        *head.blocks,
        *(block for item in kept for block in item.blocks),
        *(block for item in added for block in moved(item, indent)),
    )
    made = parse_yaml(text_of(blocks), where=place, error=RecipeError)
    if made.value.get(key) != [item.value for item in (*kept, *added)]:
        what = f"{key} cannot be changed as it is written in the recipe that is extended"
        raise RecipeError(what, where=place, remedy="write the whole list here")
    return blocks
