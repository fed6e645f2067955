"""The two casts between a float32 and its bit pattern that numba lacks.

numba's cache notices no change of this file: whoever makes one touches the files that use it. The audit has casts of
its own, as it shares nothing with the kernels.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import float32, uint32
from numba.extending import intrinsic


@intrinsic  # type: ignore[untyped-decorator]
def float_of(_context: Any, _bits: Any) -> Any:
    """The float32 of a bit pattern."""
    return float32(uint32), lambda _target, builder, _signature, values: builder.bitcast(values[0], ir.FloatType())


@intrinsic  # type: ignore[untyped-decorator]
def bits_of(_context: Any, _value: Any) -> Any:
    """The bit pattern of a float32."""
    return uint32(float32), lambda _target, builder, _signature, values: builder.bitcast(values[0], ir.IntType(32))
