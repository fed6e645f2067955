"""Opening a checkpoint by what a person calls it: a directory, a lock, a hub id."""

from __future__ import annotations

from pathlib import Path

from weighbridge.errors import StructureError
from weighbridge.structure.checkpoint import Checkpoint, open_directory
from weighbridge.structure.hub import open_hub, parse_hub_id
from weighbridge.structure.lock import open_lock


def open_checkpoint(reference: str) -> Checkpoint:
    """Open a directory, a structure lock (known by its content) or a hub id ``org/name[@revision]``.

    What exists on disk goes before the hub.

    Raises:
        StructureError: none of the three, or malformed.
        HubError: the hub could not be reached or did not give it.
    """
    path = Path(reference)
    if path.is_dir():
        return open_directory(path, label=reference)
    if path.exists():
        return open_lock(path)
    hub_id = parse_hub_id(reference)
    looks_like_path = reference.startswith((".", "/", "~")) or reference.endswith((".yaml", ".yml", ".json"))
    if hub_id is None or looks_like_path:
        raise StructureError(
            "no such directory or file",
            where=reference,
            remedy="name a directory, a lock or a hub id org/name[@revision]",
        )
    return open_hub(hub_id)
