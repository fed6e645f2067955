"""Where the repository's own recipes and references lie, and how they are named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from weighbridge.errors import RecipeError, StructureError
from weighbridge.structure.checkpoint import Checkpoint
from weighbridge.structure.lock import is_source_lock, open_lock

ROOT = Path(__file__).resolve().parents[2]
_HERE = ROOT if (ROOT / "recipes").is_dir() else Path(__file__).parent
"""The checkout; or the package, where a wheel has put them."""
RECIPES = _HERE / "recipes"
REFERENCES = _HERE / "references"
LONGEST_PATH = 1024
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
_LOCK_NAME = re.compile(rf"{_PART}/{_PART}")
MAIN_MODEL = "google/gemma-4-26B-A4B-it"
"""The model that a short name such as ``fp8-dynamic`` means."""


def recipe_names() -> list[str]:
    """Names of the catalogue's recipes: their paths below recipes/ without the suffix."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a recipe that is named by its path, its catalogue name, or the last part of that.

    Raises:
        RecipeError: no such file or name, or a short name that several models share.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or (len(name) <= LONGEST_PATH and path.exists()):
        if not path.is_file():
            what = "is a directory, not a recipe" if path.is_dir() else "no such recipe file"
            raise RecipeError(what, where=name or "''", remedy=_suggest(name))
        return path
    return own_recipe(name)


def own_recipe(name: str) -> Path:
    """The catalogue's file of a recipe by its catalogue name, or the last part of that: all that a stranger may name.

    Raises:
        RecipeError: no such name, or a short one that several models share.
    """
    names = recipe_names()
    for known in (name, f"{MAIN_MODEL}/{name}"):
        if known in names:
            return RECIPES / f"{known}.yaml"
    matches = [known for known in names if known.endswith(f"/{name}")]
    if len(matches) == 1:
        return RECIPES / f"{matches[0]}.yaml"
    if matches:
        raise RecipeError("is the name of several recipes", where=name, remedy=f"name one of {', '.join(matches)}")
    raise RecipeError("no recipe of this name", where=name, remedy=_suggest(name))


def lock_path(name: str) -> Path:
    """Where the lock of this name lies in references/, or would: a name of our own; see `lock_file` for any other."""
    return REFERENCES / f"{name}.yaml"


def lock_file(name: object) -> Path | None:
    """The file of a lock in references/ by a name that anybody wrote; None for whatever is no name of a lock there.

    Every name out of evidence, a recipe, a lock or a config comes to a file of references/ by this function, and by no
    other way: so that none leads elsewhere.
    """
    if not isinstance(name, str) or not _LOCK_NAME.fullmatch(name):
        return None
    path = lock_path(name)
    inside = path.is_file() and path.resolve().is_relative_to(REFERENCES.resolve())
    return path if inside else None


def reference_lock(name: str) -> Checkpoint:
    """Open a structure lock in references/ by its name.

    Raises:
        StructureError: there is none, or it is malformed.
    """
    path = lock_file(name)
    if path is None:
        raise StructureError("references/ holds no lock of this name", where=name)
    return open_lock(path)


def known_lock(name: object) -> Checkpoint | None:
    """The lock in references/ of a repository that a stranger names; None where there is none; see `lock_file`.

    Raises:
        StructureError: it is malformed.
    """
    path = lock_file(name)
    return None if path is None else open_lock(path)


def source_locks() -> Iterator[Checkpoint]:
    """The locks of base models: those that are their own base."""
    for path in sorted(REFERENCES.rglob("*.yaml")):
        if is_source_lock(path):
            yield open_lock(path)


def _suggest(name: str) -> str:
    names = recipe_names()
    short = {known.rpartition("/")[2]: known for known in [*names, *(n for n in names if n.startswith(MAIN_MODEL))]}
    wanted = name.rpartition("/")[2].removesuffix(".yaml")
    close = get_close_matches(name, names, n=1) or [short[key] for key in get_close_matches(wanted, short, n=1)]
    return f"did you mean {close[0]}?" if close else "the catalogue is recipes/README.md"
