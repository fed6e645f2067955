"""Every limit of the audit from both sides: what lies just within it passes, what lies just beyond it fails."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.audit_rows import SCHEMES, Module, bf16, integers, quantized
from tests.kernel_agreement import hard_weight
from weighbridge.auditing import compensation
from weighbridge.auditing.arithmetic import PRECISIONS, narrowed
from weighbridge.auditing.judge import (
    HALF_A_STEP,
    Judged,
    Verdict,
    judge_quantized,
    right_scale,
    scale_holds,
    too_wide,
)
from weighbridge.auditing.measure import Difference, Measure
from weighbridge.auditing.moves import FURTHEST, PARTS, entropy
from weighbridge.auditing.smoothing import COARSENESS, UNIT_ROUNDOFF
from weighbridge.auditing.work import QUOTIENT_SLACK, STRICT, Allowance

Array = np.ndarray[Any, Any]
ROWS = SCHEMES["W4A16 per row"]


def judged(
    seen: Measure,
    scheme: str = "FP8_DYNAMIC",
    *,
    sampled: bool = False,
    smoothed: bool = False,
    dampening: float | None = None,
    coarseness: float = math.inf,
) -> Judged:
    """The verdict of a module of which this was measured."""
    module = Module(
        np.zeros((4, 64), np.uint16), "BF16", SCHEMES[scheme], {"weight_scale": np.zeros((4, 1), np.uint16)}
    )
    return judge_quantized(
        module.pair,
        seen,
        scale_holds=True,
        sampled=sampled,
        smoothed=smoothed,
        coarseness=coarseness,
        dampening=dampening,
        promises_scales=False,
    )


HONEST = Measure(elements=100, rows=64, scales=4, signal=100.0, noise=1.0, dot=100.0, expected=1.0, steps=0.4)
"""Figures to which no limit objects."""


def beyond(value: float) -> float:
    """Just above a limit."""
    return value * (1 + 1e-9)


# --- rounding to nearest


def test_no_verdict_stands_beside_a_distance_of_more_than_half_a_step() -> None:
    exact = replace(HONEST, steps=HALF_A_STEP)
    assert judged(exact).verdict is Verdict.EXACT
    assert judged(replace(exact, steps=beyond(HALF_A_STEP))).rule == "audit/steps"
    assert judged(replace(exact, steps=math.nan)).rule == "audit/steps"


def test_half_a_step_is_what_the_slack_of_a_quotient_allows() -> None:
    largest_quotient_in_steps = 128
    assert 0.5 + largest_quotient_in_steps * QUOTIENT_SLACK < HALF_A_STEP < 0.5 + 4 * 128 * QUOTIENT_SLACK


@pytest.mark.parametrize(("times", "not_nearest"), [(0.9, 0), (1.1, 1)])
@pytest.mark.parametrize("side", [1, -1])
def test_quotient_may_be_off_by_three_roundings_of_float32(side: int, times: float, not_nearest: int) -> None:
    """A weight that lies beyond the midpoint of 4 and 4.5 by so many times the slack, and is stored as 4."""
    spare = np.float64(4.25 * QUOTIENT_SLACK * times)
    weight = np.array([[448, side * (4.25 + spare), *[0] * 14]], np.float32)
    assert abs(float(weight[0, 1])) != 4.25
    honest = quantized(weight, "F32", SCHEMES["FP8_DYNAMIC"])
    codes = honest.arrays["weight"].copy()
    codes[0, 1] = 0x48 | (0x80 if side < 0 else 0)  # 4
    assert replace(honest, arrays={**honest.arrays, "weight": codes}).measured().not_nearest == not_nearest


def coarse(factor: float) -> Module:
    """A row of which every weight is as far from the nearest place as can be, under so many times the needed scale."""
    scale = np.float32(factor)
    places = np.array([-3, -2, -1, 0, 1, 2] * 10, np.float32)
    weight = np.concatenate([[7.5], (places + np.float32(0.5)) * scale]).astype(np.float32)[None, :64]
    weight = np.pad(weight, ((0, 0), (0, 64 - weight.shape[1])), constant_values=scale / 2)
    codes = np.concatenate([[np.rint(7.5 / scale)], np.tile(places, 11)])[:64].astype(int)
    codes[61:] = 0
    stored = (codes + 8).astype(np.uint8)
    packed = (stored[0::2] | (stored[1::2] << 4)).view(np.int32)[None]
    return Module(weight, "F32", ROWS, {"weight_packed": packed, "weight_scale": np.array([[scale]], np.float32)})


@pytest.mark.parametrize(("factor", "loose"), [(1.9, 0), (2.0, 0), (2.1, 1)])
def test_row_may_be_as_coarse_as_under_twice_the_needed_scale(factor: float, loose: int) -> None:
    seen = coarse(factor).measured()
    assert (seen.not_nearest, seen.loose_rows) == (0, loose)


@pytest.mark.parametrize(
    ("dtype", "scheme", "smallest"),
    [
        ("BF16", "FP8_DYNAMIC", 2.0**-126),
        ("F32", "FP8_DYNAMIC", 2.0**-126),
        ("F16", "FP8_DYNAMIC", 2.0**-14),
        ("BF16", "NVFP4A16", 2.0**-6),
    ],
)
def test_scales_below_the_smallest_normal_value_of_their_dtype_are_counted(
    dtype: str, scheme: str, smallest: float
) -> None:
    """The first scale of four is that value, the second the next smaller one."""
    honest = quantized(hard_weight("normal", dtype, 4, 16), dtype, SCHEMES[scheme])
    scales = honest.arrays["weight_scale"].copy()
    assert scales.shape == (4, 1)
    if scheme == "NVFP4A16":
        scales[:2, 0] = 0x08, 0x07
    elif dtype == "BF16":
        scales[:2, 0] = 0x0080, 0x007F
    else:
        scales[:2, 0] = smallest, np.nextafter(scales.dtype.type(smallest), scales.dtype.type(0))
    seen = replace(honest, arrays={**honest.arrays, "weight_scale": scales}).measured()
    assert (seen.subnormal_scales, seen.dead_scales, seen.bad_scales) == (1, 0, 0)


@pytest.mark.parametrize(("times", "expected"), [(1.0, False), (2.0, False), (2.01, True), (0.71, False), (0.69, True)])
def test_scale_of_a_tensor_may_be_twice_what_its_largest_value_asks_for(times: float, expected: bool) -> None:
    weight = hard_weight("normal", "F32", 8, 64)
    pair = quantized(weight, "F32", SCHEMES["W8A8"]).pair
    per_tensor = replace(pair, scheme=replace(pair.scheme, weights=replace(pair.scheme.weights, strategy="tensor")))
    needed = right_scale(per_tensor, 1.0)
    assert needed is not None
    assert too_wide(per_tensor, np.float32(needed * times), 1.0, sampled=False) == expected
    assert too_wide(per_tensor, np.float32(needed * times), 1.0, sampled=True) == (times > 2)


@pytest.mark.parametrize("step", [-1, 1])
@pytest.mark.parametrize("scheme", ["NVFP4A16"])
def test_scale_of_the_whole_must_be_that_of_the_largest_value_to_the_bit(scheme: str, step: int) -> None:
    module = quantized(hard_weight("normal", "BF16", 8, 64), "BF16", SCHEMES[scheme])
    amax = module.measured().amax
    right = np.float32(module.arrays["weight_global_scale"][0])
    other = np.nextafter(right, np.float32(np.inf * step))
    assert scale_holds(module.pair, right, amax, amax, sampled=False)
    assert scale_holds(module.pair, right, amax / 2, amax, sampled=False), "or of its fused group"
    assert not scale_holds(module.pair, other, amax, amax, sampled=False)


def test_codes_that_agree_with_a_wrong_scale_of_the_whole_are_looked_at_again() -> None:
    """A global scale so small that all block scales are replaced: codes agree with them, and all are zero."""
    weight = hard_weight("normal", "BF16", 8, 64)
    honest = quantized(weight, "BF16", SCHEMES["NVFP4A16"])
    from weighbridge.numbers import load_kernels

    amax = honest.measured().amax
    arrays = load_kernels("cpu").quantize(weight, "BF16", SCHEMES["NVFP4A16"], amax=amax * 2**19)
    wrong = replace(honest, arrays=dict(arrays))
    assert wrong.measured().exact
    again = wrong.measured(Allowance(instead=right_scale(honest.pair, amax)))
    assert again.loose_rows == 8
    assert honest.measured(Allowance(instead=right_scale(honest.pair, amax))).loose_rows == 0


@pytest.mark.parametrize(
    ("signal", "zeroed", "wanted"),
    [(0.0, 0, True), (1e-40, 1, True), (1e300, 0, True), (0.0, 1, False), (math.inf, 0, False)],
)
def test_weights_whose_squares_are_no_numbers_are_exact_or_nothing(signal: float, zeroed: int, wanted: bool) -> None:
    inexact = replace(HONEST, different_codes=1, signal=signal, far=0.0, noise=0.0, zeroed=zeroed)
    assert (judged(inexact).rule != "audit/source-out-of-range") == wanted
    assert judged(replace(HONEST, signal=signal, zeroed=zeroed)).verdict is Verdict.EXACT


@pytest.mark.parametrize(("times", "far"), [(0.71, False), (1.0, False), (2.12, False), (0.69, True), (2.13, True)])
def test_scale_of_a_tile_is_near_what_its_values_need(times: float, far: bool) -> None:
    weight = np.full((1, 64), 7.5, np.float32)
    scales = np.array([[1, times]], np.float32)
    arrays = {"weight_packed": np.full((1, 8), 0xFFFFFFFF, np.uint32).view(np.int32), "weight_scale": scales}
    seen = Module(weight, "F32", integers(4), arrays).measured()
    assert seen.far == (32 * 7.5**2 if far else 0)
    assert seen.signal == 64 * 7.5**2


def test_negligible_share_of_the_energy_may_have_no_better_scale() -> None:
    inexact = replace(HONEST, different_codes=1)
    assert judged(replace(inexact, far=0.99e-4)).verdict is Verdict.NEAREST
    assert judged(replace(inexact, far=1.01e-4)).rule == "audit/scale-far-from-need"
    assert judged(replace(HONEST, far=1.0)).verdict is Verdict.EXACT, "what follows to the bit needs no second look"
    assert judged(replace(HONEST, far=1.0), sampled=True).rule == "audit/scale-far-from-need"


def erased_nvfp4() -> Module:
    """All codes zero, under scales of tiles of one and a global scale so small that zero is the nearest."""
    honest = quantized(hard_weight("normal", "BF16", 8, 64), "BF16", SCHEMES["NVFP4A16"])
    packed, scales = honest.arrays["weight_packed"], honest.arrays["weight_scale"]
    arrays = {"weight_packed": np.zeros_like(packed), "weight_scale": np.full_like(scales, 0x38)}
    return replace(honest, arrays={**arrays, "weight_global_scale": np.array([1e-6], np.float32)})


def agreeing_nvfp4() -> Module:
    """The same, with the scales of tiles and the signs that rounding under that global scale gives."""
    honest = quantized(hard_weight("normal", "BF16", 8, 64), "BF16", SCHEMES["NVFP4A16"])
    negative = (honest.weight >> 15).astype(np.uint8) << 3
    packed = negative[:, 0::2] | (negative[:, 1::2] << 4)
    scales = np.full_like(honest.arrays["weight_scale"], 0x20)
    arrays = {"weight_packed": packed, "weight_scale": scales, "weight_global_scale": np.array([1e-10], np.float32)}
    return replace(honest, arrays=arrays)


def erased_groups() -> Module:
    """One group of each row is zero, under a scale of 64 times what it needs."""
    honest = quantized(hard_weight("normal", "BF16", 64, 512), "BF16", integers(4))
    codes = honest.arrays["weight_packed"].view(np.uint8).copy()
    scales = honest.arrays["weight_scale"].copy()
    codes[:, 16:32] = 0x88
    scales[:, 1] += 6 << 7
    return replace(honest, arrays={**honest.arrays, "weight_packed": codes.view(np.int32), "weight_scale": scales})


def coarse_everywhere() -> Module:
    """Rounded to nearest under four times the scales that are needed."""
    honest = quantized(hard_weight("normal", "BF16", 64, 512), "BF16", integers(4))
    wide = (np.asarray(honest.weight, np.uint32) << np.uint32(16)).view(np.float32)
    wide[:, ::32] = 4 * np.abs(wide).reshape(64, -1, 32).max(2)
    forged = quantized(bf16(narrowed(wide, "BF16")), "BF16", integers(4))
    return replace(honest, arrays={**honest.arrays, "weight_scale": forged.arrays["weight_scale"]})


ERASED: dict[str, tuple[Callable[[], Module], str, float | None, bool]] = {
    "NVFP4 under a tiny global scale": (erased_nvfp4, "NVFP4A16", None, False),
    "NVFP4 that agrees with a tiny global scale, in a sample": (agreeing_nvfp4, "NVFP4A16", None, True),
    "groups of INT4": (erased_groups, "W4A16 per row", None, False),
    "coarse scales of an observer, compensated": (coarse_everywhere, "W4A16 per row", 0.01, False),
}


@pytest.mark.parametrize("kind", ERASED)
def test_weights_are_not_erased_by_scales(kind: str) -> None:
    make, scheme, dampening, sampled = ERASED[kind]
    seen = make().measured(Allowance(dampening=dampening))
    assert judged(seen, scheme, dampening=dampening, sampled=sampled).verdict is Verdict.DIVERGES
    assert seen.far > 0.01 * seen.signal


# --- compensation


@pytest.mark.parametrize(("error", "strayed"), [(0.86, 0), (0.87, 1)])
def test_row_is_off_by_half_a_widest_step_over_the_root_of_the_dampening_at_most(error: float, strayed: int) -> None:
    """With a dampening of 1/2: the root of 3/4 of a step. All weights lie so far above what is stored."""
    weight = np.full((1, 64), 2 + error, np.float32)
    codes = np.full((1, 8), 0xAAAAAAAA, np.uint32).view(np.int32)  # 2, less half of the range
    module = Module(weight, "F32", ROWS, {"weight_packed": codes, "weight_scale": np.ones((1, 1), np.float32)})
    seen = module.measured(Allowance(dampening=0.5))
    assert (seen.strayed_rows, seen.first) == (strayed, 0), "its first row is askew, or has strayed"


@pytest.mark.parametrize(
    ("stored", "dampening", "askew"),
    [
        *[(share, 0.1, outside) for share, outside in ((0.81, 0), (0.79, 1), (1.19, 0), (1.21, 1))],
        *[(share, 0.01, outside) for share, outside in ((0.61, 0), (0.59, 1), (1.39, 0), (1.41, 1))],
        *[(share, 0.001, outside) for share, outside in ((0.26, 0), (0.24, 1), (1.74, 0), (1.76, 1))],
    ],
)
def test_row_holds_most_of_the_bases(stored: float, dampening: float, askew: int) -> None:
    weight = np.full((1, 64), 4, np.float32)
    codes = np.full((1, 8), 0xCCCCCCCC, np.uint32).view(np.int32)  # 4
    scale = np.full((1, 1), stored, np.float32)
    module = Module(weight, "F32", ROWS, {"weight_packed": codes, "weight_scale": scale})
    assert module.measured(Allowance(dampening=dampening)).askew_rows == askew


def moved(*counts: tuple[int, int, int]) -> tuple[int, ...]:
    """Codes by the part of half a step (0 to 7) from their weight and by how many places they moved: with a count."""
    table = np.zeros((PARTS, 2 * FURTHEST + 1), np.int64)
    for part, move, count in counts:
        table[part, FURTHEST + move] += count
    return tuple(table.ravel().tolist())


def of_bits(wanted: float) -> tuple[int, ...]:
    """Moves that hold so many bits each: fewer codes stay, until they do."""
    further = [(3, side * places, 13_000_000) for side in (1, -1) for places in range(2, FURTHEST)]

    def table(stay: int) -> tuple[int, ...]:
        one = (10**9 - stay) // 2
        return moved(*further, (3, 0, stay), (3, 1, one), (3, -1, one))

    stays = range(10**9, 10**9 // 3, -10_000)
    return table(stays[bisect_left(stays, wanted, key=lambda stay: entropy(table(stay), 4))])


def test_row_of_eight_bits_has_less_to_compensate_for() -> None:
    assert compensation.limits_of(8, 0.01).row_projection == compensation.limits_of(8, 0.001).row_projection == 0.2
    assert compensation.limits_of(8, 0.01).projection == compensation.limits_of(8, 0.001).projection == 0.003


@pytest.mark.parametrize(
    ("dampening", "limits"),
    [
        (0.2, (0.06, 0.5, 5, 0.06, 1.3)),
        (0.1, (0.06, 0.5, 5, 0.06, 1.3)),
        (0.0999, (0.06, 0.75, 24, 0.17, 2.4)),
        (0.01, (0.06, 0.75, 24, 0.17, 2.4)),
        (0.00999, (0.12, 0.9, 110, 0.4, 3.2)),
        (0.0, (0.12, 0.9, 110, 0.4, 3.2)),
    ],
)
def test_limits_go_by_the_dampening(dampening: float, limits: tuple[float, ...]) -> None:
    found = compensation.limits_of(4, dampening)
    assert (found.projection, found.moved, found.noise, found.further, found.bits) == limits


Change = Callable[[float], Measure]
OF_MODULES: dict[str, tuple[float, Change]] = {
    "more of the base's weight": (0.06, lambda limit: replace(HONEST, dot=100 * (1 + limit))),
    "less of the base's weight": (0.06, lambda limit: replace(HONEST, dot=100 * (1 - limit))),
    "moved codes": (0.75, lambda limit: replace(HONEST, elements=10**9, not_nearest=math.ceil(10**9 * limit))),
    "squared error": (24, lambda limit: replace(HONEST, noise=24.0, expected=24 / limit)),
    "moves of more than a place": (
        0.17,
        lambda limit: replace(HONEST, moves=moved((3, 0, int(1e9 * (1 - limit))), (3, 2, math.ceil(1e9 * limit)))),
    ),
    "bits": (2.4, lambda limit: replace(HONEST, moves=of_bits(limit))),
    "towards the weight, at rest": (
        0.6,
        lambda limit: replace(
            HONEST, moves=moved((0, 0, 10**13), (0, 1, int(5e11 * (1 + limit))), (0, -1, int(5e11 * (1 - limit))))
        ),
    ),
    "direction": (0.5, lambda limit: replace(HONEST, ups=math.ceil(5e11 * (1 + limit)), downs=int(5e11 * (1 - limit)))),
}


@pytest.mark.parametrize("figure", OF_MODULES)
def test_compensated_module_stays_within_its_limits(figure: str) -> None:
    limit, change = OF_MODULES[figure]
    assert compensation.beyond(change(limit * (1 - 1e-4)), 4, 0.01) == ""
    assert compensation.beyond(change(limit * (1 + 1e-4)), 4, 0.01) != ""
    changed = replace(change(limit * (1 + 1e-4)), different_codes=1)
    assert judged(changed, "W4A16 per row", dampening=0.01).rule == "audit/beyond-compensation"


@pytest.mark.parametrize(("ups", "seen"), [(64, False), (256, False), (257, True)])
def test_few_codes_may_all_have_moved_one_way(ups: int, seen: bool) -> None:
    """By chance: 8 standard deviations above one half of them."""
    assert bool(compensation.beyond(replace(HONEST, ups=ups), 4, 0.01)) == seen


@pytest.mark.parametrize(("rows", "refused"), [(63, False), (64, True)])
def test_few_rows_say_nothing_of_a_module(rows: int, refused: bool) -> None:
    assert bool(compensation.beyond(replace(HONEST, rows=rows, dot=0.0), 4, 0.01)) == refused
    assert compensation.beyond(replace(HONEST, rows=rows, askew_rows=1), 4, 0.01) != ""


def test_exact_module_needs_no_allowance() -> None:
    found = judged(replace(HONEST, askew_rows=3), dampening=0.01)
    assert found.verdict is Verdict.EXACT
    assert judged(replace(HONEST, steps=beyond(HALF_A_STEP)), dampening=0.01).rule == "audit/steps"


def test_column_that_was_erased_is_counted() -> None:
    weight = hard_weight("normal", "BF16", 64, 64)
    honest = quantized(weight, "BF16", ROWS)
    erased = honest.arrays["weight_packed"].view(np.uint8).copy()
    erased[:, 3] = erased[:, 3] & 0xF0 | 8  # column 6 is zero
    seen = replace(honest, arrays={**honest.arrays, "weight_packed": erased.view(np.int32)}).measured(
        Allowance(dampening=0.01)
    )
    assert seen.zero_columns & seen.live_columns == 1 << 6
    assert "1 columns are zero" in compensation.beyond(seen, 4, 0.01)


@pytest.mark.parametrize(("rows", "live"), [(8, False), (9, True)])
def test_column_counts_as_used_from_an_eighth_of_the_rows_on(rows: int, live: bool) -> None:
    values = np.zeros((64, 32), np.float32)
    values[:, 0] = 7
    values[:rows, 5] = 7
    seen = quantized(bf16(values), "BF16", ROWS).measured(Allowance(dampening=0.01))
    assert bool(seen.live_columns >> 5 & 1) == live


def mixed(size: float) -> Array:
    """Errors that are uniform over a step, times a size, mixed by a triangular matrix with ones on its diagonal."""
    random = np.random.default_rng(7)
    errors = (random.random((4096, 32)) - 0.5) * size
    found: Array = errors @ (np.triu(random.standard_normal((32, 32)), 1) * 0.5 + np.eye(32))
    return found.astype(np.float32)


def of_errors(errors: Array) -> Module:
    """A module whose codes are zero, so that its weights are its errors."""
    zeros = np.full((len(errors), errors.shape[1] // 8), 0x88888888, np.uint32).view(np.int32)
    return Module(errors, "F32", ROWS, {"weight_packed": zeros, "weight_scale": np.ones((len(errors), 1), np.float32)})


@pytest.mark.parametrize(("size", "expected"), [(1.0, 1.0), (1.7, 2.89), (1.8, 3.24)])
def test_volume_is_that_of_uniform_rounding_errors(size: float, expected: float) -> None:
    found = of_errors(mixed(size)).volume()
    assert found == pytest.approx(expected, rel=0.02)
    assert (found <= compensation.VOLUME) == (size < 1.75)


def test_digamma_is_what_its_recurrence_says() -> None:
    """psi(x + 1) = psi(x) + 1 / x, and psi(10) = H(9) less Euler's constant."""
    values = np.arange(8, 400) / 2 + 4
    assert np.abs(compensation._digamma(values + 1) - compensation._digamma(values) - 1 / values).max() < 2e-7
    assert abs(float(compensation._digamma(np.array([10.0]))[0]) - 2.251752589066721) < 1e-7


