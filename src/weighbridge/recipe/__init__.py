"""Recipes: one YAML file a build."""

from weighbridge.recipe.load import LoadedRecipe, load_recipe
from weighbridge.recipe.schema import Explanation, Recipe, Reference

__all__ = ["Explanation", "LoadedRecipe", "Recipe", "Reference", "load_recipe"]
