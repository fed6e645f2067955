"""``weighbridge recipes``: the catalogue, and what of it fits a model or a GPU."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from weighbridge import api
from weighbridge.checks.capacity.report import capacity_section
from weighbridge.cli import capacity
from weighbridge.cli.complete import complete, locks
from weighbridge.cli.run import HOLDS, WANTING, Parser, command
from weighbridge.errors import RecipeError, StructureError
from weighbridge.formats.tensors import payload_bytes
from weighbridge.recipe.catalogue import recipe_names

EPILOG = """\
examples:
  %(prog)s
  %(prog)s --model google/gemma-4-26B-A4B-it --gpu 24GB
  %(prog)s --format json

exit codes: 0 listed; 1 none fits the card; 2 no recipe of this model
"""
VERSION = 1
COLUMNS = ("recipe", "method", "GB", "fits")


def _parser() -> Parser:
    parser = Parser("recipes", description="List the catalogue's recipes.", epilog=EPILOG)
    model = parser.add_argument("--model", metavar="ORG/NAME", help="only those of this base model")
    complete(model, locks)
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how they are listed")
    capacity.add_options(parser)
    return parser


def _recipes(options: argparse.Namespace) -> int:
    found = list(_listed(options))
    if not found and options.model is not None:
        remedy = f"draft one with 'weighbridge new-recipe {options.model}'"
        raise RecipeError("the catalogue has no recipe of this base model", where=options.model, remedy=remedy)
    if options.format == "json":
        sys.stdout.write(json.dumps({"schema_version": VERSION, "recipes": found}, indent=2) + "\n")
    else:
        sys.stdout.write(_table(found, with_fits=options.gpu is not None))
    fitting = [item for item in found if item["fits"] is not False]
    return HOLDS if fitting else WANTING


def _table(found: Sequence[dict[str, Any]], *, with_fits: bool) -> str:
    said = {None: "unknown", True: "yes", False: "no"}
    rows = [
        (
            item["name"],
            item["method"],
            "" if item["bytes"] is None else f"{item['bytes'] / 1e9:.2f}",
            said[item["fits"]],
        )
        for item in found
    ]
    width = [max(len(cell) for cell in column) for column in zip(COLUMNS, *rows, strict=True)]
    shown = len(COLUMNS) - (not with_fits)
    lines = []
    for row in (COLUMNS, *rows):
        cells = [f"{cell:<{size}}" for cell, size in zip(row, width, strict=True)][:shown]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def _listed(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each recipe of the catalogue with what its plan says; ``bytes`` and ``fits`` are null where nobody knows."""
    demand = capacity.demand_of(options)
    for name in recipe_names():
        loaded = api.load_recipe(name)
        base = loaded.recipe.base
        if options.model is not None and options.model.partition("@")[0] != base.model:
            continue
        source, size, fits = api.locked_source(loaded), None, None
        if source is not None:
            plan = api.plan(loaded, source)
            size = payload_bytes(plan.predicted.structure)
            if demand is not None:
                with suppress(StructureError):  # its lock has not what a cache is computed from
                    fits = capacity_section(plan.predicted, demand).holds
        yield {
            "name": name,
            "description": loaded.recipe.description,
            "method": loaded.recipe.method,
            "base_model": base.model,
            "base_revision": base.revision,
            "licence": base.licence,
            "bytes": size,
            "calibrated": loaded.recipe.calibration is not None,
            "sha256": loaded.sha256,
            "fits": fits,
        }


main = partial(command, _parser, _recipes)

if __name__ == "__main__":
    sys.exit(main())
