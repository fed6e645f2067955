"""From the range of a tile to its scale; what the compiled kernels quantize with, and search among.

numba's cache notices no change of this file: whoever makes one touches the files that use it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import float32, int32, uint32

from weighbridge.machine.compiling import jit
from weighbridge.numbers.casts import bits_of, float_of
from weighbridge.numbers.elements import e4m3, narrowed, nearest_integer
from weighbridge.numbers.encoding import HALF_RANGE, INTEGER_BITS, LARGEST_EXPONENT, SOURCES, Encoding, rounded

FLOAT, E4M3_UNDER_GLOBAL, E8M0, SIGNED, BETWEEN = 0, 1, 2, 3, 4
"""How a scale follows from a range: over half of what codes span, under a global one, as a power of two, over the
smallest code and with the sign of what lies there, or with a zero point."""

NON_FINITE = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}


class Numbers(NamedTuple):
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
    span: np.float32  # from the smallest code to the largest, in the source dtype
    rounder: np.float32  # adding it leaves an integer, offset as it is stored, in the low bits


def numbers_of(encoding: Encoding, dtype: str, amax: float | None, shared: np.float32 | None) -> Numbers:
    """The constants for an encoding of weights of `dtype`."""
    source = SOURCES[dtype]
    bits = INTEGER_BITS.get(encoding.element, 1)
    half = 1 << (bits - 1)
    return Numbers(
        non_finite=NON_FINITE[dtype],
        tiny=np.float32(source.tiny),
        epsilon=np.float32(source.epsilon),
        half_range=np.float32(HALF_RANGE[encoding.element]),
        global_scale=np.float32(1) if shared is None else shared,
        given_amax=np.float32(amax if amax is not None and encoding.height is None else -1),
        largest_exponent=LARGEST_EXPONENT.get(encoding.element, 0),
        zero_exponent=source.zero_exponent,
        low=np.float32(-half),
        high=np.float32(half - 1),
        span=rounded(np.float32(2 * half - 1), dtype),
        rounder=np.float32(1.5 * 2**23 + (half if encoding.packed else 0)),
    )


def kind_of(encoding: Encoding) -> int:
    """How scales follow from ranges."""
    if encoding.zero_points:
        return BETWEEN
    return SIGNED if encoding.signed else {"float": FLOAT, "E4M3": E4M3_UNDER_GLOBAL, "E8M0": E8M0}[encoding.scale]


@jit
def float_scale(low: Any, high: Any, element: Any, numbers: Any) -> Any:
    """A scale in the weight's dtype."""
    scale = narrowed(element, float32(max(-low, high) / numbers.half_range))
    return numbers.epsilon if scale == float32(0) else scale


@jit
def signed_scale(low: Any, high: Any, element: Any, numbers: Any) -> Any:
    """A scale under which the value of the largest magnitude has the smallest code; of two, the negative one."""
    scale = narrowed(element, float32((high if high > -low else low) / numbers.low))
    return numbers.epsilon if scale == float32(0) else scale


@jit
def scale_between(low: Any, high: Any, element: Any, numbers: Any) -> Any:
    """A scale for codes from the smallest to the largest value, and the zero point."""
    scale = narrowed(element, float32(narrowed(element, float32(high - low)) / numbers.span))
    zero = narrowed(element, float32(numbers.low - narrowed(element, float32(low / scale))))
    # For a tile of zeros the quotient is no number; where the scale alone is zero, it is infinite.
    zero = nearest_integer(zero if zero == zero else float32(0), numbers.low, numbers.high)  # noqa: PLR0124
    return numbers.epsilon if scale == float32(0) else scale, zero


@jit
def scale_under_global(low: Any, high: Any, element: Any, numbers: Any) -> Any:
    """The code of an E4M3 scale under a global one, 1/8 for zero, and the float32 to divide by."""
    scale = narrowed(element, float32(max(-low, high) / numbers.half_range))
    code = e4m3(uint32(bits_of(float32(numbers.global_scale * scale)) & 0x7FFFFFFF))  # zero may have a sign
    code = uint32(0x20) if code == 0 else code
    normal = float_of(uint32((code << 20) + (120 << 23)))
    subnormal = float32(float32(code) * float32(2.0**-9))
    return code, float32((subnormal if code < 8 else normal) / numbers.global_scale)


@jit
def power_of_two(low: Any, high: Any, numbers: Any) -> Any:
    """A biased exponent, of the largest value or the next from 7/4 on, less that of the largest code; its power."""
    value = max(-low, high)
    # Subnormal values have no exponent of their own; the upper quarter of them is rounded to the smallest normal.
    value = numbers.tiny if float32(0.75) * numbers.tiny <= value < numbers.tiny else value
    exponent = int32(uint32(bits_of(value) + (1 << 21)) >> 23) - numbers.largest_exponent
    exponent = numbers.zero_exponent if value < numbers.tiny else max(exponent, 0)
    return exponent, float_of(uint32(0x00400000 if exponent == 0 else exponent << 23))
