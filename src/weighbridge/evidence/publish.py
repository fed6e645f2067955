"""Putting a checkpoint on the hub, once its evidence holds and somebody has seen what goes; then looking at what lies
there."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from weighbridge.checkpoint.file_names import check_publishable
from weighbridge.checkpoint.hub import find_snapshot, parse_hub_id
from weighbridge.checkpoint.hub_client import explained, hushed
from weighbridge.checkpoint.model import EVIDENCE, Checkpoint, FileFact, open_directory, read_small
from weighbridge.checkpoint.needed import needed
from weighbridge.errors import HubError
from weighbridge.evidence.signing import Verifier
from weighbridge.evidence.subject import UNSIGNED, hash_files, list_all, read_files
from weighbridge.evidence.verify import verify
from weighbridge.evidence.write import FILES
from weighbridge.progress import Progress
from weighbridge.report import Finding, Report, Section, Severity, Table


@dataclass(frozen=True)
class Offer:
    """What would be uploaded, for somebody to agree to.

    Attributes:
        repository: hub id ``org/name``.
        public: whether anybody may see it there.
        checked: what became of its evidence; where that does not hold, there is nothing to upload.
        files: name -> size and SHA-256, of everything that goes.
    """

    directory: Path
    repository: str
    public: bool
    checked: Report
    files: Mapping[str, FileFact]

    @property
    def who_sees_it(self) -> str:
        """A word for who may see it."""
        return "public" if self.public else "private"


def offer_of(
    directory: Path,
    repository: str,
    *,
    public: bool,
    named: Sequence[str],
    verifier: Verifier | None,
    progress: Progress,
) -> Offer:
    """Check a checkpoint by its evidence, and list what an upload would send.

    Args:
        repository: hub id ``org/name``; made if it is not there.
        public: whether anybody may see it; otherwise it is private, or refused where it is public already.
        named: names or patterns of files that go along though a model needs no file of that name.
        verifier: who must have signed; see `verify`.

    Raises:
        HubError: what is named is no hub id, or the checkpoint holds files that nobody named.
        StructureError, EvidenceError: as `verify`.
    """
    hub_id = parse_hub_id(repository)
    if hub_id is None or hub_id.revision:
        raise HubError("is no hub id of the form org/name", where=repository, remedy="name it so, without a revision")
    checked = verify(directory, verifier=verifier, progress=progress)
    if not checked.holds:
        return Offer(directory, repository, public, checked, {})
    listing = list_all(directory)
    check_publishable(listing.signed, where=str(directory))
    others = _others(listing.signed, open_directory(directory), named)
    if others:
        more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
        what = f"holds {others[0]}{more}, which no model needs and nobody named"
        raise HubError(what, where=str(directory), remedy="take it out by building anew, or name it to publish it too")
    digests = hash_files(directory, (*listing.signed, *listing.evidence), progress=progress)
    stated = read_files(read_small(directory / EVIDENCE / FILES, label=EVIDENCE), where=f"{EVIDENCE}/{FILES}")
    for name in listing.signed:
        if digests[name] != stated.get(name):
            raise HubError("has changed since its evidence was checked", where=f"{directory}/{name}")
    files = {name: FileFact((directory / name).stat().st_size, digest) for name, digest in digests.items()}
    return Offer(directory, repository, public, checked, files)


def _others(names: Sequence[str], checkpoint: Checkpoint, named: Sequence[str]) -> list[str]:
    """What is neither weights nor a file that a model needs, nor named."""
    return [
        name
        for name in names
        if name not in checkpoint.shards
        and name not in checkpoint.read_beside
        and needed(name, checkpoint.config) is None
        and not any(fnmatchcase(name, pattern) for pattern in named)
    ]


def listed(offer: Offer) -> str:
    """What an upload would send, for people: a line for each file with its size, and who would see it."""
    sizes = {name: fact.size or 0 for name, fact in sorted(offer.files.items())}
    lines = [f"{size:>16,}  {name}" for name, size in sizes.items()]
    whole = f"{len(sizes):,} files, {sum(sizes.values()):,} bytes"
    return "\n".join([*lines, f"{whole} to {offer.repository} ({offer.who_sees_it})"])


def upload(offer: Offer) -> Report:
    """Upload what was offered as one commit that leaves nothing else in the repository.

    Raises:
        HubError: the hub cannot be reached, refuses, shows publicly what shall be private, or holds something else
            afterwards than was sent.
    """
    directory, repository, checked = offer.directory, offer.repository, offer.checked
    if not checked.holds:
        return Report("publish", repository, f"nothing was uploaded: {checked.verdict}", checked.sections)
    commit = _upload(offer)
    findings = tuple(_differences(offer, commit))
    section = Section(
        "upload",
        f"{repository}@{commit[:7]}",
        "holds what was sent" if not findings else "differs",
        findings=findings,
        facts={"who may see it": offer.who_sees_it},
        tables=(Table(("file", "bytes"), tuple((name, fact.size or 0) for name, fact in sorted(offer.files.items()))),),
    )
    return Report("publish", repository, f"{directory} is {repository}@{commit}", (*checked.sections, section))


def _upload(offer: Offer) -> str:
    """Send every file as one commit; gives the commit."""
    from huggingface_hub import HfApi

    api = HfApi()
    with explained(offer.repository), hushed():
        api.create_repo(offer.repository, private=not offer.public, exist_ok=True)
        if not offer.public and api.model_info(offer.repository).private is not True:
            what = "is there already, and anybody may see it"
            remedy = "say that it shall be public, or make it private on the hub"
            raise HubError(what, where=offer.repository, remedy=remedy)
        done = api.upload_folder(
            repo_id=offer.repository,
            folder_path=offer.directory,
            allow_patterns=[*map(glob.escape, offer.files)],
            delete_patterns=["*"],
            commit_message="Weighbridge build with its evidence",
        )
        return str(done.oid)


def _differences(offer: Offer, commit: str) -> Iterator[Finding]:
    """What the hub says that it holds, against what was offered: names, sizes, and SHA-256 of the large files."""
    hub_id = parse_hub_id(f"{offer.repository}@{commit}")
    assert hub_id is not None
    there = {name: fact for name, fact in find_snapshot(hub_id).files.items() if name not in UNSIGNED}
    for name in sorted(there.keys() | offer.files.keys()):
        if name not in there or name not in offer.files:
            where = "in the repository" if name in there else "here"
            yield Finding("publish/other-files", Severity.ERROR, name, f"is only {where}")
        elif there[name].size not in (None, offer.files[name].size) or there[name].sha256 not in (
            None,
            offer.files[name].sha256,
        ):
            yield Finding("publish/other-bytes", Severity.ERROR, name, "is not there as it was sent")
