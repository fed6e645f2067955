"""The work of an audit in pieces: rows of pairs, cut by a fixed size, all of them or a seeded random share.

A piece is cut by size alone, never by the number of workers or the memory at hand, so that a journal written with one
setting is understood under another, and sums are the same under all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from weighbridge.auditing.pairing import KeptPair, Pair, Pairing
from weighbridge.formats.tensors import DTYPE_BITS

PIECE_BYTES = 4 * 1024 * 1024
"""Bytes of the base in a piece, unless a single row (or row of blocks) is larger."""

KEPT_ROW = 4096
"""Elements that count as a row of a kept tensor."""

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Strip:
    """Rows of a pair that are looked at in one go.

    Attributes:
        pair: index of the pair.
        spans: first row and number of rows of each run of rows; of a kept tensor, elements.
    """

    pair: int
    spans: Spans

    @property
    def rows(self) -> int:
        return sum(count for _, count in self.spans)


@dataclass(frozen=True, slots=True)
class Piece:
    """Strips that are worked on together; the unit of the journal."""

    number: int
    strips: tuple[Strip, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A random share of rows.

    Attributes:
        share: of each tensor's rows, more than 0 and at most 1; at least one row is always taken.
        seed: of the choice.
    """

    share: float
    seed: int = 0


def cut(pairing: Pairing, sample: Sample | None = None) -> tuple[Piece, ...]:
    """Cut a pairing into pieces, in the order of the base's bytes."""
    pieces: list[Piece] = []
    pending: list[Strip] = []
    pending_bytes = 0
    for index, item in enumerate(pairing.pairs):
        for spans, size in _strips(item, index, sample):
            if pending and pending_bytes + size > PIECE_BYTES:
                pieces.append(Piece(len(pieces), tuple(pending), pending_bytes))
                pending, pending_bytes = [], 0
            pending.append(Strip(index, spans))
            pending_bytes += size
    if pending:
        pieces.append(Piece(len(pieces), tuple(pending), pending_bytes))
    return tuple(pieces)


def cut_by_elements(item: KeptPair) -> bool:
    """Whether a kept tensor is cut without regard to its rows: both sides hold it in the same order."""
    return all(side.columns is None and side.coded is None for side in (item.source, item.stored))


def units_of(item: Pair) -> tuple[int, int]:
    """How a pair's rows are chosen: rows in all, and how many stay together."""
    if isinstance(item, KeptPair):
        return (item.source.tensor.parameters, KEPT_ROW) if cut_by_elements(item) else (item.source.tensor.shape[0], 1)
    args = item.scheme.weights
    if args.block_structure is not None:
        return item.weight.shape[0], args.block_structure[0]
    # Zero points share words down the rows.
    return item.weight.shape[0], 32 // args.num_bits if args.type == "int" and not args.symmetric else 1


def _strips(item: Pair, index: int, sample: Sample | None) -> Iterator[tuple[Spans, int]]:
    rows, unit = units_of(item)
    columns = 1 if isinstance(item, KeptPair) and cut_by_elements(item) else math.prod(item.source.tensor.shape[1:])
    row_bytes = columns * DTYPE_BITS[item.source.tensor.dtype] // 8
    at_once = max(1, PIECE_BYTES // max(1, row_bytes * unit))
    total = -(-rows // unit)
    chosen = range(total) if sample is None else _chosen(total, index, sample)
    for begin in range(0, max(len(chosen), 1), at_once):
        spans = _runs(chosen[begin : begin + at_once], unit, rows)
        yield spans, sum(count for _, count in spans) * row_bytes


def _chosen(total: int, index: int, sample: Sample) -> Sequence[int]:
    """Numbers of the units that a sample takes, ascending; the same for one seed."""
    count = min(total, max(1, round(total * sample.share)))
    random = np.random.default_rng([sample.seed, index])
    return sorted(random.choice(total, count, replace=False).tolist())


def _runs(units: Sequence[int], unit: int, rows: int) -> Spans:
    """Units as runs of rows."""
    if isinstance(units, range):
        return ((units.start * unit, min(units.stop * unit, rows) - units.start * unit),) if units else ((0, 0),)
    runs: list[list[int]] = []
    for number in units:
        if runs and runs[-1][1] == number:
            runs[-1][1] = number + 1
        else:
            runs.append([number, number + 1])
    return tuple((first * unit, min(last * unit, rows) - first * unit) for first, last in runs)
