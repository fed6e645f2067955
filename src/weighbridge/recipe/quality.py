"""What a recipe asks of a build's answers: the ``quality`` key; planning reads it, so it waits for no numpy."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from weighbridge.text.strict_yaml import Strict

LIMITS = ("max_kl", "min_agreement", "max_perplexity_ratio")
DEFAULT_WINDOWS = 64
CARRIED_TEXTS = ("code", "english")
"""Texts that every environment carries, by name: all others are files."""


class Quality(Strict):
    """How far a build's next-token distributions may lie from its source's; a build beyond is not kept.

    Attributes:
        max_kl: mean KL divergence, source from build, in nats a token.
        min_agreement: share of places at which both find the same token the most probable, from 0 to 1.
        max_perplexity_ratio: the build's perplexity by the source's.
        text: a UTF-8 file, relative to the working directory; without it the held-out sources of Python's standard
            library.
        windows: how many stretches of 256 tokens, spread evenly over the text.
        dtype: arithmetic of both models, which are in memory together: 4 bytes a weight each, or 2.
    """

    max_kl: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    min_agreement: float | None = Field(default=None, gt=0, le=1)
    max_perplexity_ratio: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    text: str | None = Field(default=None, min_length=1)
    windows: int = Field(default=DEFAULT_WINDOWS, ge=2, le=1 << 16)
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if all(getattr(self, limit) is None for limit in LIMITS):
            raise ValueError(f"states no limit: {', '.join(LIMITS[:-1])} or {LIMITS[-1]}")
        return self
