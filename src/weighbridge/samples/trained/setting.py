"""How a model is trained, and what it reaches: plain values, read without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """How a model is trained.

    Attributes:
        steps: updates of the weights.
        batch: windows of text in a step.
        length: tokens of a window, the first of which says that it begins.
        rate: the highest learning rate (AdamW); it rises over `warmup` steps and falls as a cosine to a tenth.
        warmup: steps until the highest rate.
        balance: weight of the load-balancing loss against that of the next token.
        seed: of the first weights and of which windows are seen.
        threads: torch's threads on the CPU; their number decides the order of sums, and so the bytes.
    """

    steps: int
    batch: int
    length: int
    rate: float
    warmup: int
    balance: float = 0.01
    seed: int = 0
    threads: int = 2

    @property
    def tokens(self) -> int:
        """Tokens that are predicted in all."""
        return self.steps * self.batch * (self.length - 1)


@dataclass(frozen=True)
class Measured:
    """What a model makes of a text.

    Attributes:
        tokens: how many were predicted.
        loss: mean negative log-likelihood of a token, in nats.
        shares: layer -> share of each expert among all choices of that layer's router; each adds up to one.
    """

    tokens: int
    loss: float
    shares: tuple[tuple[float, ...], ...]

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def effective_experts(self) -> tuple[float, ...]:
        """By layer, how many experts used evenly would be as varied: the exponential of the shares' entropy."""
        return tuple(math.exp(-sum(share * math.log(share) for share in layer if share)) for layer in self.shares)
