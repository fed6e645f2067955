"""The loops of the audit, compiled by numba: codes against the base's weights, one pass over rows, without the GIL.

Nothing here is shared with the kernels that quantize: a code is judged by the midpoints between its value and its
neighbours', so that a mistake in rounding there would show here. Loops over elements have no branch and no sum that
would have to be taken in order, so that LLVM can turn them into vector instructions. numba's cache notices changes of
this file alone, so that what is compiled takes no constant from another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import float32, int32, uint32
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])

_E4M3, _E2M1 = 0, 1  # kinds of codes; anything else is an integer
_BF16, _F16 = 0, 1  # dtypes of weights; anything else is F32
_LANES = 64


def _jit(function: Function) -> Function:
    """Compiled at the first call of a process, or taken from numba's cache where it has a directory for one."""
    try:
        compiled = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:
        compiled = numba.njit(nogil=True, error_model="numpy")(function)
    return cast(Function, compiled)


@intrinsic  # type: ignore[untyped-decorator]
def _float_of(_context: Any, _bits: Any) -> Any:
    """The float32 of a bit pattern."""
    return float32(uint32), lambda _target, builder, _signature, values: builder.bitcast(values[0], ir.FloatType())


@intrinsic  # type: ignore[untyped-decorator]
def _bits_of(_context: Any, _value: Any) -> Any:
    """The bit pattern of a float32."""
    return uint32(float32), lambda _target, builder, _signature, values: builder.bitcast(values[0], ir.IntType(32))


@_jit
def _magnitude(kind: Any, code: Any) -> Any:
    """The value of a floating code without its sign; a subnormal one is what it has beyond the first normal value."""
    if kind == _E4M3:
        normal = _float_of(uint32((code << 20) + (120 << 23)))
        subnormal = float32(_float_of(uint32((code << 20) + (121 << 23))) - float32(2.0**-6))
        return subnormal if code < 8 else normal
    normal = _float_of(uint32((code << 22) + (126 << 23)))
    subnormal = float32(_float_of(uint32((code << 22) + (127 << 23))) - float32(1))
    return subnormal if code < 2 else normal


@_jit
def _unpack(row: Any, nibbles: Any, pairs: Any, codes: Any) -> None:
    """One code a byte; `codes` are the bytes of `pairs`."""
    if nibbles:
        for position in range(row.shape[0]):
            byte = uint32(row[position])
            pairs[position] = (byte | (byte << 4)) & 0x0F0F
    else:
        codes[: row.shape[0]] = row


@_jit
def _decode(kind: Any, codes: Any, add: Any, mask: Any, half: Any, zeros: Any, values: Any) -> None:
    """The places of codes on their grid, in units of the scale."""
    if kind == _E4M3:
        for column in range(values.shape[0]):
            code = uint32(codes[column])
            magnitude = _bits_of(_magnitude(_E4M3, uint32(code & 0x7F)))
            values[column] = _float_of(uint32(magnitude | ((code & 0x80) << 24)))
    elif kind == _E2M1:
        for column in range(values.shape[0]):
            code = uint32(codes[column])
            magnitude = _bits_of(_magnitude(_E2M1, uint32(code & 7)))
            values[column] = _float_of(uint32(magnitude | ((code & 8) << 28)))
    else:
        for column in range(values.shape[0]):
            code = int32((uint32(codes[column]) + add) & mask)
            values[column] = float32(float32(code) - half) - zeros[column]


@_jit
def _widen(weight: Any, is_bf16: Any, out: Any) -> None:
    if is_bf16:
        for column in range(out.shape[0]):
            out[column] = _float_of(uint32(uint32(weight[column]) << 16))
    else:
        for column in range(out.shape[0]):
            out[column] = float32(weight[column])


@_jit
def _sum(values: Any, lanes: Any) -> Any:
    """The sum of float32 values, in lanes that LLVM may add side by side."""
    lanes[:] = 0
    whole = values.shape[0] // _LANES
    for block in range(whole):
        part = values[block * _LANES : (block + 1) * _LANES]
        for lane in range(_LANES):
            lanes[lane] += part[lane]
    total = 0.0
    for lane in range(_LANES):
        total += lanes[lane]
    for column in range(whole * _LANES, values.shape[0]):
        total += values[column]
    return total


@_jit
def _gap_bits(kind: Any, value: Any) -> Any:
    """The exponent, in float32's place, of the binade in which a value's distance to the next larger one is taken."""
    exponent = uint32(_bits_of(value) & 0x7F800000)
    return max(exponent, uint32(0x3C800000)) if kind == _E4M3 else max(exponent, uint32(0x3F800000))


