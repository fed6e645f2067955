"""What is done, written down beside the build as it grows, so that a killed build goes on where it was."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from weighbridge.engines.streaming.work import Done


class Journal:
    """An append-only file of finished pieces; one line each, a torn last line counts for nothing.

    Each line is authenticated with a key that does not lie beside it: whoever can write where a build grows could
    otherwise put bytes there and say that they were finished.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self.path = path
        self._key = key

    def finished(self) -> dict[int, Done]:
        """The pieces that the journal says are done, by number; a line that was not written with the key says nothing.

        Nothing is believed before it is read back.
        """
        done = {}
        for line in self._lines():
            try:
                entry = json.loads(line)
                said, item = entry.pop("authentic"), Done(**entry)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            if hmac.compare_digest(str(said).encode(), self._code(item).encode()):
                done[item.piece] = item
        return done

    def rewrite(self, done: Mapping[int, Done]) -> None:
        """Begin again with these pieces: what was torn or found altered is forgotten."""
        temporary = self.path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.writelines(map(self._line, done.values()))
        temporary.replace(self.path)

    def add(self, done: Done) -> None:
        """Write down a finished piece. A kill leaves a whole line or one that does not end."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.write(descriptor, self._line(done).encode())
        finally:
            os.close(descriptor)

    def _lines(self) -> list[str]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # none, or a link
            return []
        with os.fdopen(descriptor, "rb") as file:
            *whole, _torn = file.read().split(b"\n")
        return [line.decode(errors="replace") for line in whole]

    def _line(self, done: Done) -> str:
        return json.dumps({**asdict(done), "authentic": self._code(done)}, separators=(",", ":")) + "\n"

    def _code(self, done: Done) -> str:
        content = json.dumps(asdict(done), sort_keys=True, separators=(",", ":"))
        return hmac.new(self._key, content.encode(), hashlib.sha256).hexdigest()
