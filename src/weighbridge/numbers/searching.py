"""Searching for the range of each tile that its codes should span, compiled by numba.

What is found is, to the bit, what ``_grid_search_mse`` of llm-compressor 0.14.0.1 finds on a CPU: every operation is
rounded to the weight's dtype, errors are raised by a table of torch's own powers and added in torch's order. F32, which
no table can have, is left to the portable kernels.

numba's cache notices changes of this file alone, so that what is compiled takes no constant from another one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import float32, uint32

from weighbridge.formats.observers import Search
from weighbridge.numbers.compiling import bits_of, float_of, jit
from weighbridge.numbers.elements import (
    magnitude,
    narrowed,
    narrowed_or_infinite,
    nearest_e2m1,
    nearest_e4m3,
    nearest_integer,
    widened,
)
from weighbridge.numbers.encoding import Array, Encoding
from weighbridge.numbers.interface import NonFiniteWeight, RangeTooLarge
from weighbridge.numbers.powers import table_of_powers
from weighbridge.numbers.scaling import (
    NON_FINITE,
    float_scale,
    kind_of,
    numbers_of,
    power_of_two,
    scale_between,
    signed_scale,
)

_E4M3, _E2M1, _INTEGER = 0, 1, 2  # elements
_FLOAT, _E4M3_UNDER_GLOBAL, _E8M0, _SIGNED, _BETWEEN = 0, 1, 2, 3, 4  # scales
_WELL, _NOT_FINITE, _TOO_LARGE = 0, 1, 2  # what became of a search

_VECTOR = 16
"""Elements of 16 bits that one vector of torch's takes, as two of eight float32."""

_FLOATS_AT_ONCE = 1 << 18
"""Elements of F32 whose search is left to the portable kernels at once."""


