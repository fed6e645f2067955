"""A build from recipe to checkpoint: plan, compare, quantize, validate, hand over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from weighbridge import shards
from weighbridge.identity import Identity, digest_files, identify, pinned_files
from weighbridge.plan import Plan, make_plan
from weighbridge.plan_report import report_plan
from weighbridge.progress import Progress
from weighbridge.recipe import LoadedRecipe
from weighbridge.references import AgainstReference, base_of_source, find_references
from weighbridge.report import Report, Section
from weighbridge.resources import Resources
from weighbridge.source import fetch
from weighbridge.staging import Staging, check_space, check_target, staged
from weighbridge.structure.checkpoint import Checkpoint, open_directory
from weighbridge.validation import validate

Engine = Literal["streaming", "upstream"]


@dataclass(frozen=True)
class BuildRequest:
    """What was asked for.

    Attributes:
        loaded: the recipe.
        source: the checkpoint to quantize, by its headers.
        output: the directory that the build becomes.
        references: what to hold the build against in place of the recipe's own references; see `find_references`.
        engine: for data-free recipes, this project's own engine or ``llmcompressor.model_free_ptq``.
        resources: devices, workers, memory, and the size at which a new shard is begun.
        force: replace an output that is not empty, once the new build is whole.
    """

    loaded: LoadedRecipe
    source: Checkpoint
    output: Path
    references: tuple[str, ...] = ()
    engine: Engine = "streaming"
    resources: Resources = field(default_factory=Resources)
    force: bool = False


@dataclass(frozen=True)
class _Quantized:
    """What an engine says of its work: how it went, and the digests it took on the way."""

    section: Section
    source_digests: Mapping[str, str]


def build(request: BuildRequest, *, progress: Progress) -> Report:
    """Build a checkpoint. The output is replaced exactly if the report holds.

    Raises:
        WeighbridgeError: the build could not start or not finish; the output is as it was.
    """
    check_target(request.output, force=request.force, source=request.source.directory)
    base = base_of_source(request.source, preferred=request.loaded.recipe.base.model)
    references = find_references(request.loaded, base, request.references)
    plan = make_plan(request.loaded, request.source)
    before = report_plan(plan, references)
    if not before.holds:
        return before
    from weighbridge.engines.devices import resolve_devices

    request = replace(request, resources=replace(request.resources, devices=resolve_devices(request.resources.devices)))
    streaming = request.engine == "streaming" and request.loaded.recipe.method == "model_free_ptq"
    check_space(request.output, shards.bytes_needed(plan, request.source, rewritten=not streaming))
    source = fetch(request.source)
    key = None
    if streaming:
        from weighbridge.engines.streaming import build_key

        key = build_key(plan, source, request.resources)
    with staged(request.output, key=key) as staging:
        quantized = (_stream if streaming else _load_whole)(plan, source, staging, request, progress)
        shards.write_config(staging.checkpoint, plan)
        shards.carry_files(source, staging.checkpoint)
        built = replace(open_directory(staging.checkpoint), label=str(request.output))
        beside = digest_files(source, pinned_files(source, base), progress=progress)
        identity = identify(source, base, {**quantized.source_digests, **beside})
        report = _judge(built, plan, references, identity, [identity.section(source), quantized.section])
        if report.holds:
            staging.commit()
    return report


def _stream(plan: Plan, source: Checkpoint, staging: Staging, request: BuildRequest, progress: Progress) -> _Quantized:
    from weighbridge.engines import streaming

    outcome = streaming.quantize(plan, source, staging.directory, resources=request.resources, progress=progress)
    shards.write_index(staging.checkpoint)
    made = outcome.pieces - outcome.found
    summary = f"{outcome.pieces:,} pieces, {made:,} made"
    if outcome.found or outcome.altered:
        summary += f", {outcome.found:,} found finished by an earlier run and checked by digest"
    if outcome.altered:
        summary += f", {len(outcome.altered):,} of them altered since and made anew"
    facts: dict[str, str | int] = {}
    if staging.others:
        facts["staging of other builds, left alone"] = ", ".join(map(str, staging.others))
    return _Quantized(Section("the build", summary, facts=facts), outcome.source_digests)


def _load_whole(
    plan: Plan, source: Checkpoint, staging: Staging, request: BuildRequest, progress: Progress
) -> _Quantized:
    digests = digest_files(source, source.shards, progress=progress)
    device = request.resources.devices[0]
    if plan.loaded.recipe.method == "oneshot":
        from weighbridge.engines import oneshot

        oneshot.quantize(plan, source, staging.checkpoint, device=device)
        by = "llmcompressor.oneshot"
    else:
        from weighbridge.engines import upstream

        upstream.quantize(plan, source, staging.checkpoint, device=device, workers=request.resources.workers or 1)
        by = "llmcompressor.model_free_ptq"
    shards.normalize_shards(staging.checkpoint)
    return _Quantized(Section("the build", f"made by {by}"), digests)


def _judge(
    built: Checkpoint,
    plan: Plan,
    references: Sequence[AgainstReference],
    identity: Identity,
    context: Sequence[Section],
) -> Report:
    report = validate(built, plan=plan, references=references, context=context)
    if not report.holds:
        return replace(report, command="build", verdict=f"nothing was kept: {report.verdict}")
    held = "; ".join(
        f"{section.title}: {section.summary}" for section in report.sections[-len(references) :] if references
    )
    against = held or "no reference was named for this base, so it was held against its plan alone"
    verdict = (
        f"{built.label} is built and holds: {len(built.structure):,} tensors as planned; {against}; "
        f"the source {plan.source.label}: {identity.sentence}"
    )
    return replace(report, command="build", verdict=verdict)