@_jit
def _compare(
    kind: Any, weights: Any, values: Any, divisors: Any, zeros: Any, low: Any, high: Any, signals: Any, noises: Any
) -> Any:
    """Fill squares of weights and of differences; count saturated and zeroed; the largest difference, as bits."""
    saturated, zeroed, largest = uint32(0), uint32(0), uint32(0)
    for column in range(values.shape[0]):
        weight, value, divisor = weights[column], values[column], divisors[column]
        quotient = float32(weight / divisor)
        difference = float32(weight - value * divisor)
        signals[column] = weight * weight
        noises[column] = difference * difference
        place = quotient + zeros[column]
        saturated += uint32((place > high) | (place < low))
        zeroed += uint32((value == float32(0)) & (weight != float32(0)))
        off = _bits_of(float32(quotient - value)) & 0x7FFFFFFF
        if kind == _E4M3:
            inverse = float32(_float_of(uint32(uint32(254 << 23) - _gap_bits(_E4M3, value))) * float32(8))
        elif kind == _E2M1:
            inverse = float32(_float_of(uint32(uint32(254 << 23) - _gap_bits(_E2M1, value))) * float32(2))
        else:
            inverse = float32(1)
        largest = max(largest, _bits_of(float32(_float_of(uint32(off)) * inverse)))
    return saturated, zeroed, largest


@_jit
def _nan_codes(codes: Any, columns: Any) -> Any:
    count = uint32(0)
    for column in range(columns):
        count += uint32((codes[column] & 0x7F) == 0x7F)
    return count


