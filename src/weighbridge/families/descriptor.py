"""What a descriptor of a family says: the schema of the files in ``families/descriptors``."""

from __future__ import annotations

import re
from enum import StrEnum
from itertools import chain
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from weighbridge.formats.schemes import PRESETS, Scheme
from weighbridge.text.strict_yaml import Strict


class Role(StrEnum):
    """What a module does, in the order in which a plan lists it."""

    ATTENTION = "attention"
    MLP = "dense mlp"
    EXPERTS = "experts"
    MIXER = "recurrent mixer"
    ROUTER = "router"
    INDEXER = "indexer"
    LATENT = "latent projections"
    SMALL = "small projections"
    CONVOLUTION = "convolution"
    STATE = "tables and state"
    MTP = "mtp glue"
    NORMS = "norms"
    EMBEDDINGS = "embeddings"
    HEAD = "head"
    VISION = "vision"
    AUDIO = "audio"
    TALKER = "talker and coder"
    OTHER = "other"


Name = Annotated[str, Field(min_length=1)]
"""A regular expression of whole parts of a module's name: ``self_attn`` or ``mlp\\.gate``."""


class _Facts(Strict):
    """Facts as YAML has them: a list for a tuple, a word for a role."""

    model_config = ConfigDict(strict=False)


class Named(_Facts):
    """Modules whose names have any of these parts are of this role."""

    role: Role
    names: tuple[Name, ...] = Field(min_length=1)


class Merge(_Facts):
    """Linears of one parent that a server loads as one.

    Attributes:
        into: what the server calls the whole.
        members: what files call the parts, in the order of their rows.
        under: last part of the parent's name, where others have members of these names and are not merged.
        unquantized: whether the server loads the whole without a quantization config, so that no member may be
            quantized.
    """

    into: str
    members: tuple[str, ...] = Field(min_length=2)
    under: str = ""
    unquantized: bool = False


class Unquantized(_Facts):
    """Linears that a server makes without a quantization config: quantized ones do not load, or load as noise.

    Attributes:
        names: parts of module names.
        server: which, with the version whose source was read.
        read: where in its source.
        why: for people: what happens otherwise.
        unless: presets whose weights it takes all the same: what multiplies by them is its own, and knows no others.
    """

    names: tuple[Name, ...] = Field(min_length=1)
    server: str
    read: str
    why: str = ""
    unless: tuple[str, ...] = ()

    @field_validator("unless")
    @classmethod
    def _are_presets(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(names) - PRESETS.keys())
        if unknown:
            raise ValueError(f"{unknown[0]} is no preset")
        return names

    def takes(self, scheme: Scheme | None) -> bool:
        """Whether the server takes such weights all the same."""
        return scheme is not None and any(scheme.weights == PRESETS[name].weights for name in self.unless)


class Kept(_Facts):
    """Linears that a draft keeps though their role is usually quantized, and why."""

    names: tuple[Name, ...] = Field(min_length=1)
    why: str


class Experts(_Facts):
    """One tensor that holds a matrix of every expert of a layer.

    Attributes:
        tensor: the end of its name, as in ``experts.gate_up_proj`` or ``input_linear.weight``.
        members: the linears in it, in the order in which they lie; each expert's own names.
        axes: ``out_in``: [experts, rows, columns]; ``in_out``: transposed, [experts, columns, rows].
        order: how several members share the rows: in ``halves``, or ``interleaved`` row by row.
        into: what holds the experts one by one, where that is another name than of what holds the tensor.
    """

    tensor: str
    members: tuple[str, ...] = Field(min_length=1)
    axes: Literal["out_in", "in_out"] = "out_in"
    order: Literal["halves", "interleaved"] = "halves"
    into: str = ""

    @model_validator(mode="after")
    def _lies_in_one_way(self) -> Self:
        if self.order == "interleaved" and self.axes == "out_in":
            raise ValueError("interleaved rows are read of transposed matrices alone")
        return self


class Renamed(_Facts):
    """Parts of names that transformers' models have otherwise than files.

    Attributes:
        file: an expression of whole parts, as in ``block_sparse_moe\\.gate``.
        model: what stands there in the model; ``\\1`` is the first group of `file`.
    """

    file: Name
    model: str


class Turned(_Facts):
    """Linears whose rows a server reorders as it loads them: it turns a tensor called ``weight`` within each head, and
    neither scales of rows nor packed codes.

    Attributes:
        names: parts of module names.
        server: which, with the version whose source was read.
        read: where in its source.
    """

    names: tuple[Name, ...] = Field(min_length=1)
    server: str
    read: str


class Published(_Facts):
    """A published checkpoint of the family, and the precision in which its linears are published."""

    model: str
    precision: str = "BF16"


class Unit(_Facts):
    """Facts that several families share; what a descriptor is composed of.

    Attributes:
        roles: the first that matches decides; those of a descriptor go before those of its units, and these before the
            common ones.
        merges: what servers merge.
        unquantized: what servers load unquantized whatever config.json says.
        keeps: what a draft keeps beside what the roles say.
        experts: how fused experts lie.
        embeddings: last parts of the names of embeddings.
        in_transformers: what is called otherwise in transformers' models; all that fit are applied, in their order.
        in_vllm: what is called otherwise in vLLM's models, where the config speaks of modules by those names; likewise.
        turned: what servers reorder as they load it.
    """

    roles: tuple[Named, ...] = ()
    merges: tuple[Merge, ...] = ()
    unquantized: tuple[Unquantized, ...] = ()
    keeps: tuple[Kept, ...] = ()
    experts: tuple[Experts, ...] = ()
    embeddings: tuple[str, ...] = ()
    in_transformers: tuple[Renamed, ...] = ()
    in_vllm: tuple[Renamed, ...] = ()
    turned: tuple[Turned, ...] = ()

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        named: tuple[Named | Unquantized | Turned, ...] = (*self.roles, *self.unquantized, *self.turned)
        lists = [item.names for item in named]
        lists.append(tuple(item.file for item in (*self.in_transformers, *self.in_vllm)))
        for name in (*chain.from_iterable(lists), *chain.from_iterable(item.names for item in self.keeps)):
            try:
                re.compile(name)
            except re.error as problem:
                raise ValueError(f"{name!r} is no regular expression: {problem}") from None
        return self


class Descriptor(Unit):
    """A family of models.

    Attributes:
        name: what people call it.
        architectures: what config.json calls it, under ``architectures``.
        model_types: and under ``model_type``, where no architecture says it.
        params: in place of both, keys that Mistral's own config (params.json) has, all of them.
        units: names of the units that it shares with others.
        published: checkpoints of it.
        facts: where what stands here was read.
    """

    name: str
    architectures: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    published: tuple[Published, ...] = Field(min_length=1)
    facts: str = ""

    @model_validator(mode="after")
    def _is_known_by_something(self) -> Self:
        if bool(self.architectures) is bool(self.params):
            raise ValueError("a family is known by its architectures, or by keys of params.json, and not by both")
        return self
