"""The audit's arithmetic: against its definition, against llm-compressor and modelopt, and against wrong kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.audit_rows import SCHEMES, Module, bf16, integers, quantized
from tests.kernel_agreement import COVERED, KINDS, hard_weight
from weighbridge.auditing import rounding
from weighbridge.auditing.arithmetic import PRECISIONS, narrowed
from weighbridge.auditing.grid import Grid, e8m0_values, float_values, grid_of
from weighbridge.formats.schemes import PRESETS, to_config
from weighbridge.numbers.encoding import SOURCES

Array = np.ndarray[Any, Any]


def known_grid(name: str) -> Grid:
    grid = grid_of(SCHEMES[name])
    assert grid is not None
    return grid


GRIDS = {name: known_grid(name) for name in ("FP8_DYNAMIC", "NVFP4A16", "W4A16", "W8A16", "W8A8")}


# --- the definition


def all_of_bf16() -> Array:
    """Every finite BF16, as float32."""
    patterns = np.arange(65536, dtype=np.uint32)
    values: Array = (patterns << np.uint32(16)).view(np.float32)
    return values[np.isfinite(values)]


def around_midpoints(values: Array) -> Array:
    """Each midpoint between two values, and the float32 on either side of it."""
    places = np.unique(values[np.isfinite(values)])
    middles = ((places[1:].astype(np.float64) + places[:-1]) / 2).astype(np.float32)
    return np.concatenate([middles, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf)], dtype=np.float32)


def nearest_by_search(table: Array, values: Array) -> Array:
    """The place at the smallest distance, in float64; of two, the one whose code is even."""
    codes = np.flatnonzero(np.isfinite(table))
    places, order = np.unique(table[codes].astype(np.float64), return_index=True)
    parity = codes[order] % 2
    wide = np.clip(values.astype(np.float64), places[0], places[-1])
    above = np.clip(np.searchsorted(places, wide), 1, len(places) - 1)
    down, up = wide - places[above - 1], places[above] - wide
    takes_upper = (up < down) | ((up == down) & (parity[above] == 0))
    found: Array = np.where(takes_upper, places[above], places[above - 1])
    return found


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("values", ["every BF16", "around midpoints"])
def test_nearest_is_the_place_at_the_smallest_distance(grid: str, values: str) -> None:
    table = GRIDS[grid].values
    asked = all_of_bf16() if values == "every BF16" else around_midpoints(table)
    found = np.empty((1, len(asked)), np.float32)
    ones, zeros = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    rounding.nearest_values(
        asked[None], False, rounding.F32, GRIDS[grid].places, (ones, zeros, 1, len(asked), False), found
    )
    assert (found[0] == nearest_by_search(table, asked)).all()


def test_places_are_those_of_the_codes() -> None:
    torch = pytest.importorskip("torch")  # OCP's E4M3 as torch has it; the others by hand
    codes = torch.arange(256, dtype=torch.uint8)
    e4m3 = codes.view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(GRIDS["FP8_DYNAMIC"].values, e4m3, equal_nan=True)
    assert GRIDS["NVFP4A16"].values[:16].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert GRIDS["W4A16"].values[:16].tolist() == list(range(-8, 8))
    assert GRIDS["W8A16"].values.tolist() == list(range(-128, 128))
    assert GRIDS["W8A8"].values.astype(int).tolist() == [*range(128), *range(-128, 0)]


def test_scales_of_eight_bits_are_powers_of_two() -> None:
    codes = np.arange(256, dtype=np.uint8)
    assert e8m0_values(codes)[:255].tolist() == [2.0 ** (int(code) - 127) for code in codes[:255]]
    assert np.isnan(e8m0_values(codes)[255])


@pytest.mark.parametrize("columns", [32, 31])
@pytest.mark.parametrize("name", GRIDS)
def test_loops_decode_every_byte_as_the_table_does(name: str, columns: int) -> None:
    grid, table = GRIDS[name], GRIDS[name].values
    stored = np.arange(256, dtype=np.uint8)
    codes = np.stack([stored & 15, stored >> 4], axis=1).reshape(-1) if grid.nibbles else stored
    found, buffer = np.empty(columns, np.float32), np.empty(columns, np.uint8)
    for first in range(0, len(codes), 32):
        row = stored[first // 2 : first // 2 + 16] if grid.nibbles else stored[first : first + 32]
        rounding._decode(row, grid.nibbles, grid.places, buffer, found)
        expected = table[codes[first : first + columns]]
        assert np.array_equal(np.isnan(found), np.isnan(expected))
        assert np.array_equal(found.view(np.uint32)[~np.isnan(found)], expected.view(np.uint32)[~np.isnan(expected)])


def test_what_is_stored_beyond_the_last_column_is_seen() -> None:
    row, found, buffer = np.zeros(4, np.uint8), np.empty(5, np.float32), np.empty(5, np.uint8)
    for place, value, ends_with_zeros in ((2, 0x08, True), (2, 0x80, False), (3, 0x01, False)):
        stored = row.copy()
        stored[place] = value
        assert rounding._decode(stored, True, GRIDS["W4A16"].places, buffer, found) == ends_with_zeros
    row[3] = 1
    assert not rounding._decode(row, False, GRIDS["W8A16"].places, buffer[:3], found[:3])


@pytest.mark.parametrize(("down", "across"), [(3, 5), (6, 3)])
@pytest.mark.parametrize("between", [False, True])
def test_energy_is_that_of_the_tiles_alone_whose_divisors_are_far_from_what_they_need(
    between: bool, down: int, across: int
) -> None:
    random = np.random.default_rng(5)
    weights = random.standard_normal((2 * down, 8 * across)).astype(np.float32) - np.float32(0.3)
    smallest, largest = (np.empty((down, across), np.float32) for _ in range(2))
    rounding.extremes(weights, False, 2, 8, smallest, largest)
    low, high = np.minimum(smallest, 0), np.maximum(largest, 0)
    needed = (high - low) / 15 if between else np.maximum(-smallest, largest) / np.float32(7.5)
    times = np.where(random.random(needed.shape) < 0.3, random.choice([0.6, 2.2], needed.shape), 1.4)
    times[0], times[-1, -1] = [0.71, 2.1, 1.4, 1, 0.8][:across], 2.2
    divisors = (needed * times).astype(np.float32)
    tiles = divisors, np.zeros_like(divisors), 2, 8, between
    limits = np.float32(0.7), np.float32(2.125)
    found = rounding.far_energy(weights, False, np.float32(7.5), between, smallest, largest, tiles, *limits)
    far = ((times < 0.7) | (times > 2.125)).repeat(2, 0).repeat(8, 1)
    assert 0 < far.mean() < 1
    assert found == pytest.approx(float((weights[far].astype(np.float64) ** 2).sum()), rel=1e-6)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_magnitudes_are_the_larger_side_of_the_extremes(dtype: str) -> None:
    wide = hard_weight("normal", "F32", 6, 40)
    weights = bf16(narrowed(wide, "BF16")) if dtype == "BF16" else wide
    sides = [np.empty((3, 5), np.float32) for _ in range(4)]
    assert rounding.extremes(weights, dtype == "BF16", 2, 8, *sides[:2])
    assert rounding.magnitudes(weights, dtype == "BF16", 2, 8, *sides[2:])
    assert (sides[3] == np.maximum(-sides[0], sides[1])).all()
    assert (sides[2] == -sides[3]).all()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("loop", [rounding.extremes, rounding.magnitudes])
def test_value_that_is_none_is_seen(loop: Any, value: float) -> None:
    weights = np.ones((6, 40), np.float32)
    assert loop(weights, False, 2, 8, *(np.empty((3, 5), np.float32) for _ in range(2)))
    weights[5, 39] = value
    assert not loop(weights, False, 2, 8, *(np.empty((3, 5), np.float32) for _ in range(2)))


def figures_by_definition(module: Module, values: Array, divisors: Array) -> tuple[float, ...]:
    """Signal, noise, saturated, zeroed, codes of NaN: in float64, but for quotients, which tools round to the dtype."""
    weight = float_values(module.weight, module.dtype).astype(np.float64)
    grid = grid_of(module.scheme)
    assert grid is not None
    places = grid.values[np.isfinite(grid.values)].astype(np.float64)
    low, high = np.unique(places)[[0, -1]]
    half_steps = (np.unique(places)[[1, -1]] - np.unique(places)[[0, -2]]) / 2
    where = narrowed((weight / divisors).astype(np.float32), module.dtype)
    return (
        float((weight**2).sum()),
        float(np.nansum((weight - values * divisors) ** 2)),
        int(((where < low - half_steps[0]) | (where > high + half_steps[1])).sum()),
        int(((values == 0) & (weight != 0)).sum()),
        int(np.isnan(values).sum()),
    )


@pytest.mark.parametrize("dtype", SOURCES)
@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "W8A8"])
def test_figures_of_rows_are_those_of_the_definition(scheme: str, dtype: str) -> None:
    """Of a build whose scales are half of what they should be: the largest weights lie beyond the ends."""
    honest = quantized(hard_weight("normal", dtype, 16, 256), dtype, SCHEMES[scheme])
    narrow = honest.arrays["weight_scale"].copy()
    # Of BF16 bit patterns a power of two less.
    narrow = narrow - np.uint16(0x80) if dtype == "BF16" else (narrow / 2).astype(narrow.dtype)
    module = replace(honest, arrays={**honest.arrays, "weight_scale": narrow})
    grid = GRIDS[scheme]
    values = grid.values[module.arrays["weight"].view(np.uint8)].astype(np.float64)
    divisors = float_values(narrow, dtype).astype(np.float64)
    seen = module.measured()
    found = seen.signal, seen.noise, seen.saturated, seen.zeroed, seen.nan_codes
    assert found == pytest.approx(figures_by_definition(module, values, divisors), rel=1e-5)
    assert seen.saturated > 0
    assert (seen.zeroed > 0) == (scheme == "W8A8")


def steps_by_definition(module: Module, values: Array, divisors: Array) -> float:
    """How many steps of the grid, where its weight lies, the worst code is off: under the better of two arithmetics."""
    weight = float_values(module.weight, module.dtype)
    grid = grid_of(module.scheme)
    assert grid is not None
    ends = np.nanmin(grid.values), np.nanmax(grid.values)
    exact = np.divide(weight, divisors, dtype=np.float32, casting="same_kind")
    off = []
    for quotient in (exact, narrowed(exact, module.dtype)):
        place = np.clip(quotient, *ends).astype(np.float64)
        power = np.exp2(np.floor(np.log2(np.maximum(np.abs(place), 2.0**-6))))
        off.append(np.abs(place - values) / (power / 8 if grid.kind == rounding.E4M3 else 1))
    return float(np.minimum(*off).max())


@pytest.mark.parametrize("dtype", SOURCES)
@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "W8A8"])
def test_steps_of_codes_that_are_not_the_nearest_are_those_of_the_definition(scheme: str, dtype: str) -> None:
    honest = quantized(hard_weight("normal", dtype, 16, 256), dtype, SCHEMES[scheme])
    divisors = float_values(honest.arrays["weight_scale"], dtype).astype(np.float64)
    for bit in range(8):
        codes = honest.arrays["weight"].view(np.uint8).copy()
        codes[bit, 3 * bit] ^= np.uint8(1 << bit)
        if GRIDS[scheme].kind == rounding.E4M3 and codes[bit, 3 * bit] & 0x7F == 0x7F:
            continue  # NaN is counted, and not measured
        seen = replace(honest, arrays={**honest.arrays, "weight": codes}).measured()
        values = GRIDS[scheme].values[codes].astype(np.float64)
        assert seen.steps > 0.5
        assert seen.steps == pytest.approx(steps_by_definition(honest, values, divisors), rel=1e-6)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0x7F800001])
def test_what_is_no_number_stays_none_when_it_is_rounded(bits: int, dtype: str) -> None:
    value = np.array([bits], np.uint32).view(np.float32)
    assert np.isnan(_rounded_by_loops(value, dtype)).all()


def test_codes_of_nan_are_counted() -> None:
    honest = quantized(hard_weight("normal", "BF16", 16, 256), "BF16", SCHEMES["FP8_DYNAMIC"])
    codes = honest.arrays["weight"].view(np.uint8).copy()
    codes[3, 7], codes[15, 255] = 0x7F, 0xFF
    seen = replace(honest, arrays={**honest.arrays, "weight": codes}).measured()
    assert (seen.nan_codes, seen.different_codes) == (2, 2)
    assert np.isnan(seen.noise)


def test_scales_are_counted_by_what_is_wrong_with_them() -> None:
    tiny = np.float32(2.0**-126)
    scales = np.array([[1, 0, -0.0, -1], [np.nan, np.inf, -np.inf, tiny], [tiny / 2, -tiny / 2, 448, tiny]], np.float32)
    assert rounding.look_at_scales(scales, tiny) == (4, 3, 2)


@pytest.mark.parametrize("dtype", SOURCES)
def test_rounding_to_a_dtype_is_numpys(dtype: str) -> None:
    random = np.random.default_rng(1)
    exponents = random.integers(-24, 17, 4096)
    values = (random.standard_normal(4096) * 2.0**exponents).astype(np.float32)
    values[:3] = 65519, 65520, -70000  # the last that F16 has, and what it has not
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16).astype(np.float32)
    expected = {"F16": halves, "F32": values}.get(dtype, _bf16_by_search(values))
    assert (narrowed(values, dtype) == expected).all()
    assert (_rounded_by_loops(values, dtype) == expected).all()


def _rounded_by_loops(values: Array, dtype: str) -> Array:
    out: Array = np.array([rounding._rounded(PRECISIONS[dtype].number, value) for value in values], np.float32)
    return out


def _bf16_by_search(values: Array) -> Array:
    low = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    high = ((values.view(np.uint32) & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32)
    down, up = (np.abs(values.astype(np.float64) - side) for side in (low, high))
    odd = (low.view(np.uint32) >> np.uint32(16)) % 2 == 1
    found: Array = np.where((up < down) | ((up == down) & odd), high, low)
    return found


# --- what the tools of the field round


@pytest.mark.parametrize("dtype", SOURCES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_llm_compressor_rounds_is_exact(kind: str, scheme: str, dtype: str) -> None:
    """By the project's kernels, whose bytes test_kernels.py holds against llm-compressor."""
    seen = quantized(hard_weight(kind, dtype, 16, 256), dtype, SCHEMES[scheme]).measured()
    assert (seen.different_codes, seen.different_scales, seen.unpredicted) == (0, 0, 0)
    assert seen.steps <= 0.5 + 2.0**-13