@_jit
def _narrowed(dtype: Any, value: Any) -> Any:
    """A float32 rounded to the dtype of the weights, ties to even."""
    bits = _bits_of(value)
    if dtype == _BF16:
        return _float_of(uint32((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000))
    if dtype == _F16:
        magnitude = uint32(bits & 0x7FFFFFFF)
        normal = uint32((magnitude + 0xFFF + ((magnitude >> 13) & 1)) & 0xFFFFE000)
        subnormal = _bits_of(float32(float32(_float_of(magnitude) + float32(0.5)) - float32(0.5)))
        return _float_of(uint32((subnormal if magnitude < 0x38800000 else normal) | (bits & 0x80000000)))
    return value


@_jit
def _not_nearest_float(kind: Any, dtype: Any, weights: Any, codes: Any, divisors: Any, slack: Any, wrong: Any) -> None:
    top = uint32(0x7E if kind == _E4M3 else 7)
    sign_bit = uint32(0x80 if kind == _E4M3 else 8)
    half = float32(0.5)
    for column in range(weights.shape[0]):
        code = uint32(codes[column])
        own = uint32(code & (sign_bit - 1))
        value = _magnitude(kind, own)
        below = _magnitude(kind, uint32(own - (own > 0)))
        above = _magnitude(kind, uint32(own + 1))
        upper = float32(np.inf) if own >= top else float32(half * (value + above))
        lower = float32(-upper) if own == 0 else float32(half * (below + value))
        quotient = float32(weights[column] / divisors[column])
        quotient = float32(-quotient) if code & sign_bit else quotient
        spare = float32(abs(quotient) * slack)
        narrow = _narrowed(dtype, quotient)
        near = (quotient >= lower - spare) & (quotient <= upper + spare)
        near_in_dtype = (narrow >= lower) & (narrow <= upper)
        wrong[column] = not ((near | near_in_dtype) & (own <= top))


@_jit
def _not_nearest_integer(
    dtype: Any, weights: Any, values: Any, divisors: Any, zeros: Any, half: Any, slack: Any, wrong: Any
) -> None:
    for column in range(weights.shape[0]):
        value = float32(values[column] + zeros[column])
        upper = float32(np.inf) if value >= half - 1 else float32(value + float32(0.5))
        lower = float32(-np.inf) if value <= -half else float32(value - float32(0.5))
        quotient = float32(weights[column] / divisors[column])
        spare = float32(abs(quotient) * slack)
        place = float32(quotient + zeros[column])
        narrow = _narrowed(dtype, float32(_narrowed(dtype, quotient) + zeros[column]))
        near = (place >= lower - spare) & (place <= upper + spare)
        wrong[column] = not (near | ((narrow >= lower) & (narrow <= upper)))


@_jit
def measure(
    weights: Any,
    is_bf16: Any,
    codes: Any,
    kind: Any,
    nibbles: Any,
    add: Any,
    mask: Any,
    half: Any,
    divisors: Any,
    zeros: Any,
    height: Any,
    width: Any,
    low: Any,
    high: Any,
    noise_of_row: Any,
) -> Any:
    """Measure rows; fills the sum of squared differences of each row.

    Args:
        weights: uint16 [rows, columns] of BF16 bit patterns, or float32.
        codes: uint8 [rows, bytes], as they are stored.
        add, mask, half: how an integer code is read: ((code + add) & mask) - half.
        divisors, zeros: float32 [tiles down, tiles across] of `height` rows and `width` columns.
        low, high: what lies beyond is saturated.

    Returns:
        Sums of squares of weights and of differences; saturated, zeroed and NaN codes; the largest difference in steps.
    """
    rows, columns = weights.shape
    pairs = np.empty(codes.shape[1], np.uint16)
    own = pairs.view(np.uint8) if nibbles else np.empty(codes.shape[1], np.uint8)
    row_weights = np.empty(columns, np.float32)
    values = np.empty(columns, np.float32)
    row_divisors = np.empty(columns, np.float32)
    row_zeros = np.zeros(columns, np.float32)
    signals = np.empty(columns, np.float32)
    noises = np.empty(columns, np.float32)
    lanes = np.empty(_LANES, np.float32)
    signal, noise = 0.0, 0.0
    saturated, zeroed, nan_codes, largest = 0, 0, 0, uint32(0)
    for row in range(rows):
        if row % height == 0:
            down = row // height
            for tile in range(divisors.shape[1]):
                row_divisors[tile * width : (tile + 1) * width] = divisors[down, tile]
                row_zeros[tile * width : (tile + 1) * width] = zeros[down, tile]
        _unpack(codes[row], nibbles, pairs, own)
        _decode(kind, own, add, mask, half, row_zeros, values)
        _widen(weights[row], is_bf16, row_weights)
        more_saturated, more_zeroed, more = _compare(
            kind, row_weights, values, row_divisors, row_zeros, low, high, signals, noises
        )
        saturated += more_saturated
        zeroed += more_zeroed
        largest = max(largest, more)
        if kind == _E4M3:
            nan_codes += _nan_codes(own, columns)
        signal += _sum(signals, lanes)
        noise_of_row[row] = _sum(noises, lanes)
        noise += noise_of_row[row]
    return signal, noise, saturated, zeroed, nan_codes, _float_of(largest)


@_jit
def not_nearest(
    weights: Any,
    is_bf16: Any,
    dtype: Any,
    codes: Any,
    kind: Any,
    nibbles: Any,
    add: Any,
    mask: Any,
    half: Any,
    divisors: Any,
    zeros: Any,
    height: Any,
    width: Any,
    slack: Any,
    columns_hit: Any,
) -> Any:
    """How many codes are not the nearest to their weights, and the index of the first (-1 for none).

    Sets `columns_hit` (uint8 [columns]) to 1 for each column that has such a code.

    Args:
        dtype: in which the quotient may have been rounded too: 0 BF16, 1 F16, 2 F32.
        slack: relative uncertainty of a quotient.
        others: as in `measure`.
    """
    rows, columns = weights.shape
    pairs = np.empty(codes.shape[1], np.uint16)
    own = pairs.view(np.uint8) if nibbles else np.empty(codes.shape[1], np.uint8)
    row_weights = np.empty(columns, np.float32)
    values = np.empty(columns, np.float32)
    row_divisors = np.empty(columns, np.float32)
    row_zeros = np.zeros(columns, np.float32)
    wrong = np.empty(columns, np.uint8)
    count, first = 0, -1
    for row in range(rows):
        if row % height == 0:
            down = row // height
            for tile in range(divisors.shape[1]):
                row_divisors[tile * width : (tile + 1) * width] = divisors[down, tile]
                row_zeros[tile * width : (tile + 1) * width] = zeros[down, tile]
        _unpack(codes[row], nibbles, pairs, own)
        _widen(weights[row], is_bf16, row_weights)
        if kind == _E4M3:
            _not_nearest_float(_E4M3, dtype, row_weights, own, row_divisors, slack, wrong)
        elif kind == _E2M1:
            _not_nearest_float(_E2M1, dtype, row_weights, own, row_divisors, slack, wrong)
        else:
            _decode(kind, own, add, mask, half, row_zeros, values)
            _not_nearest_integer(dtype, row_weights, values, row_divisors, row_zeros, half, slack, wrong)
        found = 0
        for column in range(columns):
            found += wrong[column]
            columns_hit[column] |= wrong[column]
        if found and first < 0:
            first = row * columns
            while not wrong[first - row * columns]:
                first += 1
        count += found
    return count, first


@_jit
def squared_steps(
    codes: Any,
    columns: Any,
    kind: Any,
    nibbles: Any,
    add: Any,
    mask: Any,
    half: Any,
    divisors: Any,
    zeros: Any,
    height: Any,
    width: Any,
    sum_of_row: Any,
) -> None:
    """Fill the sum of squares of the steps, times their scales, at the codes of each row; arguments as in `measure`."""
    pairs = np.empty(codes.shape[1], np.uint16)
    own = pairs.view(np.uint8) if nibbles else np.empty(codes.shape[1], np.uint8)
    values = np.empty(columns, np.float32)
    row_divisors = np.empty(columns, np.float32)
    row_zeros = np.zeros(columns, np.float32)
    squares = np.empty(columns, np.float32)
    lanes = np.empty(_LANES, np.float32)
    for row in range(codes.shape[0]):
        if row % height == 0:
            down = row // height
            for tile in range(divisors.shape[1]):
                row_divisors[tile * width : (tile + 1) * width] = divisors[down, tile]
                row_zeros[tile * width : (tile + 1) * width] = zeros[down, tile]
        _unpack(codes[row], nibbles, pairs, own)
        _decode(kind, own, add, mask, half, row_zeros, values)
        for column in range(columns):
            gap = row_divisors[column]
            if kind == _E4M3:
                gap *= float32(_float_of(uint32(_gap_bits(_E4M3, values[column]))) * float32(0.125))
            elif kind == _E2M1:
                gap *= float32(_float_of(uint32(_gap_bits(_E2M1, values[column]))) * float32(0.5))
            squares[column] = gap * gap
        sum_of_row[row] = _sum(squares, lanes)


@_jit
def _e4m3(value: Any) -> Any:
    """Code of the E4M3 nearest to a non-negative float32 of 448 at most, ties to even."""
    magnitude = _bits_of(value)
    normal = uint32((uint32(magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3))
    subnormal = uint32(_bits_of(float32(value + float32(2.0**14))) - 0x46800000)
    return subnormal if magnitude < 0x3C800000 else normal


@_jit
def _modelopt_codes(weights: Any, divisors: Any, codes: Any) -> None:
    """Codes of the nearest E2M1, ties to even, 6 at most; a negative value that rounds to zero keeps its sign."""
    for column in range(weights.shape[0]):
        quotient = float32(weights[column] / divisors[column])
        magnitude = abs(quotient)
        code = (
            uint32(magnitude > float32(0.25)) + uint32(magnitude >= float32(0.75)) + uint32(magnitude > float32(1.25))
        )
        code += uint32(magnitude >= float32(1.75)) + uint32(magnitude > float32(2.5))
        code += uint32(magnitude >= float32(3.5)) + uint32(magnitude > float32(5))
        codes[column] = code | (uint32(quotient < float32(0)) << 3)


@_jit
def modelopt_nvfp4(weights: Any, is_bf16: Any, shared: Any, scales: Any, codes: Any) -> None:
    """Round rows as modelopt 0.47.0 does on a CPU.

    Args:
        weights: as in `measure`.
        shared: ``weight_scale_2``.
        scales: uint8 [rows, columns / 16], to be filled.
        codes: uint8 [rows, columns / 2], to be filled.
    """
    rows, columns = weights.shape
    row_weights = np.empty(columns, np.float32)
    divisors = np.empty(columns, np.float32)
    own = np.empty(columns, np.uint8)
    for row in range(rows):
        _widen(weights[row], is_bf16, row_weights)
        for block in range(scales.shape[1]):
            part = row_weights[block * 16 : (block + 1) * 16]
            largest = uint32(0)
            for column in range(16):
                largest = max(largest, uint32(_bits_of(part[column]) & 0x7FFFFFFF))
            scale = float32(_float_of(largest) / float32(float32(6) * shared))
            scale = float32(1) if scale == float32(0) else scale
            scale = min(max(scale, float32(2.0**-9)), float32(448))
            code = _e4m3(scale)
            scales[row, block] = code
            divisors[block * 16 : (block + 1) * 16] = float32(_magnitude(_E4M3, uint32(code)) * shared)
        _modelopt_codes(row_weights, divisors, own)
        for position in range(codes.shape[1]):
            codes[row, position] = own[2 * position] | (own[2 * position + 1] << 4)
