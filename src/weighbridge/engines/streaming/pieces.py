"""The work of a build in pieces: rectangles of source tensors, and where what becomes of them is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import Place
from weighbridge.engines.rewriting import Rewrite
from weighbridge.formats.observers import Search
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import DTYPE_BITS, Tensor
from weighbridge.numbers import encoding_of
from weighbridge.output.shards import OutputShard
from weighbridge.planning import Part, Plan
from weighbridge.work.pieces import Piece, in_pieces, in_strips
from weighbridge.work.reading import Reader, share_of_piece
from weighbridge.work.regions import Region, coded_rows, rows_at, tensor_regions

COPY = ""


@dataclass(frozen=True, slots=True)
class Strip:
    """Some rows of a part.

    Attributes:
        module: the module, for messages.
        weight: dtype and shape of the rows alone.
        reads: local name -> where it lies in the source; `COPY` for a weight, as floats or as codes.
        scheme: what they are quantized with; None to copy or dequantize them.
        rewrite: for a module whose codes go along, in which form.
        group: index of the modules whose largest value they share: a fused group, or the module alone where its scheme
            has one scale for all of it; None where nothing is shared.
        names: local name -> name of the output tensor; `COPY` is the local name of what is copied.
        writes: local name -> this strip's share of that tensor. What stands once for a module is written by its first
            strip alone.
        shape: shape of the whole part.
        whole: whether the strip is all of its output tensors, so that digests of what it writes are theirs.
    """

    module: str
    weight: Tensor
    reads: Mapping[str, Region]
    scheme: Scheme | None
    rewrite: Rewrite | None
    group: int | None
    names: Mapping[str, str]
    writes: Mapping[str, Region]
    shape: tuple[int, int]
    whole: bool

    @property
    def search(self) -> Search | None:
        """How the ranges of its tiles are searched for, where it is quantized and they are."""
        return None if self.scheme is None or self.rewrite is not None else encoding_of(self.scheme).search

    @property
    def nbytes(self) -> int:
        """Bytes that are read of the source."""
        return sum(region.nbytes for region in self.reads.values())


@dataclass(frozen=True)
class Job:
    """Everything that a worker, here or on another machine, must know beside its piece.

    Attributes:
        source: what reads the source.
        output: directory of the output's shards, which exist already in their full size.
        device: torch device of the kernels, e.g. ``cpu`` or ``cuda:0``.
        digests: whether what is written is hashed.
    """

    source: Reader
    output: Path
    device: str
    digests: bool


def cut(plan: Plan, source: Checkpoint, shards: Sequence[OutputShard]) -> tuple[Piece[Strip], ...]:
    """Cut a plan into pieces, in the order of the source's bytes."""
    tensors, outputs = tensor_regions(source), plan.predicted.structure
    places = {
        name: Region(shard.name, len(shard.layout.head) + begin, outputs[name])
        for shard in shards
        for name, (begin, _) in shard.layout.ranges.items()
    }
    groups = group_numbers(plan)
    strips = (
        # A bias has no share in its weight's scale.
        strip
        for part in plan.parts
        for strip in _strips(
            part, tensors, places, groups.get(part.module) if part.makes_codes else None, plan.loaded.recipe.format
        )
    )
    return in_pieces((strip, share_of_piece(strip.reads.values(), strip.weight.nbytes)) for strip in strips)


def group_numbers(plan: Plan) -> dict[str, int]:
    """Module -> number of the set of modules with which it shares its largest value.

    Modules whose scheme has one scale for the whole tensor need that value before their first row is quantized; members
    of a fused group share one (facts of NVFP4: servers merge them and use one global scale).
    """
    fresh = {part.module: part.scheme for part in plan.parts if part.makes_codes}
    numbers: dict[str, int] = {}
    for fused in plan.fused_groups:
        members = [f"{fused.parent}.{member}" for member in fused.members]
        shared = [module for module in members if _is_global(fresh.get(module), shared=True)]
        number = len(numbers)
        numbers.update(dict.fromkeys(shared, number))
    for module, scheme in fresh.items():
        if _is_global(scheme, shared=False) and module not in numbers:
            numbers[module] = len(numbers)
    return numbers


def _is_global(scheme: Scheme | None, *, shared: bool) -> bool:
    strategies = ("tensor_group",) if shared else ("tensor_group", "tensor")
    return scheme is not None and scheme.weights.strategy in strategies


Share = tuple[Region, int]
"""Where something that belongs to a part lies, and how many rows of the part go with one of its own; 0 for what stands
once for the part."""


def _strips(
    part: Part, tensors: Mapping[str, Region], places: Mapping[str, Region], group: int | None, format: str
) -> Iterator[Strip]:
    """Cut a part into strips of whole rows (whole rows of blocks)."""
    rows = part.weight.shape[0] if part.weight.shape else 0
    columns = math.prod(part.weight.shape[1:])
    unit = own_unit = 1 if part.scheme is None else part.scheme.weights.unit
    rewrite, stored = None, part.stored
    if stored is None:
        reads = {COPY: _share(part.place, tensors, rows)}
    elif part.action == "rewrite":
        rewrite = Rewrite(stored.scheme, stored.format, format)
        reads = {
            local: _share(place, tensors, rows, stored.scheme.weights.unit) for local, place in stored.places.items()
        }
    else:
        assert stored.coded is not None
        unit = math.lcm(unit, stored.coded.unit)
        reads = {COPY: (coded_rows(part.module, stored.coded, stored.places, tensors), 1)}
    names = {COPY if part.action == "keep" else _local(part, name): name for name in part.outputs}
    writes = {local: _share(part.into.get(name, Place(name)), places, rows, own_unit) for local, name in names.items()}
    if part.action == "keep":
        turned = reads[COPY][0].columns is not None
        if not turned:  # rows do not matter to a copy
            rows, columns = part.weight.parameters, 1
        reads, writes = (
            {local: (region if turned else region.flat(), 1) for local, (region, _) in side.items()}
            for side in (reads, writes)
        )
    for strip in in_strips(rows, columns * DTYPE_BITS[part.weight.dtype] // 8, unit):
        first, count = strip.start, len(strip)
        yield Strip(
            module=part.module,
            weight=Tensor(part.weight.dtype, (count, columns)),
            reads={local: region.beside(first, count, each) for local, (region, each) in reads.items()},
            scheme=part.scheme,
            rewrite=rewrite,
            group=group,
            names=names,
            writes={
                local: region.beside(first, count, each)
                for local, (region, each) in writes.items()
                if first == 0 or each
            },
            shape=(rows, columns),
            whole=count == rows and not part.into,
        )


def _local(part: Part, name: str) -> str:
    """The local name of an output; fused experts are called like their module."""
    return "weight" if name == part.module else name.removeprefix(f"{part.module}.")


def _share(place: Place, tensors: Mapping[str, Region], rows: int, unit: int = 1) -> Share:
    """What lies at a place, for a part of so many rows.

    Args:
        unit: how many rows of the part go with one row of a matrix that has fewer.
    """
    region = rows_at(place, tensors, rows)
    if place.expert is not None or region.columns is not None:
        return region, 1
    shape = region.tensor.shape
    return region, 0 if len(shape) != 2 else 1 if shape[0] == rows else unit
