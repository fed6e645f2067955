"""Work in pieces: strips of rows, cut by a fixed size.

A piece is cut by size alone, never by the number of workers or the memory at hand, so that a journal written with one
setting is understood under another, and bytes and sums are the same under all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

PIECE_BYTES = 4 * 1024 * 1024
"""Bytes of unquantized weight in a strip, and in a piece, unless a single row (or row of blocks) is larger, or rows lie
as columns: of these a piece is what is read ahead at a time."""


class Strip(Protocol):
    """Rows that are worked on in one go."""

    @property
    def nbytes(self) -> int:
        """What progress is counted by."""


S = TypeVar("S", bound=Strip)


@dataclass(frozen=True, slots=True)
class Piece(Generic[S]):
    """Strips that are worked on together; the unit of the journal."""

    number: int
    strips: tuple[S, ...]

    @property
    def nbytes(self) -> int:
        """What progress is counted by."""
        return sum(strip.nbytes for strip in self.strips)


def in_strips(rows: int, row_bytes: int, unit: int = 1) -> Iterator[range]:
    """Rows cut into strips of whole units of at most `PIECE_BYTES`; what has no rows is one strip of none.

    Args:
        unit: how many rows stay together.
    """
    height = max(1, PIECE_BYTES // max(1, row_bytes * unit)) * unit
    for first in range(0, max(rows, 1), height):
        yield range(first, min(first + height, rows))


def in_pieces(strips: Iterable[tuple[S, int]]) -> tuple[Piece[S], ...]:
    """Strips in their order, each with what it counts for, put together into pieces of `PIECE_BYTES`."""
    pieces: list[list[S]] = []
    filled = 0
    for strip, size in strips:
        if not pieces or filled + size > PIECE_BYTES:
            pieces.append([])
            filled = 0
        pieces[-1].append(strip)
        filled += size
    return tuple(Piece(number, tuple(content)) for number, content in enumerate(pieces))
