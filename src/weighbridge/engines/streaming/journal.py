"""What is done, written down beside the build as it grows, so that a killed build goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from weighbridge.engines.streaming.work import Done


class Journal:
    """An append-only file of finished pieces; one line each, a torn last line counts for nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def finished(self) -> dict[int, Done]:
        """The pieces that the journal says are done, by number. Nothing is believed before it is read back."""
        done = {}
        for line in self._lines():
            entry = json.loads(line)
            done[entry["piece"]] = Done(**entry)
        return done

    def rewrite(self, done: Mapping[int, Done]) -> None:
        """Begin again with these pieces: what was torn or found altered is forgotten."""
        temporary = self.path.with_suffix(".new")
        temporary.write_text("".join(_line(item) for item in done.values()))
        temporary.replace(self.path)

    def add(self, done: Done) -> None:
        """Write down a finished piece. A kill leaves a whole line or one that does not end."""
        with self.path.open("ab", buffering=0) as file:
            os.write(file.fileno(), _line(done).encode())

    def _lines(self) -> list[str]:
        if not self.path.exists():
            return []
        *whole, _torn = self.path.read_text().split("\n")
        return whole


def _line(done: Done) -> str:
    return json.dumps(asdict(done), separators=(",", ":")) + "\n"
