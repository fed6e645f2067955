"""The work of a build in pieces: rectangles of source tensors, and where what becomes of them is written.

A piece is cut by a fixed size, never by the number of workers or the memory at hand, so that a journal written with one
setting is understood under another, and the bytes are the same under all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.engines.rewriting import Rewrite
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import DTYPE_BITS, Tensor
from weighbridge.machine.columns import Columns
from weighbridge.machine.standing import Standing
from weighbridge.output.shards import OutputShard
from weighbridge.planning import Part, Place, Plan

PIECE_BYTES = 4 * 1024 * 1024
"""Source bytes of a piece, unless a single row (or row of blocks) is larger."""


COPY = ""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a file, named as it is in the source or output directory."""

    file: str
    offset: int
    size: int


class Read(NamedTuple):
    """Bytes of the source, and what they are.

    Attributes:
        span: of rows that lie as columns: the whole matrix in which they do.
        tensor: dtype and shape of what is read.
        columns: where they lie in that matrix; None for rows that lie as such.
    """

    span: Span
    tensor: Tensor
    columns: Columns | None = None


@dataclass(frozen=True, slots=True)
class Strip:
    """Some rows of a part.

    Attributes:
        module: the module, for messages.
        weight: dtype and shape of the rows alone.
        reads: local name -> what is read; `COPY` for a float tensor.
        scheme: what they are quantized with; None to copy or dequantize them.
        rewrite: for a module that the source stores quantized, what becomes of it before anything else.
        group: the fused group whose largest value they share (an index), or None.
        names: local name -> name of the output tensor; `COPY` is the local name of what is copied.
        writes: local name -> this strip's share of that tensor. What stands once for a module is written by its first
            strip alone.
        shape: shape of the whole part.
        whole: whether the strip is all of its output tensors, so that digests of what it writes are theirs.
    """

    module: str
    weight: Tensor
    reads: Mapping[str, Read]
    scheme: Scheme | None
    rewrite: Rewrite | None
    group: int | None
    names: Mapping[str, str]
    writes: Mapping[str, Span]
    shape: tuple[int, int]
    whole: bool

    @property
    def is_rewritten(self) -> bool:
        """Whether what is stored is written in another form, or as floats; else weights are quantized or copied."""
        return self.rewrite is not None and (self.scheme is None or self.rewrite.target_format is not None)


@dataclass(frozen=True, slots=True)
class Piece:
    """Strips that are worked on together; the unit of the journal."""

    number: int
    strips: tuple[Strip, ...]

    @property
    def source_bytes(self) -> int:
        return sum(read.tensor.nbytes for strip in self.strips for read in strip.reads.values())

    @property
    def files(self) -> frozenset[str]:
        """Output shards that this piece writes to."""
        return frozenset(place.file for strip in self.strips for place in strip.writes.values())


@dataclass(frozen=True)
class Job:
    """Everything that a worker, here or on another machine, must know beside its piece.

    Attributes:
        source: directory of the source's shards.
        standings: these shards as they were when their headers were read.
        output: directory of the output's shards, which exist already in their full size.
        device: torch device of the kernels, e.g. ``cpu`` or ``cuda:0``.
        digests: whether what is written is hashed.
    """

    source: Path
    standings: Mapping[str, Standing | None]
    output: Path
    device: str
    digests: bool


def cut(plan: Plan, source: Checkpoint, shards: Sequence[OutputShard]) -> tuple[Piece, ...]:
    """Cut a plan into pieces, in the order of the source's bytes."""
    places = _places(shards)
    reads = _reads(source)
    groups = group_numbers(plan)
    pieces: list[Piece] = []
    pending: list[Strip] = []
    pending_bytes = 0
    for part in plan.parts:
        regions = _regions(part, source, reads, places)
        for strip in _strips(part, regions, groups.get(part.module), plan.loaded.recipe.format):
            if pending and pending_bytes + strip.weight.nbytes > PIECE_BYTES:
                pieces.append(Piece(len(pieces), tuple(pending)))
                pending, pending_bytes = [], 0
            pending.append(strip)
            pending_bytes += strip.weight.nbytes
    if pending:
        pieces.append(Piece(len(pieces), tuple(pending)))
    return tuple(pieces)


def group_numbers(plan: Plan) -> dict[str, int]:
    """Module -> number of the set of modules with which it shares its largest value.

    Modules whose scheme has one scale for the whole tensor need that value before their first row is quantized; members
    of a fused group share one (facts of NVFP4: servers merge them and use one global scale).
    """
    # A bias has the module of its weight, and may stand after it.
    fresh = {part.module: part.scheme for part in plan.parts if part.action in ("quantize", "requantize")}
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


def _places(shards: Iterable[OutputShard]) -> dict[str, Span]:
    return {
        name: Span(shard.name, len(shard.layout.head) + begin, end - begin)
        for shard in shards
        for name, (begin, end) in shard.layout.ranges.items()
    }


def _reads(source: Checkpoint) -> dict[str, Span]:
    return {
        name: Span(shard, header.data_offset + stored.begin, stored.end - stored.begin)
        for shard, header in source.shards.items()
        for name, stored in header.tensors.items()
    }


class _Region(NamedTuple):
    """Where a part's share of a tensor lies.

    Attributes:
        span: its bytes, which are contiguous.
        tensor: its dtype and shape; [rows, columns] for rows of a fused tensor.
        columns: for rows that lie as columns, where; the bytes are those of the whole matrix then.
    """

    span: Span
    tensor: Tensor
    columns: Columns | None = None


