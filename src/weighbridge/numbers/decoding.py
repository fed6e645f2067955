"""Codes that a publisher stored, as the BF16 weight that they stand for: the bits that upstream's converters give.

A code less its zero point is multiplied by the scale of its tile and rounded. As in `weighbridge.numbers.compiled`,
each loop over elements is one that LLVM turns into vector instructions, and numba's cache notices changes of this file
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import float32, uint8, uint16, uint32

from weighbridge.formats.codecs import AWQ_ORDER, CODES, ORDER, SCALES, SHAPE, SHARED, ZEROS, Codec
from weighbridge.machine.compiling import jit
from weighbridge.numbers.casts import bits_of, float_of
from weighbridge.numbers.encoding import SOURCES
from weighbridge.numbers.tiles import spread

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Order = npt.NDArray[np.int32]


class Raw(NamedTuple):
    """Rows of a stored matrix, as bytes [rows, bytes of a row], and safetensors' name of what they are."""

    dtype: str
    array: Bytes


class UnusableCodes(ValueError):
    """Codes that stand for no finite weight.

    Attributes:
        role: which of the module's tensors is to blame.
    """

    def __init__(self, role: str, why: str) -> None:
        self.role = role
        super().__init__(why)


class _Rows(NamedTuple):
    """What rows of codes are multiplied with.

    Attributes:
        scales: those that are stored, float32 [tiles down, across].
        divided: the same once the scale of the whole is applied to them.
        zeros: what is taken from integer codes, float32 of the same shape; [1, 1] where it is the same for all.
        order: the group of each column, where groups of columns do not lie side by side.
        rows: counted from the first row of their first tile.
        columns: of the weight.
    """

    scales: Floats
    divided: Floats
    zeros: Floats
    order: Order | None
    rows: range
    columns: int

    def usable(self, codec: Codec) -> npt.NDArray[np.bool_]:
        """Which scales of tiles have a meaning whatever their codes are."""
        sign = self.scales != 0 if codec.element == "INTEGER" else self.scales > 0
        return np.isfinite(self.scales) & sign


def decoded(
    codec: Codec, stored: Mapping[str, Raw], first: int, count: int, shape: tuple[int, int]
) -> npt.NDArray[np.uint16]:
    """Rows of a weight as bit patterns of BF16.

    Args:
        stored: what goes along with these rows, by what each is for; they begin at a whole word, in any row of a tile.
        first: the first of them.
        shape: of the whole weight.

    Raises:
        UnusableCodes: a scale that is zero, infinite or NaN above codes that are not zero, a code or product that is no
            number, or what contradicts the declaration.
    """
    rows = _rows(codec, stored, first, count, shape)
    weight, is_number = _multiplied(codec, stored[CODES].array, rows, rows.divided)
    if not is_number:
        raise UnusableCodes(CODES, "holds codes that stand for NaN")
    usable = rows.usable(codec)
    if not usable.all():
        plain, _ = _multiplied(codec, stored[CODES].array, rows, np.ones_like(rows.divided))
        _check_scales(codec, rows, ~usable, plain)
    if _largest_of(weight.reshape(-1)) >= _INFINITY:
        raise UnusableCodes(SCALES, "makes weights of its codes that no BF16 holds")
    return weight


def largest(codec: Codec, stored: Mapping[str, Raw], first: int, count: int, shape: tuple[int, int]) -> float:
    """The largest magnitude among the rows that `decoded` gives for the same arguments, exactly.

    Products are rounded in the order of their codes, so that of a tile only the outermost codes are multiplied.

    Raises:
        UnusableCodes: as `decoded`.
    """
    rows = _rows(codec, stored, first, count, shape)
    across = rows.divided.shape[1]
    found = _INFINITY
    if rows.order is None and across * _WIDE <= rows.columns and rows.usable(codec).all():
        found = int(_largest_of_rows(_codes(codec, stored[CODES].array, rows), rows.divided))
    if found >= _INFINITY:  # or what has no short cut
        found = int(_largest_of(decoded(codec, stored, first, count, shape).reshape(-1)))
    return float((np.uint32(found) << np.uint32(16)).view(np.float32))


