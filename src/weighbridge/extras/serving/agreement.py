"""Whether a server computes what a checkpoint means: its log-probabilities against our own dequantized forward.

The bound is the model's own rounding noise, measured on the same tokens; docs/explanation/serving.md derives it.
Nothing here has a tolerance that somebody chose but `DOUBT`, the chance of refusing an honest server.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DOUBT = 1e-6
"""The chance, for each figure, that chance alone exceeds its bound."""

LEVELS = (1 / 4, 1 / 10, 1 / 30, 1 / 100)
"""Shares of tokens at whose noise the two are compared."""

_DEVIATIONS = 4.9
"""Standard deviations that a normal variable exceeds with a chance of `DOUBT`, either way."""

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """One comparison of distributions.

    Attributes:
        share: of tokens whose own noise is larger than `noise`.
        noise: in nats.
        beyond: share of tokens for which server and forward differ by more than twice `noise`.
        allowed: what `beyond` may be.
    """

    share: float
    noise: float
    beyond: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.beyond <= self.allowed


@dataclass(frozen=True)
class Agreement:
    """How a server's log-probabilities lie to ours; all in nats a token.

    Attributes:
        tokens: how many were scored.
        noise: root mean square of what the lower precision changes in our own forward, the largest hundredth cut off.
        difference: root mean square of the server's less ours in the same precision, cut off likewise; infinite if
            the server gave anything but numbers.
        allowed: what the difference may be.
    """

    tokens: int
    noise: float
    difference: float
    allowed: float
    levels: tuple[Level, ...]

    @property
    def holds(self) -> bool:
        return self.difference <= self.allowed and all(level.holds for level in self.levels)


def agreement(served: Scores, exact: Scores, rounded: Scores) -> Agreement:
    """Compare log-probabilities of the same tokens.

    Args:
        served: the server's, [tokens].
        exact: ours, in a higher precision than the server's.
        rounded: ours in the server's precision.
    """
    noise, difference = rounded - exact, served - rounded
    # All are handed over in float32: what two roundings of half a unit in its last place make is no difference.
    unit = float(np.spacing(np.float32(np.abs(exact).max())))
    difference = np.sign(difference) * np.maximum(np.abs(difference) - unit, 0)
    if not np.isfinite(served).all():
        difference = np.where(np.isfinite(served), difference, np.inf)
    count = len(noise)
    magnitudes, differences = np.sort(np.abs(noise)), np.abs(difference)
    levels = tuple(_level(share, magnitudes, differences) for share in LEVELS)
    cut = levels[-1].noise ** 2
    powers = np.minimum(noise**2, cut)
    uncertainty = _DEVIATIONS * float(np.std(powers)) / math.sqrt(count)
    return Agreement(
        tokens=count,
        noise=math.sqrt(float(np.mean(powers))),
        difference=(
            math.sqrt(float(np.mean(np.minimum(differences**2, 2 * cut)))) if np.isfinite(served).all() else math.inf
        ),
        allowed=2 * math.sqrt(float(np.mean(powers)) + uncertainty),
        levels=levels,
    )


def _level(share: float, magnitudes: Scores, differences: Scores) -> Level:
    count = len(magnitudes)
    noise = float(magnitudes[count - 1 - int(share * count)])
    own = float(np.mean(magnitudes > noise))
    return Level(
        share=own,
        noise=noise,
        beyond=float(np.mean(differences > 2 * noise)),
        allowed=largest_share(min(1.0, 2 * largest_share(own, count)), count),
    )


def largest_share(chance: float, count: int) -> float:
    """The share of `count` trials of a chance that is exceeded with a chance of `DOUBT` at most (Chernoff's bound).

    Hoeffding 1963, theorem 1: a share of at least s occurs with a chance of exp(-count x D(s, chance)) at most, where D
    is the relative entropy of the two. The same bound the other way round limits the chance by a share that was seen.
    """
    if chance >= 1:
        return 1.0
    low, high = chance, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if count * _divergence(middle, chance) < -math.log(DOUBT):
            low = middle
        else:
            high = middle
    return high


def _divergence(share: float, chance: float) -> float:
    """Relative entropy, in nats, of a coin of this share to one of that chance."""
    chance = max(chance, 1e-300)
    rest = (1 - share) * math.log((1 - share) / (1 - chance)) if share < 1 else 0.0
    return share * math.log(share / chance) + rest if share > 0 else rest


def scores_of(distributions: Sequence[npt.NDArray[np.float32]], token_ids: Sequence[Sequence[int]]) -> Scores:
    """Log-probabilities of each text's tokens from the second on, one text after another.

    Args:
        distributions: for each text [tokens, vocabulary]; row t is of the token that follows token t.
    """
    return np.concatenate(
        [
            np.asarray(rows[np.arange(len(tokens) - 1), list(tokens[1:])], np.float64)
            for rows, tokens in zip(distributions, token_ids, strict=True)
        ]
    )
