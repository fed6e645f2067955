"""How far stored codes are from the nearest, and how much can lie in that."""

from __future__ import annotations

import numpy as np

from weighbridge.auditing import rounding
from weighbridge.auditing.grid import Array, Rows

PARTS, FURTHEST = 8, 8
"""How finely the distance from a weight to its nearest place is told apart, and the moves."""


def moves_of(weights: tuple[Array, bool], rows: Rows) -> tuple[tuple[int, ...], int]:
    """How many codes of rows are how many places from the nearest: `PARTS` rows of 2 `FURTHEST` + 1 counts.

    And how many stored bits stand for nothing: signs of zeros, and what lies beyond the last column.

    Args:
        weights: of the base, as the loops take them.
    """
    counts = np.zeros((PARTS, 2 * FURTHEST + 1), np.int64)
    with np.errstate(all="ignore"):
        for_nothing = rounding.moves(*weights, rows.codes, rows.grid.nibbles, rows.grid.places, rows.tiles, counts)
    return tuple(counts.ravel().tolist()), int(for_nothing)


def entropy(moves: tuple[int, ...], bits: int) -> float:
    """Bits that it takes at least, for each code, to tell where codes are from where the nearest are.

    Args:
        bits: of a code. One that moved by `FURTHEST` places or more counts as not told at all.
    """
    counts = np.array(moves, np.float64).reshape(PARTS, -1)
    total = counts.sum()
    if not total:
        return 0.0
    of_part = np.broadcast_to(counts.sum(axis=1, keepdims=True), counts.shape)
    told = counts > 0
    found = (counts[told] * np.log2(of_part[told] / counts[told])).sum() + bits * counts[:, [0, -1]].sum()
    return float(found / total)


def moved_further(moves: tuple[int, ...]) -> float:
    """Share of the codes that are more than one place from the nearest."""
    counts = np.array(moves, np.int64).reshape(PARTS, -1)
    total = int(counts.sum())
    return 1 - int(counts[:, FURTHEST - 1 : FURTHEST + 2].sum()) / total if total else 0.0


def at_rest(moves: tuple[int, ...]) -> tuple[int, int]:
    """How many codes of weights that lie nearly on their place moved towards their weight, and how many away from it.

    Nearly is within a sixteenth of a step.
    """
    counts = np.array(moves, np.int64).reshape(PARTS, -1)[0]
    return int(counts[FURTHEST + 1 :].sum()), int(counts[:FURTHEST].sum())
