"""What a calibration by layer takes of a machine, computed from headers, config.json and recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from weighbridge.families import Role
from weighbridge.planning.model import Part, Plan
from weighbridge.text.names import expert_of, layer_of

FLOAT = 4
"""Bytes of a number in a Hessian, and of one on its way through a layer."""
HELD = 600 << 20
"""Bytes that Python, torch, transformers and llm-compressor hold by themselves, as measured."""
COPIES = 2
"""Of a layer's weights: while its experts are taken apart, and when it is written down."""
SCORE_COPIES = 3
"""Of the scores of attention, each query by each key: as they are, with the mask, as probabilities."""
ROW_COPIES = 12
"""Of what passes through a layer, as wide as the model."""
HALF = 2
"""Bytes of a number that passes between layers: BF16 or F16."""
BOUNDARIES = 3
"""Rows as wide as the model on disk at a time, a token: into a layer, out of it, and its place and number, derived."""
MASKS = 2
"""Of attention, on disk for each batch: one for each kind of layer, of which most models have one or two."""
KEPT_ROWS = 6
"""Rows as wide as the model that AWQ holds of a layer, a token: into three modules, and out of one three times."""


@dataclass(frozen=True)
class Needs:
    """Bytes that a calibration takes at least, beside what Python, torch and llm-compressor hold themselves.

    Attributes:
        layer: the weights of the largest layer.
        hessians: of GPTQ: of all in a layer but its experts, and of one expert; 0 for other methods.
        batch: what one batch takes on its way through a layer.
        kept: of AWQ, which holds what all batches are inside a layer; 0 for other methods.
        disk: what passes between the layers, and what each modifier but the last leaves of the model.
    """

    layer: int
    hessians: int
    batch: int
    kept: int
    disk: int

    @property
    def memory(self) -> int:
        return COPIES * self.layer + self.hessians + self.batch + self.kept


def calibration_needs(plan: Plan) -> Needs:
    """What it takes to make what a recipe of method ``oneshot`` plans."""
    layers: dict[int, list[Part]] = {}
    for part in plan.parts:
        number = layer_of(part.module)
        if number is not None and plan.source.family.role_of(part.module) not in (Role.VISION, Role.AUDIO):
            layers.setdefault(number, []).append(part)
    recipe = plan.loaded.recipe
    names = {modifier.name for modifier in recipe.modifiers}
    left = (len(names | recipe.quantizing.keys()) - 1) * sum(part.weight.nbytes for part in plan.parts)
    weights = max((sum(part.weight.nbytes for part in parts) for parts in layers.values()), default=0)
    hessians = max((_least_hessians(parts) for parts in layers.values()), default=0) if "GPTQModifier" in names else 0
    calibration = recipe.calibration if recipe.needing_data else None
    if calibration is None:
        return Needs(weights, hessians, 0, 0, left)
    config = plan.source.config.get("text_config")
    config = config if isinstance(config, dict) else plan.source.config
    heads, width = (_count(config.get(key)) for key in ("num_attention_heads", "hidden_size"))
    length, samples = calibration.sequence_length, calibration.samples
    together = min(calibration.batch_size, samples)
    batch = FLOAT * together * length * (SCORE_COPIES * heads * length + ROW_COPIES * width)
    tokens = samples * length
    kept = 0
    if "AWQModifier" in names:
        chosen = 1.0 if calibration.experts == "all" else _chosen(config)
        inside = max((_inside(parts, width, chosen) for parts in layers.values()), default=0)
        kept = HALF * tokens * (KEPT_ROWS * width + inside + length)
    return Needs(weights, hessians, batch, kept, left + HALF * tokens * (BOUNDARIES * width + MASKS * length))


def _inside(parts: Iterable[Part], width: int, chosen: float) -> int:
    """Numbers a token that go into modules of a layer which do not read rows as wide as the model, at most.

    Args:
        chosen: the share of a layer's experts that sees a token.
    """
    widths = (
        part.weight.shape[1] * (1.0 if expert_of(part.module) is None else chosen)
        for part in parts
        if part.scheme is not None and len(part.weight.shape) == 2 and part.weight.shape[1] != width
    )
    return round(sum(widths))


def _chosen(config: Mapping[str, object]) -> float:
    """The share of a layer's experts that a token is sent to; all where config.json does not say."""
    keys = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = max(_count(config.get(key)) for key in keys)
    sent = _count(config.get("num_experts_per_tok"))
    return min(sent / experts, 1.0) if sent and experts else 1.0


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
