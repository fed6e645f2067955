"""Stored codes and scales as numbers: the grid that codes lie on, and what each is multiplied by.

Source: the compressors of compressed-tensors 0.19.0 and ``modelopt.torch.quantization.qtensor``; E4M3 and E8M0 as in
the OCP 8-bit floating point and microscaling specifications.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from weighbridge.auditing.rounding import E2M1, E4M3, INTEGER, Places
from weighbridge.formats import modelopt
from weighbridge.formats.observers import is_signed
from weighbridge.formats.schemes import Scheme

Array = np.ndarray[Any, Any]
Floats = npt.NDArray[np.float32]

E2M1_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass(frozen=True, slots=True)
class Grid:
    """How the codes of a module are read.

    Attributes:
        kind: `E4M3`, `E2M1` or `INTEGER`.
        bits: bits of a code.
        nibbles: two codes share a byte, the first is the lower half.
        twos_complement: integers with a sign of their own; otherwise the code less half of the range.
        height: rows that share a scale; 0 for all of them.
        width: columns that share a scale; 0 for all of them.
        symmetric: no zero points.
        signed: scales may be negative.
    """

    kind: int
    bits: int
    nibbles: bool
    twos_complement: bool
    height: int
    width: int
    symmetric: bool
    signed: bool

    @property
    def places(self) -> Places:
        """Where codes lie."""
        return _places(self.kind, self.bits, self.twos_complement)

    @property
    def values(self) -> Floats:
        """The place of each code, float32 [256], by the byte (or the half of one) in which it is stored."""
        return _values(self.kind, self.bits, self.twos_complement)

    @property
    def half_range(self) -> float:
        """Half of (largest - smallest code): what the largest value of a tile is divided by to give its scale."""
        return {E4M3: 448.0, E2M1: 6.0}.get(self.kind, ((1 << self.bits) - 1) / 2)


@lru_cache
def _places(kind: int, bits: int, twos_complement: bool) -> Places:
    zero, one = np.int32(0), np.float32(1)
    if kind == E4M3:
        return Places(
            kind, zero, zero, np.float32(2.0**-6), np.float32(8), np.float32(-448), np.float32(448), np.float32(-0.0)
        )
    if kind == E2M1:
        return Places(kind, zero, zero, one, np.float32(2), np.float32(-6), np.float32(6), np.float32(-0.0))
    half = 1 << (bits - 1)
    # All integers are one binade, of steps of 1.
    whole = np.float32(half)
    # Those with a sign of their own are of eight bits, however few of them are used.
    flipped, offset = (np.int32(128), np.int32(128)) if twos_complement else (zero, np.int32(half))
    return Places(kind, flipped, offset, whole, whole, -whole, whole - one, np.float32(0))


@lru_cache
def _values(kind: int, bits: int, twos_complement: bool) -> Floats:
    if kind == E4M3:
        return _E4M3
    if kind == E2M1:
        return np.resize(E2M1_VALUES, 256)
    half, stored = 1 << (bits - 1), np.arange(256)
    integers = (stored + 128) % 256 - 128 if twos_complement else stored % (2 * half) - half
    return integers.astype(np.float32)


def grid_of(scheme: Scheme) -> Grid | None:
    """The grid of a scheme; None where its codes are not known here."""
    args = scheme.weights
    if (args.type, args.num_bits) not in {("float", 8), ("float", 4), ("int", 8), ("int", 4)}:
        return None
    sizes = {
        "tensor": (0, 0),
        "channel": (1, 0),
        "group": (1, args.group_size or 0),
        "tensor_group": (1, args.group_size or 0),
        "block": args.block_structure or (0, 0),
    }
    if args.strategy not in sizes or (args.type == "float" and not args.symmetric):
        return None
    height, width = sizes[args.strategy]
    kind = INTEGER if args.type == "int" else E4M3 if args.num_bits == 8 else E2M1
    packed = scheme.format == "pack-quantized"
    return Grid(
        kind=kind,
        bits=args.num_bits,
        nibbles=args.num_bits == 4 and (packed or kind != INTEGER),
        twos_complement=kind == INTEGER and not packed,
        height=height,
        width=width,
        symmetric=args.symmetric,
        signed=kind == INTEGER and args.symmetric and is_signed(args),
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """Stored rows as numbers.

    Attributes:
        codes: as they are stored, uint8 [rows, bytes].
        scales: float32 [tiles down, tiles across].
        divisors: what weights are divided by to lie on the grid; as `scales`.
        zeros: zero points, as `scales`.
    """

    grid: Grid
    columns: int
    codes: npt.NDArray[np.uint8]
    scales: Floats
    divisors: Floats
    zeros: Floats

    @property
    def tiles(self) -> tuple[Floats, Floats, int, int, bool]:
        """What codes are multiplied by, as the loops take it."""
        height, width = self.grid.height or len(self.codes), self.grid.width or self.columns
        return self.divisors, self.zeros, height, width, not self.grid.symmetric

    @property
    def widest(self) -> Floats:
        """The widest step of each row, in units of the weight."""
        places = self.grid.places
        widest = np.abs(self.divisors).max(axis=1) * _step(places, places.highest)
        return np.repeat(widest, self.tiles[2])[: len(self.codes)]


def _step(places: Places, value: np.float32) -> np.float32:
    """The step of a grid at one of its ends."""
    return np.float32(max(2.0 ** math.floor(math.log2(value)), float(places.smallest))) / places.fraction


def values_of(rows: Rows) -> Floats:
    """The weights that stored rows stand for, float32 [rows, columns], in units of their scales."""
    codes = rows.codes
    if rows.grid.nibbles:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
    places: Floats = rows.grid.values[codes[:, : rows.columns]]
    return places if rows.grid.symmetric else places - spread(rows, rows.zeros)


def spread(rows: Rows, tiles: Floats) -> Floats:
    """Figures of tiles, one for each weight: float32 [rows, columns]."""
    _, _, height, width, _ = rows.tiles
    return tiles.repeat(height, 0).repeat(width, 1)[: len(rows.codes), : rows.columns]


def rows_of(
    grid: Grid, form: str, stored: Mapping[str, Array], scale_dtype: str, columns: int, whole: np.float32 | None
) -> Rows:
    """Stored rows of a module as numbers.

    Args:
        stored: local name -> rows as numpy has them (FP8 as uint8, BF16 as bit patterns).
        scale_dtype: safetensors' name of the scales' dtype.
        whole: the one scale of a per-tensor scheme, or NVFP4's global scale.
    """
    codes = stored["weight_packed"] if "weight_packed" in stored else stored["weight"]
    own = np.ascontiguousarray(codes).view(np.uint8).reshape(codes.shape[0], -1)
    if grid.height == 0:
        scales = np.full((1, 1), whole, np.float32)
        shared = None
    else:
        scales = scale_values(stored["weight_scale"], scale_dtype)
        shared = whole
    divided = np.ascontiguousarray(_divisors(form, scales, shared), np.float32)
    zero = stored.get("weight_zero_point")
    assert zero is None or not grid.symmetric  # is paired with nothing
    if zero is None:
        # Adding it must leave E4M3 the sign of a quotient that is zero; in E2M1 such a zero has none.
        zeros = np.full_like(divided, -0.0 if grid.kind == E4M3 else 0.0)
    elif zero.dtype == np.int32:
        zeros = np.ascontiguousarray(_unpacked_zero_points(zero, len(own), grid.bits))
    else:
        zeros = np.ascontiguousarray(zero.view(np.int8).astype(np.float32))
    return Rows(grid, columns, own, scales, divided, zeros)


def e4m3_values(codes: npt.NDArray[np.uint8]) -> Floats:
    """The float32 that E4M3 codes stand for; NaN for 0x7F and 0xFF."""
    return _E4M3.take(codes)  # in half the time of indexing


def e8m0_values(codes: npt.NDArray[np.uint8]) -> Floats:
    """The float32 that E8M0 codes stand for: 2^(code - 127), NaN for 255."""
    return _E8M0[codes]


def float_values(array: Array, dtype: str) -> Floats:
    """Elements of BF16 (bit patterns), F16 or F32 as float32."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32)


