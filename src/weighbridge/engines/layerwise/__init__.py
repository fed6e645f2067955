"""The calibrated engine that holds one layer: llm-compressor's modifiers on a model of which the rest is on disk."""

from __future__ import annotations

from pathlib import Path

import weighbridge.engines.oneshot as whole
from weighbridge.checkpoint.model import Checkpoint, identities
from weighbridge.engines.layerwise.kept import Kept
from weighbridge.engines.layerwise.memory import room_for_hessians
from weighbridge.engines.layerwise.passes import Passing, passing_by_layer
from weighbridge.engines.layerwise.skeleton import open_skeleton
from weighbridge.engines.oneshot.calibrate import apply_modifiers, calibrating
from weighbridge.engines.oneshot.record import TOOLS
from weighbridge.engines.quiet import quieted
from weighbridge.machine.cache import key_of
from weighbridge.machine.installation import version_of
from weighbridge.machine.resources import Resources
from weighbridge.planning import Plan
from weighbridge.planning.calibrating import calibration_needs
from weighbridge.progress import Progress
from weighbridge.version import __version__
from weighbridge.work.journal import Journal

__all__ = ["build_key", "quantize"]

JOURNAL = "journal.jsonl"


def quantize(
    plan: Plan,
    source: Checkpoint,
    directory: Path,
    *,
    key: bytes,
    device: str,
    memory: int | None = None,
    progress: Progress,
) -> whole.Calibrated:
    """Quantize the layers of a model one after another, into files in `directory`, an existing one of this build alone.

    What a run that was killed has finished is found there, and not done again.

    Args:
        key: authenticates what stands there of that.
        memory: bytes of resident memory, at most; None for what a layer needs, and 2 GiB of Hessians.

    Raises:
        RecipeError, DatasetError, StructureError: as `weighbridge.engines.oneshot.check`.
        BuildError: the model cannot be loaded, or upstream stopped, or a file cannot be written.
        WeighbridgeError: `memory` is too little.
    """
    given = whole.prepare(plan, source)
    with quieted():
        room = room_for_hessians(calibration_needs(plan), memory)
        skeleton = open_skeleton(plan, device=device)
        kept = Kept(directory, Journal(directory / JOURNAL, key), passes=len(given.modifiers.instances))
        kept.clear()
        model = skeleton.model
        with (
            progress.stage(given.title, kept.passes * skeleton.bytes),
            calibrating(model, seed=given.seed, device=skeleton.device, where=source.label) as at_hand,
            passing_by_layer(Passing(skeleton, kept, progress, at_hand.watch, at_hand.warnings, room)),
        ):
            apply_modifiers(at_hand, model, given)
        passed = at_hand.passed(given.tokens)
    return whole.described(plan, given, passed, kept.shards)


def build_key(plan: Plan, source: Checkpoint, resources: Resources, *, samples: str) -> str:
    """A name for everything that determines a build's bytes: recipe, source, samples, layout, tools, kind of device.

    Args:
        samples: the digest of what the model will see.
    """
    return key_of(
        {
            "recipe": plan.loaded.recipe.model_dump(mode="json", exclude={"name", "description", "reference"}),
            "source": identities(source),
            "samples": samples,
            "shard_size": resources.shard_size,
            "device": resources.devices[0].partition(":")[0],
            "tools": {"weighbridge": __version__} | {name: version_of(name) for name in TOOLS},
        }
    )
