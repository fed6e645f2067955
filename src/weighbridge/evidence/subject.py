"""What a checkpoint is, as digests: of its files, of its tensors, and one for each of the two as a whole.

The root digest is that of OpenSSF Model Signing v1.0 (``Payload`` in model_signing/_signing/signing.py of 1.1.1):
SHA-256 over the raw digests of all files, in the order of their paths' parts. The content digest is over the tensors
alone, so it stays the same when they are sharded otherwise.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from weighbridge.checkpoint.file_names import check_file_names
from weighbridge.checkpoint.header import Header
from weighbridge.checkpoint.listing import MAX_FILES, MAX_FOLDERS, of_hub, places_of
from weighbridge.checkpoint.model import EVIDENCE, GITS_OWN
from weighbridge.errors import StructureError
from weighbridge.formats.tensors import Structure
from weighbridge.machine.hashing import hash_file, hash_shard
from weighbridge.progress import Progress

UNSIGNED = (".git", *GITS_OWN)
"""What Model Signing leaves out at the top of a model; the hub adds a ``.gitattributes`` of its own."""

HUB_CLIENT = ".cache/huggingface"
"""Where the hub's client keeps notes in a directory that it downloads into."""

_LISTED = re.compile(r"([0-9a-f]{64})  (.+)")


@dataclass(frozen=True)
class Listing:
    """The files of a directory by their names relative to it.

    Attributes:
        signed: regular files that the root digest is over.
        evidence: regular files below evidence/.
        uncovered: files that no digest covers, because git or the hub's client keep them for themselves.
        odd: what is neither a regular file nor a folder, with what it is: links above all.
    """

    signed: tuple[str, ...]
    evidence: tuple[str, ...]
    uncovered: tuple[str, ...]
    odd: Mapping[str, str]


@dataclass(frozen=True)
class Digests:
    """What shards are by their digests, and how these are known.

    Attributes:
        files: SHA-256 (hex) of each shard.
        tensors: SHA-256 (hex) of each tensor's bytes.
        files_were, tensors_were: what was done with them before they are held against a list; it stands in reports.
    """

    files: Mapping[str, str]
    tensors: Mapping[str, str]
    files_were: str = "hashed and compared"
    tensors_were: str = "hashed and compared"


def list_all(directory: Path) -> Listing:
    """List everything in a directory; links are named as odd, but for those of the hub client's own making.

    Raises:
        StructureError: it cannot be read, or holds more or deeper than any checkpoint does, or a file of a name that no
            list of files can have.
    """
    places = places_of(directory)
    signed, evidence, uncovered, odd = [], [], [], {}
    names = _walk(directory)
    check_file_names(names, where=str(directory))
    for name in names:
        path = directory / name
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or (stat.S_ISLNK(mode) and of_hub(path, places))):
            odd[name] = "is a link" if stat.S_ISLNK(mode) else "is no regular file"
        elif name.partition("/")[0] in UNSIGNED or name.startswith(f"{HUB_CLIENT}/"):
            uncovered.append(name)
        elif name.startswith(f"{EVIDENCE}/"):
            evidence.append(name)
        else:
            signed.append(name)
    return Listing(tuple(signed), tuple(evidence), tuple(uncovered), odd)


def _walk(directory: Path) -> list[str]:
    """Names of everything that is no folder, sorted."""
    found: list[str] = []

    def refuse(error: OSError) -> None:
        raise StructureError(f"cannot be read ({error.strerror})", where=str(error.filename)) from error

    for folder, folders, files in os.walk(directory, onerror=refuse):
        here = Path(folder)
        depth = len(here.relative_to(directory).parts)
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = [name for name in folders if name not in links]
        found += [(here / name).relative_to(directory).as_posix() for name in (*files, *links)]
        if depth > MAX_FOLDERS or len(found) > MAX_FILES:
            raise StructureError("holds more files or deeper folders than a checkpoint", where=str(directory))
    return sorted(found)


def root_digest(files: Mapping[str, str]) -> str:
    """The root digest (hex) of files: name -> SHA-256 (hex)."""
    whole = hashlib.sha256()
    for name in sorted(files, key=PurePosixPath):
        whole.update(bytes.fromhex(files[name]))
    return whole.hexdigest()


def write_files(files: Mapping[str, str]) -> bytes:
    """A list of files as ``sha256sum --check`` reads it, in the order of the root digest."""
    return "".join(f"{files[name]}  {name}\n" for name in sorted(files, key=PurePosixPath)).encode()


def read_files(raw: bytes, *, where: str) -> dict[str, str]:
    """What `write_files` wrote.

    Raises:
        StructureError: not such a list, a name that leaves the directory or that no list can have, or one twice.
    """
    files: dict[str, str] = {}
    lines = _lines(raw, where=where)
    if len(lines) > MAX_FILES:
        raise StructureError(f"lists {len(lines):,} files, where {MAX_FILES:,} are the most", where=where)
    for line in lines:
        match = _LISTED.fullmatch(line)
        parts = PurePosixPath(match[2]).parts if match else ()
        if match is None or ".." in parts or match[2].startswith("/") or match[2] in files:
            raise StructureError(f"{line[:80]!r} is no line of a list of digests", where=where)
        files[match[2]] = match[1]
    check_file_names(files, where=where)
    return files


def write_tensors(structure: Structure, digests: Mapping[str, str]) -> bytes:
    """A line for each tensor, sorted by name: SHA-256 (hex) of its bytes, dtype, shape, name.

    The SHA-256 of these lines is the content digest of the whole.
    """
    return "".join(f"{digests[name]}  {structure[name]} {name}\n" for name in sorted(structure)).encode()


def _lines(raw: bytes, *, where: str) -> list[str]:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise StructureError(f"is not UTF-8 (byte {error.start})", where=where) from None
    if not text.endswith("\n"):
        raise StructureError("does not end with a whole line", where=where)
    return text.removesuffix("\n").split("\n")


def hash_files(directory: Path, names: Iterable[str], *, progress: Progress) -> dict[str, str]:
    """SHA-256 (hex) of files of a directory.

    Raises:
        StructureError: one cannot be read.
    """
    names = list(names)
    with progress.stage("hashing", sum((directory / name).stat().st_size for name in names)):
        return {name: hash_file(directory / name, progress) for name in names}


def hash_shards(directory: Path, shards: Mapping[str, Header], *, progress: Progress) -> Digests:
    """SHA-256 (hex) of shards, and of the bytes of each tensor in them, by one read.

    Raises:
        StructureError: one cannot be read, or is no longer the one whose header was read.
    """
    files: dict[str, str] = {}
    tensors: dict[str, str] = {}
    with progress.stage("hashing tensors", sum((directory / shard).stat().st_size for shard in shards)):
        for shard, header in shards.items():
            start = header.data_offset
            spans = {name: (start + stored.begin, start + stored.end) for name, stored in header.tensors.items()}
            files[shard], found = hash_shard(directory / shard, spans, known=header.standing)
            tensors.update(found)
            progress.advance((directory / shard).stat().st_size)
    return Digests(files, tensors)
