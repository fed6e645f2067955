"""Looking at rows of a pair: read both sides, round again, compare, measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import isfinite, nan
from typing import Any

import numpy as np

from weighbridge.audit.expected import min_max, predictions
from weighbridge.audit.grid import Array, Floats, Rows, float_values, grid_of, rows_of
from weighbridge.audit.measure import Difference, Measure
from weighbridge.audit.pairing import KeptPair, Pair, QuantizedPair, Region
from weighbridge.audit.pieces import Piece, Spans, Strip, units_of
from weighbridge.audit.reading import ARRAYS, Buffers, Reader, read_rows
from weighbridge.engines.kernels import NonFiniteWeight, load_kernels
from weighbridge.formats.schemes import stored_tensors
from weighbridge.formats.tensors import FLOATING_SOURCES, Tensor

QUOTIENT_SLACK = 2.0**-21
"""Relative difference of two float32 evaluations of a quotient, of three roundings each (docs/explanation/audit.md)."""

COMPRESSED_TENSORS = "compressed-tensors"

_TINIEST: Mapping[str, float] = {"BF16": 2.0**-126, "F32": 2.0**-126, "F16": 2.0**-14, "F8_E4M3": 2.0**-6}
_CODES = ("weight", "weight_packed")
_WHOLE = ("weight_global_scale", "weight_scale_2", "weight_shape")
"""What stands once for a module, whatever its rows."""
_ROUNDED_TO = {"BF16": 0, "F16": 1, "F32": 2}


@dataclass(frozen=True)
class Allowance:
    """What a module may differ by, beyond rounding to nearest.

    Attributes:
        dampening: of GPTQ's Hessian; None where no compensation is allowed.
        columns: factors of the base's columns (smoothing), or None.
        rows: divisors of the base's rows (smoothing), or None.
        slack: relative uncertainty of the smoothed weight.
        doubted: the scale of the whole tensor is not the one that its largest value gives, so that agreeing with it is
            not enough.
    """

    dampening: float | None = None
    columns: Floats | None = None
    rows: Floats | None = None
    slack: float = 0.0
    doubted: bool = False

    @property
    def smoothed(self) -> bool:
        """Whether the weight is not the base's own."""
        return self.columns is not None or self.rows is not None


STRICT = Allowance()


@dataclass(frozen=True)
class Job:
    """Everything that a worker must know beside its piece.

    Attributes:
        allowances: module -> what it may differ by; none for most.
    """

    pairs: Sequence[Pair]
    checkpoint: Reader
    base: Reader
    device: str = "cpu"
    allowances: Mapping[str, Allowance] = field(default_factory=dict)


Result = Measure | Difference

_buffers = Buffers()


def look(job: Job, piece: Piece) -> list[tuple[int, Result]]:
    """What each strip of a piece showed: index of its pair, and the figures.

    Raises:
        StructureError, HubError: a side cannot be read.
    """
    return [(strip.pair, _look_at(job, strip)) for strip in piece.strips]


def _look_at(job: Job, strip: Strip) -> Result:
    item = job.pairs[strip.pair]
    if isinstance(item, KeptPair):
        return _compare(job, item, strip)
    return examine(job, item, strip)


def _compare(job: Job, item: KeptPair, strip: Strip) -> Difference:
    dtype = item.source.tensor.dtype
    flat = Tensor(dtype, (item.source.tensor.parameters, 1))
    one, other = (
        read(reader, Region(region.file, region.offset, flat), strip.spans, purpose).view(np.uint8).reshape(-1)
        for reader, region, purpose in ((job.base, item.source, "source"), (job.checkpoint, item.stored, "weight"))
    )
    if not len(one) or bool((one == other).all()):
        return Difference(strip.rows)
    each = len(one) // strip.rows
    wrong = (one != other).reshape(-1, each).any(axis=1)
    first = int(wrong.argmax())
    largest = 0.0
    if dtype in FLOATING_SOURCES:
        with np.errstate(all="ignore"):
            values = [float_values(side.view(ARRAYS[dtype]), dtype)[wrong] for side in (one, other)]
            largest = float(np.abs(values[0].astype(np.float64) - values[1]).max())
    return Difference(strip.rows, int(wrong.sum()), largest, _row_of(strip.spans, first))