@jit
def _gathered(bits: Any, row: Any, height: Any, column: Any, width: Any, values: Any) -> Any:
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
def _candidate(kind: Any, low: Any, high: Any, element: Any, numbers: Any) -> Any:
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
def _fill_errors(
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
def _times(element: Any, end: Any, factor: Any) -> Any:
    """An end of a range times a factor, rounded to the weight's dtype."""
    return narrowed_or_infinite(element, float32(end * factor))


@jit
def _extent(element: Any, between: Any, low: Any, high: Any) -> Any:
    """What a scale is made of: the larger magnitude of the ends, or the distance between them."""
    return narrowed_or_infinite(element, float32(high - low)) if between else max(-low, high)


@jit
def _search(
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
    """Fill the range of the least error of each tile; returns `_WELL`, or what is wrong with the weight.

    Args:
        shares: float32, what the expanded range is multiplied by in each step.
        patience: where no more so many steps in a row are without a lesser error, the rest of the tiles is left out;
            without one, when it is 0, none is.
        table: of powers, float32 [32768].
        improving: uint8 [steps], set to 1 for the steps that lessen the error of any tile.
        ranges: float32 [2, tiles down, across].
    """
    values, errors = np.empty(height * width, np.float32), np.empty(height * width, np.float32)
    levels = np.zeros((4, 4, 8), np.float32)
    largest = float32(255 * 2.0**120) if is_bf16 else float32(65504)
    for down in range(ranges.shape[1]):
        for across in range(ranges.shape[2]):
            low, high, most = _gathered(bits, down * height, height, across * width, width, values)
            if most >= numbers.non_finite:
                return _NOT_FINITE
            low, high = _times(bits[0, 0], low, expand), _times(bits[0, 0], high, expand)
            if not _extent(bits[0, 0], scale == _BETWEEN, low, high) < np.inf:
                return _TOO_LARGE
            least, best = largest, -1
            for step in range(shares.shape[0]):
                own_low, own_high = _times(bits[0, 0], low, shares[step]), _times(bits[0, 0], high, shares[step])
                own, zero = _candidate(scale, own_low, own_high, bits[0, 0], numbers)
                _fill_errors(element, scale == _BETWEEN, bits[0, 0], values, own, zero, numbers, errors)
                _raise(is_bf16, errors, table)
                error = narrowed_or_infinite(bits[0, 0], _added(errors, levels))
                if error < least:
                    least, best = error, step
                    improving[step] = 1
            share = shares[best] if best >= 0 else float32(1)
            ranges[0, down, across] = _times(bits[0, 0], low, share)
            ranges[1, down, across] = _times(bits[0, 0], high, share)
        if patience and _is_settled(improving, patience):
            return _WELL
    return _WELL


@jit
def _own(bits: Any, height: Any, width: Any, between: Any, non_finite: Any, ranges: Any) -> Any:
    """Fill the ends of the values of each tile, zero included."""
    values = np.empty(height * width, np.float32)
    for down in range(ranges.shape[1]):
        for across in range(ranges.shape[2]):
            low, high, most = _gathered(bits, down * height, height, across * width, width, values)
            if most >= non_finite:
                return _NOT_FINITE
            if not _extent(bits[0, 0], between, low, high) < np.inf:
                return _TOO_LARGE
            ranges[0, down, across] = low
            ranges[1, down, across] = high
    return _WELL


_BIT_PATTERNS = {"BF16": np.uint16, "F16": np.int16, "F32": np.uint32}
_ELEMENTS = {"E4M3": _E4M3, "E2M1": _E2M1, "INT4": _INTEGER, "INT8": _INTEGER}


def elements_of(weight: Array, dtype: str) -> Array:
    """`weight` as the integers that tell the compiled functions its dtype. Always read-only: they are compiled once."""
    bits = weight.view(_BIT_PATTERNS[dtype])
    bits.flags.writeable = False
    return bits


def own_ranges(weight: Array, dtype: str, encoding: Encoding) -> npt.NDArray[np.float32]:
    """The ends of the values of each tile, zero included: float32 [2, tiles down, across].

    Raises:
        UnusableWeight: a value is NaN or infinite, or a range is.
    """
    height, width, ranges = _laid_out(weight, encoding)
    _check(_own(elements_of(weight, dtype), height, width, encoding.zero_points, NON_FINITE[dtype], ranges), dtype, 1)
    return ranges


def found_ranges(
    weight: Array, dtype: str, encoding: Encoding, search: Search, steps: int | None
) -> npt.NDArray[np.float32]:
    """The ends of the range of the least error of each tile: float32 [2, tiles down, across].

    Args:
        steps: how many are tried; without it, as the search of `weight` itself says.

    Raises:
        UnusableWeight: a value is NaN or infinite, or a range is.
    """
    if steps is None:
        steps = search.reached(improving(weight, dtype, encoding, search)) if search.may_stop else search.steps
    return _found(weight, dtype, encoding, search, steps, patience=0)[0]


def improving(weight: Array, dtype: str, encoding: Encoding, search: Search) -> int:
    """The steps that lessen the error of any tile, a bit for each; once those that are found settle how many steps are
    tried, there may be more.

    Raises:
        UnusableWeight: a value is NaN or infinite, or a range is.
    """
    return _found(weight, dtype, encoding, search, search.steps, patience=max(1, int(-(-search.patience // 1))))[1]


def widest(weight: Array, dtype: str, encoding: Encoding, search: Search, steps: int | None) -> float:
    """The largest end of all ranges of the least error.

    Raises:
        UnusableWeight: a value is NaN or infinite, or a range is.
    """
    return float(np.abs(found_ranges(weight, dtype, encoding, search, steps)).max())


def _found(
    weight: Array, dtype: str, encoding: Encoding, search: Search, steps: int, *, patience: int
) -> tuple[npt.NDArray[np.float32], int]:
    height, width, ranges = _laid_out(weight, encoding)
    if dtype == "F32":
        return _by_torch(weight, encoding, search, steps, height, ranges)
    lessened = np.zeros(steps, np.uint8)
    _check(
        _search(
            elements_of(weight, dtype),
            _ELEMENTS[encoding.element],
            kind_of(encoding),
            height,
            width,
            numbers_of(encoding, dtype, None, None),
            np.float32(search.expand),
            np.array([search.share(step) for step in range(steps)], np.float32),
            patience,
            table_of_powers(dtype, search.norm),
            dtype == "BF16",
            lessened,
            ranges,
        ),
        dtype,
        search.expand,
    )
    return ranges, sum(1 << int(step) for step in np.flatnonzero(lessened))


def _by_torch(
    weight: Array, encoding: Encoding, search: Search, steps: int, height: int, ranges: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], int]:
    from weighbridge.numbers.portable import PortableKernels  # torch, which the other dtypes do without

    kernels, found = PortableKernels("cpu"), 0
    each = max(1, _FLOATS_AT_ONCE // (height * weight.shape[1]))
    for down in range(0, ranges.shape[1], each):
        part = slice(down, down + each)
        rows = weight[down * height : (down + each) * height]
        ranges[0, part], ranges[1, part], lessened = kernels.ranges(rows, "F32", encoding, search, steps)
        found |= lessened
    return ranges, found


def _laid_out(weight: Array, encoding: Encoding) -> tuple[int, int, npt.NDArray[np.float32]]:
    rows, columns = weight.shape
    assert encoding.height is not None  # one scale for a whole weight is not searched for
    height, width = encoding.height, encoding.width or columns
    return height, width, np.empty((2, -(-rows // height), -(-columns // width)), np.float32)


def _check(what: int, dtype: str, expand: float) -> None:
    if what == _NOT_FINITE:
        raise NonFiniteWeight
    if what == _TOO_LARGE:
        raise RangeTooLarge(expand, dtype)
