"""What is asked of the client inside a serving environment, and what it answers: two JSON files, read strictly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, ValidationError

from weighbridge.errors import WeighbridgeError
from weighbridge.text.strict_yaml import Strict, first_problem

MAX_ANSWER_BYTES = 1 << 30

Region = tuple[tuple[int, int], ...]
"""A box in a tensor: for each axis the first index and the one behind the last."""

Kind = tuple[str, tuple[int, ...]]
"""A tensor's dtype, as torch calls it, and its shape."""


class ServingError(WeighbridgeError):
    """A serving environment that cannot be made, found or asked."""


@dataclass(frozen=True)
class Request:
    """What the client is asked.

    Attributes:
        checkpoint: directory.
        exact: whether everything is computed in float32, by reference in place of kernels and without quantizing
            inputs; otherwise as it would be served, in BFloat16.
        token_ids: texts whose tokens are scored, each of two tokens at least.
        length: tokens that the server makes room for; at least the longest text and what is generated.
        harmless: regular expressions of parameters that may stay unfilled; with any other nothing is generated.
        towers: whether vision and audio towers are loaded too, which asks for the processor's files.
        generate: tokens to generate after each text.
        threads: of torch.
    """

    checkpoint: str
    exact: bool
    token_ids: Sequence[Sequence[int]]
    length: int
    harmless: Sequence[str]
    towers: bool
    generate: int
    threads: int


class Answer(Strict):
    """What the client found.

    Attributes:
        refused: what the server said when it would not load or run the checkpoint; empty if it did both.
        device: kind of device, e.g. ``cpu``.
        replaced: a sentence for each kernel in whose place reference arithmetic stood.
        model: the class that the server chose.
        parameters: the parameters and stored buffers that it made.
        keys: what it read of the checkpoint.
        writes: (key, parameter, region) for each part of a parameter that was written while the key was loaded.
        homeless_writes: writes while no key was being loaded; with any, it is not known which keys were used.
        unfilled: regions of parameters that no key filled.
        not_finite: keys with NaN or infinite elements -> how many.
        shared_scales: keys of global scales -> value.
        log_probabilities: for each text, of its second token on.
    """

    refused: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    device: str = ""
    replaced: tuple[str, ...] = ()
    model: str = ""
    parameters: dict[str, Kind] = Field(default_factory=dict)
    keys: dict[str, Kind] = Field(default_factory=dict)
    writes: tuple[tuple[str, str, Region], ...] = ()
    homeless_writes: Annotated[int, Field(ge=0)] = 0
    unfilled: dict[str, tuple[Region, ...]] = Field(default_factory=dict)
    not_finite: dict[str, int] = Field(default_factory=dict)
    shared_scales: dict[str, float] = Field(default_factory=dict)
    generated: tuple[tuple[int, ...], ...] = ()
    text: tuple[str, ...] = ()
    log_probabilities: tuple[tuple[float, ...], ...] = ()


def read_answer(raw: bytes, *, where: str) -> Answer:
    """Read what a client wrote.

    Raises:
        ServingError: it is no answer.
    """
    try:
        return Answer.model_validate_json(raw)
    except ValidationError as error:
        raise ServingError(f"is no answer of the client ({first_problem(error)})", where=where) from None
