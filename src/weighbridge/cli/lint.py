"""``weighbridge lint``: what the rules say of recipes, each against its own base."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial

from weighbridge import api
from weighbridge.base.references import NO_REFERENCE
from weighbridge.base.source import MADE
from weighbridge.cli.complete import complete, locks, recipes
from weighbridge.cli.run import Parser, add_report_options, check_writable, command, hand_over
from weighbridge.errors import StructureError
from weighbridge.recipe.catalogue import recipe_names
from weighbridge.report import Report, Section, Severity
from weighbridge.report.sarif import RECIPE

EPILOG = """\
examples:
  %(prog)s my-recipe.yaml --model google/gemma-4-26B-A4B-it
  %(prog)s

exit codes: 0 no error; 1 an error; 2 could not judge
"""


UNJUDGED = "no structure lock of its base is here"


def _parser() -> Parser:
    parser = Parser("lint", description="Judge recipes by the rules of what can be built and served.", epilog=EPILOG)
    named = parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="path or name (default: the catalogue)")
    complete(named, recipes)
    model = parser.add_argument("--model", help="the model to plan for (default: the structure lock of each base)")
    complete(model, lambda: MADE, locks)
    add_report_options(parser)
    return parser


def _lint(options: argparse.Namespace) -> int:
    check_writable(options.report)
    names = options.recipes or recipe_names()
    sections = [_section(name, options.model) for name in names]
    wrong = sum(not section.holds for section in sections)
    said = f"{len(sections)} recipe{'' if len(sections) == 1 else 's'}: "
    said += f"{wrong} cannot be built or served as written" if wrong else "no error"
    unjudged = [name for name, section in zip(names, sections, strict=True) if not section.judges]
    if options.recipes and unjudged:
        raise StructureError(UNJUDGED, where=unjudged[0], remedy="name the model with --model")
    said += f", {len(unjudged)} not judged" if unjudged else ""
    return hand_over(Report("lint", ", ".join(options.recipes) or "the catalogue", said, tuple(sections)), options)


def _section(name: str, model: str | None) -> Section:
    """What lint says of one recipe."""
    loaded = api.load_recipe(name)
    source = api.locked_source(loaded) if model is None else model
    if source is None:
        return Section("lint", name, UNJUDGED, judges=False)
    first, *_ = api.lint(api.plan(loaded, source), references=(NO_REFERENCE,)).sections
    errors = sum(finding.severity is Severity.ERROR for finding in first.findings)
    summary = f"{errors} error{'' if errors == 1 else 's'}, {len(first.findings) - errors} further findings"
    facts: dict[str, str | int] = {RECIPE: loaded.document.where}
    return replace(first, id="lint", title=name, summary=summary, tables=(), figures=(), facts=facts)


main = partial(command, _parser, _lint)

if __name__ == "__main__":
    sys.exit(main())
