"""A recipe that a stranger wrote, as a build may follow it: nothing that it names is opened but what is our own."""

from __future__ import annotations

from dataclasses import replace

from weighbridge.errors import RecipeError
from weighbridge.recipe.catalogue import own_recipe
from weighbridge.recipe.load import LoadedRecipe
from weighbridge.recipe.quality import CARRIED_TEXTS


def without_files(loaded: LoadedRecipe) -> LoadedRecipe:
    """The recipe with the names in it that lead to files led to the catalogue, and to nowhere else.

    Recipes go by their names in the catalogue, texts by those that every environment carries, data sets by hub ids.
    What somebody else's machine had under some path is not what this one has there.

    Raises:
        RecipeError: it names any other file.
    """
    recipe = loaded.recipe
    calibration, quality, base = recipe.calibration, recipe.quality, recipe.base
    if calibration is not None and calibration.dataset.file is not None:
        where = loaded.location("calibration", "dataset", "file")
        raise _refusal(calibration.dataset.file, where, "name the file yourself that it is calibrated with")
    if quality is not None and quality.text not in (None, *CARRIED_TEXTS):
        where = loaded.location("quality", "text")
        raise _refusal(quality.text, where, "name the text yourself that its answers are measured on")
    if base.recipe is None:
        return loaded
    try:
        own = own_recipe(base.recipe)
    except RecipeError as error:
        raise _refusal(base.recipe, loaded.location("base", "recipe"), "name its base yourself") from error
    return replace(loaded, recipe=recipe.model_copy(update={"base": base.model_copy(update={"recipe": str(own)})}))


def _refusal(name: object, where: str, remedy: str) -> RecipeError:
    what = f"names a file of whoever wrote it ({str(name)[:80]!r}), and it is not opened here"
    return RecipeError(what, where=where, remedy=remedy)
