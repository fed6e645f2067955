"""How much memory a calibration by layer has left for Hessians."""

from __future__ import annotations

from weighbridge.errors import Argument, WeighbridgeError
from weighbridge.machine.resources import resident
from weighbridge.planning.calibrating import HELD, Needs

USUAL_ROOM = 1 << 31
"""Bytes of Hessians at a time, where nobody set a limit."""


def room_for_hessians(needs: Needs, limit: int | None) -> int:
    """Bytes of Hessians that may be held at a time.

    Args:
        limit: bytes of resident memory of this process, torch and llm-compressor loaded; or None.

    Raises:
        WeighbridgeError: the limit is too small; with the smallest that would do.
    """
    if limit is None:
        return max(USUAL_ROOM, needs.hessians)
    held = max(resident(), HELD)
    if limit < held + needs.memory:
        raise WeighbridgeError(
            f"{limit:,} bytes of memory are too little to calibrate with: this process holds {held:,}, the largest "
            f"layer and what passes through it take {needs.memory - needs.hessians:,}, Hessians {needs.hessians:,}",
            where=Argument("memory"),
            remedy=f"allow {held + needs.memory:,} bytes or more",
        )
    return limit - held - needs.memory + needs.hessians
