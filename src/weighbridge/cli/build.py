"""``build.py``: a recipe goes in, a validated checkpoint comes out."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from weighbridge import api
from weighbridge.base.references import NO_REFERENCE
from weighbridge.base.source import MADE, MINIATURE, SMOLLM2, TRAINED_MINIATURE, open_model, open_source
from weighbridge.cli import capacity, draft
from weighbridge.cli.complete import complete, locks, recipes
from weighbridge.cli.log import check_outside
from weighbridge.cli.run import (
    HOLDS,
    Parser,
    add_follow_option,
    add_report_options,
    add_work_options,
    check_writable,
    command,
    filed,
    hand_over,
    positive_size,
    program,
    refuse,
    suggest,
)
from weighbridge.errors import RecipeError, WeighbridgeError
from weighbridge.machine.resources import DEFAULT_SHARD_SIZE, Resources

if TYPE_CHECKING:
    from weighbridge.checkpoint.model import Checkpoint
    from weighbridge.recipe import LoadedRecipe

log = logging.getLogger(__name__)

LOCK = "lock"
OF_A_BUILD = (
    *("output", "force", "audit", "sign", "engine", "executor", "ray"),
    *("device", "workers", "memory", "shard_size"),
)
"""Options of what a plan does not make."""
NOT_OF_A_DRAFT = ("plan", "carry", "resolved", "reference", "calibration", "format", "report", "gpu", *OF_A_BUILD[1:])
DESCRIPTIONS = {
    "plan": "Say what a recipe would make of a model, tensor by tensor, from headers alone: no weight is read, and "
    "nothing is built.",
    "build": "Build a quantized checkpoint from a recipe and validate it tensor by tensor; "
    "or say what would be built (--plan), or draft a recipe (--new-recipe).",
}
EXAMPLES = {
    "plan": """\
  %(prog)s fp8-dynamic --model mini
  %(prog)s fp8-dynamic --model google/gemma-4-26B-A4B-it
  %(prog)s nvfp4 --model mini --gpu 24GB --kv-dtype fp8
  %(prog)s w4a16 --model mini --format html --report plan.html
""",
    "build": """\
  %(prog)s fp8-dynamic --model mini
  %(prog)s fp8-dynamic --model mini --output builds/x --force --audit
  %(prog)s fp8-dynamic --model /models/gemma-4 --device cuda:0
  %(prog)s fp8-dynamic --plan --model google/gemma-4-26B-A4B-it
  %(prog)s nvfp4 --plan --model mini --gpu 24GB --kv-dtype fp8
  %(prog)s --new-recipe Qwen/Qwen3-30B-A3B
