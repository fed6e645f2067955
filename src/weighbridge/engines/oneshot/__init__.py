"""The calibrated engine: llm-compressor's ``oneshot`` on a model that transformers loads, driven by the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.engines.oneshot.calibrate import Given, Passed, apply_modifiers, calibrating
from weighbridge.engines.oneshot.coverage import grids, starved, table
from weighbridge.engines.oneshot.dataset import open_rows, with_file
from weighbridge.engines.oneshot.load import load_model, load_tokenizer
from weighbridge.engines.oneshot.modifiers import make_modifiers
from weighbridge.engines.oneshot.record import Record, make_record
from weighbridge.engines.oneshot.samples import make_samples, take_samples
from weighbridge.engines.oneshot.save import save_shards
from weighbridge.engines.quiet import quieted
from weighbridge.families import Role
from weighbridge.machine.resources import DEFAULT_SHARD_SIZE
from weighbridge.planning import Plan
from weighbridge.progress import Progress
from weighbridge.recipe import LoadedRecipe
from weighbridge.recipe.calibration import Calibration
from weighbridge.report import Section

__all__ = ["Calibrated", "Given", "Record", "check", "described", "prepare", "quantize", "with_file"]


@dataclass(frozen=True)
class Calibrated:
    """What a calibrated build says of itself.

    Attributes:
        shards: the folder of the shards that were written.
        sections: for the report: what was used, and what each layer's experts saw of it.
        record: what calibration really used; None where nothing needed data.
    """

    shards: Path
    sections: tuple[Section, ...] = ()
    record: Record | None = None


def check(loaded: LoadedRecipe, source: Checkpoint) -> str:
    """Refuse what can be refused before a model is loaded; `quantize` would refuse the same.

    Rows are rendered and tokenized only if `source` lies on disk.

    Returns:
        The digest of the samples (`Samples.sha256`); nothing where there are none, or they are not known yet.

    Raises:
        RecipeError: a modifier that llm-compressor does not take.
        DatasetError: a data set that cannot be read, has too few rows, or rows that are no text.
        StructureError: a line of a ``.jsonl`` file that is no JSON object.
        BuildError: the tokenizer cannot be loaded.
    """
    make_modifiers(loaded)
    calibration = _calibration(loaded)
    if calibration is None:
        return ""
    with quieted():
        if source.directory is None:
            take_samples(calibration, open_rows(calibration))
            return ""
        tokenizer = load_tokenizer(source.directory, where=source.label)
        return make_samples(calibration, open_rows(calibration), tokenizer).sha256


def quantize(
    plan: Plan,
    source: Checkpoint,
    output: Path,
    *,
    device: str | None,
    progress: Progress,
    shard_size: int = DEFAULT_SHARD_SIZE,
) -> Calibrated:
    """Write quantized shards into `output` (an existing directory) with ``oneshot``, in compressed-tensors' layout.

    Nothing else is written there, and until the last shard is whole nothing that looks like one.

    Args:
        shard_size: bytes of tensors at which a new file is begun.

    Raises:
        RecipeError, DatasetError, StructureError: as `check`.
        BuildError: the model cannot be loaded, or upstream stopped, or a shard cannot be written.
    """
    assert source.directory is not None
    given = prepare(plan, source)
    with quieted():
        model = load_model(source.directory, device=device, where=source.label)
        with (
            progress.stage(given.title, 0),
            calibrating(model, seed=given.seed, device=model.device, where=source.label) as at_hand,
        ):
            apply_modifiers(at_hand, model, given)
        passed = at_hand.passed(given.tokens)
        save_shards(model, output, shard_size=shard_size, progress=progress)
    return described(plan, given, passed, output)


def prepare(plan: Plan, source: Checkpoint) -> Given:
    """Modifiers, tokenizer and samples of a plan's recipe, as `check` has seen them.

    Raises:
        RecipeError, DatasetError, StructureError, BuildError: as `check`.
    """
    assert source.directory is not None
    modifiers = make_modifiers(plan.loaded, tied=plan.tied_modules)
    calibration = _calibration(plan.loaded)
    with quieted():
        tokenizer = load_tokenizer(source.directory, where=source.label)
        samples = None if calibration is None else make_samples(calibration, open_rows(calibration), tokenizer)
    return Given(modifiers, tokenizer, calibration, samples)


def described(plan: Plan, given: Given, passed: Passed, shards: Path) -> Calibrated:
    """What a build says of its calibration."""
    if given.calibration is None or given.samples is None:
        return Calibrated(shards)
    record = make_record(given.calibration, given.samples, given.modifiers.names)
    return Calibrated(shards, (_section(plan, given.calibration, passed, record),), record)


def _calibration(loaded: LoadedRecipe) -> Calibration | None:
    """The calibration of a recipe, of which lint has seen that it is needed."""
    return loaded.recipe.calibration if loaded.recipe.needing_data else None


def _section(plan: Plan, calibration: Calibration, passed: Passed, record: Record) -> Section:
    coverage = passed.coverage
    seen = [count for layer in coverage for count in layer.seen]
    reached = f"; each of {len(seen):,} experts saw {min(seen):,} or more" if seen else ""
    quantized = any(plan.source.family.role_of(module) is Role.EXPERTS for module in plan.schemes)
    return Section(
        id="calibration",
        title="the calibration",
        summary=f"{record.tokens:,} tokens of {len(record.rows):,} samples{reached}",
        findings=(*(starved(coverage, calibration.least_tokens) if quantized else ()), *passed.findings),
        facts=record.facts,
        tables=(table(coverage),) if coverage else (),
        figures=grids(coverage) if coverage else (),
    )
