"""The plan: what becomes of every tensor of a source, and the exact structure of the output."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from weighbridge.checkpoint.model import Checkpoint, Origin
from weighbridge.checkpoint.modules import Place
from weighbridge.checkpoint.own_names import in_own_names
from weighbridge.families import Family
from weighbridge.formats.codecs import Coded
from weighbridge.formats.declaration import Declaration
from weighbridge.formats.quantization import read_declaration, text_config, without_quantization
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import Tensor
from weighbridge.recipe import LoadedRecipe

Action = Literal["quantize", "keep", "rewrite", "dequantize", "requantize"]


@dataclass(frozen=True, slots=True)
class Stored:
    """How the source stores a module that is quantized already.

    Attributes:
        scheme: what it is quantized with.
        format: whose way of storing it is, as config.json's ``quant_method`` calls it.
        coded: how its codes mean a weight; None where they are not decoded here, and can only be rewritten.
        places: local name (``weight_packed``, ``weight_scale``, …) -> where it lies in the source.
        becomes: where it stays quantized, whether its codes are rewritten in another format, or made BF16 and quantized
            anew.
    """

    scheme: Scheme
    format: str
    coded: Coded | None
    places: Mapping[str, Place]
    becomes: Literal["rewrite", "requantize"] = "requantize"


@dataclass(frozen=True, slots=True)
class Decision:
    """What decided what becomes of a tensor: an entry of the recipe, or a rule of the method.

    Attributes:
        said: the entry in words, as in ``ignore re:.*router``; or the rule, as a sentence.
        path: of the entry in the recipe, as in ``("ignore", 3)``; empty for a rule of the method.
        place: file and line of the entry.
    """

    said: str
    path: tuple[str | int, ...] = ()
    place: str = ""

    def __str__(self) -> str:
        return f"{self.said} ({self.place})" if self.place else self.said


def by_entry(loaded: LoadedRecipe, said: str, *path: str | int) -> Decision:
    """The decision of an entry of a recipe."""
    return Decision(said, path, loaded.location(*path))


@dataclass(frozen=True, slots=True)
class Part:
    """What becomes one module's weight: a source tensor, a rectangle of one, or what a module was quantized to.

    Attributes:
        place: where it lies in the source (its codes, where the source stores the module quantized).
        module: the module it belongs to in the output.
        weight: dtype and shape of the weight itself, unquantized.
        scheme: what it is quantized with in the output; None where it is not.
        decision: what decided.
        outputs: name -> dtype and shape of the tensors that it is written to.
        stored: how the source stores it, where that is quantized already.
        into: for outputs that hold other parts too (fused experts), by name the rows that this part fills.
    """

    place: Place
    module: str
    weight: Tensor
    scheme: Scheme | None
    decision: Decision
    outputs: Mapping[str, Tensor]
    stored: Stored | None = None
    into: Mapping[str, Place] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Name of the source tensor."""
        return self.place.tensor

    @property
    def action(self) -> Action:
        if self.stored is not None:
            return "dequantize" if self.scheme is None else self.stored.becomes
        return "keep" if self.scheme is None else "quantize"

    @property
    def makes_codes(self) -> bool:
        """Whether codes are made for it anew, of floats or of what other codes stand for."""
        return self.action in ("quantize", "requantize")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A weight that the recipe wants quantized, or stored in some way, and that it cannot be done to.

    Attributes:
        decision: what wants it quantized; None where its source has it so.
        rule: id of the rule of lint that says why it cannot be.
    """

    tensor: str
    module: str
    weight: Tensor
    scheme: Scheme
    decision: Decision | None
    rule: str
    reason: str


def tied_heads(config: Mapping[str, Any], modules: Iterable[str]) -> frozenset[str]:
    """Output heads that a config.json says are tied to the input embedding and that are not among `modules`."""
    return frozenset({"lm_head"}.difference(modules)) if ties_head(config) else frozenset()


def ties_head(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that the output head is the input embedding."""
    return bool(config.get("tie_word_embeddings", text_config(config).get("tie_word_embeddings")))


class FusedGroup(NamedTuple):
    """Linears of one parent that a server merges, and those of the group that this parent lacks."""

    parent: str
    members: tuple[str, ...]
    absent: tuple[str, ...]


_Split = tuple[tuple[str, ...], tuple[str, ...]]
"""The members of a group that a parent has, and those that it has not."""