def examine(job: Job, item: QuantizedPair, strip: Strip) -> Measure:
    """Measure rows of a quantized module against the base's."""
    grid, dtype, columns = grid_of(item.scheme), item.weight.dtype, item.weight.shape[1]
    weight = read(job.base, item.source, strip.spans, "source")
    seen = Measure(elements=strip.rows * columns, rows=strip.rows)
    if grid is None or not seen.elements:
        return replace(seen, unpredicted=strip.rows)
    stored = stored_rows(job.checkpoint, item, strip.spans)
    whole = whole_scale(job.checkpoint, item)
    scale_dtype = item.stored["weight_scale"].tensor.dtype
    rows = rows_of(grid, item.form, stored, scale_dtype, columns, whole)
    allowance = job.allowances.get(item.name, STRICT)
    agreement: tuple[int, int] | None = None
    try:
        if whole is not None or allowance.smoothed:
            seen = replace(seen, amax=load_kernels(job.device).amax(weight, dtype))
        if not allowance.smoothed:
            agreement = _agreement(job, item, weight, stored, whole)
    except NonFiniteWeight:
        return replace(seen, unpredicted=strip.rows, amax=nan)
    if allowance.smoothed:
        weight, dtype = _smoothed(float_values(weight, dtype), strip.spans, allowance), "F32"
    seen, noise = _measured(job, seen, weight, dtype, rows, scale_dtype)
    if agreement is None:
        seen = replace(seen, unpredicted=strip.rows)
    else:
        seen = replace(seen, different_codes=agreement[0], different_scales=agreement[1])
        # What agrees to the bit is nearest, unless the scale of the whole is itself in doubt.
        if seen.exact and not allowance.doubted:
            return seen
    hit = np.zeros(columns, np.uint8)
    count, first = _loops(job.device).not_nearest(
        *_weights(weight, dtype),
        _ROUNDED_TO[dtype],
        rows.codes,
        *rows.reading,
        *rows.tiles,
        np.float32(QUOTIENT_SLACK + allowance.slack),
        hit,
    )
    if allowance.dampening is None:
        beyond = _loose(job, item, weight, dtype, whole, rows, noise)
        seen = replace(seen, not_nearest=int(count), loose_rows=len(beyond))
    else:
        bound = columns * rows.widest.astype(np.float64) ** 2 / (4 * allowance.dampening)
        beyond = np.flatnonzero(~(noise <= bound))
        settled = int.from_bytes(np.packbits(hit == 0, bitorder="little").tobytes(), "little")
        seen, first = replace(seen, strayed_rows=len(beyond), settled=settled), -1
    if first < 0 and len(beyond):
        first = int(beyond[0]) * columns
    if first >= 0:
        first = _row_of(strip.spans, first // columns) * columns + first % columns
    return replace(seen, first=int(first))


def _agreement(
    job: Job, item: QuantizedPair, weight: Array, stored: Mapping[str, Array], whole: np.float32 | None
) -> tuple[int, int] | None:
    """Bytes of codes and of scales that differ from round-to-nearest; None where there is none to compare with."""
    best: tuple[int, int] | None = None
    for predicted in predictions(
        load_kernels(job.device), _loops(job.device), weight, item.weight.dtype, item.scheme, item.form, whole
    ):
        wrong = {local: _different(array, stored[local]) for local, array in predicted.items() if local in stored}
        codes = sum(count for local, count in wrong.items() if local in _CODES)
        found = codes, sum(wrong.values()) - codes
        best = found if best is None else min(best, found, key=sum)
        if not sum(best):
            break
    return best


def whole_scale(reader: Reader, item: QuantizedPair) -> np.float32 | None:
    """The stored scale of a whole tensor: NVFP4's global scale, or the one of a per-tensor scheme; None without one."""
    strategy = item.scheme.weights.strategy
    names = {"tensor_group": ("weight_global_scale", "weight_scale_2"), "tensor": ("weight_scale",)}.get(strategy, ())
    for local in names:
        if local in item.stored:
            region = item.stored[local]
            flat = Region(region.file, region.offset, Tensor(region.tensor.dtype, (1, 1)))
            values: Floats = float_values(read(reader, flat, ((0, 1),), local), region.tensor.dtype)
            return np.float32(values[0, 0])
    return None


def stored_shape(reader: Reader, item: QuantizedPair) -> tuple[int, int] | None:
    """What ``weight_shape`` of packed integers says; None where nothing is stored."""
    region = item.stored.get("weight_shape")
    if region is None:
        return None
    flat = Region(region.file, region.offset, Tensor("I64", (1, 2)))
    rows, columns = read(reader, flat, ((0, 1),), "weight_shape")[0].tolist()
    return rows, columns


def _measured(
    job: Job, seen: Measure, weight: Array, dtype: str, rows: Rows, scale_dtype: str
) -> tuple[Measure, Array]:
    """The figures of rows that need no judgement, and the sum of squared differences of each row."""
    noise = np.empty(seen.rows, np.float64)
    with np.errstate(all="ignore"):
        signal, noises, saturated, zeroed, nan_codes, steps = _loops(job.device).measure(
            *_weights(weight, dtype), rows.codes, *rows.reading, *rows.tiles, *rows.limits, noise
        )
        finite = np.isfinite(rows.scales)
        magnitudes = np.abs(rows.scales)
        subnormal = (magnitudes < _TINIEST.get(scale_dtype, 0.0)) & (magnitudes > 0)
        dead = finite & (rows.scales <= 0)
    return replace(
        seen,
        saturated=int(saturated),
        zeroed=int(zeroed),
        nan_codes=int(nan_codes),
        signal=float(signal),
        noise=float(noises) if isfinite(noises) else nan,
        steps=float(steps),
        scales=rows.scales.size,
        dead_scales=int(dead.sum()),
        bad_scales=int((~finite).sum()),
        subnormal_scales=int(subnormal.sum()),
    ), noise


def _loose(
    job: Job, item: QuantizedPair, weight: Array, dtype: str, whole: np.float32 | None, rows: Rows, noise: Array
) -> Array:
    """Rows whose error is larger than nearest rounding under twice the min-max scale could make it."""
    reference = min_max(load_kernels(job.device), np.ascontiguousarray(weight), dtype, item.scheme, whole)
    if reference is None:
        return np.flatnonzero(~(noise < np.inf))
    arrays, shared = reference
    scale_dtype = stored_tensors(item.scheme, Tensor(dtype, weight.shape))["weight_scale"].dtype
    packed = grid_of(item.scheme)
    assert packed is not None
    own = rows_of(packed, COMPRESSED_TENSORS, arrays, scale_dtype, rows.columns, shared)
    bound = np.empty(len(noise), np.float64)
    _loops(job.device).squared_steps(own.codes, rows.columns, *own.reading, *own.tiles, bound)
    return np.flatnonzero(~(noise <= bound))


def _smoothed(values: Floats, spans: Spans, allowance: Allowance) -> Floats:
    """The base's weights as smoothing leaves them, up to its roundings."""
    if allowance.columns is not None:
        values = values * allowance.columns[None, :]
    if allowance.rows is not None:
        divided = np.concatenate([allowance.rows[first : first + count] for first, count in spans])
        values = values / divided[:, None]
    return np.ascontiguousarray(values, np.float32)


def _weights(weight: Array, dtype: str) -> tuple[Array, bool]:
    """Weights as the loops take them: BF16 as it is, anything else widened."""
    return (weight, True) if dtype == "BF16" else (np.ascontiguousarray(weight, np.float32), False)


def stored_rows(reader: Reader, item: QuantizedPair, spans: Spans) -> dict[str, Array]:
    """What is stored of rows of a module, by local name; what stands once for it left out."""
    total, unit = units_of(item)
    found: dict[str, Array] = {}
    for local, region in item.stored.items():
        if local in _WHOLE or len(region.tensor.shape) != 2 or not local.startswith("weight"):
            continue
        own = region.tensor.shape[0]
        shares = spans if own == total else tuple((first // unit, -(-count // unit)) for first, count in spans)
        found[local] = read(reader, region, shares, local)
    return found


def read(reader: Reader, region: Region, spans: Spans, purpose: str) -> Array:
    """Rows of a region in this thread's buffer for `purpose`, valid until the thread reads for it again."""
    rows = sum(count for _, count in spans)
    return read_rows(reader, region, spans, _buffers.of(purpose, region.rows(0, rows).tensor.nbytes))


def _different(one: Array, other: Array) -> int:
    """How many bytes differ."""
    left, right = (np.ascontiguousarray(side).reshape(-1).view(np.uint8) for side in (one, other))
    if len(left) != len(right):
        return max(len(left), len(right))
    return 0 if bool((left == right).all()) else int((left != right).sum())


def _row_of(spans: Spans, position: int) -> int:
    """The row that stands at `position` among those of a strip."""
    for first, count in spans:
        if position < count:
            return first + position
        position -= count
    raise IndexError(position)


@cache
def _loops(device: str) -> Any:
    """The loops for a device: compiled ones for the CPU where numba is installed, else torch's."""
    if device == "cpu":
        try:
            from weighbridge.audit import compiled
        except ImportError:
            pass
        else:
            return compiled
    from weighbridge.audit.portable import PortableLoops

    return PortableLoops(device)
