"""Reading the bytes of regions from a checkpoint on disk, into buffers that are used again and again."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from weighbridge.audit.pairing import Region
from weighbridge.engines.kernels.encoding import SOURCES
from weighbridge.errors import StructureError
from weighbridge.structure.checkpoint import Checkpoint

Bytes = npt.NDArray[np.uint8]

ARRAYS: dict[str, np.dtype[Any]] = {
    **{dtype: source.array for dtype, source in SOURCES.items()},
    "I8": np.dtype(np.int8),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
"""safetensors' dtype -> numpy's; what is not here comes as bytes."""


class Reader(Protocol):
    """Reads one checkpoint, from several threads at once."""

    def read(self, file: str, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes of a shard from `offset` on.

        Raises:
            StructureError, HubError: they cannot be read.
        """


class DirectoryReader:
    """A checkpoint on disk; each shard is opened once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.directory is not None
        self._directory: Path = checkpoint.directory
        self._label = checkpoint.label
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}

    def read(self, file: str, offset: int, target: memoryview) -> None:
        """See `Reader`."""
        count = 0
        try:
            descriptor = self._descriptor(file)
            while count < len(target) and (more := os.preadv(descriptor, [target[count:]], offset + count)):
                count += more
        except OSError as error:
            raise StructureError(f"cannot be read ({error.strerror})", where=f"{self._label}/{file}") from error
        if count < len(target):
            raise StructureError("has become shorter while it was read", where=f"{self._label}/{file}")

    def _descriptor(self, file: str) -> int:
        with self._lock:
            if file not in self._open:
                self._open[file] = os.open(self._directory / file, os.O_RDONLY | os.O_CLOEXEC)
            return self._open[file]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


class Buffers(threading.local):
    """Buffers of a thread, by purpose: asking for megabytes anew for every strip costs more than looking at them."""

    def __init__(self) -> None:
        self.buffers: dict[str, Bytes] = {}

    def of(self, purpose: str, size: int) -> Bytes:
        """A buffer of `size` bytes, valid until the thread asks for the same purpose again."""
        buffer = self.buffers.get(purpose)
        if buffer is None or len(buffer) < size:
            buffer = self.buffers[purpose] = np.empty(size, np.uint8)
        return buffer[:size]


def read_rows(
    reader: Reader, region: Region, spans: Sequence[tuple[int, int]], buffer: Bytes
) -> npt.NDArray[np.generic]:
    """Rows of a matrix, or all of a tensor of another shape.

    Args:
        spans: first row and number of rows of each run; what is read stands one after the other.
        buffer: where the bytes go; of exactly their size.

    Returns:
        A view of `buffer`, [rows, columns] of the dtype's own array (FP8 as uint8).
    """
    position = 0
    columns = region.tensor.shape[-1] if region.tensor.shape else 1
    for first, count in spans:
        rows = region.rows(first, count)
        size = rows.tensor.nbytes
        reader.read(rows.file, rows.offset, memoryview(buffer.data)[position : position + size])
        position += size
    array = buffer.view(ARRAYS.get(region.tensor.dtype, np.dtype(np.uint8)))
    return array.reshape(-1, columns)
