"""Whether a source is the published base model: by the SHA-256 of its files against the base's structure lock."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from weighbridge.checkpoint.model import Checkpoint, standing_in
from weighbridge.machine.hashing import hash_file
from weighbridge.progress import Progress
from weighbridge.report import Section

SHORT = 12
"""Digits of a digest that a sentence shows; the claim itself has all."""


class Unproven(StrEnum):
    """Why a source is not proven to be the base whose tensors it has."""

    UNKNOWN = "no-known-base"
    UNPINNED = "no-digests-known"
    OTHER = "another-digest"
    MISSING = "file-missing"
    SURPLUS = "file-surplus"
    SAMPLED = "only-a-sample-read"


@dataclass(frozen=True)
class Claim:
    """Who a source is, as a value: everything that is said of it anywhere is made of this.

    Attributes:
        repository: the base whose lock it was held against; empty where no base that is known has these tensors.
        revision: the commit of that lock.
        reason: why it is not proven to be that base; None where it is.
        file: the first file that is not the base's.
        found: SHA-256 (hex) of that file.
        expected: SHA-256 (hex) of the base's.
    """

    repository: str
    revision: str
    reason: Unproven | None = None
    file: str = ""
    found: str = ""
    expected: str = ""

    @property
    def proven(self) -> bool:
        """Every file that the lock has a digest of is there with that digest."""
        return self.reason is None

    @property
    def sentence(self) -> str:
        """``is org/name@revision by SHA-256``, or ``identity unproven: ...``."""
        return f"is {self._base} by SHA-256" if self.reason is None else f"identity unproven: {self._why(self.reason)}"

    @property
    def _base(self) -> str:
        return self.repository + (f"@{self.revision[:7]}" if self.revision else "")

    def _why(self, reason: Unproven) -> str:
        has = f"it has the tensors of {self._base}, but {self.file}"
        return {
            Unproven.UNKNOWN: "no base model that is known here has these tensors",
            Unproven.UNPINNED: f"the lock of {self._base} has no digests of its weights",
            Unproven.OTHER: f"{has} has SHA-256 {self.found[:SHORT]}..., not {self.expected[:SHORT]}...",
            Unproven.MISSING: f"{has} is not there",
            Unproven.SURPLUS: f"{has} has SHA-256 {self.found[:SHORT]}...",
            Unproven.SAMPLED: "only a sample of it was read",
        }[reason]


@dataclass(frozen=True)
class Identity:
    """What is known of who a source is.

    Attributes:
        lock: the lock of the base that has this structure; None where no base is known that has.
        claim: who it is by that.
        digests: SHA-256 (hex) of each file of the source that was read.
    """

    lock: Checkpoint | None
    claim: Claim
    digests: Mapping[str, str]

    @property
    def proven(self) -> bool:
        return self.claim.proven

    @property
    def sentence(self) -> str:
        return self.claim.sentence

    def section(self, source: Checkpoint) -> Section:
        """The identity as part of a report."""
        return identity_section(self, source.label, source.files.keys() - source.shards.keys())


def identity_section(identity: Identity, label: str, beside: Collection[str]) -> Section:
    """The identity of a source of this name as part of a report.

    Args:
        beside: the names of its files that are no shards.
    """
    files = {} if identity.lock is None else identity.lock.files
    others = sorted(name for name in beside if name not in files or not files[name].sha256)
    facts: dict[str, str | int] = {"not compared (no digest known)": ", ".join(others)} if others else {}
    return Section("source", f"the source {label}", identity.sentence, facts=facts, judges=identity.proven)


def identify(shards: Collection[str], lock: Checkpoint | None, digests: Mapping[str, str]) -> Identity:
    """Hold the digests of a source's files against the lock of the base whose structure it has.

    Args:
        shards: the names of the source's shards.
        lock: the base's lock; None where no base that is known has this structure.
        digests: SHA-256 (hex) of the shards at least, and of the other files that the lock pins.
    """
    return Identity(lock, _claim(shards, lock, digests), digests)


def sampled(lock: Checkpoint | None) -> Identity:
    """The identity of a source of which too little was read to say."""
    repository, revision = ("", "") if lock is None else (lock.origin.repository, lock.origin.revision)
    return Identity(lock, Claim(repository, revision, Unproven.SAMPLED), {})


def _claim(shards: Collection[str], lock: Checkpoint | None, digests: Mapping[str, str]) -> Claim:
    if lock is None:
        return Claim("", "", Unproven.UNKNOWN)
    base = lock.origin.repository, lock.origin.revision
    pinned = {name: fact.sha256 for name, fact in lock.files.items() if fact.sha256}
    if not set(shards) & set(pinned):
        return Claim(*base, Unproven.UNPINNED)
    for name, expected in pinned.items():
        if name not in digests:
            return Claim(*base, Unproven.MISSING, name, expected=expected)
        if digests[name] != expected:
            return Claim(*base, Unproven.OTHER, name, digests[name], expected)
    for name in sorted(set(shards) - set(pinned)):
        return Claim(*base, Unproven.SURPLUS, name, digests.get(name, ""))
    return Claim(*base)


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
