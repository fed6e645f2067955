"""``weighbridge online``: vLLM's configuration for quantizing by itself, while it loads, what a recipe names."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from functools import partial

from weighbridge import api
from weighbridge.base.source import MADE
from weighbridge.cli.complete import complete, locks, recipes
from weighbridge.cli.lint import UNJUDGED
from weighbridge.cli.run import HOLDS, WANTING, Parser, command
from weighbridge.errors import StructureError
from weighbridge.planning.online import Online
from weighbridge.recipe.schema import Base
from weighbridge.report import PRESENTERS, first_error

EPILOG = """\
examples:
  %(prog)s fp8-dynamic
  %(prog)s fp8-dynamic --format json

docs/how-to/choose-a-scheme.md compares this with a build.

exit codes: 0 written; 1 lint finds an error; 2 vLLM cannot do it
"""


def _parser() -> Parser:
    parser = Parser("online", description="Write vLLM's configuration for quantizing while it loads.", epilog=EPILOG)
    complete(parser.add_argument("recipe", metavar="RECIPE", help="path or name of a recipe"), recipes)
    model = parser.add_argument("--model", help="the model to plan for (default: the structure lock of the base)")
    complete(model, lambda: MADE, locks)
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="the call of vLLM, or its configuration alone"
    )
    return parser


def _online(options: argparse.Namespace) -> int:
    loaded = api.load_recipe(options.recipe)
    source = options.model or api.locked_source(loaded)
    if source is None:
        raise StructureError(UNJUDGED, where=options.recipe, remedy="name the model with --model")
    plan = api.plan(loaded, source)
    found = api.online(plan)
    judged = api.lint(plan)
    if first_error(judged.sections):
        sys.stderr.write(PRESENTERS["text"](judged))
        return WANTING
    if options.format == "json":
        sys.stdout.write(json.dumps(found.config, indent=2) + "\n")
    else:
        sys.stdout.write(_said(found, loaded.recipe.base))
    return HOLDS


def _said(found: Online, base: Base) -> str:
    words = ["vllm", "serve", base.model, *(("--revision", base.revision) if base.revision else ())]
    words += ["--quantization", "online", "--quantization-config", json.dumps(found.config)]
    lines = [shlex.join(words), "", "what differs from a build:"]
    lines += [f"  {way}: {differs}" for way, differs in found.differs.items()]
    return "\n".join(lines) + "\n"


main = partial(command, _parser, _online)

if __name__ == "__main__":
    sys.exit(main())
