"""The audit's own arithmetic: rounding to nearest, written from its definition, and what it says of stored rows.

Nothing here is shared with the kernels that quantize, and nothing is done as they do it. They make codes with additions
to bit patterns; here codes are decoded, and compared with the place on the grid that is nearest to a quotient:

    step(x)    = the largest power of two not above |x|, but at least the grid's smallest, over the grid's fraction
    nearest(x) = step(x) * (x / step(x) rounded to an integer, ties to even), x first brought within the ends

Divisions and products by powers of two are exact, so that `nearest` is one rounding. That is all; the rest of this file
asks it of every element, fast: one pass over rows, compiled by numba, without the GIL. Loops over elements have no
branch and no sum that would have to be taken in order, so that LLVM can turn them into vector instructions. numba's
cache notices changes of this file alone, so that what is compiled takes no constant, and no order of fields, from
another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import float32, int32, uint16, uint32
from numba.core.cgutils import get_or_insert_function
from numba.core.types import none
from numba.extending import intrinsic

from weighbridge.machine.compiling import jit

BF16, F16, F32 = 0, 1, 2
"""Dtypes to which a quotient or a scale is rounded."""

WHOLE, FLOAT, POWER_OF_TWO, UNDER_GLOBAL, MODELOPT, BETWEEN, SIGNED = range(7)
"""How the scale of a tile follows from its values; see `_scales`."""

E4M3, E2M1, INTEGER = range(3)
"""What a code stands for."""

_LANES = 64


class Places(NamedTuple):
    """The places of a grid, in units of the scale, as the loops take them.

    A place is a multiple of a step. The step at x is the largest power of two not above x, `smallest` at least, over
    `fraction`. What lies beyond the ends is at the end.

    Attributes:
        kind: of its codes: `E4M3`, `E2M1` or `INTEGER`.
        flipped: int32, bits of a stored integer to be turned over.
        offset: int32, what is then subtracted from it.
        smallest: float32.
        fraction: float32, steps from a power of two to the next.
        lowest, highest: float32, the ends.
        zero: float32, -0.0 where what rounds to zero keeps its sign; integers have one zero only.
    """

    kind: int
    flipped: np.int32
    offset: np.int32
    smallest: np.float32
    fraction: np.float32
    lowest: np.float32
    highest: np.float32
    zero: np.float32


class Rule(NamedTuple):
    """How the scale of a tile follows from its values.

    Attributes:
        kind: `WHOLE`, `FLOAT`, ...
        dtype: of the weights, to which results are rounded: `BF16`, `F16` or `F32`.
        half_range: float32, half of what codes span.
        bottom: float32, the smallest code; of zero points and signed scales alone.
        shared: float32, the stored scale of the whole tensor, by which the rule multiplies or divides.
        epsilon: float32, what a scale of zero is replaced by.
        tiny: float32, the smallest normal value of the dtype.
        of_zeros: float32, the power of two of a tile of zeros.
        largest_power: float32, the largest power of two that is a code.
    """

    kind: int
    dtype: int
    half_range: np.float32
    bottom: np.float32
    shared: np.float32
    epsilon: np.float32
    tiny: np.float32
    of_zeros: np.float32
    largest_power: np.float32


@intrinsic  # type: ignore[untyped-decorator]
def _float_of(_context: Any, _bits: Any) -> Any:
    """The float32 of a bit pattern."""
    return float32(uint32), lambda _target, builder, _signature, values: builder.bitcast(values[0], ir.FloatType())


@intrinsic  # type: ignore[untyped-decorator]
def _bits_of(_context: Any, _value: Any) -> Any:
    """The bit pattern of a float32."""
    return uint32(float32), lambda _target, builder, _signature, values: builder.bitcast(values[0], ir.IntType(32))


@intrinsic  # type: ignore[untyped-decorator]
def _fill_16(_context: Any, _array: Any, _first: Any, _value: Any) -> Any:
    """Set sixteen neighbours of a float32 array in one instruction: assigning to a slice takes four times as long."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), 16)
        array = context.make_array(signature.args[0])(context, builder, values[0])
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), values[2], ir.Constant(ir.IntType(32), 0))
        of_first = ir.Constant(ir.VectorType(ir.IntType(32), 16), [ir.Constant(ir.IntType(32), 0)] * 16)
        sixteen = builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), of_first)
        target = builder.bitcast(builder.gep(array.data, [values[1]]), vector.as_pointer())
        builder.store(sixteen, target).align = 4
        return context.get_dummy_value()

    return none(_array, _first, _value), generate


