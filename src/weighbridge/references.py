"""Which base a structure belongs to, and which references a recipe holds a build of that base against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from weighbridge.catalogue import lock_path, reference_lock, source_locks
from weighbridge.recipe import Explanation, LoadedRecipe, Reference
from weighbridge.structure.checkpoint import Checkpoint
from weighbridge.structure.lock import open_lock
from weighbridge.structure.opening import open_checkpoint

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
        AgainstReference(lock, tuple(entry.explains))
        for entry in entries
        if (lock := reference_lock(entry.lock)).origin.base == base.origin.base
    )


def explanations_for(reference: Checkpoint, entries: Sequence[Reference]) -> tuple[Explanation, ...]:
    """The explained differences that a recipe lists for this very reference; none for any other."""
    return next((tuple(entry.explains) for entry in entries if entry.lock == reference.origin.repository), ())


def base_of(loaded: LoadedRecipe, source: Checkpoint) -> Checkpoint | None:
    """The lock whose references a recipe's build of `source` is held against.

    That of the base with exactly its structure, or for a conversion, which starts from a build, of the base that the
    build was made from.
    """
    preferred = loaded.recipe.base.model
    lock = base_of_source(source, preferred=preferred)
    return base_of_build(source, preferred=preferred) if lock is None and loaded.recipe.method == "convert" else lock


def base_of_source(source: Checkpoint, *, preferred: str) -> Checkpoint | None:
    """The lock of the base model with exactly this structure: `preferred` (a hub id) before any other that has it."""
    return next((lock for lock in _locks(preferred) if lock.structure == source.structure), None)


def base_of_build(build: Checkpoint, *, preferred: str) -> Checkpoint | None:
    """The lock of the base model that shares most tensors (the kept ones) with a quantized build."""

    def shared(lock: Checkpoint) -> int:
        return sum(build.structure.get(name) == tensor for name, tensor in lock.structure.items())

    best = max((lock for lock in _locks(preferred) if lock.declaration is None), key=shared, default=None)
    return best if best is not None and shared(best) else None


def _locks(preferred: str) -> Iterator[Checkpoint]:
    path = lock_path(preferred)
    if path.is_file():
        yield open_lock(path)
    yield from (lock for lock in source_locks() if lock.origin.repository != preferred)
