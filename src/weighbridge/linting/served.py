"""What a server finds when it loads a build: linears, what each is stored as, and what config.json says of them.

A plan and a checkpoint that lies there are the same to a server; the rules of serving are asked of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import FUSED_WEIGHT
from weighbridge.families import Family, family_of
from weighbridge.formats import FORMATS
from weighbridge.formats.declaration import Declaration
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import Structure, Tensor
from weighbridge.planning import FusedGroup, Plan, find_merged_groups, tied_heads


@dataclass(frozen=True, slots=True)
class Linear:
    """A module with a weight.

    Attributes:
        weight: dtype and shape of the weight itself, unquantized.
        scheme: what it is quantized with; None where it is kept.
        why: what keeps it, where it is kept.
    """

    module: str
    weight: Tensor
    scheme: Scheme | None
    why: str = ""


@dataclass(frozen=True)
class Served:
    """A build as a server sees it.

    Attributes:
        name: how findings call the whole.
        config: its config.json.
        declaration: what that declares.
        structure: tensor name -> dtype and shape.
        linears: every module with a weight, in order.
        modules: every module that holds a tensor.
        fused_groups: linears that servers merge, as they occur.
        tied: output heads that are tied and not stored.
        ignored: what is kept by name or pattern, in the words of the recipe or of config.json.
        ignored_at: where that list stands.
    """

    name: str
    config: Mapping[str, Any]
    declaration: Declaration
    structure: Structure
    linears: tuple[Linear, ...]
    modules: Sequence[str]
    fused_groups: tuple[FusedGroup, ...]
    tied: frozenset[str]
    ignored: tuple[str, ...]
    ignored_at: str

    @cached_property
    def family(self) -> Family:
        """What its config.json says that it is one of."""
        return family_of(self.config)

    @cached_property
    def schemes(self) -> Mapping[str, Scheme]:
        """Module -> scheme, of what is quantized."""
        return {linear.module: linear.scheme for linear in self.linears if linear.scheme is not None}


def served_by_plan(plan: Plan) -> Served | None:
    """What a build by this plan will be to a server; None where it quantizes nothing."""
    if plan.declaration is None:
        return None
    # What a scheme cannot be applied to is reported as such; here it counts as what it was meant to be.
    meant = {obstacle.module: obstacle.scheme for obstacle in plan.obstacles}
    linears = tuple(
        Linear(part.module, part.weight, part.scheme or meant.get(part.module), str(part.decision))
        for part in plan.parts
        if part.scheme is not None or f"{part.module}.weight" in part.outputs
    )
    return Served(
        name=plan.loaded.recipe.base.model,
        config=plan.source.config,
        declaration=plan.declaration,
        structure=plan.predicted.structure,
        linears=linears,
        modules=plan.modules,
        fused_groups=plan.fused_groups,
        tied=plan.tied_modules,
        ignored=plan.loaded.recipe.ignored,
        ignored_at=plan.loaded.location("ignore"),
    )


def served_from(checkpoint: Checkpoint) -> Served | None:
    """What a checkpoint that lies there is to a server; None where it declares nothing, or is of no known format."""
    if checkpoint.declaration is None or checkpoint.declaration.quant_method not in FORMATS:
        return None
    linears = tuple(_linears(checkpoint))
    modules = [linear.module for linear in linears]
    return Served(
        name=checkpoint.label,
        config=checkpoint.config,
        declaration=checkpoint.declaration,
        structure=checkpoint.structure,
        linears=linears,
        modules=modules,
        fused_groups=find_merged_groups(modules, checkpoint.family),
        tied=tied_heads(checkpoint.config, modules),
        ignored=checkpoint.declaration.ignore,
        ignored_at=checkpoint.form.config,
    )


def _linears(checkpoint: Checkpoint) -> Iterator[Linear]:
    assert checkpoint.declaration is not None
    form = FORMATS[checkpoint.declaration.quant_method]
    for module, tensors in checkpoint.modules.items():
        scheme = checkpoint.schemes.get(module)
        weight = tensors.get("weight") if scheme is None else form.weight_of(scheme, tensors)
        if weight is not None and FUSED_WEIGHT not in tensors:
            yield Linear(module, weight, scheme, "config.json ignores it, or targets it by nothing")
