"""``python -m weighbridge.commands.schema``: write the recipe's JSON Schema beside the recipes."""

from __future__ import annotations

from weighbridge.cache import write_atomically
from weighbridge.catalogue import RECIPES
from weighbridge.recipe.json_schema import write_json_schema

SCHEMA = RECIPES / "recipe.schema.json"


def main() -> None:
    """Entry point."""
    write_atomically(SCHEMA, write_json_schema().encode())


if __name__ == "__main__":
    main()
