"""Text that every Python carries: the sources of its standard library, in a part to learn from and a part held out.

What is held out is a rule and no list: a file whose path, by its SHA-256, falls among one in sixteen. So the two parts
are the same wherever the same release of Python is installed.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_LEFT_OUT = frozenset(
    {
        *("site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"),  # not the library itself
        *("encodings", "pydoc_data", "__phello__"),  # tables, and prose in string literals
    }
)
_GENERATED = ("config-", "_sysconfigdata")
"""What a build of Python writes about the machine that it was built on."""

_HELD_OUT = 16  # of 256
_SAMPLE_CHARACTERS = 800
"""About as many as the trained miniature has seen at a time."""


def training_text() -> str:
    """The sources that are not held out, in the order of their paths, an empty line between two."""
    return "\n\n".join(training_files())


def held_out_text() -> str:
    """The sources that nothing is trained or calibrated on, in the order of their paths, an empty line between two."""
    return "\n\n".join(text for name, text in _files().items() if _is_held_out(name))


def training_files() -> tuple[str, ...]:
    """The sources that are not held out, each by itself, in the order of their paths."""
    return tuple(text for name, text in _files().items() if not _is_held_out(name))


def write_calibration(file: str | Path) -> None:
    """Write what ``build.py --calibration`` takes: JSON lines, each a piece of the training text as one message.

    Args:
        file: its name must end in ``.jsonl``; pieces are whole lines of about 800 characters.

    Raises:
        OSError: it cannot be written.
    """
    with Path(file).open("w") as written:
        for piece in _pieces():
            row = {"messages": [{"role": "user", "content": piece}], "text": piece}
            written.write(json.dumps(row) + "\n")


def _pieces() -> Iterator[str]:
    for text in training_files():
        piece = ""
        for line in text.splitlines(keepends=True):
            piece += line
            if len(piece) >= _SAMPLE_CHARACTERS:
                yield piece
                piece = ""


@cache
def _files() -> dict[str, str]:
    """Path below the standard library -> text, in the order of the paths."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = {path.relative_to(library).as_posix(): path for path in library.rglob("*.py")}
    return {name: paths[name].read_text(encoding="utf-8") for name in sorted(paths) if _is_taken(name)}


def _is_taken(name: str) -> bool:
    parts = name.split("/")
    return not _LEFT_OUT.intersection(parts) and not any(part.startswith(_GENERATED) for part in parts)


def _is_held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] < _HELD_OUT