@dataclass(frozen=True)
class _Regions:
    """Everything that a part is read from and written to, by local name, and the names of what it is written to."""

    reads: Mapping[str, _Region]
    writes: Mapping[str, _Region]
    names: Mapping[str, str]


def _regions(part: Part, source: Checkpoint, reads: Mapping[str, Span], places: Mapping[str, Span]) -> _Regions:
    is_copy = part.action == "keep"
    read_from = {COPY: part.place}
    if part.stored is not None:
        read_from = dict(part.stored.places)
    names = {COPY if is_copy else _local(part, name): name for name in part.outputs}
    rows = part.weight.shape[0] if part.weight.shape else 0
    regions = _Regions(
        {local: _region(place, source.structure[place.tensor], reads, rows) for local, place in read_from.items()},
        {
            local: _region(part.into.get(name, Place(name)), part.outputs[name], places, rows)
            for local, name in names.items()
        },
        names,
    )
    if not is_copy or any(region.columns is not None for region in regions.reads.values()):
        return regions
    return replace(regions, reads=_flat(regions.reads), writes=_flat(regions.writes))


def _flat(regions: Mapping[str, _Region]) -> dict[str, _Region]:
    """Regions in which each element is a row."""
    return {
        local: _Region(region.span, Tensor(region.tensor.dtype, (region.tensor.parameters, 1)))
        for local, region in regions.items()
    }


def _local(part: Part, name: str) -> str:
    """The local name of an output; fused experts are called like their module."""
    return "weight" if name == part.module else name.removeprefix(f"{part.module}.")


def _region(place: Place, tensor: Tensor, spans: Mapping[str, Span], rows: int) -> _Region:
    span = spans[place.tensor]
    if place.expert is None:
        return _Region(span, tensor)
    if place.transposed or place.step > 1:
        return _columns(place, tensor, span, rows)
    experts, rows_of_expert, *rest = tensor.shape
    row_bytes = span.size // (experts * rows_of_expert)
    offset = span.offset + (place.expert * rows_of_expert + place.first_row) * row_bytes
    return _Region(Span(span.file, offset, rows * row_bytes), Tensor(tensor.dtype, (rows, *rest)))


def _columns(place: Place, tensor: Tensor, span: Span, rows: int) -> _Region:
    """Rows of one expert that lie as columns of its matrix, or interleaved with those of others."""
    assert place.expert is not None
    experts, *matrix = tensor.shape
    width, *inner = reversed(matrix) if len(matrix) == 2 else (matrix[0],)
    each = span.size // experts
    columns = Columns(place.first_row, place.step, width)
    shape = (rows, *inner)
    return _Region(Span(span.file, span.offset + place.expert * each, each), Tensor(tensor.dtype, shape), columns)


def _strips(part: Part, regions: _Regions, group: int | None, format: str) -> Iterator[Strip]:
    """Cut a part into strips of whole rows (whole rows of blocks) of at most `PIECE_BYTES` of unquantized weight."""
    turned = any(region.columns is not None for region in regions.reads.values())
    before = 1 if part.stored is None else _unit(part.stored.scheme)
    after = before if part.action in ("rewrite", "dequantize") else 1 if part.scheme is None else _unit(part.scheme)
    if part.action == "keep" and not turned:  # rows do not matter to a copy
        rows, columns, unit = part.weight.parameters, 1, 1
    elif part.action == "keep":
        rows, columns, unit = part.weight.shape[0], math.prod(part.weight.shape[1:]), 1
    else:
        rows, columns = part.weight.shape
        unit = math.lcm(before, after)
    element = DTYPE_BITS[part.weight.dtype] // 8
    height = max(1, PIECE_BYTES // (columns * element * unit)) * unit
    rewrite = None
    if part.stored is not None:
        rewrite = Rewrite(part.stored.scheme, part.stored.format, format if part.action == "rewrite" else None)
    for first in range(0, max(rows, 1), height):
        count = min(height, rows - first)
        strip = range(first, first + count)
        yield Strip(
            module=part.module,
            weight=Tensor(part.weight.dtype, (count, columns)),
            reads={local: _share(region, strip, rows, before) for local, region in regions.reads.items()},
            scheme=part.scheme,
            rewrite=rewrite,
            group=group,
            names=regions.names,
            writes={
                local: _share(region, strip, rows, after).span
                for local, region in regions.writes.items()
                if first == 0 or len(region.tensor.shape) == 2
            },
            shape=(rows, columns),
            whole=count == rows and not part.into,
        )


def _unit(scheme: Scheme) -> int:
    """Rows that must stay together: those of a block, or those whose zero points share a word."""
    args = scheme.weights
    if args.block_structure is not None:
        return args.block_structure[0]
    return 32 // args.num_bits if args.type == "int" and not args.symmetric else 1


def _share(region: _Region, strip: range, rows: int, unit: int) -> Read:
    """What goes along with the rows `strip` of a part's `rows`: its rows, or all of what stands once for a module."""
    span, tensor, lying = region
    if lying is not None:
        shape = (len(strip), *tensor.shape[1:])
        return Read(span, Tensor(tensor.dtype, shape), lying.after(strip.start))
    if len(tensor.shape) != 2:
        return Read(span, tensor)
    own, columns = tensor.shape
    each = 1 if own == rows else unit
    row_bytes = span.size // max(own, 1)
    begin, end = strip.start // each, -(-strip.stop // each)
    place = Span(span.file, span.offset + begin * row_bytes, (end - begin) * row_bytes)
    return Read(place, Tensor(tensor.dtype, (end - begin, columns)))
