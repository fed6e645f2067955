"""Kernels compiled by numba: one pass over the rows of a weight while each is in cache, without the GIL.

Every loop over elements is one that LLVM turns into vector instructions: it counts from zero, has no branch, and rounds
by additions to bit patterns or floats. (Slices of rows stand where an index would: an index that LLVM cannot prove
non-negative costs a factor of twenty.) Relaxed floating-point arithmetic would break every rounding here.

numba's cache notices changes of this file alone, so that what is compiled takes no constant from another one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import float32, uint8, uint32

from weighbridge.formats.schemes import Scheme, stored_tensors
from weighbridge.formats.tensors import Tensor
from weighbridge.machine.compiling import jit
from weighbridge.numbers.casts import bits_of
from weighbridge.numbers.elements import e2m1, e4m3, magnitude, narrowed, widened
from weighbridge.numbers.encoding import Array, Encoding, encoding_of, global_scale, named, stored_scales
from weighbridge.numbers.interface import NonFiniteWeight, checked
from weighbridge.numbers.ranges import ELEMENTS, elements_of, found_ranges, improving, own_ranges, widest
from weighbridge.numbers.scaling import (
    NON_FINITE,
    float_scale,
    kind_of,
    numbers_of,
    power_of_two,
    scale_between,
    scale_under_global,
    signed_scale,
)
from weighbridge.numbers.tiles import is_narrow, spread

_E4M3, _E2M1, _INTEGER = 0, 1, 2  # elements
_FLOAT, _E4M3_UNDER_GLOBAL, _E8M0, _SIGNED, _BETWEEN = 0, 1, 2, 3, 4  # scales


@jit
def _raise_to_amax(row: Any, width: Any, amax: Any) -> None:
    """Raise the largest magnitude of each tile to what one row of it holds; `amax` are elements without signs."""
    for tile in range(amax.shape[0]):
        part = row[tile * width : (tile + 1) * width]
        largest = amax[tile]
        for column in range(part.shape[0]):
            largest = max(largest, magnitude(part[column]))
        amax[tile] = largest


@jit
def _largest_of_pairs(values: Any, largest: Any) -> None:
    for pair in range(largest.shape[0]):
        largest[pair] = max(magnitude(values[2 * pair]), magnitude(values[2 * pair + 1]))


@jit
def _raise_to_amax_of_narrow(row: Any, scratch: Any, amax: Any) -> None:
    """`_raise_to_amax` for all narrow tiles at once; `scratch` has room for the row."""
    begin, size = 0, row.shape[0] // 2
    values = scratch[:size]
    _largest_of_pairs(row, values)
    while size > amax.shape[0]:
        begin, size = begin + size, size // 2
        halved = scratch[begin : begin + size]
        _largest_of_pairs(values, halved)
        values = halved
    for tile in range(size):
        amax[tile] = max(amax[tile], values[tile])


@jit
def _scale(kind: Any, low: Any, high: Any, element: Any, numbers: Any, stored: Any, divisors: Any, zeros: Any) -> None:
    """What is stored for each tile (a bit pattern), the float32 that its elements are divided by, its zero point."""
    if kind == _FLOAT:
        for tile in range(low.shape[0]):
            divisors[tile] = float_scale(low[tile], high[tile], element, numbers)
            stored[tile] = bits_of(divisors[tile])
    elif kind == _E4M3_UNDER_GLOBAL:
        for tile in range(low.shape[0]):
            stored[tile], divisors[tile] = scale_under_global(low[tile], high[tile], element, numbers)
    elif kind == _E8M0:
        for tile in range(low.shape[0]):
            stored[tile], divisors[tile] = power_of_two(low[tile], high[tile], numbers)
    elif kind == _SIGNED:
        for tile in range(low.shape[0]):
            divisors[tile] = signed_scale(low[tile], high[tile], element, numbers)
            stored[tile] = bits_of(divisors[tile])
    else:
        for tile in range(low.shape[0]):
            divisors[tile], zeros[tile] = scale_between(low[tile], high[tile], element, numbers)
            stored[tile] = bits_of(divisors[tile])


@jit
def _encode_e4m3(row: Any, divisors: Any, codes: Any) -> None:
    for column in range(row.shape[0]):
        element = row[column]
        bits = bits_of(narrowed(element, float32(widened(element) / divisors[column])))
        codes[column] = uint8(e4m3(uint32(bits & 0x7FFFFFFF)) | ((bits >> 24) & 0x80))


@jit
def _encode_e2m1(row: Any, divisors: Any, codes: Any) -> None:
    """Quotients are rounded to the weight's dtype: the scales are of that dtype too."""
    for column in range(row.shape[0]):
        element = row[column]
        codes[column] = _signed_e2m1(narrowed(element, float32(widened(element) / divisors[column])))


