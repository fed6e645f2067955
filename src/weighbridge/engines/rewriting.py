"""Stored weights in another format: compressed-tensors' converter over rows of a module, and its inverse.

Reading modelopt's NVFP4 is upstream's own `ModelOptNvfp4Converter`; writing modelopt's format is the inverse of it,
which upstream does not have. Codes that become floats are decoded, see `weighbridge.numbers.decoding`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from weighbridge.formats import modelopt
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import Tensor

if TYPE_CHECKING:
    import torch

MODULE = "module"
"""What converters, which work on names, are told that the module is called."""


class Stored(NamedTuple):
    """A stored tensor: what it is, and its bytes."""

    tensor: Tensor
    content: memoryview | bytes


@dataclass(frozen=True)
class Rewritten:
    """What a module's stored tensors became.

    Attributes:
        contents: local name -> bytes.
        inexact: local names of global scales whose reciprocal is not what was stored: no F32 has that reciprocal.
    """

    contents: Mapping[str, memoryview | bytes]
    inexact: tuple[str, ...] = field(default=())


class UnusableScale(ValueError):
    """A global scale that is zero, negative, infinite or NaN."""

    remedy = "a server would answer with NaN; take another build, or calibrate this one anew"

    def __init__(self, local: str, value: float) -> None:
        self.local = local
        super().__init__(f"the scale is {value}, where only finite and positive values have a meaning")


@dataclass(frozen=True, slots=True)
class Rewrite:
    """How a module that is stored quantized changes.

    Attributes:
        scheme: what it is quantized with.
        source_format: how it is stored: ``compressed-tensors`` or ``modelopt``.
        target_format: how it is to be stored.
    """

    scheme: Scheme
    source_format: str
    target_format: str


def rewritten(change: Rewrite, stored: Mapping[str, Stored]) -> Rewritten:
    """Rewrite rows of a module: the same codes and block scales in another format.

    Args:
        stored: local name -> rows of what the source stores, and scales of the whole module.

    Raises:
        UnusableScale: a global scale without a reciprocal.
    """
    if change.target_format == change.source_format:
        return Rewritten({local: item.content for local, item in stored.items()})
    tensors = {local: _tensor(item) for local, item in stored.items()}
    if change.scheme.weights.num_bits == 8:
        tensors = _reshaped(change, tensors)
    elif change.target_format == modelopt.METHOD:
        tensors = _to_modelopt(tensors)
    else:
        tensors = _from_modelopt(tensors)
    contents = {local: _content(tensor) for local, tensor in tensors.items()}
    return Rewritten(contents, tuple(local for local in _RECIPROCALS if _is_inexact(local, tensors, stored)))


_RECIPROCALS: Mapping[str, str] = {
    "weight_scale_2": "weight_global_scale",
    "input_scale": "input_global_scale",
    "weight_global_scale": "weight_scale_2",
    "input_global_scale": "input_scale",
}
"""Global scales: what each is the reciprocal of in the other format."""


def reciprocal(value: float) -> float:
    """The F32 nearest to 1 / `value`, which is what upstream's converter reads `value` back from.

    1 / (1 / x) is not x for one F32 in six; for those no F32 has the reciprocal x, so that no other choice would do.
    """
    return float(np.float32(1) / np.float32(value))


def _is_inexact(local: str, tensors: Mapping[str, torch.Tensor], stored: Mapping[str, Stored]) -> bool:
    source = stored.get(_RECIPROCALS[local])
    if source is None or local not in tensors:
        return False
    return bool(np.float32(1) / np.float32(tensors[local].item()) != np.float32(_tensor(source).item()))


def _reshaped(change: Rewrite, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """FP8 under one scale in the other format: the same codes and scales, which modelopt has as F32 []."""
    if change.target_format == modelopt.METHOD:
        scales = {local: tensors[local].float().reshape(()) for local in ("weight_scale", "input_scale")}
    else:
        scales = {local: tensors[local].reshape(1) for local in ("weight_scale", "input_scale")}
    return {"weight": tensors["weight"], **scales}


def _from_modelopt(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """compressed-tensors' form of modelopt's NVFP4, by upstream's converter; its global scales are F32 [1]."""
    from compressed_tensors.entrypoints.convert import ModelOptNvfp4Converter

    for local in ("weight_scale_2", "input_scale"):
        _check_scale(local, tensors)
    converter = ModelOptNvfp4Converter(targets=[MODULE])
    converted = _processed(converter, tensors)
    return {local: tensor.reshape(1) if not tensor.shape else tensor for local, tensor in converted.items()}


def _to_modelopt(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """modelopt's form of compressed-tensors' NVFP4: the same codes and block scales, and reciprocals as F32 []."""
    import torch

    for local in ("weight_global_scale", "input_global_scale"):
        _check_scale(local, tensors)
    return {
        "weight": tensors["weight_packed"],
        "weight_scale": tensors["weight_scale"],
        "weight_scale_2": torch.tensor(reciprocal(tensors["weight_global_scale"].item()), dtype=torch.float32),
        "input_scale": torch.tensor(reciprocal(tensors["input_global_scale"].item()), dtype=torch.float32),
    }


def _processed(converter: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = {f"{MODULE}.{local}": tensor for local, tensor in tensors.items()}
    return {name.removeprefix(f"{MODULE}."): tensor for name, tensor in converter.process(named).items()}


def _check_scale(local: str, tensors: Mapping[str, torch.Tensor]) -> None:
    value = float(tensors[local].item())
    if not (math.isfinite(value) and value > 0):
        raise UnusableScale(local, value)


def _tensor(item: Stored) -> torch.Tensor:
    import torch

    dtype = getattr(torch, _TORCH[item.tensor.dtype])
    # A copy: torch would have bytes that nobody may write to.
    return torch.frombuffer(bytearray(item.content), dtype=torch.uint8).view(dtype).reshape(item.tensor.shape)


def _content(tensor: torch.Tensor) -> bytes:
    import torch

    content: bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return content


_TORCH: Mapping[str, str] = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
}
"""safetensors' names of dtypes -> torch's."""
