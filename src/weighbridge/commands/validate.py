"""``validate.py``: any checkpoint against itself, a recipe, references; by headers and config alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from weighbridge.cache import write_atomically
from weighbridge.commands.run import Parser, check_writable, hand_over, run
from weighbridge.conversion_base import locked_base
from weighbridge.errors import StructureError, WeighbridgeError
from weighbridge.lint.merged import MERGED
from weighbridge.plan import Plan, find_fused_groups, make_plan
from weighbridge.recipe import load_recipe
from weighbridge.references import NO_REFERENCE, AgainstReference, base_of_build, find_references
from weighbridge.report import PRESENTERS, Section
from weighbridge.scales import scales_section
from weighbridge.structure.checkpoint import Checkpoint
from weighbridge.structure.lock import write_lock
from weighbridge.structure.opening import open_checkpoint
from weighbridge.validation import validate

EPILOG = """\
examples:
  python validate.py builds/mini-fp8-dynamic --recipe fp8-dynamic
  python validate.py builds/mini-fp8-dynamic --reference references/weighbridge/gemma-4-mini-FP8-dynamic.yaml
  python validate.py RedHatAI/gemma-4-26B-A4B-it-FP8-dynamic --write-lock reference.yaml

CHECKPOINT and REF are a directory, a hub id org/name[@revision] (its headers alone are read), or a structure lock.
exit codes: 0 holds; 1 judged and found wanting; 2 could not judge
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    options = _parser().parse_args(arguments)
    return run(lambda: _validate(options))


def _validate(options: argparse.Namespace) -> int:
    check_writable(options.report)
    check_writable(options.write_lock)
    checkpoint = open_checkpoint(options.checkpoint)
    plan, references = _held_against(checkpoint, options.recipe, options.reference)
    report = validate(checkpoint, plan=plan, references=references, context=_values(checkpoint, plan))
    if options.write_lock is not None:
        _write_lock(checkpoint, options.write_lock, base=plan.predicted.origin.base if plan else "")
    return hand_over(report, text=PRESENTERS[options.format](report), report_path=options.report)


def _values(checkpoint: Checkpoint, plan: Plan | None) -> list[Section]:
    """What can be said of values without reading weights: the scales of whole tensors, where they lie on disk."""
    if checkpoint.directory is None or not checkpoint.schemes:
        return []
    groups = plan.fused_groups if plan is not None else find_fused_groups(checkpoint.schemes, list(MERGED.values()))
    return [scales_section(checkpoint, groups)]


def _held_against(
    checkpoint: Checkpoint, recipe: str | None, named: Sequence[str]
) -> tuple[Plan | None, tuple[AgainstReference, ...]]:
    if recipe is None:
        return None, tuple(AgainstReference(open_checkpoint(name)) for name in named if name != NO_REFERENCE)
    loaded = load_recipe(recipe)
    base = base_of_build(checkpoint, preferred=loaded.recipe.base.model)
    if base is None:
        raise StructureError(
            "shares no tensor with any base model that references/ has a lock of, so no plan can be made for it",
            where=checkpoint.label,
            remedy="hold it against a reference with --reference instead",
        )
    references = find_references(loaded, base, named)
    if loaded.recipe.method != "convert":
        return make_plan(loaded, base), references
    start = locked_base(loaded, base)
    if start is None:
        raise StructureError(
            f"references/ has no lock of a build of {base.origin.base} that this recipe converts",
            where=loaded.document.where,
            remedy="hold it against a reference with --reference instead",
        )
    return make_plan(loaded, start), references


def _write_lock(checkpoint: Checkpoint, path: Path, *, base: str) -> None:
    origin = replace(checkpoint.origin, base=checkpoint.origin.base or base)
    if origin.basis == "read" and origin.revision:
        origin = replace(origin, basis="seen", note="read from the headers on the hub")
    try:
        write_atomically(path, write_lock(replace(checkpoint, origin=origin)).encode())
    except OSError as error:
        raise WeighbridgeError(f"the lock cannot be written ({error.strerror})", where=str(path)) from error


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="validate.py",
        description="Check a checkpoint's names, dtypes, shapes and quantization, without reading a weight.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a directory, a hub id or a structure lock")
    parser.add_argument(
        "--reference",
        metavar="REF",
        action="append",
        default=[],
        help=f"hold it against this checkpoint (can be given again; {NO_REFERENCE}: not even the recipe's own)",
    )
    parser.add_argument("--recipe", help="hold it against what this recipe asks for, and against its references")
    parser.add_argument("--format", choices=tuple(PRESENTERS), default="text", help="how the report is written")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the report to this file")
    parser.add_argument("--write-lock", type=Path, metavar="FILE", help="write the checkpoint's structure lock")
    return parser
