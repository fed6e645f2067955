"""Elements of weights and codes: widened, narrowed, rounded to a grid; what the compiled kernels are made of.

numba's cache notices no change of this file: whoever makes one touches the files that use it.
"""

from __future__ import annotations

from typing import Any

from numba import float32, int16, uint16, uint32
from numba.extending import overload

from weighbridge.machine.compiling import jit
from weighbridge.numbers.casts import bits_of, float_of

E4M3, E2M1, INTEGER = 0, 1, 2
"""What a code stands for."""

# Elements arrive as integers, whose type says what they are: uint16 is BF16, int16 is F16, uint32 is F32. What differs
# between them is chosen when a function is compiled, so that no loop over elements has to ask.


def magnitude(element: Any) -> Any:
    """An element without its sign."""
    raise NotImplementedError


def _magnitude_of_bf16(element: Any) -> Any:
    return uint16(element & 0x7FFF)


def _magnitude_of_f16(element: Any) -> Any:
    return int16(element & 0x7FFF)


def _magnitude_of_f32(element: Any) -> Any:
    return uint32(element & 0x7FFFFFFF)


def widened(element: Any) -> Any:
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


def narrowed(element: Any, value: Any) -> Any:
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


def narrowed_or_infinite(element: Any, value: Any) -> Any:
    """A float32 rounded to the dtype of `element`, to infinity beyond its largest value."""
    raise NotImplementedError


def _narrowed_to_f16_or_infinity(element: Any, value: Any) -> Any:
    near = narrowed(element, value)
    return float_of(uint32(bits_of(near) & 0x80000000 | 0x7F800000)) if abs(near) > float32(65504) else near


_MAGNITUDE = {uint16: _magnitude_of_bf16, int16: _magnitude_of_f16, uint32: _magnitude_of_f32}
_WIDENED = {uint16: _widened_from_bf16, int16: _widened_from_f16, uint32: _widened_from_f32}
_NARROWED = {uint16: _narrowed_to_bf16, int16: _narrowed_to_f16, uint32: _narrowed_to_f32}
_NARROWED_OR_INFINITE = {**_NARROWED, int16: _narrowed_to_f16_or_infinity}


@overload(magnitude)  # type: ignore[untyped-decorator]
def _choose_magnitude(element: Any) -> Any:
    return _MAGNITUDE[element]


@overload(widened)  # type: ignore[untyped-decorator]
def _choose_widened(element: Any) -> Any:
    return _WIDENED[element]


@overload(narrowed)  # type: ignore[untyped-decorator]
def _choose_narrowed(element: Any, value: Any) -> Any:  # noqa: ARG001 (numba matches arguments by name)
    return _NARROWED[element]


@overload(narrowed_or_infinite)  # type: ignore[untyped-decorator]
def _choose_narrowed_or_infinite(element: Any, value: Any) -> Any:  # noqa: ARG001
    return _NARROWED_OR_INFINITE[element]


@jit
def e4m3(magnitude: Any) -> Any:
    """Code of the E4M3 nearest to a non-negative float32 (a bit pattern); 448 at most."""
    magnitude = uint32(min(magnitude, uint32(0x43E00000)))
    normal = uint32((uint32(magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3))
    subnormal = uint32(bits_of(float32(float_of(magnitude) + float32(2.0**14))) - 0x46800000)
    return subnormal if magnitude < 0x3C800000 else normal


@jit
def e2m1(magnitude: Any) -> Any:
    """Code of the E2M1 nearest to a non-negative float32 (a bit pattern); 6 at most."""
    magnitude = uint32(min(magnitude, uint32(0x40C00000)))
    normal = uint32((uint32(magnitude + 0x1FFFFF + ((magnitude >> 22) & 1)) >> 22) - (126 << 1))
    subnormal = uint32(bits_of(float32(float_of(magnitude) + float32(2.0**22))) - 0x4A800000)
    return subnormal if magnitude < 0x3F800000 else normal


@jit
def nearest_e4m3(value: Any) -> Any:
    """The E4M3 nearest to a float32, as a float32."""
    bits = bits_of(value)
    magnitude = uint32(min(uint32(bits & 0x7FFFFFFF), uint32(0x43E00000)))
    normal = float_of(uint32((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) & 0xFFF00000))
    subnormal = float32(float32(float_of(magnitude) + float32(2.0**14)) - float32(2.0**14))
    near = subnormal if magnitude < 0x3C800000 else normal
    return float_of(uint32(bits_of(near) | (bits & 0x80000000)))


@jit
def nearest_e2m1(value: Any) -> Any:
    """The E2M1 nearest to a float32, as a float32."""
    bits = bits_of(value)
    magnitude = uint32(min(uint32(bits & 0x7FFFFFFF), uint32(0x40C00000)))
    normal = float_of(uint32((magnitude + 0x1FFFFF + ((magnitude >> 22) & 1)) & 0xFFC00000))
    subnormal = float32(float32(float_of(magnitude) + float32(2.0**22)) - float32(2.0**22))
    near = subnormal if magnitude < 0x3F800000 else normal
    return float_of(uint32(bits_of(near) | (bits & 0x80000000)))


@jit
def nearest_integer(value: Any, low: Any, high: Any) -> Any:
    """The integer from `low` to `high` that is nearest to a float32, ties to even."""
    value = min(max(value, low), high)
    return float32(float32(value + float32(1.5 * 2**23)) - float32(1.5 * 2**23))
