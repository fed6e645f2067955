"""The same search for BF16, many times as fast: a table tells which steps may have the least error, and only those are
tried.

BF16 has eight significant bits, and scales and errors of a tile are the same, but for a power of two, whatever binade
its largest value lies in. So the power of a value's error follows from three numbers: the fraction of the tile's
largest value (128 there are), how far the value's bit pattern lies below that of the largest, and the step. A row of
the table has one value's powers for all steps; the rows of a tile's values, added up, are its errors.

They are not rounded as torch rounds them: each power once to BF16, and the sum once more, by 2^-8 relatively at most.
So the least error can only be that of a step whose sum is not above the least by more than ((1 + 2^-8) / (1 - 2^-8))^2,
1.0158, and what adding in another order makes. Where that is one step, it is the best; otherwise all of them are tried
by the definition. Where powers could leave the range of BF16, every step is.

Rows are read all the time, and what the processor's second cache holds of them decides how long it takes. So for small
tiles powers are whole numbers of 16 bits, as many units as are nearest; what is more than `_CAP` units counts as that.
A sum is then off by half a unit a value, and exceeds `_CAP` where it is of such a power.

numba's cache notices changes of this file alone; whoever changes `weighbridge.numbers.searching` touches it.
"""

from __future__ import annotations

import math
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import float32, int32, uint32

from weighbridge.formats.observers import Search
from weighbridge.machine.compiling import jit
from weighbridge.numbers.casts import add_sixteens, bits_of, float_of, least_of_sixteen, not_above
from weighbridge.numbers.encoding import HALF_RANGE, INTEGER_BITS, Encoding
from weighbridge.numbers.searching import (
    NOT_FINITE,
    TOO_LARGE,
    WELL,
    Tried,
    best_of,
    candidate,
    fill_errors,
    set_range,
    times,
)

_SIGNED = 3
_FRACTIONS = 128
_ONE = 127 << 7  # the bit pattern of 1

_SMALLEST_PLACE = {"E2M1": 0.25, "E4M3": 2.0**-10}
"""What is no further from zero is rounded to it; of integers, 0.5."""

_CAP = 0x3FFF
"""What a power in units of 16 bits is at most: four of them are added in 16 bits."""

_SMALL = 128
"""Values of a tile up to which powers are rounded to units: of more, sums would be off by too much."""

FEWEST_TILES = 4096
"""Fewer are searched for one by one: making the table takes as long."""


class Powers(NamedTuple):
    """Powers of errors.

    Attributes:
        flat: float32 or uint16, rows of powers for each step, one after the other: by the fraction of the tile's
            largest value; by how far a value's pattern lies below it, up to where everything is rounded to zero; then
            the same for negative values, where they have other codes (under signed scales: for those of the other sign
            than the largest). The last is of zeros.
        padded: of one row, steps filled up to a multiple of sixteen.
        distances: of rows for one sign.
        both: whether there are rows of their own for negative values.
        unit: what the rows are multiples of.
        cap: what a sum is less than in which no power counts as less than it is.
        slack: how many units a sum of a tile may be off, because powers are rounded to units.
    """

    flat: npt.NDArray[np.float32] | npt.NDArray[np.uint16]
    padded: int
    distances: int
    both: bool
    unit: np.float32
    cap: np.float32
    slack: np.float32


_made: dict[tuple[Any, ...], Powers] = {}
_making = Lock()


def powers_of(encoding: Encoding, search: Search, kind: int, element: int, numbers: Any, tile: int) -> Powers | None:
    """The table of a search in tiles of so many values; None where none can be. Those of two searches are kept."""
    exponent = _rounded(search.norm)
    if encoding.zero_points or exponent == 3 or not 0.5 <= exponent <= 4 or not search.steps:
        return None  # torch raises to the third power by two products, each rounded
    key = (encoding.element, kind, search, tile if tile <= _SMALL else None)
    with _making:
        if key not in _made:
            while len(_made) > 1:
                del _made[next(iter(_made))]
            made = _made_of(encoding, search, exponent, kind, element, numbers)
            _made[key] = _in_units(made, search.steps, tile) if tile <= _SMALL else made
        return _made[key]


