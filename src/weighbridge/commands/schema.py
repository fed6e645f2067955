"""``weighbridge schema``: write the recipe's JSON Schema, by which editors help and check."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from weighbridge.cache import write_atomically
from weighbridge.catalogue import RECIPES
from weighbridge.commands.run import HOLDS, Parser, check_writable, parsed, run

SCHEMA = RECIPES / "recipe.schema.json"
EPILOG = """\
examples:
  %(prog)s
  %(prog)s recipe.schema.json

exit codes: 0 written; 2 could not write it
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    options = parsed(_parser(), arguments)
    return run(lambda: _write(options), options)


def _parser() -> Parser:
    description = "Write the recipe's JSON Schema, by which editors help and check."
    parser = Parser("schema", description=description, epilog=EPILOG)
    parser.add_argument(
        "file", type=Path, nargs="?", default=SCHEMA, metavar="FILE", help="where (default: beside the recipes)"
    )
    return parser


def _write(options: argparse.Namespace) -> int:
    from weighbridge.recipe.json_schema import write_json_schema

    check_writable(options.file)
    write_atomically(options.file, write_json_schema().encode())
    return HOLDS


if __name__ == "__main__":
    sys.exit(main())
