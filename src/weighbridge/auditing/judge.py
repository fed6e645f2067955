"""What the figures of a tensor mean: its verdict, and what decides it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from weighbridge.auditing import compensation
from weighbridge.auditing.arithmetic import whole_scales
from weighbridge.auditing.grid import grid_of
from weighbridge.auditing.measure import Difference, Measure
from weighbridge.auditing.pairing import KeptPair, QuantizedPair
from weighbridge.formats.observers import by_largest_values, unusual_arguments
from weighbridge.planning import FusedGroup

NEGLIGIBLE = 1e-6
"""Share of a weight's energy that may lie in tiles whose scales are far from what they need: under a scale of the whole
that an outlier decides, tiny values have no better one."""

HALF_A_STEP = 0.5 + 2.0**-13
"""Steps by which a code that is the nearest may be off: a half, and what two evaluations of a quotient differ by.

A quotient is 128 steps at most in eight-bit integers, and 16 in floats; see `weighbridge.auditing.work.QUOTIENT_SLACK`.
"""

RELATIVE = 0.35
"""How large a smoothed module's error may be beside its weight, root mean square; 0.23 is measured
(`python -m benchmarks.compensation`)."""

NARROWEST = 0.7
"""How much of the min-max scale a scale may be at least: observers search down to 0.8 of it."""

WORSE = 1.05
"""How large the squared error of a module may be beside that of scales by its largest values, where a search for better
ones is what its supplier says, and nobody else: whatever it is said to look for, it is to find no worse ones."""

WIDEST = 2.0
"""How much larger than the min-max scale a scale may be: one that is rounded up to a power of two is less than that."""


class Verdict(StrEnum):
    """What a tensor is to the base's, from the best to the worst."""

    IDENTICAL = "identical"
    EXACT = "exact"
    RECOMPUTED = "recomputed"
    NEAREST = "nearest"
    DEQUANTIZED = "dequantized"
    PAIRED = "paired"
    COMPENSATED = "compensated"
    DIVERGES = "diverges"


ORDER: Mapping[Verdict, int] = {verdict: position for position, verdict in enumerate(Verdict)}


@dataclass(frozen=True, slots=True)
class Judged:
    """A tensor's verdict.

    Attributes:
        name: the module, or the kept tensor.
        rule: id of the finding where it diverges.
        why: what decides it, where it is not what was hoped for.
        detail: where in the tensor, and how much.
    """

    name: str
    verdict: Verdict
    rule: str = ""
    why: str = ""
    detail: str = ""


def judge_quantized(
    item: QuantizedPair,
    seen: Measure,
    *,
    scale_holds: bool,
    sampled: bool,
    smoothed: bool,
    coarseness: float,
    dampening: float | None,
    promises_scales: bool,
) -> Judged:
    """The verdict of a quantized module.

    Args:
        scale_holds: whether the scale of the whole tensor is the one that its largest value gives.
        sampled: not all rows were seen, so that the scale of the whole may be another than it seems.
        smoothed: whether it was measured against the base's weight times what was recovered from its pair.
        coarseness: limit of its squared error, with smoothing taken back, over that of rounding the base's own weight.
        dampening: of the Hessian by which its rows may make up for errors; None where they may not.
        promises_scales: whether its scales must be those of the largest values.
    """
    worse = not smoothed and item.is_searched_on_its_word and not seen.noise <= WORSE * seen.own_noise
    exact = seen.exact and scale_holds and not smoothed and not worse
    allowed = None if exact else dampening  # what is exact needs no allowance
    certain = exact and not sampled
    broken = _broken(item, seen, exact=certain, smoothed=smoothed, coarseness=coarseness, dampening=allowed)
    if broken is not None or smoothed:
        return broken or Judged(item.name, Verdict.PAIRED)
    if exact:
        return Judged(item.name, Verdict.EXACT)
    if dampening is not None:
        if not promises_scales or (scale_holds and not seen.different_scales and not seen.unpredicted):
            return Judged(item.name, Verdict.COMPENSATED)
        why = "has scales that are not those of the largest values, as the recipe says"
        return Judged(item.name, Verdict.DIVERGES, "audit/scales", why, f"{seen.different_scales:,} differ")
    if seen.exact and worse:
        why = f"has scales that are worse than those of the largest values: they are chosen by {chosen_by(item)}"
        detail = f"the squares of its errors come to {seen.noise:.6g}, and to {seen.own_noise:.6g} under those"
        return Judged(item.name, Verdict.NEAREST, "audit/not-exact", why, detail)
    if seen.unpredicted:
        why = "no round-to-nearest gives the scale that is stored"
    elif seen.exact:
        why = "the scale of the whole tensor is not the one that its largest value gives"
    else:
        why = f"codes or scales are not those of round-to-nearest by {chosen_by(item)}"
    detail = f"{seen.different_codes:,} codes and {seen.different_scales:,} scales differ"
    return Judged(item.name, Verdict.NEAREST, "audit/not-exact", why, detail)


