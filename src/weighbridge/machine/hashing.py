"""SHA-256 of files and of the tensors in them, each by one sequential read."""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from weighbridge.machine.standing import Standing, explained, opened
from weighbridge.progress import Progress

BLOCK_BYTES = 1024 * 1024


def hash_file(path: Path, progress: Progress, *, known: Standing | None = None) -> str:
    """SHA-256 of a file as lower-case hex.

    Args:
        known: the file as it was read before; None where this is the first time.

    Raises:
        StructureError: it cannot be read, or is no longer what was read before.
    """
    digest = hashlib.sha256()
    with explained(str(path)), opened(path, known, where=str(path)) as file:
        for block in blocks_of(file):
            digest.update(block)
            progress.advance(len(block))
    return digest.hexdigest()


def hash_shard(
    path: Path, spans: Mapping[str, tuple[int, int]], *, known: Standing | None = None
) -> tuple[str, dict[str, str]]:
    """SHA-256 of a file, and of some spans of its bytes, by one read.

    Args:
        spans: name -> begin and end, counted from the start of the file; they do not overlap.
        known: as for `hash_file`.

    Returns:
        The file's digest, and the digest of each span by name, as lower-case hex.

    Raises:
        StructureError: as for `hash_file`.
    """
    whole = hashlib.sha256()
    parts = {name: hashlib.sha256() for name in spans}
    waiting = deque(sorted((begin, end, name) for name, (begin, end) in spans.items()))
    position = 0
    with explained(str(path)), opened(path, known, where=str(path)) as file:
        for block in blocks_of(file):
            whole.update(block)
            for begin, end, name in waiting:
                if begin >= position + len(block):
                    break
                parts[name].update(block[max(begin - position, 0) : end - position])
            position += len(block)
            while waiting and waiting[0][1] <= position:
                waiting.popleft()
    return whole.hexdigest(), {name: digest.hexdigest() for name, digest in parts.items()}


def blocks_of(file: io.FileIO, most: int | None = None) -> Iterator[memoryview]:
    """The rest of a file, or its next `most` bytes, in blocks; each is overwritten by the next, so that no memory is
    asked for anew."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    left = most
    while count := file.readinto(buffer if left is None else buffer[:left]):
        yield buffer[:count]
        left = None if left is None else left - count
