"""Searching for the range of each tile that its codes should span, compiled by numba.

What is found is, to the bit, what ``_grid_search_mse`` of llm-compressor 0.14.0.1 finds on a CPU: every operation is
rounded to the weight's dtype, errors are raised by a table of torch's own powers and added in torch's order. F32, which
no table can have, is left to the portable kernels.

numba's cache notices changes of this file alone, so that what is compiled takes no constant from another one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import float32, uint32

from weighbridge.machine.compiling import jit
from weighbridge.numbers.casts import bits_of, float_of
from weighbridge.numbers.elements import (
    magnitude,
    narrowed,
    narrowed_or_infinite,
    nearest_e2m1,
    nearest_e4m3,
    nearest_integer,
    widened,
)
from weighbridge.numbers.scaling import (
    float_scale,
    power_of_two,
    scale_between,
    signed_scale,
)

_E4M3, _E2M1, _INTEGER = 0, 1, 2  # elements
_FLOAT, _E4M3_UNDER_GLOBAL, _E8M0, _SIGNED, _BETWEEN = 0, 1, 2, 3, 4  # scales
WELL, NOT_FINITE, TOO_LARGE = 0, 1, 2
"""What became of a search."""

_VECTOR = 16
"""Elements of 16 bits that one vector of torch's takes, as two of eight float32."""


@jit
def gathered(bits: Any, row: Any, height: Any, column: Any, width: Any, values: Any) -> Any:
    """Fill the values of a tile, row by row, with zeros where it is not full.

    Returns its ends, zero included, and the largest magnitude as a bit pattern (that of NaN where there is one).
    """
    low, high, most = float32(0), float32(0), uint32(0)
    for down in range(height):
        line = values[down * width : (down + 1) * width]
        if row + down < bits.shape[0]:
            part = bits[row + down, column : min(column + width, bits.shape[1])]
            for index in range(part.shape[0]):
                value = widened(part[index])
                most = max(most, uint32(magnitude(part[index])))
                line[index] = value
                low, high = min(low, value), max(high, value)
            line[part.shape[0] :] = 0
        else:
            line[:] = 0
    return low, high, most


@jit
def candidate(kind: Any, low: Any, high: Any, element: Any, numbers: Any) -> Any:
    """The scale and the zero point that a range gives, without what the whole weight shares."""
    if kind == _E8M0:
        return power_of_two(low, high, numbers)[1], float32(0)
    if kind == _SIGNED:
        return signed_scale(low, high, element, numbers), float32(0)
    if kind == _BETWEEN:
        return scale_between(low, high, element, numbers)
    return float_scale(low, high, element, numbers), float32(0)


@jit
def _error_of(element: Any, near: Any, scale: Any, value: Any) -> Any:
    """How far a value is from what its code stands for, with both results rounded to the weight's dtype."""
    again = narrowed_or_infinite(element, float32(near * scale))
    return narrowed_or_infinite(element, float32(again - value))


@jit
def fill_errors(
    kind: Any, between: Any, element: Any, values: Any, scale: Any, zero: Any, numbers: Any, errors: Any
) -> None:
    """The error of each value, rounded to the weight's dtype."""
    if kind == _E4M3:
        for index in range(values.shape[0]):
            near = nearest_e4m3(narrowed(element, float32(values[index] / scale)))
            errors[index] = _error_of(element, near, scale, values[index])
    elif kind == _E2M1:
        for index in range(values.shape[0]):
            near = nearest_e2m1(narrowed(element, float32(values[index] / scale)))
            errors[index] = _error_of(element, near, scale, values[index])
    elif between:
        for index in range(values.shape[0]):
            place = narrowed(element, float32(narrowed(element, float32(values[index] / scale)) + zero))
            near = narrowed(element, float32(nearest_integer(place, numbers.low, numbers.high) - zero))
            errors[index] = _error_of(element, near, scale, values[index])
    else:
        for index in range(values.shape[0]):
            place = narrowed(element, float32(values[index] / scale))
            near = nearest_integer(place, numbers.low, numbers.high)
            errors[index] = _error_of(element, near, scale, values[index])


