"""The work of an audit in pieces: rows of pairs, all of them or a seeded random share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from weighbridge.auditing.pairing import KeptPair, Pair, Pairing
from weighbridge.formats.tensors import DTYPE_BITS
from weighbridge.work.pieces import Piece, in_pieces, in_strips
from weighbridge.work.reading import share_of_piece
from weighbridge.work.regions import Region

KEPT_ROW = 4096
"""Elements that count as a row of a kept tensor."""

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Strip:
    """Rows of a pair that are looked at in one go.

    Attributes:
        pair: index of the pair.
        spans: first row and number of rows of each run of rows; of a kept tensor, elements.
        nbytes: bytes of the base that they are.
    """

    pair: int
    spans: Spans
    nbytes: int

    @property
    def rows(self) -> int:
        return sum(count for _, count in self.spans)


@dataclass(frozen=True, slots=True)
class Sample:
    """A random share of rows.

    Attributes:
        share: of each tensor's rows, more than 0 and at most 1; at least one row is always taken.
        seed: of the choice.
    """

    share: float
    seed: int = 0


def cut(pairing: Pairing, sample: Sample | None = None) -> tuple[Piece[Strip], ...]:
    """Cut a pairing into pieces, in the order of the base's bytes."""
    return in_pieces(
        (strip, share_of_piece([_read_at(item, strip)], strip.nbytes))
        for index, item in enumerate(pairing.pairs)
        for strip in _strips(item, index, sample)
    )


def _read_at(item: Pair, strip: Strip) -> Region:
    """As many rows of the base as a strip has, where they lie as columns; which of them does not matter."""
    return item.source.rows(0, strip.rows) if item.source.as_columns else item.source


def cut_by_elements(item: KeptPair) -> bool:
    """Whether a kept tensor is cut without regard to its rows: both sides hold it in the same order."""
    return all(side.columns is None and side.coded is None for side in (item.source, item.stored))


def units_of(item: Pair) -> tuple[int, int]:
    """How a pair's rows are chosen: rows in all, and how many stay together."""
    if isinstance(item, KeptPair):
        return (item.source.tensor.parameters, KEPT_ROW) if cut_by_elements(item) else (item.source.tensor.shape[0], 1)
    return item.weight.shape[0], item.scheme.weights.unit


def _strips(item: Pair, index: int, sample: Sample | None) -> Iterator[Strip]:
    rows, unit = units_of(item)
    columns = 1 if isinstance(item, KeptPair) and cut_by_elements(item) else math.prod(item.source.tensor.shape[1:])
    row_bytes = columns * DTYPE_BITS[item.source.tensor.dtype] // 8
    total = -(-rows // unit)
    chosen = range(total) if sample is None else _chosen(total, index, sample)
    for strip in in_strips(len(chosen), row_bytes * unit):
        spans = _runs(chosen[strip.start : strip.stop], unit, rows)
        yield Strip(index, spans, sum(count for _, count in spans) * row_bytes)


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
