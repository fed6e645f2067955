"""Recipe x source structure -> what becomes of every tensor, and the exact structure of the output.

The plan is made from headers alone. It is what lint reads, what a build is held against, what the engine lays its
files out by, and what a killed build resumes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

from weighbridge.errors import StructureError
from weighbridge.patterns import PatternList, pattern_list
from weighbridge.quantization import LINEAR, Declaration, Group
from weighbridge.recipe import LoadedRecipe
from weighbridge.schemes import Scheme, SchemeMismatch, stored_tensors, to_config
from weighbridge.structure.checkpoint import Checkpoint, Origin
from weighbridge.structure.modules import is_embedding, is_fused_experts, split_experts, split_parameter
from weighbridge.structure.tensors import Tensor

Action = Literal["quantize", "keep"]


@dataclass(frozen=True, slots=True)
class Part:
    """A rectangle of a source tensor that becomes one module's weight, or a whole tensor that is kept.

    Attributes:
        source: name of the source tensor.
        module: the module it belongs to in the output.
        weight: dtype and shape of the part itself, before quantization.
        scheme: what it is quantized with; None where it is kept.
        rule: what decided, with file and line where a recipe's entry did.
        outputs: name -> dtype and shape of what is written for it.
        expert: index along the first axis of a fused [experts, out, in] source; None for a tensor taken whole.
        first_row: where the part begins along the source's rows (the second axis of a fused source).
    """

    source: str
    module: str
    weight: Tensor
    scheme: Scheme | None
    rule: str
    outputs: Mapping[str, Tensor]
    expert: int | None = None
    first_row: int = 0

    @property
    def action(self) -> Action:
        return "keep" if self.scheme is None else "quantize"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A weight that the recipe wants quantized and that its scheme cannot be applied to."""

    tensor: str
    module: str
    weight: Tensor
    scheme: Scheme
    decided_by: str
    rule: str
    reason: str


