"""``weighbridge schema``: write the JSON Schemas of recipes and families, by which editors help, and of what programs
read: reports, and events of ``--progress json``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import weighbridge
from weighbridge.cli.run import HOLDS, Parser, check_writable, command, keep
from weighbridge.recipe.catalogue import RECIPES

DRAFT = "https://json-schema.org/draft/2020-12/schema"
PLACES = {
    "recipe": RECIPES / "recipe.schema.json",
    "report": Path(weighbridge.__file__).parent / "report" / "report.schema.json",
    "family": Path(weighbridge.__file__).parent / "families" / "descriptor.schema.json",
    "derivation": Path(weighbridge.__file__).parent / "evidence" / "derivation.schema.json",
    "policy": Path(weighbridge.__file__).parent / "policy" / "policy.schema.json",
    "progress": Path(weighbridge.__file__).parent / "progress" / "progress.schema.json",
}
"""Where the repository publishes them."""
EPILOG = """\
examples:
  %(prog)s recipe
  %(prog)s report report.schema.json

exit codes: 0 written; 2 could not write it
"""


def _parser() -> Parser:
    description = (
        "Write the JSON Schema of recipes or families, by which editors help, or of reports or progress, for programs."
    )
    parser = Parser("schema", description=description, epilog=EPILOG)
    parser.add_argument("of", choices=tuple(PLACES), help="what the schema describes")
    parser.add_argument(
        "file",
        type=Path,
        nargs="?",
        metavar="FILE",
        help="file to write (default: the schema's place in the repository)",
    )
    return parser


def schema_text(of: str) -> str:
    """A schema as the repository publishes it."""
    from pydantic import TypeAdapter

    from weighbridge.evidence.statements import DerivationStatement
    from weighbridge.families.descriptor import Descriptor
    from weighbridge.policy.schema import Policy
    from weighbridge.progress.shown import Event
    from weighbridge.recipe.json_schema import json_schema
    from weighbridge.report.json_schema import report_schema

    made: Mapping[str, Callable[[], dict[str, Any]]] = {
        "recipe": json_schema,
        "report": report_schema,
        "family": lambda: {**Descriptor.model_json_schema(), "title": "A family of models"},
        "derivation": lambda: {
            **DerivationStatement.model_json_schema(by_alias=True, mode="serialization"),
            "title": "A statement of what a checkpoint derives from",
        },
        "policy": lambda: {**Policy.model_json_schema(), "title": "What is asked of a checkpoint before it is served"},
        "progress": lambda: {
            **{"title": "An event", "description": "One line of --progress json."},
            **TypeAdapter(Event).json_schema(mode="serialization"),
        },
    }
    return json.dumps({"$schema": DRAFT, **made[of]()}, indent=2, sort_keys=of == "recipe") + "\n"


def _write(options: argparse.Namespace) -> int:
    file = options.file or PLACES[options.of]
    check_writable(file)
    keep(file, schema_text(options.of).encode())
    return HOLDS


main = partial(command, _parser, _write)

if __name__ == "__main__":
    sys.exit(main())
