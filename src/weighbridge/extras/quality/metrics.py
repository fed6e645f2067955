"""How far two next-token distributions lie apart, and how sure that is: measures a window, and intervals over windows.

Intervals are of the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)
with windows as the units that are drawn: tokens of one window depend on each other, windows far apart hardly do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = np.ndarray[Any, Any]
Doubles = npt.NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0
_ROWS = 32
"""Rows that are widened to float64 at a time: a large vocabulary makes many bytes of a window."""


@dataclass(frozen=True)
class Measured:
    """Two models on the same windows; each array is float64 [windows], the mean over the tokens of a window.

    Attributes:
        kl: KL divergence of the build's distribution from the source's, sum of p log(p / q), in nats.
        agreement: share of places where both find the same token the most probable.
        source_loss: negative log-probability that the source gives the token which follows, in nats.
        build_loss: the same of the build.
        source_hits: share of places where the source finds the token which follows the most probable.
        build_hits: the same of the build.
    """

    kl: Doubles
    agreement: Doubles
    source_loss: Doubles
    build_loss: Doubles
    source_hits: Doubles
    build_hits: Doubles


@dataclass(frozen=True)
class Interval:
    """An estimate and the percentile interval around it."""

    value: float
    low: float
    high: float


def measure_window(source: Array, build: Array, tokens: Array) -> tuple[float, ...]:
    """Measure one window; the numbers are in the order of the fields of `Measured`.

    Args:
        source: the source's logits or log-probabilities, [tokens, vocabulary]: a constant added to a row is no
            difference. Row t is the distribution of the token after token t; the last is not used.
        build: the build's.
        tokens: the window, [tokens].
    """
    following = tokens[1:]
    sums = np.zeros(6)
    for begin in range(0, len(following), _ROWS):
        part = slice(begin, min(begin + _ROWS, len(following)))
        truth = following[part]
        rows = np.arange(len(truth))
        one, other = _normalized(source[part]), _normalized(build[part])
        first, second = one.argmax(1), other.argmax(1)
        sums += (
            divergences(one, other).sum(),
            (first == second).sum(),
            -one[rows, truth].sum(),
            -other[rows, truth].sum(),
            (first == truth).sum(),
            (second == truth).sum(),
        )
    return tuple((sums / len(following)).tolist())


def divergences(source: Array, build: Array) -> Doubles:
    """KL divergence of each row of `build` from that of `source`, in nats: float64 [rows], never negative.

    Args:
        source: logits or log-probabilities, [rows, vocabulary].
        build: likewise.
    """
    one, other = _normalized(source), _normalized(build)
    found: Doubles = np.maximum((np.exp(one) * (one - other)).sum(1), 0.0)
    return found


def gathered(windows: Sequence[tuple[float, ...]]) -> Measured:
    """The windows that `measure_window` measured, together."""
    return Measured(*np.asarray(windows, np.float64).T)


def interval(values: Sequence[Doubles], statistic: Callable[..., Any] = lambda mean: mean) -> Interval:
    """A statistic of means over windows, and its 95 % interval.

    Args:
        values: per window, float64 [windows] each; the same windows are drawn of all, so that what is common to two
            models cancels where the statistic compares them (the paired bootstrap).
        statistic: of the mean of each of `values`, in their order; it must take arrays.
    """
    table = np.stack(values)
    random = np.random.default_rng(SEED)
    windows = table.shape[1]
    drawn = random.integers(windows, size=(RESAMPLES, windows))
    resampled = np.stack([row[drawn].mean(axis=1) for row in table])
    low, high = np.quantile(statistic(*resampled), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(statistic(*table.mean(axis=1))), float(low), float(high))


def _normalized(logits: Array) -> Doubles:
    """Log-probabilities in float64: in float32 they sum to one to seven digits, which small divergences would show."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide
