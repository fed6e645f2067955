"""``build.py``: a recipe goes in, a validated checkpoint comes out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from weighbridge.build import BuildRequest, build
from weighbridge.commands.run import check_report_path, hand_over, run
from weighbridge.progress import Progress
from weighbridge.recipe import load_recipe
from weighbridge.references import NO_REFERENCE
from weighbridge.source import MINIATURE, open_source

EPILOG = """\
examples:
  python build.py fp8-dynamic --model mini
  python build.py recipes/google/gemma-4-26B-A4B-it/fp8-dynamic.yaml --model /models/gemma-4-26B-A4B-it

exit codes: 0 built and valid; 1 judged and found wanting, nothing kept; 2 could not build
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    options = _parser().parse_args(arguments)
    return run(lambda: _build(options))


def _build(options: argparse.Namespace) -> int:
    check_report_path(options.report)
    loaded = load_recipe(options.recipe)
    model = options.model or f"{loaded.recipe.base.model}@{loaded.recipe.base.revision}"
    output = options.output or Path("builds") / f"{Path(model.partition('@')[0]).name}-{loaded.recipe.name}"
    request = BuildRequest(
        loaded=loaded,
        source=open_source(model),
        output=output,
        references=(options.reference,) if options.reference else (),
        device=options.device,
        workers=options.workers,
        force=options.force,
    )
    report = build(request, progress=Progress())
    return hand_over(report, format=options.format, report_path=options.report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="build.py",
        description="Build a quantized checkpoint from a recipe and validate it tensor by tensor.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a recipe's path, or its name in the catalogue (recipes/README.md)")
    parser.add_argument(
        "--model",
        metavar=f"PATH|ORG/NAME[@REV]|{MINIATURE}",
        help="the model to quantize (default: the recipe's base at its pinned revision); "
        f"{MINIATURE}: a small Gemma 4 made on the spot",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to build (default: builds/<model>-<recipe>)")
    parser.add_argument(
        "--force", action="store_true", help="replace an output that is not empty, once the build is whole"
    )
    parser.add_argument("--device", help="torch device, e.g. cuda:0 or cpu (default: an accelerator if there is one)")
    parser.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="shards worked on at a time (default: 1)"
    )
    parser.add_argument(
        "--reference",
        metavar=f"REF|{NO_REFERENCE}",
        help="hold the build against this directory, hub id or lock instead of the recipe's own references",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how the report is written")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the report to this file")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
