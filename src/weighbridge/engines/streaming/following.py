"""The digests of the source's files, taken behind the pieces that read the same bytes."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from weighbridge.machine.hashing import blocks_of
from weighbridge.machine.standing import Standing, explained, opened
from weighbridge.progress import Progress

STEP_BYTES = 32 * 1024 * 1024


class FollowingHash:
    """SHA-256 of files, a step at a time, at a distance behind those who read them first.

    The distance is short, so that the bytes are still in the page cache. While the last shard is
    hashed, whose digest can begin only when all its pieces are written, some of the source is left to hash beside it.

    Args:
        paths: the files, each as it stood when it was read first.

    Attributes:
        size: bytes of all files.
        digests: file name -> SHA-256 (hex), of the files that are done.
    """

    def __init__(self, paths: Mapping[Path, Standing | None], *, distance: int, progress: Progress) -> None:
        self.size = sum(path.stat().st_size for path in paths)
        self._standings = paths
        self.digests: dict[str, str] = {}
        self._distance = distance
        self._progress = progress
        self._left = deque(paths)
        self._digest = hashlib.sha256()
        self._offset = 0
        self._position = 0
        self._busy = False

    def begin_step(self, read: float) -> bool:
        """Whether `step` is to be called now: no other call is under way, and those who read are far enough ahead.

        Args:
            read: the share of the files that has been read; 1 where nobody reads any more.
        """
        ahead = self.size if read >= 1 else int(read * self.size) - self._distance
        if self._busy or not self._left or (read < 1 and self._position + STEP_BYTES > ahead):
            return False
        self._busy = True
        return True

    def step(self) -> None:
        """Hash the next `STEP_BYTES`, or what is left of a file.

        Raises:
            StructureError: a file cannot be read, or is no longer the one whose header was read.
        """
        path, count = self._left[0], 0
        with explained(str(path)), opened(path, self._standings[path], where=str(path)) as file:
            file.seek(self._offset)
            for block in blocks_of(file, STEP_BYTES):
                self._digest.update(block)
                self._progress.advance(len(block))
                count += len(block)
        self._offset += count
        self._position += count
        if count < STEP_BYTES:
            self.digests[path.name] = self._digest.hexdigest()
            self._left.popleft()
            self._digest, self._offset = hashlib.sha256(), 0
        self._busy = False
