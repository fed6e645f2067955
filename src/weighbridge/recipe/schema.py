"""What a recipe file may say: strict models, so that a misspelt key or a wrong type is an error and not a default."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from weighbridge.errors import WeighbridgeError
from weighbridge.formats.compressed_tensors import read_scheme
from weighbridge.formats.declaration import LINEAR, Group
from weighbridge.formats.observers import MIN_MAX, MOVING_MIN_MAX, OBSERVERS, named, with_observers
from weighbridge.formats.schemes import KV_CACHES, PRESETS, QuantizationArgs, Scheme
from weighbridge.recipe.calibration import Calibration
from weighbridge.recipe.modifiers import GPTQ, SMOOTHING, Modifier
from weighbridge.recipe.names import HUB_ID, REVISION
from weighbridge.recipe.quality import Quality
from weighbridge.recipe.quantization_arguments import check_arguments
from weighbridge.text.names import parse_pattern
from weighbridge.text.patterns import MAX_EXPRESSIONS, REGEX_PREFIX, check_pattern
from weighbridge.text.strict_yaml import Strict

Method = Literal["model_free_ptq", "oneshot", "convert"]
FormatName = Literal["compressed-tensors", "modelopt"]

DIFFERENCE_KINDS = Literal[
    "only-in-reference",
    "only-in-checkpoint",
    "dtype",
    "shape",
    "layout",
    "renamed",
    "scheme",
    "quantization-config",
    "kv-cache",
    "config",
    "file",
]


class Base(Strict):
    """The model that is quantized.

    Attributes:
        model: hub id, or ``mini`` for the built-in miniature.
        revision: the commit, 40 hex digits; without it a build takes the newest and lint warns.
        licence: SPDX identifier of the licence that the model's own card declares.
        recipe: for ``method: convert``, the catalogue's recipe that makes such a base here, for those who may not use
            a stranger's; ``--model mini`` converts what it makes of the miniature.
    """

    model: str = Field(pattern=HUB_ID)
    revision: str | None = Field(default=None, pattern=REVISION)
    licence: str = Field(min_length=1)
    recipe: str | None = Field(default=None, min_length=1)


class ConfigGroup(Strict):
    """A scheme and the modules that get it: a preset's name, or compressed-tensors' own arguments spelled out."""

    targets: list[str] = Field(default=[LINEAR], min_length=1)
    scheme: str | None = None
    weights: dict[str, Any] | None = None
    input_activations: dict[str, Any] | None = None
    output_activations: dict[str, Any] | None = None

    @field_validator("weights", "input_activations", "output_activations")
    @classmethod
    def _arguments_are_known(cls, raw: dict[str, Any] | None) -> dict[str, Any] | None:
        if raw is not None:
            check_arguments(raw)
        return raw

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

    def observed(self) -> Mapping[str, QuantizationArgs]:
        """The arguments by their keys, of those kinds of values that are quantized."""
        scheme = self.resolved()
        said = (scheme.weights, scheme.input_activations, scheme.output_activations)
        return {key: args for key, args in zip(_KINDS, said, strict=True) if args is not None}


_KINDS = ("weights", "input_activations", "output_activations")


class Explanation(Strict):
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


class Reference(Strict):
    """A checkpoint that the build must match.

    Attributes:
        lock: name of a structure lock in references/, e.g. ``RedHatAI/gemma-4-26B-A4B-it-FP8-dynamic``.
        explains: the differences that are legitimate; each must occur, and no other may.
    """

    lock: str = Field(pattern=HUB_ID)
    explains: list[Explanation] = []


class Allowance(Strict):
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


Allowed = Annotated[Allowance, BeforeValidator(_parse_allowance, json_schema_input_type=str)]


class IgnoreEntry(Strict):
    """A module that is kept: a name, or ``re:`` and an expression; with a rule that lint shall let pass for it."""

    pattern: str = Field(min_length=1)
    allow: Allowed | None = None

    @field_validator("pattern")
    @classmethod
    def _pattern_compiles(cls, entry: str) -> str:
        return _checked([entry])[0]


def _entry_of(value: Any) -> Any:
    return {"pattern": value} if isinstance(value, str) else value


class KVCache(Strict):
    """How the keys and values of attention are kept while serving.

    Attributes:
        scheme: ``FP8``: E4M3 with one scale for each layer's keys and one for its values.
        scales: ``calibrated`` writes k_scale and v_scale for each layer; ``none`` only declares the scheme, and servers
            take 1.0.
    """

    scheme: Literal["FP8"]
    scales: Literal["calibrated", "none"]

    @property
    def args(self) -> QuantizationArgs:
        """The scheme as compressed-tensors spells it, with the observer of scales that are calibrated."""
        args = KV_CACHES[self.scheme]
        return args if self.scales == "none" else named(args, MOVING_MIN_MAX)


class Conversion(Strict):
    """What ``method: convert`` changes of a quantized base; with the recipe's format, and no new numbers but scales.

    Attributes:
        dequantize: modules (names, or ``re:`` and an expression) whose weights become BF16 again.
        experts: ``as-stored``; ``split``: one tensor for each expert; ``fused``: one 3-D tensor for all of a layer.
    """

    dequantize: list[str] = []
    experts: Literal["as-stored", "split", "fused"] = "as-stored"

    @field_validator("dequantize")
    @classmethod
    def _patterns_compile(cls, entries: list[str]) -> list[str]:
        return _checked(entries)


class Manufacturer(Strict):
    """Who answers for what is built; bills of materials name them.

    Attributes:
        name: of a person or an organization.
        contact: where vulnerabilities are told: an address of e-mail, or of a page (https).
    """

    name: str = Field(min_length=1, max_length=200)
    contact: str = Field(pattern=r"^(https://[^\s]+|[^\s@]+@[^\s@]+)$", max_length=200)


class Recipe(Strict):
    """One build: a base model, what is quantized how, what is kept, and what the result is held against."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    description: str = Field(min_length=1)
    base: Base
    method: Method
    format: FormatName = "compressed-tensors"
    scheme: str | None = None
    config_groups: dict[str, ConfigGroup] | None = None
    ignore: list[Annotated[IgnoreEntry, BeforeValidator(_entry_of, json_schema_input_type=str | IgnoreEntry)]] = []
    allow: list[Allowed] = []
    fused_groups: list[list[str]] = [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]]
    kv_cache: KVCache | None = None
    modifiers: list[Modifier] = []
    calibration: Calibration | None = None
    convert: Conversion | None = None
    quality: Quality | None = None
    manufacturer: Manufacturer | None = None
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
        if self.method == "convert":
            self._refuse("method: convert", "scheme", "config_groups", "ignore", "kv_cache", "modifiers", "calibration")
            if self.convert is None:
                raise ValueError("method: convert says under convert what is changed")
            return self
        alone = self.kv_cache is not None and self.format == "compressed-tensors"
        if (self.scheme is None) == (self.config_groups is None) and (self.scheme is not None or not alone):
            raise ValueError("a recipe has either a scheme or config_groups; a kv_cache may stand alone")
        if self.config_groups is not None and not self.config_groups and not alone:
            raise ValueError("config_groups has no group; name one, or say a scheme in its place")
        self._refuse(f"method: {self.method}", "convert")
        if self.method == "model_free_ptq":
            self._refuse("method: model_free_ptq", "modifiers", "calibration")
            if self.kv_cache is not None and self.kv_cache.scales == "calibrated":
                raise ValueError("calibrated scales of the KV cache need method: oneshot")
            if self.format == "modelopt":
                raise ValueError("format: modelopt needs calibrated activations, and so method: oneshot or convert")
        if self.format == "modelopt" and self.kv_cache is not None and self.kv_cache.scales == "calibrated":
            raise ValueError(
                "scales of the KV cache are not written in modelopt's format here; declare it: scales: none"
            )
        self._check_modifiers()
        return self

    def _check_modifiers(self) -> None:
        """Refuse modifiers that cannot follow each other, or that leave open which of them quantizes what.

        Raises:
            ValueError: in a sentence.
        """
        names = [modifier.name for modifier in self.modifiers]
        quantizing = {modifier.name: modifier.quantizing for modifier in self.modifiers if modifier.quantizing}
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"modifiers: {twice} stands twice")
        last = next((name for name in reversed(names) if name in SMOOTHING), None)
        if last is not None and any(name in quantizing for name in names[: names.index(last)]):
            raise ValueError(
                f"modifiers: {last} stands behind a modifier that quantizes what it would scale; put it first"
            )
        if "AWQModifier" in names:
            duo = self.modifiers[names.index("AWQModifier")].options.get("duo_scaling", True)
            if duo is not False and any(group.scheme.weights.strategy == "tensor" for group in self.groups):
                raise ValueError(
                    "AWQModifier has no duo_scaling where a whole weight has one scale; say duo_scaling: false"
                )
        said = [group for options in quantizing.values() for group in options.groups or ()]
        unknown = next((group for group in said if group not in (self.config_groups or {})), None)
        if unknown is not None:
            raise ValueError(f"modifiers: there is no config group {unknown[:40]!r}")
        if len(quantizing) > 1 and any(options.groups is None for options in quantizing.values()):
            raise ValueError(
                "modifiers: two quantize; say under groups of each which of the config_groups it quantizes"
            )
        wrong = next((group for group in self.config_groups or {} if said.count(group) != 1), None) if said else None
        if wrong is not None:
            count = "none quantizes" if wrong not in said else "more than one quantizes"
            raise ValueError(f"modifiers: {count} the config group {wrong!r}")
        for name, group in (self.config_groups or {}).items():
            order, modifier = group.resolved().weights.actorder, self._gptq(name)
            denied = modifier is not None and "actorder" in modifier.model_fields_set and modifier.actorder is None
            if order is not None and denied:
                raise ValueError(
                    f"GPTQModifier says actorder: null, and the config group {name!r} {order}; say it once"
                )

    def _gptq(self, name: str) -> GPTQ | None:
        """The GPTQModifier that quantizes a config group; its name is empty where the recipe has a scheme instead."""
        found = next((modifier.GPTQModifier for modifier in self.modifiers if modifier.GPTQModifier is not None), None)
        return found if found is not None and (found.groups is None or name in found.groups) else None

    def compensates(self, name: str) -> bool:
        """Whether GPTQ quantizes a config group."""
        return self._gptq(name) is not None

    @property
    def quantizing(self) -> Mapping[str, tuple[Group, ...]]:
        """The modifiers that quantize, in their order, and what each does: one that rounds where none is named."""
        by_name = dict(zip(self.config_groups or ("",), self.groups, strict=False))
        said = {modifier.name: modifier.quantizing.groups for modifier in self.modifiers if modifier.quantizing}
        return {
            name: tuple(group for key, group in by_name.items() if groups is None or key in groups)
            for name, groups in (said or {"QuantizationModifier": None}).items()
        }

    def passed_by(self, own: Sequence[Group]) -> tuple[str, ...]:
        """Targets that a modifier leaves to another: those of the other's groups that go before some of its own.

        Args:
            own: the groups that it quantizes.
        """
        targets = [(target, group) for group in self.groups for target in group.targets]
        targets.sort(key=lambda item: item[0] == LINEAR)
        last = max((index for index, (_, group) in enumerate(targets) if group in own), default=0)
        return tuple(target for target, group in targets[:last] if group not in own and target != LINEAR)

    @property
    def needing_data(self) -> tuple[str, ...]:
        """The modifiers that must see calibration data, in their order."""
        caches = self.kv_cache is not None and self.kv_cache.scales == "calibrated"
        quantizing = self.quantizing
        first = next(iter(quantizing))
        observing = {
            name
            for name, groups in quantizing.items()
            if name == "GPTQModifier"
            or (caches and name == first)
            or any(group.scheme.needs_calibration or _observes(group.scheme.weights) for group in groups)
        }
        smoothing = [modifier.name for modifier in self.modifiers if modifier.name in SMOOTHING]
        return (*smoothing, *(name for name in quantizing if name in observing))

    def _refuse(self, method: str, *fields: str) -> None:
        said = [field for field in fields if field in self.model_fields_set]
        if said:
            raise ValueError(f"{method} knows no {' and no '.join(said)}")

    @property
    def ignored(self) -> tuple[str, ...]:
        """The ignore list as llm-compressor takes it."""
        return tuple(entry.pattern for entry in self.ignore)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The config groups in order, with their observers named; a conversion has none.

        A preset is one group that targets every Linear.
        """
        if self.scheme is not None:
            return (Group((LINEAR,), self._in_order("", with_observers(PRESETS[self.scheme]))),)
        return tuple(
            Group(tuple(group.targets), self._in_order(name, with_observers(group.resolved())))
            for name, group in (self.config_groups or {}).items()
        )

    def _in_order(self, name: str, scheme: Scheme) -> Scheme:
        """A scheme with the order in which GPTQ takes columns, as its modifier declares it."""
        modifier = self._gptq(name)
        if modifier is None or (scheme.weights.actorder is not None and "actorder" not in modifier.model_fields_set):
            return scheme
        return replace(scheme, weights=replace(scheme.weights, actorder=modifier.actorder))


def _observes(args: QuantizationArgs) -> bool:
    """Whether an observer of weights looks at activations."""
    return OBSERVERS[args.observer or MIN_MAX].needs_data


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
    """A preset's name as compressed-tensors writes it, who reads it by any case."""
    preset = name.upper()
    if preset == "UNQUANTIZED":
        raise ValueError(f"scheme {name} quantizes nothing; keep modules by ignore, or by targets that leave them out")
    if preset not in PRESETS:
        raise ValueError(f"unknown scheme {name[:40]!r}; known are {', '.join(PRESETS)}")
    return preset
