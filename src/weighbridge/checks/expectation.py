"""What a finished checkpoint should be by its recipe: its base, the plan of that, and the recipe's references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weighbridge.account import Base
from weighbridge.base.references import AgainstReference, base_of_build, base_of_source, find_references
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.renaming import usual_name
from weighbridge.checks.scales import scales_sections
from weighbridge.errors import Argument, Clause, StructureError
from weighbridge.planning import Plan, find_merged_groups, make_plan
from weighbridge.planning.conversion_base import locked_base
from weighbridge.recipe import LoadedRecipe
from weighbridge.report import Section


@dataclass(frozen=True)
class Expected:
    """What a checkpoint is held against.

    Attributes:
        base: the model that it was made from.
    """

    plan: Plan
    references: tuple[AgainstReference, ...]
    base: Base


def expected_of(
    checkpoint: Checkpoint, loaded: LoadedRecipe, source: Checkpoint | None = None, named: Sequence[str] = ()
) -> Expected:
    """What a recipe makes of the base that a checkpoint was made from.

    Args:
        source: the base, where it is at hand. Otherwise it is the one that references/ has a lock of; see
            `base_of_build`.
        named: references to take in place of the recipe's own; see `find_references`.

    Raises:
        StructureError: there is no such lock, or a reference cannot be opened.
        HubError: a reference cannot be opened.
    """
    preferred = loaded.recipe.base.model
    if source is not None:
        lock = base_of_source(source, preferred=preferred)
        base = Base(source, source.label, listed=True)
    else:
        lock, why = base_of_build(checkpoint, preferred=preferred)
        base = Base(lock, f"the lock of {lock.origin.repository}", listed=False, why=why)
    references = find_references(loaded, lock, named)
    start = base.checkpoint
    if loaded.recipe.method == "convert" and start.declaration is None:
        start = _conversion_start(loaded, lock)
    return Expected(make_plan(loaded, start), references, base)


def _conversion_start(loaded: LoadedRecipe, lock: Checkpoint | None) -> Checkpoint:
    start = None if lock is None else locked_base(loaded, lock)
    if start is None:
        what = "references/ has no lock of the build of this base that the recipe converts"
        remedy = Clause("compare it with a reference (", Argument("references"), ") instead")
        raise StructureError(what, where=loaded.document.where, remedy=remedy)
    return start


def values_of(checkpoint: Checkpoint, plan: Plan | None) -> list[Section]:
    """What can be said of values without reading weights: the scales of whole tensors, where they lie on disk.

    Raises:
        StructureError: a shard cannot be read.
    """
    if checkpoint.directory is None or not checkpoint.schemes:
        return []
    modules = map(usual_name, checkpoint.schemes)
    groups = plan.fused_groups if plan is not None else find_merged_groups(modules, checkpoint.family)
    return scales_sections(checkpoint, groups)