@pytest.mark.parametrize("dtype", SOURCES)
@pytest.mark.parametrize("kind", ["normal", "outliers", "many magnitudes", "zero rows and blocks", "ties"])
@pytest.mark.parametrize("group", [32, None], ids=["groups", "rows"])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_compressed_tensors_rounds_with_zero_points_is_exact(
    bits: int, group: int | None, kind: str, dtype: str
) -> None:
    module = asymmetric(hard_weight(kind, dtype, 16, 256), dtype, bits, group)
    seen = module.measured()
    assert (seen.different_codes, seen.different_scales, seen.unpredicted) == (0, 0, 0)


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_beyond_the_last_row_are_zero(bits: int) -> None:
    honest = asymmetric(hard_weight("normal", "BF16", 13, 64), "BF16", bits, 32)
    assert honest.measured().different_scales == 0
    packed = honest.arrays["weight_zero_point"].copy()
    packed.view(np.uint32)[-1, 1] ^= np.uint32(1 << 31)
    assert replace(honest, arrays={**honest.arrays, "weight_zero_point": packed}).measured().different_scales == 1


def asymmetric(weight: Array, dtype: str, bits: int, group: int | None) -> Module:
    """A weight as compressed-tensors' own functions round it with zero points."""
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme = integers(bits, group=group, symmetric=False)
    args: Any = QuantizationArgs.model_validate(to_config(scheme)["weights"])
    kept = getattr(torch, {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype])
    values = torch.from_numpy(float_values(weight, dtype)).to(kept)
    groups = values.reshape(values.shape[0], -1, group or values.shape[1])
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    codes = quantize(x=values, scale=scale, zero_point=zero, args=args, dtype=torch.int8)
    raw = scale.view(torch.uint16).numpy() if dtype == "BF16" else scale.numpy()
    packed_zero = pack_to_int32(zero.to(torch.int8), bits, packed_dim=0).contiguous().numpy()
    arrays = {
        "weight_packed": pack_to_int32(codes, bits).numpy(),
        "weight_scale": raw,
        "weight_zero_point": packed_zero,
    }
    return Module(weight, dtype, scheme, arrays)


