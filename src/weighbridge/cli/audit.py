"""The part of ``validate.py`` that reads weights: ``--source``, the base that a checkpoint must derive from."""

from __future__ import annotations

import argparse
import secrets
import sys
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from weighbridge.account.base import digest
from weighbridge.base.identity import identify, pinned_files, sampled
from weighbridge.base.references import base_of_source
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.opening import open_checkpoint
from weighbridge.cli.run import not_negative, positive, size
from weighbridge.errors import StructureError, WeighbridgeError
from weighbridge.machine.resources import DEFAULT_MEMORY, Resources
from weighbridge.progress import Progress
from weighbridge.report import Section

if TYPE_CHECKING:
    from weighbridge.planning import Plan
    from weighbridge.recipe import LoadedRecipe


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of an audit."""
    options = parser.add_argument_group("the audit (with --source, which reads both checkpoints)")
    options.add_argument(
        "--sample", metavar="PERCENT", type=_share, help="check only so many percent of the rows of each tensor"
    )
    options.add_argument(
        "--seed", type=not_negative, help="of the choice of rows (default: one that nobody knows beforehand)"
    )
    options.add_argument(
        "--recompute",
        action="store_true",
        help="run a recipe that calibrates again on the base, and compare byte by byte (needs its data)",
    )
    options.add_argument(
        "--calibration", metavar="FILE", help="the file that it was calibrated with, if build.py was given one"
    )
    options.add_argument("--compare", metavar="OTHER", help="hold codes and scales against those of another build")
    options.add_argument("--workers", type=positive, help="pieces looked at at a time (default: one a core)")
    options.add_argument(
        "--memory", type=size, default=DEFAULT_MEMORY, metavar="SIZE", help="memory to stay below (default: 2GiB)"
    )


def audit_sections(
    checkpoint: Checkpoint,
    base: Checkpoint,
    options: argparse.Namespace,
    loaded: LoadedRecipe | None,
    plan: Plan | None,
) -> list[Section]:
    """Audit a checkpoint against the base that ``--source`` names.

    Raises:
        StructureError: it cannot be audited: a lock alone, or nothing quantized; or a side cannot be read.
    """
    from weighbridge import auditing
    from weighbridge.planning import find_merged_groups

    _check_weights(checkpoint, "audit")
    progress = Progress()
    _check_weights(base, "audit against")
    groups = plan.fused_groups if plan is not None else find_merged_groups(checkpoint.schemes)
    sample = None
    if options.sample is not None and options.sample < 1:
        sample = auditing.Sample(options.sample, secrets.randbits(32) if options.seed is None else options.seed)
    resources = Resources(workers=options.workers, memory=options.memory)
    with ExitStack() as stack:
        again = stack.enter_context(_again(base, options, loaded, resources, progress)) if options.recompute else None
        if sample is not None and options.seed is None:
            again_with = f"interrupted, --seed {sample.seed} goes on with them"
            sys.stderr.write(f"rows are drawn with seed {sample.seed}; {again_with}\n")
        found = auditing.audit(
            checkpoint,
            base,
            method=auditing.method_of(checkpoint, loaded),
            groups=groups,
            sample=sample,
            resources=resources,
            progress=progress,
            again=again,
        )
    lock = base_of_source(base, preferred=loaded.recipe.base.model if loaded is not None else "")
    digests = {**found.digests, **_beside(base, lock)}
    identity = identify(base.shards, lock, digests) if found.digests else sampled(lock)
    return [identity.section(base), *auditing.sections(found)]


def _again(
    base: Checkpoint,
    options: argparse.Namespace,
    loaded: LoadedRecipe | None,
    resources: Resources,
    progress: Progress,
) -> AbstractContextManager[Checkpoint]:
    """The build of the recipe that is compared with."""
    from weighbridge.building.again import built_again
    from weighbridge.cli.build import calibrated_with

    if options.sample is not None:
        raise WeighbridgeError("compares whole weights", where="--recompute", remedy="leave --sample out")
    if loaded is None or loaded.recipe.calibration is None:
        what = "runs a recipe that calibrates again; what others make is recomputed by every audit"
        remedy = "name that recipe with --recipe" if loaded is None else "leave --recompute out"
        raise WeighbridgeError(what, where="--recompute", remedy=remedy)
    if options.calibration is not None:
        loaded = calibrated_with(loaded, options.calibration)
    return built_again(loaded, base, resources=resources, progress=progress)


def _check_weights(checkpoint: Checkpoint, purpose: str) -> None:
    if not checkpoint.shards:
        what = f"is a structure lock, which holds no weights to {purpose}"
        raise StructureError(what, where=checkpoint.label, remedy="name a directory, or a hub id")


def compare_section(checkpoint: Checkpoint, options: argparse.Namespace) -> Section:
    """Hold a checkpoint against the build that ``--compare`` names.

    Raises:
        StructureError: either is a lock alone, or cannot be read.
    """
    from weighbridge import auditing

    other = open_checkpoint(options.compare, follow=options.follow_links)
    for side in (checkpoint, other):
        _check_weights(side, "compare")
    resources = Resources(workers=options.workers, memory=options.memory)
    return auditing.compare(checkpoint, other, resources=resources, progress=Progress())


def _beside(base: Checkpoint, lock: Checkpoint | None) -> dict[str, str]:
    """SHA-256 of the files beside the shards that the base's lock pins."""
    found = ((name, digest(base, name)) for name in pinned_files(base, lock))
    return {name: sha256 for name, sha256 in found if sha256 is not None}


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share of rows such as 1 or 0.5 (percent)")
    return share
