"""What is different between two checkpoints: tensors, and the quantization that each module gets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weighbridge.account.leaves import shown
from weighbridge.checkpoint.model import BEHAVIOUR_FILES, Checkpoint
from weighbridge.checkpoint.modules import fused_experts, split_experts, split_parameter
from weighbridge.checkpoint.renaming import find_renamings
from weighbridge.families import Family
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import Structure
from weighbridge.recipe.schema import DIFFERENCE_KINDS, Explanation
from weighbridge.text.names import NamePattern, compact, parse_pattern

UNCOMPARED_KEYS = frozenset({"quantization_config", "compression_config", "transformers_version", "_name_or_path"})
"""Keys of config.json that say how it was made, or that are compared by effect."""
"""The name under which differences of the quantization config as a whole stand."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same.

    Attributes:
        kind: what kind of difference.
        name: the tensor, the module (kind ``scheme``), or the config.
        checkpoint: what it is in the checkpoint; empty where it has no such thing; for what is renamed the rule.
        reference: what it is in the reference; for what is renamed what it is called there.
    """

    kind: DIFFERENCE_KINDS
    name: str
    checkpoint: str = ""
    reference: str = ""


@dataclass(frozen=True)
class Explained:
    """The differences between a checkpoint and a reference, held against the entries that explain them.

    Attributes:
        by_entry: each explanation with the differences it accounts for.
        unexplained: differences that no entry accounts for.
        contested: differences that more than one entry accounts for.
        overreaching: entries that account for nothing, or name tensors that do not differ so; each with such a name.
    """

    by_entry: tuple[tuple[Explanation, tuple[Difference, ...]], ...]
    unexplained: tuple[Difference, ...]
    contested: tuple[Difference, ...]
    overreaching: tuple[tuple[Explanation, str], ...]

    @property
    def holds(self) -> bool:
        return not (self.unexplained or self.contested or self.overreaching)


@dataclass(frozen=True)
class DifferenceGroup:
    """Differences of one kind that one pattern of names stands for, or one rule.

    Attributes:
        pattern: of their names; for what is renamed the first of them.
        count: how many there are.
    """

    kind: DIFFERENCE_KINDS
    pattern: NamePattern
    checkpoint: str
    reference: str
    count: int


def diff(checkpoint: Checkpoint, reference: Checkpoint) -> list[Difference]:
    """All differences: tensors, quantization by effect, config.json, and files that change behaviour."""
    return [*diff_structures(checkpoint, reference), *diff_settings(checkpoint, reference)]


def diff_settings(checkpoint: Checkpoint, reference: Checkpoint) -> list[Difference]:
    """The differences of config.json, and of files that change behaviour."""
    return [*_config_differences(checkpoint, reference), *_file_differences(checkpoint, reference)]


def diff_structures(checkpoint: Checkpoint, reference: Checkpoint) -> list[Difference]:
    """The differences of tensors, and of quantization by effect. What is renamed is compared under the other's name."""
    renamings = find_renamings(*_strangers(checkpoint, reference))
    if not renamings:
        tensors = _tensor_differences(checkpoint.structure, reference.structure, _family(checkpoint, reference))
        return [*tensors, *_quantization_differences(checkpoint, reference)]
    names = {own: other for renaming in renamings for own, other in renaming.names.items()}
    ours = {names.get(name, name): tensor for name, tensor in checkpoint.structure.items()}
    renamed = replace(checkpoint, structure=ours, schemes=_renamed_schemes(checkpoint.schemes, names))
    return [
        *(
            Difference("renamed", own, renaming.rule, other)
            for renaming in renamings
            for own, other in renaming.names.items()
        ),
        *_tensor_differences(ours, reference.structure, _family(checkpoint, reference)),
        *_quantization_differences(renamed, reference),
    ]


def _strangers(checkpoint: Checkpoint, reference: Checkpoint) -> tuple[list[str], list[str]]:
    """Names that either side alone has, but for fused experts that the other has one by one."""
    ours, theirs = checkpoint.structure, reference.structure
    family = _family(checkpoint, reference)
    fused = [_fused_against(ours, theirs, family), _fused_against(theirs, ours, family)]
    same = {part for side in fused for name, parts in side.items() for part in (name, *parts)}
    return (
        [name for name in ours if name not in theirs and name not in same],
        [name for name in theirs if name not in ours and name not in same],
    )


def _renamed_schemes(schemes: Mapping[str, Scheme], names: Mapping[str, str]) -> Mapping[str, Scheme]:
    """Schemes by module, under the names that the modules have in the other structure."""
    modules = {split_parameter(own)[0]: split_parameter(other)[0] for own, other in names.items()}
    return {modules.get(module, module): scheme for module, scheme in schemes.items()} if modules else schemes


def explain(differences: Sequence[Difference], entries: Sequence[Explanation]) -> Explained:
    """Hold differences against the entries that are to explain them: each must be accounted for by exactly one."""
    patterns = [parse_pattern(entry.tensors, where="explains") for entry in entries]
    claimed: list[list[Difference]] = [[] for _ in entries]
    unexplained: list[Difference] = []
    contested: list[Difference] = []
    for difference in differences:
        matching = [
            index
            for index, (entry, pattern) in enumerate(zip(entries, patterns, strict=True))
            if entry.difference == difference.kind and difference.name in pattern
        ]
        for index in matching:
            claimed[index].append(difference)
        if len(matching) != 1:
            (contested if matching else unexplained).append(difference)
    overreaching = []
    for entry, pattern, differing in zip(entries, patterns, claimed, strict=True):
        names = {difference.name for difference in differing}
        surplus = next((name for name in pattern if name not in names), None)
        if surplus is not None:
            overreaching.append((entry, surplus))
    disputed = set(contested)
    by_entry = tuple(
        (entry, tuple(difference for difference in differing if difference not in disputed))
        for entry, differing in zip(entries, claimed, strict=True)
    )
    return Explained(by_entry, tuple(unexplained), tuple(contested), tuple(overreaching))


