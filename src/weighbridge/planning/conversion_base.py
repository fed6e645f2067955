"""What a conversion starts from where the published build may not be used: the same build, made here by a recipe."""

from __future__ import annotations

from dataclasses import replace

from weighbridge.base.locks import known_lock
from weighbridge.base.source import MINIATURE, open_source
from weighbridge.checkpoint.model import Checkpoint, Origin
from weighbridge.errors import Argument, BuildError, Clause
from weighbridge.planning import make_plan
from weighbridge.recipe import LoadedRecipe, load_recipe


def base_recipe(loaded: LoadedRecipe) -> LoadedRecipe:
    """The recipe that makes the base of a conversion.

    Raises:
        RecipeError: the conversion names none, or none that is there.
    """
    name = loaded.recipe.base.recipe
    if name is None:
        raise BuildError(
            "the base of this conversion has no recipe here, so there is no miniature of it",
            where=loaded.document.where,
            remedy=Clause(
                "name a quantized checkpoint as ", Argument("source"), ", or the recipe that makes it as base.recipe"
            ),
        )
    return load_recipe(name)


def predict_base(loaded: LoadedRecipe) -> Checkpoint:
    """The miniature's build that a conversion would start from, by its plan alone.

    Raises:
        RecipeError, BuildError: as `base_recipe`.
    """
    plan = make_plan(base_recipe(loaded), open_source(MINIATURE))
    # What it is of is told by its sizes, as of a build on disk; the recipe's own base is the real model.
    return replace(plan.predicted, label=f"{MINIATURE}, {plan.loaded.recipe.name}", origin=Origin())


def locked_base(loaded: LoadedRecipe, base: Checkpoint) -> Checkpoint | None:
    """The lock of the build of `base` that a conversion starts from: the published one, or that of its recipe."""
    names = [loaded.recipe.base.model]
    if loaded.recipe.base.recipe is not None:
        names += [reference.lock for reference in base_recipe(loaded).recipe.references]
    for name in names:
        lock = known_lock(name)
        if lock is not None and lock.origin.base == base.origin.base and lock.declaration is not None:
            return replace(lock, config=base.config)
    return None