def _made_of(encoding: Encoding, search: Search, exponent: float, kind: int, element: int, numbers: Any) -> Powers:
    integers = encoding.element in INTEGER_BITS
    half_range = float(1 << (INTEGER_BITS[encoding.element] - 1)) if encoding.signed else HALF_RANGE[encoding.element]
    narrowest = search.expand * search.share(search.steps - 1)
    # A power of two may be half of what is needed, and scales are rounded.
    binades = math.log2(4 * half_range / (narrowest * _SMALLEST_PLACE.get(encoding.element, 0.5)))
    distances = 128 * math.ceil(binades) + 1
    of_fraction, padded = distances * (2 if integers else 1), -(-search.steps // 16) * 16
    flat = np.zeros((_FRACTIONS * of_fraction + 1) * padded, np.float32)
    rows = flat[:-padded].reshape(_FRACTIONS, of_fraction, padded)
    patterns = (np.arange(1 << 15, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(all="ignore"):
        powers = np.power(patterns.astype(np.float64), exponent).astype(np.float32)
    _tabulate(
        element, kind, np.uint16(0), numbers, np.float32(search.expand), shares_of(search), powers, distances, rows
    )
    return Powers(flat, padded, distances, integers, unit=np.float32(1), cap=np.float32(np.inf), slack=np.float32(0))


def _in_units(powers: Powers, steps: int, tile: int) -> Powers:
    """A table in units: as small as the largest power allows, or so that usual tiles have `_CAP` / 4 of them."""
    flat = powers.flat.astype(np.float32, copy=False)
    usual = flat[: -powers.padded].reshape(-1, powers.distances, powers.padded)[:, : 2 * _FRACTIONS, :steps]
    all_of_it, enough = float(flat.max()), 4 * tile * float(usual.mean(axis=(0, 1), dtype=np.float64).min())
    unit = np.float32(min(all_of_it, enough) / _CAP)
    cap = np.float32(_CAP if enough < all_of_it else np.inf)
    np.divide(flat, unit, out=flat)
    units = np.minimum(np.rint(flat, out=flat), _CAP, out=flat).astype(np.uint16)
    return powers._replace(flat=units, unit=unit, cap=cap, slack=np.float32(tile / 2))


def shares_of(search: Search) -> npt.NDArray[np.float32]:
    """What the expanded range is multiplied by in each step."""
    return np.array([search.share(step) for step in range(search.steps)], np.float32)


def _rounded(norm: float) -> float:
    """An exponent as torch has it for BF16."""
    bits = int(np.float32(norm).view(np.uint32))
    return float(np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32))


@jit
def _tabulate(
    element: Any,
    scale: Any,
    sample: Any,
    numbers: Any,
    expand: Any,
    shares: Any,
    powers: Any,
    distances: Any,
    rows: Any,
) -> None:
    values, errors = np.empty(distances, np.float32), np.empty(distances, np.float32)
    for fraction in range(rows.shape[0]):
        top = float_of(uint32(uint32(_ONE + fraction) << 16))
        for half in range(rows.shape[1] // distances):
            for distance in range(distances):
                value = float_of(uint32(uint32(_ONE + fraction - distance) << 16))
                values[distance] = -value if half else value
            high = times(sample, top, expand)
            low = float32(0) if scale == _SIGNED else -high
            for step in range(shares.shape[0]):
                own_low, own_high = times(sample, low, shares[step]), times(sample, high, shares[step])
                own, zero = candidate(scale, own_low, own_high, sample, numbers)
                fill_errors(element, False, sample, values, own, zero, numbers, errors)
                for distance in range(distances):
                    pattern = uint32(bits_of(errors[distance]) >> 16) & uint32(0x7FFF)
                    rows[fraction, half * distances + distance, step] = powers[pattern]


@jit
def amax_patterns(bits: Any, height: Any, width: Any, patterns: Any) -> None:
    """Fill the bit pattern of the largest magnitude of each tile, uint16 [tiles down, tiles across]."""
    for down in range(patterns.shape[0]):
        patterns[down, :] = 0
        for row in range(down * height, min((down + 1) * height, bits.shape[0])):
            for tile in range(patterns.shape[1]):
                part = bits[row, tile * width : (tile + 1) * width]
                most = patterns[down, tile]
                for column in range(part.shape[0]):
                    most = max(most, np.uint16(part[column] & 0x7FFF))
                patterns[down, tile] = most


@jit
def _add_up(
    flat: Any,
    first: Any,
    padded: Any,
    distances: Any,
    both: Any,
    flipped: Any,
    most: Any,
    values: Any,
    at: Any,
    sums: Any,
) -> None:
    """Fill the sums of the powers of a tile's errors, for each step.

    Args:
        flat: all rows, one after the other; `first` is where those of the tile's fraction begin.
        both: whether there are rows of their own for negative values.
        flipped: whether these are for positive ones.
        at: int64, four more than there are values, to be filled with where their rows begin.
    """
    count = values.shape[0]
    for index in range(count):
        pattern = uint32(bits_of(values[index]) >> 16)
        distance = min(uint32(most - uint32(pattern & 0x7FFF)), uint32(distances - 1))
        negative = uint32(uint32(pattern >> 15) ^ flipped) if both else uint32(0)
        at[index] = first + (distance + distances * negative) * padded
    at[count:] = flat.shape[0] - padded  # a row of zeros
    sums[:] = 0
    for block in range(0, padded, 16):
        for index in range(0, count, 4):
            add_sixteens(
                sums,
                block,
                flat,
                at[index] + block,
                at[index + 1] + block,
                at[index + 2] + block,
                at[index + 3] + block,
            )


@jit
def _taken(bits: Any, row: Any, height: Any, column: Any, width: Any, most: Any, values: Any) -> Any:
    """Fill the values of a tile, zeros where it is not full; returns whether one of them is `most` (a bit pattern).

    Of two values with the largest magnitude a signed scale follows the negative one.
    """
    positive, negative = uint32(0), uint32(0)
    opposite = uint32(most | 0x8000)
    if values.shape[0] > width or column + width > bits.shape[1]:
        values[:] = 0
    for down in range(min(height, bits.shape[0] - row)):
        part = bits[row + down, column : min(column + width, bits.shape[1])]
        line = values[down * width : down * width + part.shape[0]]
        for index in range(part.shape[0]):
            pattern = uint32(part[index])
            line[index] = float_of(uint32(pattern << 16))
            positive |= uint32(pattern == most)
            negative |= uint32(pattern == opposite)
    return positive > negative


@jit
def _nearly_least(sums: Any, steps: Any, powers: Any, count: Any, few: Any) -> Any:
    """Fill the steps that may have the least error, in their order; returns how many there are, 0 where all may.

    Args:
        sums: as bit patterns, int32: those of floats that are not negative have their order.
        count: of the tile's values.
    """
    for step in range(steps, sums.shape[0]):
        sums[step] = 0x7FFFFFFF
    lowest = least_of_sixteen(sums, 0)
    for first in range(16, sums.shape[0], 16):
        lowest = min(lowest, least_of_sixteen(sums, first))
    least = float32(lowest) if powers.slack else float_of(uint32(lowest))
    # What is less than the smallest normal BF16 is rounded by more; so little of it does not count.
    if float32((least - powers.slack) * powers.unit) < float32(2.0**-40) or least >= powers.cap:
        return 0
    most = float32((least + powers.slack) * float32(1.016 + count * 2.0**-22) + powers.slack)
    limit = int32(most) if powers.slack else int32(bits_of(most))
    found = 0
    for first in range(0, sums.shape[0], 16):
        told = not_above(sums, first, limit)
        step = first
        while told:
            if told & uint32(1):
                few[found] = step
                found += 1
            told >>= uint32(1)
            step += 1
    return found


@jit
def search_by_table(
    bits: Any,
    element: Any,
    scale: Any,
    height: Any,
    width: Any,
    numbers: Any,
    expand: Any,
    shares: Any,
    norm: Any,
    rounded_powers: Any,
    powers: Any,
    sums: Any,
    patterns: Any,
    order: Any,
    widest_alone: Any,
    ranges: Any,
) -> Any:
    """Fill the range of the least error of each tile; returns what `searching.search` returns.

    Args:
        shares: of the steps that are tried.
        sums: of the powers, to work with: of padded steps, float32, or int32 for units.
        patterns: see `amax_patterns`.
        order: int64, in which tiles are searched.
        widest_alone: a range may be left as it is where it cannot be wider than those before it.
    """
    values, errors = np.empty(height * width, np.float32), np.empty(height * width, np.float32)
    levels, improving = np.zeros((4, 4, 8), np.float32), np.zeros(shares.shape[0], np.uint8)
    tried = Tried(shares, rounded_powers, True, errors, levels, improving)
    every, few = np.arange(shares.shape[0]), np.empty(shares.shape[0], np.int64)
    distances, both = powers.distances, powers.both
    of_fraction = (distances * 2 if both else distances) * powers.padded
    at = np.empty(values.shape[0] + 4, np.int64)
    patterns_of_sums, sample = sums.view(np.int32), bits[0, 0]
    across, widest = ranges.shape[2], float32(0)
    for index in range(order.size):
        tile = order[index]
        down, over = tile // across, tile % across
        most = uint32(patterns[down, over])
        if most >= numbers.non_finite:
            return NOT_FINITE
        end = float_of(uint32(most << 16))
        if widest_alone and times(sample, end, expand) <= widest:
            continue
        positive = _taken(bits, down * height, height, over * width, width, most, values)
        flipped = uint32(scale == _SIGNED and not positive)
        low = times(sample, float32(0) if scale == _SIGNED and positive else -end, expand)
        high = times(sample, float32(0) if scale == _SIGNED and not positive else end, expand)
        if not max(-low, high) < np.inf:
            return TOO_LARGE
        found = 0
        binade = float(int(most >> 7) - 127)
        if most > 0 and -60 <= norm * binade <= 100:
            first = int(most & 127) * of_fraction
            _add_up(powers.flat, first, powers.padded, distances, both, flipped, most, values, at, sums)
            found = _nearly_least(patterns_of_sums, shares.shape[0], powers, values.shape[0], few)
        best = few[0]
        if found > 1:
            best = best_of(tried, few, found, element, scale, sample, low, high, numbers, values)
        elif not found:
            best = best_of(tried, every, every.shape[0], element, scale, sample, low, high, numbers, values)
        set_range(ranges, down, over, sample, low, high, tried, best)
        widest = max(widest, -ranges[0, down, over], ranges[1, down, over])
    return WELL
