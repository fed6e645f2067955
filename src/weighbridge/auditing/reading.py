"""Rows of a region as arrays: what is stored of them, or what their codes mean."""

from __future__ import annotations

from typing import Any

import numpy as np

from weighbridge.auditing.decoding import decoded
from weighbridge.auditing.grid import Array
from weighbridge.auditing.pieces import Spans
from weighbridge.work.reading import Buffers, Bytes, Reader, read_stored
from weighbridge.work.regions import Region

ARRAYS: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "I8": np.dtype(np.int8),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
"""safetensors' dtype -> numpy's; what is not here comes as bytes."""

_buffers = Buffers()


def fill(reader: Reader, region: Region, target: memoryview) -> None:
    """Fill `target` with what a region holds, in the order of its rows.

    Raises:
        StructureError, HubError: it cannot be read.
    """
    if region.coded is None:
        read_stored(reader, region, target)
        return
    bits = decoded(region.coded, region.tensor.shape[0], lambda other: read_whole(reader, other))
    target[:] = memoryview(np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data)


def read(reader: Reader, region: Region, spans: Spans, purpose: str) -> Array:
    """Rows of a matrix in this thread's buffer for `purpose`, valid until the thread reads for it again.

    Args:
        spans: first row and number of rows of each run; what is read stands one after the other.

    Returns:
        [rows, columns] of the dtype's own array (FP8 as uint8).
    """
    rows = sum(count for _, count in spans)
    return _read_rows(reader, region, spans, _buffers.of(purpose, region.rows(0, rows).tensor.nbytes))


def read_whole(reader: Reader, region: Region) -> Array:
    """All rows of a region, as `read` gives them, in memory of their own."""
    return _read_rows(reader, region, ((0, region.tensor.shape[0]),), np.empty(region.tensor.nbytes, np.uint8))


def _read_rows(reader: Reader, region: Region, spans: Spans, buffer: Bytes) -> Array:
    position = 0
    for first, count in spans:
        rows = region.rows(first, count)
        size = rows.tensor.nbytes
        fill(reader, rows, memoryview(buffer.data)[position : position + size])
        position += size
    array = buffer.view(ARRAYS.get(region.tensor.dtype, np.dtype(np.uint8)))
    columns = region.tensor.shape[-1]
    return array.reshape(len(array) // columns if columns else sum(count for _, count in spans), columns)
