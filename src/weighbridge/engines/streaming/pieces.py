"""The work of a build in pieces: rectangles of source tensors, and where what becomes of them is written.

A piece is cut by a fixed size, never by the number of workers or the memory at hand, so that a journal written with one
setting is understood under another, and the bytes are the same under all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import Place
from weighbridge.engines.rewriting import Rewrite
from weighbridge.formats.codecs import Codec, Reading
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import DTYPE_BITS, Tensor
from weighbridge.machine.columns import Columns
from weighbridge.machine.standing import Standing
from weighbridge.output.shards import OutputShard
from weighbridge.planning import Part, Plan

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
class Decode:
    """What rows of a part are decoded by.

    Attributes:
        codec: how codes become a weight.
        names: by what each reading is for, the local name of its tensor in the source's module.
    """

    codec: Codec
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Strip:
    """Some rows of a part.

    Attributes:
        module: the module, for messages.
        weight: dtype and shape of the rows alone.
        reads: local name -> what is read; `COPY` for a float tensor; of what is decoded, by what each is for.
        scheme: what they are quantized with; None to copy or dequantize them.
        rewrite: for a module whose codes go along, in which form.
        decode: for a module whose codes become a weight first, how.
        group: the fused group whose largest value they share (an index), or None.
        names: local name -> name of the output tensor; `COPY` is the local name of what is copied.
        writes: local name -> this strip's share of that tensor. What stands once for a module is written by its first
            strip alone.
        shape: shape of the whole part.
        first: the strip's first row in it.
        whole: whether the strip is all of its output tensors, so that digests of what it writes are theirs.
    """

    module: str
    weight: Tensor
    reads: Mapping[str, Read]
    scheme: Scheme | None
    rewrite: Rewrite | None
    decode: Decode | None
    group: int | None
    names: Mapping[str, str]
    writes: Mapping[str, Span]
    shape: tuple[int, int]
    first: int
    whole: bool


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
        group = groups.get(part.module) if part.makes_codes else None  # a bias has no share in its weight's scale
        for strip in _strips(part, regions, group, plan.loaded.recipe.format):
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
        each: how many rows of the part go with one of its own; 0 for what stands once for the part.
        columns: for rows that lie as columns, where; the bytes are those of the whole matrix then.
    """

    span: Span
    tensor: Tensor
    each: int
    columns: Columns | None = None


@dataclass(frozen=True)
class _Regions:
    """Everything that a part is read from and written to, by local name, and the names of what it is written to."""

    reads: Mapping[str, _Region]
    writes: Mapping[str, _Region]
    names: Mapping[str, str]


def _regions(part: Part, source: Checkpoint, reads: Mapping[str, Span], places: Mapping[str, Span]) -> _Regions:
    names = {COPY if part.action == "keep" else _local(part, name): name for name in part.outputs}
    rows = part.weight.shape[0] if part.weight.shape else 0
    stored = part.stored
    if stored is None:
        read_from = {COPY: _region(part.place, source.structure, reads, rows)}
    elif part.action == "rewrite":
        read_from = {
            local: _region(place, source.structure, reads, rows, _unit(stored.scheme))
            for local, place in stored.places.items()
        }
    else:
        assert stored.coded is not None
        read_from = {
            role: _coded_region(stored.places[reading.local], reading, source.structure, reads)
            for role, reading in stored.coded.readings.items()
        }
    writes = {
        local: _region(part.into.get(name, Place(name)), part.outputs, places, rows, _unit(part.scheme))
        for local, name in names.items()
    }
    if part.action != "keep":
        return _Regions(read_from, writes, names)
    if any(region.columns is not None for region in read_from.values()):  # of one axis too: biases in turns
        return _Regions(read_from, {local: region._replace(each=1) for local, region in writes.items()}, names)
    return _Regions(_flat(read_from), _flat(writes), names)


def _flat(regions: Mapping[str, _Region]) -> dict[str, _Region]:
    """Regions in which each element is a row."""
    return {
        local: _Region(region.span, Tensor(region.tensor.dtype, (region.tensor.parameters, 1)), 1)
        for local, region in regions.items()
    }


def _local(part: Part, name: str) -> str:
    """The local name of an output; fused experts are called like their module."""
    return "weight" if name == part.module else name.removeprefix(f"{part.module}.")