def _rows(codec: Codec, stored: Mapping[str, Raw], first: int, count: int, shape: tuple[int, int]) -> _Rows:
    """See `decoded`."""
    if SHAPE in stored:
        _check_shape(stored[SHAPE], shape)
    columns = shape[1]
    scales = _floats(stored[SCALES])
    before = first % codec.height if codec.height else 0
    rows = range(before, before + count)
    tiles = -(-rows.stop // (codec.height or rows.stop)), -(-columns // (codec.width or columns))
    assert scales.shape == tiles, (codec, scales.shape, tiles)
    # What is stored with a sign of its own becomes an offset by flipping it.
    zeros = np.full((1, 1), codec.offset if codec.offset is not None else 128, np.float32)
    if ZEROS in stored:
        zeros = np.ascontiguousarray(_zero_points(codec, stored[ZEROS], tiles) + zeros)
    order = _order(codec, stored[ORDER], tiles[1]) if ORDER in stored else None
    return _Rows(scales, _under_shared(codec, scales, stored), zeros, order, rows, columns)


class _Codes(NamedTuple):
    """Codes as the loops take them.

    Attributes:
        codes: uint8 [rows, bytes].
        words: uint32 [rows / 8, columns], where eight rows share a word, in the place of `codes`.
        flipped: uint32, bits of an integer's code to be turned over before its zero point is taken from it.
        zeros: see `_Rows`.
        height, width: of a tile.
        before: rows of the first tile that lie before the first.
        rows, columns: of what is decoded.
    """

    codes: Bytes
    words: Words
    element: int
    packing: int
    flipped: np.uint32
    zeros: Floats
    height: int
    width: int
    in_half: bool
    before: int
    rows: int
    columns: int


def _codes(codec: Codec, stored: Bytes, rows: _Rows) -> _Codes:
    stored = np.ascontiguousarray(stored)
    in_words = codec.packing == "awq"
    return _Codes(
        codes=_NO_CODES if in_words else stored,
        words=stored.view(np.uint32) if in_words else _NO_WORDS,
        element=_ELEMENTS[codec.element],
        packing=_PACKINGS[codec.packing],
        flipped=np.uint32(0x80 if codec.element == "INTEGER" and codec.offset is None else 0),
        zeros=rows.zeros,
        height=codec.height or rows.rows.stop,
        width=codec.width or rows.columns,
        in_half=codec.in_half,
        before=rows.rows.start,
        rows=len(rows.rows),
        columns=rows.columns,
    )


def _multiplied(codec: Codec, codes: Bytes, rows: _Rows, scales: Floats) -> tuple[npt.NDArray[np.uint16], bool]:
    """The weight, and whether no code stands for NaN."""
    weight = np.empty((len(rows.rows), rows.columns), np.uint16)
    largest_code = _decode(
        _codes(codec, codes, rows),
        np.ascontiguousarray(scales),
        np.zeros(1, np.int32) if rows.order is None else rows.order,
        rows.order is not None,
        weight,
    )
    return weight, largest_code != _E4M3_NAN


def _check_shape(raw: Raw, shape: tuple[int, int]) -> None:
    """Refuse codes that are said to be another weight's: of other bits, or with columns that only fill a word.

    Raises:
        UnusableCodes: they are.
    """
    said = np.ascontiguousarray(raw.array).view(np.dtype("<i8" if raw.dtype == "I64" else "<i4")).reshape(-1).tolist()
    if said != [*shape]:
        raise UnusableCodes(SHAPE, f"says {said}, and the codes are those of {[*shape]} as they are declared")


def _order(codec: Codec, raw: Raw, groups: int) -> Order:
    """The group of each column, where groups of columns do not lie side by side.

    Raises:
        UnusableCodes: a column is said to be in a group that is not there, or in another than is declared.
    """
    order = np.ascontiguousarray(raw.array).view(np.int32).reshape(-1)
    if order.min() < 0 or order.max() >= groups:
        raise UnusableCodes(ORDER, f"names groups beyond the {groups} that have scales")
    if codec.in_order and (order != np.arange(len(order)) // (codec.width or len(order))).any():
        why = "groups columns that do not lie side by side, and without desc_act servers do not read it"
        raise UnusableCodes(ORDER, why)
    return order


def _under_shared(codec: Codec, scales: Floats, stored: Mapping[str, Raw]) -> Floats:
    """The scales of tiles once that of the whole is applied to them."""
    if not codec.shared:
        return np.ascontiguousarray(scales)
    shared = _floats(stored[SHARED])[0, 0]
    if not (np.isfinite(shared) and shared > 0):
        raise UnusableCodes(SHARED, f"the scale is {shared}, where only finite and positive values have a meaning")
    with np.errstate(all="ignore"):
        divisor = np.float32(1) / shared if codec.shared == "reciprocal" else shared
        return np.ascontiguousarray(scales / divisor)


def _check_scales(codec: Codec, rows: _Rows, unusable: npt.NDArray[np.bool_], plain: npt.NDArray[np.uint16]) -> None:
    """Refuse scales that mean nothing. One that is zero means zero: it may stand over codes of zero.

    Args:
        plain: the codes as numbers, under scales of one.

    Raises:
        UnusableCodes: with the first of them.
    """
    scales = rows.scales
    wrong = unusable & ((scales != 0) | _has_codes(codec, plain, rows.order, rows.rows.start, scales.shape))
    if wrong.any():
        why = f"the scale is {scales[wrong][0]}, where only finite and positive values have a meaning"
        raise UnusableCodes(SCALES, why)


def _has_codes(
    codec: Codec, plain: npt.NDArray[np.uint16], order: Order | None, before: int, tiles: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """Whether a tile holds a code that is not zero, for all tiles at once: a stranger may send millions of zeros."""
    height, width = codec.height or before + len(plain), codec.width or plain.shape[1]
    tile_of = np.arange(plain.shape[1]) // width if order is None else order
    down = (before + np.arange(len(plain))) // height
    rows, columns = np.nonzero(plain & 0x7FFF)
    found = np.zeros(tiles, np.bool_)
    found[down[rows], tile_of[columns]] = True
    return found


def _zero_points(codec: Codec, raw: Raw, tiles: tuple[int, int]) -> Floats:
    """Zero points as numbers to be taken from codes less their offset.

    Raises:
        UnusableCodes: they are declared to be the middle of the codes, and are not.
    """
    if raw.dtype != "I32":
        return np.ascontiguousarray(raw.array.view(np.int8).astype(np.float32))
    assert codec.offset is not None
    places = AWQ_ORDER if codec.packing == "awq" else range(32 // codec.bits)
    shifts = np.array([codec.bits * place for place in places], np.uint32)[None, :, None]
    mask = np.uint32((1 << codec.bits) - 1)
    words = np.ascontiguousarray(raw.array).view(np.uint32)
    down = (((words[:, None, :] >> shifts) + np.uint32(codec.zero_bias)) & mask).reshape(-1, words.shape[1])
    if codec.symmetric and (down[: tiles[0]] != 1 << (codec.bits - 1)).any():
        why = "holds zero points beside the middle of the codes, and of symmetric ones servers do not read them"
        raise UnusableCodes(ZEROS, why)
    return np.ascontiguousarray(down[: tiles[0]].astype(np.float32) - np.float32(codec.offset))


def _floats(raw: Raw) -> Floats:
    """Stored scales as float32; the exponents of MX formats are powers of two, 255 is NaN."""
    array = np.ascontiguousarray(raw.array)
    match raw.dtype:
        case "BF16":
            return (array.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        case "F8_E4M3":
            return _E4M3_VALUES[array]
        case "U8" | "F8_E8M0":
            return _E8M0_VALUES[array]
        case _:
            return array.view(SOURCES[raw.dtype].array).astype(np.float32)


def _e4m3_values() -> Floats:
    codes = np.arange(256, dtype=np.uint32)
    values = ((codes & 0x7F) << 20).view(np.float32) * np.float32(2.0**120)
    values[(codes & 0x7F) == 0x7F] = np.nan
    return np.where(codes & 0x80, -values, values).astype(np.float32)


_E4M3_VALUES = _e4m3_values()
_E8M0_VALUES = np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.nan).astype(np.float32)
_E4M3, _E2M1, _INTEGER = 0, 1, 2
_ELEMENTS = {"E4M3": _E4M3, "E2M1": _E2M1, "INTEGER": _INTEGER}
_BYTES, _NIBBLES, _WORDS = 0, 1, 2
_NOT_HALF, _HALF, _NORMAL_HALF = 0, 1, 2
_PACKINGS = {"bytes": _BYTES, "nibbles": _NIBBLES, "awq": _WORDS}
_ROWS_OF_PLACES = np.argsort(AWQ_ORDER)
"""Which of eight rows the code at each place of a word of AWQ belongs to."""
_WIDE = 64
"""Columns of a tile from which on looking for its outermost codes takes less than multiplying all of them."""
_NO_CODES, _NO_WORDS = np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint32)
_INFINITY, _E4M3_NAN = 0x7F80, 0x7F


@jit
def _rounded_to_half(value: Any) -> Any:
    """A float32 rounded to F16, ties to even; what is beyond its largest value becomes infinite."""
    bits = bits_of(value)
    magnitude = uint32(bits & 0x7FFFFFFF)
    normal = uint32((magnitude + 0xFFF + ((magnitude >> 13) & 1)) & 0xFFFFE000)
    normal = uint32(0x7F800000) if normal >= 0x47800000 else normal
    # Next to one half float32 is as coarse as the subnormals of F16 are.
    subnormal = bits_of(float32(float32(float_of(magnitude) + float32(0.5)) - float32(0.5)))
    return float_of(uint32((subnormal if magnitude < 0x38800000 else normal) | (bits & 0x80000000)))


@jit
def _rounded_to_normal_half(value: Any) -> Any:
    """The same of what is zero, or neither subnormal nor beyond the largest as F16: in half the time."""
    bits = bits_of(value)
    return float_of(uint32((bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000))


@jit
def _are_normal(scales: Any) -> Any:
    """Whether every product of a code less its zero point and one of these is zero or a normal F16."""
    normal = True
    for tile in range(scales.shape[0]):
        magnitude = abs(scales[tile])
        normal &= (magnitude >= float32(2.0**-14)) & (magnitude <= float32(2.0**7))
    return normal


@jit
def _to_bf16(value: Any) -> Any:
    bits = bits_of(value)
    return uint16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


@jit
def _unpack(packed: Any, pairs: Any) -> None:
    """Two codes a byte become one a byte, the lower half first; `pairs` are two bytes each."""
    for position in range(packed.shape[0]):
        byte = uint16(packed[position])
        pairs[position] = uint16((byte & 0xF) | ((byte >> 4) << 8))


@jit
def _unpack_words(words: Any, pairs: Any, eight: Any) -> None:
    """The four-bit codes of the eight rows that share these words."""
    for place in range(0, 8, 2):
        for column in range(words.shape[0]):
            pairs[column] = uint8(words[column] >> uint32(4 * place))
        low, high = eight[_ROWS_OF_PLACES[place]], eight[_ROWS_OF_PLACES[place + 1]]
        for column in range(words.shape[0]):
            low[column] = pairs[column] & 0xF
            high[column] = pairs[column] >> 4


@jit
def _e4m3(code: Any) -> Any:
    """What a code of E4M3 stands for; of one that stands for NaN 480, the number after the largest."""
    value = float32(float_of(uint32((code & 0x7F) << 20)) * float32(2.0**120))
    return float_of(uint32(bits_of(value) | ((code & 0x80) << 24)))


@jit
def _place(code: Any, flipped: Any, zero: Any) -> Any:
    """The number that an integer's code stands for, less its zero point."""
    return float32(float32(uint32(code) ^ flipped) - zero)


@jit
def _e4m3_row(codes: Any, scales: Any, weight: Any) -> Any:
    """Multiplied as float32; gives the largest magnitude of a code, which of a NaN is 0x7F."""
    largest = uint8(0)
    for column in range(codes.shape[0]):
        code = uint32(codes[column])
        largest = max(largest, uint8(code & 0x7F))
        weight[column] = _to_bf16(float32(_e4m3(code) * scales[column]))
    return largest


@jit
def _e2m1_row(codes: Any, scales: Any, weight: Any) -> None:
    for column in range(codes.shape[0]):
        code = uint32(codes[column])
        value = float32(float_of(uint32((code & 7) << 22)) * float32(2.0**126))
        signed = float_of(uint32(bits_of(value) | ((code & 8) << 28)))
        weight[column] = _to_bf16(float32(signed * scales[column]))


@jit
def _integer_row(codes: Any, flipped: Any, zeros: Any, scales: Any, weight: Any) -> None:
    for column in range(codes.shape[0]):
        weight[column] = _to_bf16(float32(_place(codes[column], flipped, zeros[column]) * scales[column]))


@jit
def _integer_row_in_half(codes: Any, flipped: Any, zeros: Any, scales: Any, weight: Any) -> None:
    for column in range(codes.shape[0]):
        weight[column] = _to_bf16(
            _rounded_to_half(float32(_place(codes[column], flipped, zeros[column]) * scales[column]))
        )


@jit
def _integer_row_in_normal_half(codes: Any, flipped: Any, zeros: Any, scales: Any, weight: Any) -> None:
    for column in range(codes.shape[0]):
        weight[column] = _to_bf16(
            _rounded_to_normal_half(float32(_place(codes[column], flipped, zeros[column]) * scales[column]))
        )


@jit
def _integers(rounded: Any, codes: Any, flipped: Any, zeros: Any, scales: Any, weight: Any) -> None:
    if rounded == _NORMAL_HALF:
        _integer_row_in_normal_half(codes, flipped, zeros, scales, weight)
    elif rounded == _HALF:
        _integer_row_in_half(codes, flipped, zeros, scales, weight)
    else:
        _integer_row(codes, flipped, zeros, scales, weight)


@jit
def _e4m3_row_in_half(codes: Any, scales: Any, weight: Any) -> Any:
    largest = uint8(0)
    for column in range(codes.shape[0]):
        code = uint32(codes[column])
        largest = max(largest, uint8(code & 0x7F))
        weight[column] = _to_bf16(_rounded_to_half(float32(_e4m3(code) * scales[column])))
    return largest


@jit
def _spread_by(order: Any, values: Any, spread: Any) -> None:
    """The value of each column's group, where columns say which is theirs."""
    for column in range(order.shape[0]):
        spread[column] = values[order[column]]


@jit
def _largest_of(weight: Any) -> Any:
    largest = uint16(0)
    for column in range(weight.shape[0]):
        largest = max(largest, uint16(weight[column] & 0x7FFF))
    return largest


@jit
def _codes_of_row(coded: Any, row: Any, pairs: Any, eight: Any) -> Any:
    """The codes of a row, one a byte; rows that share words are asked for one after the other."""
    if coded.packing == _NIBBLES:
        _unpack(coded.codes[row], pairs)
        return pairs.view(np.uint8)[: coded.columns]
    if coded.packing == _WORDS:
        if row % 8 == 0:
            _unpack_words(coded.words[row // 8], pairs.view(np.uint8), eight)
        return eight[row % 8]
    return coded.codes[row, : coded.columns]


@jit
def _row(element: Any, rounded: Any, codes: Any, flipped: Any, zeros: Any, scales: Any, weight: Any) -> Any:
    """Multiply codes, each with a scale of its own; of E4M3 it gives the largest magnitude of a code."""
    if element == _E4M3:
        if rounded != _NOT_HALF:
            return _e4m3_row_in_half(codes, scales, weight)
        return _e4m3_row(codes, scales, weight)
    if element == _E2M1:
        _e2m1_row(codes, scales, weight)
    else:
        _integers(rounded, codes, flipped, zeros, scales, weight)
    return uint8(0)


@jit
def _rounding(in_half: Any, scales: Any) -> Any:
    return _NOT_HALF if not in_half else _NORMAL_HALF if _are_normal(scales) else _HALF


@jit
def _decode(coded: Any, scales: Any, order: Any, has_order: Any, weight: Any) -> Any:
    """Fill `weight` (uint16 [rows, columns]); of E4M3 it gives the largest magnitude of a code."""
    columns, zeros = coded.columns, coded.zeros
    scale_of_column, scratch = np.empty(columns, np.float32), np.empty(columns, np.float32)
    zero_of_column = np.full(columns, zeros[0, 0], np.float32)
    pairs, eight = np.empty((columns + 1) // 2, np.uint16), np.empty((8, columns), np.uint8)
    largest_code = uint8(0)
    rounded = _NOT_HALF
    for row in range(coded.rows):
        tile = (coded.before + row) // coded.height
        if row == 0 or (coded.before + row) % coded.height == 0:
            rounded = _rounding(coded.in_half, scales[tile])
            if has_order:
                _spread_by(order, scales[tile], scale_of_column)
            else:
                spread(scales[tile], coded.width, scratch, scale_of_column)
            if zeros.size > 1 and has_order:
                _spread_by(order, zeros[tile], zero_of_column)
            elif zeros.size > 1:
                spread(zeros[tile], coded.width, scratch, zero_of_column)
        own = _codes_of_row(coded, row, pairs, eight)
        code = _row(coded.element, rounded, own, coded.flipped, zero_of_column, scale_of_column, weight[row])
        largest_code = max(largest_code, code)
    return largest_code


@jit
def _outermost(codes: Any, width: Any, kept: Any, flipped: Any, lowest: Any, highest: Any) -> None:
    """Of each tile the codes that stand for its smallest and its largest number; of `kept` bits alone."""
    for tile in range(lowest.shape[0]):
        part = codes[tile * width : (tile + 1) * width]
        low, high = uint8(255), uint8(0)
        for column in range(part.shape[0]):
            code = uint8((part[column] & kept) ^ flipped)
            low, high = min(low, code), max(high, code)
        lowest[tile], highest[tile] = uint8(low ^ flipped), uint8(high ^ flipped)


@jit
def _largest_of_rows(coded: Any, scales: Any) -> Any:
    """The largest magnitude of what `_decode` makes of the same, or more where a code stands for no number."""
    across, columns, zeros = scales.shape[1], coded.columns, coded.zeros
    # Of floats the sign plays no part.
    kept = uint8(0xFF) if coded.element == _INTEGER else uint8(0x7F) if coded.element == _E4M3 else uint8(0x7)
    lowest, highest = np.empty(across, np.uint8), np.empty(across, np.uint8)
    zero_of_tile = np.full(across, zeros[0, 0], np.float32)
    products = np.empty(across, np.uint16)
    pairs, eight = np.empty((columns + 1) // 2, np.uint16), np.empty((8, columns), np.uint8)
    found = uint16(0)
    rounded = _NOT_HALF
    for row in range(coded.rows):
        tile = (coded.before + row) // coded.height
        if row == 0 or (coded.before + row) % coded.height == 0:
            rounded = _rounding(coded.in_half, scales[tile])
        if zeros.size > 1:
            zero_of_tile[:] = zeros[tile]
        own = _codes_of_row(coded, row, pairs, eight)
        _outermost(own, coded.width, kept, uint8(coded.flipped), lowest, highest)
        for outermost in (lowest, highest):
            code = _row(coded.element, rounded, outermost, coded.flipped, zero_of_tile, scales[tile], products)
            found = max(found, _largest_of(products))
            if code == _E4M3_NAN:
                return uint16(_INFINITY)
    return found
