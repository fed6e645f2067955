"""The range that an observer chooses for each tile of the base: the audit's own search, written from its definition.

The range of a tile, zero included, is multiplied by ``expand``, then for each step from 0 on by ``1 - step / grid``.
Each range gives a scale (and a zero point), by which the tile is rounded to nearest; its error is the sum of the
magnitudes of the differences, each to the power of ``norm``. Of the ranges with the least error the first is chosen.
All that is computed is rounded to the dtype of the weights, and sums are float32, added in torch's order. Source:
``_grid_search_mse`` of llm-compressor 0.14.0.1, as it runs on a CPU.

Where a whole module sees no lesser error in any tile for ``patience`` steps, llm-compressor stops: `choose` says which
steps lessen one, and whoever has seen all rows says how many there are.

numba's cache notices no change of `weighbridge.auditing.rounding`: whoever makes one touches this file.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import float32, uint32

from weighbridge.auditing.arithmetic import PRECISIONS, narrowed, own_rule
from weighbridge.auditing.grid import Array, Floats, Grid, Rows, float_values
from weighbridge.auditing.rounding import Rule, _bits_of, _float_of, _nearest, _rounded, _scales
from weighbridge.formats.observers import Search
from weighbridge.formats.schemes import Scheme
from weighbridge.machine.compiling import jit

_F16, _F32 = 1, 2
_SIGNED = 6  # as `weighbridge.auditing.rounding` numbers rules

TIE = {"BF16": 0.0, "F16": 0.0, "F32": 2.0**-20}
"""By how much, relatively, an error may be above the least, where its scale is the one that is stored: torch's powers
of float32 are no nearest ones, and those of the others are looked up."""

_LARGEST = {"BF16": np.float32(255 * 2.0**120), "F16": np.float32(65504), "F32": np.finfo(np.float32).max}


class Chosen(NamedTuple):
    """The ranges that an observer chooses.

    Attributes:
        low, high: their ends, float32 [tiles down, tiles across].
        improving: the steps that lessen the error of any tile, a bit for each.
    """

    low: Floats
    high: Floats
    improving: int


def choose(
    weights: Array, dtype: str, grid: Grid, scheme: Scheme, search: Search, steps: int, rows: Rows, rule: Rule
) -> Chosen:
    """The ranges that a search finds for the tiles of some rows of the base.

    Args:
        weights: uint16 [rows, columns] of BF16 bit patterns, or float32; without NaN and infinity.
        steps: how many are tried.
        rows: what is stored of them.
        rule: how stored scales follow from ranges.
    """
    precision = PRECISIONS[dtype]
    low, high = np.empty_like(rows.scales), np.empty_like(rows.scales)
    improving = np.zeros(steps, np.uint8)
    _, _, height, width, _ = rows.tiles
    with np.errstate(all="ignore"):
        _choose(
            own_rule(grid, scheme, dtype),
            rule,
            grid.places,
            weights,
            dtype == "BF16",
            height,
            width,
            np.float32(search.expand),
            np.array([search.share(step) for step in range(steps)], np.float32),
            _powers(dtype, search.norm),
            float(np.float32(search.norm)),
            _LARGEST[dtype],
            np.float32(1 + TIE[dtype]),
            rows.scales,
            rows.zeros,
            precision.number,
            low,
            high,
            improving,
        )
    return Chosen(low, high, sum(1 << int(step) for step in np.flatnonzero(improving)))


@lru_cache(maxsize=8)
def _powers(dtype: str, norm: float) -> npt.NDArray[np.float32]:
    """value^norm of every value of a dtype of 16 bits that is not negative, by its bit pattern; none for F32.

    The exponent is rounded to the dtype, as the power is. Squares, cubes and roots are products and roots.
    """
    if dtype == "F32":
        return np.empty(0, np.float32)
    patterns = np.arange(1 << 15, dtype=np.uint16)
    values = float_values(patterns if dtype == "BF16" else patterns.view(np.float16), dtype)
    exponent = float(narrowed(np.array([norm], np.float32), dtype)[0])
    with np.errstate(all="ignore"):
        if exponent == 3:
            return narrowed(narrowed(values * values, dtype) * values, dtype)
        return narrowed(np.power(values.astype(np.float64), exponent).astype(np.float32), dtype)


@jit
def _choose(
    rule: Any,
    stored_rule: Any,
    places: Any,
    weights: Any,
    is_bf16: Any,
    height: Any,
    width: Any,
    expand: Any,
    shares: Any,
    table: Any,
    norm: Any,
    largest: Any,
    tie: Any,
    stored_scales: Any,
    stored_zeros: Any,
    dtype: Any,
    low: Any,
    high: Any,
    improving: Any,
) -> None:
    """See `choose`.

    Args:
        tie: what the least error is multiplied by to have all that may be the least.
    """
    steps = shares.shape[0]
    values, errors = np.empty(height * width, np.float32), np.empty(height * width, np.float32)
    lows, highs = np.empty(max(steps, 1), np.float32), np.empty(max(steps, 1), np.float32)
    scales, divisors, zeros = np.empty_like(lows), np.empty_like(lows), np.empty_like(lows)
    of_step = np.empty_like(lows)
    for down in range(low.shape[0]):
        for across in range(low.shape[1]):
            _take(weights, is_bf16, down * height, across * width, height, width, values)
            bottom, top = min(float32(0), values.min()), max(float32(0), values.max())
            if rule.kind == _SIGNED and top > -bottom:  # the sign is that of the values, not of rounded ends
                bottom = float32(0)
            elif rule.kind == _SIGNED:
                top = float32(0)
            bottom, top = _rounded(dtype, float32(bottom * expand)), _rounded(dtype, float32(top * expand))
            lows[0], highs[0] = bottom, top
            for step in range(steps):
                lows[step] = _rounded(dtype, float32(bottom * shares[step]))
                highs[step] = _rounded(dtype, float32(top * shares[step]))
            _scales(rule, lows, highs, scales, divisors, zeros)
            least, best = largest, -1
            for step in range(steps):
                _fill_errors(places, dtype, values, divisors[step], zeros[step], errors)
                _raise(dtype, table, norm, errors)
                of_step[step] = _rounded(dtype, _total(errors, 8 if dtype == _F32 else 16))
                if of_step[step] < least:
                    least, best = of_step[step], step
                    improving[step] = 1
            if best >= 0 and tie > float32(1):
                _scales(stored_rule, lows, highs, scales, divisors, zeros)
                best = _first_that_is_stored(
                    of_step,
                    float32(least * tie),
                    scales,
                    zeros,
                    stored_scales[down, across],
                    stored_zeros[down, across],
                    best,
                )
            low[down, across] = lows[best] if best >= 0 else bottom
            high[down, across] = highs[best] if best >= 0 else top


@jit
def _first_that_is_stored(errors: Any, limit: Any, scales: Any, zeros: Any, scale: Any, zero: Any, best: Any) -> Any:
    """The first step with what is stored among those that may have the least error; otherwise `best`."""
    for step in range(errors.shape[0]):
        if errors[step] <= limit and scales[step] == scale and zeros[step] == zero:
            return step
    return best


@jit
def _take(weights: Any, is_bf16: Any, row: Any, column: Any, height: Any, width: Any, values: Any) -> None:
    """Fill the values of a tile, zeros beyond the last row and column."""
    values[:] = 0
    for down in range(min(height, weights.shape[0] - row)):
        for across in range(min(width, weights.shape[1] - column)):
            weight = weights[row + down, column + across]
            if is_bf16:
                values[down * width + across] = _float_of(uint32(uint32(weight) << 16))
            else:
                values[down * width + across] = float32(weight)


@jit
def _fill_errors(places: Any, dtype: Any, values: Any, divisor: Any, zero: Any, errors: Any) -> None:
    """How far each value is from what its code stands for."""
    for index in range(values.shape[0]):
        place = _rounded(dtype, float32(values[index] / divisor))
        if zero != float32(0):
            place = _rounded(dtype, float32(place + zero))
        stored = _rounded(dtype, float32(_nearest(places, place) - zero))
        errors[index] = abs(_rounded(dtype, float32(_rounded(dtype, float32(stored * divisor)) - values[index])))


@jit
def _raise(dtype: Any, table: Any, norm: Any, errors: Any) -> None:
    if dtype == _F32:
        for index in range(errors.shape[0]):
            error = errors[index]
            if norm == 2.0:
                errors[index] = float32(error * error)
            elif norm == 3.0:
                errors[index] = float32(float32(error * error) * error)
            else:
                errors[index] = float32(float(error) ** norm)
    elif dtype == _F16:
        for index in range(errors.shape[0]):
            errors[index] = table[_pattern_of_f16(errors[index])]
    else:
        for index in range(errors.shape[0]):
            errors[index] = table[_bits_of(errors[index]) >> 16]


@jit
def _pattern_of_f16(value: Any) -> Any:
    """The bit pattern of a value of F16 that is not negative."""
    if value == np.inf:
        return uint32(0x7C00)
    if value < float32(2.0**-14):
        return uint32(value * float32(2.0**24))
    return uint32(uint32(_bits_of(value) >> 13) - uint32(112 << 10))


@jit
def _total(terms: Any, vector: Any) -> Any:
    """The sum of terms as torch adds them on a CPU (SumKernel.cpp of torch 2.13, compiled for AVX2).

    A vector of `vector` elements is eight sums side by side, of 16 bits those of its halves added. Vectors are dealt
    out to four hands in turn, and a hand adds up what it has in runs of sixteen (more in very long sums), the runs in
    runs again. What is left of the vectors goes to the first hand. Then the hands are put together, and last, after the
    elements that fill no vector, the eight sums.
    """
    vectors = terms.shape[0] // vector
    width, count = (8, vectors) if vectors else (1, terms.shape[0])
    each = vector if vectors else 1
    rounds = count // 4
    run = 16
    while run**4 * 8 < rounds - 1:
        run *= 2
    total = float32(0)
    for index in range(count * each if vectors else terms.shape[0], terms.shape[0]):
        total += terms[index]
    for place in range(width):
        first = float32(0)
        for hand in range(4):
            held = _held(terms, hand, place, each, rounds, run)
            if hand == 0:
                for index in range(4 * rounds, count):
                    held += _element(terms, index, place, each)
                first = held
            else:
                first += held
        total += first
    return total


@jit
def _element(terms: Any, vector: Any, place: Any, each: Any) -> Any:
    at = vector * each + place
    return float32(terms[at] + terms[at + 8]) if each == 16 else terms[at]


@jit
def _held(terms: Any, hand: Any, place: Any, each: Any, rounds: Any, run: Any) -> Any:
    """What a hand adds up: the rest that fills no run, then the runs, and runs of runs, that were finished."""
    rest, runs, of_runs, more = float32(0), float32(0), float32(0), float32(0)
    for index in range(rounds):
        rest += _element(terms, 4 * index + hand, place, each)
        done = index + 1
        if done % run == 0:
            runs += rest
            rest = float32(0)
            if done // run % run == 0:
                of_runs += runs
                runs = float32(0)
                if done // run // run % run == 0:
                    more += of_runs
                    of_runs = float32(0)
    return float32(float32(float32(rest + runs) + of_runs) + more)
