"""Opening a checkpoint by what a person calls it: a directory, a lock, a hub id."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from weighbridge.checkpoint.hub import open_hub, parse_hub_id
from weighbridge.checkpoint.lock import open_lock
from weighbridge.checkpoint.model import Checkpoint, open_directory
from weighbridge.errors import HubError, StructureError

LONGEST_NAME = 1024


def open_checkpoint(reference: str, *, follow: Sequence[Path] = ()) -> Checkpoint:
    """Open a directory, a structure lock (known by its content) or a hub id ``org/name[@revision]``.

    What exists on disk goes before the hub.

    Args:
        follow: directories into which the links of a directory may lead; see `weighbridge.checkpoint.listing`.

    Raises:
        StructureError: none of the three, or malformed.
        HubError: the hub could not be reached or did not give it.
    """
    path = Path(reference)
    if len(reference) > LONGEST_NAME:
        raise StructureError("is longer than a name or path can be", where=reference)
    if path.is_dir():
        return open_directory(path, label=reference, follow=follow)
    if path.exists():
        return open_lock(path)
    hub_id = parse_hub_id(reference)
    looks_like_path = reference.startswith((".", "/", "~")) or reference.endswith((".yaml", ".yml", ".json"))
    if hub_id is None or looks_like_path:
        raise StructureError(
            "no such directory or file",
            where=reference,
            remedy=_meant(path) or "name a directory, a lock or a hub id org/name[@revision]",
        )
    try:
        return open_hub(hub_id)
    except HubError as error:
        if error.where != reference or hub_id.revision is not None:  # part of a repository, or nobody's directory
            raise
        what = f"no such directory, so it was taken for a hub id: {error.what}"
        raise HubError(what, where=reference, remedy=_meant(path) or error.remedy) from error


def hub_name(name: str) -> str:
    """A hub id that a stranger's file names, as `open_checkpoint` opens it: from the hub, and from nowhere here.

    Raises:
        StructureError: it is no hub id; or something of that name lies here, and would be opened in its place.
    """
    if parse_hub_id(name) is None:
        raise StructureError("is no hub id, and no other name is opened that evidence has", where=name)
    if Path(name).exists():
        what = "is a hub id in the evidence, but something of this name lies here, too"
        raise StructureError(what, where=name, remedy="name yourself what is meant")
    return name


def _meant(path: Path) -> str:
    """The question whether something with a similar name was meant that lies where `path` would; empty for nothing."""
    close = get_close_matches(path.name, [beside.name for beside in path.parent.glob("*")], n=1)
    return f"did you mean {path.with_name(close[0])}?" if close else ""
