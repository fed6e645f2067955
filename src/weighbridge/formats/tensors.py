"""What a safetensors header says of a tensor: dtype and shape, and where its bytes lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

DTYPE_BITS: Mapping[str, int] = {
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
    "F32": 32,
    "U32": 32,
    "I32": 32,
    "BF16": 16,
    "F16": 16,
    "U16": 16,
    "I16": 16,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I8": 8,
    "U8": 8,
    "F6_E3M2": 6,
    "F6_E2M3": 6,
    "F4": 4,
    "BOOL": 8,
}
"""Bits of one element of each dtype that safetensors 0.8 defines, in the order in which its serializer sorts a file.
Source: ``Dtype`` in safetensors/src/tensor.rs."""

SERIALIZER_ORDER: Mapping[str, int] = {dtype: position for position, dtype in enumerate(DTYPE_BITS)}
"""Position of each dtype in a file that safetensors wrote."""

FLOATING_SOURCES = frozenset({"BF16", "F16", "F32"})
"""The dtypes in which an unquantized checkpoint keeps its weights."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a structure knows it.

    Attributes:
        dtype: safetensors' name of the element type, e.g. ``BF16``.
        shape: elements along each axis; ``()`` is a scalar.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of payload. Sub-byte dtypes are packed; a whole number of bytes is checked by the header reader."""
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class StoredTensor(NamedTuple):
    """A tensor and the place of its bytes, counted from the end of the header of the shard that holds it."""

    tensor: Tensor
    begin: int
    end: int


Structure = Mapping[str, Tensor]
"""Tensor name -> dtype and shape: everything a checkpoint's headers say, and nothing of its data."""


def payload_bytes(structure: Structure) -> int:
    """Bytes of all tensors of a structure, headers not counted."""
    return sum(tensor.nbytes for tensor in structure.values())
