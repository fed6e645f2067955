"""Two builds of one base, in different formats if need be: the same codes and scales, or where and how they part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from weighbridge.auditing.grid import Array, Floats, Rows, float_values, grid_of, rows_of, spread, values_of
from weighbridge.auditing.measure import decibels, joined
from weighbridge.auditing.pairing import QuantizedPair, is_quantized, modules_of, regions, schemes_of
from weighbridge.auditing.pieces import Spans
from weighbridge.auditing.reading import ARRAYS, read
from weighbridge.auditing.work import stored_rows, whole_scale
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import split_parameter
from weighbridge.checkpoint.problems import findings_of, said_of
from weighbridge.families import Family
from weighbridge.formats import FORMATS
from weighbridge.formats.tensors import FLOATING_SOURCES, Tensor
from weighbridge.machine.resources import Resources, affordable_workers
from weighbridge.progress import Progress
from weighbridge.report import Section, Table
from weighbridge.work.pieces import in_strips
from weighbridge.work.reading import HUB_BYTES, Reader, reader_of, worker_bytes
from weighbridge.work.regions import Region

SAME_SCALE = 2.0**-22
"""Relative difference of a scale and the same one after its global scale became a reciprocal: three roundings."""

TALLEST = 128
"""Rows that stay together: no scheme has a higher block."""

WORKER_PIECES = 20
"""What a worker holds at most, in pieces: both sides as codes and as float32."""


@dataclass(frozen=True, slots=True)
class Parting:
    """How two builds differ in rows of a module; two of the same module add up.

    Attributes:
        elements: weights that were compared.
        codes: of these, whose codes stand for other places on the grid; all, where the grids are not the same.
        scales: weights whose scale is another.
        bytes: weights that both keep as floats and that are not bit-identical.
        signal: sum of squares of the first build's weights.
        noise: sum of squares of the differences between the weights that the two stand for.
    """

    elements: int = 0
    codes: int = 0
    scales: int = 0
    bytes: int = 0
    signal: float = 0.0
    noise: float = 0.0

    def __add__(self, other: Parting) -> Parting:
        return joined(self, other)

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.codes or self.scales or self.bytes)


@dataclass(frozen=True, slots=True)
class _Side:
    """A weight of one build, quantized or not.

    Attributes:
        pair: the module, for a quantized one; its source stands for the shape of its weight.
        region: the tensor, for one that is kept.
    """

    weight: Tensor
    pair: QuantizedPair | None = None
    region: Region | None = None

    @property
    def regions(self) -> Iterable[Region]:
        """What is read of it."""
        return self.pair.stored.values() if self.pair is not None else filter(None, (self.region,))

    @property
    def strips(self) -> Iterator[range]:
        """Its rows in pieces of whole rows, or of rows of blocks of any height up to `TALLEST`."""
        return in_strips(self._rows, self._row_bytes, TALLEST)

    @property
    def largest(self) -> int:
        """Bytes of the largest piece."""
        return max(map(len, self.strips)) * self._row_bytes

    @property
    def _rows(self) -> int:
        return self.weight.shape[0] if len(self.weight.shape) == 2 else 1

    @property
    def _row_bytes(self) -> int:
        return max(1, self.weight.nbytes // max(self._rows, 1))


@dataclass(frozen=True, slots=True)
class _Shared:
    """A weight that both builds have."""

    name: str
    sides: tuple[_Side, _Side]


def compare(one: Checkpoint, other: Checkpoint, *, resources: Resources, progress: Progress) -> Section:
    """Hold the numbers of two builds against each other, by module.

    Raises:
        StructureError, HubError: a side cannot be read.
        WeighbridgeError: too little memory for one worker.
    """
    sides = _sides(one), _sides(other)
    shared = [_Shared(name, (sides[0][name], sides[1][name])) for name in sides[0] if name in sides[1]]
    partings: dict[str, Parting] = {}
    blocks = sum(HUB_BYTES for side in (one, other) if side.directory is None)
    largest = max((item.sides[0].largest for item in shared), default=0)
    each = worker_bytes(
        WORKER_PIECES, largest, (read for item in shared for side in item.sides for read in side.regions)
    )
    workers = affordable_workers(resources.workers, resources.limit - blocks, each=each)
    readers = reader_of(one), reader_of(other)
    with (
        progress.stage("comparing", sum(item.sides[0].weight.nbytes for item in shared)),
        ThreadPoolExecutor(workers, thread_name_prefix="compare") as pool,
    ):
        for item, parting in zip(shared, pool.map(partial(_parting, readers), shared), strict=True):
            partings[item.name] = parting
            progress.advance(item.sides[0].weight.nbytes)
    alone = [[name for name in sides[index] if name not in sides[1 - index]] for index in (0, 1)]
    return _section(other, partings, alone)


def _sides(checkpoint: Checkpoint) -> dict[str, _Side]:
    """Every weight of a build, by the name that it has unquantized."""
    stored, schemes = regions(checkpoint), schemes_of(checkpoint)
    modules = {name: found for name, found in modules_of(stored, schemes).items() if is_quantized(found)}
    form = checkpoint.declaration.quant_method if checkpoint.declaration else ""
    sides: dict[str, _Side] = {}
    for name, region in stored.items():
        module, local = split_parameter(name)
        if module not in modules:
            sides[name] = _Side(region.tensor, region=region)
            continue
        tensors = {part: other.tensor for part, other in modules[module].items()}
        weight = FORMATS[form].weight_of(schemes[module], tensors)
        if weight is not None and local in ("weight", "weight_packed"):
            source = Region("", 0, weight)
            pair = QuantizedPair(module, schemes[module], form, source, modules[module])
            sides[f"{module}.weight"] = _Side(weight, pair=pair)
    return sides


def _parting(readers: tuple[Reader, Reader], item: _Shared) -> Parting:
    first, second = item.sides
    if first.weight.shape != second.weight.shape:
        count = first.weight.parameters
        return Parting(count, count, count, 0, 0.0, float("nan"))
    parted = _kept if first.region is not None and second.region is not None else _rows
    return sum((parted(readers, item, ((strip.start, len(strip)),)) for strip in first.strips), Parting())


def _kept(readers: tuple[Reader, Reader], item: _Shared, spans: Spans) -> Parting:
    one, values = _floats(readers[0], item.sides[0], spans, "one")
    other, others = _floats(readers[1], item.sides[1], spans, "other")
    different = int((one != other).sum()) if one.dtype == other.dtype else one.size
    return _parted(values, others, different=different)


def _floats(reader: Reader, side: _Side, spans: Spans, purpose: str) -> tuple[Array, Floats]:
    """Raw elements of a kept tensor, and as float32; what is no float counts as zero."""
    assert side.region is not None
    tensor = side.weight
    region = side.region
    if region.columns is not None and len(tensor.shape) == 1:
        region, spans = region._replace(tensor=Tensor(tensor.dtype, (*tensor.shape, 1))), ((0, tensor.parameters),)
    elif len(tensor.shape) != 2:
        region = Region(region.file, region.offset, Tensor(tensor.dtype, (1, tensor.parameters)))
    raw = read(reader, region, spans, f"kept {purpose}").view(ARRAYS.get(tensor.dtype, np.dtype(np.uint8)))
    if tensor.dtype not in FLOATING_SOURCES:
        return raw, np.zeros(raw.shape, np.float32)
    return (raw.view(np.uint16) if tensor.dtype == "F16" else raw), float_values(raw, tensor.dtype)


def _rows(readers: tuple[Reader, Reader], item: _Shared, spans: Spans) -> Parting:
    """Rows of which at least one side is quantized."""
    one, other = (_stored(reader, side, spans) for reader, side in zip(readers, item.sides, strict=True))
    weights = (
        _numbers(readers[0], item.sides[0], one, spans, "one"),
        _numbers(readers[1], item.sides[1], other, spans, "other"),
    )
    count = weights[0].size
    if one is None or other is None or one.grid.kind != other.grid.kind or one.grid.bits != other.grid.bits:
        return _parted(*weights, codes=count, scales=count)
    codes = int((values_of(one) != values_of(other)).sum())
    first, second = (spread(rows, rows.divisors) for rows in (one, other))
    with np.errstate(all="ignore"):
        scales = int((~(np.abs(first - second) <= SAME_SCALE * np.abs(first))).sum())
    return _parted(*weights, codes=codes, scales=scales)


def _stored(reader: Reader, side: _Side, spans: Spans) -> Rows | None:
    """Rows of a quantized weight; None for one that is kept, or stored in a way that is not known here."""
    if side.pair is None:
        return None
    grid = grid_of(side.pair.scheme)
    if grid is None:
        return None
    stored = {local: array.copy() for local, array in stored_rows(reader, side.pair, spans).items()}
    scale_dtype = side.pair.stored["weight_scale"].tensor.dtype
    whole = whole_scale(reader, side.pair)
    return rows_of(grid, side.pair.form, stored, scale_dtype, side.weight.shape[1], whole)


def _numbers(reader: Reader, side: _Side, rows: Rows | None, spans: Spans, purpose: str) -> Floats:
    """The weights that rows stand for, as float32; of those that are not known here NaN."""
    if rows is not None:
        return values_of(rows) * spread(rows, rows.divisors)
    if side.region is None:
        return np.full((spans[0][1], side.weight.shape[1]), np.nan, np.float32)
    return _floats(reader, side, spans, purpose)[1]


def _parted(one: Floats, other: Floats, *, codes: int = 0, scales: int = 0, different: int = 0) -> Parting:
    wide = one.astype(np.float64)
    with np.errstate(all="ignore"):
        signal, noise = float((wide**2).sum()), float(((wide - other) ** 2).sum())
    return Parting(one.size, codes, scales, different, signal, noise)


def _section(other: Checkpoint, partings: Mapping[str, Parting], alone: list[list[str]]) -> Section:
    apart = {name: parting for name, parting in partings.items() if not parting.same}
    findings = findings_of(("compare/parts", name, _how(parting), "") for name, parting in apart.items())
    for names, who in ((alone[0], "the first"), (alone[1], "the second")):
        findings += said_of(names, "compare/alone", f"only {who} has it")
    same = len(partings) - len(apart)
    summary = f"{same:,} of {len(partings):,} weights have the same codes and scales"
    if any(alone):
        summary += f", {sum(map(len, alone)):,} stand in one of the two alone"
    return Section(
        "against-build",
        f"beside {other.label}",
        summary,
        findings=tuple(findings),
        tables=(_table(partings, other.family),),
    )


def _how(parting: Parting) -> str:
    if parting.bytes:
        return "is kept by both, with other values"
    if parting.codes == parting.elements and parting.scales == parting.elements:
        return "is stored in ways that have no codes in common"
    if parting.scales and parting.codes:
        return "has other codes and other scales"
    return "has other scales" if parting.scales else "has other codes under the same scales"


def _table(partings: Mapping[str, Parting], family: Family) -> Table:
    """How the two lie to each other, by layer and role."""
    cells: dict[tuple[int, str], Parting] = {}
    counts: Counter[tuple[int, str]] = Counter()
    apart: Counter[tuple[int, str]] = Counter()
    for name, parting in partings.items():
        layer = _layer(name)
        key = layer, str(family.role_of(split_parameter(name)[0]))
        cells[key] = cells.get(key, Parting()) + parting
        counts[key] += 1
        apart[key] += not parting.same
    rows = tuple(
        (
            str(layer) if layer >= 0 else "",
            role,
            counts[layer, role],
            apart[layer, role],
            f"{100 * cell.codes / max(cell.elements, 1):.3f}",
            f"{100 * cell.scales / max(cell.elements, 1):.3f}",
            decibels(cell.signal, cell.noise),
        )
        for (layer, role), cell in sorted(cells.items())
    )
    return Table(("layer", "role", "weights", "that part", "codes %", "scales %", "SNR dB"), rows)


def _layer(name: str) -> int:
    """The layer that a tensor is part of; -1 for none."""
    parts = name.split(".")
    return next((int(number) for word, number in pairwise(parts) if word == "layers" and number.isdigit()), -1)
