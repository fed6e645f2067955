"""A family of models: what its parts are called, what servers merge, and what they load quantized."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from weighbridge.families.descriptor import Experts, Merge, Published, Renamed, Role, Turned, Unit, Unquantized
from weighbridge.formats.schemes import Scheme
from weighbridge.text.names import split_name


@dataclass(frozen=True, eq=False)
class Family:
    """A family by its descriptor, with the units that it is composed of and what all families share.

    Attributes:
        name: what people call it; ``unknown`` for what no descriptor describes.
        known: whether a descriptor describes it.
        published: checkpoints of it.
        units: the descriptor itself, its units, and the common facts, in the order in which they decide.
        params: keys of params.json that it is known by; empty for what an architecture in config.json says.
    """

    name: str
    known: bool
    published: tuple[Published, ...]
    units: tuple[Unit, ...]
    params: tuple[str, ...] = ()

    def role_of(self, module: str) -> Role:
        """The role of a module by its name; OTHER where nothing says it."""
        return _role_of(self, module)

    def unquantized(self, module: str, scheme: Scheme | None = None) -> Unquantized | None:
        """Why a server loads a module unquantized whatever config.json says; None where it does not.

        Args:
            scheme: what it is quantized with: of some linears a server takes one and no other.
        """
        found = _unquantized_template(self, split_name(module)[0])
        return next((item for item in found if not item.takes(scheme)), None)

    def kept(self, module: str) -> str:
        """Why a draft keeps a module though its role is usually quantized; empty where it does not."""
        return _kept_template(self, split_name(module)[0])

    def in_transformers(self, name: str) -> str:
        """What a tensor of this name in a file is called in transformers' model of the family."""
        return _renamed(name, (renamed for unit in self.units for renamed in unit.in_transformers))

    def in_vllm(self, module: str) -> str:
        """What a module of this name in a file is called in vLLM's model, where the config names it so."""
        template, numbers = split_name(module)
        return _in_vllm_template(self, template).format(*numbers) if numbers else _in_vllm(self, module)

    def turned(self, module: str) -> Turned | None:
        """What reorders the rows of a module's ``weight`` as it loads it; None where nothing does."""
        return next((item for item, pattern in self._turned if pattern.search(module)), None)

    @cached_property
    def merges(self) -> tuple[Merge, ...]:
        """What servers merge, each merged name once."""
        found = {merge.into: merge for unit in reversed(self.units) for merge in unit.merges}
        return tuple(found.values())

    @cached_property
    def merged(self) -> Mapping[str, tuple[str, ...]]:
        """The merged linear's name -> its members, of those that servers load quantized."""
        return {merge.into: merge.members for merge in self.merges if not merge.unquantized}

    @cached_property
    def merged_under(self) -> Mapping[frozenset[str], str]:
        """Members of a merged linear -> last part of the name of the one parent that has it so; empty for any."""
        return {frozenset(merge.members): merge.under for merge in self.merges if not merge.unquantized}

    def merge_of(self, module: str) -> Merge | None:
        """What servers merge a module into: what lies under its parent alone, or else the widest; None for nothing."""
        parent, _, member = module.rpartition(".")
        places = ("", parent.rpartition(".")[2])
        merges = [merge for merge in self.merges if member in merge.members and merge.under in places]
        quantized = [merge for merge in merges if not merge.unquantized]
        return max(quantized, key=lambda merge: (bool(merge.under), len(merge.members)), default=None)

    @cached_property
    def experts(self) -> tuple[Experts, ...]:
        """How fused experts lie, the family's own layouts first."""
        return tuple(layout for unit in self.units for layout in unit.experts)

    @cached_property
    def _embeddings(self) -> frozenset[str]:
        return frozenset(name for unit in self.units for name in unit.embeddings)

    def is_embedding(self, module: str) -> bool:
        """Whether a module of this name is an embedding: two axes like a linear, but looked up."""
        return module.rpartition(".")[2] in self._embeddings

    @cached_property
    def _roles(self) -> tuple[tuple[Role, re.Pattern[str]], ...]:
        return tuple((named.role, parts(named.names)) for unit in self.units for named in unit.roles)

    @cached_property
    def _unquantized(self) -> tuple[tuple[Unquantized, re.Pattern[str]], ...]:
        own = [(item, parts(item.names)) for unit in self.units for item in unit.unquantized]
        merged = [(_of_merge(merge), _members(merge)) for merge in self.merges if merge.unquantized]
        return (*own, *merged)

    @cached_property
    def _turned(self) -> tuple[tuple[Turned, re.Pattern[str]], ...]:
        return tuple((item, parts(item.names)) for unit in self.units for item in unit.turned)

    @cached_property
    def _keeps(self) -> tuple[tuple[str, re.Pattern[str]], ...]:
        return tuple((item.why, parts(item.names)) for unit in self.units for item in unit.keeps)


def parts(names: Iterable[str]) -> re.Pattern[str]:
    """An expression that finds whole parts of a name: ``mlp`` in ``0.mlp.up_proj``, and not in ``shared_mlp``."""
    return re.compile(rf"(?:^|\.)(?:{'|'.join(names)})(?:\.|$)")


def _renamed(name: str, rules: Iterable[Renamed]) -> str:
    for rule in rules:
        name = re.sub(rf"(?<![^.]){rule.file}(?![^.])", rule.model, name)
    return name


def _of_merge(merge: Merge) -> Unquantized:
    why = f"servers merge {', '.join(merge.members)} into {merge.into}, which they load unquantized"
    return Unquantized(names=merge.members, server="vLLM", read=merge.into, why=why)


def _members(merge: Merge) -> re.Pattern[str]:
    under = rf"{re.escape(merge.under)}\." if merge.under else ""
    return parts([f"{under}{re.escape(member)}" for member in merge.members])


@lru_cache(maxsize=1 << 18)  # every tensor of the largest checkpoints is asked for several times
def _role_of(family: Family, module: str) -> Role:
    return _role_of_template(family, split_name(module)[0])


@lru_cache(maxsize=1 << 14)
def _role_of_template(family: Family, template: str) -> Role:
    """The role of all modules that differ only in their numbers: experts are many, and one is like the other."""
    for role, pattern in family._roles:
        if pattern.search(template):
            return role
    return Role.EMBEDDINGS if family.is_embedding(template) else Role.OTHER


@lru_cache(maxsize=1 << 14)
def _unquantized_template(family: Family, template: str) -> tuple[Unquantized, ...]:
    return tuple(item for item, pattern in family._unquantized if pattern.search(template))


def _in_vllm(family: Family, module: str) -> str:
    return _renamed(module, (renamed for unit in family.units for renamed in unit.in_vllm))


@lru_cache(maxsize=1 << 14)
def _in_vllm_template(family: Family, template: str) -> str:
    """What all modules that differ only in their numbers are called: renaming leaves numbers in their order."""
    return split_name(_in_vllm(family, template.format(*range(template.count("{}")))))[0]


@lru_cache(maxsize=1 << 14)
def _kept_template(family: Family, template: str) -> str:
    return next((why for why, pattern in family._keeps if pattern.search(template)), "")