@intrinsic  # type: ignore[untyped-decorator]
def _largest_of_16(_context: Any, _array: Any, _first: Any) -> Any:
    """The largest magnitude of sixteen neighbours, as bit patterns of BF16, in a fifth of the time of a loop."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = ir.VectorType(ir.IntType(16), 16)
        array = context.make_array(signature.args[0])(context, builder, values[0])
        patterns = builder.load(builder.bitcast(builder.gep(array.data, [values[1]]), vector.as_pointer()))
        patterns.align = 2
        largest = get_or_insert_function(
            builder.module, ir.FunctionType(ir.IntType(16), [vector]), "llvm.vector.reduce.umax.v16i16"
        )
        return builder.call(largest, [builder.and_(patterns, ir.Constant(vector, [0x7FFF] * 16))])

    return uint16(_array, _first), generate


# --- the definition


@jit
def _power(value: Any, smallest: Any) -> Any:
    """The largest power of two not above the magnitude of `value`, but at least `smallest`."""
    return _float_of(uint32(max(uint32(_bits_of(value) & 0x7F800000), _bits_of(smallest))))


@jit
def _over(power: Any) -> Any:
    """1 / `power` of a power of two."""
    return _float_of(uint32(uint32(254 << 23) - _bits_of(power)))


@jit
def _within(places: Any, value: Any) -> Any:
    return min(max(value, places.lowest), places.highest)


@jit
def _nearest(places: Any, value: Any) -> Any:
    """The place nearest to `value`, ties to even."""
    value = _within(places, value)
    power = _power(value, places.smallest)
    steps = float32(np.rint(float32(value * float32(_over(power) * places.fraction))))
    return float32(float32(steps * float32(power / places.fraction)) + places.zero)


@jit
def _to_bf16(value: Any) -> Any:
    bits = _bits_of(value)
    rounded = uint32((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000)
    return _float_of(rounded if uint32(bits & 0x7FFFFFFF) <= 0x7F800000 else uint32(0x7FC00000))


@jit
def _to_f16(value: Any) -> Any:
    bits = _bits_of(value)
    magnitude = uint32(bits & 0x7FFFFFFF)
    normal = uint32((magnitude + 0xFFF + ((magnitude >> 13) & 1)) & 0xFFFFE000)
    subnormal = _bits_of(float32(float32(_float_of(magnitude) + float32(0.5)) - float32(0.5)))
    finite = subnormal if magnitude < 0x38800000 else normal
    # From half a step beyond 65,504 on; NaN stays NaN.
    beyond = uint32(0x7F800000) if magnitude <= 0x7F800000 else uint32(0x7FC00000)
    return _float_of(uint32((finite if magnitude < 0x477FF000 else beyond) | (bits & 0x80000000)))


@jit
def _rounded(dtype: Any, value: Any) -> Any:
    """A float32 rounded to a dtype of weights, ties to even."""
    if dtype == BF16:
        return _to_bf16(value)
    return _to_f16(value) if dtype == F16 else value


# --- reading rows


@jit
def _widen(weight: Any, is_bf16: Any, out: Any) -> None:
    if is_bf16:
        for column in range(out.shape[0]):
            out[column] = _float_of(uint32(uint32(weight[column]) << 16))
    else:
        for column in range(out.shape[0]):
            out[column] = float32(weight[column])


@jit
def _split(row: Any, nibbles: Any, codes: Any) -> Any:
    """The codes of a row, a byte each; returns whether what is stored beyond the last column is zero."""
    columns = codes.shape[0]
    rest = uint32(0)
    if nibbles:
        for pair in range(columns // 2):
            codes[2 * pair] = row[pair] & 15
            codes[2 * pair + 1] = row[pair] >> 4
        if columns % 2:
            codes[columns - 1] = row[columns // 2] & 15
            rest |= uint32(row[columns // 2] >> 4)
        for position in range((columns + 1) // 2, row.shape[0]):
            rest |= uint32(row[position])
    else:
        for column in range(columns):
            codes[column] = row[column]
        for position in range(columns, row.shape[0]):
            rest |= uint32(row[position])
    return rest == 0


@jit
def _decode(row: Any, nibbles: Any, places: Any, codes: Any, values: Any) -> Any:
    """The places of a row's codes; returns whether what is stored beyond the last column is zero.

    A table says the same (`weighbridge.auditing.grid`); looking codes up in it takes three times as long.
    """
    ends_with_zeros = _split(row, nibbles, codes)
    if places.kind == E4M3:
        for column in range(values.shape[0]):
            code = uint32(codes[column])
            magnitude = uint32(code & 0x7F)
            normal = _float_of(uint32(uint32(magnitude << 20) + uint32(120 << 23)))
            subnormal = float32(float32(magnitude) * float32(2.0**-9))
            value = subnormal if magnitude < 8 else normal
            value = float32(np.nan) if magnitude == 0x7F else value
            values[column] = _float_of(uint32(_bits_of(value) | uint32(uint32(code & 0x80) << 24)))
    elif places.kind == E2M1:
        for column in range(values.shape[0]):
            code = uint32(codes[column])
            magnitude = uint32(code & 7)
            normal = _float_of(uint32(uint32(magnitude << 22) + uint32(126 << 23)))
            value = float32(float32(magnitude) * float32(0.5)) if magnitude < 2 else normal
            values[column] = _float_of(uint32(_bits_of(value) | uint32(uint32(code & 8) << 28)))
    else:
        for column in range(values.shape[0]):
            values[column] = float32(int32(int32(int32(codes[column]) ^ places.flipped) - places.offset))
    return ends_with_zeros


@jit
def _spread(tiles: Any, width: Any, out: Any) -> None:
    """Figures of tiles, one for each column."""
    whole = out.shape[0] // 16
    if width == 16 and tiles.shape[0] >= whole:  # of NVFP4
        for tile in range(whole):
            _fill_16(out, tile * 16, tiles[tile])
        for tile in range(whole, tiles.shape[0]):
            out[tile * 16 : (tile + 1) * 16] = tiles[tile]
    else:
        for tile in range(tiles.shape[0]):
            out[tile * width : (tile + 1) * width] = tiles[tile]


@jit
def _spread_tiles(tiles: Any, row: Any, row_divisors: Any, row_zeros: Any) -> None:
    """Divisors and zero points of a row, one for each column; rows come in their order, and those of a tile stay."""
    divisors, zeros, height, width, zero_points = tiles
    if row % height == 0:
        _spread(divisors[row // height], width, row_divisors)
        if zero_points or row == 0:  # they are all the same where there are none
            _spread(zeros[row // height], width, row_zeros)


@jit
def _sum_of_products(values: Any, others: Any, lanes: Any) -> Any:
    """The sum of products of float32 values, in lanes that LLVM may add side by side."""
    lanes[:] = 0
    whole = values.shape[0] // _LANES
    for block in range(whole):
        part, other = values[block * _LANES : (block + 1) * _LANES], others[block * _LANES : (block + 1) * _LANES]
        for lane in range(_LANES):
            lanes[lane] += part[lane] * other[lane]
    total = 0.0
    for lane in range(_LANES):
        total += lanes[lane]
    for column in range(whole * _LANES, values.shape[0]):
        total += float32(values[column] * others[column])
    return total


# --- scales


@jit
def extremes(weights: Any, is_bf16: Any, height: Any, width: Any, smallest: Any, largest: Any) -> Any:
    """Fill the smallest and the largest value of each tile; False if a value is NaN or infinite.

    Args:
        weights: uint16 [rows, columns] of BF16 bit patterns, or float32.
        height, width: of a tile.
        smallest, largest: float32 [tiles down, tiles across].
    """
    rows, columns = weights.shape
    row_weights = np.empty(columns, np.float32)
    patterns = row_weights.view(np.int32)
    # Bit patterns with those of negative values turned round are in the order of the values, and have no NaN.
    least, most = int32(0x7FFFFFFF), int32(-0x80000000)
    for down in range(smallest.shape[0]):
        smallest[down, :] = np.inf
        largest[down, :] = -np.inf
        for row in range(down * height, min((down + 1) * height, rows)):
            _widen(weights[row], is_bf16, row_weights)
            for tile in range(smallest.shape[1]):
                part = patterns[tile * width : (tile + 1) * width]
                low, high = int32(0x7FFFFFFF), int32(-0x80000000)
                for column in range(part.shape[0]):
                    pattern = part[column]
                    ordered = int32(pattern ^ int32(int32(pattern >> 31) & int32(0x7FFFFFFF)))
                    low, high = min(low, ordered), max(high, ordered)
                least, most = min(least, low), max(most, high)
                smallest[down, tile] = min(smallest[down, tile], _of_order(low))
                largest[down, tile] = max(largest[down, tile], _of_order(high))
    return least > int32(-0x7F800001) and most < int32(0x7F800000)


@jit
def magnitudes(weights: Any, is_bf16: Any, height: Any, width: Any, smallest: Any, largest: Any) -> Any:
    """Fill the largest magnitude of each tile, and its opposite; otherwise as `extremes`, in less time."""
    rows, columns = weights.shape
    row_weights = np.empty(columns, np.float32)
    patterns = row_weights.view(np.int32)
    most = int32(0)
    if is_bf16 and height == 1 and width == 16 and columns % 16 == 0:  # of NVFP4
        for row in range(rows):
            most = max(most, _magnitudes_of_16(weights[row], smallest[row], largest[row]))
        return most < int32(0x7F800000)
    for down in range(smallest.shape[0]):
        largest[down, :] = 0
        for row in range(down * height, min((down + 1) * height, rows)):
            _widen(weights[row], is_bf16, row_weights)
            for tile in range(largest.shape[1]):
                part = patterns[tile * width : (tile + 1) * width]
                high = int32(0)
                for column in range(part.shape[0]):
                    high = max(high, int32(part[column] & int32(0x7FFFFFFF)))
                most = max(most, high)
                largest[down, tile] = max(largest[down, tile], _float_of(uint32(high)))
        smallest[down, :] = -largest[down, :]
    return most < int32(0x7F800000)


@jit
def _magnitudes_of_16(row: Any, smallest: Any, largest: Any) -> Any:
    """One row of BF16 in tiles of sixteen; the largest of all as the bit pattern of a float32."""
    most = int32(0)
    for tile in range(largest.shape[0]):
        pattern = int32(int32(_largest_of_16(row, tile * 16)) << 16)
        most = max(most, pattern)
        largest[tile] = _float_of(uint32(pattern))
        smallest[tile] = -largest[tile]
    return most


@jit
def _of_order(ordered: Any) -> Any:
    """The float32 of a bit pattern with those of negative values turned round."""
    return _float_of(uint32(int32(ordered ^ int32(int32(ordered >> 31) & int32(0x7FFFFFFF)))))


@jit
def _e4m3(value: Any) -> Any:
    """The E4M3 nearest to a value that is not negative, 448 at most."""
    value = min(value, float32(448))
    power = _power(value, float32(2.0**-6))
    return float32(float32(np.rint(float32(value * float32(_over(power) * float32(8))))) * float32(power / float32(8)))


@jit
def _power_of_two(rule: Any, largest: Any) -> Any:
    """The power of two of the largest value, or the next from 7/4 of it on, over the largest that is a code.

    A dtype's subnormal values have no power of their own; the upper quarter of them counts as its smallest normal one.
    """
    if largest < float32(0.75) * rule.tiny:
        return rule.of_zeros
    power = _power(max(largest, rule.tiny), rule.tiny)
    above = largest >= float32(float32(1.75) * power)
    scale = float32(power / rule.largest_power)
    return max(float32(scale * float32(2)) if above else scale, float32(2.0**-127))


@jit
def _under_global(rule: Any, magnitude: Any) -> Any:
    """compressed-tensors' scale under a global one."""
    scale = _e4m3(float32(rule.shared * _rounded(rule.dtype, float32(magnitude / rule.half_range))))
    return float32(0.125) if scale == 0 else scale


