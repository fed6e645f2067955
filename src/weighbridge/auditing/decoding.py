"""A base that its publisher quantized: what its codes mean, by the audit's own reading of them.

Builds start from the BF16 values that upstream's dequantizers give; so does the audit. Codes are looked up in tables,
spread under their scales and rounded, by arithmetic that no build uses. Where codes, scales and zero points lie, and in
which order, is read off one description for both (`weighbridge.formats.codecs`), which tests hold against upstream.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from weighbridge.auditing.arithmetic import narrowed
from weighbridge.auditing.grid import E2M1_VALUES, Array, Floats, e4m3_values, e8m0_values, float_values
from weighbridge.errors import StructureError
from weighbridge.formats.codecs import AWQ_ORDER, CODES, DECODED, ORDER, SCALES, SHAPE, SHARED, ZEROS, Codec
from weighbridge.work.regions import CodedRows, Region


def decoded(coded: CodedRows, count: int, read: Callable[[Region], Array]) -> Array:
    """Rows of a weight that is stored as codes: BF16 as bit patterns, uint16 [count, columns].

    Args:
        read: reads a stored matrix.

    Raises:
        StructureError: what lies beside the codes contradicts what is declared of them.
    """
    codec, (total, columns) = coded.how.codec, coded.how.weight.shape
    unit = coded.how.unit
    begin = coded.first // unit * unit
    end = min(total, -(-(coded.first + count) // unit) * unit)
    stored = {role: read(region) for role, region in coded._replace(first=begin).beside(end - begin).items()}
    values = _values(codec, stored[CODES], end - begin, columns)
    scales = _scales(stored[SCALES], coded.stored[SCALES].tensor.dtype)
    height, width = codec.height or total, codec.width or columns
    down = np.arange(begin, end) // height - begin // height
    tile = np.arange(columns) // width
    if SHAPE in stored and stored[SHAPE].reshape(-1).tolist() != [*coded.how.weight.shape]:
        raise _contradiction(coded, SHAPE, f"says another shape than that of the codes, {[*coded.how.weight.shape]}")
    if ORDER in stored:
        order = stored[ORDER].reshape(-1)
        if codec.in_order and not np.array_equal(order, tile):
            raise _contradiction(coded, ORDER, "groups columns that do not lie side by side, without desc_act")
        if order.min() < 0 or order.max() >= scales.shape[1]:
            raise _contradiction(coded, ORDER, "names groups that have no scales")
        tile = order
    if ZEROS in stored:
        zeros = _zero_points(codec, stored[ZEROS])[: len(scales)]
        if codec.symmetric and (zeros + np.float32(codec.offset or 0) != 1 << (codec.bits - 1)).any():
            raise _contradiction(coded, ZEROS, "holds zero points beside the middle of codes declared symmetric")
        values = values - zeros[down][:, tile]
    with np.errstate(all="ignore"):
        if codec.shared:
            shared = float_values(stored[SHARED], "F32")
            scales = scales / (np.float32(1) / shared if codec.shared == "reciprocal" else shared)
        product = values * scales[down][:, tile]
        if codec.in_half:
            product = narrowed(product, "F16")
    bits = (np.ascontiguousarray(narrowed(product, DECODED)).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return bits[coded.first - begin : coded.first - begin + count]


def _contradiction(coded: CodedRows, role: str, why: str) -> StructureError:
    where = f"the base, {coded.stored[role].file}: {coded.module}.{coded.how.readings[role].local}"
    return StructureError(why, where=where, remedy="it contradicts itself: compare its digests with the published ones")


def _values(codec: Codec, codes: Array, rows: int, columns: int) -> Floats:
    """The number that each code stands for, before it is scaled."""
    if codec.packing == "awq":
        stored = _out_of_words(codec, codes)
    else:
        stored = np.ascontiguousarray(codes).view(np.uint8).reshape(rows, -1)
        if codec.packing == "nibbles":
            stored = np.stack([stored & 15, stored >> 4], axis=-1).reshape(rows, -1)
    stored = stored[:rows, :columns]
    if codec.element == "E4M3":
        return e4m3_values(stored)
    if codec.element == "E2M1":
        return E2M1_VALUES[stored]
    if codec.offset is None:
        return stored.view(np.int8).astype(np.float32)
    return stored.astype(np.float32) - np.float32(codec.offset)


def _out_of_words(codec: Codec, words: Array) -> Array:
    """Rows of codes that share words of 32 bits: the first in the lowest place, or as AutoAWQ orders them."""
    places = AWQ_ORDER if codec.packing == "awq" else range(32 // codec.bits)
    mask = np.uint32((1 << codec.bits) - 1)
    parts = [(np.ascontiguousarray(words).view(np.uint32) >> np.uint32(place * codec.bits)) & mask for place in places]
    return np.stack(parts, axis=1).reshape(-1, words.shape[1])


def _scales(scales: Array, dtype: str) -> Floats:
    if dtype == "F8_E4M3":
        return e4m3_values(scales)
    return e8m0_values(scales) if dtype in ("U8", "F8_E8M0") else float_values(scales, dtype)


def _zero_points(codec: Codec, stored: Array) -> Floats:
    """Zero points, one for each tile."""
    if stored.dtype != np.int32 or codec.offset is None:
        return stored.view(np.int8).astype(np.float32)
    codes = (_out_of_words(codec, stored) + np.uint32(codec.zero_bias)) % np.uint32(1 << codec.bits)
    return codes.astype(np.float32) - np.float32(codec.offset)
