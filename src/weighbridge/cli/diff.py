"""``weighbridge diff``: two checkpoints side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from weighbridge import api
from weighbridge.base.source import MADE
from weighbridge.cli.complete import complete, locks
from weighbridge.cli.log import check_outside
from weighbridge.cli.run import Parser, add_follow_option, add_report_options, check_writable, hand_over, parsed, run

EPILOG = """\
examples:
  %(prog)s mini builds/x
  %(prog)s google/gemma-4-26B-A4B-it /models/gemma-4-fp8
  %(prog)s mini fp8-dynamic --recipe

A and B are directories, hub ids, structure locks or made models; with --recipe,
B is what this recipe would make of A.

No weight is read: headers, config and files are compared.

exit codes: 0 nothing differs; 1 something does; 2 could not compare
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    options = parsed(_parser(), arguments)
    return run(lambda: _diff(options), options)


def _parser() -> Parser:
    description = "Compare two checkpoints: bytes by role, then tensors, quantization, config and files."
    parser = Parser("diff", description=description, epilog=EPILOG)
    for name, what in (("before", "A"), ("after", "B")):
        complete(parser.add_argument(name, metavar=what, help=f"the checkpoint {name}"), lambda: MADE, locks)
    parser.add_argument("--recipe", action="store_true", help="B is a recipe: compare A with what it would make of A")
    add_follow_option(parser)
    add_report_options(parser)
    return parser


def _diff(options: argparse.Namespace) -> int:
    for side in (options.before, options.after):
        check_outside(Path(side), report=options.report)
    check_writable(options.report)
    before = api.open_checkpoint(options.before, follow_links=options.follow_links)
    if options.recipe:
        after = api.plan(options.after, before).predicted
    else:
        after = api.open_checkpoint(options.after, follow_links=options.follow_links)
    report = api.diff(before, after)
    return hand_over(report, options)


if __name__ == "__main__":
    sys.exit(main())
