"""Reading a recipe file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from weighbridge.errors import RecipeError
from weighbridge.recipe.catalogue import find_recipe, shown
from weighbridge.recipe.extending import resolve
from weighbridge.recipe.schema import Recipe
from weighbridge.text.strict_yaml import Document, parse_yaml, validate


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and the file it was read from.

    Attributes:
        recipe: what it says.
        document: the YAML with its line numbers, so that a decision can name the line that made it.
        raw: the recipe's bytes: the file's, or of one that extends another or uses units, what it comes to.
    """

    recipe: Recipe
    document: Document
    raw: bytes = b""

    @property
    def sha256(self) -> str:
        """Digest (hex) of the recipe's bytes."""
        return hashlib.sha256(self.raw).hexdigest()

    def location(self, *path: str | int) -> str:
        """File and line of a part of the recipe, e.g. ``recipes/…/fp8-dynamic.yaml:12``."""
        return self.document.place(path)


def load_recipe(name: str) -> LoadedRecipe:
    """Read a recipe by path or catalogue name, and what it extends and uses.

    Raises:
        RecipeError: not found, not YAML, or not a recipe; with file and line.
    """
    path = find_recipe(name)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot be read ({error.strerror})", where=str(path)) from error
    document, resolved = resolve(path, raw, where=shown(path))
    _check_whose(document)
    return LoadedRecipe(validate(document, Recipe, error=RecipeError), document, resolved)


def read_recipe(raw: bytes, *, where: str) -> LoadedRecipe:
    """Read a recipe's bytes: one that stands for itself, since a stranger's must not name files here.

    Args:
        where: how messages call it.

    Raises:
        RecipeError: not YAML, or not a recipe; with the line.
    """
    document = parse_yaml(raw, where=where, error=RecipeError)
    _check_whose(document)
    recipe = validate(document, Recipe, error=RecipeError)
    return LoadedRecipe(recipe=recipe, document=document, raw=raw)


def _check_whose(document: Document) -> None:
    """Refuse a recipe of llm-compressor itself, which says how to quantize and not what.

    Raises:
        RecipeError: its keys are stages, lists of modifiers, or modifiers.
    """
    theirs = next((key for key in document.value if key.endswith(("_stage", "_modifiers", "Modifier"))), None)
    if theirs is not None:
        raise RecipeError(
            f"is a recipe of llm-compressor itself ({theirs})",
            where=document.place((theirs,)),
            remedy="draft one with build.py --new-recipe MODEL, then write its scheme and ignore at the top, and other "
            "modifiers under modifiers",
        )
