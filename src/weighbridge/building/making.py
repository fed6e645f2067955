"""From a plan to a checkpoint that is whole: which engine makes it, with what, and what that says of its work."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from weighbridge.base.identity import digest_files
from weighbridge.base.source import fetch, with_own_texts
from weighbridge.checkpoint.listing import MAX_FILES
from weighbridge.checkpoint.model import Checkpoint, carried_files
from weighbridge.checks.scales import GLOBAL_SCALES
from weighbridge.errors import Argument, BuildError, Clause
from weighbridge.formats.quantization import without_quantization
from weighbridge.machine.cache import secret
from weighbridge.machine.installation import need
from weighbridge.machine.resources import Resources, beside_what_is_held, enough_to_lay_out
from weighbridge.machine.standing import Standing
from weighbridge.output import shards
from weighbridge.output.staging import JOURNAL, UNFINISHED, Staging, check_space, make_own
from weighbridge.planning import Plan, plan_rewrite
from weighbridge.planning.calibrating import calibration_needs
from weighbridge.planning.declare import as_servers_call_it, compressed_tensors_config, declaration_of
from weighbridge.progress import Progress
from weighbridge.recipe import Conversion
from weighbridge.report import Section, Table
from weighbridge.text.names import compact
from weighbridge.work.journal import Journal

if TYPE_CHECKING:
    from weighbridge.engines.oneshot import Calibrated, Record
    from weighbridge.engines.streaming import Outcome

Engine = Literal["streaming", "upstream"]

EVIDENCE_FILES = 100
"""Room for what is said of a build, and for what is added to it later."""


@dataclass(frozen=True)
class Work:
    """A build that can be begun.

    Attributes:
        source: the checkpoint to quantize, on disk.
        engine: ``streaming`` where a piece or a layer is in memory, ``upstream`` where llm-compressor has its own way.
        resources: with the devices that are there.
        key: what a killed build is found again by; None where it would begin anew.
    """

    plan: Plan
    source: Checkpoint
    engine: Engine
    resources: Resources
    key: str | None

    @property
    def made_by(self) -> str:
        """What makes the numbers, as evidence names it; `reproduce` knows the way back."""
        by_layer = self.engine == "streaming" and self.plan.loaded.recipe.method == "oneshot"
        return "layerwise" if by_layer else self.engine


@dataclass(frozen=True)
class Made:
    """What an engine says of its work.

    Attributes:
        sections: how it went.
        outcome: the digests that it took of what it wrote.
        files: every file of the checkpoint -> SHA-256 (hex) of what was written into it; the card comes later.
        standings: each shard as it stands under its own name.
        source_digests: file of the source -> SHA-256 (hex).
        calibration: what calibration really used; None where nothing was calibrated.
    """

    sections: Sequence[Section]
    outcome: Outcome
    source_digests: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    standings: Mapping[str, Standing] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None


def prepare(
    plan: Plan, source: Checkpoint, output: Path, *, engine: Engine, resources: Resources, progress: Progress
) -> Work:
    """Everything that can be refused before a weight is read: devices, room on the disk, texts and data that are named.

    Args:
        engine: a conversion is always streamed.

    Raises:
        WeighbridgeError: the build could not be finished; or the source cannot be fetched.
    """
    from weighbridge.engines.devices import resolve_devices

    recipe = plan.loaded.recipe
    resources = replace(resources, devices=resolve_devices(resources.devices))
    engine = "streaming" if recipe.method == "convert" else engine
    own_numbers = recipe.method != "oneshot" and engine == "streaming"
    if engine == "upstream" and source.declaration is not None:
        raise BuildError(
            f"is quantized ({source.declaration.quant_method}), and llm-compressor's own engine starts from floats",
            where=source.label,
            remedy=Clause("take ", Argument("engine"), " streaming, which decodes it"),
        )
    if resources.ray is not None and recipe.method == "oneshot":
        raise BuildError(
            "cannot be shared out to a cluster: each layer needs what went through the one before it",
            where=f"method {recipe.method}",
            remedy=Clause("leave out ", Argument("executor"), " ray"),
        )
    if resources.ray is not None:
        from weighbridge.engines.streaming import check_cluster

        check_cluster(resources.ray)
    _check_count(plan, source, resources.shard_size)
    between = calibration_needs(plan).disk if recipe.method == "oneshot" and engine == "streaming" else 0
    check_space(output, shards.bytes_needed(plan, source, twice=not own_numbers) + between)
    if source.shards:
        kernels = ("numba",) if own_numbers or source.declaration is not None else ()
        need("build", *kernels)  # before anything is downloaded
    fetched = fetch(source, progress)
    # A directory that it was fetched into may hold more than was asked for.
    source = replace(fetched, files={name: fact for name, fact in fetched.files.items() if name in source.files})
    vars(source)["modules"] = fetched.modules  # cached, and the same
    key = None
    if own_numbers:
        from weighbridge.engines.streaming import build_key

        key = build_key(plan, source, resources)
    elif recipe.method == "oneshot":
        from weighbridge.engines import layerwise, oneshot

        plan = replace(plan, loaded=with_own_texts(plan.loaded, source))
        sha256 = oneshot.check(plan.loaded, source)
        key = layerwise.build_key(plan, source, resources, samples=sha256) if engine == "streaming" else None
    if recipe.quality is not None:
        from weighbridge.extras.quality.assess import windows_of

        windows_of(source, recipe.quality.text, count=recipe.quality.windows)
    return Work(plan, source, engine, resources, key)


def _check_count(plan: Plan, source: Checkpoint, shard_size: int) -> None:
    """Refuse a build of more files than anybody who reads its evidence lists.

    Raises:
        BuildError: with how many there would be.
    """
    count = len(shards.lay_out_shards(plan, shard_size)) + len(carried_files(source)) + EVIDENCE_FILES
    if count > MAX_FILES:
        raise BuildError(
            f"would come to {count:,} files with its evidence, and a checkpoint has {MAX_FILES:,} at most",
            where=source.label,
            remedy="take over fewer files, or make shards larger",
        )


def make(work: Work, staging: Staging, *, pinned: Iterable[str], progress: Progress) -> Made:
    """Write the whole checkpoint: its shards, its config, and what else the source has.

    Args:
        pinned: files of the source whose digests say who it is.

    Raises:
        WeighbridgeError: it cannot be made or written.
    """
    calibrated = work.plan.loaded.recipe.method == "oneshot"
    made = (_stream if work.engine == "streaming" and not calibrated else _through_upstream)(work, staging, progress)
    carried = shards.carry_files(work.source, staging.checkpoint)
    config = shards.write_config(staging.checkpoint, work.plan)
    beside = digest_files(work.source, set(pinned) - carried.keys(), progress=progress)
    standings = shards.finish(staging.checkpoint, made.outcome.standings)
    index = shards.write_index(staging.checkpoint, standings, work.source.form.index)
    return replace(
        made,
        files={**carried, **config, **index, **made.outcome.shard_digests},
        standings=standings,
        source_digests={**made.source_digests, **carried, **beside},
    )


def _stream(work: Work, staging: Staging, progress: Progress) -> Made:
    outcome = _write(work, staging, progress, hashed=work.source)
    made = outcome.pieces - outcome.found
    summary = f"{outcome.pieces:,} pieces, {made:,} made"
    if outcome.found or outcome.altered:
        summary += f", {outcome.found:,} found finished by an earlier run and checked by digest"
    if outcome.altered:
        summary += f", {len(outcome.altered):,} of them altered since and made anew"
    facts: dict[str, str | int] = {}
    if staging.others:
        facts["staging of other builds, left alone"] = ", ".join(map(str, staging.others))
    section = Section("build", "the build", summary, facts=facts)
    return Made([section, *_reciprocals(outcome.inexact, work.plan)], outcome, outcome.source_digests)


def _through_upstream(work: Work, staging: Staging, progress: Progress) -> Made:
    """Let llm-compressor quantize into shards of its own making, then lay these out as every build's are."""
    loaded, device = work.plan.loaded, work.resources.devices[0]
    unfinished = staging.directory / UNFINISHED
    make_own(unfinished)
    sections: Sequence[Section] = ()
    record: Record | None = None
    if loaded.recipe.method == "oneshot":
        by = "llmcompressor.oneshot"
        calibrated = _calibrate(work, unfinished, device, progress)
        unfinished, sections, record = calibrated.shards, calibrated.sections, calibrated.record
    else:
        from weighbridge.engines import upstream

        by = "llmcompressor.model_free_ptq"
        upstream.quantize(work.plan, work.source, unfinished, device=device, workers=work.resources.workers or 1)
    declared = as_servers_call_it(declaration_of(loaded.recipe), work.plan.parts, work.source)
    config = without_quantization(work.source.config)
    config["quantization_config"] = compressed_tensors_config(declared)
    written = shards.open_shards(unfinished, config, label=by)
    relaid = plan_rewrite(loaded, written, Conversion())
    by_layer = work.key is not None
    resources = enough_to_lay_out(work.resources) if by_layer else beside_what_is_held(work.resources)
    laying = replace(work, plan=relaid, source=written, resources=resources)
    outcome = _write(laying, staging, progress, hashed=work.source)
    said = [Section("build", "the build", f"made by {by}"), *sections, *_reciprocals(outcome.inexact, relaid)]
    calibration = None if record is None else asdict(record)
    return Made(said, outcome, outcome.source_digests, calibration=calibration)