@pytest.mark.parametrize("dtype", SOURCES)
@pytest.mark.parametrize("kind", ["normal", "outliers", "many magnitudes", "zero rows and blocks", "ties"])
def test_what_modelopt_rounds_to_nvfp4_is_exact(kind: str, dtype: str) -> None:
    seen = by_modelopt(hard_weight(kind, dtype, 16, 256), dtype).measured()
    assert (seen.different_codes, seen.different_scales) == (0, 0)


def by_modelopt(weight: Array, dtype: str) -> Module:
    """NVFP4 as modelopt 0.47.0's ``NVFP4QTensor.quantize`` has it on a CPU, in torch."""
    import torch

    values = torch.from_numpy(float_values(weight, dtype).copy())
    blocks = values.reshape(len(values), -1, 16)
    whole = values.abs().amax() / torch.tensor(2688.0)
    scale = blocks.abs().amax(2) / (torch.tensor(6.0) * whole)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale).clamp(2.0**-9, 448).to(torch.float8_e4m3fn)
    quotients = (blocks / (scale.float() * whole)[:, :, None]).reshape(values.shape)
    codes = (quotients < 0).to(torch.uint8) << 3
    for midpoint in (0.25, 1.25, 2.5, 5.0):
        codes += quotients.abs() > midpoint
    for midpoint in (0.75, 1.75, 3.5):
        codes += quotients.abs() >= midpoint
    arrays = {
        "weight": (codes[:, 0::2] | (codes[:, 1::2] << 4)).numpy(),
        "weight_scale": scale.view(torch.uint8).numpy(),
        "weight_scale_2": np.array(whole.item(), np.float32),
    }
    return Module(weight, dtype, PRESETS["NVFP4"], arrays, form="modelopt")


