"""``make serve-env``: make the environment with vLLM for CPUs that ``make serve-check`` uses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from weighbridge.cache import cache_directory
from weighbridge.commands.run import HOLDS, Parser, run
from weighbridge.serving.environment import DEFAULT, make_environment

EPILOG = """\
It takes 3 GB. Where there is a GPU, make an environment with plain vLLM instead and name its Python to serve-check.
exit codes: 0 made; 2 could not make it
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    parser = Parser(
        prog="make serve-env",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "directory", type=Path, nargs="?", default=DEFAULT, metavar="DIR", help=f"where (default: {DEFAULT.name})"
    )
    options = parser.parse_args(arguments)
    return run(lambda: _make(options.directory))


def _make(directory: Path) -> int:
    make_environment(directory, log=cache_directory("serving") / "environment.log")
    return HOLDS


if __name__ == "__main__":
    sys.exit(main())
