"""``weighbridge explain``: what a rule of lint watches for, and how a recipe may break it knowingly."""

from __future__ import annotations

import argparse
import sys
from difflib import get_close_matches
from functools import partial

from weighbridge.cli.run import HOLDS, Parser, command
from weighbridge.errors import RecipeError
from weighbridge.linting import RULES
from weighbridge.report import Severity

EXAMPLES = "docs/reference/rules.md"
EPILOG = """\
examples:
  %(prog)s scheme/observer
  %(prog)s

docs/reference/rules.md has an example of each.

exit codes: 0 said; 2 no such rule
"""


OF_CHECKS = ("account", "audit", "calibration", "config", "diff", "evidence", "names", "quality", "rebuild", "serving")
"""What findings begin with that checks of checkpoints have, and not lint."""


def _parser() -> Parser:
    parser = Parser("explain", description="Say what a rule of lint watches for.", epilog=EPILOG)
    parser.add_argument("rule", nargs="?", metavar="RULE", help="its id, as a finding has it (default: list all)")
    return parser


def _explain(options: argparse.Namespace) -> int:
    if options.rule is None:
        width = max(map(len, RULES))
        lines = [f"{rule.id:<{width}}  {rule.severity:<7}  {rule.sentence}" for rule in RULES.values()]
        sys.stdout.write("\n".join(lines) + "\n")
        return HOLDS
    rule = RULES.get(options.rule)
    if rule is None:
        close = get_close_matches(options.rule, RULES, n=1)
        remedy = f"did you mean {close[0]}?" if close else "'weighbridge explain' lists them"
        if options.rule.partition("/")[0] in OF_CHECKS:
            remedy = "a check found it, and its finding says what to do; 'weighbridge explain' lists the rules of lint"
        raise RecipeError("is no rule of lint", where=options.rule, remedy=remedy)
    if rule.severity is Severity.NOTE:
        allowed = "It is a note: it stops nothing."
    elif rule.allowable:
        allowed = f"A recipe may break it with a reason: 'allow: {rule.id} because ...'"
    else:
        allowed = "No recipe may break it."
    sys.stdout.write(f"{rule.id} ({rule.severity}): {rule.sentence}\n{allowed}\nAn example: {EXAMPLES}\n")
    return HOLDS


main = partial(command, _parser, _explain)

if __name__ == "__main__":
    sys.exit(main())