def test_every_preset_that_the_kernels_cover_has_a_grid() -> None:
    assert [name for name, scheme in PRESETS.items() if grid_of(scheme) is not None] == list(COVERED)


# --- all else that could be stored


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "W4A16 per row", "W8A8"])
def test_no_other_code_is_exact(scheme: str) -> None:
    """Of one weight, each code but the one that is stored is another than round-to-nearest's."""
    weight = hard_weight("ties", "BF16", 8, 64)
    honest = quantized(weight, "BF16", SCHEMES[scheme])
    local = next(name for name in ("weight_packed", "weight") if name in honest.arrays)
    codes = np.ascontiguousarray(honest.arrays[local]).view(np.uint8)
    own = int(codes[3, 5])
    for other in range(256):
        changed = codes.copy()
        changed[3, 5] = other
        arrays = {**honest.arrays, local: changed.view(honest.arrays[local].dtype)}
        assert bool(replace(honest, arrays=arrays).measured().different_codes) == (other != own)


WITH_SCALES_OF_TILES = [name for name, scheme in SCHEMES.items() if scheme.weights.strategy != "tensor"]
"""The scale of a whole tensor is judged when all rows were seen."""


@pytest.mark.parametrize("scheme", WITH_SCALES_OF_TILES)
def test_no_other_scale_is_exact(scheme: str) -> None:
    honest = quantized(hard_weight("normal", "BF16", 8, 256), "BF16", SCHEMES[scheme])
    scales = honest.arrays["weight_scale"]
    for step in (1, -1):
        changed = scales.copy()
        changed.flat[1] = int(changed.flat[1]) + step
        assert replace(honest, arrays={**honest.arrays, "weight_scale": changed}).measured().different_scales == 1


