"""Kernels compiled by numba: one pass over the rows of a weight while each is in cache, without the GIL.

Every loop over elements is one that LLVM turns into vector instructions: it counts from zero, has no branch, and rounds
by additions to bit patterns or floats. (Slices of rows stand where an index would: an index that LLVM cannot prove
non-negative costs a factor of twenty.) Relaxed floating-point arithmetic would break every rounding here.

numba's cache notices changes of this file alone, so that what is compiled takes no constant from another one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import float32, int16, int32, uint8, uint16, uint32
from numba.extending import overload

from weighbridge.formats.schemes import Scheme, stored_tensors
from weighbridge.formats.tensors import Tensor
from weighbridge.machine.compiling import jit
from weighbridge.numbers.casts import bits_of, float_of
from weighbridge.numbers.encoding import (
    HALF_RANGE,
    INTEGER_BITS,
    LARGEST_EXPONENT,
    SOURCES,
    Array,
    Encoding,
    encoding_of,
    global_scale,
    named,
    stored_scales,
)
from weighbridge.numbers.interface import NonFiniteWeight, checked
from weighbridge.numbers.tiles import is_narrow, spread

_E4M3, _E2M1, _INTEGER = 0, 1, 2  # elements
_FLOAT, _E4M3_UNDER_GLOBAL, _E8M0 = 0, 1, 2  # scales


# Elements arrive as integers, whose type says what they are: uint16 is BF16, int16 is F16, uint32 is F32. What differs
# between them is chosen when a function is compiled, so that no loop over elements has to ask.


def _magnitude(element: Any) -> Any:
    """An element without its sign."""
    raise NotImplementedError


def _magnitude_of_bf16(element: Any) -> Any:
    return uint16(element & 0x7FFF)


def _magnitude_of_f16(element: Any) -> Any:
    return int16(element & 0x7FFF)


def _magnitude_of_f32(element: Any) -> Any:
    return uint32(element & 0x7FFFFFFF)


def _widened(element: Any) -> Any:
    """The float32 that an element is."""
    raise NotImplementedError


def _widened_from_bf16(element: Any) -> Any:
    return float_of(uint32(uint32(element) << 16))


def _widened_from_f16(element: Any) -> Any:
    # Exponent and fraction in float32's places are the value over 2^112, subnormal or not.
    magnitude = float32(float_of(uint32((element & 0x7FFF) << 13)) * float32(2.0**112))
    return float_of(uint32(bits_of(magnitude) | ((element & 0x8000) << 16)))


def _widened_from_f32(element: Any) -> Any:
    return float_of(element)


def _narrowed(element: Any, value: Any) -> Any:
    """A float32 rounded to the dtype of `element`, ties to even; not to infinity beyond its largest value."""
    raise NotImplementedError


def _narrowed_to_bf16(element: Any, value: Any) -> Any:  # noqa: ARG001
    bits = bits_of(value)
    return float_of(uint32((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000))


def _narrowed_to_f16(element: Any, value: Any) -> Any:  # noqa: ARG001
    bits = bits_of(value)
    magnitude = uint32(bits & 0x7FFFFFFF)
    normal = uint32((magnitude + 0xFFF + ((magnitude >> 13) & 1)) & 0xFFFFE000)
    # Next to one half float32 is as coarse as the subnormals of F16 are.
    subnormal = bits_of(float32(float32(float_of(magnitude) + float32(0.5)) - float32(0.5)))
    return float_of(uint32((subnormal if magnitude < 0x38800000 else normal) | (bits & 0x80000000)))


def _narrowed_to_f32(element: Any, value: Any) -> Any:  # noqa: ARG001
    return value


_MAGNITUDE = {uint16: _magnitude_of_bf16, int16: _magnitude_of_f16, uint32: _magnitude_of_f32}
_WIDENED = {uint16: _widened_from_bf16, int16: _widened_from_f16, uint32: _widened_from_f32}
_NARROWED = {uint16: _narrowed_to_bf16, int16: _narrowed_to_f16, uint32: _narrowed_to_f32}


@overload(_magnitude)  # type: ignore[untyped-decorator]
def _choose_magnitude(element: Any) -> Any:
    return _MAGNITUDE[element]


@overload(_widened)  # type: ignore[untyped-decorator]
def _choose_widened(element: Any) -> Any:
    return _WIDENED[element]


@overload(_narrowed)  # type: ignore[untyped-decorator]
def _choose_narrowed(element: Any, value: Any) -> Any:  # noqa: ARG001 (numba matches arguments by name)
    return _NARROWED[element]


@jit
def _e4m3(magnitude: Any) -> Any:
    """Code of the E4M3 nearest to a non-negative float32 (a bit pattern); 448 at most."""
    magnitude = uint32(min(magnitude, uint32(0x43E00000)))
    normal = uint32((uint32(magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3))
    subnormal = uint32(bits_of(float32(float_of(magnitude) + float32(2.0**14))) - 0x46800000)
    return subnormal if magnitude < 0x3C800000 else normal


@jit
def _e2m1(magnitude: Any) -> Any:
    """Code of the E2M1 nearest to a non-negative float32 (a bit pattern); 6 at most."""
    magnitude = uint32(min(magnitude, uint32(0x40C00000)))
    normal = uint32((uint32(magnitude + 0x1FFFFF + ((magnitude >> 22) & 1)) >> 22) - (126 << 1))
    subnormal = uint32(bits_of(float32(float_of(magnitude) + float32(2.0**22))) - 0x4A800000)
    return subnormal if magnitude < 0x3F800000 else normal


class _Numbers(NamedTuple):
    """The constants of one call, of its element, scale and source dtype."""

    non_finite: int  # magnitude of infinity, as a bit pattern of the source dtype
    tiny: np.float32
    epsilon: np.float32
    half_range: np.float32
    global_scale: np.float32
    given_amax: np.float32  # negative where each tile's own counts
    largest_exponent: int
    zero_exponent: int  # E8M0 of a tile of zeros
    low: np.float32
    high: np.float32
    rounder: np.float32  # adding it leaves an integer, offset as it is stored, in the low bits


@jit
def _raise_to_amax(row: Any, width: Any, amax: Any) -> None:
    """Raise the largest magnitude of each tile to what one row of it holds; `amax` are elements without signs."""
    for tile in range(amax.shape[0]):
        part = row[tile * width : (tile + 1) * width]
        largest = amax[tile]
        for column in range(part.shape[0]):
            largest = max(largest, _magnitude(part[column]))
        amax[tile] = largest


@jit
def _largest_of_pairs(values: Any, largest: Any) -> None:
    for pair in range(largest.shape[0]):
        largest[pair] = max(_magnitude(values[2 * pair]), _magnitude(values[2 * pair + 1]))


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
def _scale_float(largest: Any, element: Any, numbers: Any, stored: Any, divisors: Any) -> None:
    """Scales in the weight's dtype, stored as the bit patterns of float32."""
    for tile in range(largest.shape[0]):
        scale = _narrowed(element, float32(largest[tile] / numbers.half_range))
        scale = numbers.epsilon if scale == float32(0) else scale
        divisors[tile] = scale
        stored[tile] = bits_of(scale)


