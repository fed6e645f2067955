"""The recipe's JSON Schema, for editors: the same models that read recipes, in a standard form."""

from __future__ import annotations

from typing import Any

from weighbridge.recipe.extending import ADD, EXTENDS, REMOVE
from weighbridge.recipe.schema import Recipe
from weighbridge.recipe.units import USE

_USE = {
    "additionalProperties": False,
    "description": "A unit: entries of an ignore list that recipes share.\n\nAttributes:\n"
    "    use: its name in recipes/units, or a file beside the recipe; its entries are put in this place.",
    "properties": {USE: {"minLength": 1, "type": "string"}},
    "required": [USE],
    "title": "Use",
    "type": "object",
}


def json_schema() -> dict[str, Any]:
    """The schema of a recipe's file, which may extend another and then say less, and may use units."""
    schema = Recipe.model_json_schema(mode="validation")
    schema["$defs"]["Use"] = _USE
    schema["properties"]["ignore"]["items"]["anyOf"].append({"$ref": "#/$defs/Use"})
    said = {EXTENDS: {"type": "string", "minLength": 1, "description": "The recipe whose keys this one takes over."}}
    required = schema.pop("required")
    return {
        **schema,
        "title": "A Weighbridge recipe",
        "properties": {**{key: _or_changed(value) for key, value in schema["properties"].items()}, **said},
        "anyOf": [{"required": required}, {"required": [EXTENDS, "name"]}],
    }


def _or_changed(value: dict[str, Any]) -> dict[str, Any]:
    """What a key may hold: a list may say instead what it adds to that of the extended recipe, and takes from it."""
    if value.get("type") != "array":
        return value
    outer = {key: value[key] for key in ("default", "title")}
    whole = {key: content for key, content in value.items() if key not in outer}
    change = {
        "additionalProperties": False,
        "minProperties": 1,
        "properties": {ADD: whole, REMOVE: {"items": {"type": "string"}, "type": "array"}},
        "type": "object",
    }
    return {**outer, "anyOf": [whole, change]}
