"""The part of ``validate.py`` that reads weights: ``--source``, the base that a checkpoint must derive from."""

from __future__ import annotations

import argparse
import secrets
import sys

from weighbridge import api
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.opening import open_checkpoint
from weighbridge.cli.run import not_negative, positive, size
from weighbridge.machine.resources import Resources
from weighbridge.progress import Progress
from weighbridge.report import Report, Section


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of an audit."""
    options = parser.add_argument_group("the audit (with --source, which reads both checkpoints)")
    options.add_argument(
        "--sample",
        metavar="PERCENT",
        type=_share,
        help="check this percentage of the rows of each tensor (default: all)",
    )
    options.add_argument("--seed", type=not_negative, help="seed for choosing the rows (default: random, and printed)")
    options.add_argument(
        "--recompute",
        action="store_true",
        help="for a recipe that calibrates: run it again on the base and compare byte by byte (needs its data)",
    )
    options.add_argument(
        "--calibration", metavar="FILE", help="the file that it was calibrated with, if build.py was given one"
    )
    options.add_argument("--compare", metavar="OTHER", help="compare codes and scales with those of another build")
    options.add_argument(
        "--workers", type=positive, help="pieces (groups of tensors) checked at a time (default: one a core)"
    )
    options.add_argument(
        "--memory",
        type=size,
        metavar="SIZE",
        help="memory that the audit may take (default: 2GiB)",
    )


def audited_by(sides: api.Sides, options: argparse.Namespace) -> Report:
    """Audit a checkpoint against the base that ``--source`` names.

    Raises:
        WeighbridgeError: as `api.audit`.
    """
    seed = options.seed
    if options.sample is not None and options.sample < 1 and not options.recompute and seed is None:
        seed = secrets.randbits(32)
        sys.stderr.write(f"sampling seed {seed}; resume an interrupted audit with --seed {seed}\n")
    return api.audit_sides(
        sides,
        sample=options.sample,
        seed=seed,
        recompute=options.recompute,
        calibration=options.calibration,
        resources=Resources(workers=options.workers, memory=options.memory),
    )


def compare_section(checkpoint: Checkpoint, options: argparse.Namespace) -> Section:
    """Hold a checkpoint against the build that ``--compare`` names.

    Raises:
        StructureError: either is a lock alone, or cannot be read.
    """
    from weighbridge import auditing

    other = open_checkpoint(options.compare, follow=options.follow_links)
    for side in (checkpoint, other):
        api.check_weights(side, "compare")
    resources = Resources(workers=options.workers, memory=options.memory)
    return auditing.compare(checkpoint, other, resources=resources, progress=Progress())


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share of rows such as 1 or 0.5 (percent)")
    return share
