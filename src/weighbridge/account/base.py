"""What a checkpoint's files and keys are held against: its base, as far as it is at hand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from weighbridge.checkpoint.hub import read_whole
from weighbridge.checkpoint.model import Checkpoint, read_small, standing_in
from weighbridge.machine.hashing import hash_file
from weighbridge.progress import Progress


@dataclass(frozen=True)
class Base:
    """The base model of a checkpoint.

    Attributes:
        checkpoint: its structure, its config, and its files: on disk or on the hub, or as a lock has them.
        name: how reports call it.
        listed: whether all files that it has are known, and not only those that somebody has seen.
        why: how it was found, in a clause.
    """

    checkpoint: Checkpoint
    name: str
    listed: bool
    why: str = "as it was named"

    @property
    def has_whole_config(self) -> bool:
        """Whether its config.json has been seen, and not only the sizes in it."""
        return self.checkpoint.origin.basis != "derived"

    def digest(self, name: str) -> str | None:
        """SHA-256 (hex) of one of its files; None where nobody here has seen it.

        Raises:
            StructureError, HubError: it cannot be read.
        """
        return digest(self.checkpoint, name)


def digest(checkpoint: Checkpoint, name: str) -> str | None:
    """SHA-256 (hex) of a checkpoint's file, or of a lock's as the lock has it; None where nobody knows.

    What the hub says of a file's digest is its word; the file itself is read.

    Raises:
        StructureError, HubError: it cannot be read.
    """
    if name not in checkpoint.files:
        return None
    if checkpoint.directory is not None:
        return hash_file(checkpoint.directory / name, Progress(), known=standing_in(checkpoint, name))
    content = read(checkpoint, name)
    return checkpoint.files[name].sha256 if content is None else hashlib.sha256(content).hexdigest()


def read(checkpoint: Checkpoint, name: str) -> bytes | None:
    """The content of a small file of a checkpoint; None where only a lock of it is at hand.

    Raises:
        StructureError: it cannot be read, or is no small file.
        HubError: the hub did not give it.
    """
    if checkpoint.directory is not None:
        return read_small(checkpoint.directory / name, label=checkpoint.label, known=standing_in(checkpoint, name))
    if not checkpoint.shards:
        return None
    return read_whole(checkpoint, name)