@jit
def _scale_e4m3(largest: Any, element: Any, numbers: Any, stored: Any, divisors: Any) -> None:
    """Scales as E4M3 under a global scale; zero becomes 1/8. The quotient by the global scale is a float32."""
    for tile in range(largest.shape[0]):
        scale = _narrowed(element, float32(largest[tile] / numbers.half_range))
        code = _e4m3(bits_of(float32(numbers.global_scale * scale)))
        code = uint32(0x20) if code == 0 else code
        normal = float_of(uint32((code << 20) + (120 << 23)))
        subnormal = float32(float32(code) * float32(2.0**-9))
        divisors[tile] = float32((subnormal if code < 8 else normal) / numbers.global_scale)
        stored[tile] = code


@jit
def _scale_e8m0(largest: Any, numbers: Any, stored: Any, divisors: Any) -> None:
    """Scales as biased exponents: that of the largest value, or the next from 7/4 on, less that of the largest code."""
    for tile in range(largest.shape[0]):
        value = largest[tile]
        # Subnormal values have no exponent of their own; the upper quarter of them is rounded to the smallest normal.
        value = numbers.tiny if float32(0.75) * numbers.tiny <= value < numbers.tiny else value
        exponent = int32(uint32(bits_of(value) + (1 << 21)) >> 23) - numbers.largest_exponent
        exponent = numbers.zero_exponent if value < numbers.tiny else max(exponent, 0)
        divisors[tile] = float_of(uint32(0x00400000 if exponent == 0 else exponent << 23))
        stored[tile] = exponent