def _region(
    place: Place, structure: Mapping[str, Tensor], spans: Mapping[str, Span], rows: int, unit: int = 1
) -> _Region:
    """Where a part of so many rows lies in a tensor.

    Args:
        unit: how many rows of the part go with one row of a matrix that has fewer.
    """
    tensor = structure[place.tensor]
    span, columns = _lies(place, tensor, spans[place.tensor], rows)
    if columns is not None:
        inner = tensor.shape[-2:-1] if place.transposed else tensor.shape[2:]
        return _Region(span, Tensor(tensor.dtype, (rows, *inner)), 1, columns)
    if place.expert is not None:
        return _Region(span, Tensor(tensor.dtype, (rows, *tensor.shape[2:])), 1)
    each = 0 if len(tensor.shape) != 2 else 1 if tensor.shape[0] == rows else unit
    return _Region(span, tensor, each)


def _coded_region(
    place: Place, reading: Reading, structure: Mapping[str, Tensor], spans: Mapping[str, Span]
) -> _Region:
    """Where a tensor of codes, or of what belongs to them, lies; as the matrix that it is read as."""
    span, columns = _lies(place, structure[place.tensor], spans[place.tensor], reading.tensor.shape[0])
    return _Region(span, reading.tensor, reading.each, columns)


def _lies(place: Place, tensor: Tensor, span: Span, rows: int) -> tuple[Span, Columns | None]:
    """The bytes of so many rows at a place; where these lie as columns, of the whole matrix, and how they do."""
    matrix = tensor.shape
    if place.expert is not None:
        experts, *matrix_of_expert = tensor.shape
        matrix, each = tuple(matrix_of_expert), span.size // experts
        span = Span(span.file, span.offset + place.expert * each, each)
    columns = place.columns(matrix)
    if columns is not None or place.expert is None:
        return span, columns
    row_bytes = span.size // matrix[0]
    return Span(span.file, span.offset + place.first_row * row_bytes, rows * row_bytes), None


def _strips(part: Part, regions: _Regions, group: int | None, format: str) -> Iterator[Strip]:
    """Cut a part into strips of whole rows (whole rows of blocks) of at most `PIECE_BYTES` of unquantized weight."""
    turned = any(region.columns is not None for region in regions.reads.values())
    rewrite, decode, stored = None, None, part.stored
    if part.action == "keep" and not turned:  # rows do not matter to a copy
        rows, columns, unit = part.weight.parameters, 1, 1
    elif part.action == "keep":
        rows, columns, unit = part.weight.shape[0], math.prod(part.weight.shape[1:]), 1
    else:
        rows, columns = part.weight.shape
        unit = _unit(part.scheme)
    if stored is not None and part.action == "rewrite":
        rewrite = Rewrite(stored.scheme, stored.format, format)
    elif stored is not None and stored.coded is not None:
        unit = math.lcm(unit, stored.coded.unit)
        decode = Decode(stored.coded.codec, {role: reading.local for role, reading in stored.coded.readings.items()})
    element = DTYPE_BITS[part.weight.dtype] // 8
    height = max(1, PIECE_BYTES // (columns * element * unit)) * unit
    for first in range(0, max(rows, 1), height):
        count = min(height, rows - first)
        strip = range(first, first + count)
        yield Strip(
            module=part.module,
            weight=Tensor(part.weight.dtype, (count, columns)),
            reads={local: _share(region, strip) for local, region in regions.reads.items()},
            scheme=part.scheme,
            rewrite=rewrite,
            decode=decode,
            group=group,
            names=regions.names,
            writes={
                local: _share(region, strip).span
                for local, region in regions.writes.items()
                if first == 0 or region.each
            },
            shape=(rows, columns),
            first=first,
            whole=count == rows and not part.into,
        )


def _unit(scheme: Scheme | None) -> int:
    """Rows that must stay together: those of a block, or those whose zero points share a word."""
    if scheme is None:
        return 1
    args = scheme.weights
    if args.block_structure is not None:
        return args.block_structure[0]
    return 32 // args.num_bits if args.type == "int" and not args.symmetric else 1


def _share(region: _Region, strip: range) -> Read:
    """What goes along with the rows `strip` of a part: its rows, or all of what stands once for it."""
    span, tensor, each, columns = region
    if not each:
        return Read(span, tensor)
    own, *inner = tensor.shape
    begin, end = strip.start // each, -(-strip.stop // each)
    share = Tensor(tensor.dtype, (end - begin, *inner))
    if columns is not None:
        return Read(span, share, columns.after(begin))
    row_bytes = span.size // max(own, 1)
    return Read(Span(span.file, span.offset + begin * row_bytes, (end - begin) * row_bytes), share)