def find_fused_groups(
    modules: Iterable[str], groups: Collection[Sequence[str]], family: Family
) -> tuple[FusedGroup, ...]:
    """Where `groups` of member names occur among modules, with two members or more in one parent module.

    A member is of one group in each parent, though several may name it: of that which the family has under this parent
    alone, or else of that which the parent has most of.
    """
    found: dict[str, set[str]] = {}
    named = {member for members in groups for member in members}
    for module in modules:
        parent, _, member = module.rpartition(".")
        if member in named:
            found.setdefault(parent, set()).add(member)
    alike: dict[tuple[str, frozenset[str]], list[_Split]] = {}  # experts are many
    groups_of: list[FusedGroup] = []
    for parent, present in found.items():
        kind = parent.rpartition(".")[2], frozenset(present)
        if kind not in alike:
            alike[kind] = _groups_of(*kind, groups, family)
        groups_of += [FusedGroup(parent, *split) for split in alike[kind]]
    return tuple(groups_of)


def _groups_of(parent: str, present: frozenset[str], groups: Collection[Sequence[str]], family: Family) -> list[_Split]:
    """The groups of which a parent has two members or more that are of no group before, the likeliest first.

    Args:
        parent: last part of its name.
        present: the members that it has.
    """

    def likelihood(members: Sequence[str]) -> tuple[bool, int, int]:
        shared = len(present.intersection(members))
        return under.get(frozenset(members)) == parent, shared, -len(members)

    under = family.merged_under
    meant = [members for members in groups if under.get(frozenset(members), "") in ("", parent)]
    chosen: list[Sequence[str]] = []
    for members in sorted(meant, key=likelihood, reverse=True):
        shared = present.intersection(members)
        if len(shared) > 1 and all(shared.isdisjoint(other) for other in chosen):
            chosen.append(members)
    return [
        (
            tuple(member for member in members if member in present),
            tuple(member for member in members if member not in present),
        )
        for members in chosen
    ]


def find_merged_groups(modules: Iterable[str], family: Family) -> tuple[FusedGroup, ...]:
    """Where linears that servers merge occur among modules of a family."""
    return find_fused_groups(modules, family.merged.values(), family)


@dataclass(frozen=True)
class Plan:
    """Every decision of a build, made before a byte of weights is read.

    Attributes:
        loaded: the recipe, with its lines.
        source: the checkpoint (or lock) that is planned for.
        parts: what becomes of the source's tensors, in their order.
        obstacles: weights that cannot be treated as asked; a plan with any cannot be built.
        quantization: the quantization config that config.json will hold; None where nothing stays quantized.
        additions: tensors that come from no tensor of the source (scales of the KV cache).
        documents: files that the format asks for beside config.json, by name.
        dropped: tensors of a quantized source that do not go along with its weights -> why.
    """

    loaded: LoadedRecipe
    source: Checkpoint
    parts: tuple[Part, ...]
    obstacles: tuple[Obstacle, ...]
    quantization: Mapping[str, Any] | None
    additions: Mapping[str, Tensor] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def predicted(self) -> Checkpoint:
        """The output, as its headers and config will describe it."""
        outputs = {name: tensor for part in self.parts for name, tensor in part.outputs.items()}
        output = Checkpoint(
            label="the plan",
            structure={**outputs, **self.additions},
            config=self.output_config(),
            schemes=self.schemes,
            origin=Origin(base=self.source.origin.base or self.loaded.recipe.base.model),
        )
        written = read_declaration(output.config, where="the plan")
        if written is None:
            return output
        declared = replace(output, declaration=in_own_names(written, output.modules, output.family, where="the plan"))
        vars(declared)["modules"] = output.modules  # cached, and the same
        return declared

    @cached_property
    def schemes(self) -> Mapping[str, Scheme]:
        """Module -> scheme, for every module that is quantized in the output."""
        return {part.module: part.scheme for part in self.parts if part.scheme is not None}

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Every module of the output that holds a tensor, in order."""
        return tuple(dict.fromkeys(part.module for part in self.parts))

    @property
    def tied_modules(self) -> frozenset[str]:
        """Modules that config.json says are tied to the input embedding and that the source does not store."""
        return tied_heads(self.source.config, self.modules)

    @cached_property
    def fused_groups(self) -> tuple[FusedGroup, ...]:
        """The recipe's fused groups as they occur: those with two members or more in one parent module."""
        return find_fused_groups(self.modules, self.loaded.recipe.fused_groups, self.source.family)

    @property
    def declaration(self) -> Declaration | None:
        """What the output's config declares; None where nothing stays quantized."""
        return self.predicted.declaration

    def output_config(self) -> dict[str, Any]:
        """The output's config: the source's own keys in their order, and the quantization config last."""
        config = without_quantization(self.source.config)
        return config if self.quantization is None else {**config, "quantization_config": self.quantization}