@jit
def _encode_e4m3(row: Any, divisors: Any, codes: Any) -> None:
    for column in range(row.shape[0]):
        element = row[column]
        bits = bits_of(_narrowed(element, float32(_widened(element) / divisors[column])))
        codes[column] = uint8(_e4m3(uint32(bits & 0x7FFFFFFF)) | ((bits >> 24) & 0x80))


@jit
def _encode_e2m1(row: Any, divisors: Any, codes: Any) -> None:
    """Quotients are rounded to the weight's dtype: the scales are of that dtype too."""
    for column in range(row.shape[0]):
        element = row[column]
        codes[column] = _signed_e2m1(_narrowed(element, float32(_widened(element) / divisors[column])))


@jit
def _encode_e2m1_exactly(row: Any, divisors: Any, codes: Any) -> None:
    """Quotients stay float32: the scales come of a float32 global scale."""
    for column in range(row.shape[0]):
        codes[column] = _signed_e2m1(float32(_widened(row[column]) / divisors[column]))


@jit
def _signed_e2m1(value: Any) -> Any:
    # Only what is below zero has the sign: a zero, or a quotient that underflowed to one, has code 0.
    bits = bits_of(value)
    magnitude = uint32(bits & 0x7FFFFFFF)
    sign = uint32(0) if magnitude == 0 else uint32((bits >> 28) & 8)
    return uint8(_e2m1(magnitude) | sign)


@jit
def _encode_integer(row: Any, divisors: Any, numbers: Any, codes: Any) -> None:
    for column in range(row.shape[0]):
        element = row[column]
        value = _narrowed(element, float32(_widened(element) / divisors[column]))
        value = min(max(value, numbers.low), numbers.high)
        codes[column] = uint8(bits_of(float32(value + numbers.rounder)))


@jit
def _pack_nibbles(pairs: Any, packed: Any) -> None:
    """Two codes, each in a byte of its own, become one byte; the first is the lower half."""
    for position in range(packed.shape[0]):
        packed[position] = uint8(pairs[position] | (pairs[position] >> 4))


@jit
def _scale(kind: Any, largest: Any, element: Any, numbers: Any, stored: Any, divisors: Any) -> None:
    """What is stored for each tile, and the float32 that its elements are divided by."""
    if kind == _FLOAT:
        _scale_float(largest, element, numbers, stored, divisors)
    elif kind == _E4M3_UNDER_GLOBAL:
        _scale_e4m3(largest, element, numbers, stored, divisors)
    else:
        _scale_e8m0(largest, numbers, stored, divisors)


@jit
def _encode(kind: Any, scale: Any, row: Any, divisors: Any, numbers: Any, codes: Any) -> None:
    """One code a byte."""
    if kind == _E4M3:
        _encode_e4m3(row, divisors, codes)
    elif kind == _INTEGER:
        _encode_integer(row, divisors, numbers, codes)
    elif scale == _E4M3_UNDER_GLOBAL:
        _encode_e2m1_exactly(row, divisors, codes)
    else:
        _encode_e2m1(row, divisors, codes)