@jit
def _encode_e2m1_exactly(row: Any, divisors: Any, codes: Any) -> None:
    """Quotients stay float32: the scales come of a float32 global scale."""
    for column in range(row.shape[0]):
        codes[column] = _signed_e2m1(float32(widened(row[column]) / divisors[column]))


@jit
def _signed_e2m1(value: Any) -> Any:
    # Only what is below zero has the sign: a zero, or a quotient that underflowed to one, has code 0.
    bits = bits_of(value)
    positive = uint32(bits & 0x7FFFFFFF)
    sign = uint32(0) if positive == 0 else uint32((bits >> 28) & 8)
    return uint8(e2m1(positive) | sign)


@jit
def _encode_integer(row: Any, divisors: Any, numbers: Any, codes: Any) -> None:
    for column in range(row.shape[0]):
        element = row[column]
        value = narrowed(element, float32(widened(element) / divisors[column]))
        value = min(max(value, numbers.low), numbers.high)
        codes[column] = uint8(bits_of(float32(value + numbers.rounder)))


@jit
def _encode_with_zero_points(row: Any, divisors: Any, zeros: Any, numbers: Any, codes: Any) -> None:
    for column in range(row.shape[0]):
        element = row[column]
        quotient = narrowed(element, float32(widened(element) / divisors[column]))
        value = narrowed(element, float32(quotient + zeros[column]))
        value = min(max(value, numbers.low), numbers.high)
        codes[column] = uint8(bits_of(float32(value + numbers.rounder)))


@jit
def _pack_nibbles(pairs: Any, packed: Any) -> None:
    """Two codes, each in a byte of its own, become one byte; the first is the lower half."""
    for position in range(packed.shape[0]):
        packed[position] = uint8(pairs[position] | (pairs[position] >> 4))


@jit
def _encode(kind: Any, scale: Any, row: Any, divisors: Any, zeros: Any, numbers: Any, codes: Any) -> None:
    """One code a byte."""
    if kind == _E4M3:
        _encode_e4m3(row, divisors, codes)
    elif kind == _INTEGER:
        if scale == _BETWEEN:
            _encode_with_zero_points(row, divisors, zeros, numbers, codes)
        else:
            _encode_integer(row, divisors, numbers, codes)
    elif scale == _E4M3_UNDER_GLOBAL:
        _encode_e2m1_exactly(row, divisors, codes)
    else:
        _encode_e2m1(row, divisors, codes)


@jit
def _quantize(
    bits: Any,
    element: Any,
    scale: Any,
    height: Any,
    width: Any,
    nibbles: Any,
    numbers: Any,
    ranges: Any,
    stored: Any,
    zero_points: Any,
    codes: Any,
) -> Any:
    """Fill `stored` (uint32 [tiles down, across]) and `codes` (uint8 [rows, bytes]); False if a value is not finite.

    Args:
        ranges: float32 [2, tiles down, across], the ends of what each tile's codes are to span; with none of them, it
            is from the largest magnitude's opposite to that.
        zero_points: float32 [tiles down, across], to be filled where there are any.
    """
    rows, columns = bits.shape
    across = stored.shape[1]
    amax = np.empty(across, bits.dtype)
    low, high = np.empty(across, np.float32), np.empty(across, np.float32)
    divisors, zeros = np.empty(across, np.float32), np.zeros(across, np.float32)
    divisor_of_column, zero_of_column = np.empty(columns, np.float32), np.zeros(columns, np.float32)
    narrow = is_narrow(width, columns)
    elements, scratch = np.empty(columns, bits.dtype), np.empty(columns, np.float32)
    pairs = np.zeros(codes.shape[1], np.uint16)
    for down in range(stored.shape[0]):
        first, last = down * height, min((down + 1) * height, rows)
        if ranges.shape[1]:
            low[:] = ranges[0, down]
            high[:] = ranges[1, down]
        else:
            amax[:] = 0
            for row in range(first, last):
                if narrow:
                    _raise_to_amax_of_narrow(bits[row], elements, amax)
                else:
                    _raise_to_amax(bits[row], width, amax)
            for tile in range(across):
                if amax[tile] >= numbers.non_finite:
                    return False
                high[tile] = widened(amax[tile]) if numbers.given_amax < 0 else numbers.given_amax
                low[tile] = -high[tile]
        _scale(scale, low, high, bits[0, 0], numbers, stored[down], divisors, zeros)
        spread(divisors, width, scratch, divisor_of_column)
        if scale == _BETWEEN:
            zero_points[down] = zeros
            spread(zeros, width, scratch, zero_of_column)
        for row in range(first, last):
            if nibbles:
                own = pairs.view(np.uint8)[:columns]
                _encode(element, scale, bits[row], divisor_of_column, zero_of_column, numbers, own)
                _pack_nibbles(pairs, codes[row])
            else:
                _encode(element, scale, bits[row], divisor_of_column, zero_of_column, numbers, codes[row, :columns])
                codes[row, columns:] = 0
    return True


