"""Hessians of GPTQ, some at a time: those of a layer's experts may be many times the layer itself.

What goes into an expert does not depend on another expert of its layer. So the samples pass through the layer once for
each block of experts, which is rounded before the next one's Hessians are gathered; whatever is no expert is gathered
first and rounded last, as it feeds them. The numbers are those of one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from weighbridge.engines.layerwise.skeleton import Skeleton

FLOAT = 4
"""Bytes of a number in a Hessian."""

Experts = list[Any]
"""Modules of one expert that are rounded."""


def hessian_bytes(module: Any) -> int:
    """Bytes of the Hessian of a linear module: F32, inputs by inputs."""
    return FLOAT * int(module.weight.shape[1]) ** 2


def experts_of(skeleton: Skeleton, names: Sequence[str], rounded: Sequence[Any]) -> list[Experts]:
    """Of the experts inside some modules, what is among those that are rounded."""
    from llmcompressor.modeling.moe.linear_experts import ExpertMLP

    wanted = set(rounded)
    found = []
    for name in names:
        for _, part in skeleton.modules(name):
            if isinstance(part, ExpertMLP):
                found.append([module for module in part.modules() if module in wanted])
    return [expert for expert in found if expert]


def blocks(experts: Sequence[Experts], room: int) -> list[Experts]:
    """Experts in blocks whose Hessians take at most `room` bytes, or one."""
    found: list[Experts] = []
    left = 0
    for expert in experts:
        size = sum(map(hessian_bytes, expert))
        if not found or size > left:
            found.append([])
            left = room
        found[-1] += expert
        left -= size
    return found


@contextmanager
def gathered_in_turn(turn: set[Any]) -> Iterator[None]:
    """Let GPTQ gather Hessians of the modules in `turn` alone, which may change, until the block ends."""
    from compressed_tensors.utils import patch_attr
    from llmcompressor.modifiers.gptq import GPTQModifier

    gather: Callable[..., None] = GPTQModifier.calibrate_module

    def gather_in_turn(modifier: Any, module: Any, args: Any, output: Any) -> None:
        if module in turn:
            gather(modifier, module, args, output)

    with patch_attr(GPTQModifier, "calibrate_module", gather_in_turn):
        yield


@contextmanager
def only_hessians(modifier: Any, skeleton: Skeleton, names: Sequence[str], block: Experts) -> Iterator[None]:
    """A pass that gathers Hessians alone: nothing else is observed again, and other experts compute nothing."""
    import torch
    from llmcompressor.modeling.moe.linear_experts import ExpertMLP
    from llmcompressor.modifiers.utils.hooks import HooksMixin

    wanted = set(block)
    idle = [
        part
        for name in names
        for _, part in skeleton.modules(name)
        if isinstance(part, ExpertMLP) and wanted.isdisjoint(part.modules())
    ]
    for expert in idle:
        expert.forward = torch.zeros_like
    try:
        with HooksMixin.disable_hooks(keep=modifier._hooks - modifier._calibration_hooks):
            yield
    finally:
        for expert in idle:
            del expert.forward


def round_block(modifier: Any, block: Experts) -> None:
    """Round a block of experts, as GPTQ does at the end of a layer."""
    from llmcompressor.modifiers.quantization.calibration import observe

    observe(block, base_name="weight")
    modifier.compress_module_list([module for module in list(modifier._num_samples) if module in set(block)])
