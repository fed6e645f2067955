"""Whether a source is the published base model: by the SHA-256 of its files against the base's structure lock."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from weighbridge.errors import StructureError
from weighbridge.progress import Progress
from weighbridge.report import Section
from weighbridge.structure.checkpoint import Checkpoint

BLOCK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Identity:
    """What is known of who a source is.

    Attributes:
        lock: the lock of the base that has this structure; None where no base is known that has.
        proven: every file that the lock has a digest of is there with that digest.
        reason: why it is not proven; empty where it is.
        digests: SHA-256 (hex) of each file that was read for it.
    """

    lock: Checkpoint | None
    proven: bool
    reason: str
    digests: Mapping[str, str]

    @property
    def sentence(self) -> str:
        """``is org/name@revision by SHA-256``, or ``identity unproven: …``."""
        if self.proven and self.lock is not None:
            return f"is {self.lock.origin.repository}@{self.lock.origin.revision[:7]} by SHA-256"
        return f"identity unproven: {self.reason}"

    def section(self, source: Checkpoint) -> Section:
        """The identity as part of a report."""
        return Section(title=f"the source {source.label}", summary=self.sentence)


def identify(source: Checkpoint, lock: Checkpoint | None, *, progress: Progress) -> Identity:
    """Hash the source's files and hold them against the lock.

    Args:
        source: a checkpoint on disk.
        lock: the base's lock; None where no base has this structure.

    Raises:
        StructureError: a file cannot be read.
    """
    assert source.directory is not None
    if lock is None:
        return Identity(None, False, "no base model that is known here has these tensors", {})
    pinned = {name: fact.sha256 for name, fact in lock.files.items() if fact.sha256}
    name_of_base = f"{lock.origin.repository}@{lock.origin.revision[:7]}"
    if not pinned:
        return Identity(lock, False, f"the lock of {name_of_base} has no digests", {})
    wanted = sorted({*source.shards, *(name for name in pinned if name in source.files)})
    digests = {}
    with progress.stage("hashing the source", sum(source.files[name].size or 0 for name in wanted)):
        for name in wanted:
            digests[name] = sha256(source.directory / name, progress)
    differing = [name for name in pinned if digests.get(name) != pinned[name]]
    surplus = [shard for shard in source.shards if shard not in pinned]
    if differing or surplus:
        first = (differing or surplus)[0]
        found = "is not there" if first not in digests else f"has SHA-256 {digests[first][:12]}…"
        expected = f", not {pinned[first][:12]}…" if first in pinned and first in digests else ""
        return Identity(lock, False, f"it has the tensors of {name_of_base}, but {first} {found}{expected}", digests)
    return Identity(lock, True, "", digests)


def sha256(path: Path, progress: Progress) -> str:
    """SHA-256 of a file as lower-case hex, read in one sequential pass.

    Raises:
        StructureError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                progress.advance(len(block))
    except OSError as error:
        raise StructureError(f"cannot be read ({error.strerror})", where=str(path)) from error
    return digest.hexdigest()
