"""Recipes: one YAML file a build."""

from weighbridge.recipe.load import LoadedRecipe, load_recipe
from weighbridge.recipe.schema import Allowance, Explanation, Recipe, Reference

__all__ = ["Allowance", "Explanation", "LoadedRecipe", "Recipe", "Reference", "load_recipe"]