@jit
def _raise(is_bf16: Any, errors: Any, table: Any) -> None:
    """Errors become their powers."""
    if is_bf16:
        for index in range(errors.shape[0]):
            errors[index] = table[uint32(bits_of(errors[index]) >> 16) & uint32(0x7FFF)]
    else:
        for index in range(errors.shape[0]):
            positive = uint32(bits_of(errors[index]) & 0x7FFFFFFF)
            normal = uint32(uint32(positive >> 13) - uint32(112 << 10))
            subnormal = uint32(float32(float_of(positive) * float32(2.0**24)))
            # What rounds beyond the largest value of F16 is infinite there.
            pattern = subnormal if positive < 0x38800000 else min(normal, uint32(0x7C00))
            errors[index] = table[pattern]


@jit
def _add_vector(terms: Any, index: Any, sums: Any) -> None:
    part = terms[index * _VECTOR : (index + 1) * _VECTOR]
    for place in range(8):
        sums[place] += float32(part[place] + part[place + 8])


@jit
def _empty(levels: Any, done: Any, power: Any) -> None:
    """Empty a level of sums into the next, and that where it is full."""
    for level in range(1, 4):
        levels[level] += levels[level - 1]
        levels[level - 1] = 0
        if done & ((1 << power) - 1) << (level * power):
            break


@jit
def _added(terms: Any, levels: Any) -> Any:
    """The sum of the terms in the order in which torch adds elements of 16 bits; see `portable._added`.

    Args:
        levels: float32 [4, 4, 8], to work with.
    """
    count = terms.shape[0]
    vectors = count // _VECTOR
    total = float32(0)
    if not vectors:
        return _added_one_by_one(terms)
    if vectors < 4 and vectors * _VECTOR == count:
        return _added_lane_by_lane(terms)
    fours = vectors // 4
    power = 4
    while (1 << (4 * power + 3)) < fours - 1:
        power += 1
    levels[:] = 0
    for index in range(fours):
        for lane in range(4):
            _add_vector(terms, 4 * index + lane, levels[0, lane])
        if (index + 1) & ((1 << power) - 1) == 0:
            _empty(levels, index + 1, power)
    for level in range(1, 4):
        levels[0] += levels[level]
    for index in range(4 * fours, vectors):
        _add_vector(terms, index, levels[0, 0])
    for lane in range(1, 4):
        levels[0, 0] += levels[0, lane]
    for index in range(vectors * _VECTOR, count):
        total += terms[index]
    for place in range(8):
        total += levels[0, 0, place]
    return total


