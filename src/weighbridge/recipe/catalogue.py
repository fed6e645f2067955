"""The repository's own recipes and the units that they share, and how they are named."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from weighbridge.errors import RecipeError
from weighbridge.machine.installation import HERE

RECIPES = HERE / "recipes"
UNITS = "units"
"""The folder of recipes/ that holds no recipes, but lists that recipes use."""
LONGEST_PATH = 1024
MAIN_MODEL = "google/gemma-4-26B-A4B-it"
"""The model that a short name such as ``fp8-dynamic`` means."""


def recipe_names() -> list[str]:
    """Names of the catalogue's recipes: their paths below recipes/ without the suffix."""
    names = (path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith(f"{UNITS}/"))


def unit_names() -> list[str]:
    """Names of the units that any recipe may use."""
    return sorted(path.stem for path in (RECIPES / UNITS).glob("*.yaml"))


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


def _suggest(name: str) -> str:
    names = recipe_names()
    short = {known.rpartition("/")[2]: known for known in [*names, *(n for n in names if n.startswith(MAIN_MODEL))]}
    wanted = name.rpartition("/")[2].removesuffix(".yaml")
    close = get_close_matches(name, names, n=1) or [short[key] for key in get_close_matches(wanted, short, n=1)]
    return f"did you mean {close[0]}?" if close else "the catalogue is recipes/README.md"


def shown(path: Path) -> str:
    """A path as a person would name it: relative where it lies below the working directory."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)
