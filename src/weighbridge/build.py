"""A build from recipe to checkpoint: plan, compare, quantize, validate, hand over."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from weighbridge import __version__, evidence, shards
from weighbridge.cache import cache_directory
from weighbridge.conversion_base import base_recipe
from weighbridge.errors import BuildError
from weighbridge.identity import Identity, digest_files, identify, pinned_files
from weighbridge.plan import Plan, make_plan, plan_rewrite
from weighbridge.plan.declare import compressed_tensors_config, declaration_of
from weighbridge.plan_report import report_plan
from weighbridge.progress import Progress
from weighbridge.recipe import Conversion, LoadedRecipe
from weighbridge.references import AgainstReference, base_of, find_references
from weighbridge.report import Report, Section, Table
from weighbridge.resources import Resources, beside_what_is_held
from weighbridge.scales import GLOBAL_SCALES, scales_sections
from weighbridge.source import MINIATURE, fetch, make_miniature, open_source
from weighbridge.staging import Staging, check_space, check_target, staged
from weighbridge.structure.checkpoint import Checkpoint, open_directory
from weighbridge.structure.names import compact
from weighbridge.validation import validate

if TYPE_CHECKING:
    from weighbridge.engines.oneshot import Record
    from weighbridge.engines.streaming import Outcome

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
        signer: who signs the evidence; None leaves it unsigned, and saying so.
        audited: hold every weight against the source by the numbers, before the build is kept.
    """

    loaded: LoadedRecipe
    source: Checkpoint
    output: Path
    references: tuple[str, ...] = ()
    engine: Engine = "streaming"
    resources: Resources = field(default_factory=Resources)
    force: bool = False
    signer: evidence.Signer | None = None
    audited: bool = False


def build(request: BuildRequest, *, progress: Progress) -> Report:
    """Build a checkpoint. The output is replaced exactly if the report holds.

    Raises:
        WeighbridgeError: the build could not start or not finish; the output is as it was.
    """
    started = datetime.now(UTC)
    recipe = request.loaded.recipe
    check_target(request.output, force=request.force, source=request.source.directory)
    base = base_of(request.loaded, request.source)
    references = find_references(request.loaded, base, request.references)
    # A conversion's base is what its source was made from, and no claim about the source itself.
    lock = base if base is not None and base.structure == request.source.structure else None
    plan = make_plan(request.loaded, request.source)
    before = report_plan(plan, references)
    if not before.holds:
        return before
    from weighbridge.engines.devices import resolve_devices

    request = replace(request, resources=replace(request.resources, devices=resolve_devices(request.resources.devices)))
    streaming = recipe.method == "convert" or (recipe.method == "model_free_ptq" and request.engine == "streaming")
    check_space(request.output, shards.bytes_needed(plan, request.source, twice=not streaming))
    source = fetch(request.source)
    key = None
    if streaming:
        from weighbridge.engines.streaming import build_key

        key = build_key(plan, source, request.resources)
    elif recipe.method == "oneshot":
        from weighbridge.engines import oneshot

        oneshot.check(request.loaded, source)
    if recipe.quality is not None:
        from weighbridge.quality.assess import windows_of

        windows_of(source, recipe.quality.text, count=recipe.quality.windows)  # a text that is not there is said now
    with staged(request.output, key=key) as staging:
        made = (_stream if streaming else _through_upstream)(plan, source, staging, request, progress)
        shards.write_config(staging.checkpoint, plan)
        shards.carry_files(source, staging.checkpoint)
        beside = digest_files(source, pinned_files(source, lock), progress=progress)
        shards.finish(staging.checkpoint)
        built = replace(open_directory(staging.checkpoint), label=str(request.output))
        identity = identify(source, lock, {**made.outcome.source_digests, **beside})
        context = [identity.section(source), *made.sections, *scales_sections(built, plan.fused_groups)]
        context.append(evidence.licence_section(source, recipe))
        report = _judge(built, plan, references, identity, context)
        if report.holds and not streaming:
            request = replace(request, resources=beside_what_is_held(request.resources))
        further = _further(built, plan, source, request, progress) if report.holds else {}
        reports = {evidence.MAIN_REPORT: report, **further}
        report = functools.reduce(_joined, reports.values())
        if report.holds:
            account = evidence.Account(
                plan=plan,
                source=replace(source, origin=request.source.origin),
                identity=identity,
                references=references,
                reports=reports,
                shard_digests=made.outcome.shard_digests,
                tensor_digests=made.outcome.tensor_digests,
                engine="streaming" if streaming else "upstream",
                device=request.resources.devices[0].partition(":")[0],
                shard_size=request.resources.shard_size,
                named_references=request.references,
                started=started,
                stages=progress.stages,
                calibration=made.calibration,
            )
            evidence.write(staging.checkpoint, account, signer=request.signer, progress=progress)
            staging.commit()
    return report


@dataclass(frozen=True)
class _Made:
    """What an engine says of its work: how it went, the digests that it took, and what it calibrated with."""

    sections: Sequence[Section]
    outcome: Outcome
    calibration: Mapping[str, Any] | None = None


