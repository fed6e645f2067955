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
from weighbridge.numbers.compiling import bits_of, float_of, jit
from weighbridge.numbers.encoding import SOURCES

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
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
    if SHAPE in stored:
        _check_shape(stored[SHAPE], shape)
    columns = shape[1]
    scales = _floats(stored[SCALES])
    before = first % codec.height if codec.height else 0
    rows = range(before, before + count)
    tiles = -(-rows.stop // (codec.height or rows.stop)), -(-columns // (codec.width or columns))
    assert scales.shape == tiles, (codec, scales.shape, tiles)
    divided = _under_shared(codec, scales, stored)
    zeros = _zero_points(codec, stored[ZEROS], tiles) if ZEROS in stored else None
    codes = stored[CODES].array
    order = _order(codec, stored[ORDER], tiles[1]) if ORDER in stored else None
    weight, is_number = _multiplied(codec, codes, divided, zeros, order, rows, columns)
    if not is_number:
        raise UnusableCodes(CODES, "holds codes that stand for NaN")
    unusable = ~(np.isfinite(scales) & (scales != 0 if codec.element == "INTEGER" else scales > 0))
    if unusable.any():
        plain, _ = _multiplied(codec, codes, np.ones_like(divided), zeros, order, rows, columns)
        _check_scales(codec, scales, unusable, order, plain, before)
    if _largest_of(weight.reshape(-1)) >= _INFINITY:
        raise UnusableCodes(SCALES, "makes weights of its codes that no BF16 holds")
    return weight


def _multiplied(
    codec: Codec, codes: Bytes, scales: Floats, zeros: Floats | None, order: Order | None, rows: range, columns: int
) -> tuple[npt.NDArray[np.uint16], bool]:
    """The weight, and whether no code stands for NaN.

    Args:
        rows: counted from the first row of their first tile.
    """
    weight = np.empty((len(rows), columns), np.uint16)
    codes = np.ascontiguousarray(codes)
    largest_code = _decode(
        _NO_CODES if codec.packing == "awq" else codes,
        codes.view(np.uint32) if codec.packing == "awq" else _NO_WORDS,
        _ELEMENTS[codec.element],
        _PACKINGS[codec.packing],
        # What is stored with a sign of its own becomes an offset by flipping it.
        np.uint32(0x80 if codec.element == "INTEGER" and codec.offset is None else 0),
        np.float32(codec.offset if codec.offset is not None else 128),
        np.ascontiguousarray(scales),
        np.zeros((1, 1), np.float32) if zeros is None else zeros,
        zeros is not None,
        np.zeros(1, np.int32) if order is None else order,
        order is not None,
        codec.height or rows.stop,
        codec.width or columns,
        codec.in_half,
        rows.start,
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


def _check_scales(
    codec: Codec,
    scales: Floats,
    unusable: npt.NDArray[np.bool_],
    order: Order | None,
    plain: npt.NDArray[np.uint16],
    before: int,
) -> None:
    """Refuse scales that mean nothing. One that is zero means zero: it may stand over codes of zero.

    Args:
        plain: the codes as numbers, under scales of one.
        before: rows of the first tile that lie before them.

    Raises:
        UnusableCodes: with the first of them.
    """
    wrong = unusable & ((scales != 0) | _has_codes(codec, plain, order, before, scales.shape))
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
_SHIFTS = np.array([4 * place for place in AWQ_ORDER], np.uint32)
"""Where in a word of AWQ the code of each of its eight rows begins."""
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
def _unpack_place(words: Any, shift: Any, codes: Any) -> None:
    """The four-bit code at one place of each word."""
    for column in range(words.shape[0]):
        codes[column] = uint8((words[column] >> shift) & 0xF)


@jit
def _e4m3(code: Any) -> Any:
    """What a code of E4M3 stands for; of one that stands for NaN 480, the number after the largest."""
    value = float32(float_of(uint32((code & 0x7F) << 20)) * float32(2.0**120))
    return float_of(uint32(bits_of(value) | ((code & 0x80) << 24)))


@jit
def _place(code: Any, flipped: Any, offset: Any, zero: Any) -> Any:
    """The number that an integer's code stands for, less its zero point."""
    return float32(float32(float32(uint32(code) ^ flipped) - offset) - zero)


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
def _integer_row(codes: Any, flipped: Any, offset: Any, zeros: Any, scales: Any, weight: Any) -> None:
    for column in range(codes.shape[0]):
        weight[column] = _to_bf16(float32(_place(codes[column], flipped, offset, zeros[column]) * scales[column]))


@jit
def _integer_row_in_half(codes: Any, flipped: Any, offset: Any, zeros: Any, scales: Any, weight: Any) -> None:
    for column in range(codes.shape[0]):
        weight[column] = _to_bf16(
            _rounded_to_half(float32(_place(codes[column], flipped, offset, zeros[column]) * scales[column]))
        )


@jit
def _integer_row_in_normal_half(codes: Any, flipped: Any, offset: Any, zeros: Any, scales: Any, weight: Any) -> None:
    for column in range(codes.shape[0]):
        weight[column] = _to_bf16(
            _rounded_to_normal_half(float32(_place(codes[column], flipped, offset, zeros[column]) * scales[column]))
        )


@jit
def _integers(rounded: Any, codes: Any, flipped: Any, offset: Any, zeros: Any, scales: Any, weight: Any) -> None:
    if rounded == _NORMAL_HALF:
        _integer_row_in_normal_half(codes, flipped, offset, zeros, scales, weight)
    elif rounded == _HALF:
        _integer_row_in_half(codes, flipped, offset, zeros, scales, weight)
    else:
        _integer_row(codes, flipped, offset, zeros, scales, weight)


@jit
def _e4m3_row_in_half(codes: Any, scales: Any, weight: Any) -> Any:
    largest = uint8(0)
    for column in range(codes.shape[0]):
        code = uint32(codes[column])
        largest = max(largest, uint8(code & 0x7F))
        weight[column] = _to_bf16(_rounded_to_half(float32(_e4m3(code) * scales[column])))
    return largest


@jit
def _spread(values: Any, width: Any, order: Any, has_order: Any, spread: Any) -> None:
    """The value of each column's tile: tiles lie side by side, or columns say which is theirs."""
    if has_order:
        for column in range(order.shape[0]):
            spread[column] = values[order[column]]
    else:
        for tile in range(values.shape[0]):
            spread[tile * width : (tile + 1) * width] = values[tile]


@jit
def _largest_of(weight: Any) -> Any:
    largest = uint16(0)
    for column in range(weight.shape[0]):
        largest = max(largest, uint16(weight[column] & 0x7FFF))
    return largest


@jit
def _decode(
    codes: Any,
    words: Any,
    element: Any,
    packing: Any,
    flipped: Any,
    offset: Any,
    scales: Any,
    zeros: Any,
    has_zeros: Any,
    order: Any,
    has_order: Any,
    height: Any,
    width: Any,
    in_half: Any,
    before: Any,
    weight: Any,
) -> Any:
    """Fill `weight` (uint16 [rows, columns]); of E4M3 it gives the largest magnitude of a code.

    Before its first row lie `before` others of the same tile.
    """
    rows, columns = weight.shape
    scale_of_column = np.empty(columns, np.float32)
    zero_of_column = np.zeros(columns, np.float32)
    pairs = np.empty(codes.shape[1], np.uint16)
    own = np.empty(columns, np.uint8)
    largest_code = uint8(0)
    normal = False
    for row in range(rows):
        tile = (before + row) // height
        if row == 0 or (before + row) % height == 0:
            normal = _are_normal(scales[tile])
            _spread(scales[tile], width, order, has_order, scale_of_column)
            if has_zeros:
                _spread(zeros[tile], width, order, has_order, zero_of_column)
        if packing == _NIBBLES:
            _unpack(codes[row], pairs)
            own = pairs.view(np.uint8)[:columns]
        elif packing == _WORDS:
            _unpack_place(words[row // 8], _SHIFTS[row % 8], own)
        else:
            own = codes[row, :columns]
        if element == _E4M3:
            if in_half:
                largest_code = max(largest_code, _e4m3_row_in_half(own, scale_of_column, weight[row]))
            else:
                largest_code = max(largest_code, _e4m3_row(own, scale_of_column, weight[row]))
        elif element == _E2M1:
            _e2m1_row(own, scale_of_column, weight[row])
        else:
            rounded = _HALF if in_half and not normal else _NORMAL_HALF if in_half else _NOT_HALF
            _integers(rounded, own, flipped, offset, zero_of_column, scale_of_column, weight[row])
    return largest_code
