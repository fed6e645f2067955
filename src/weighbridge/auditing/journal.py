"""What an audit has seen, written down in the user's cache as it grows, so that a killed audit goes on where it was.

A journal lies under a name made of everything that decides its figures: the headers of both checkpoints, the identity
of each shard on disk (size, inode, times of change), what the recipe says, the sample, the version. A file that was
touched since is another name. Whoever can write into the user's cache can write its journals: see
docs/explanation/audit.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from weighbridge.auditing.measure import Difference, Measure
from weighbridge.auditing.work import Result
from weighbridge.machine.cache import write_atomically

Seen = list[tuple[int, Result]]


class Journal:
    """An append-only file of finished pieces, one line each; a line that cannot be read counts for nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def finished(self) -> dict[int, Seen]:
        """The pieces that are done, by number."""
        if not self.path.exists():
            return {}
        *lines, torn = self.path.read_bytes().split(b"\n")
        read = {line: _read(line) for line in lines}
        whole = [line for line in lines if read[line] is not None]
        if torn or len(whole) < len(lines):  # what cannot be read would stand before what follows
            write_atomically(self.path, b"".join(line + b"\n" for line in whole))
        return dict(entry for entry in read.values() if entry is not None)

    def add(self, piece: int, seen: Seen) -> None:
        """Write down a finished piece. A kill leaves a whole line or one that does not end."""
        entry = [piece, [[pair, type(result).__name__, _fields(result)] for pair, result in seen]]
        with self.path.open("ab", buffering=0) as file:
            os.write(file.fileno(), (json.dumps(entry, separators=(",", ":")) + "\n").encode())

    def forget(self) -> None:
        """Take the file away: the audit is finished, and its report holds the figures."""
        self.path.unlink(missing_ok=True)


_KINDS: Mapping[str, type[Measure] | type[Difference]] = {kind.__name__: kind for kind in (Measure, Difference)}


_COLUMNS = frozenset({"settled", "zero_columns", "live_columns"})


def _fields(result: Result) -> dict[str, Any]:
    """JSON cannot have integers of any size."""
    values = {item.name: getattr(result, item.name) for item in fields(result)}
    return {name: hex(value) if name in _COLUMNS else value for name, value in values.items()}


def _made(kind: str, kept: dict[str, Any]) -> Result:
    made = _KINDS[kind](**{name: int(value, 16) if name in _COLUMNS else value for name, value in kept.items()})
    wrong = [item.name for item in fields(made) if type(getattr(made, item.name)) not in (int, float)]
    if wrong:
        raise TypeError(wrong)
    return made


def _read(line: bytes) -> tuple[int, Seen] | None:
    """A finished piece; None of a line that a kill or a fault of the disk left, whose piece is looked at again."""
    try:
        piece, entries = json.loads(line)
        return int(piece), [(int(pair), _made(kind, kept)) for pair, kind, kept in entries]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