@jit
def _quantize(
    bits: Any, element: Any, scale: Any, height: Any, width: Any, nibbles: Any, numbers: Any, stored: Any, codes: Any
) -> Any:
    """Fill `stored` (uint32 [tiles down, across]) and `codes` (uint8 [rows, bytes]); False if a value is not finite."""
    rows, columns = bits.shape
    across = stored.shape[1]
    amax = np.empty(across, bits.dtype)
    largest = np.empty(across, np.float32)
    divisors = np.empty(across, np.float32)
    divisor_of_column = np.empty(columns, np.float32)
    narrow = is_narrow(width, columns)
    elements, scratch = np.empty(columns, bits.dtype), np.empty(columns, np.float32)
    pairs = np.zeros(codes.shape[1], np.uint16)
    for down in range(stored.shape[0]):
        first, last = down * height, min((down + 1) * height, rows)
        amax[:] = 0
        for row in range(first, last):
            if narrow:
                _raise_to_amax_of_narrow(bits[row], elements, amax)
            else:
                _raise_to_amax(bits[row], width, amax)
        for tile in range(across):
            if amax[tile] >= numbers.non_finite:
                return False
            largest[tile] = _widened(amax[tile]) if numbers.given_amax < 0 else numbers.given_amax
        _scale(scale, largest, bits[0, 0], numbers, stored[down], divisors)
        spread(divisors, width, scratch, divisor_of_column)
        for row in range(first, last):
            if nibbles:
                _encode(element, scale, bits[row], divisor_of_column, numbers, pairs.view(np.uint8)[:columns])
                _pack_nibbles(pairs, codes[row])
            else:
                _encode(element, scale, bits[row], divisor_of_column, numbers, codes[row, :columns])
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
        largest = _largest(_elements(checked(weight, dtype), dtype))
        if largest >= _NON_FINITE[dtype]:
            raise NonFiniteWeight
        match dtype:
            case "BF16":
                return float((np.uint32(largest) << np.uint32(16)).view(np.float32))
            case "F16":
                return float(np.int16(largest).view(np.float16))
            case _:
                return float(np.uint32(largest).view(np.float32))

    def quantize(self, weight: Array, dtype: str, scheme: Scheme, *, amax: float | None = None) -> dict[str, Array]:
        """See `Kernels`."""
        rows, columns = checked(weight, dtype, amax).shape
        encoding = encoding_of(scheme)
        stored_tensors(scheme, Tensor(dtype, (rows, columns)))
        if encoding.needs_amax and amax is None:
            amax = self.amax(weight, dtype)
        shared = global_scale(amax, dtype) if amax is not None and encoding.scale == "E4M3" else None
        # Under one scale for all, each row may as well be a tile of its own.
        height, width = encoding.height or 1, encoding.width or columns
        stored = np.empty((-(-rows // height), -(-columns // width)), np.uint32)
        codes = np.empty((rows, encoding.row_bytes(columns)), np.uint8)
        if not _quantize(
            _elements(weight, dtype),
            _ELEMENTS[encoding.element],
            _SCALES[encoding.scale],
            height,
            width,
            encoding.nibbles,
            _numbers(encoding, dtype, amax, shared),
            stored,
            codes,
        ):
            raise NonFiniteWeight
        if encoding.height is None:
            stored = stored[0]
        scales = stored_scales(stored.view(np.float32), dtype) if encoding.scale == "float" else stored.astype(np.uint8)
        return named(encoding, codes, scales, shared)


_ELEMENTS = {"E4M3": _E4M3, "E2M1": _E2M1, "INT4": _INTEGER, "INT8": _INTEGER}
_SCALES = {"float": _FLOAT, "E4M3": _E4M3_UNDER_GLOBAL, "E8M0": _E8M0}
_NON_FINITE = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}
_BIT_PATTERNS = {"BF16": np.uint16, "F16": np.int16, "F32": np.uint32}


def _elements(weight: Array, dtype: str) -> Array:
    """`weight` as the integers that tell the compiled functions its dtype. Always read-only: they are compiled once."""
    bits = weight.view(_BIT_PATTERNS[dtype])
    bits.flags.writeable = False
    return bits


def _numbers(encoding: Encoding, dtype: str, amax: float | None, shared: np.float32 | None) -> _Numbers:
    source = SOURCES[dtype]
    bits = INTEGER_BITS.get(encoding.element, 1)
    half = 1 << (bits - 1)
    return _Numbers(
        non_finite=_NON_FINITE[dtype],
        tiny=np.float32(source.tiny),
        epsilon=np.float32(source.epsilon),
        half_range=np.float32(HALF_RANGE[encoding.element]),
        global_scale=np.float32(1) if shared is None else shared,
        given_amax=np.float32(amax if amax is not None and encoding.height is None else -1),
        largest_exponent=LARGEST_EXPONENT.get(encoding.element, 0),
        zero_exponent=source.zero_exponent,
        low=np.float32(-half),
        high=np.float32(half - 1),
        rounder=np.float32(1.5 * 2**23 + (half if encoding.packed else 0)),
    )
