"""Recipes: one YAML file a build."""

from weighbridge.recipe.load import LoadedRecipe, load_recipe, read_recipe
from weighbridge.recipe.schema import Allowance, Conversion, Explanation, Recipe, Reference

__all__ = [
    "Allowance",
    "Conversion",
    "Explanation",
    "LoadedRecipe",
    "Recipe",
    "Reference",
    "load_recipe",
    "read_recipe",
]
