"""The structure locks of references/, opened by their names."""

from __future__ import annotations

from weighbridge.base.locks import read_reference
from weighbridge.checkpoint.lock import expand_lock
from weighbridge.checkpoint.model import Checkpoint


def reference_lock(name: str) -> Checkpoint:
    """Open a structure lock in references/ by its name.

    Raises:
        StructureError: there is none, or it is malformed.
    """
    return expand_lock(read_reference(name))
