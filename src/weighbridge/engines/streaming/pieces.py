"""The work of a build in pieces: rectangles of source tensors, and where what becomes of them is written.

A piece is cut by a fixed size, never by the number of workers or the memory at hand, so that a journal written with one
setting is understood under another, and the bytes are the same under all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weighbridge.plan import Part, Plan
from weighbridge.schemes import Scheme
from weighbridge.shards import OutputShard
from weighbridge.structure.checkpoint import Checkpoint
from weighbridge.structure.tensors import DTYPE_BITS, Tensor

PIECE_BYTES = 4 * 1024 * 1024
"""Source bytes of a piece, unless a single row (or row of blocks) is larger."""


COPY = ""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a file, named as it is in the source or output directory."""

    file: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Strip:
    """Some rows of a part.

    Attributes:
        module: the module, for messages.
        weight: dtype and shape of the rows alone.
        read: where they begin in the source.
        scheme: what they are quantized with; None to copy them.
        group: the fused group whose largest value they share (an index), or None.
        names: local name -> name of the output tensor; `COPY` is the local name of what is copied.
        writes: local name -> this strip's share of that tensor. What stands once for a module is written by its first
            strip alone.
        shape: shape of the whole part.
    """

    module: str
    weight: Tensor
    read: Span
    scheme: Scheme | None
    group: int | None
    names: Mapping[str, str]
    writes: Mapping[str, Span]
    shape: tuple[int, int]

    @property
    def whole(self) -> bool:
        """Whether the strip is the whole part, so that digests of what it writes are those of the tensors."""
        return self.weight.shape == self.shape


@dataclass(frozen=True, slots=True)
class Piece:
    """Strips that are worked on together; the unit of the journal."""

    number: int
    strips: tuple[Strip, ...]

    @property
    def source_bytes(self) -> int:
        return sum(strip.weight.nbytes for strip in self.strips)

    @property
    def files(self) -> frozenset[str]:
        """Output shards that this piece writes to."""
        return frozenset(place.file for strip in self.strips for place in strip.writes.values())


@dataclass(frozen=True)
class Job:
    """Everything that a worker, here or on another machine, must know beside its piece.

    Attributes:
        source: directory of the source's shards.
        output: directory of the output's shards, which exist already in their full size.
        device: torch device of the kernels, e.g. ``cpu`` or ``cuda:0``.
    """

    source: Path
    output: Path
    device: str


def cut(plan: Plan, source: Checkpoint, shards: Sequence[OutputShard]) -> tuple[Piece, ...]:
    """Cut a plan into pieces, in the order of the source's bytes."""
    places = _places(shards)
    reads = _reads(source)
    groups = group_numbers(plan)
    pieces: list[Piece] = []
    pending: list[Strip] = []
    pending_bytes = 0
    for part in plan.parts:
        fused = source.structure[part.source]
        for strip in _strips(part, fused, reads[part.source], places, groups.get(part.module)):
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
    numbers: dict[str, int] = {}
    for fused in plan.fused_groups:
        members = [f"{fused.parent}.{member}" for member in fused.members]
        shared = [module for module in members if _is_global(plan.schemes.get(module), shared=True)]
        number = len(numbers)
        numbers.update(dict.fromkeys(shared, number))
    for module, scheme in plan.schemes.items():
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


def _strips(part: Part, fused: Tensor, read: Span, places: Mapping[str, Span], group: int | None) -> Iterator[Strip]:
    """Cut a part into strips of whole rows (whole rows of blocks) of at most `PIECE_BYTES`.

    Args:
        fused: the source tensor that the part is of.
        read: where that tensor begins.
    """
    element = DTYPE_BITS[part.weight.dtype] // 8
    begin = read.offset
    if part.expert is not None:
        _, rows_of_expert, width = fused.shape
        begin += (part.expert * rows_of_expert + part.first_row) * width * element
    if part.scheme is None:  # rows do not matter to a copy
        rows, columns, unit = part.weight.parameters, 1, 1
    else:
        rows, columns = part.weight.shape
        unit = part.scheme.weights.block_structure[0] if part.scheme.weights.block_structure else 1
    row_bytes = columns * element
    height = max(1, PIECE_BYTES // (row_bytes * unit)) * unit
    names = {name.removeprefix(f"{part.module}.") if part.scheme else COPY: name for name in part.outputs}
    for first in range(0, max(rows, 1), height):
        count = min(height, rows - first)
        yield Strip(
            module=part.module,
            weight=Tensor(part.weight.dtype, (count, columns)),
            read=Span(read.file, begin + first * row_bytes, count * row_bytes),
            scheme=part.scheme,
            group=group,
            names=names,
            writes=dict(_shares(part, names, places, range(first, first + count), rows, unit)),
            shape=(rows, columns),
        )


def _shares(
    part: Part, names: Mapping[str, str], places: Mapping[str, Span], strip: range, rows: int, unit: int
) -> Iterator[tuple[str, Span]]:
    """The bytes of each output that the rows `strip` of a part's `rows` become, by local name."""
    for local, name in names.items():
        place, output = places[name], part.outputs[name]
        if part.scheme is not None and len(output.shape) != 2:
            if strip.start == 0:
                yield local, place
            continue
        output_rows = rows if part.scheme is None else output.shape[0]
        rows_each = 1 if output_rows == rows else unit
        row_bytes = place.size // max(output_rows, 1)
        begin, end = strip.start // rows_each, -(-strip.stop // rows_each)
        yield local, Span(place.file, place.offset + begin * row_bytes, (end - begin) * row_bytes)
