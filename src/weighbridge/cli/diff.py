"""``weighbridge diff``: two checkpoints side by side."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from weighbridge import api
from weighbridge.base.source import MADE
from weighbridge.cli.complete import complete, locks
from weighbridge.cli.log import check_outside
from weighbridge.cli.run import Parser, add_follow_option, add_report_options, check_writable, command, hand_over
from weighbridge.errors import RecipeError, WeighbridgeError

EPILOG = """\
examples:
  %(prog)s mini builds/x
  %(prog)s google/gemma-4-26B-A4B-it /models/gemma-4-fp8
  %(prog)s mini fp8-dynamic --recipe

A and B are directories, hub ids, structure locks, or mini, smollm2 or
trained-mini; with --recipe, B is a recipe, and A is compared with what it would
make of A.

No weight is read: headers, config and files are compared.

exit codes: 0 nothing differs; 1 something does; 2 could not compare
"""


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
    if not options.recipe:
        _check_no_recipe(options.after)
    if options.recipe:
        after = api.plan(options.after, before).predicted
    else:
        after = api.open_checkpoint(options.after, follow_links=options.follow_links)
    report = api.diff(before, after)
    return hand_over(report, options)


def _check_no_recipe(name: str) -> None:
    """Refuse a name that only a recipe has.

    Raises:
        RecipeError: it is the name of one.
    """
    if Path(name).exists() or name in MADE:
        return
    try:
        api.load_recipe(name)
    except WeighbridgeError:
        return
    what = "is a recipe, not a checkpoint"
    raise RecipeError(what, where=name, remedy="add --recipe to compare A with what this recipe makes of it")


main = partial(command, _parser, _diff)

if __name__ == "__main__":
    sys.exit(main())
