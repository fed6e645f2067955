"""How much memory a calibration by layer takes, and how much of it is left for Hessians."""

from __future__ import annotations

from typing import Any

from weighbridge.engines.layerwise.hessians import experts_of, hessian_bytes
from weighbridge.engines.layerwise.skeleton import Skeleton, bytes_of
from weighbridge.engines.oneshot.calibrate import Given
from weighbridge.errors import Argument, WeighbridgeError
from weighbridge.machine.resources import resident

COPIES = 2
"""Of a layer's weights, while its experts are taken apart and when it is written down."""
USUAL_ROOM = 1 << 31
"""Bytes of Hessians at a time, where nobody set a limit."""
SCORE_COPIES = 3
"""Of the scores of attention, each query by each key, F32: as they are, with the mask, as probabilities."""
ROW_COPIES = 12
"""Of what passes through a layer, F32, as wide as the model."""


def room_for_hessians(skeleton: Skeleton, given: Given, limit: int | None) -> int:
    """Bytes of Hessians that may be held at a time.

    Args:
        limit: bytes of resident memory of this process, or None.

    Raises:
        WeighbridgeError: the limit is too small; with the smallest that would do.
    """
    layers = _layers(skeleton.model)
    largest = COPIES * max((bytes_of(layer) for _, layer in layers), default=0)
    least = 0
    if "GPTQModifier" in given.modifiers.names:
        least = max((_least_hessians(skeleton, name, layer) for name, layer in layers), default=0)
    if limit is None:
        return max(USUAL_ROOM, least)
    taken = resident() + largest + _activations(skeleton.model, given)
    if limit - taken < least:
        raise WeighbridgeError(
            f"{limit:,} bytes of memory are too little to calibrate with: this process holds {resident():,}, the "
            f"largest layer and what passes through it take {taken - resident():,}, Hessians {least:,} at least",
            where=Argument("memory"),
            remedy=f"allow {taken + least:,} bytes or more",
        )
    return limit - taken


def _layers(model: Any) -> list[tuple[str, Any]]:
    from compressed_tensors.utils.match import match_named_modules
    from llmcompressor.utils.pytorch.module import infer_sequential_targets

    return list(match_named_modules(model, infer_sequential_targets(model)))


def _least_hessians(skeleton: Skeleton, name: str, layer: Any) -> int:
    """Of everything in a layer that is no expert, and of one expert."""
    import torch

    linears = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    experts = experts_of(skeleton, [name], linears)
    apart = {module for expert in experts for module in expert}
    rest = sum(hessian_bytes(module) for module in linears if module not in apart)
    return rest + max((sum(map(hessian_bytes, expert)) for expert in experts), default=0)


def _activations(model: Any, given: Given) -> int:
    """What one batch takes on its way through a layer, as `SCORE_COPIES` and `ROW_COPIES` say."""
    if given.samples is None or given.calibration is None:
        return 0
    config = model.config.get_text_config(decoder=True)
    batches = given.samples.batches(given.calibration.batch_size)
    count, length = max(((len(batch), len(batch[0])) for batch in batches), key=lambda shape: shape[0] * shape[1] ** 2)
    scores = SCORE_COPIES * count * int(config.num_attention_heads) * length**2
    return 4 * (scores + ROW_COPIES * count * length * int(config.hidden_size))