@pytest.mark.parametrize("figures", [HONEST, Difference(7, 2, 0.5, 3)])
def test_figures_of_no_rows_add_nothing(figures: Any) -> None:
    nothing = type(figures)()
    assert nothing + figures == figures + nothing == figures


def test_column_without_an_error_hides_none_of_the_others() -> None:
    errors = mixed(1.8)
    errors[:, 5] = 0
    assert of_errors(errors).volume() > compensation.VOLUME


def test_module_without_an_error_has_no_volume() -> None:
    assert of_errors(np.zeros((64, 32), np.float32)).volume() == 0


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [(48, 32, True), (47, 32, False), (288, 256, True), (287, 256, False), (8192, 4096, True), (8194, 4097, False)],
)
def test_volume_is_asked_of_what_spans_one_and_can_be_held(rows: int, columns: int, expected: bool) -> None:
    assert compensation.has_volume(rows, columns) == expected


# --- smoothing


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_one_rounding_is_off_by_half_of_the_distance_to_the_next_value(dtype: str) -> None:
    assert UNIT_ROUNDOFF[dtype] == PRECISIONS[dtype].epsilon / 2


@pytest.mark.parametrize("modifier", ["AWQModifier", "SmoothQuantModifier"])
def test_smoothed_module_is_no_coarser_than_smoothing_leaves_it(modifier: str) -> None:
    most = COARSENESS.get(modifier, math.inf)
    smoothed = replace(HONEST, own_signal=100.0, own_noise=1.0, mapped_noise=8.0)
    assert judged(smoothed, smoothed=True, coarseness=most).verdict is Verdict.PAIRED
    above = judged(replace(smoothed, mapped_noise=beyond(8.0)), smoothed=True, coarseness=most)
    assert (above.rule == "audit/beyond-smoothing") == (modifier == "AWQModifier")


def test_smoothed_modules_error_is_limited_beside_its_weight() -> None:
    within = replace(HONEST, own_signal=100.0, own_noise=1e9, mapped_noise=100.0 * 0.35**2)
    assert judged(within, smoothed=True).verdict is Verdict.PAIRED
    above = judged(replace(within, mapped_noise=beyond(within.mapped_noise)), smoothed=True)
    assert above.rule == "audit/beyond-smoothing"


@pytest.mark.parametrize(("factor", "above"), [(2, False), (1024, True)])
def test_factors_that_leave_the_others_no_room_are_seen(factor: float, above: bool) -> None:
    """One channel of each group is multiplied by a factor that the layer before it was divided by."""
    weight = hard_weight("normal", "F32", 64, 128)
    factors = np.where(np.arange(128) % 32 == 0, factor, 1).astype(np.float32)
    module = quantized((weight * factors).astype(np.float32), "F32", integers(4))
    most = COARSENESS["AWQModifier"]
    seen = replace(module, weight=weight).measured(replace(STRICT, columns=factors, coarseness=most))
    assert seen.not_nearest == 0
    found = judged(seen, "W4A16 per row", smoothed=True, coarseness=most)
    assert (found.verdict is Verdict.DIVERGES) == above
