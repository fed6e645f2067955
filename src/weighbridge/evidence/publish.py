"""Putting a checkpoint on the hub, once its evidence holds, and looking at what then lies there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from weighbridge.errors import HubError
from weighbridge.evidence.signing import Verifier
from weighbridge.evidence.subject import UNSIGNED, hash_files, list_all
from weighbridge.evidence.verify import verify
from weighbridge.progress import Progress
from weighbridge.report import Finding, Report, Section, Severity
from weighbridge.structure.hub import find_snapshot, parse_hub_id
from weighbridge.structure.hub_client import explained, hushed


def publish(
    directory: Path, repository: str, *, private: bool, verifier: Verifier | None, progress: Progress
) -> Report:
    """Upload a checkpoint with its evidence as one commit that leaves nothing else in the repository.

    Args:
        repository: hub id ``org/name``; made if it is not there.
        private: whether it is made private.
        verifier: who must have signed; see `verify`.

    Raises:
        HubError: the hub cannot be reached, refuses, or holds something else afterwards than was sent.
        StructureError, EvidenceError: as `verify`.
    """
    hub_id = parse_hub_id(repository)
    if hub_id is None or hub_id.revision:
        raise HubError("is no hub id of the form org/name", where=repository, remedy="name it so, without a revision")
    checked = verify(directory, verifier=verifier, progress=progress)
    if not checked.holds:
        return Report("publish", repository, f"nothing was uploaded: {checked.verdict}", checked.sections)
    commit = _upload(directory, repository, private=private)
    findings = tuple(_differences(directory, repository, commit, progress))
    section = Section(
        f"{repository}@{commit[:7]}", "holds what was sent" if not findings else "differs", findings=findings
    )
    return Report("publish", repository, f"{directory} is {repository}@{commit}", (*checked.sections, section))


def _upload(directory: Path, repository: str, *, private: bool) -> str:
    """Send every file as one commit; gives the commit."""
    from huggingface_hub import HfApi

    listing = list_all(directory)
    api = HfApi()
    with explained(repository), hushed():
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            allow_patterns=[*map(_literal, (*listing.signed, *listing.evidence))],
            delete_patterns=["*"],
            commit_message="Weighbridge build with its evidence",
        )
        return str(done.oid)


def _literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _differences(directory: Path, repository: str, commit: str, progress: Progress) -> Iterator[Finding]:
    """What the hub says that it holds, against what was sent: names, sizes, and SHA-256 of the large files."""
    hub_id = parse_hub_id(f"{repository}@{commit}")
    assert hub_id is not None
    there = {name: fact for name, fact in find_snapshot(hub_id).files.items() if name not in UNSIGNED}
    listing = list_all(directory)
    sent = hash_files(directory, (*listing.signed, *listing.evidence), progress=progress)
    for name in sorted(there.keys() | sent.keys()):
        if name not in there or name not in sent:
            where = "in the repository" if name in there else "here"
            yield Finding("publish/other-files", Severity.ERROR, name, f"is only {where}")
        elif there[name].size not in (None, (directory / name).stat().st_size) or there[name].sha256 not in (
            None,
            sent[name],
        ):
            yield Finding("publish/other-bytes", Severity.ERROR, name, "is not there as it was sent")