@jit
def _largest(bits: Any) -> Any:
    """The largest magnitude of all elements, as an element."""
    amax = np.zeros(1, bits.dtype)
    for row in range(bits.shape[0]):
        _raise_to_amax(bits[row], bits.shape[1], amax)
    return amax[0]


class CompiledKernels:
    """`Kernels` on the CPU. Several threads may call at once, each with rows of its own: none waits for another."""

    def amax(self, weight: Array, dtype: str) -> float:
        """See `Kernels`."""
        largest = _largest(elements_of(checked(weight, dtype), dtype))
        if largest >= NON_FINITE[dtype]:
            raise NonFiniteWeight
        match dtype:
            case "BF16":
                return float((np.uint32(largest) << np.uint32(16)).view(np.float32))
            case "F16":
                return float(np.int16(largest).view(np.float16))
            case _:
                return float(np.uint32(largest).view(np.float32))

    def largest(self, weight: Array, dtype: str, scheme: Scheme, *, steps: int | None = None) -> float:
        """See `Kernels`."""
        encoding = encoding_of(scheme)
        if encoding.search is None:
            return self.amax(weight, dtype)
        return widest(checked(weight, dtype), dtype, encoding, encoding.search, steps)

    def improving(self, weight: Array, dtype: str, scheme: Scheme) -> int:
        """See `Kernels`."""
        encoding = encoding_of(scheme)
        return 0 if encoding.search is None else improving(checked(weight, dtype), dtype, encoding, encoding.search)

    def quantize(
        self, weight: Array, dtype: str, scheme: Scheme, *, amax: float | None = None, steps: int | None = None
    ) -> dict[str, Array]:
        """See `Kernels`."""
        rows, columns = checked(weight, dtype, amax).shape
        encoding = encoding_of(scheme)
        stored_tensors(scheme, Tensor(dtype, (rows, columns)))
        ranges = _ranges(weight, dtype, encoding, steps)
        if encoding.needs_amax and amax is None:
            amax = float(np.abs(ranges).max()) if ranges.size else self.amax(weight, dtype)
        shared = global_scale(amax, dtype) if amax is not None and encoding.scale == "E4M3" else None
        # Under one scale for all, each row may as well be a tile of its own.
        height, width = encoding.height or 1, encoding.width or columns
        stored = np.empty((-(-rows // height), -(-columns // width)), np.uint32)
        zeros = np.empty(stored.shape if encoding.zero_points else (0, 0), np.float32)
        codes = np.empty((rows, encoding.row_bytes(columns)), np.uint8)
        if not _quantize(
            elements_of(weight, dtype),
            ELEMENTS[encoding.element],
            kind_of(encoding),
            height,
            width,
            encoding.nibbles,
            numbers_of(encoding, dtype, amax, shared),
            ranges,
            stored,
            zeros,
            codes,
        ):
            raise NonFiniteWeight
        if encoding.height is None:
            stored = stored[0]
        scales = stored_scales(stored.view(np.float32), dtype) if encoding.scale == "float" else stored.astype(np.uint8)
        return named(encoding, codes, scales, zeros.astype(np.int8) if encoding.zero_points else None, shared)


def _ranges(weight: Array, dtype: str, encoding: Encoding, steps: int | None) -> npt.NDArray[np.float32]:
    """The ends of the range of each tile, float32 [2, tiles down, across]; none where magnitudes alone count."""
    if encoding.search is not None:
        return found_ranges(weight, dtype, encoding, encoding.search, steps)
    if not (encoding.zero_points or encoding.signed):
        return np.empty((2, 0, 0), np.float32)
    return own_ranges(weight, dtype, encoding)