def test_what_lies_beyond_the_last_column_must_be_zero() -> None:
    weight = hard_weight("normal", "BF16", 4, 36)
    honest = quantized(weight, "BF16", integers(4, group=None))
    assert honest.measured().exact
    words = honest.arrays["weight_packed"].copy()
    words.view(np.uint8)[2, -1] = 1
    assert honest.arrays["weight_packed"].view(np.uint8).shape[1] == 20
    assert replace(honest, arrays={**honest.arrays, "weight_packed": words}).measured().different_codes == 1


def test_a_zero_with_another_sign_is_another_code() -> None:
    weight = bf16(np.array([[448, 0, -0.0, 1]], np.float32))
    honest = quantized(weight, "BF16", SCHEMES["FP8_DYNAMIC"])
    assert honest.arrays["weight"].tolist()[0][1:3] == [0x00, 0x80]
    changed = honest.arrays["weight"].copy()
    changed[0, 1:3] = [0x80, 0x00]
    seen = replace(honest, arrays={**honest.arrays, "weight": changed}).measured()
    assert (seen.different_codes, seen.not_nearest) == (2, 0)


def test_powers_of_two_are_those_of_the_largest_value() -> None:
    scheme = SCHEMES["MXFP4"]
    for amax, code in ((1.0, 125), (1.7421875, 125), (1.75, 126), (1.9921875, 126), (2.0**-126, 0), (2.0**127, 252)):
        weight = bf16(np.full((1, 32), amax, np.float32))
        honest = quantized(weight, "BF16", scheme)
        assert honest.arrays["weight_scale"].tolist() == [[code]]
        assert honest.measured().different_scales == 0
        assert e8m0_values(honest.arrays["weight_scale"])[0, 0] == np.ldexp(1.0, code - 127)