def chosen_by(item: QuantizedPair) -> str:
    """What is said to have chosen the scales of a module."""
    args = item.scheme.weights
    if by_largest_values(args):
        return "the largest value"
    given = ", ".join(f"{key} {value:g}" for key, value in unusual_arguments(args).items())
    return f"{args.observer}{f' ({given})' if given else ''}, as {item.observed_by} says"


def judge_choice(judged: Judged, item: QuantizedPair, tiles: int, stored: float, chosen: float) -> Judged:
    """The verdict of a module with other scales than its observer chooses, with the errors of both.

    Args:
        tiles: how many have another.
        stored, chosen: sums over these of what the observer makes least, under either scale.
    """
    what = "worse choices than those of" if stored > chosen else "not the choices of"
    detail = f"the errors of {tiles:,} tiles come to {stored:.6g} under them, and to {chosen:.6g} under its own"
    return replace(judged, why=f"has scales that are {what} {chosen_by(item)}", detail=f"{judged.detail}; {detail}")


def judge_kept(item: KeptPair, seen: Difference, *, smooth: bool, dequantized: bool) -> Judged:
    """The verdict of a tensor that is stored as a float.

    Args:
        smooth: whether a recipe says that it is divided by what the layers after it are multiplied by.
        dequantized: whether it is what the codes of the base's weight meant, as a recipe says.
    """
    if not seen.different:
        return Judged(item.name, Verdict.IDENTICAL)
    if dequantized:
        return Judged(item.name, Verdict.DEQUANTIZED)
    if smooth:
        return Judged(item.name, Verdict.PAIRED)
    how_far = "by NaN" if math.isnan(seen.largest) else f"by {seen.largest:.6g} at most"
    return Judged(
        item.name,
        Verdict.DIVERGES,
        "audit/kept-differs",
        f"is kept, but is not a copy of the base's{f' {item.copy_of}' if item.copy_of else ''}",
        f"{seen.different:,} of {seen.elements:,} elements differ, {how_far}; the first is element {seen.first:,}",
    )


def scale_holds(
    item: QuantizedPair, stored: np.float32 | None, amax: float, group_amax: float, *, sampled: bool
) -> bool:
    """Whether the scale of a whole tensor is what its largest value, or that of its fused group, gives.

    Args:
        sampled: not all rows were seen, so that the largest value may be larger.
    """
    if stored is None:
        return True
    if not (math.isfinite(amax) and math.isfinite(group_amax)):
        return False
    allowed = _whole_scales(item, [amax, group_amax])
    if any(stored == scale for scale in allowed):
        return True
    if not sampled:
        return False
    own = allowed[0]
    grows = item.form != "compressed-tensors" or item.scheme.weights.strategy == "tensor"
    return bool(stored >= own if grows else stored <= own)


def too_wide(item: QuantizedPair, stored: np.float32 | None, amax: float, *, sampled: bool) -> bool:
    """Whether the scale of a per-tensor scheme is far from what the largest value asks for: too wide, or too narrow."""
    if stored is None or item.scheme.weights.strategy != "tensor" or not math.isfinite(amax):
        return False
    needed = _whole_scales(item, [amax])[0]
    return bool(stored > WIDEST * needed or (stored < NARROWEST * needed and not sampled))


def right_scale(item: QuantizedPair, group_amax: float) -> np.float32 | None:
    """The scale that the largest value of a module, or of its fused group, gives; None in schemes without one."""
    found = _whole_scales(item, [group_amax])
    return found[0] if found else None


def _whole_scales(item: QuantizedPair, amaxes: Sequence[float]) -> list[np.float32]:
    grid = grid_of(item.scheme)
    return [] if grid is None else whole_scales(grid, item.form, item.scheme, item.weight.dtype, amaxes)


def group_amaxes(amaxes: Mapping[str, float], groups: Sequence[FusedGroup]) -> dict[str, float]:
    """Module -> the largest value of all the linears that servers merge with it."""
    found = dict(amaxes)
    for group in groups:
        members = [f"{group.parent}.{member}" for member in group.members]
        present = [amaxes[member] for member in members if member in amaxes]
        found.update({member: max(present) for member in members if member in amaxes})
    return found


