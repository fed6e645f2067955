"""What is done, written down as it grows, so that work that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weighbridge.machine.cache import put_in_place


class Journal:
    """An append-only file of finished pieces; one line each, a torn last line counts for nothing.

    Each line is authenticated with a key: what was written without it says nothing. Where the key is a secret, whoever
    can write where the journal lies cannot say either that pieces are finished.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self.path = path
        self._key = key

    def finished(self) -> dict[int, Any]:
        """The pieces that the journal says are done, by number, each with what was written down of it."""
        try:  # a pipe that nobody writes to would be waited for
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # none, or a link
            return {}
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                return {}
            *lines, _torn = file.read().split(b"\n")
        parted = [line.partition(b" ") for line in lines]
        return dict(json.loads(entry) for code, _, entry in parted if hmac.compare_digest(code, self._code(entry)))

    def rewrite(self, done: Mapping[int, Any]) -> None:
        """Begin again with these pieces: what was torn or found altered is forgotten."""
        put_in_place(self.path, b"".join(self._line(piece, what) for piece, what in done.items()), 0o600)

    def add(self, piece: int, what: Any) -> None:
        """Write down a finished piece, and what JSON has of it. A kill leaves a whole line or one that does not end."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        try:
            os.write(descriptor, self._line(piece, what))
        finally:
            os.close(descriptor)

    def forget(self) -> None:
        """Take the file away: the work is finished, and what came of it stands elsewhere."""
        self.path.unlink(missing_ok=True)

    def _line(self, piece: int, what: Any) -> bytes:
        entry = json.dumps([piece, what], separators=(",", ":")).encode()
        return b"%b %b\n" % (self._code(entry), entry)

    def _code(self, entry: bytes) -> bytes:
        return hmac.new(self._key, entry, hashlib.sha256).hexdigest().encode()
