"""Kernels that are wrong in one way each, as a bug, a compiler, a stale cache or a faulty device may make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weighbridge.formats.schemes import Scheme
from weighbridge.numbers import Kernels, load_kernels
from weighbridge.numbers.encoding import Element, encoding_of

Array = np.ndarray[Any, Any]

PLACES: Mapping[Element, tuple[float, ...]] = {
    "E2M1": (0, 0.5, 1, 1.5, 2, 3, 4, 6),
    "E4M3": (*(n / 512 for n in range(8)), *((8 + n) * 2.0 ** (e - 10) for e in range(1, 16) for n in range(8)))[:127],
}
"""Magnitudes by code, of floating elements."""


@dataclass
class Rounded:
    """What honest kernels made of some rows, one code an element, to be made wrong.

    Attributes:
        quotients: what was rounded to the grid, float64, brought within its ends.
        codes: magnitudes for floats, numbers for integers, int64 [rows, columns].
        first_row: number of the first of these rows among all that went through the kernels.
    """

    element: Element
    quotients: Array
    codes: Array
    scales: Array
    first_row: int

    def places(self, codes: Array) -> Array:
        """The places of codes; magnitudes for floats."""
        if self.element in PLACES:
            table = np.array(PLACES[self.element])
            found: Array = table[np.clip(codes, 0, len(table) - 1)]
            return found
        return codes.astype(np.float64)

    @property
    def asked(self) -> Array:
        """The quotients that codes are held against; magnitudes for floats."""
        return np.abs(self.quotients) if self.element in PLACES else self.quotients


def truncated(rows: Rounded) -> None:
    """Codes are rounded towards zero."""
    if rows.element in PLACES:
        rows.codes -= rows.places(rows.codes) > rows.asked
    else:
        rows.codes = np.trunc(rows.quotients).astype(np.int64)


def one_code_off(rows: Rounded) -> None:
    """One code in the middle is its neighbour."""
    row, column = rows.codes.shape[0] // 2, rows.codes.shape[1] // 2
    rows.codes[row, column] += 1 if rows.codes[row, column] < 3 else -1


def one_scale_off(rows: Rounded) -> None:
    """One scale is off by its last bit."""
    rows.scales.flat[rows.scales.size // 2] ^= 1


def one_row_in_a_thousand(rows: Rounded) -> None:
    """Every thousandth row that goes through the kernels holds the codes of the row before it."""
    for row in range(1, len(rows.codes)):
        if (rows.first_row + row) % 1000 == 999:
            rows.codes[row] = rows.codes[row - 1]


def wrong_ties(rows: Rounded) -> None:
    """What lies in the middle of two places goes to the odd code."""
    for step in (-1, 1):
        other = rows.codes + step
        if rows.element in PLACES:
            other = np.clip(other, 0, len(PLACES[rows.element]) - 1)
        middle = (rows.places(rows.codes) + rows.places(other)) / 2
        is_tie = (rows.asked == middle) & (rows.codes % 2 == 0) & (other != rows.codes)
        rows.codes = np.where(is_tie, other, rows.codes)


WAYS: Mapping[str, Callable[[Rounded], None]] = {
    "truncated": truncated,
    "one code off": one_code_off,
    "one scale off": one_scale_off,
    "one row in a thousand": one_row_in_a_thousand,
    "wrong ties": wrong_ties,
}


@dataclass
class WrongKernels:
    """The project's kernels, and what `way` does to what they make. For one thread."""

    way: Callable[[Rounded], None]
    honest: Kernels = field(default_factory=lambda: load_kernels("cpu"))
    rows: int = 0

    def amax(self, weight: Array, dtype: str) -> float:
        """See `Kernels`."""
        return self.honest.amax(weight, dtype)

    def largest(self, weight: Array, dtype: str, scheme: Scheme, *, steps: int | None = None) -> float:
        """See `Kernels`."""
        return self.honest.largest(weight, dtype, scheme, steps=steps)

    def improving(self, weight: Array, dtype: str, scheme: Scheme) -> int:
        """See `Kernels`."""
        return self.honest.improving(weight, dtype, scheme)

    def quantize(
        self, weight: Array, dtype: str, scheme: Scheme, *, amax: float | None = None, steps: int | None = None
    ) -> dict[str, Array]:
        """See `Kernels`."""
        assert dtype == "BF16"
        arrays = dict(self.honest.quantize(weight, dtype, scheme, amax=amax, steps=steps))
        element = encoding_of(scheme).element
        local = "weight_packed" if "weight_packed" in arrays else "weight"
        stored = np.ascontiguousarray(arrays[local]).view(np.uint8).copy()
        codes = np.stack([stored & 15, stored >> 4], -1).reshape(len(stored), -1) if element != "E4M3" else stored
        sign = {"E4M3": 0x80, "E2M1": 8}.get(element, 0)
        half = 0 if sign else 8
        scales = arrays["weight_scale"].copy()
        quotients = _quotients(weight, scales, scheme, arrays.get("weight_global_scale"))
        rows = Rounded(element, quotients, (codes & (0xFF ^ sign)).astype(np.int64) - half, scales, self.rows)
        self.way(rows)
        self.rows += len(stored)
        made = ((np.clip(rows.codes, -half, (sign or 8) - 1) + half) | (codes & sign)).astype(np.uint8)
        if element != "E4M3":
            made = made[:, 0::2] | (made[:, 1::2] << 4)
        return {**arrays, local: made.view(arrays[local].dtype), "weight_scale": rows.scales}


def _quotients(weight: Array, scales: Array, scheme: Scheme, shared: Array | None) -> Array:
    """What was rounded to the grid: weights over scales in float32, and without a global scale in BF16."""
    values = (weight.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if shared is not None:
        exponent, fraction = (scales >> 3).astype(np.int32), (scales & 7).astype(np.float32)
        e4m3 = np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * np.exp2(exponent - 10.0))
        divisors = (e4m3.astype(np.float32) / shared[0]).astype(np.float32)
    else:
        divisors = (scales.astype(np.uint32) << np.uint32(16)).view(np.float32)
    width = weight.shape[1] // divisors.shape[1]
    quotients = values / divisors.repeat(width, 1)
    if shared is None:
        bits = quotients.view(np.uint32)
        bits = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
        quotients = bits.view(np.float32)
    top = {"E4M3": 448.0, "E2M1": 6.0}.get(encoding_of(scheme).element, 7.0)
    found: Array = np.clip(quotients, -8 if top == 7 else -top, top).astype(np.float64)
    return found
