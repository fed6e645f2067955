"""A file is laid out byte for byte as safetensors itself would write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from tests.strategies import structures
from weighbridge.checkpoint.layout import Layout, lay_out
from weighbridge.formats.tensors import DTYPE_BITS, Structure, Tensor, payload_bytes

TORCH_DTYPES = {
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F32": "float32",
    "U32": "uint32",
    "I32": "int32",
    "BF16": "bfloat16",
    "F16": "float16",
    "U16": "uint16",
    "I16": "int16",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""safetensors' name of each dtype that both it and torch hold one element of, and torch's."""

UNWRITABLE = {"F6_E3M2", "F6_E2M3"}
"""Dtypes that safetensors 0.8 reads, but cannot be asked for in Python."""


def data_of(name: str, tensor: Tensor) -> bytes:
    """Bytes that differ from tensor to tensor; only 0 and 1, so that they are booleans too."""
    bits = np.unpackbits(np.frombuffer(name.encode(), dtype=np.uint8))
    return bytes(np.resize(bits, tensor.nbytes).tobytes())


def file_of(structure: Structure, laid_out: Layout) -> bytes:
    return laid_out.head + b"".join(data_of(name, structure[name]) for name in laid_out.ranges)


@given(structures(dtypes=tuple(TORCH_DTYPES)))
@settings(deadline=None)
def test_file_is_the_one_that_safetensors_writes_for_torch(structure: Structure) -> None:
    import safetensors.torch
    import torch

    tensors = {}
    for name, tensor in structure.items():
        dtype = getattr(torch, TORCH_DTYPES[tensor.dtype])
        empty = torch.empty(tensor.shape, dtype=dtype)
        data = bytearray(data_of(name, tensor))
        tensors[name] = torch.frombuffer(data, dtype=dtype).reshape(tensor.shape) if data else empty
    assert file_of(structure, lay_out(structure)) == safetensors.torch.save(tensors, metadata={"format": "pt"})


def test_saved_file_is_the_one_that_is_laid_out(tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    structure = {"b": Tensor("BF16", (3, 2)), "a": Tensor("F8_E4M3", (5,)), "c": Tensor("F32", (1,))}
    tensors = {
        name: torch.zeros(tensor.shape).to(getattr(torch, TORCH_DTYPES[tensor.dtype]))
        for name, tensor in structure.items()
    }
    safetensors.torch.save_file(tensors, tmp_path / "shard", metadata={"format": "pt"})
    laid_out = lay_out(structure)
    assert (tmp_path / "shard").read_bytes() == laid_out.head + bytes(payload_bytes(structure))


def test_order_of_all_dtypes_is_that_of_the_serializer() -> None:
    from safetensors import TensorSpec, serialize

    # Named so that the order by name is the reverse of the table's.
    dtypes = [dtype for dtype in DTYPE_BITS if dtype not in UNWRITABLE]
    structure = {f"t{99 - position}": Tensor(dtype, (8,)) for position, dtype in enumerate(dtypes)}
    data = np.zeros(64, dtype=np.uint8)
    # Four bits go two to a byte; safetensors takes the number of bytes for the last axis and doubles it.
    specs = {
        name: TensorSpec(
            dtype="float4_e2m1fn_x2" if tensor.dtype == "F4" else TORCH_DTYPES[tensor.dtype],
            shape=[4] if tensor.dtype == "F4" else [8],
            data_ptr=data.ctypes.data,
            data_len=tensor.nbytes,
        )
        for name, tensor in structure.items()
    }
    laid_out = lay_out(structure)
    assert serialize(specs, metadata={"format": "pt"}) == laid_out.head + bytes(payload_bytes(structure))


@pytest.mark.parametrize("length", range(8))
def test_tensors_begin_at_a_multiple_of_eight_bytes(length: int) -> None:
    assert len(lay_out({"w" * (length + 1): Tensor("U8", (1,))}).head) % 8 == 0


def test_size_of_a_file_counts_its_header_and_all_its_tensors() -> None:
    laid_out = lay_out({"a": Tensor("BF16", (3,)), "b": Tensor("F32", (2,))})
    assert laid_out.file_size == len(laid_out.head) + 6 + 8


def test_file_without_tensors_is_its_header() -> None:
    laid_out = lay_out({})
    assert (laid_out.file_size, laid_out.ranges) == (len(laid_out.head), {})
