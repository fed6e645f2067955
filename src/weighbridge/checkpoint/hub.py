"""Checkpoints on the hub, read by their headers alone: a few ranged requests, kept by commit.

All traffic goes through huggingface_hub's own client, so ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE`` and proxies
mean what they mean everywhere else. What comes back is a stranger's word: bounded in size and time, and checked before
it is kept.

Offline, a checkpoint is what the hub client's cache has of it, found by its id as transformers and vLLM find it; or
what was kept of its headers, if nothing was downloaded.
"""

from __future__ import annotations

import hashlib
import logging
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from weighbridge.checkpoint.file_names import fault_of
from weighbridge.checkpoint.form import HUGGING_FACE, MISTRAL, find_form, read_config
from weighbridge.checkpoint.header import LENGTH_BYTES, Header, header_length, parse_header
from weighbridge.checkpoint.hub_client import (
    HubUnreachable,
    cached_commit,
    cached_file,
    downloads,
    explained,
    fetch_bytes,
    hushed,
    is_offline,
    remember_revision,
    wary_client,
)
from weighbridge.checkpoint.listing import list_files
from weighbridge.checkpoint.model import (
    Checkpoint,
    FileFact,
    Origin,
    assemble,
    carried_files,
    check_config_is_there,
    check_shard_name,
    choose_shards,
    open_directory,
    read_index,
    read_small,
)
from weighbridge.errors import HubError, StructureError
from weighbridge.formats.modelopt import HF_QUANT_CONFIG
from weighbridge.machine.cache import cache_directory, write_atomically
from weighbridge.progress import Progress
from weighbridge.text.strict_json import MAX_JSON_BYTES, parse_object

log = logging.getLogger(__name__)

FIRST_READ = 256 * 1024
DEFAULT_BRANCH = "main"
PAGES = "https://huggingface.co/"
"""Where the hub shows its repositories, whatever endpoint they are fetched from."""

