"""What a finished checkpoint should be by its recipe: the plan of its base, and the recipe's references."""

from __future__ import annotations

from collections.abc import Sequence

from weighbridge.conversion_base import locked_base
from weighbridge.errors import StructureError
from weighbridge.lint.merged import MERGED
from weighbridge.plan import Plan, find_fused_groups, make_plan
from weighbridge.recipe import LoadedRecipe
from weighbridge.references import AgainstReference, base_of_build, find_references
from weighbridge.report import Section
from weighbridge.scales import scales_sections
from weighbridge.structure.checkpoint import Checkpoint


def expected_of(
    checkpoint: Checkpoint, loaded: LoadedRecipe, named: Sequence[str] = ()
) -> tuple[Plan, tuple[AgainstReference, ...]]:
    """The plan that a recipe makes for the base that a build was made from, and the references to hold it against.

    The base is found by the tensors that the build shares with it; references/ has its lock.

    Args:
        named: references to take in place of the recipe's own; see `find_references`.

    Raises:
        StructureError: no base that is known here shares a tensor with it, or a reference cannot be opened.
        HubError: a reference cannot be opened.
    """
    base = base_of_build(checkpoint, preferred=loaded.recipe.base.model)
    if base is None:
        raise StructureError(
            "shares no tensor with any base model that references/ has a lock of, so no plan can be made for it",
            where=checkpoint.label,
            remedy="hold it against a reference with --reference instead",
        )
    references = find_references(loaded, base, named)
    if loaded.recipe.method != "convert":
        return make_plan(loaded, base), references
    start = locked_base(loaded, base)
    if start is None:
        raise StructureError(
            f"references/ has no lock of a build of {base.origin.base} that this recipe converts",
            where=loaded.document.where,
            remedy="hold it against a reference with --reference instead",
        )
    return make_plan(loaded, start), references


def values_of(checkpoint: Checkpoint, plan: Plan | None) -> list[Section]:
    """What can be said of values without reading weights: the scales of whole tensors, where they lie on disk.

    Raises:
        StructureError: a shard cannot be read.
    """
    if checkpoint.directory is None or not checkpoint.schemes:
        return []
    groups = plan.fused_groups if plan is not None else find_fused_groups(checkpoint.schemes, list(MERGED.values()))
    return scales_sections(checkpoint, groups)