def group(differences: Iterable[Difference]) -> list[DifferenceGroup]:
    """Differences that are alike but for the numbers in their names, as few patterns as they need."""
    alike: dict[tuple[DIFFERENCE_KINDS, str, str], list[str]] = {}
    renamed: dict[str, list[Difference]] = {}
    for difference in differences:
        if difference.kind == "renamed":
            renamed.setdefault(difference.checkpoint, []).append(difference)
        else:
            alike.setdefault((difference.kind, difference.checkpoint, difference.reference), []).append(difference.name)
    by_rule = [
        DifferenceGroup("renamed", NamePattern(found[0].name, ()), rule, found[0].reference, len(found))
        for rule, found in renamed.items()
    ]
    return by_rule + [
        DifferenceGroup(kind, pattern, checkpoint, reference, len(pattern))
        for (kind, checkpoint, reference), names in alike.items()
        for pattern in compact(names)
    ]


def _family(checkpoint: Checkpoint, reference: Checkpoint) -> Family:
    """What both are of; locks of builds hold no config that would say it."""
    return checkpoint.family if checkpoint.family.known else reference.family


def _tensor_differences(ours: Structure, theirs: Structure, family: Family) -> Iterator[Difference]:
    fused_here, fused_there = _fused_against(ours, theirs, family), _fused_against(theirs, ours, family)
    for name in sorted(fused_here):
        yield Difference("layout", name, str(ours[name]), "the same, one tensor for each expert")
    for name in sorted(fused_there):
        yield Difference("layout", name, "the same, one tensor for each expert", str(theirs[name]))
    same = {part for fused in (fused_here, fused_there) for name, parts in fused.items() for part in (name, *parts)}
    differing = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    for name in sorted(differing - same):
        own, other = ours.get(name), theirs.get(name)
        if own is None:
            yield Difference("only-in-reference", name, reference=str(other))
        elif other is None:
            yield Difference("only-in-checkpoint", name, checkpoint=str(own))
        elif own.shape != other.shape:
            yield Difference("shape", name, str(own), str(other))
        else:
            yield Difference("dtype", name, str(own), str(other))


def _quantization_differences(checkpoint: Checkpoint, reference: Checkpoint) -> Iterator[Difference]:
    ours, theirs = checkpoint.declaration, reference.declaration
    own_method = "none" if ours is None else f"{ours.quant_method} {ours.format}".strip()
    other_method = "none" if theirs is None else f"{theirs.quant_method} {theirs.format}".strip()
    if own_method != other_method:
        yield Difference("quantization-config", checkpoint.form.config, own_method, other_method)
    if ours is None or theirs is None:
        return
    if ours.kv_cache != theirs.kv_cache:
        yield Difference(
            "kv-cache", checkpoint.form.config, str(ours.kv_cache or "none"), str(theirs.kv_cache or "none")
        )
    shared = checkpoint.modules.keys() & reference.modules.keys()
    for module in sorted(shared):
        own, other = checkpoint.schemes.get(module), reference.schemes.get(module)
        if own != other:
            yield Difference("scheme", module, _named(own), _named(other))


def _fused_against(fused: Structure, split: Structure, family: Family) -> dict[str, list[str]]:
    """Fused expert tensors of one structure that the other has, dtype and shape alike, one for each expert."""
    found: dict[str, list[str]] = {}
    if fused.keys() <= split.keys():
        return found
    for name, layout in fused_experts(fused, family).items():
        if name not in split:
            parts = list(split_experts(name, fused[name], layout))
            if all(split.get(part.name) == part.tensor for part in parts):
                found[name] = [part.name for part in parts]
    return found


def _config_differences(checkpoint: Checkpoint, reference: Checkpoint) -> Iterator[Difference]:
    """Keys of config.json, where both have one; the quantization config is compared by effect."""
    if not checkpoint.config or not reference.config:
        return
    ours, theirs = dict(_leaves(checkpoint.config)), dict(_leaves(reference.config))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            where = f"{checkpoint.form.config}:{key}"
            yield Difference("config", where, shown(ours.get(key)), shown(theirs.get(key)))


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        if not prefix and key in UNCOMPARED_KEYS:
            continue
        if isinstance(item, dict):
            yield from _leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(item)


def _file_differences(checkpoint: Checkpoint, reference: Checkpoint) -> Iterator[Difference]:
    """Files that change what a model does without touching a weight, where both sides know their digests."""
    ours = {name: fact.sha256 for name, fact in checkpoint.files.items() if name in BEHAVIOUR_FILES and fact.sha256}
    theirs = {name: fact.sha256 for name, fact in reference.files.items() if name in BEHAVIOUR_FILES and fact.sha256}
    if not ours or not theirs:
        return
    for name in sorted(ours.keys() | theirs.keys()):
        own, other = ours.get(name), theirs.get(name)
        if own != other:
            yield Difference("file", name, _digest(own), _digest(other))


def _digest(sha256: str | None) -> str:
    return "absent" if sha256 is None else f"SHA-256 {sha256[:12]}..."


def _named(scheme: Scheme | None) -> str:
    return "not quantized" if scheme is None else str(scheme)
