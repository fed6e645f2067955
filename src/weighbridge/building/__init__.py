"""A build from recipe to checkpoint: plan, make, judge, leave evidence, hand over."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from weighbridge import evidence
from weighbridge.base.identity import identify, pinned_files
from weighbridge.base.references import base_of, find_references, lock_of
from weighbridge.base.source import MINIATURE, made_once, make_miniature, open_source
from weighbridge.building.judging import joined, judge
from weighbridge.building.making import Engine, make, prepare
from weighbridge.building.unaltered import check_unaltered
from weighbridge.checkpoint.model import Checkpoint, check_unchanged, open_directory
from weighbridge.checkpoint.needed import left_behind, with_what_goes_along
from weighbridge.checks.plan_report import report_plan
from weighbridge.errors import BuildError
from weighbridge.machine.resources import Resources
from weighbridge.output.staging import Claim, check_exact, claimed, staged
from weighbridge.planning import make_plan
from weighbridge.planning.conversion_base import base_recipe
from weighbridge.progress import Progress
from weighbridge.recipe import LoadedRecipe
from weighbridge.report import Finding, Report, Section, Severity
from weighbridge.version import __version__

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildRequest:
    """What was asked for.

    Attributes:
        loaded: the recipe.
        source: the checkpoint to quantize, by its headers.
        output: the directory that the build becomes.
        references: what to hold the build against in place of the recipe's own references; see `find_references`.
        engine: this project's own, piece by piece or layer by layer, or llm-compressor on whole shards or models.
        resources: devices, workers, memory, and the size at which a new shard is begun.
        force: replace an output that is not empty, once the new build is whole.
        signer: who signs the evidence; None leaves it unsigned, and saying so.
        audited: hold every weight against the source by the numbers, before the build is kept.
        carry: names or patterns of files of the source that go along beside what a model needs; see
            `weighbridge.checkpoint.needed`.
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
    carry: tuple[str, ...] = ()


def build(request: BuildRequest, *, progress: Progress) -> Report:
    """Build a checkpoint. The output is replaced exactly if the report holds.

    Raises:
        WeighbridgeError: the build could not start or not finish; the output is as it was.
    """
    started = datetime.now(UTC)
    with claimed(request.output, force=request.force, source=request.source.directory) as claim:
        report = _build(request, claim, started, progress)
    if not claim.settled:
        return report
    return replace(
        report, sections=(*report.sections, Section("earlier-run", "an earlier run", claim.settled, judges=False))
    )


def _build(request: BuildRequest, claim: Claim, started: datetime, progress: Progress) -> Report:
    before = len(progress.stages)  # a program may use one progress for several builds
    source = with_what_goes_along(request.source, request.carry)
    base = base_of(request.loaded, source)
    references = find_references(request.loaded, base, request.references)
    lock = lock_of(base, source)
    plan = make_plan(request.loaded, source)
    log.info("%s by %s into %s", source.label, request.loaded.document.where, request.output)
    foreseen = report_plan(plan, references)
    if not foreseen.holds:
        return foreseen
    work = prepare(plan, source, request.output, engine=request.engine, resources=request.resources, progress=progress)
    with staged(claim, key=work.key) as staging:
        made = make(work, staging, pinned=pinned_files(work.source, lock), progress=progress)
        check_exact(staging.checkpoint, made.files)
        built = replace(open_directory(staging.checkpoint), label=str(request.output))
        identity = identify(work.source.shards, lock, made.source_digests)
        reports = judge(built, work, made, references, identity, audited=request.audited, progress=progress)
        report = joined(reports)
        if report.holds:
            finished = evidence.FinishedBuild(
                plan=plan,
                source=replace(work.source, origin=source.origin),
                identity=identity,
                references=references,
                reports=reports,
                shard_digests=made.outcome.shard_digests,
                tensor_digests=made.outcome.tensor_digests,
                engine=work.made_by,
                device=work.resources.devices[0].partition(":")[0],
                shard_size=work.resources.shard_size,
                named_references=request.references,
                named_files=request.carry,
                started=started,
                stages=progress.stages[before:],
                calibration=made.calibration,
            )
            check_unchanged(work.source, (*work.source.shards, *work.source.files))
            check_exact(staging.checkpoint, made.files)
            evidence.write(staging.checkpoint, finished, signer=request.signer, progress=progress)
            check_unaltered(staging.checkpoint, built, made)
            staging.commit()
    return _with_what_was_left(report, left_behind(request.source, request.carry))


MOST_NAMED = 20
"""Files that are named one by one; of more than so many the rest is counted."""


def _with_what_was_left(report: Report, names: Sequence[str]) -> Report:
    """The report as it is printed. The evidence does not say what else lies beside a model: it is nobody's business."""
    if not names:
        return report
    notes = [
        Finding("build/left-behind", Severity.NOTE, name, "is on no list of what a model needs, and was not taken over")
        for name in names[:MOST_NAMED]
    ]
    if len(names) > MOST_NAMED:
        what = "are on no list of what a model needs either"
        more = len(names) - MOST_NAMED
        notes.append(Finding("build/left-behind", Severity.NOTE, f"{more:,} further files", what, count=more))
    summary = f"{len(names):,} files of the source were left behind; the build can be told to take them over by name"
    section = Section("left-behind", "left behind", summary, findings=tuple(notes), judges=False)
    return replace(report, sections=(*report.sections, section))


def build_base(loaded: LoadedRecipe, *, progress: Progress) -> Checkpoint:
    """The miniature's build that a conversion starts from; made in the user's cache the first time.

    Raises:
        WeighbridgeError: it cannot be built, or does not hold.
    """
    recipe = base_recipe(loaded)
    name = f"{make_miniature().name}-{recipe.recipe.name}-{recipe.sha256[:12]}-{__version__}"

    def make(output: Path) -> None:
        report = build(BuildRequest(loaded=recipe, source=open_source(MINIATURE), output=output), progress=progress)
        if not report.holds:
            raise BuildError(f"its base cannot be built: {report.verdict}", where=loaded.document.where)

    return open_directory(made_once(name, make), label=f"{MINIATURE}, {recipe.recipe.name}")
