"""What a recipe file may say: strict models, so that a misspelt key or a wrong type is an error and not a default."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from weighbridge.errors import WeighbridgeError
from weighbridge.patterns import MAX_EXPRESSIONS, REGEX_PREFIX, check_pattern
from weighbridge.quantization import LINEAR, Group, read_scheme
from weighbridge.schemes import PRESETS, Scheme
from weighbridge.structure.names import parse_pattern

Method = Literal["model_free_ptq", "oneshot"]

DIFFERENCE_KINDS = Literal[
    "only-in-reference",
    "only-in-checkpoint",
    "dtype",
    "shape",
    "layout",
    "scheme",
    "quantization-config",
    "kv-cache",
    "config",
    "file",
]


_HUB_ID = r"^[A-Za-z0-9_][\w.-]{0,99}/[A-Za-z0-9_][\w.-]{0,99}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Base(_Strict):
    """The model that is quantized.

    Attributes:
        model: hub id, or ``mini`` for the built-in miniature.
        revision: the commit, 40 hex digits; without it a build takes the newest and lint warns.
        licence: SPDX identifier of the licence that the model's own card declares.
    """

    model: str = Field(pattern=_HUB_ID)
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    licence: str = Field(min_length=1)


class ConfigGroup(_Strict):
    """A scheme and the modules that get it: a preset's name, or compressed-tensors' own arguments spelled out."""

    targets: list[str] = Field(default=[LINEAR], min_length=1)
    scheme: str | None = None
    weights: dict[str, Any] | None = None
    input_activations: dict[str, Any] | None = None
    output_activations: dict[str, Any] | None = None

    @field_validator("targets")
    @classmethod
    def _targets_compile(cls, targets: list[str]) -> list[str]:
        return _checked(targets)

    @field_validator("scheme")
    @classmethod
    def _scheme_is_known(cls, name: str | None) -> str | None:
        return name if name is None else _known_preset(name)

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.scheme is None) == (self.weights is None):
            raise ValueError("a config group has either a scheme or weights")
        self.resolved()
        return self

    def resolved(self) -> Scheme:
        """The scheme of this group."""
        if self.scheme is not None:
            return PRESETS[self.scheme]
        try:
            return read_scheme(self.model_dump(exclude={"targets", "scheme"}), where="")
        except WeighbridgeError as error:
            raise ValueError(str(error).removeprefix(".")) from None


class Explanation(_Strict):
    """One way in which a build legitimately differs from a reference, and why.

    Attributes:
        difference: the kind of difference.
        tensors: a name, or a pattern such as ``model.layers.{0-29}.mlp.down_proj.weight``, whose every name differs so.
        why: the reason, in a sentence.
    """

    difference: DIFFERENCE_KINDS
    tensors: str = Field(min_length=1)
    why: str = Field(min_length=10)

    @field_validator("tensors")
    @classmethod
    def _pattern_is_readable(cls, text: str) -> str:
        try:
            parse_pattern(text, where="tensors")
        except WeighbridgeError as error:
            raise ValueError(error.what) from None
        return text


class Reference(_Strict):
    """A checkpoint that the build must match.

    Attributes:
        lock: name of a structure lock in references/, e.g. ``RedHatAI/gemma-4-26B-A4B-it-FP8-dynamic``.
        explains: the differences that are legitimate; each must occur, and no other may.
    """

    lock: str = Field(pattern=_HUB_ID)
    explains: list[Explanation] = []


class Allowance(_Strict):
    """A lint rule that a recipe breaks knowingly, written ``<rule> because <reason>``."""

    rule: str
    reason: str = Field(min_length=10)


def _parse_allowance(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    rule, because, reason = value.partition(" because ")
    if not because or " " in rule or "/" not in rule:
        raise ValueError(f"{value!r} is not of the form: <rule> because <reason>")
    return {"rule": rule, "reason": reason}


Allowed = Annotated[Allowance, BeforeValidator(_parse_allowance)]


class IgnoreEntry(_Strict):
    """A module that is kept: a name, or ``re:`` and an expression; with a rule that lint shall let pass for it."""

    pattern: str = Field(min_length=1)
    allow: Allowed | None = None

    @field_validator("pattern")
    @classmethod
    def _pattern_compiles(cls, entry: str) -> str:
        return _checked([entry])[0]


def _entry_of(value: Any) -> Any:
    return {"pattern": value} if isinstance(value, str) else value


class Recipe(_Strict):
    """One build: a base model, what is quantized how, what is kept, and what the result is held against."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    description: str = Field(min_length=1)
    base: Base
    method: Method
    scheme: str | None = None
    config_groups: dict[str, ConfigGroup] | None = None
    ignore: list[Annotated[IgnoreEntry, BeforeValidator(_entry_of)]] = []
    allow: list[Allowed] = []
    fused_groups: list[list[str]] = [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]]
    references: list[Reference] = []

    @field_validator("scheme")
    @classmethod
    def _scheme_is_known(cls, name: str | None) -> str | None:
        return name if name is None else _known_preset(name)

    @field_validator("ignore")
    @classmethod
    def _no_entry_twice(cls, entries: list[IgnoreEntry]) -> list[IgnoreEntry]:
        _checked([entry.pattern for entry in entries])
        return entries

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.scheme is None) == (self.config_groups is None):
            raise ValueError("a recipe has either a scheme or config_groups")
        return self

    @property
    def ignored(self) -> tuple[str, ...]:
        """The ignore list as llm-compressor takes it."""
        return tuple(entry.pattern for entry in self.ignore)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The config groups in order; a preset is one group that targets every Linear."""
        if self.config_groups is None:
            assert self.scheme is not None
            return (Group(targets=(LINEAR,), scheme=PRESETS[self.scheme]),)
        return tuple(Group(tuple(group.targets), group.resolved()) for group in self.config_groups.values())


def _checked(entries: list[str]) -> list[str]:
    for entry in entries:
        try:
            check_pattern(entry)
        except WeighbridgeError as error:
            raise ValueError(str(error)) from None
    twice, count = Counter(entries).most_common(1)[0] if entries else ("", 0)
    if count > 1:
        raise ValueError(f"{twice!r} stands twice")
    if sum(entry.startswith(REGEX_PREFIX) for entry in entries) > MAX_EXPRESSIONS:
        raise ValueError(f"more than {MAX_EXPRESSIONS} expressions stand in one list")
    return entries


def _known_preset(name: str) -> str:
    if name not in PRESETS:
        raise ValueError(f"unknown scheme {name!r}; known are {', '.join(PRESETS)}")
    return name