@jit
def _of_modelopt(rule: Any, magnitude: Any) -> Any:
    scale = float32(magnitude / float32(rule.half_range * rule.shared))
    return _e4m3(float32(1) if scale == 0 else max(scale, float32(2.0**-9)))


@jit
def _between(rule: Any, smallest: Any, largest: Any) -> Any:
    """A scale for codes from the smallest to the largest value, and the zero point."""
    low, high = min(smallest, float32(0)), max(largest, float32(0))
    span = _rounded(rule.dtype, float32(high - low))
    scale = _rounded(rule.dtype, float32(span / float32(rule.half_range * float32(2))))
    zero = _rounded(rule.dtype, float32(rule.bottom - _rounded(rule.dtype, float32(low / scale))))
    zero = min(max(zero, rule.bottom), float32(rule.bottom + float32(rule.half_range * float32(2))))
    # Where the scale alone is zero the quotient is infinite; of a tile of zeros it is no number.
    return (rule.epsilon if scale == 0 else scale), float32(np.rint(zero if zero == zero else float32(0)))  # noqa: PLR0124


@jit
def _signed(rule: Any, smallest: Any, largest: Any) -> Any:
    """The scale that puts the value of the largest magnitude at the smallest code; of two such values the negative."""
    furthest = largest if largest > -smallest else smallest
    scale = _rounded(rule.dtype, float32(furthest / rule.bottom))
    return rule.epsilon if scale == 0 else scale


