"""Codes of integers under scales of F16, decoded as numpy does it in halves: normal, subnormal and very large ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from weighbridge.formats.codecs import CODES, SCALES, Codec, Packing
from weighbridge.numbers.decoding import Raw, UnusableCodes, decoded

GROUP, ROWS, GROUPS = 16, 8, 4
COLUMNS = GROUP * GROUPS
FINITE = st.integers(1, 0x7BFF)
"""Positive finite F16, as bit patterns."""
SCALES_OF_ROWS = arrays.arrays(np.uint16, (ROWS, GROUPS), elements=FINITE)
"""Now and then all of a row are normal, as those of published models are."""


def codec(bits: int) -> Codec:
    packing: Packing = "nibbles" if bits == 4 else "bytes"
    return Codec("", "INTEGER", packing, bits, 1 << (bits - 1), height=1, width=GROUP, in_half=True)


@pytest.mark.parametrize("bits", [4, 8])
@given(
    scales=st.one_of(SCALES_OF_ROWS, SCALES_OF_ROWS.map(lambda found: np.maximum(found, 0x0400))),
    seed=st.integers(0, 1 << 16),
)
def test_products_are_rounded_as_halves_whatever_their_size(
    bits: int, scales: np.ndarray[tuple[int, int], np.dtype[np.uint16]], seed: int
) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (ROWS, COLUMNS), np.uint8)
    stored = codes[:, ::2] | (codes[:, 1::2] << 4) if bits == 4 else codes
    places = codes.astype(np.float16) - np.float16(1 << (bits - 1))
    with np.errstate(over="ignore"):
        halves = places * np.repeat(scales.view(np.float16), GROUP, axis=1)
    raw = {CODES: Raw("U8", stored), SCALES: Raw("F16", scales.view(np.uint8).reshape(ROWS, -1))}
    if not np.isfinite(halves).all():
        with pytest.raises(UnusableCodes):
            decoded(codec(bits), raw, 0, ROWS, (ROWS, COLUMNS))
        return
    wide = halves.astype(np.float32).view(np.uint32)
    expected = ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)
    assert (decoded(codec(bits), raw, 0, ROWS, (ROWS, COLUMNS)) == expected).all()