def _calibrate(work: Work, directory: Path, device: str, progress: Progress) -> Calibrated:
    if work.key is not None:
        from weighbridge.engines import layerwise

        key = hmac.digest(secret(), f"{work.key} by layer".encode(), "sha256")
        memory = work.resources.memory
        return layerwise.quantize(
            work.plan, work.source, directory, key=key, device=device, memory=memory, progress=progress
        )
    from weighbridge.engines import oneshot

    return oneshot.quantize(work.plan, work.source, directory, device=device, progress=progress)


def _write(work: Work, staging: Staging, progress: Progress, *, hashed: Checkpoint) -> Outcome:
    from weighbridge.engines import streaming

    # What says which pieces are finished is this user's word about this very build, and of no other.
    # A build that is never taken up again needs none that lasts.
    key = os.urandom(32) if work.key is None else hmac.digest(secret(), work.key.encode(), "sha256")
    return streaming.write(
        work.plan,
        work.source,
        staging.checkpoint,
        journal=Journal(staging.directory / JOURNAL, key),
        hashed=hashed,
        resources=work.resources,
        progress=progress,
    )


def _reciprocals(inexact: Sequence[str], plan: Plan) -> list[Section]:
    """What became of global scales that two formats store as each other's reciprocals, and which changed by it."""
    rewritten = [part for part in plan.parts if part.action == "rewrite"]
    if all(part.stored is not None and part.stored.format == plan.loaded.recipe.format for part in rewritten):
        return []
    count = sum(name.rpartition(".")[2] in GLOBAL_SCALES for part in rewritten for name in part.outputs)
    summary = f"{count - len(inexact):,} of {count:,} written as reciprocals give the source's back exactly"
    rows = tuple((str(pattern), len(pattern)) for pattern in compact(inexact))
    table = Table(("one unit in the last place off: no F32 has the reciprocal that is stored", "scales"), rows)
    return [Section("global-scales", "global scales", summary, tables=(table,) if rows else ())]