def build_base(loaded: LoadedRecipe, *, progress: Progress) -> Checkpoint:
    """The miniature's build that a conversion starts from; made in the user's cache the first time.

    Raises:
        WeighbridgeError: it cannot be built, or does not hold.
    """
    recipe = base_recipe(loaded)
    name = f"{make_miniature().name}-{recipe.recipe.name}-{recipe.sha256[:12]}-{__version__}"
    directory = cache_directory() / name
    if not directory.is_dir():
        report = build(BuildRequest(loaded=recipe, source=open_source(MINIATURE), output=directory), progress=progress)
        if not report.holds:
            raise BuildError(f"its base cannot be built: {report.verdict}", where=loaded.document.where)
    return open_directory(directory, label=f"{MINIATURE}, {recipe.recipe.name}")


def _stream(plan: Plan, source: Checkpoint, staging: Staging, request: BuildRequest, progress: Progress) -> _Made:
    outcome = _write(plan, source, source, staging, request, progress)
    made = outcome.pieces - outcome.found
    summary = f"{outcome.pieces:,} pieces, {made:,} made"
    if outcome.found or outcome.altered:
        summary += f", {outcome.found:,} found finished by an earlier run and checked by digest"
    if outcome.altered:
        summary += f", {len(outcome.altered):,} of them altered since and made anew"
    facts: dict[str, str | int] = {}
    if staging.others:
        facts["staging of other builds, left alone"] = ", ".join(map(str, staging.others))
    section = Section("the build", summary, facts=facts)
    return _Made([section, *_reciprocals(outcome.inexact, plan)], outcome)


def _through_upstream(
    plan: Plan, source: Checkpoint, staging: Staging, request: BuildRequest, progress: Progress
) -> _Made:
    """Let llm-compressor quantize into shards of its own making, then lay these out as every build's are."""
    device = request.resources.devices[0]
    unfinished = staging.directory / "unfinished"
    unfinished.mkdir()
    sections: list[Section] = []
    record: Record | None = None
    if plan.loaded.recipe.method == "oneshot":
        from weighbridge.engines import oneshot

        by = "llmcompressor.oneshot"
        calibrated = oneshot.quantize(plan, source, unfinished, device=device, progress=progress)
        sections += calibrated.sections
        record = calibrated.record
    else:
        from weighbridge.engines import upstream

        by = "llmcompressor.model_free_ptq"
        upstream.quantize(plan, source, unfinished, device=device, workers=request.resources.workers or 1)
    quantization = compressed_tensors_config(declaration_of(plan.loaded.recipe))
    written = shards.open_shards(unfinished, quantization, label=by)
    relaid = plan_rewrite(plan.loaded, written, Conversion())
    request = replace(request, resources=beside_what_is_held(request.resources))
    outcome = _write(relaid, written, source, staging, request, progress)
    made = [Section("the build", f"made by {by}"), *sections, *_reciprocals(outcome.inexact, relaid)]
    return _Made(made, outcome, None if record is None else asdict(record))


def _write(
    plan: Plan, source: Checkpoint, hashed: Checkpoint, staging: Staging, request: BuildRequest, progress: Progress
) -> Outcome:
    from weighbridge.engines import streaming

    return streaming.write(
        plan,
        source,
        staging.checkpoint,
        journal=staging.directory / "journal.jsonl",
        hashed=hashed,
        resources=request.resources,
        progress=progress,
    )


def _reciprocals(inexact: Sequence[str], plan: Plan) -> list[Section]:
    """What became of global scales that two formats store as each other's reciprocals, and which changed by it."""
    rewritten = [part for part in plan.parts if part.stored is not None and part.scheme is not None]
    if all(part.stored is not None and part.stored.format == plan.loaded.recipe.format for part in rewritten):
        return []
    count = sum(name.rpartition(".")[2] in GLOBAL_SCALES for part in rewritten for name in part.outputs)
    summary = f"{count - len(inexact):,} of {count:,} written as reciprocals give the source's back exactly"
    rows = tuple((str(pattern), len(pattern)) for pattern in compact(inexact))
    table = Table(("one unit in the last place off: no F32 has the reciprocal that is stored", "scales"), rows)
    return [Section("global scales", summary, tables=(table,) if rows else ())]


def _further(
    built: Checkpoint, plan: Plan, source: Checkpoint, request: BuildRequest, progress: Progress
) -> dict[str, Report]:
    """What else is judged before a build is kept, by name: its numbers if asked for, its answers if the recipe says."""
    reports = {}
    if request.audited:
        reports[evidence.AUDIT_REPORT] = _audit(built, plan, source, request, progress)
    limits = request.loaded.recipe.quality
    if limits is not None and all(report.holds for report in reports.values()):
        from weighbridge.quality.assess import judge

        device = request.resources.devices[0]
        reports[evidence.QUALITY_REPORT] = judge(built, source, limits, progress, device=device)
    return reports


def _audit(built: Checkpoint, plan: Plan, source: Checkpoint, request: BuildRequest, progress: Progress) -> Report:
    from weighbridge import audit

    found = audit.audit(
        built,
        source,
        method=audit.method_of(built, plan.loaded),
        groups=plan.fused_groups,
        sample=None,
        resources=replace(request.resources, digests=False),  # the build has read the source's digests already
        progress=progress,
    )
    return Report("audit", built.label, f"{built.label} {audit.conclusion(found)}", tuple(audit.sections(found)))


def _joined(report: Report, further: Report) -> Report:
    """A build's report with that of its audit, or of its quality."""
    verdict = f"{report.verdict}; it {further.verdict.removeprefix(f'{report.subject} ')}"
    if not further.holds:
        verdict = f"nothing was kept: {further.verdict}"
    return replace(report, verdict=verdict, sections=(*report.sections, *further.sections))


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
