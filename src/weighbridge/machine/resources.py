"""What a build may use of the machine: devices, workers, memory."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from weighbridge.errors import Argument, WeighbridgeError

DEFAULT_MEMORY = 2 * 1024**3
DEFAULT_SHARD_SIZE = 5_000_000_000

_LARGEST = 2**63
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


@dataclass(frozen=True)
class Resources:
    """What a build may use; of these only the kind of device and the size of shards show in its bytes.

    Attributes:
        devices: torch devices; see `weighbridge.engines.devices` for what none means.
        workers: how many pieces are worked on at a time; None for one for each core.
        memory: bytes of resident memory of all the build's processes together; None for as much as suits an engine.
        shard_size: bytes of payload at which a new shard is begun.
        ray: address of a Ray cluster that does the pieces, or None for this machine.
        digests: whether source, shards and tensors are hashed; without, a build that was killed begins anew.
    """

    devices: tuple[str, ...] = ()
    workers: int | None = None
    memory: int | None = None
    shard_size: int = DEFAULT_SHARD_SIZE
    ray: str | None = None
    digests: bool = True

    @property
    def limit(self) -> int:
        """The same for what is done piece by piece."""
        return DEFAULT_MEMORY if self.memory is None else self.memory


def parse_size(text: str) -> int:
    """Bytes from ``5GB`` (powers of 1000), ``2GiB`` (powers of 1024) or a plain number.

    Raises:
        ValueError: no such size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size such as 5GB or 2GiB")
    number, prefix, binary = match.groups()
    size = float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " ")
    if size >= _LARGEST:
        raise ValueError(f"{text!r} is more than any machine has")
    return int(size)


def beside_what_is_held(resources: Resources) -> Resources:
    """The same resources, with `memory` counted from what this process holds already: upstream's libraries, a model."""
    return replace(resources, memory=resources.limit + resident())


LAYING_OUT = 256 << 20
"""Bytes in which what was made is laid out anew, piece by piece, whatever it was made of."""


def enough_to_lay_out(resources: Resources) -> Resources:
    """The same resources, with memory for this beside what this process holds, where they had room for more before."""
    return replace(resources, memory=max(resources.limit, resident() + LAYING_OUT))


def affordable_workers(workers: int | None, memory: int, *, each: int) -> int:
    """How many workers of `each` bytes fit beside what this process holds already.

    Raises:
        WeighbridgeError: not even one does.
    """
    wanted = workers or len(os.sched_getaffinity(0))
    held = resident()
    fitting = (memory - held) // each
    if fitting < 1:
        raise WeighbridgeError(
            f"{memory:,} bytes of memory are too little: this process holds {held:,}, a worker takes {each:,}",
            where=Argument("memory"),
            remedy=f"allow {held + each:,} bytes or more",
        )
    return min(wanted, fitting)


def give_back_memory() -> None:
    """Return what was freed to the system, where the C library keeps it for itself, as glibc does with large blocks."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
