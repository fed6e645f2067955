"""Reading the bytes of regions from a checkpoint on disk or on the hub, into buffers that are used again and again."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from weighbridge.checkpoint.header import Header
from weighbridge.checkpoint.hub import read_bytes, snapshot_of
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.errors import StructureError
from weighbridge.formats.tensors import DTYPE_BITS, Tensor
from weighbridge.machine.columns import Columns, gather
from weighbridge.machine.standing import Standing, check_same, explained
from weighbridge.work.pieces import PIECE_BYTES
from weighbridge.work.regions import Region

Bytes = npt.NDArray[np.uint8]


class Reader(Protocol):
    """Reads one checkpoint, from several threads at once."""

    def read(self, file: str, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes of a shard from `offset` on.

        Raises:
            StructureError, HubError: they cannot be read.
        """


def reader_of(checkpoint: Checkpoint) -> Reader:
    """What reads a checkpoint where it lies.

    Raises:
        HubError: it lies on the hub, which cannot be reached.
    """
    if checkpoint.directory is None:
        return HubReader(checkpoint)
    standings = {name: header.standing for name, header in checkpoint.shards.items()}
    return DirectoryReader(checkpoint.directory.resolve(), checkpoint.label, standings)


class DirectoryReader:
    """A checkpoint on disk; each shard is opened once. A copy, in another process too, opens them anew.

    Args:
        label: how messages call it.
        standings: the shards as they were when their headers were read.
    """

    def __init__(self, directory: Path, label: str, standings: Mapping[str, Standing | None]) -> None:
        self._directory, self._label, self._standings = directory, label, standings
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return DirectoryReader, (self._directory, self._label, self._standings)

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def read(self, file: str, offset: int, target: memoryview) -> None:
        """See `Reader`."""
        where, count = f"{self._label}/{file}", 0
        with explained(where):
            descriptor = self._descriptor(file, where)
            while count < len(target) and (more := os.preadv(descriptor, [target[count:]], offset + count)):
                count += more
        if count < len(target):
            raise StructureError("has become shorter while it was read", where=where)

    def _descriptor(self, file: str, where: str) -> int:
        with self._lock:
            if file not in self._open:
                descriptor = os.open(self._directory / file, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    check_same(descriptor, self._standings[file], where=where)
                except BaseException:  # so that it is refused to whoever asks next, too
                    os.close(descriptor)
                    raise
                self._open[file] = descriptor
            return self._open[file]


BLOCK_BYTES = 8 * 1024 * 1024
CACHED_BLOCKS = 16
HUB_BYTES = 2 * CACHED_BLOCKS * BLOCK_BYTES
"""What reading one checkpoint from the hub holds at most: blocks that are read, and blocks that wait to be hashed."""


class HubReader:
    """A checkpoint on the hub, read by ranges and not kept: a few blocks in memory, and the digests of whole shards.

    Digests are taken of the blocks in their order as they pass; what nobody asked for is fetched for them alone.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._snapshot = snapshot_of(checkpoint)
        self._sizes = {name: header.data_offset + _payload(header) for name, header in checkpoint.shards.items()}
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._hashes = _BlockHashes(checkpoint.shards)

    def read(self, file: str, offset: int, target: memoryview) -> None:
        """See `Reader`."""
        position = 0
        while position < len(target):
            index, within = divmod(offset + position, BLOCK_BYTES)
            part = self._block(file, index)[within : within + len(target) - position]
            if not part:
                raise StructureError("is shorter than its header says", where=f"{self._snapshot.label}/{file}")
            target[position : position + len(part)] = part
            position += len(part)

    def digest(self, file: str) -> str:
        """SHA-256 (hex) of a whole shard."""
        while (index := self._hashes.next(file)) * BLOCK_BYTES < self._sizes[file]:
            self._hashes.offer(file, index, self._block(file, index))
        return self._hashes.digest(file)

    def _block(self, file: str, index: int) -> bytes:
        key = file, index
        with self._lock:
            future = self._blocks.get(key)
            mine = future is None
            if future is None:
                future = self._blocks[key] = Future()
                while len(self._blocks) > CACHED_BLOCKS:
                    self._blocks.popitem(last=False)
            else:
                self._blocks.move_to_end(key)
        if mine:
            try:
                end = min((index + 1) * BLOCK_BYTES, self._sizes[file])
                content = read_bytes(self._snapshot, file, index * BLOCK_BYTES, end)
            except BaseException as error:
                with self._lock:
                    self._blocks.pop(key, None)
                future.set_exception(error)
                raise
            self._hashes.offer(file, index, content)
            future.set_result(content)
        return future.result()


class _BlockHashes:
    """Digests of files whose blocks come nearly in order. So many that come too early are kept, of all files together;
    more are forgotten, and fetched again once a digest is asked for."""

    def __init__(self, files: Iterable[str]) -> None:
        self._hashed = {file: (hashlib.sha256(), 0) for file in files}
        self._early: dict[tuple[str, int], bytes] = {}
        self._lock = threading.Lock()

    def next(self, file: str) -> int:
        """The first block of a file that is not hashed."""
        return self._hashed[file][1]

    def digest(self, file: str) -> str:
        """SHA-256 (hex) of what is hashed of a file."""
        return self._hashed[file][0].hexdigest()

    def offer(self, file: str, index: int, content: bytes) -> None:
        """Take a block; what was seen before is passed over."""
        with self._lock:
            sha256, following = self._hashed[file]
            if index == following or (index > following and len(self._early) < CACHED_BLOCKS):
                self._early[file, index] = content
            while (early := self._early.pop((file, following), None)) is not None:
                sha256.update(early)
                following += 1
            self._hashed[file] = sha256, following


def _payload(header: Header) -> int:
    return max((stored.end for stored in header.tensors.values()), default=0)


class Buffers(threading.local):
    """Buffers of a thread, by purpose: asking for megabytes anew for every strip costs more than working on them."""

    def __init__(self) -> None:
        self.buffers: dict[str, Bytes] = {}

    def of(self, purpose: str, size: int) -> Bytes:
        """A buffer of `size` bytes, valid until the thread asks for the same purpose again."""
        buffer = self.buffers.get(purpose)
        if buffer is None or len(buffer) < size:
            buffer = self.buffers[purpose] = np.empty(size, np.uint8)
        return buffer[:size]


WINDOW_BYTES = 8 * 1024 * 1024
"""What is read at a time of rows that lie as columns: for a few of them nearly all of the matrix has to be passed."""


def share_of_piece(regions: Collection[Region], weight_bytes: int) -> int:
    """What a strip counts for in a piece: its weight, or of rows that lie as columns what is read ahead at a time."""
    if not any(region.as_columns for region in regions):
        return weight_bytes
    return sum(region.nbytes for region in regions) * PIECE_BYTES // WINDOW_BYTES


def worker_bytes(copies: int, largest: int, regions: Iterable[Region]) -> int:
    """Bytes of memory that a worker takes.

    Args:
        copies: pieces that it holds at most.
        largest: bytes of the largest strip: a row of blocks may be larger than a piece should be.
        regions: what is read; rows that lie as columns are read ahead.
    """
    ahead = WINDOW_BYTES if any(region.as_columns for region in regions) else 0
    return copies * max(PIECE_BYTES, largest) + ahead


WORTH_AHEAD = WINDOW_BYTES // 16
"""Of less than this nothing is read ahead: it is a sample, or the scales beside codes."""


class _Ahead(threading.local):
    """Rows that lie as columns, read ahead by a thread.

    Attributes:
        read: by whom, and of which file; None before anything is.
        columns: which columns they are, from the first that was read on.
        rows: as bytes.
    """

    def __init__(self) -> None:
        self.read: tuple[weakref.ref[Reader], str, int] | None = None  # whose files are closed once nobody reads them
        self.columns = Columns(0, 1, 0)
        self.rows: Bytes = np.empty((0, 0), np.uint8)
        self.buffer: Bytes = np.empty(0, np.uint8)

    def part(self, reader: Reader, region: Region, columns: Columns) -> Bytes | None:
        """The rows of a region, in these columns; None where not all of them are at hand."""
        passed = (columns.first - self.columns.first) // columns.step
        same = self.read == (weakref.ref(reader), region.file, region.offset)
        same = same and self.columns.after(passed) == columns
        part = self.rows[passed : passed + region.tensor.shape[0]] if same and passed >= 0 else self.rows[:0]
        return part if part.nbytes == region.tensor.nbytes else None

    def fill(self, reader: Reader, region: Region, columns: Columns) -> None:
        """Read as many rows as a window has room for, from the first of a region on.

        Raises:
            StructureError, HubError: they cannot be read.
        """
        self.read = None  # until all of them are there
        count, *rest = region.tensor.shape
        row_bytes = region.tensor.nbytes // count
        count = max(count, min(columns.left, WINDOW_BYTES // row_bytes))
        if len(self.buffer) < count * row_bytes:
            self.buffer = np.empty(max(WINDOW_BYTES, count * row_bytes), np.uint8)
        rows = self.buffer[: count * row_bytes]
        _gather(reader, region._replace(tensor=Tensor(region.tensor.dtype, (count, *rest))), columns, rows.data)
        self.read = weakref.ref(reader), region.file, region.offset
        self.columns, self.rows = columns, rows.reshape(count, -1)


_ahead = _Ahead()


def read_stored(reader: Reader, region: Region, target: memoryview) -> None:
    """Fill `target` with what is stored of a region, in the order of its rows.

    Raises:
        StructureError, HubError: it cannot be read.
    """
    columns = region.columns
    if columns is None:
        reader.read(region.file, region.offset, target)
    elif columns.each > 1 or len(target) < WORTH_AHEAD:
        _gather(reader, region, columns, target)
    else:
        part = _ahead.part(reader, region, columns)
        if part is None:
            _ahead.fill(reader, region, columns)
            part = _ahead.rows[: region.tensor.shape[0]]
        target[:] = part.reshape(-1).data


def _gather(reader: Reader, region: Region, columns: Columns, target: memoryview) -> None:
    rows, *inner = region.tensor.shape
    gather(
        lambda offset, part: reader.read(region.file, offset, part),
        columns,
        offset=region.offset,
        shape=(rows, math.prod(inner)),
        element=DTYPE_BITS[region.tensor.dtype] // 8,
        target=target,
    )
