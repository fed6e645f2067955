"""What compensation (GPTQ) can do to a weight: figures of its rows, and the limits that honest builds stay within.

docs/explanation/audit.md derives what can be derived. The rest is measured: `python -m benchmarks.compensation` makes
honest builds, and alterations of them, and prints these figures of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from weighbridge.auditing import rounding
from weighbridge.auditing.grid import Array, Floats, Rows, spread, values_of
from weighbridge.auditing.measure import Measure
from weighbridge.auditing.moves import at_rest, entropy, moved_further

LEAN = 0.5
"""How much of the moved codes may have gone up more than down, or down more than up; 0.2 is measured."""

LEAN_AT_REST = 0.6
"""The same of the codes whose weights lie nearly on their place, towards these more than away; 0.53 is measured.
Whoever rounds up or down as he likes moves them towards their weights alone."""

VOLUME = 3.0
"""How much larger than that of uniform rounding errors the volume of a module's errors may be; 1.7 is measured."""

MOST_COLUMNS = 4096
"""Of a module whose volume is asked for: its matrix of products is held in memory."""

LIVE = 1 / 8
"""Share of rows in which a column is not zero once it is rounded, from which on it counts as one that is used."""

LEAST_ROWS = 64
"""Rows from which on the limits of modules hold; of fewer, as a sample may have, those of rows alone."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an honest module stays within.

    Attributes:
        row_projection: how far from 1 the projection of a row on the base's may be: <stored, base> / <base, base>.
        projection: the same of the module.
        moved: share of codes that are not the nearest.
        noise: squared error over what uniform rounding errors under the stored scales add up to.
        further: share of codes that are more than one place from the nearest.
        bits: what the moves of codes may hold, for each.
    """

    row_projection: float
    projection: float
    moved: float
    noise: float
    further: float
    bits: float


_BY_DAMPENING = (
    (0.1, Limits(0.2, 0.06, 0.5, 5, 0.06, 1.3)),
    (0.01, Limits(0.4, 0.06, 0.75, 24, 0.17, 2.4)),
    (0.0, Limits(0.75, 0.12, 0.9, 110, 0.4, 3.2)),
)
"""From this dampening on. Measured with 0.1, 0.01 and 0.001, over 7,180 modules: honest ones take up at most 0.77 of
the projections, 0.88 of the moved codes and 0.67 of the noise; over 5,226 of them, those of 36 whole builds among them,
at most 0.88 of the bits and 0.83 of the moves further than a place."""

_OF_EIGHT_BITS = (
    (0.1, Limits(0.2, 0.003, 0.5, 5, 0.13, 2.25)),
    (0.01, Limits(0.2, 0.003, 0.75, 24, 0.2, 2.9)),
    (0.0, Limits(0.2, 0.003, 0.9, 110, 0.4, 4.2)),
)
"""There is less to compensate for, and more places to go to: at most 0.87 of the bits and 0.84 of the moves."""


def limits_of(bits: int, dampening: float) -> Limits:
    """The limits of a module of so many bits a weight, compensated with this share of the Hessian's mean diagonal."""
    return next(limits for least, limits in (_BY_DAMPENING if bits < 8 else _OF_EIGHT_BITS) if dampening >= least)


def measured(
    seen: Measure, weights: tuple[Array, bool], rows: Rows, noise: Array, hit: Array, dampening: float
) -> Measure:
    """The figures of rows that may make up for errors.

    Args:
        weights: of the base, as the loops take them.
        noise: squared error of each row.
        hit: 1 for each column that has a code which is not the nearest.
        dampening: share of the Hessian's mean diagonal that was added to it.
    """
    count = len(noise)
    signal, dot, steps = (np.empty(count, np.float64) for _ in range(3))
    zero, live = np.ones(rows.columns, np.uint8), np.zeros(rows.columns, np.uint32)
    places, tiles = rows.grid.places, rows.tiles
    with np.errstate(all="ignore"):
        ups, downs = rounding.directions(
            *weights, rows.codes, rows.grid.nibbles, places, tiles, signal, dot, zero, live
        )
        rounding.squared_steps(*weights, places, tiles, steps)
        bound = rows.columns * rows.widest.astype(np.float64) ** 2 * (1 + dampening) / (4 * np.float64(dampening))
        strayed = np.flatnonzero(~(noise <= bound))
        askew = np.abs(1 - dot / signal) > limits_of(rows.grid.bits, dampening).row_projection
    askew &= signal > 0
    return replace(
        seen,
        strayed_rows=len(strayed),
        askew_rows=int(askew.sum()),
        first=int(np.flatnonzero(askew)[0]) if askew.any() else int(strayed[0]) if len(strayed) else -1,
        settled=_bits(hit == 0),
        zero_columns=_bits(zero == 1),
        # A few rows say nothing of what a column is used for.
        live_columns=_bits(live > LIVE * count) if count >= LEAST_ROWS else 0,
        dot=float(dot.sum()),
        expected=float(steps.sum()) / 12,
        ups=int(ups),
        downs=int(downs),
    )


