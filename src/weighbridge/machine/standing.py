"""Which file it was that was read: what tells it from another that stands under its name now, or from what it became.

A name says nothing of the bytes behind it: a file can be swapped, renamed over, cut or written into while a build or an
audit goes on. So what is known of a file is taken from the very descriptor that it is first read from, and every later
read of the same name is held against that.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from weighbridge.errors import StructureError


@dataclass(frozen=True)
class Standing:
    """A file as it stood: the file system it lies on, its number there, its size and its times of change.

    The time of change of the inode is the kernel's own: no program can set it back, as it can the other.
    """

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    def is_seen_in(self, other: Standing) -> bool:
        """Whether `other` is the same file, unchanged, where it may have been looked at from another machine: there a
        file system has another number of its own."""
        return (self.inode, self.size, self.modified, self.changed) == (
            other.inode,
            other.size,
            other.modified,
            other.changed,
        )


def standing_of(stat: os.stat_result) -> Standing:
    """What `os.stat` or `os.fstat` says of a file, as far as it tells whether it is the same one, unchanged."""
    return Standing(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def check_same(descriptor: int, known: Standing | None, *, where: str) -> None:
    """Refuse an open file that is not the one that was read before, or not as it was then.

    Args:
        known: None where it is read for the first time.

    Raises:
        StructureError: with what to do.
        OSError: it cannot be looked at.
    """
    if known is not None and not known.is_seen_in(standing_of(os.fstat(descriptor))):
        raise changed(where)


def check_stands(path: Path, known: Standing | None, *, where: str) -> None:
    """Refuse a name under which no longer stands what was read, as it was read.

    Raises:
        StructureError: with what to do.
    """
    try:
        same = known is None or standing_of(path.stat()) == known
    except OSError:  # it has gone, or the way to it
        same = False
    if not same:
        raise changed(where)


@contextmanager
def opened(path: Path, known: Standing | None, *, where: str) -> Iterator[io.FileIO]:
    """Open a file to read all of it, and refuse it if it is not what was read before, or changes meanwhile.

    Raises:
        StructureError: with what to do.
        OSError: it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        check_same(file.fileno(), known, where=where)
        known = known or standing_of(os.fstat(file.fileno()))
        yield file
        check_same(file.fileno(), known, where=where)
    check_stands(path, known, where=where)


@contextmanager
def explained(where: str) -> Iterator[None]:
    """One sentence for whatever the system says of a file that cannot be read.

    Raises:
        StructureError: in the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise StructureError(f"cannot be read ({error.strerror})", where=where) from error


def changed(where: str) -> StructureError:
    """The refusal of a file that changed while it was read."""
    return StructureError(
        "has changed while it was read",
        where=where,
        remedy="nothing is said of it; run this again when nobody writes there",
    )
