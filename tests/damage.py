"""Checkpoints damaged as servers do not notice, and by what finding of the serving check each is known."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.checkpoints import RawTensor, Tensors, copy_checkpoint, edit_tensors

LAYER = "model.language_model.layers.1"
EXPERT = f"{LAYER}.experts.3"


@dataclass(frozen=True)
class Damage:
    """A way to spoil a build of the miniature.

    Attributes:
        recipe: of the build that it is done to.
        change: what is done to its tensors.
        rule: what the serving check says of it.
        where: and of which tensor or module.
    """

    recipe: str
    change: Callable[[Tensors], object]
    rule: str
    where: str


def damaged(build: Path, target: Path, damage: Damage) -> Path:
    """A damaged copy of a build."""
    copy_checkpoint(build, target)
    edit_tensors(target, damage.change)
    return target


def _without(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def _extra_expert(tensors: Tensors) -> None:
    """One expert more than the config has, in full."""
    number = 1 + max(int(name.split(".experts.")[1].split(".")[0]) for name in tensors if ".experts." in name)
    for name in [name for name in tensors if name.startswith(f"{EXPERT}.")]:
        tensors[name.replace(EXPERT, f"{LAYER}.experts.{number}")] = tensors[name]


def _nan_scale(tensors: Tensors) -> None:
    name = f"{EXPERT}.up_proj.weight_scale"
    tensors[name] = replace(tensors[name], data=b"\xc0\x7f" + tensors[name].data[2:])


def _split_group(tensors: Tensors) -> None:
    """gate and up of one expert with global scales of their own: what llm-compressor writes without fused groups."""
    name = f"{EXPERT}.up_proj.weight_global_scale"
    (value,) = struct.unpack("<f", tensors[name].data)
    tensors[name] = replace(tensors[name], data=struct.pack("<f", value * 1.5))


def _quantized_router(tensors: Tensors) -> None:
    """A router in eight bits with a scale per row; what the numbers are does not matter to a loader."""
    name = f"{LAYER}.router.proj.weight"
    rows, columns = tensors[name].shape
    tensors[name] = RawTensor("F8_E4M3", (rows, columns), bytes([0x38]) * (rows * columns))
    tensors[f"{LAYER}.router.proj.weight_scale"] = RawTensor("BF16", (rows, 1), b"\x80\x3f" * rows)


DAMAGES = {
    "missing-expert-weight": Damage(
        "fp8-dynamic", _without(f"{EXPERT}.up_proj.weight"), "serve/missing", f"{EXPERT}.up_proj.weight"
    ),
    "missing-expert-scale": Damage(
        "fp8-dynamic", _without(f"{EXPERT}.down_proj.weight_scale"), "serve/missing", f"{EXPERT}.down_proj.weight_scale"
    ),
    "missing-q-proj-scale": Damage(
        "fp8-dynamic",
        _without(f"{LAYER}.self_attn.q_proj.weight_scale"),
        "serve/missing",
        f"{LAYER}.self_attn.q_proj.weight_scale",
    ),
    "extra-expert": Damage("fp8-dynamic", _extra_expert, "serve/not-used", f"{LAYER}.experts.8.gate_proj.weight"),
    "missing-layer-scalar": Damage(
        "fp8-dynamic", _without(f"{LAYER}.layer_scalar"), "serve/missing", f"{LAYER}.layer_scalar"
    ),
    "nan-scale": Damage("fp8-dynamic", _nan_scale, "serve/not-finite", f"{EXPERT}.up_proj.weight_scale"),
    "split-group": Damage("nvfp4a16", _split_group, "serve/split-group", EXPERT),
    "quantized-router": Damage("fp8-dynamic", _quantized_router, "serve/quantized-router", f"{LAYER}.router.proj"),
}
"""Each kind that issue 7 of the project names; all but the last load into vLLM 0.32.0 without an error."""