_ID = re.compile(r"(?P<repository>[\w][\w.-]{0,95}/[\w][\w.-]{0,95})(?:@(?P<revision>[\w][\w./-]{0,127}))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_T = TypeVar("_T")


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
        return _label(self.hub_id, self.commit)


def _label(hub_id: HubId, commit: str) -> str:
    return f"{hub_id.repository}@{commit[:7]}"


def _origin(hub_id: HubId, commit: str) -> Origin:
    named = hub_id.revision or DEFAULT_BRANCH
    return Origin(repository=hub_id.repository, revision=commit, branch="" if named == commit else named)


def parse_hub_id(text: str) -> HubId | None:
    """``org/name`` or ``org/name@revision``; None for anything else."""
    match = _ID.fullmatch(text)
    return HubId(match["repository"], match["revision"]) if match and ".." not in text else None


def page_of(repository: str) -> str:
    """The address of a repository's page."""
    return f"{PAGES}{repository}"


def package_url(repository: str, revision: str) -> str:
    """https://github.com/package-url/purl-spec, type huggingface: the version is the commit, in lower case."""
    return f"pkg:huggingface/{repository}" + (f"@{revision}" if revision else "")


@dataclass(frozen=True)
class Cached:
    """A commit of a repository in the hub client's cache.

    Attributes:
        lacking: the first file of its weights that is not there; empty where all are.
    """

    commit: str
    directory: Path
    label: str
    lacking: str


def open_hub(hub_id: HubId) -> Checkpoint:
    """Read the headers of a checkpoint on the hub, without its weights; offline, of what was downloaded of it.

    Raises:
        HubError: no network, no access, no such repository, revision or file, or an answer that stops short.
        StructureError: what came back is malformed.
    """
    if not is_offline():
        try:
            return _open_by_headers(hub_id)
        except HubUnreachable as error:
            cached = find_cached(hub_id)
            if cached is None or cached.lacking:
                raise
            what = f"{error.what}, but the hub client's cache has it whole, as commit {cached.commit[:7]}"
            raise HubError(what, where=error.where, remedy="set HF_HUB_OFFLINE=1 to take it from there") from error
    cached = find_cached(hub_id)
    if cached is None:
        return _open_by_headers(hub_id)
    if not cached.lacking:
        origin = _origin(hub_id, cached.commit)
        return open_directory(cached.directory, label=cached.label, origin=origin)
    try:
        return _open_by_headers(HubId(hub_id.repository, cached.commit))
    except HubError as error:
        what = f"HF_HUB_OFFLINE is set and the hub client's cache has it without {cached.lacking}"
        raise HubError(what, where=cached.label, remedy="unset it to download what is missing") from error


def find_cached(hub_id: HubId) -> Cached | None:
    """What the hub client's cache has of a checkpoint; None where it knows no such revision, or no config.json of it.

    Raises:
        HubError: the cache cannot be read.
        StructureError: it holds what is no checkpoint's, such as links that lead elsewhere.
    """
    commit = cached_commit(hub_id.repository, hub_id.revision)
    if commit is None or not _COMMIT.fullmatch(commit):
        return None
    found = (cached_file(hub_id.repository, form.config, commit=commit) for form in (HUGGING_FACE, MISTRAL))
    config = next(filter(None, found), None)
    if config is None:
        return None
    label = _label(hub_id, commit)
    names = list_files(config.parent, label=label)
    lacking = "" if any(name.endswith(".safetensors") for name in names) else "its weights"
    named = find_form(names, label=label).index
    if named in names:
        index = read_index(read_small(config.parent / named, label=label), where=f"{label}/{named}")
        lacking = next(iter(sorted(set(index.values()) - set(names))), "")
    return Cached(commit, config.parent, label, lacking)


def _open_by_headers(hub_id: HubId) -> Checkpoint:
    snapshot = find_snapshot(hub_id)
    form = find_form(snapshot.files, label=snapshot.label)
    index = None
    if form.index in snapshot.files:
        index = _read(snapshot, form.index, lambda raw: read_index(raw, where=f"{snapshot.label}/{form.index}"))
    shards = choose_shards(snapshot.files, index, form, label=snapshot.label)
    check_config_is_there(snapshot.files, form, label=snapshot.label)
    where = f"{snapshot.label}/{form.config}"
    config = _read(snapshot, form.config, lambda raw: read_config(raw, form, where=where))
    quant_config = None
    if HF_QUANT_CONFIG in snapshot.files:
        where = f"{snapshot.label}/{HF_QUANT_CONFIG}"
        quant_config = _read(snapshot, HF_QUANT_CONFIG, lambda raw: parse_object(raw, where=where))
    missing = [shard for shard in shards if shard not in snapshot.files]
    if missing:
        raise StructureError(f"the index names the shard {missing[0]}, which is not there", where=snapshot.label)
    return assemble(
        label=snapshot.label,
        shards={shard: _read_header(snapshot, shard) for shard in shards},
        index=index,
        config=config,
        files=snapshot.files,
        origin=_origin(hub_id, snapshot.commit),
        quant_config=quant_config,
    )


def read_other_header(checkpoint: Checkpoint, name: str) -> Header:
    """The header of a safetensors file of a checkpoint on the hub that is none of its shards.

    Raises:
        HubError, StructureError: as for `open_hub`.
    """
    return _read_header(snapshot_of(checkpoint), name)


def snapshot_of(checkpoint: Checkpoint) -> Snapshot:
    """The commit that a checkpoint was opened from.

    Raises:
        HubError, StructureError: as for `open_hub`.
    """
    return find_snapshot(HubId(checkpoint.origin.repository, checkpoint.origin.revision))


def find_snapshot(hub_id: HubId) -> Snapshot:
    """Resolve a revision to its commit and list the files there; from the cache where a commit was named and is known.

    Raises:
        HubError, StructureError: as for `open_hub`.
    """
    named = hub_id.revision if hub_id.revision and _COMMIT.fullmatch(hub_id.revision) else ""
    where = f"{hub_id}: the hub's answer"
    answer = b"" if named else _ask(hub_id)
    commit = named or _read_commit(answer, where=where)
    files = _remembered(
        _cache(hub_id.repository, commit) / "files.json",
        fetch=lambda: answer or _ask(hub_id),
        parse=lambda raw: _read_files(raw, commit, where=where),
    )
    log.info("%s is commit %s", hub_id, commit)
    return Snapshot(hub_id, commit, files)


def download(checkpoint: Checkpoint, progress: Progress | None = None) -> Path:
    """Download the shards and the files that a build carries over into the hub client's own cache.

    Files that are there already, whole, are not asked for again.

    Returns:
        The directory of the snapshot.

    Raises:
        HubError, StructureError: as for `open_hub`.
    """
    from huggingface_hub import hf_hub_download, set_client_factory

    origin = checkpoint.origin
    # Small files first: one that is refused is known before the weights have come.
    names = [*carried_files(checkpoint), *sorted(checkpoint.read_beside), *checkpoint.shards]

    def cached(name: str) -> Path | None:
        return cached_file(origin.repository, name, commit=origin.revision)

    def missing() -> list[str]:
        return [name for name in names if name in checkpoint.files and cached(name) is None]

    if missing():
        # The client would try for half a minute before it says that there is no network or no access.
        _ask(HubId(origin.repository, origin.revision))
        set_client_factory(wary_client)
        progress = progress or Progress()
        where = checkpoint.label
        with explained(where), hushed(), progress.stage("downloading", _size(checkpoint, missing())):
            for name in missing():
                log.info("downloading %s/%s", where, name)
                with downloads(progress, where=f"{where}/{name}") as bar:
                    hf_hub_download(origin.repository, name, revision=origin.revision, tqdm_class=bar)
    config = cached(checkpoint.form.config)
    if config is None or missing():
        raise HubError("the hub returned another commit than was asked for", where=checkpoint.label)
    if origin.branch:
        remember_revision(origin.repository, origin.branch, commit=origin.revision)
    return config.parent


def _size(checkpoint: Checkpoint, names: Iterable[str]) -> int:
    return sum(checkpoint.files[name].size or 0 for name in names)


def read_bytes(snapshot: Snapshot, name: str, begin: int, end: int) -> bytes:
    """Bytes `begin` to at most `end` of a file; nothing is kept.

    Raises:
        HubError: the hub could not be reached, or gave other bytes than were asked for.
    """
    return _read_range(snapshot, name, begin, end)[0]


def read_beginning(hub_id: HubId, name: str, most: int) -> bytes:
    """The first `most` bytes of a file, or all of it; nothing is kept.

    Raises:
        HubError, StructureError: as for `open_hub`.
    """
    snapshot = find_snapshot(hub_id)
    return read_bytes(snapshot, name, 0, min(snapshot.files[name].size or most, most))


def read_whole(checkpoint: Checkpoint, name: str) -> bytes:
    """A small file of a checkpoint on the hub; kept by commit, as headers are.

    Raises:
        HubError: as for `open_hub`.
        StructureError: it is no small file.
    """
    snapshot = snapshot_of(checkpoint)

    def checked(raw: bytes) -> bytes:
        if len(raw) > MAX_JSON_BYTES:
            raise StructureError(f"is larger than {MAX_JSON_BYTES:,} bytes", where=f"{snapshot.label}/{name}")
        return raw

    return _read(snapshot, name, checked)


def _ask(hub_id: HubId) -> bytes:
    """What the hub says of a revision, its commit and files, as JSON: the request of ``HfApi.model_info``."""
    from huggingface_hub import constants

    revision = f"/revision/{quote(hub_id.revision, safe='')}" if hub_id.revision else ""
    url = f"{constants.ENDPOINT}/api/models/{hub_id.repository}{revision}?blobs=true"
    return fetch_bytes(url, end=MAX_JSON_BYTES + 1, where=str(hub_id))[0]


def _read_commit(raw: bytes, *, where: str) -> str:
    commit = parse_object(raw, where=where).get("sha")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise HubError("names no commit", where=where)
    return commit


def _read_files(raw: bytes, commit: str, *, where: str) -> dict[str, FileFact]:
    if _read_commit(raw, where=where) != commit:
        raise HubError("is about another commit than was asked for", where=where)
    siblings = parse_object(raw, where=where).get("siblings")
    if not isinstance(siblings, list) or not all(isinstance(sibling, dict) for sibling in siblings):
        raise HubError("lists no files", where=where)
    files = {_check_file_name(sibling.get("rfilename"), where=where): _fact(sibling, where) for sibling in siblings}
    if len(files) != len(siblings):
        raise HubError("lists a file twice", where=where)
    return files


def _check_file_name(name: object, *, where: str) -> str:
    if not isinstance(name, str) or fault_of(name):
        raise HubError(f"lists {str(name)[:80]!r}, which is no name of a file in a repository", where=where)
    return name


def _fact(sibling: dict[str, Any], where: str) -> FileFact:
    size, lfs = sibling.get("size"), sibling.get("lfs") or {}
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else ""
    known_size = size is None or (type(size) is int and size >= 0)
    known_digest = sha256 is None or (isinstance(sha256, str) and _SHA256.fullmatch(sha256))
    if not (known_size and known_digest):
        raise HubError(f"gives {sibling['rfilename']} an impossible size or digest", where=where)
    return FileFact(size=size, sha256=sha256)


def _read_header(snapshot: Snapshot, shard: str) -> Header:
    where = f"{snapshot.label}/{check_shard_name(shard, where=snapshot.label)}"

    def fetch() -> bytes:
        first, size = _read_range(snapshot, shard, 0, FIRST_READ)
        end = LENGTH_BYTES + header_length(first[:LENGTH_BYTES], file_size=size, where=where)
        rest = _read_range(snapshot, shard, len(first), end)[0] if end > len(first) else b""
        return struct.pack("<Q", size) + (first + rest)[LENGTH_BYTES:end]

    return _remembered(
        _cache(snapshot.hub_id.repository, snapshot.commit) / f"{shard}.header",
        fetch=fetch,
        parse=lambda raw: parse_header(raw[8:], file_size=struct.unpack("<Q", raw[:8])[0], where=where),
    )


def _read(snapshot: Snapshot, name: str, parse: Callable[[bytes], _T]) -> _T:
    return _remembered(
        _cache(snapshot.hub_id.repository, snapshot.commit) / name,
        fetch=lambda: _read_range(snapshot, name, 0, MAX_JSON_BYTES + 1)[0],
        parse=parse,
    )


def _read_range(snapshot: Snapshot, name: str, begin: int, end: int) -> tuple[bytes, int]:
    """Bytes `begin` to at most `end` of a file, and the size of the whole file."""
    from huggingface_hub import constants, hf_hub_url

    where = f"{snapshot.label}/{name}"
    with explained(where):
        url = hf_hub_url(snapshot.hub_id.repository, name, revision=snapshot.commit, endpoint=constants.ENDPOINT)
    content, served = fetch_bytes(url, begin=begin, end=end, where=where)
    log.debug("read %s bytes of %s", f"{len(content):,}", where)
    listed = snapshot.files[name].size
    size = listed if served is None else served
    if size is None:
        raise HubError("the hub does not say how large the file is", where=where)
    if listed is not None and listed != size:
        raise HubError(f"the hub lists it with {listed:,} bytes and serves {size:,}", where=where)
    if len(content) != min(end, size) - begin:
        what = f"the answer stops after {len(content):,} of {min(end, size) - begin:,} bytes"
        raise HubError(what, where=where, remedy="try again")
    return content, size


def _remembered(path: Path, *, fetch: Callable[[], bytes], parse: Callable[[bytes], _T]) -> _T:
    """Parse what is kept at `path`, or what is fetched, which is kept once it proves well-formed.

    A digest stands before the content: what a crash of the machine left half-written is fetched again.
    """
    try:
        kept = path.read_bytes() if path.exists() else b""
        if kept and hashlib.sha256(kept[32:]).digest() == kept[:32]:
            return parse(kept[32:])
        content = fetch()
        parsed = parse(content)
        write_atomically(path, hashlib.sha256(content).digest() + content)
    except OSError as error:
        what = f"the cache cannot be used ({error.strerror})"
        raise HubError(what, where=str(path), remedy="make room, or set WEIGHBRIDGE_CACHE to another place") from error
    return parsed


def _cache(repository: str, commit: str) -> Path:
    """Kept apart by endpoint: what one hub says of a commit says nothing of another hub."""
    from huggingface_hub import constants

    endpoint = hashlib.sha256(constants.ENDPOINT.encode()).hexdigest()[:16]
    return cache_directory("headers", endpoint, *repository.split("/"), commit)