@jit
def _scales(rule: Any, smallest: Any, largest: Any, scales: Any, divisors: Any, zeros: Any) -> None:
    """Fill the scales that the tiles of a row must have, what their weights are divided by, and their zero points.

    Every operation is rounded to float32, and then to the dtype of the weights where compressed-tensors has it so.
    Source: ``calculate_qparams`` of compressed-tensors 0.19.0, ``NVFP4QTensor`` of modelopt 0.47.0.
    """
    if rule.kind == UNDER_GLOBAL:
        for tile in range(scales.shape[0]):
            scales[tile] = _under_global(rule, max(-smallest[tile], largest[tile]))
            divisors[tile] = scales[tile] / rule.shared
            zeros[tile] = 0
    elif rule.kind == MODELOPT:
        for tile in range(scales.shape[0]):
            scales[tile] = _of_modelopt(rule, max(-smallest[tile], largest[tile]))
            divisors[tile] = scales[tile] * rule.shared
            zeros[tile] = 0
    elif rule.kind == POWER_OF_TWO:
        for tile in range(scales.shape[0]):
            scales[tile] = divisors[tile] = _power_of_two(rule, max(-smallest[tile], largest[tile]))
            zeros[tile] = 0
    elif rule.kind == BETWEEN:
        for tile in range(scales.shape[0]):
            scales[tile], zeros[tile] = _between(rule, smallest[tile], largest[tile])
            divisors[tile] = scales[tile]
    elif rule.kind == SIGNED:
        for tile in range(scales.shape[0]):
            scales[tile] = divisors[tile] = _signed(rule, smallest[tile], largest[tile])
            zeros[tile] = 0
    else:
        for tile in range(scales.shape[0]):
            magnitude = max(-smallest[tile], largest[tile])
            scale = _rounded(rule.dtype, float32(magnitude / rule.half_range))
            scales[tile] = divisors[tile] = rule.epsilon if scale == 0 else scale
            zeros[tile] = 0


