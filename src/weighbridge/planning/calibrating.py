"""What a calibration by layer takes of a machine, computed from headers, config.json and recipe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from weighbridge.families import Role
from weighbridge.planning.model import Part, Plan
from weighbridge.text.names import expert_of, layer_of

FLOAT = 4
"""Bytes of a number in a Hessian, and of one on its way through a layer."""
COPIES = 2
"""Of a layer's weights: while its experts are taken apart, and when it is written down."""
SCORE_COPIES = 3
"""Of the scores of attention, each query by each key: as they are, with the mask, as probabilities."""
ROW_COPIES = 12
"""Of what passes through a layer, as wide as the model."""
BOUNDARIES = 2
"""Of what passes between layers, what goes into the one and what comes out of it are on disk at a time."""


@dataclass(frozen=True)
class Needs:
    """Bytes that a calibration takes at least, beside what Python, torch and llm-compressor hold themselves.

    Attributes:
        layer: the weights of the largest layer.
        hessians: of GPTQ: of all in a layer but its experts, and of one expert; 0 for other methods.
        batch: what one batch takes on its way through a layer.
        disk: what passes between the layers, beside what is written of the model.
    """

    layer: int
    hessians: int
    batch: int
    disk: int

    @property
    def memory(self) -> int:
        return COPIES * self.layer + self.hessians + self.batch


def calibration_needs(plan: Plan) -> Needs:
    """What it takes to make what a recipe of method ``oneshot`` plans."""
    layers: dict[int, list[Part]] = {}
    for part in plan.parts:
        number = layer_of(part.module)
        if number is not None and plan.source.family.role_of(part.module) not in (Role.VISION, Role.AUDIO):
            layers.setdefault(number, []).append(part)
    gptq = any(modifier.name == "GPTQModifier" for modifier in plan.loaded.recipe.modifiers)
    weights = max((sum(part.weight.nbytes for part in parts) for parts in layers.values()), default=0)
    hessians = max((_least_hessians(parts) for parts in layers.values()), default=0) if gptq else 0
    calibration = plan.loaded.recipe.calibration if plan.loaded.recipe.needing_data else None
    if calibration is None:
        return Needs(weights, hessians, 0, 0)
    config = plan.source.config.get("text_config")
    config = config if isinstance(config, dict) else plan.source.config
    heads, width = (_count(config.get(key)) for key in ("num_attention_heads", "hidden_size"))
    length, samples = calibration.sequence_length, calibration.samples
    together = min(calibration.batch_size, samples)
    batch = FLOAT * together * length * (SCORE_COPIES * heads * length + ROW_COPIES * width)
    return Needs(weights, hessians, batch, BOUNDARIES * FLOAT // 2 * samples * length * width)


def _least_hessians(parts: Iterable[Part]) -> int:
    """Of everything in a layer that is quantized and no expert, and of one expert."""
    rest, experts = 0, dict[str, int]()
    for part in parts:
        if part.scheme is None or len(part.weight.shape) != 2:
            continue
        size = FLOAT * part.weight.shape[1] ** 2
        found = expert_of(part.module)
        if found is None:
            rest += size
        else:
            expert = part.module.removesuffix(found[1])
            experts[expert] = experts.get(expert, 0) + size
    return rest + max(experts.values(), default=0)


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