""",
}
"""By what the command was called."""
EXIT_CODES = """
exit codes: 0 built and valid, or can be; 1 judged, and failed, nothing
kept; 2 could not judge or build
"""


def _run(options: argparse.Namespace) -> int:
    check_writable(options.report)
    if (options.recipe is None) == (options.new_recipe is None):
        what = "names no recipe to build" if options.recipe is None else "names a recipe, and asks for a new one"
        remedy = f"name one of the catalogue, recipes/README.md, as in '{program('build')} fp8-dynamic --model mini'"
        raise RecipeError(what, where="the command", remedy=remedy)
    if options.new_recipe is not None:
        refuse(options, *NOT_OF_A_DRAFT, beside="--new-recipe")
        return draft.draft(options)
    refuse(options, "scheme", "licence", without="--new-recipe")
    loaded = api.load_recipe(options.recipe)
    log.info("recipe %s", loaded.document.where)
    if options.resolved:
        sys.stdout.write(loaded.raw.decode())
        return HOLDS
    if options.calibration is not None:
        loaded = api.calibrated_with(loaded, options.calibration)
    return _plan(options, loaded) if options.plan else _build(options, loaded)


def _plan(options: argparse.Namespace, loaded: LoadedRecipe) -> int:
    refuse(options, *OF_A_BUILD, beside="--plan")
    from weighbridge.checkpoint.lock import write_lock

    plan = api.plan(loaded, _source(options, loaded), carry=options.carry)
    report = api.lint(plan, references=_named(options), demand=capacity.demand_of(options))
    code = hand_over(report, options, text=write_lock(plan.predicted) if options.format == LOCK else None)
    if report.holds:
        source, model = plan.source, _model(options, loaded)
        where = "--model PATH" if source.directory is None and not source.shards else f"--model {shlex.quote(model)}"
        where += "".join(f" --follow-links {shlex.quote(str(place))}" for place in options.follow_links)
        where += "".join(f" --carry {shlex.quote(name)}" for name in options.carry)
        suggest(options, f"{program('build')} {shlex.quote(options.recipe)} {where}")
    return code


def _build(options: argparse.Namespace, loaded: LoadedRecipe) -> int:
    if options.executor != "ray":
        refuse(options, "ray", without="--executor ray")
    refuse(options, "gpu", *capacity.OF_A_CARD, without="--plan")
    if options.format == LOCK:
        raise WeighbridgeError("a lock is the format of a plan", where="--format lock", remedy="add --plan")
    output = options.output or default_output(_model(options, loaded), loaded)
    check_outside(output, log_file=options.log_file, report=options.report)
    report = api.build(
        loaded,
        _source(options, loaded),
        output,
        audit=options.audit,
        sign=options.sign,
        force=options.force,
        references=_named(options),
        carry=options.carry,
        engine=options.engine,
        resources=Resources(
            devices=(options.device,) if options.device else (),
            workers=options.workers,
            memory=options.memory,
            shard_size=options.shard_size,
            ray=options.ray if options.executor == "ray" else None,
        ),
    )
    code = hand_over(filed(report), options)
    if report.holds:
        suggest(options, f"{program('validate')} {shlex.quote(str(output))} --evidence")
    return code


def default_output(model: str, loaded: LoadedRecipe) -> Path:
    """Where a build goes of which nobody says where."""
    return Path("builds") / f"{Path(model.partition('@')[0]).name}-{loaded.recipe.name}"


def _source(options: argparse.Namespace, loaded: LoadedRecipe) -> Checkpoint | str:
    """What a recipe starts from, opened here where it has links to follow."""
    model = _model(options, loaded)
    if model in MADE and loaded.recipe.method == "convert":
        return model
    opened = open_model if loaded.recipe.method == "convert" else open_source
    return opened(model, follow=options.follow_links)


def _model(options: argparse.Namespace, loaded: LoadedRecipe) -> str:
    base = loaded.recipe.base
    return options.model if options.model is not None else "@".join(filter(None, (base.model, base.revision)))


def _named(options: argparse.Namespace) -> tuple[str, ...]:
    return (options.reference,) if options.reference else ()


def _parser() -> Parser:
    parser = Parser("build", description="", epilog="")
    called = name if (name := parser.prog.split()[-1]) in EXAMPLES else "build"
    parser.description = DESCRIPTIONS[called]
    parser.epilog = f"examples:\n{EXAMPLES[called]}{EXIT_CODES}"
    recipe = parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="its path, or its name in the catalogue (recipes/README.md)"
    )
    complete(recipe, recipes)
    model = parser.add_argument(
        "--model",
        metavar=f"PATH|ORG/NAME[@REV]|{'|'.join(MADE)}",
        help="the model to quantize (default: the recipe's base at its pinned revision); "
        f"{MINIATURE}: a small Gemma 4 made on the spot; {TRAINED_MINIATURE}: the same, trained, "
        f"which takes a quarter of an hour the first time; {SMOLLM2}: SmolLM2-135M-Instruct from PyPI",
    )
    complete(model, lambda: MADE, locks)
    add_follow_option(parser)
    parser.add_argument("--plan", action="store_true", help="say what would be built, from headers alone, and stop")
    parser.add_argument(
        "--resolved", action="store_true", help="print the recipe, merged with what it extends and uses, and stop"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to build (default: builds/<model>-<recipe>)")
    parser.add_argument(
        "--force", action="store_true", help="replace an output that is not empty, once the build is whole"
    )
    parser.add_argument("--device", help="torch device, e.g. cuda:0 or cpu (default: an accelerator if there is one)")
    add_work_options(
        parser,
        pieces="pieces (groups of tensors)",
        memory="memory that the streaming engine may take, however large shards and tensors are, and for a recipe that "
        "calibrates, where the default is what --plan says; what --engine upstream loads comes on top",
    )
    parser.add_argument(
        "--shard-size",
        type=positive_size,
        default=DEFAULT_SHARD_SIZE,
        metavar="SIZE",
        help="bytes of tensors at which a new output file is begun (default: 5GB)",
    )
    parser.add_argument(
        "--engine",
        choices=("streaming", "upstream"),
        default="streaming",
        help="streaming: pieces of tensors, or one layer where a recipe calibrates; upstream: llm-compressor on whole "
        "shards, or the whole model (default: streaming)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="calibrate with this .jsonl, .parquet or .txt file in the place of the recipe's data set",
    )
    parser.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="where pieces are worked on: in this process, or by a Ray cluster (default: local)",
    )
    parser.add_argument(
        "--ray",
        default="auto",
        metavar="ADDRESS",
        help="address of the Ray cluster (default: auto, the one that Ray finds)",
    )
    parser.add_argument(
        "--carry",
        action="append",
        default=[],
        metavar="NAME",
        help="copy this file of the model's directory, too (a pattern as in 'original/*.json'; can be given again); "
        "the files that a model needs are copied in any case, and the report names the rest",
    )
    reference = parser.add_argument(
        "--reference",
        metavar=f"REF|{NO_REFERENCE}",
        help="compare the build with this directory, hub id or structure lock instead of the recipe's own references; "
        f"{NO_REFERENCE}: with no reference",
    )
    complete(reference, lambda: (NO_REFERENCE,), locks)
    parser.add_argument(
        "--sign",
        metavar="KEY.pem|sigstore",
        help="sign the evidence with this private key (P-256, P-384 or P-521; 'make key' makes one), or by Sigstore",
    )
    parser.add_argument(
        "--audit",
        action="store_true",
        help="compute every weight again from the source before the build is kept; the result becomes evidence, too",
    )
    add_report_options(parser, LOCK)
    capacity.add_options(parser)
    draft.add_options(parser)
    return parser


main = partial(command, _parser, _run)

if __name__ == "__main__":
    sys.exit(main())
