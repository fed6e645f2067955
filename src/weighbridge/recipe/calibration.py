"""What a recipe says of calibration: which text a model sees before its activations' scales are chosen, and how."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from weighbridge.recipe.names import HUB_ID, REVISION
from weighbridge.text.strict_yaml import Strict


class Dataset(Strict):
    """Where calibration text comes from: a data set of the hub at a pinned revision, or a file.

    Attributes:
        hub: id of a data set, ``org/name``.
        revision: its commit, 40 hex digits.
        config: the configuration of a data set that has several.
        split: which part of a hub's data set.
        file: a ``.jsonl``, ``.parquet`` or ``.txt`` file, relative to the working directory; a line of text is a row.
        column: the column that holds a text, or with ``render: chat`` a list of messages.
    """

    hub: str | None = Field(default=None, pattern=HUB_ID)
    revision: str | None = Field(default=None, pattern=REVISION)
    config: str | None = Field(default=None, pattern=r"^[\w.-]{1,100}$")
    split: str = Field(default="train", pattern=r"^[\w.-]{1,100}$")
    file: str | None = Field(default=None, min_length=1)
    column: str = Field(default="text", min_length=1)

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.hub is None) == (self.file is None):
            raise ValueError("a data set has either hub or file")
        if self.file is not None and not self.file.endswith((".jsonl", ".parquet", ".txt")):
            raise ValueError("a data set's file is .jsonl, .parquet or .txt")
        return self


class Calibration(Strict):
    """How a model is calibrated.

    Attributes:
        dataset: where the text comes from.
        samples: how many rows are used; fewer is an error.
        sequence_length: tokens of a sample at most.
        batch_size: samples that go through the model at a time.
        render: ``text`` takes a row as it is, ``chat`` renders its messages with the model's chat template.
        seed: decides which rows are taken, and their order.
        experts: ``routed`` shows an expert the tokens that its router sends it, ``all`` shows every expert every token
            (its output then counts only where it was routed).
        least_tokens: tokens that each expert must have seen.
    """

    dataset: Dataset
    samples: int = Field(ge=1, le=1 << 20)
    sequence_length: int = Field(ge=1, le=1 << 20)
    batch_size: int = Field(default=1, ge=1, le=4096)
    render: Literal["text", "chat"] = "text"
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    experts: Literal["routed", "all"]
    least_tokens: int = Field(default=1, ge=0)
