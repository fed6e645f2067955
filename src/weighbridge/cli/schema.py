"""``weighbridge schema``: write the JSON Schemas of recipes and families, by which editors help, and of what programs
read: reports, and events of ``--progress json``."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import weighbridge
from weighbridge.cli.run import HOLDS, Parser, check_writable, command, keep
from weighbridge.recipe.catalogue import RECIPES

PLACES = {
    "recipe": RECIPES / "recipe.schema.json",
    "report": Path(weighbridge.__file__).parent / "report" / "report.schema.json",
    "family": Path(weighbridge.__file__).parent / "families" / "descriptor.schema.json",
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


def _write(options: argparse.Namespace) -> int:
    from weighbridge.families.json_schema import write_family_schema
    from weighbridge.progress.json_schema import write_progress_schema
    from weighbridge.recipe.json_schema import write_json_schema
    from weighbridge.report.json_schema import write_report_schema

    writers = {
        "recipe": write_json_schema,
        "report": write_report_schema,
        "family": write_family_schema,
        "progress": write_progress_schema,
    }
    file = options.file or PLACES[options.of]
    check_writable(file)
    keep(file, writers[options.of]().encode())
    return HOLDS


main = partial(command, _parser, _write)

if __name__ == "__main__":
    sys.exit(main())