@jit
def wrong_scales(rule: Any, smallest: Any, largest: Any, scales: Any, zeros: Any) -> Any:
    """How many tiles have another scale, or another zero point, than their values give.

    Args:
        rule: any but `WHOLE`.
        smallest, largest: float32 [tiles down, tiles across], of the base's weights.
        scales, zeros: as they are stored, likewise.
    """
    across = scales.shape[1]
    scale, divisor, zero = np.empty(across, np.float32), np.empty(across, np.float32), np.empty(across, np.float32)
    wrong = 0
    for down in range(scales.shape[0]):
        _scales(rule, smallest[down], largest[down], scale, divisor, zero)
        wrong += _differing(scales[down], scale, zeros[down], zero)
    return wrong


@jit
def _differing(scales: Any, other_scales: Any, zeros: Any, other_zeros: Any) -> Any:
    wrong = uint32(0)
    for tile in range(scales.shape[0]):
        wrong += uint32((scales[tile] != other_scales[tile]) | (zeros[tile] != other_zeros[tile]))
    return wrong


@jit
def needed(rule: Any, smallest: Any, largest: Any, divisors: Any, zeros: Any) -> None:
    """Fill what the weights of each tile are divided by under the scale that their values give, and its zero point."""
    scales = np.empty(divisors.shape[1], np.float32)
    for down in range(divisors.shape[0]):
        _scales(rule, smallest[down], largest[down], scales, divisors[down], zeros[down])


@jit
def _are_far(
    half_range: Any,
    between: Any,
    smallest: Any,
    largest: Any,
    divisors: Any,
    narrowest: Any,
    widest: Any,
    far: Any,
) -> Any:
    """Fill which tiles of a row have a divisor that is far from what their own values need; returns how many."""
    count = uint32(0)
    for tile in range(divisors.shape[0]):
        low, high = smallest[tile], largest[tile]
        span = (max(high, float32(0)) - min(low, float32(0))) / (float32(2) * half_range)
        need = span if between else max(-low, high) / half_range
        far[tile] = not ((divisors[tile] >= need * narrowest) & (divisors[tile] <= need * widest))
        count = uint32(count + far[tile])
    return count


@jit
def far_energy(
    weights: Any,
    is_bf16: Any,
    half_range: Any,
    between: Any,
    smallest: Any,
    largest: Any,
    tiles: Any,
    narrowest: Any,
    widest: Any,
) -> Any:
    """Sum of squares of the weights in tiles whose divisor is far from what their own values need.

    Args:
        half_range: float32, half of what codes span.
        between: whether codes span from the smallest to the largest value, by zero points.
        narrowest, widest: float32, how much of what is needed a divisor may be.
        others: as in `extremes` and `examine`.
    """
    rows, columns = weights.shape
    divisors, _, height, width, _ = tiles
    row_weights, far = np.empty(columns, np.float32), np.empty(divisors.shape[1], np.uint8)
    energy = 0.0
    for down in range(divisors.shape[0]):
        found = _are_far(half_range, between, smallest[down], largest[down], divisors[down], narrowest, widest, far)
        for row in range(down * height, min((down + 1) * height, rows) if found else 0):
            _widen(weights[row], is_bf16, row_weights)
            for tile in range(far.shape[0]):
                for weight in row_weights[tile * width : (tile + 1) * width] if far[tile] else row_weights[:0]:
                    energy += float(weight) * float(weight)
    return energy


class ScaleFigures(NamedTuple):
    """What scales look like.

    Attributes:
        dead: those that are zero or negative.
        bad: those that are NaN or infinite.
        subnormal: those that are smaller than the smallest normal value of their dtype, and not zero.
    """

    dead: int
    bad: int
    subnormal: int


@jit
def look_at_scales(scales: Any, tiny: Any) -> Any:
    """What scales (float32 [tiles down, tiles across]) look like; `tiny` is their dtype's smallest normal value."""
    dead, bad, subnormal = 0, 0, 0
    for down in range(scales.shape[0]):
        of_row = _look_at_scales(scales[down], tiny)
        dead += of_row[0]
        bad += of_row[1]
        subnormal += of_row[2]
    return ScaleFigures(dead, bad, subnormal)


@jit
def _look_at_scales(scales: Any, tiny: Any) -> Any:
    dead, bad, subnormal = uint32(0), uint32(0), uint32(0)
    for tile in range(scales.shape[0]):
        scale = scales[tile]
        magnitude = abs(scale)
        finite = magnitude < float32(np.inf)
        dead = uint32(dead + (finite & (scale <= float32(0))))
        bad = uint32(bad + (not finite))
        subnormal = uint32(subnormal + ((magnitude > float32(0)) & (magnitude < tiny)))
    return dead, bad, subnormal


# --- codes


