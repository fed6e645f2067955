"""What a loader left unfilled: parameters are filled with a pattern before, and searched for it afterwards.

Floats are filled with all bits set, which is NaN in every dtype, and no weight of a checkpoint that was judged; so an
element that shows it was not filled. Codes can have any value: they are filled with a random block that repeats, and
an aligned block of it that is still there was not filled, but for a chance of 2^-128 for each.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from weighbridge.extras.serving.inside.vllm_client.loading import (
    LARGEST_RESTORED,
    bits_of,
    is_harmless,
    stored_tensors,
)

BLOCK = 16
"""Bytes of the block that fills codes."""


@dataclass(frozen=True)
class Filled:
    """Parameters that show a pattern.

    Attributes:
        block: what fills codes, int64 [2].
        initial: what small tensors held before: scales and their like, which may stay unfilled harmlessly.
    """

    block: torch.Tensor
    initial: Mapping[str, torch.Tensor]


def fill(model: torch.nn.Module) -> Filled:
    """Fill every parameter and stored buffer of a model."""
    block = torch.frombuffer(bytearray(secrets.token_bytes(BLOCK)), dtype=torch.int64)
    tensors = stored_tensors(model)
    initial = {name: tensor.clone() for name, tensor in tensors.items() if tensor.numel() <= LARGEST_RESTORED}
    for tensor in tensors.values():
        content = _bytes(tensor)
        if tensor.is_floating_point():
            content.fill_(0xFF)
        else:
            own = block.to(tensor.device).view(torch.uint8)
            whole = len(content) // BLOCK * BLOCK
            content[:whole].view(-1, BLOCK).copy_(own.expand(whole // BLOCK, BLOCK))
            content[whole:].copy_(own[: len(content) - whole])
    return Filled(block, initial)


def unfilled(model: torch.nn.Module, filled: Filled) -> dict[str, int]:
    """Bytes of each parameter that still show the pattern; small tensors get there what they held before."""
    found = {}
    for name, tensor in stored_tensors(model).items():
        held = bits_of(tensor).reshape(-1) if tensor.is_floating_point() else _bytes(tensor)
        untouched = held == -1 if tensor.is_floating_point() else _untouched(held, filled.block.to(tensor.device))
        if untouched.any():
            found[name] = int(untouched.sum()) * held.element_size()
            if name in filled.initial:
                held[untouched] = filled.initial[name].reshape(-1).view(held.dtype)[untouched]
    return found


def _untouched(content: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Which bytes of a tensor of codes show the block.

    Args:
        content: the tensor's bytes.
    """
    own = block.view(torch.uint8)
    whole = len(content) // BLOCK * BLOCK
    blocks = (content[:whole].view(-1, BLOCK) == own).all(1)
    rest = content[whole:]
    # The end of a tensor tells little by itself: it counts where all before it is untouched.
    alike = bool(len(rest)) and bool(blocks.all()) and bool((rest == own[: len(rest)]).all())
    return torch.cat((blocks[:, None].expand(-1, BLOCK).reshape(-1), torch.full_like(rest, alike, dtype=torch.bool)))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as bytes, uint8 [bytes]."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def sentence(found: Mapping[str, int], *, shown: int = 3) -> str:
    """Which parameters were not filled, in a clause."""
    named = ", ".join(sorted(found)[:shown])
    more = f" and {len(found) - shown:,} more" if len(found) > shown else ""
    return f"{named}{more}"


def harmful(found: Mapping[str, int], patterns: Collection[str]) -> dict[str, int]:
    """Those of the unfilled that must not be."""
    return {name: count for name, count in found.items() if not is_harmless(name, list(patterns))}
