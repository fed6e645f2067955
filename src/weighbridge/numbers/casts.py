"""The two casts between a float32 and its bit pattern that numba lacks.

numba's cache notices no change of this file: whoever makes one touches the files that use it. The audit has casts of
its own, as it shares nothing with the kernels.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import float32, int32, uint16, uint32
from numba.core.cgutils import get_or_insert_function
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
    """Add sixteen neighbours of a flat array, from each of four places on, to sixteen of another.

    float32 to float32, or uint16, of which four must not exceed 65535, to int32. In vector registers: a loop over
    arrays that LLVM cannot tell apart takes ten times as long.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        sums_type, rows_type = signature.args[0], signature.args[2]
        whole = rows_type.dtype == uint16
        add = builder.add if whole else builder.fadd

        def place(array: Any, kind: Any, index: Any) -> Any:
            vector = ir.VectorType(context.get_data_type(kind.dtype), 16)
            data = context.make_array(kind)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())

        def load(pointer: Any, align: int) -> Any:
            loaded = builder.load(pointer)
            loaded.align = align
            return loaded

        sums = place(values[0], sums_type, values[1])
        parts = [load(place(values[2], rows_type, index), 2 if whole else 4) for index in values[3:]]
        four = add(add(parts[0], parts[1]), add(parts[2], parts[3]))
        if whole:
            four = builder.zext(four, ir.VectorType(ir.IntType(32), 16))
        builder.store(add(load(sums, 4), four), sums).align = 4
        return context.get_dummy_value()

    return none(_sums, _at, _rows, _first, _second, _third, _fourth), generate


def _sixteen(context: Any, builder: Any, kind: Any, array: Any, first: Any) -> Any:
    """Sixteen neighbours of an int32 array in a vector register."""
    data = context.make_array(kind)(context, builder, array).data
    vector = ir.VectorType(ir.IntType(32), 16)
    loaded = builder.load(builder.bitcast(builder.gep(data, [first]), vector.as_pointer()))
    loaded.align = 4
    return loaded


@intrinsic  # type: ignore[untyped-decorator]
def least_of_sixteen(_context: Any, _array: Any, _first: Any) -> Any:
    """The least of sixteen neighbours of an int32 array."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        loaded = _sixteen(context, builder, signature.args[0], *values)
        least = get_or_insert_function(
            builder.module, ir.FunctionType(ir.IntType(32), [loaded.type]), "llvm.vector.reduce.smin.v16i32"
        )
        return builder.call(least, [loaded])

    return int32(_array, _first), generate


@intrinsic  # type: ignore[untyped-decorator]
def not_above(_context: Any, _array: Any, _first: Any, _limit: Any) -> Any:
    """Which of sixteen neighbours of an int32 array are not above an int32, a bit for each, the lowest first."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        loaded = _sixteen(context, builder, signature.args[0], *values[:2])
        one = builder.insert_element(ir.Constant(loaded.type, ir.Undefined), values[2], ir.Constant(ir.IntType(32), 0))
        limits = builder.shuffle_vector(one, one, ir.Constant(loaded.type, [0] * 16))
        told = builder.icmp_signed("<=", loaded, limits)
        return builder.zext(builder.bitcast(told, ir.IntType(16)), ir.IntType(32))

    return uint32(_array, _first, int32), generate