class Figures(NamedTuple):
    """What `examine` says of rows.

    Attributes:
        wrong: codes that are not those of rounding to nearest, and rows with something stored beyond the last column.
        signal, noise: sums of squares of the weights, and of their differences from what is stored.
        saturated: weights more than half a step beyond the ends, once their quotients are rounded as `dtype` says.
        zeroed: weights that are not zero, and what is stored for them is.
        nan_codes: codes that stand for NaN.
        steps: the largest distance of a code from where its weight lies, in steps of the grid there; of what lies
            beyond an end, from it.
    """

    wrong: int
    signal: float
    noise: float
    saturated: int
    zeroed: int
    nan_codes: int
    steps: float


@jit
def _divide(dtype: Any, zero_points: Any, weights: Any, divisors: Any, zeros: Any, out: Any) -> None:
    """Where weights lie on the grid if every operation is rounded to a dtype, which is `F32` if none is.

    The dtype is asked for once and not in the loop, as one without branches is many times as fast.
    """
    if dtype == BF16:
        for column in range(weights.shape[0]):
            out[column] = float32(_to_bf16(float32(weights[column] / divisors[column])) + zeros[column])
    elif dtype == F16:
        for column in range(weights.shape[0]):
            out[column] = float32(_to_f16(float32(weights[column] / divisors[column])) + zeros[column])
    else:
        for column in range(weights.shape[0]):
            out[column] = float32(float32(weights[column] / divisors[column]) + zeros[column])
    if zero_points and dtype != F32:
        for column in range(weights.shape[0]):
            out[column] = _rounded(dtype, out[column])


@jit
def _examine(places: Any, weights: Any, asked: Any, values: Any, divisors: Any, zeros: Any, differences: Any) -> Any:
    """One row; fills the differences of its weights from what is stored.

    Args:
        asked: float32 [columns], where its weights lie on the grid.
    """
    wrong, saturated, zeroed, nan_codes, steps = uint32(0), uint32(0), uint32(0), uint32(0), uint32(0)
    below = float32(places.lowest - float32(0.5) * float32(_power(places.lowest, places.smallest) / places.fraction))
    above = float32(places.highest + float32(0.5) * float32(_power(places.highest, places.smallest) / places.fraction))
    for column in range(weights.shape[0]):
        weight, value, zero, place = weights[column], values[column], zeros[column], asked[column]
        wrong = uint32(wrong + (_bits_of(_nearest(places, place)) != _bits_of(value)))
        differences[column] = weight - float32(float32(value - zero) * divisors[column])
        saturated = uint32(saturated + ((place > above) | (place < below)))
        zeroed = uint32(zeroed + ((value == zero) & (weight != float32(0))))
        nan_codes = uint32(nan_codes + (value != value))  # noqa: PLR0124 (that is what NaN is)
        steps = max(steps, _bits_of(_steps_off(places, place, value)))
    return wrong, saturated, zeroed, nan_codes, steps


@jit
def _steps_off(places: Any, place: Any, value: Any) -> Any:
    """How many steps of the grid a value is from a place, or from the end that this lies beyond."""
    place = _within(places, place)
    return float32(abs(float32(place - value)) * float32(_over(_power(place, places.smallest)) * places.fraction))


@jit
def _fewest_steps(places: Any, ones: Any, others: Any, values: Any) -> Any:
    """The largest number of steps by which a value of a row is off both of two places, as bits of a float32."""
    steps = uint32(0)
    for column in range(values.shape[0]):
        one = _steps_off(places, ones[column], values[column])
        other = _steps_off(places, others[column], values[column])
        steps = max(steps, _bits_of(min(one, other)))
    return steps


@jit
def examine(
    weights: Any,
    is_bf16: Any,
    dtype: Any,
    in_float32: Any,
    codes: Any,
    nibbles: Any,
    places: Any,
    tiles: Any,
    noise_of_row: Any,
) -> Any:
    """Hold the codes of rows against the places nearest to their weights; fills the noise of each row.

    Args:
        weights: uint16 [rows, columns] of BF16 bit patterns, or float32.
        dtype: of the weights, to which quotients may have been rounded before they were rounded to the grid. In a row
            with codes that are wrong, `steps` are the fewest, with and without.
        in_float32: whether those that are not `wrong` were rounded to the grid as they are.
        codes: uint8 [rows, bytes], as they are stored.
        places: `Places`.
        tiles: divisors and zero points, float32 [tiles down, tiles across], then the height and the width of a tile,
            and whether the grid has zero points (without, they are all the same).
        noise_of_row: float64 [rows].

    Returns:
        `Figures`.
    """
    rows, columns = weights.shape
    row_codes, values = np.empty(columns, np.uint8), np.empty(columns, np.float32)
    row_weights, row_divisors = np.empty(columns, np.float32), np.empty(columns, np.float32)
    row_zeros, asked = np.empty(columns, np.float32), np.empty(columns, np.float32)
    other = np.empty(columns, np.float32)
    differences, lanes = np.empty(columns, np.float32), np.empty(_LANES, np.float32)
    signal, noise, steps = 0.0, 0.0, uint32(0)
    wrong, saturated, zeroed, nan_codes = 0, 0, 0, 0
    zero_points = tiles[4]
    first, second = (F32, dtype) if in_float32 else (dtype, F32)
    for row in range(rows):
        _spread_tiles(tiles, row, row_divisors, row_zeros)
        wrong += not _decode(codes[row], nibbles, places, row_codes, values)
        _widen(weights[row], is_bf16, row_weights)
        _divide(first, zero_points, row_weights, row_divisors, row_zeros, asked)
        of_row = _examine(places, row_weights, asked, values, row_divisors, row_zeros, differences)
        off = of_row[4]
        if of_row[0]:
            _divide(second, zero_points, row_weights, row_divisors, row_zeros, other)
            off = _fewest_steps(places, asked, other, values)
        wrong += of_row[0]
        saturated += of_row[1]
        zeroed += of_row[2]
        nan_codes += of_row[3]
        steps = max(steps, off)
        signal += _sum_of_products(row_weights, row_weights, lanes)
        noise_of_row[row] = _sum_of_products(differences, differences, lanes)
        noise += noise_of_row[row]
    return Figures(wrong, signal, noise, saturated, zeroed, nan_codes, _float_of(steps))


