"""Whether a source is the published base model: by the SHA-256 of its files against the base's structure lock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from weighbridge.hashing import hash_file
from weighbridge.progress import Progress
from weighbridge.report import Section
from weighbridge.structure.checkpoint import Checkpoint, standing_in


@dataclass(frozen=True)
class Identity:
    """What is known of who a source is.

    Attributes:
        lock: the lock of the base that has this structure; None where no base is known that has.
        reason: why it is not proven to be that base; empty where it is.
        digests: SHA-256 (hex) of each file of the source that was read.
    """

    lock: Checkpoint | None
    reason: str
    digests: Mapping[str, str]

    @property
    def proven(self) -> bool:
        """Every file that the lock has a digest of is there with that digest."""
        return self.lock is not None and not self.reason

    @property
    def sentence(self) -> str:
        """``is org/name@revision by SHA-256``, or ``identity unproven: ...``."""
        if self.lock is None or self.reason:
            return f"identity unproven: {self.reason}"
        return f"is {_named(self.lock)} by SHA-256"

    def section(self, source: Checkpoint) -> Section:
        """The identity as part of a report."""
        files = {} if self.lock is None else self.lock.files
        pinned = {name for name, fact in files.items() if fact.sha256}
        others = sorted(source.files.keys() - source.shards.keys() - pinned)
        facts: dict[str, str | int] = {"of no known digest": ", ".join(others)} if others else {}
        return Section(f"the source {source.label}", self.sentence, facts=facts, judges=self.proven)


def identify(source: Checkpoint, lock: Checkpoint | None, digests: Mapping[str, str]) -> Identity:
    """Hold the digests of a source's files against the lock of the base whose structure it has.

    Args:
        lock: the base's lock; None where no base that is known has this structure.
        digests: SHA-256 (hex) of the source's shards at least, and of the other files that the lock pins.
    """
    if lock is None:
        return Identity(None, "no base model that is known here has these tensors", digests)
    pinned = {name: fact.sha256 for name, fact in lock.files.items() if fact.sha256}
    if not set(source.shards) & set(pinned):
        return Identity(lock, f"the lock of {_named(lock)} has no digests of its weights", digests)
    wrong = [*(name for name in pinned if digests.get(name) != pinned[name]), *(set(source.shards) - set(pinned))]
    if not wrong:
        return Identity(lock, "", digests)
    first = wrong[0]
    found = f"{first} has SHA-256 {digests[first][:12]}..." if first in digests else f"{first} is not there"
    expected = f", not {pinned[first][:12]}..." if first in digests and first in pinned else ""
    return Identity(lock, f"it has the tensors of {_named(lock)}, but {found}{expected}", digests)


def pinned_files(source: Checkpoint, lock: Checkpoint | None) -> list[str]:
    """The files beside the shards whose digests the lock pins and the source has: its config and index."""
    if lock is None:
        return []
    return sorted(name for name in lock.files if name in source.files and name not in source.shards)


def digest_files(source: Checkpoint, names: Iterable[str], *, progress: Progress) -> dict[str, str]:
    """SHA-256 (hex) of files of a source on disk.

    Raises:
        StructureError: a file cannot be read, or is no longer what was read of it before.
    """
    assert source.directory is not None
    names = list(names)
    with progress.stage("hashing the source", sum(source.files[name].size or 0 for name in names)):
        return {name: hash_file(source.directory / name, progress, known=standing_in(source, name)) for name in names}


def _named(lock: Checkpoint) -> str:
    revision = lock.origin.revision
    return lock.origin.repository + (f"@{revision[:7]}" if revision else "")