def _broken(
    item: QuantizedPair, seen: Measure, *, exact: bool, smoothed: bool, coarseness: float, dampening: float | None
) -> Judged | None:
    """What makes a module no quantization of the base's weight, whatever rounded it.

    Whether codes are the nearest is counted code by code; the largest distance in steps is measured beside it, and no
    verdict stands against that.
    """
    compensated = dampening is not None
    limits = "" if dampening is None else compensation.beyond(seen, item.scheme.weights.num_bits, dampening)
    columns = item.weight.shape[1]
    place = (
        f"; the first is at row {seen.first // columns:,}, column {seen.first % columns:,}" if seen.first >= 0 else ""
    )
    row = f"; the first is row {seen.first // columns:,}" if seen.first >= 0 else ""
    of = f"of {seen.elements:,}"
    cases = (
        (
            seen.elements and not seen.scales and not math.isnan(seen.amax),
            "unknown-scheme",
            "is quantized in a way that is not known here, so that nothing can be said of it",
            str(item.scheme.weights),
        ),
        (math.isnan(seen.amax), "source-not-finite", "the base's weight holds NaN or infinity", ""),
        (
            not exact and (math.isinf(seen.signal) or (seen.signal == 0 and seen.zeroed)),
            "source-out-of-range",
            "the base's weights are so large or so small that their squares are infinite or zero in float32",
            f"the sum of their squares is {seen.signal:.3g}",
        ),
        (
            seen.bad_scales,
            "bad-scale",
            "has scales that are NaN or infinite",
            f"{seen.bad_scales:,} of {seen.scales:,}",
        ),
        (
            seen.dead_scales,
            "dead-scale",
            "has scales that are zero or negative",
            f"{seen.dead_scales:,} of {seen.scales:,}",
        ),
        (seen.nan_codes, "nan-code", "has codes that stand for NaN", f"{seen.nan_codes:,} {of}"),
        (
            not compensated and seen.not_nearest,
            "not-nearest",
            "has codes that are not the nearest to the base's weights under the stored scales",
            f"{seen.not_nearest:,} {of}, {seen.steps:.3g} steps off at most{place}",
        ),
        (
            not (smoothed or compensated) and not seen.not_nearest and not seen.steps <= HALF_A_STEP,
            "steps",
            "is said to be the nearest everywhere, but lies further off than half a step: report this",
            f"{seen.steps:.3g} steps off at most",
        ),
        (
            seen.loose_rows,
            "scale-too-coarse",
            "has rows whose error exceeds that of round-to-nearest with a scale twice too large: scales are too coarse",
            f"{seen.loose_rows:,} of {seen.rows:,} rows{row}",
        ),
        (
            seen.strayed_rows,
            "beyond-compensation",
            "lies further from the base's weight than compensation could bring it",
            f"{seen.strayed_rows:,} of {seen.rows:,} rows, {seen.steps:.3g} steps off at most{row}",
        ),
        (
            not seen.settled,
            "no-first-column",
            "has no column that is plainly rounded to nearest; the first column that GPTQ processes always is",
            f"{seen.steps:.3g} steps off at most",
        ),
        (
            not exact and not seen.far <= NEGLIGIBLE * seen.signal,
            "scale-far-from-need",
            "has scales of tiles that no observer chooses: under 0.7, or over 2.125, of what their values need",
            f"{100 * _ratio(seen.far, seen.signal):.3g} % of the weight's energy lies under them",
        ),
        (
            smoothed and not seen.mapped_noise <= coarseness * seen.own_noise,
            "beyond-smoothing",
            "is coarser than smoothing leaves a weight",
            f"{_ratio(seen.mapped_noise, seen.own_noise):.1f} times the squared error of rounding the base's own",
        ),
        (
            smoothed and not seen.mapped_noise <= RELATIVE**2 * seen.own_signal,
            "beyond-smoothing",
            "is coarser than smoothing leaves a weight",
            f"its error is {100 * math.sqrt(_ratio(seen.mapped_noise, seen.own_signal)):.0f} % of the base's weight",
        ),
        (limits, "beyond-compensation", "is not what compensation makes of the base's weight", f"{limits}{row}"),
    )
    for is_so, rule, why, detail in cases:
        if is_so:
            return Judged(item.name, Verdict.DIVERGES, f"audit/{rule}", why, detail)
    return None


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.inf