@jit
def _is_between(places: Any, place: Any, spare: Any, value: Any) -> Any:
    """Whether `value` is the nearest to something no further than `spare` from `place`."""
    return (_nearest(places, float32(place - spare)) <= value) & (value <= _nearest(places, float32(place + spare)))


@jit
def _not_nearest(
    places: Any, dtype: Any, weights: Any, values: Any, divisors: Any, zeros: Any, slacks: Any, wrong: Any
) -> None:
    for column in range(weights.shape[0]):
        value, zero = values[column], zeros[column]
        quotient = float32(weights[column] / divisors[column])
        place = float32(quotient + zero)
        spare = float32(float32(abs(quotient) * slacks[0]) + float32(abs(place) * slacks[1]))
        kept = _rounded(dtype, float32(_rounded(dtype, quotient) + zero))
        # What was rounded to the weights' dtype may lie on a midpoint, which may go either way.
        tie = float32(abs(kept) * float32(2.0**-23))
        near = _is_between(places, place, spare, value) | _is_between(places, kept, tie, value)
        wrong[column] = not near


@jit
def not_nearest(
    weights: Any,
    is_bf16: Any,
    dtype: Any,
    codes: Any,
    nibbles: Any,
    places: Any,
    tiles: Any,
    slacks: Any,
    columns_hit: Any,
) -> Any:
    """How many codes are not the nearest to their weights, however ties go, and the index of the first (-1 for none).

    Sets `columns_hit` (uint8 [columns]) to 1 for each column that has such a code.

    Args:
        dtype: to which the quotient may have been rounded.
        slacks: relative uncertainty of a quotient, and of its place once a zero point is added, float32.
        others: as in `examine`.
    """
    rows, columns = weights.shape
    row_weights, values = np.empty(columns, np.float32), np.empty(columns, np.float32)
    row_divisors, row_zeros = np.empty(columns, np.float32), np.empty(columns, np.float32)
    row_codes, wrong = np.empty(columns, np.uint8), np.empty(columns, np.uint8)
    count, first = 0, -1
    for row in range(rows):
        _spread_tiles(tiles, row, row_divisors, row_zeros)
        _decode(codes[row], nibbles, places, row_codes, values)
        _widen(weights[row], is_bf16, row_weights)
        _not_nearest(places, dtype, row_weights, values, row_divisors, row_zeros, slacks, wrong)
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


@jit
def _directions(places: Any, weights: Any, values: Any, divisors: Any, zeros: Any, stored: Any) -> Any:
    """Codes above and below the nearest; fills the weights that are stored."""
    ups, downs = uint32(0), uint32(0)
    for column in range(weights.shape[0]):
        value = values[column]
        place = _within(places, float32(float32(weights[column] / divisors[column]) + zeros[column]))
        # More than half a step away; what the least part of a step decides may have gone either way.
        most = float32(float32(_power(place, places.smallest) / places.fraction) * float32(0.505))
        ups += uint32(float32(value - place) > most)
        downs += uint32(float32(place - value) > most)
        stored[column] = float32(float32(value - zeros[column]) * divisors[column])
    return ups, downs


@jit
def directions(
    weights: Any,
    is_bf16: Any,
    codes: Any,
    nibbles: Any,
    places: Any,
    tiles: Any,
    signal: Any,
    dot: Any,
    zero: Any,
    live: Any,
) -> Any:
    """Count the codes above the nearest, and those below; find the columns that are stored as zero.

    Args:
        signal: float64 [rows], to be filled with the sums of squares of the weights.
        dot: float64 [rows], to be filled with the sums of their products with what is stored.
        zero: uint8 [columns]; what is not zero in one of these rows is set to 0.
        live: uint32 [columns]; grows by the rows in which the nearest place is not zero.
        others: as in `examine`.
    """
    rows, columns = weights.shape
    row_weights, values = np.empty(columns, np.float32), np.empty(columns, np.float32)
    row_divisors, row_zeros = np.empty(columns, np.float32), np.empty(columns, np.float32)
    row_codes, stored, lanes = np.empty(columns, np.uint8), np.empty(columns, np.float32), np.empty(_LANES, np.float32)
    ups, downs = 0, 0
    for row in range(rows):
        _spread_tiles(tiles, row, row_divisors, row_zeros)
        _decode(codes[row], nibbles, places, row_codes, values)
        _widen(weights[row], is_bf16, row_weights)
        up, down = _directions(places, row_weights, values, row_divisors, row_zeros, stored)
        ups += up
        downs += down
        signal[row] = _sum_of_products(row_weights, row_weights, lanes)
        dot[row] = _sum_of_products(row_weights, stored, lanes)
        for column in range(columns):
            zero[column] &= values[column] == row_zeros[column]
            place = float32(float32(row_weights[column] / row_divisors[column]) + row_zeros[column])
            live[column] += _nearest(places, place) != row_zeros[column]
    return ups, downs


