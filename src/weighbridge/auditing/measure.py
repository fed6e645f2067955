"""What is measured of a tensor: counts and sums that add up over its rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import add
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Figures = TypeVar("_Figures", bound="DataclassInstance")


@dataclass(frozen=True, slots=True)
class Measure:
    """How rows of a quantized module lie to the base's; two of the same module add up.

    Attributes:
        elements: weights that were looked at.
        rows: rows that were looked at.
        different_codes: codes that are not those of round-to-nearest by this scheme, and rows with something stored
            beyond the last column.
        different_scales: tiles whose scale, or zero point, is not.
        unpredicted: rows for which there was no round-to-nearest to hold them against.
        not_nearest: weights whose code is not the nearest under the stored scale.
        first: index of the first such weight, or of the first of a row that is loose or has strayed; -1 for none.
        loose_rows: rows whose error is larger than nearest rounding under a scale of twice the need could make it.
        nan_codes: codes that stand for NaN.
        saturated: weights more than half a step beyond the largest or smallest code, once rounded to their dtype.
        zeroed: weights that are not zero and whose code is.
        scales: scales that were looked at.
        dead_scales: of these, zero or negative.
        bad_scales: of these, NaN or infinite.
        subnormal_scales: of these, below the smallest normal value of their dtype.
        signal: sum of squares of the base's weights.
        noise: sum of squares of the differences.
        steps: the largest difference, in steps of the grid where the weight lies.
        far: sum of squares of the weights in tiles whose scale is far from what their own values need; of modules that
            are exact only where a scale of the whole could be wrong.
        amax: the largest absolute value of what codes should span, of the base's weights unless an observer chooses a
            range, where a scale of the whole rests on it; NaN where one of them is NaN or infinite.
        moves: of modules that are not exact, how many codes are how many places from the nearest; as
            `weighbridge.auditing.moves.moves_of` counts them, row after row. Empty where it was not asked.
        for_nothing: of these, stored bits that stand for nothing: signs of zeros, and beyond the last column.
        improving: where ranges are searched for, bit n is set where step n lessens the error of any tile.

    Of compensated modules alone:
        strayed_rows: rows whose error is larger than compensation could make it.
        askew_rows: rows whose projection on the base's is further from 1 than compensation could bring it.
        settled: bit n is set where every code of column n is the nearest.
        zero_columns: bit n is set where every weight of column n is stored as zero.
        live_columns: bit n is set where column n would not be zero if it were rounded to nearest.
        dot: sum of the products of the base's weights and of what is stored.
        expected: what the squares of uniform rounding errors under the stored scales add up to.
        ups, downs: codes that are above, and below, the nearest.

    Of smoothed modules, and of those whose search for scales is the supplier's word:
        own_noise: sum of squares of the errors that rounding the base's own weights by min-max would make.

    Of smoothed modules alone:
        own_signal: sum of squares of the base's own weights.
        mapped_noise: sum of squares of the errors of what is stored, with smoothing taken back.
    """

    elements: int = 0
    rows: int = 0
    different_codes: int = 0
    different_scales: int = 0
    unpredicted: int = 0
    not_nearest: int = 0
    first: int = -1
    loose_rows: int = 0
    strayed_rows: int = 0
    nan_codes: int = 0
    saturated: int = 0
    zeroed: int = 0
    scales: int = 0
    dead_scales: int = 0
    bad_scales: int = 0
    subnormal_scales: int = 0
    signal: float = 0.0
    noise: float = 0.0
    steps: float = 0.0
    far: float = 0.0
    amax: float = 0.0
    moves: tuple[int, ...] = ()
    for_nothing: int = 0
    improving: int = 0
    settled: int = -1
    askew_rows: int = 0
    zero_columns: int = -1
    live_columns: int = 0
    dot: float = 0.0
    expected: float = 0.0
    ups: int = 0
    downs: int = 0
    own_signal: float = 0.0
    own_noise: float = 0.0
    mapped_noise: float = 0.0

    def __add__(self, other: Measure) -> Measure:
        return joined(self, other)

    @property
    def snr(self) -> float:
        """Signal to noise in dB; infinite where nothing differs, NaN where a number is none."""
        return signal_to_noise(self.signal, self.noise)

    @property
    def lossless(self) -> bool:
        """Whether what is stored stands for the very values of the base."""
        return self.noise == 0 and self.steps == 0 and not self.nan_codes

    @property
    def exact(self) -> bool:
        """Whether these are the bytes of round-to-nearest under the stored scale of the whole tensor, if it has one."""
        return not (self.different_codes or self.different_scales or self.unpredicted)


@dataclass(frozen=True, slots=True)
class Difference:
    """How a kept tensor differs from the base's; two of the same tensor add up.

    Attributes:
        elements: how many were compared.
        different: how many are not bit-identical.
        largest: the largest absolute difference; NaN where one side is NaN.
        first: index of the first that differs; -1 for none.
    """

    elements: int = 0
    different: int = 0
    largest: float = 0.0
    first: int = -1

    def __add__(self, other: Difference) -> Difference:
        return joined(self, other)


def signal_to_noise(signal: float, noise: float) -> float:
    """The ratio of two sums of squares in dB; infinite where nothing differs, NaN where a number is none."""
    if noise == 0:
        return math.inf
    ratio = signal / noise
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf if ratio == 0 else math.nan


def decibels(signal: float, noise: float) -> str:
    """`signal_to_noise` as a report shows it."""
    value = signal_to_noise(signal, noise)
    return "exact" if value == math.inf else "none" if math.isnan(value) else f"{value:.2f}"


def _larger(one: float, other: float) -> float:
    return one if math.isnan(one) or one > other else other


def _earlier(one: int, other: int) -> int:
    return max(one, other) if min(one, other) < 0 else min(one, other)


def _added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(add, one, other)) if one and other else one or other


_JOIN: dict[str, Callable[[Any, Any], Any]] = {
    "first": _earlier,
    "largest": _larger,
    "steps": _larger,
    "amax": _larger,
    "moves": _added,
    "settled": int.__and__,
    "zero_columns": int.__and__,
    "live_columns": int.__or__,
    "improving": int.__or__,
}


def joined(one: _Figures, other: _Figures) -> _Figures:
    """The figures of two parts of one tensor as those of both: sums, but for what `_JOIN` names."""
    both: dict[str, Any] = {
        field.name: _JOIN.get(field.name, add)(getattr(one, field.name), getattr(other, field.name))
        for field in fields(one)
    }
    return type(one)(**both)
