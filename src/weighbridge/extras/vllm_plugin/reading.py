"""Shards read once: each byte goes from the file into memory, through a hash, and on to whoever loads it.

A thread reads and hashes ahead of the server's own work. What the server is given lies in memory that nobody else can
write to, and was hashed before it was given; so that a file which is changed meanwhile is found out.
"""

from __future__ import annotations

import hashlib
import io
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weighbridge.checkpoint.header import Header
from weighbridge.errors import EvidenceError, StructureError
from weighbridge.machine.standing import explained, opened

if TYPE_CHECKING:
    import torch

AHEAD_BYTES = 512 * 1024 * 1024
"""Of tensors that are read before they are asked for."""
BLOCK_BYTES = 8 * 1024 * 1024

DTYPES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Names of safetensors -> of torch."""


def read_shards(
    shards: Sequence[tuple[Path, Header]], promised: Mapping[str, str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of every shard, in the order of their bytes; the last comes only if all digests are as promised.

    Args:
        shards: files and their headers.
        promised: SHA-256 (hex) of each shard by the name of its file.

    Raises:
        StructureError: a shard cannot be read, or is no longer the one whose header was read.
        EvidenceError: a shard has another digest than was promised.
    """
    given: queue.Queue[tuple[str, torch.Tensor] | BaseException | None] = queue.Queue()
    room, stop = _Room(AHEAD_BYTES), threading.Event()

    def read() -> None:
        try:
            for path, header in shards:
                found = _read(path, header, given.put, room, stop)
                if found != promised[path.name]:
                    what = f"has SHA-256 {found[:12]}…, its evidence promised {promised[path.name][:12]}…"
                    raise EvidenceError(what, where=path.name, remedy="fetch it again from whoever built it")
            given.put(None)
        except BaseException as error:
            given.put(error)

    reader = threading.Thread(target=read, name="weighbridge-reader", daemon=True)
    reader.start()
    try:
        while (item := given.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            room.give_back(item[1].nbytes)
            yield item
            del item
    finally:
        stop.set()
        room.give_back(AHEAD_BYTES)
        reader.join()


class _Room:
    """Bytes that may be in memory at a time; a tensor that is larger than all of them comes alone."""

    def __init__(self, most: int) -> None:
        self._left, self._most = most, most
        self._changed = threading.Condition()

    def take(self, count: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._left >= min(count, self._most))
            self._left -= min(count, self._most)

    def give_back(self, count: int) -> None:
        with self._changed:
            self._left += min(count, self._most)
            self._changed.notify()


def _read(
    path: Path, header: Header, give: Callable[[tuple[str, torch.Tensor]], None], room: _Room, stop: threading.Event
) -> str:
    """Read a file from its first byte to its last, and give each tensor as soon as it is there; the file's SHA-256."""
    import torch

    digest = hashlib.sha256()
    with explained(str(path)), opened(path, header.standing, where=str(path)) as file:
        digest.update(_whole(file, bytearray(header.data_offset)))
        for name, stored in header.tensors.items():
            size = stored.end - stored.begin
            room.take(size)
            if stop.is_set():
                return ""
            content = torch.empty(size, dtype=torch.uint8)
            if size:
                digest.update(_whole(file, content.numpy().data))
            dtype = getattr(torch, DTYPES[stored.tensor.dtype])
            give((name, content.view(dtype).reshape(stored.tensor.shape)))
    return digest.hexdigest()


def _whole(file: io.FileIO, into: bytearray | memoryview) -> memoryview:
    """Fill a buffer from a file.

    Raises:
        StructureError: the file ends before.
    """
    view = memoryview(into).cast("B")
    done = 0
    while done < len(view):
        count = file.readinto(view[done : done + BLOCK_BYTES])
        if not count:
            raise StructureError("ends before its last tensor", where=str(file.name), remedy="fetch it again")
        done += count
    return view