@jit
def _rank(places: Any, place: Any) -> Any:
    """How many places of its grid lie between zero and `place`, with the sign of the side on which it lies."""
    power = _power(place, places.smallest)
    binades = int32(int32(_bits_of(power) >> 23) - int32(_bits_of(places.smallest) >> 23))
    below = float32(float32(binades) * places.fraction)
    rank = float32(below + float32(abs(place) / float32(power / places.fraction)))
    return int32(-rank if place < 0 else rank)


@jit
def moves(weights: Any, is_bf16: Any, codes: Any, nibbles: Any, places: Any, tiles: Any, counts: Any) -> Any:
    """Count by how many places codes are from the nearest, apart by how far that is from the weight.

    A move towards the weight, and beyond it, counts as positive. Returns how many stored bits stand for nothing: the
    signs of zeros, which integers have none of, and 32 for each row with something beyond its last column.

    Args:
        counts: int64 [parts of half a step, 2 n + 1], grows: the middle column counts what has not moved, the first and
            the last what moved by n places or more. A NaN, of code or scale, is counted in the last.
        others: as in `examine`.
    """
    rows, columns = weights.shape
    parts, most = counts.shape[0], counts.shape[1] // 2
    row_weights, values = np.empty(columns, np.float32), np.empty(columns, np.float32)
    row_divisors, row_zeros = np.empty(columns, np.float32), np.empty(columns, np.float32)
    row_codes, for_nothing = np.empty(columns, np.uint8), 0
    for row in range(rows):
        _spread_tiles(tiles, row, row_divisors, row_zeros)
        for_nothing += 0 if _decode(codes[row], nibbles, places, row_codes, values) else 32
        _widen(weights[row], is_bf16, row_weights)
        for column in range(columns):
            for_nothing += places.kind != INTEGER and values[column] == 0
            place = _within(places, float32(float32(row_weights[column] / row_divisors[column]) + row_zeros[column]))
            nearest = _nearest(places, place)
            step = float32(_power(place, places.smallest) / places.fraction)
            part = float32(float32(place - nearest) / step)
            if not np.isfinite(part) or not np.isfinite(values[column]):
                counts[0, 2 * most] += 1
                continue
            move = _rank(places, values[column]) - _rank(places, nearest)
            move = min(max(-move if part < 0 else move, -most), most)
            counts[min(int(abs(part) * 2 * parts), parts - 1), most + move] += 1
    return for_nothing


@jit
def squared_steps(weights: Any, is_bf16: Any, places: Any, tiles: Any, sum_of_row: Any) -> None:
    """Fill the sum of squares, for each row, of the steps of the grid where its weights lie, times their divisors.

    Args:
        sum_of_row: float64 [rows].
        others: as in `examine`.
    """
    rows, columns = weights.shape
    row_weights, steps, lanes = (
        np.empty(columns, np.float32),
        np.empty(columns, np.float32),
        np.empty(_LANES, np.float32),
    )
    row_divisors, row_zeros = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for row in range(rows):
        _spread_tiles(tiles, row, row_divisors, row_zeros)
        _widen(weights[row], is_bf16, row_weights)
        for column in range(columns):
            place = _within(places, float32(float32(row_weights[column] / row_divisors[column]) + row_zeros[column]))
            steps[column] = row_divisors[column] * float32(_power(place, places.smallest) / places.fraction)
        sum_of_row[row] = _sum_of_products(steps, steps, lanes)


@jit
def nearest_values(weights: Any, is_bf16: Any, dtype: Any, places: Any, tiles: Any, out: Any) -> None:
    """Fill the places (float32 [rows, columns], less zero points) that are nearest to weights; see `examine`."""
    rows, columns = weights.shape
    row_weights = np.empty(columns, np.float32)
    row_divisors, row_zeros = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for row in range(rows):
        _spread_tiles(tiles, row, row_divisors, row_zeros)
        _widen(weights[row], is_bf16, row_weights)
        for column in range(columns):
            zero = row_zeros[column]
            quotient = _rounded(dtype, float32(row_weights[column] / row_divisors[column]))
            out[row, column] = float32(_nearest(places, _rounded(dtype, float32(quotient + zero))) - zero)
