"""A build from recipe to checkpoint: plan, make, judge, leave evidence, hand over."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from weighbridge import __version__, evidence
from weighbridge.build.judging import joined, judge
from weighbridge.build.making import Engine, make, prepare
from weighbridge.cache import cache_directory
from weighbridge.conversion_base import base_recipe
from weighbridge.errors import BuildError
from weighbridge.identity import identify, pinned_files
from weighbridge.plan import make_plan
from weighbridge.plan_report import report_plan
from weighbridge.progress import Progress
from weighbridge.recipe import LoadedRecipe
from weighbridge.references import base_of, find_references, lock_of
from weighbridge.report import Report
from weighbridge.resources import Resources
from weighbridge.source import MINIATURE, make_miniature, open_source
from weighbridge.staging import check_target, staged
from weighbridge.structure.checkpoint import Checkpoint, open_directory

log = logging.getLogger(__name__)


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
    check_target(request.output, force=request.force, source=request.source.directory)
    base = base_of(request.loaded, request.source)
    references = find_references(request.loaded, base, request.references)
    lock = lock_of(base, request.source)
    plan = make_plan(request.loaded, request.source)
    log.info("%s by %s into %s", request.source.label, request.loaded.document.where, request.output)
    foreseen = report_plan(plan, references)
    if not foreseen.holds:
        return foreseen
    work = prepare(
        plan, request.source, request.output, engine=request.engine, resources=request.resources, progress=progress
    )
    with staged(request.output, key=work.key) as staging:
        made = make(work, staging, pinned=pinned_files(work.source, lock), progress=progress)
        built = replace(open_directory(staging.checkpoint), label=str(request.output))
        identity = identify(work.source.shards, lock, made.source_digests)
        reports = judge(built, work, made, references, identity, audited=request.audited, progress=progress)
        report = joined(reports)
        if report.holds:
            finished = evidence.FinishedBuild(
                plan=plan,
                source=replace(work.source, origin=request.source.origin),
                identity=identity,
                references=references,
                reports=reports,
                shard_digests=made.outcome.shard_digests,
                tensor_digests=made.outcome.tensor_digests,
                engine=work.engine,
                device=work.resources.devices[0].partition(":")[0],
                shard_size=work.resources.shard_size,
                named_references=request.references,
                started=started,
                stages=progress.stages,
                calibration=made.calibration,
            )
            evidence.write(staging.checkpoint, finished, signer=request.signer, progress=progress)
            staging.commit()
    return report


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
