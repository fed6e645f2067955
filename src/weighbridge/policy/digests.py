"""How a gate has the digests of shards: by hashing them on every core, or as a promise of whoever reads them anyway."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from weighbridge.checkpoint.header import Header
from weighbridge.checkpoint.model import EVIDENCE, read_small
from weighbridge.evidence.subject import Digests, read_files
from weighbridge.evidence.write import FILES, TENSORS
from weighbridge.machine.hashing import hash_file
from weighbridge.progress import Progress

UNLISTED = "0" * 64
"""In the place of a digest that the evidence does not list, so that it is found to be another than any."""


def hashed(directory: Path, shards: Mapping[str, Header], *, progress: Progress) -> Digests:
    """The SHA-256 of shards, several at a time, the largest first; of tensors what the evidence lists.

    A shard that has its digest holds the tensors that whoever listed it read there, so that these are not hashed again.

    Raises:
        StructureError: a shard cannot be read, or is no longer the one whose header was read; or the evidence has no
            list of tensors.
    """
    sizes = {name: (directory / name).stat().st_size for name in shards}
    largest_first = sorted(sizes, key=lambda name: -sizes[name])
    with (
        progress.stage("hashing", sum(sizes.values())),
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads,
    ):
        found = threads.map(
            lambda name: hash_file(directory / name, progress, known=shards[name].standing), largest_first
        )
        files = dict(zip(largest_first, found, strict=True))
    return Digests(files, _listed_tensors(directory, shards), tensors_were="known by their shards' digests, compared")


def as_listed(
    directory: Path,
    shards: Mapping[str, Header],
    *,
    progress: Progress,  # noqa: ARG001  (as every way to have digests)
) -> Digests:
    """The digests of shards and tensors as the evidence lists them: no shard is read.

    A server reads each shard anyway. It hashes what it reads, and compares; so nothing is read twice, and no shard can
    be changed between the gate and the server.

    Raises:
        StructureError: the evidence has no such lists.
    """
    files = read_files(read_small(directory / EVIDENCE / FILES, label=EVIDENCE), where=f"{EVIDENCE}/{FILES}")
    promised = {shard: files.get(shard, UNLISTED) for shard in shards}
    later = "compared, shards as listed until they are loaded and hashed,"
    return Digests(promised, _listed_tensors(directory, shards), files_were=later, tensors_were=later)


def _listed_tensors(directory: Path, shards: Mapping[str, Header]) -> Mapping[str, str]:
    lines = read_small(directory / EVIDENCE / TENSORS, label=EVIDENCE).decode(errors="replace").splitlines()
    listed = {line.rpartition(" ")[2]: line.partition(" ")[0] for line in lines}
    return {name: listed.get(name, UNLISTED) for header in shards.values() for name in header.tensors}