def scale_values(scale: Array, dtype: str) -> Floats:
    """Stored scales as float32."""
    if dtype == "F8_E4M3":
        return e4m3_values(scale)
    return e8m0_values(scale) if dtype == "U8" else float_values(scale, dtype)


def _divisors(form: str, scales: Floats, shared: np.float32 | None) -> Floats:
    """What a weight is divided by to lie on the grid of its code.

    Args:
        scales: stored scales.
        shared: the stored global scale, where there is one: compressed-tensors divides by it, modelopt multiplies.
    """
    if shared is None:
        return scales
    with np.errstate(all="ignore"):
        return scales * shared if form == modelopt.METHOD else scales / shared


def padded_zero_points(packed: npt.NDArray[np.int32], rows: int, bits: int) -> int:
    """How many of the places beyond the last row hold something; see `_unpacked_zero_points`."""
    return int(np.count_nonzero(_codes_down(packed, bits)[rows:]))


def _unpacked_zero_points(packed: npt.NDArray[np.int32], rows: int, bits: int) -> Floats:
    """Zero points that are packed down the rows, int32 [words, groups], as float32 [rows, groups].

    Source: ``pack_to_int32(zero_point, num_bits, packed_dim=0)``: codes less half of the range, the first lowest, and
    zeros beyond the last row.
    """
    return _codes_down(packed, bits)[:rows].astype(np.float32) - np.float32(1 << (bits - 1))


def _codes_down(packed: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.uint32]:
    shifts = np.arange(0, 32, bits, dtype=np.uint32)[None, :, None]
    codes = (packed.view(np.uint32)[:, None, :] >> shifts) & np.uint32((1 << bits) - 1)
    return codes.reshape(-1, packed.shape[1])


def _e4m3_table() -> Floats:
    codes = np.arange(256)
    exponent, fraction = (codes >> 3) & 15, codes & 7
    magnitude = np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent - 10.0))
    magnitude[[0x7F, 0xFF]] = np.nan
    return np.where(codes & 0x80, -magnitude, magnitude).astype(np.float32)


_E4M3 = _e4m3_table()
_E8M0 = np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.nan).astype(np.float32)