class FusedGroup(NamedTuple):
    """Linears of one parent that a server merges, and those of the group that this parent lacks."""

    parent: str
    members: tuple[str, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Every decision of a build, made before a byte of weights is read.

    Attributes:
        loaded: the recipe, with its lines.
        source: the checkpoint (or lock) that is planned for.
        parts: what becomes of the source's tensors, in their order.
        obstacles: weights that cannot be quantized as asked; a plan with any cannot be built.
    """

    loaded: LoadedRecipe
    source: Checkpoint
    parts: tuple[Part, ...]
    obstacles: tuple[Obstacle, ...]

    @cached_property
    def predicted(self) -> Checkpoint:
        """The output, as its headers and config will describe it."""
        return Checkpoint(
            label="the plan",
            structure={name: tensor for part in self.parts for name, tensor in part.outputs.items()},
            config=self.output_config(),
            declaration=self.declaration,
            schemes=self.schemes,
            origin=Origin(base=self.source.origin.base or self.loaded.recipe.base.model),
        )

    @cached_property
    def schemes(self) -> Mapping[str, Scheme]:
        """Module -> scheme, for every module that is quantized."""
        return {part.module: part.scheme for part in self.parts if part.scheme is not None}

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Every module of the output that holds a tensor, in order."""
        return tuple(dict.fromkeys(part.module for part in self.parts))

    @property
    def tied_modules(self) -> frozenset[str]:
        """Modules that config.json says are tied to the input embedding and that the source does not store."""
        config = self.source.config
        text = config.get("text_config")
        tied = config.get("tie_word_embeddings", isinstance(text, dict) and text.get("tie_word_embeddings"))
        return frozenset({"lm_head"} - set(self.modules)) if tied else frozenset()

    @cached_property
    def fused_groups(self) -> tuple[FusedGroup, ...]:
        """The recipe's fused groups as they occur: those with two members or more in one parent module."""
        found: dict[tuple[str, int], list[str]] = {}
        groups = self.loaded.recipe.fused_groups
        group_of = {member: index for index, members in enumerate(groups) for member in members}
        for module in self.modules:
            parent, _, member = module.rpartition(".")
            if member in group_of:
                found.setdefault((parent, group_of[member]), []).append(member)
        return tuple(
            FusedGroup(
                parent,
                tuple(member for member in groups[index] if member in present),
                tuple(member for member in groups[index] if member not in present),
            )
            for (parent, index), present in found.items()
            if len(present) > 1
        )

    @property
    def declaration(self) -> Declaration:
        """What the output's config.json declares."""
        groups = self.loaded.recipe.groups
        formats = {group.scheme.format for group in groups}
        return Declaration(
            quant_method="compressed-tensors",
            format=formats.pop() if len(formats) == 1 else "mixed-precision",
            groups=groups,
            ignore=self.loaded.recipe.ignored,
        )

    def output_config(self) -> dict[str, Any]:
        """The output's config.json: the source's own, and the quantization config as compressed-tensors writes it."""
        declaration = self.declaration
        return {
            **self.source.config,
            "quantization_config": {
                "config_groups": {
                    f"group_{index}": {"targets": list(group.targets), **to_config(group.scheme)}
                    for index, group in enumerate(declaration.groups)
                },
                "format": declaration.format,
                "ignore": list(declaration.ignore),
                "kv_cache_scheme": None,
                "quant_method": declaration.quant_method,
                "quantization_status": "compressed",
                "version": version("compressed-tensors"),
            },
        }


def make_plan(loaded: LoadedRecipe, source: Checkpoint) -> Plan:
    """Decide what becomes of every tensor of `source`.

    Decisions are llm-compressor's own: fused experts are split first; then a ``.weight`` whose module is targeted,
    not ignored, and does not end in ``norm`` is quantized (``match_quantizable_tensors``, compressed-tensors 0.19.0).

    Raises:
        StructureError: two tensors of the source would be written under one name.
    """
    chooser = _Chooser(loaded)
    parts: list[Part] = []
    obstacles: list[Obstacle] = []
    for name, tensor in source.structure.items():
        for piece in _pieces(name, tensor):
            module, weight = split_parameter(piece.name)[0], piece.weight
            scheme, rule = chooser.choose(piece)
            outputs = {piece.name: weight}
            if scheme is not None:
                try:
                    stored = _stored(scheme, weight)
                    outputs = {f"{module}.{local}": tensor for local, tensor in stored.items()}
                except SchemeMismatch as mismatch:
                    obstacles.append(Obstacle(name, module, weight, scheme, rule, mismatch.rule, str(mismatch)))
                    scheme = None
            parts.append(Part(name, module, weight, scheme, rule, outputs, piece.expert, piece.first_row))
    written: set[str] = set()
    for part in parts:
        if not written.isdisjoint(part.outputs):
            twice = min(written & part.outputs.keys())
            raise StructureError(f"two of its tensors would both become {twice!r}", where=source.label)
        written.update(part.outputs)
    return Plan(loaded=loaded, source=source, parts=tuple(parts), obstacles=tuple(obstacles))


# Experts are many and alike.
_stored = lru_cache(maxsize=1024)(stored_tensors)


class _Piece(NamedTuple):
    """A part before anything is decided: what it would be called if it were kept."""

    name: str
    weight: Tensor
    expert: int | None = None
    first_row: int = 0


def _pieces(name: str, tensor: Tensor) -> Iterator[_Piece]:
    """The pieces that a source tensor falls into before anything is quantized: experts one by one, the rest whole."""
    if not is_fused_experts(name, tensor):
        yield _Piece(name, tensor)
        return
    yield from (_Piece(*part) for part in split_experts(name, tensor))


class _Chooser:
    """Chooses the scheme of a part, and names the rule that chose it."""

    def __init__(self, loaded: LoadedRecipe) -> None:
        self.recipe = loaded.recipe
        self.ignored = pattern_list(self.recipe.ignored)
        self.ignore_rules = [
            f"ignore {entry} ({loaded.location('ignore', index)})" for index, entry in enumerate(self.recipe.ignored)
        ]
        names = list(self.recipe.config_groups or ["scheme"])
        path: tuple[str, ...] = ("config_groups",) if self.recipe.config_groups else ()
        self.groups: list[tuple[Group, PatternList, str]] = [
            (group, pattern_list(group.targets), f"{name} ({loaded.location(*path, name)})")
            for name, group in zip(names, self.recipe.groups, strict=True)
        ]
        if self.recipe.method == "oneshot":  # names and expressions go before the class; model_free_ptq takes the first
            self.groups.sort(key=lambda item: LINEAR in item[0].targets)

    def choose(self, piece: _Piece) -> tuple[Scheme | None, str]:
        module, parameter = split_parameter(piece.name)
        if parameter != "weight":
            return None, "only tensors named .weight are quantized"
        if module.endswith("norm"):
            return None, "modules whose name ends in norm are kept"
        if self.recipe.method == "oneshot" and (len(piece.weight.shape) != 2 or is_embedding(module)):
            return None, "oneshot quantizes Linear modules"
        group = next(
            (item for item in self.groups if LINEAR in item[0].targets or item[1].first(module) is not None), None
        )
        if group is None:
            return None, "no config group targets it"
        index = self.ignored.first(module)
        if index is not None:
            return None, self.ignore_rules[index]
        return group[0].scheme, group[2]
