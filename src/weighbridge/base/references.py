"""Which base a structure belongs to, and which references a recipe holds a build of that base against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weighbridge.base.locks import lock_file, read_reference, source_locks
from weighbridge.checkpoint.lock import ReadLock, expand_lock, read_lock
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.opening import open_checkpoint
from weighbridge.errors import StructureError
from weighbridge.formats.quantization import text_config
from weighbridge.recipe import Explanation, LoadedRecipe, Reference

NO_REFERENCE = "none"


@dataclass(frozen=True)
class AgainstReference:
    """A reference and the differences from it that are explained."""

    reference: Checkpoint
    explanations: Sequence[Explanation] = ()


def find_references(
    loaded: LoadedRecipe, base: Checkpoint | None, named: Sequence[str] = ()
) -> tuple[AgainstReference, ...]:
    """The references to hold a build against, each with the differences that the recipe explains.

    Args:
        base: the lock of the base model; the recipe's own references apply only to the base that they belong to.
        named: references to take in place of the recipe's own, as `open_checkpoint` opens them, or ``none``.

    Raises:
        StructureError, HubError: a reference cannot be opened.
    """
    entries = loaded.recipe.references
    if named:
        opened = [open_checkpoint(name) for name in named if name != NO_REFERENCE]
        return tuple(AgainstReference(reference, explanations_for(reference, entries)) for reference in opened)
    if base is None:
        return ()
    return tuple(
        AgainstReference(expand_lock(read), tuple(entry.explains))
        for entry in entries
        if (read := read_reference(entry.lock)).origin.base == base.origin.base
    )


def explanations_for(reference: Checkpoint, entries: Sequence[Reference]) -> tuple[Explanation, ...]:
    """The explained differences that a recipe lists for this very reference; none for any other."""
    return next((tuple(entry.explains) for entry in entries if entry.lock == reference.origin.repository), ())


def base_of(loaded: LoadedRecipe, source: Checkpoint) -> Checkpoint | None:
    """The lock whose references a recipe's build of `source` is held against.

    That of the base with exactly its structure, or for a conversion, which starts from a build, of the base that the
    build was made from, if there is one here.
    """
    preferred = loaded.recipe.base.model
    itself = base_of_source(source, preferred=preferred)
    if itself is not None or loaded.recipe.method != "convert" or source.declaration is None:
        return itself
    found = _base_of_build(source, preferred=preferred)
    return None if found is None else found[0]


def lock_of(base: Checkpoint | None, source: Checkpoint) -> Checkpoint | None:
    """The lock of the very base that `source` is, by its structure: what its digests are held against.

    Args:
        base: see `base_of`. A conversion's is what its source was made from, and no claim about the source itself.
    """
    return base if base is not None and base.structure == source.structure else None


def base_of_source(source: Checkpoint, *, preferred: str) -> Checkpoint | None:
    """The lock of the base model with exactly this structure: `preferred` (a hub id) before any other that has it."""
    alike = (read for read in _locks(preferred) if read.tensor_count() == len(source.structure))
    return next((lock for lock in map(expand_lock, alike) if lock.structure == source.structure), None)


def base_of_build(build: Checkpoint, *, preferred: str) -> tuple[Checkpoint, str]:
    """The lock of the base that a quantized build was made from, and how it was found.

    A lock of a build names its base. Any other build is of the first base whose config.json has the same sizes,
    `preferred` (a hub id) before all others; and if none has, it is held against `preferred` all the same.

    Raises:
        StructureError: there is no such lock.
    """
    found = _base_of_build(build, preferred=preferred)
    if found is None:
        raise StructureError(
            "is of no base that references/ has a lock of, so no plan can be made for it",
            where=build.label,
            remedy="name the base that it was made from",
        )
    return found


def _base_of_build(build: Checkpoint, *, preferred: str) -> tuple[Checkpoint, str] | None:
    locks = [read for read in _locks(build.origin.base or preferred) if read.lock.quantization is None]
    if build.origin.base and locks and locks[0].origin.repository == build.origin.base:
        return expand_lock(locks[0]), "its own lock names it"
    sizes = _sizes(build.config)
    alike = next((read for read in locks if sizes and _sizes(read.lock.config) == sizes), None)
    if alike is not None:
        return expand_lock(alike), "guessed from the sizes in config.json; give the base itself to be sure"
    if locks and locks[0].origin.repository == preferred:
        return expand_lock(locks[0]), "the recipe's own; no lock here has the sizes of this config.json"
    return None


SIZES = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "moe_intermediate_size", "num_experts", "num_local_experts"),
    "n_routed_experts",
)
"""Keys of a config.json (or of its text_config) that tell one model's size from another's."""


def _sizes(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """The sizes that a config.json states; empty where it states none."""
    holder = {**config, **text_config(config)}
    sizes = tuple(holder.get(key) for key in SIZES)
    return sizes if any(value is not None for value in sizes[1:]) else ()


def _locks(preferred: str) -> Iterator[ReadLock]:
    """The lock of `preferred` first, of whatever kind, then those of all other base models."""
    path = lock_file(preferred)
    if path is not None:
        yield read_lock(path)
    yield from (read for read in source_locks() if read.origin.repository != preferred)