@jit
def _added_lane_by_lane(terms: Any) -> Any:
    """The sum of one to three whole vectors."""
    total = float32(0)
    for place in range(8):
        lane = float32(terms[place] + terms[place + 8])
        for vector in range(1, terms.shape[0] // _VECTOR):
            lane += float32(terms[vector * _VECTOR + place] + terms[vector * _VECTOR + place + 8])
        total += lane
    return total


@jit
def _added_one_by_one(terms: Any) -> Any:
    """The sum of fewer terms than a vector has."""
    fours = terms.shape[0] // 4
    sums = np.zeros(4, np.float32)
    for index in range(fours):
        for lane in range(4):
            sums[lane] += terms[4 * index + lane]
    for index in range(4 * fours, terms.shape[0]):
        sums[0] += terms[index]
    return float32(float32(float32(float32(sums[0] + sums[1]) + sums[2]) + sums[3]))


@jit
def _is_settled(improving: Any, patience: Any) -> Any:
    """Whether no `patience` steps in a row are left that lessen no tile's error."""
    stale = 0
    for step in range(improving.shape[0]):
        stale = 0 if improving[step] else stale + 1
        if stale >= patience:
            return False
    return True


@jit
def times(element: Any, end: Any, factor: Any) -> Any:
    """An end of a range times a factor, rounded to the weight's dtype."""
    return narrowed_or_infinite(element, float32(end * factor))


@jit
def extent(element: Any, between: Any, low: Any, high: Any) -> Any:
    """What a scale is made of: the larger magnitude of the ends, or the distance between them."""
    return narrowed_or_infinite(element, float32(high - low)) if between else max(-low, high)


class Tried(NamedTuple):
    """How the steps of a search are tried.

    Attributes:
        shares: float32, what the expanded range is multiplied by in each step.
        table: of powers, float32 [32768].
        is_bf16: whether the weight is.
        errors: float32 [values of a tile], to work with.
        levels: float32 [4, 4, 8], to work with.
        improving: uint8 [steps], set to 1 for the steps that lessen the error of any tile.
    """

    shares: Any
    table: Any
    is_bf16: Any
    errors: Any
    levels: Any
    improving: Any


@jit
def best_of(
    tried: Any,
    asked: Any,
    count: Any,
    element: Any,
    scale: Any,
    sample: Any,
    low: Any,
    high: Any,
    numbers: Any,
    values: Any,
) -> Any:
    """The first step with the least error of a tile among the first `count` of those asked for; -1 for none."""
    least, best = float32(255 * 2.0**120) if tried.is_bf16 else float32(65504), -1
    for index in range(count):
        step = asked[index]
        own_low, own_high = times(sample, low, tried.shares[step]), times(sample, high, tried.shares[step])
        own, zero = candidate(scale, own_low, own_high, sample, numbers)
        fill_errors(element, scale == _BETWEEN, sample, values, own, zero, numbers, tried.errors)
        _raise(tried.is_bf16, tried.errors, tried.table)
        error = narrowed_or_infinite(sample, _added(tried.errors, tried.levels))
        if error < least:
            least, best = error, step
            tried.improving[step] = 1
    return best


@jit
def set_range(ranges: Any, down: Any, across: Any, sample: Any, low: Any, high: Any, tried: Any, best: Any) -> None:
    """Set the range of a tile to that of its best step, or to the expanded one where there is none."""
    share = tried.shares[best] if best >= 0 else float32(1)
    ranges[0, down, across] = times(sample, low, share)
    ranges[1, down, across] = times(sample, high, share)


@jit
def search(
    bits: Any,
    element: Any,
    scale: Any,
    height: Any,
    width: Any,
    numbers: Any,
    expand: Any,
    shares: Any,
    patience: Any,
    table: Any,
    is_bf16: Any,
    improving: Any,
    ranges: Any,
) -> Any:
    """Fill the range of the least error of each tile; returns `WELL`, or what is wrong with the weight.

    Args:
        shares: float32, what the expanded range is multiplied by in each step.
        patience: where no more so many steps in a row are without a lesser error, the rest of the tiles is left out;
            without one, when it is 0, none is.
        table: of powers, float32 [32768].
        improving: uint8 [steps], set to 1 for the steps that lessen the error of any tile.
        ranges: float32 [2, tiles down, across].
    """
    values, errors = np.empty(height * width, np.float32), np.empty(height * width, np.float32)
    tried = Tried(shares, table, is_bf16, errors, np.zeros((4, 4, 8), np.float32), improving)
    every = np.arange(shares.shape[0])
    for down in range(ranges.shape[1]):
        for across in range(ranges.shape[2]):
            low, high, most = gathered(bits, down * height, height, across * width, width, values)
            if most >= numbers.non_finite:
                return NOT_FINITE
            if scale == _SIGNED:  # once rounded, both ends might be as far from zero
                low, high = (float32(0), high) if high > -low else (low, float32(0))
            low, high = times(bits[0, 0], low, expand), times(bits[0, 0], high, expand)
            if not extent(bits[0, 0], scale == _BETWEEN, low, high) < np.inf:
                return TOO_LARGE
            best = best_of(tried, every, every.shape[0], element, scale, bits[0, 0], low, high, numbers, values)
            set_range(ranges, down, across, bits[0, 0], low, high, tried, best)
        if patience and _is_settled(improving, patience):
            return WELL
    return WELL


@jit
def own(bits: Any, height: Any, width: Any, between: Any, non_finite: Any, ranges: Any) -> Any:
    """Fill the ends of the values of each tile, zero included."""
    values = np.empty(height * width, np.float32)
    for down in range(ranges.shape[1]):
        for across in range(ranges.shape[2]):
            low, high, most = gathered(bits, down * height, height, across * width, width, values)
            if most >= non_finite:
                return NOT_FINITE
            if not extent(bits[0, 0], between, low, high) < np.inf:
                return TOO_LARGE
            ranges[0, down, across] = low
            ranges[1, down, across] = high
    return WELL