def _bits(columns: Array) -> int:
    return int.from_bytes(np.packbits(columns, bitorder="little").tobytes(), "little")


def beyond(seen: Measure, bits: int, dampening: float) -> str:
    """What a module's figures are that compensation cannot explain; empty where it can."""
    return next(_beyond(seen, bits, limits_of(bits, dampening)), "")


def _beyond(seen: Measure, bits: int, limits: Limits) -> Iterator[str]:
    if seen.askew_rows:
        yield (
            f"{seen.askew_rows:,} of {seen.rows:,} rows hold less, or more, of the base's row than "
            f"{1 - limits.row_projection:g} to {1 + limits.row_projection:g} of it"
        )
    if seen.rows < LEAST_ROWS:
        return
    moved = seen.not_nearest / max(seen.elements, 1)
    noise = seen.noise / seen.expected if seen.expected else math.inf if seen.noise else 0.0
    projection = seen.dot / seen.signal if seen.signal else 1.0
    dead = (seen.zero_columns & seen.live_columns).bit_count()
    if dead:
        yield f"{dead:,} columns are zero where the base's are not: calibration never reached them, or they were erased"
    if not abs(1 - projection) <= limits.projection:
        yield f"it holds {projection:.4f} of the base's weight, where within {limits.projection:g} of 1 is possible"
    if moved > limits.moved:
        yield f"{100 * moved:.1f} % of its codes are not the nearest, where {100 * limits.moved:g} % is possible"
    if not noise <= limits.noise:
        yield f"its squared error is {noise:.1f} times that of rounding, where {limits.noise:g} is possible"
    if _leans(seen.ups, seen.downs, LEAN):
        yield f"{seen.ups:,} codes went up and {seen.downs:,} down, where compensation goes both ways"
    towards, away = at_rest(seen.moves)
    if _leans(towards, away, LEAN_AT_REST):
        yield (
            f"of weights that lie on a place of the grid, the codes of {towards:,} went to that beyond the weight and "
            f"of {away:,} to the other side: they were rounded up or down at will, where compensation goes both ways"
        )
    further, unexplained = moved_further(seen.moves), entropy(seen.moves, bits)
    if further > limits.further:
        yield (
            f"{100 * further:.1f} % of its codes are more than one place from the nearest, where "
            f"{100 * limits.further:g} % is possible"
        )
    if unexplained > limits.bits:
        yield f"{unexplained:.2f} bits a weight of its codes are not the base's, where {limits.bits:g} is possible"


def _leans(one: int, other: int, share: float) -> bool:
    """Whether more went one way than the other than `share` of them, and than a few do by chance."""
    return abs(one - other) > share * (one + other) + 8 * math.sqrt(one + other)


def has_volume(rows: int, columns: int) -> bool:
    """Whether so many rows span a volume, and there are few enough columns to hold their products."""
    return rows >= max(9 * columns // 8, columns + 16) and columns <= MOST_COLUMNS


class Volume:
    """How large the volume that a module's errors span is beside that of uniform rounding errors, by dimension.

    Compensation multiplies rounding errors by a triangular matrix with ones on its diagonal, whatever the Hessian.
    That leaves the determinant of their products as it was: that of the rounding errors themselves. Holds the products
    of columns, float64, and takes rows as they come.
    """

    def __init__(self, columns: int) -> None:
        self._products = np.zeros((columns, columns))
        self._rows = 0

    def add(self, weights: Floats, rows: Rows) -> None:
        """Take in rows of the base, float32 [rows, columns], and what is stored of them."""
        with np.errstate(all="ignore"):
            errors = (weights - values_of(rows) * spread(rows, rows.divisors)).astype(np.float64)
            steps = np.empty(len(weights), np.float64)
            rounding.squared_steps(weights, False, rows.grid.places, rows.tiles, steps)
            # Rows may be scaled: each by what its own rounding errors would be.
            errors /= np.sqrt(np.maximum(steps / 12 / weights.shape[1], np.finfo(np.float32).tiny))[:, None]
            self._products += errors.T @ errors
        self._rows += len(weights)

    @property
    def size(self) -> float:
        """1 of uniform rounding errors; infinite where errors are none, or repeat one another."""
        if not np.isfinite(self._products).all():
            return math.inf
        # Columns without an error, as padded ones are, span nothing.
        said = np.flatnonzero(self._products.diagonal() > 0)
        if not len(said):
            return 0.0
        sign, logarithm = np.linalg.slogdet(self._products[np.ix_(said, said)])
        if sign <= 0:
            return math.inf
        expected = (np.log(2) + _digamma((self._rows - np.arange(len(said))) / 2)).sum()
        return float(np.exp((logarithm - expected) / len(said)))


def _digamma(values: Any) -> Any:
    """The logarithmic derivative of the gamma function, of values of 8 and more, to within 1e-7."""
    return np.log(values) - 1 / (2 * values) - 1 / (12 * values**2) + 1 / (120 * values**4)
