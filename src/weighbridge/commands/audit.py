"""The part of ``validate.py`` that reads weights: ``--source``, the base that a checkpoint must derive from."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from weighbridge.errors import StructureError
from weighbridge.identity import digest_files, identify, pinned_files
from weighbridge.lint.merged import MERGED
from weighbridge.plan import Plan, find_fused_groups
from weighbridge.progress import Progress
from weighbridge.recipe import LoadedRecipe
from weighbridge.references import base_of_source
from weighbridge.report import Section
from weighbridge.resources import DEFAULT_MEMORY, Resources, parse_size
from weighbridge.source import fetch, open_source
from weighbridge.structure.checkpoint import Checkpoint

if TYPE_CHECKING:
    from weighbridge.audit import Sample


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of an audit."""
    options = parser.add_argument_group("the audit (with --source, which reads both checkpoints)")
    options.add_argument(
        "--sample", metavar="PERCENT", type=_share, help="check only so many percent of the rows of each tensor"
    )
    options.add_argument("--seed", type=int, default=0, help="of the choice of rows (default: 0)")
    options.add_argument("--device", action="append", default=[], help="cpu, or an accelerator such as cuda:0")
    options.add_argument("--workers", type=int, help="how many pieces are looked at at a time (default: one a core)")
    options.add_argument(
        "--memory", type=_size, default=DEFAULT_MEMORY, metavar="SIZE", help="memory to stay below (default: 2GiB)"
    )


def audit_sections(
    checkpoint: Checkpoint, options: argparse.Namespace, loaded: LoadedRecipe | None, plan: Plan | None
) -> list[Section]:
    """Audit a checkpoint against the base that ``--source`` names.

    Raises:
        StructureError: it cannot be audited: a lock alone, or nothing quantized; or a side cannot be read.
    """
    from weighbridge import audit
    from weighbridge.engines.devices import resolve_devices

    if checkpoint.directory is None and not checkpoint.shards:
        raise StructureError("is a structure lock, which holds no weights to audit", where=checkpoint.label)
    progress = Progress()
    base, stored = fetch(open_source(options.source)), fetch(checkpoint)
    groups = plan.fused_groups if plan is not None else find_fused_groups(checkpoint.schemes, list(MERGED.values()))
    sample: Sample | None = None
    if options.sample is not None and options.sample < 1:
        sample = audit.Sample(options.sample, options.seed)
    resources = Resources(
        devices=resolve_devices(tuple(options.device)), workers=options.workers, memory=options.memory
    )
    found = audit.audit(
        replace(stored, label=checkpoint.label),
        base,
        method=audit.method_of(checkpoint, loaded),
        groups=groups,
        sample=sample,
        resources=resources,
        progress=progress,
    )
    lock = base_of_source(base, preferred=loaded.recipe.base.model if loaded is not None else "")
    beside = digest_files(base, pinned_files(base, lock), progress=progress)
    identity = identify(base, lock, {**found.digests, **beside})
    return [identity.section(base), *audit.sections(found)]


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share of rows such as 1 or 0.5 (percent)")
    return share


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
