"""Codes of integers under scales of F16, decoded as numpy does it in halves: normal, subnormal and very large ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from weighbridge.formats.codecs import CODES, ORDER, SCALES, ZEROS, Codec, Packing, coded
from weighbridge.formats.schemes import QuantizationArgs, Scheme
from weighbridge.formats.tensors import Tensor
from weighbridge.numbers.decoding import Raw, UnusableCodes, decoded, largest

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


@given(
    codes=arrays.arrays(np.uint8, (ROWS, COLUMNS), elements=st.sampled_from([8, 8, 8, 8, 8, 8, 9])),
    zero=arrays.arrays(np.bool_, (ROWS, GROUPS)),
)
def test_scales_of_zero_may_stand_over_codes_of_zero_alone(
    codes: np.ndarray[tuple[int, int], np.dtype[np.uint8]], zero: np.ndarray[tuple[int, int], np.dtype[np.bool_]]
) -> None:
    scales = np.where(zero, 0, 0x3C00).astype(np.uint16)
    stored = (codes[:, ::2] | (codes[:, 1::2] << 4)).astype(np.uint8)
    raw = {CODES: Raw("U8", stored), SCALES: Raw("F16", scales.view(np.uint8).reshape(ROWS, -1))}
    tiles = (codes.reshape(ROWS, GROUPS, GROUP) != 8).any(axis=2)
    if (tiles & zero).any():
        with pytest.raises(UnusableCodes, match=r"the scale is 0\.0"):
            decoded(codec(4), raw, 0, ROWS, (ROWS, COLUMNS))
    else:
        assert (decoded(codec(4), raw, 0, ROWS, (ROWS, COLUMNS)) == np.where(codes == 9, 0x3F80, 0)).all()


def test_zero_points_of_blocks_keep_no_rows_together_and_words_do() -> None:
    args = QuantizationArgs(8, "int", "block", symmetric=False, block_structure=(1 << 20, 128))
    scheme = Scheme(args, QuantizationArgs(8, "int", "token", dynamic=True))
    blocks = {
        "weight": Tensor("I8", (256, 128)),
        "weight_scale": Tensor("BF16", (1, 1)),
        "weight_zero_point": Tensor("I8", (1, 1)),
    }
    assert coded("compressed-tensors", "int-quantized", scheme, blocks).unit == 1
    words = Scheme(QuantizationArgs(4, "int", "group", symmetric=False, group_size=128))
    stored = {"qweight": Tensor("I32", (256, 8)), "qzeros": Tensor("I32", (2, 8)), "scales": Tensor("F16", (2, 64))}
    assert coded("awq", "", words, stored).unit == 8


WIDE_GROUP, WIDE_GROUPS = 128, 2
WIDE = WIDE_GROUP * WIDE_GROUPS


def awq(random: np.random.Generator, zeros: bool) -> tuple[Codec, dict[str, Raw]]:
    found = Codec("", "INTEGER", "awq", 4, 0 if zeros else 8, height=1, width=WIDE_GROUP, in_half=True)
    stored = {CODES: Raw("I32", random.integers(0, 256, (ROWS // 8, 4 * WIDE), np.uint8))}
    if zeros:
        stored[ZEROS] = Raw("I32", random.integers(0, 256, (ROWS // 8, 4 * WIDE_GROUPS), np.uint8))
    return found, stored | {SCALES: scales_of(random, ROWS, WIDE_GROUPS)}


def gptq(random: np.random.Generator, order: bool) -> tuple[Codec, dict[str, Raw]]:
    found = Codec("", "INTEGER", "nibbles", 4, 0, height=1, width=WIDE_GROUP, zero_bias=1, in_half=True)
    stored = {
        CODES: Raw("I32", random.integers(0, 256, (ROWS, WIDE // 2), np.uint8)),
        ZEROS: Raw("I32", random.integers(0, 256, (ROWS // 8, 4 * WIDE_GROUPS), np.uint8)),
        SCALES: scales_of(random, ROWS, WIDE_GROUPS),
    }
    if order:
        groups = np.repeat(np.arange(WIDE_GROUPS, dtype=np.int32), WIDE_GROUP)
        stored[ORDER] = Raw("I32", random.permutation(groups).view(np.uint8).reshape(1, -1))
    return found, stored


def signed_bytes(random: np.random.Generator, height: int | None) -> tuple[Codec, dict[str, Raw]]:
    found = Codec("", "INTEGER", "bytes", 8, None, height=height, width=None if height is None else WIDE_GROUP)
    tiles = (1, 1) if height is None else (ROWS // height, WIDE_GROUPS)
    return found, {CODES: Raw("I8", random.integers(0, 256, (ROWS, WIDE), np.uint8)), SCALES: scales_of(random, *tiles)}


def eight_bit_floats(random: np.random.Generator, nans: bool) -> tuple[Codec, dict[str, Raw]]:
    found = Codec("", "E4M3", "bytes", 8, None, height=4, width=WIDE_GROUP)
    codes = random.integers(0, 0x80 if nans else 0x7F, (ROWS, WIDE), np.uint8)
    codes |= random.integers(0, 2, codes.shape, np.uint8) << 7
    return found, {CODES: Raw("F8_E4M3", codes), SCALES: scales_of(random, ROWS // 4, WIDE_GROUPS)}


def four_bit_floats(random: np.random.Generator, group: int) -> tuple[Codec, dict[str, Raw]]:
    found = Codec("", "E2M1", "nibbles", 4, None, height=1, width=group)
    codes = random.integers(0, 256, (ROWS, WIDE // 2), np.uint8)
    return found, {CODES: Raw("U8", codes), SCALES: scales_of(random, ROWS, WIDE // group)}


def scales_of(random: np.random.Generator, down: int, across: int) -> Raw:
    """Mostly of an ordinary size; some large, tiny, zero or infinite."""
    scales = random.choice([0x1400, 0x2100, 0x3C01, 0x0003, 0x0400], (down, across)).astype(np.uint16)
    odd = random.random((down, across)) < 0.02
    scales[odd] = random.choice([0x0000, 0x7C00, 0x7BFF], odd.sum())
    return Raw("F16", scales.view(np.uint8))


STORED = {
    "awq": lambda random: awq(random, zeros=True),
    "awq, symmetric": lambda random: awq(random, zeros=False),
    "gptq": lambda random: gptq(random, order=False),
    "gptq, columns in any order": lambda random: gptq(random, order=True),
    "integers under one scale": lambda random: signed_bytes(random, height=None),
    "integers in blocks": lambda random: signed_bytes(random, height=2),
    "E4M3 in blocks": lambda random: eight_bit_floats(random, nans=False),
    "E4M3 with codes for NaN": lambda random: eight_bit_floats(random, nans=True),
    "E2M1 in wide groups": lambda random: four_bit_floats(random, group=128),
    "E2M1 in narrow groups": lambda random: four_bit_floats(random, group=32),
}


@pytest.mark.parametrize("kind", STORED)
@given(seed=st.integers(0, 1 << 16))
def test_the_largest_is_that_of_the_decoded_weight_and_what_is_refused_is_refused_alike(kind: str, seed: int) -> None:
    how, stored = STORED[kind](np.random.default_rng(seed))
    asked = how, stored, 0, ROWS, (ROWS, WIDE)
    try:
        weight = decoded(*asked)
    except UnusableCodes as problem:
        with pytest.raises(UnusableCodes) as refused:
            largest(*asked)
        assert (refused.value.role, str(refused.value)) == (problem.role, str(problem))
    else:
        expected = (np.uint32((weight & 0x7FFF).max()) << np.uint32(16)).view(np.float32)
        assert largest(*asked) == expected
