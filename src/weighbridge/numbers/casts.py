"""The two casts between a float32 and its bit pattern that numba lacks.

numba's cache notices no change of this file: whoever makes one touches the files that use it. The audit has casts of
its own, as it shares nothing with the kernels.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import float32, uint32
from numba.core.types import none
from numba.extending import intrinsic


@intrinsic  # type: ignore[untyped-decorator]
def float_of(_context: Any, _bits: Any) -> Any:
    """The float32 of a bit pattern."""
    return float32(uint32), lambda _target, builder, _signature, values: builder.bitcast(values[0], ir.FloatType())


@intrinsic  # type: ignore[untyped-decorator]
def bits_of(_context: Any, _value: Any) -> Any:
    """The bit pattern of a float32."""
    return uint32(float32), lambda _target, builder, _signature, values: builder.bitcast(values[0], ir.IntType(32))


@intrinsic  # type: ignore[untyped-decorator]
def add_sixteens(
    _context: Any, _sums: Any, _at: Any, _rows: Any, _first: Any, _second: Any, _third: Any, _fourth: Any
) -> Any:
    """Add sixteen neighbours of a flat float32 array, from each of four places on, to sixteen of another.

    In vector registers: a loop over arrays that LLVM cannot tell apart takes ten times as long.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), 16)

        def place(array: Any, kind: Any, index: Any) -> Any:
            data = context.make_array(kind)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())

        def load(pointer: Any) -> Any:
            loaded = builder.load(pointer)
            loaded.align = 4
            return loaded

        sums = place(values[0], signature.args[0], values[1])
        parts = [load(place(values[2], signature.args[2], index)) for index in values[3:]]
        pairs = builder.fadd(builder.fadd(parts[0], parts[1]), builder.fadd(parts[2], parts[3]))
        builder.store(builder.fadd(load(sums), pairs), sums).align = 4
        return context.get_dummy_value()

    return none(_sums, _at, _rows, _first, _second, _third, _fourth), generate
