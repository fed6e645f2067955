"""Checkpoints on the hub, read by their headers alone: a few ranged requests, kept by commit.

All traffic goes through huggingface_hub's own client, so ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE`` and proxies
mean what they mean everywhere else.
"""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weighbridge.cache import cache_directory, write_atomically
from weighbridge.errors import HubError
from weighbridge.structure.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    Checkpoint,
    FileFact,
    Origin,
    assemble,
    carried_files,
    check_shard_name,
    choose_shards,
    read_index,
)
from weighbridge.structure.header import LENGTH_BYTES, Header, header_length, parse_header
from weighbridge.structure.strict_json import MAX_JSON_BYTES, parse_object

FIRST_READ = 256 * 1024
#: A header may come slowly, but not for ever.
DEADLINE_SECONDS = 120.0

_ID = re.compile(r"(?P<repository>[\w][\w.-]{0,95}/[\w][\w.-]{0,95})(?:@(?P<revision>[\w][\w./-]{0,127}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubId:
    """A repository on the hub and, if one was named, a branch, tag or commit of it."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository: its files with what the hub says of them."""

    hub_id: HubId
    commit: str
    files: dict[str, FileFact]

    @property
    def label(self) -> str:
        return f"{self.hub_id.repository}@{self.commit[:7]}"


def parse_hub_id(text: str) -> HubId | None:
    """``org/name`` or ``org/name@revision``; None for anything else."""
    match = _ID.fullmatch(text)
    return HubId(match["repository"], match["revision"]) if match and ".." not in text else None


def open_hub(hub_id: HubId) -> Checkpoint:
    """Read the headers of a checkpoint on the hub, without its weights.

    Raises:
        HubError: no network, no access, no such repository, revision or file, or an answer that stops short.
        StructureError: what came back is malformed.
    """
    snapshot = find_snapshot(hub_id)
    index = None
    if INDEX_FILE in snapshot.files:
        raw = _read(snapshot, INDEX_FILE, 0, MAX_JSON_BYTES)
        index = read_index(raw, where=f"{snapshot.label}/{INDEX_FILE}")
    config = {}
    if CONFIG_FILE in snapshot.files:
        raw = _read(snapshot, CONFIG_FILE, 0, MAX_JSON_BYTES)
        config = parse_object(raw, where=f"{snapshot.label}/{CONFIG_FILE}")
    shards = choose_shards(snapshot.files, index, label=snapshot.label)
    return assemble(
        label=snapshot.label,
        shards={shard: _read_header(snapshot, shard) for shard in shards},
        index=index,
        config=config,
        files=snapshot.files,
        origin=Origin(repository=hub_id.repository, revision=snapshot.commit),
    )


def find_snapshot(hub_id: HubId) -> Snapshot:
    """Resolve a revision to its commit and list the files there; from the cache where a commit was named and is known.

    Raises:
        HubError: as for `open_hub`.
    """
    if hub_id.revision and _COMMIT.fullmatch(hub_id.revision):
        known = _cache(hub_id.repository, hub_id.revision) / "files.json"
        if known.exists():
            listed = json.loads(known.read_bytes())
            return Snapshot(hub_id, hub_id.revision, {name: FileFact(**fact) for name, fact in listed.items()})
    from huggingface_hub import HfApi

    with _explained(str(hub_id)):
        info = HfApi().model_info(hub_id.repository, revision=hub_id.revision, files_metadata=True, timeout=30)
    if not info.sha or not _COMMIT.fullmatch(info.sha):
        raise HubError("the hub named no commit for it", where=str(hub_id))
    files = {
        sibling.rfilename: FileFact(size=sibling.size, sha256=sibling.lfs.sha256 if sibling.lfs else None)
        for sibling in info.siblings or []
    }
    listed = {name: {"size": fact.size, "sha256": fact.sha256} for name, fact in files.items()}
    write_atomically(_cache(hub_id.repository, info.sha) / "files.json", json.dumps(listed).encode())
    return Snapshot(hub_id, info.sha, files)


def download(checkpoint: Checkpoint) -> Path:
    """Download the shards and the files that a build carries over into the hub client's own cache; resumes by itself.

    Returns:
        The directory of the snapshot.

    Raises:
        HubError: as for `open_hub`.
    """
    from huggingface_hub import snapshot_download

    origin = checkpoint.origin
    wanted = [*checkpoint.shards, *carried_files(checkpoint), CONFIG_FILE, INDEX_FILE]
    with _explained(checkpoint.label):
        return Path(snapshot_download(origin.repository, revision=origin.revision, allow_patterns=_literal(wanted)))


def _literal(names: Iterable[str]) -> list[str]:
    """The client takes shell patterns; a name must stand for itself."""
    return [re.sub(r"([*?\[])", r"[\1]", name) for name in names]


def _read_header(snapshot: Snapshot, shard: str) -> Header:
    where = f"{snapshot.label}/{check_shard_name(shard, where=snapshot.label)}"
    kept = _cache(snapshot.hub_id.repository, snapshot.commit) / f"{shard}.header"
    if kept.exists():
        raw = kept.read_bytes()
        return parse_header(raw[8:], file_size=struct.unpack("<Q", raw[:8])[0], where=where)
    first, size = _read_range(snapshot, shard, 0, FIRST_READ)
    length = header_length(first[:LENGTH_BYTES], file_size=size, where=where)
    end = LENGTH_BYTES + length
    rest = _read_range(snapshot, shard, len(first), end)[0] if end > len(first) else b""
    raw = (first + rest)[LENGTH_BYTES:end]
    header = parse_header(raw, file_size=size, where=where)
    write_atomically(kept, struct.pack("<Q", size) + raw)
    return header


def _read(snapshot: Snapshot, name: str, begin: int, limit: int) -> bytes:
    kept = _cache(snapshot.hub_id.repository, snapshot.commit) / name
    if kept.exists():
        return kept.read_bytes()
    content, size = _read_range(snapshot, name, begin, limit)
    if size > limit:
        raise HubError(f"{name} is larger than {limit:,} bytes", where=snapshot.label)
    write_atomically(kept, content)
    return content


def _read_range(snapshot: Snapshot, name: str, begin: int, end: int) -> tuple[bytes, int]:
    """Bytes `begin` to at most `end` of a file, and the size of the whole file."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(snapshot.hub_id.repository, name, revision=snapshot.commit, endpoint=HfApi().endpoint)
    headers = {**build_hf_headers(), "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
    where = f"{snapshot.label}/{name}"
    started = time.monotonic()
    content = bytearray()
    with _explained(where), get_session().stream("GET", url, headers=headers, timeout=30) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        size = _whole_size(response, where)
        # A server that ignores the range sends the file from its start: skip, and stop when there is enough.
        skip = begin if response.status_code == 200 else 0
        wanted = min(end, size) - begin
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) - skip >= wanted:
                break
            if time.monotonic() - started > DEADLINE_SECONDS:
                raise HubError(f"{DEADLINE_SECONDS:.0f} seconds were not enough to read its header", where=where)
    if len(content) - skip < wanted:
        raise HubError(f"the answer stops after {len(content):,} of {wanted:,} bytes", where=where, remedy="try again")
    return bytes(content[skip : skip + wanted]), size


def _whole_size(response: Any, where: str) -> int:
    _, _, total = response.headers.get("content-range", "").rpartition("/")
    size = total if response.status_code == 206 else response.headers.get("content-length", "")
    if not (size.isascii() and size.isdigit()):
        raise HubError("the hub does not say how large the file is", where=where)
    return int(size)


def _cache(repository: str, commit: str) -> Path:
    return cache_directory("headers", repository.replace("/", "--"), commit)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence."""
    import httpx
    from huggingface_hub import errors

    explanations: list[tuple[type[Exception], Callable[[Exception], tuple[str, str]]]] = [
        (errors.GatedRepoError, lambda _: ("access must be asked for on the hub", "accept its terms and set HF_TOKEN")),
        (
            errors.RepositoryNotFoundError,
            lambda _: ("the hub has no such repository, or not for this token", "check the id, or set HF_TOKEN"),
        ),
        (errors.RevisionNotFoundError, lambda _: ("the repository has no such revision", "check the branch or commit")),
        (errors.EntryNotFoundError, lambda _: ("the repository has no such file", "")),
        (
            errors.OfflineModeIsEnabled,
            lambda _: ("HF_HUB_OFFLINE is set and this is not in the cache", "unset it, or name a directory"),
        ),
        (errors.HfHubHTTPError, lambda e: (f"the hub answered with an error ({_first_line(e)})", "try again later")),
        (
            httpx.TimeoutException,
            lambda _: ("the hub did not answer in time", "try again, or name a directory that holds the checkpoint"),
        ),
        (
            httpx.HTTPError,
            lambda e: (
                f"the hub cannot be reached ({_first_line(e)})",
                "name a directory that holds the checkpoint (--model PATH, or MODEL=path with make), or run 'make demo'",
            ),
        ),
        (OSError, lambda e: (f"the download failed ({_first_line(e)})", "")),
    ]
    try:
        yield
    except tuple(kind for kind, _ in explanations) as error:
        what, remedy = next(explain(error) for kind, explain in explanations if isinstance(error, kind))
        raise HubError(what, where=where, remedy=remedy) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
