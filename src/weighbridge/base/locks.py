"""The repository's own structure locks, and how they are named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from weighbridge.checkpoint.lock import ReadLock, open_lock, read_lock
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.errors import StructureError
from weighbridge.machine.installation import HERE

REFERENCES = HERE / "references"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
_LOCK_NAME = re.compile(rf"{_PART}/{_PART}")


def lock_path(name: str) -> Path:
    """Where the lock of this name lies in references/, or would: a name of our own; see `lock_file` for any other."""
    return REFERENCES / f"{name}.yaml"


def lock_file(name: object) -> Path | None:
    """The file of a lock in references/ by a name that anybody wrote; None for whatever is no name of a lock there.

    Every name out of evidence, a recipe, a lock or a config comes to a file of references/ by this function, and by no
    other way: so that none leads elsewhere.
    """
    if not isinstance(name, str) or not _LOCK_NAME.fullmatch(name):
        return None
    path = lock_path(name)
    inside = path.is_file() and path.resolve().is_relative_to(REFERENCES.resolve())
    return path if inside else None


def read_reference(name: str) -> ReadLock:
    """Read a structure lock in references/ by its name, and expand none of its patterns.

    Raises:
        StructureError: there is none, or it is malformed.
    """
    path = lock_file(name)
    if path is None:
        raise StructureError("references/ holds no lock of this name", where=name)
    return read_lock(path)


def known_lock(name: object) -> Checkpoint | None:
    """The lock in references/ of a repository that a stranger names; None where there is none; see `lock_file`.

    Raises:
        StructureError: it is malformed.
    """
    path = lock_file(name)
    return None if path is None else open_lock(path)


def source_locks() -> Iterator[ReadLock]:
    """The locks of base models, unexpanded: those that are their own base."""
    for path in sorted(REFERENCES.rglob("*.yaml")):
        read = read_lock(path)
        if read.is_source:
            yield read
