"""A build from recipe to checkpoint: plan, compare, quantize, validate, hand over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weighbridge import shards
from weighbridge.identity import Identity, identify
from weighbridge.plan import Plan, make_plan
from weighbridge.plan_report import report_plan
from weighbridge.progress import Progress
from weighbridge.recipe import LoadedRecipe
from weighbridge.references import AgainstReference, base_of_source, find_references
from weighbridge.report import Report
from weighbridge.source import fetch
from weighbridge.staging import check_space, check_target, staged
from weighbridge.structure.checkpoint import Checkpoint, open_directory
from weighbridge.validation import validate


@dataclass(frozen=True)
class BuildRequest:
    """What was asked for.

    Attributes:
        loaded: the recipe.
        source: the checkpoint to quantize, by its headers.
        output: the directory that the build becomes.
        references: what to hold the build against in place of the recipe's own references; see `find_references`.
        device: torch device, or None for the first accelerator if there is one.
        workers: threads that quantize.
        force: replace an output that is not empty, once the new build is whole.
    """

    loaded: LoadedRecipe
    source: Checkpoint
    output: Path
    references: tuple[str, ...] = ()
    device: str | None = None
    workers: int = 1
    force: bool = False


def build(request: BuildRequest, *, progress: Progress) -> Report:
    """Build a checkpoint. The output exists afterwards exactly if the report holds.

    Raises:
        WeighbridgeError: the build could not start or not finish; the output is as it was.
    """
    check_target(request.output, force=request.force)
    base = base_of_source(request.source, preferred=request.loaded.recipe.base.model)
    references = find_references(request.loaded, base, request.references)
    plan = make_plan(request.loaded, request.source)
    before = report_plan(plan, references)
    if not before.holds:
        return before
    check_space(request.output, shards.bytes_needed(plan, request.source))
    source = fetch(request.source)
    identity = identify(source, base, progress=progress)
    with staged(request.output) as staging:
        _quantize(plan, source, staging.directory, request)
        shards.normalize_shards(staging.directory)
        shards.write_config(staging.directory, plan)
        shards.carry_files(source, staging.directory)
        built = replace(open_directory(staging.directory), label=str(request.output))
        report = _judge(built, plan, references, identity, source)
        if report.holds:
            staging.commit()
    return report


def _quantize(plan: Plan, source: Checkpoint, staging: Path, request: BuildRequest) -> None:
    match plan.loaded.recipe.method:
        case "model_free_ptq":
            from weighbridge.engines import upstream

            upstream.quantize(plan, source, staging, device=request.device, workers=request.workers)
        case "oneshot":
            from weighbridge.engines import oneshot

            oneshot.quantize(plan, source, staging, device=request.device)


def _judge(
    built: Checkpoint, plan: Plan, references: Sequence[AgainstReference], identity: Identity, source: Checkpoint
) -> Report:
    report = validate(built, plan=plan, references=references, context=[identity.section(source)])
    if not report.holds:
        return replace(report, command="build", verdict=f"nothing was kept: {report.verdict}")
    held = "; ".join(f"{section.title}: {section.summary}" for section in report.sections[3:])
    against = held or "no reference belongs to this base, so it was held against its plan alone"
    verdict = (
        f"{built.label} is built and holds: {len(built.structure):,} tensors as planned; {against}; "
        f"the source {source.label} {identity.sentence}"
    )
    return replace(report, command="build", verdict=verdict)
