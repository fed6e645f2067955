"""Looking at rows of a pair: read both sides, round again, compare, measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite, nan
from typing import Any

import numpy as np

from weighbridge.auditing import compensation, rounding
from weighbridge.auditing.arithmetic import PRECISIONS, Arithmetic, arithmetics_of, own_rule
from weighbridge.auditing.choosing import choose
from weighbridge.auditing.grid import (
    Array,
    Floats,
    Grid,
    Rows,
    float_values,
    grid_of,
    padded_zero_points,
    rows_of,
    spread,
    values_of,
)
from weighbridge.auditing.measure import Difference, Measure
from weighbridge.auditing.moves import moves_of
from weighbridge.auditing.pairing import KeptPair, Pair, Pairing, QuantizedPair
from weighbridge.auditing.pieces import Spans, Strip, cut, cut_by_elements, units_of
from weighbridge.auditing.reading import ARRAYS, read
from weighbridge.formats import FORMATS
from weighbridge.formats.observers import Search, search_of
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import DTYPE_BITS, FLOATING_SOURCES
from weighbridge.work.pieces import Piece
from weighbridge.work.reading import Reader
from weighbridge.work.regions import Region

QUOTIENT_SLACK = 2.0**-21
"""Relative difference of two float32 evaluations of a quotient, of three roundings each (docs/explanation/audit.md)."""

NARROWEST_TILE, WIDEST_TILE = np.float32(0.7), np.float32(2.125)
"""How much of what its largest value needs the scale of a tile may be. Observers search from 0.8 to 1.8 of it; a power
of two is up to twice that; and rounding to E4M3 moves a scale by a sixteenth."""

_TINIEST: Mapping[str, float] = {"BF16": 2.0**-126, "F32": 2.0**-126, "F16": 2.0**-14, "F8_E4M3": 2.0**-6}
_WHOLE = ("weight_global_scale", "weight_scale_2", "weight_shape")
"""What stands once for a module, whatever its rows."""


@dataclass(frozen=True)
class Allowance:
    """What a module may differ by, beyond rounding to nearest.

    Attributes:
        dampening: of GPTQ's Hessian; None where no compensation is allowed.
        columns: factors of the base's columns (smoothing), or None.
        rows: divisors of the base's rows (smoothing), or None.
        slack: relative uncertainty of the smoothed weight.
        coarseness: limit of a smoothed module's squared error, over that of rounding the base's weight by min-max.
        instead: the scale that the largest value of the whole gives, where another is stored, so that agreeing with
            that is not enough.
        steps: how many ranges an observer tries, where it stopped before it had tried all.
    """

    dampening: float | None = None
    columns: Floats | None = None
    rows: Floats | None = None
    slack: float = 0.0
    coarseness: float = inf
    instead: np.float32 | None = None
    steps: int | None = None

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
    allowances: Mapping[str, Allowance] = field(default_factory=dict)


Result = Measure | Difference


def look(job: Job, piece: Piece[Strip]) -> list[tuple[int, Result]]:
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


def in_rows(region: Region, item: KeptPair) -> Region:
    """One side of a pair of kept tensors as strips of it are cut: by elements, or by rows where one is transposed."""
    return region.flat(1 if cut_by_elements(item) else math.prod(region.tensor.shape[1:]))


def _compare(job: Job, item: KeptPair, strip: Strip) -> Difference:
    """Compare bit by bit, element by element, however the rows lie."""
    dtype = item.source.tensor.dtype
    one, other = (
        read(reader, in_rows(region, item), strip.spans, purpose).view(np.uint8).reshape(-1)
        for reader, region, purpose in ((job.base, item.source, "source"), (job.checkpoint, item.stored, "weight"))
    )
    element = max(1, DTYPE_BITS[dtype] // 8)
    elements = len(one) // element
    if bool((one == other).all()):
        return Difference(elements)
    columns = elements // strip.rows
    wrong = (one != other).reshape(-1, element).any(axis=1)
    row, column = divmod(int(wrong.argmax()), columns)
    largest = 0.0
    if dtype in FLOATING_SOURCES:
        with np.errstate(all="ignore"):
            values = [float_values(side.view(ARRAYS[dtype]), dtype)[wrong] for side in (one, other)]
            largest = float(np.abs(values[0].astype(np.float64) - values[1]).max())
    return Difference(elements, int(wrong.sum()), largest, _row_of(strip.spans, row) * columns + column)


@dataclass(frozen=True, slots=True)
class Weights:
    """Rows of the base as the loops take them, with the smallest and the largest value of each tile of a grid.

    Of a grid without zero points or signed scales it is the largest magnitude, and its opposite.

    Attributes:
        low, high: the ends of what the codes of each tile should span: the same, or what an observer chooses.
        improving: of a search, the steps that lessen the error of any tile, a bit for each.
    """

    array: Array
    dtype: str
    smallest: Floats
    largest: Floats
    low: Floats
    high: Floats
    improving: int = 0

    @property
    def taken(self) -> tuple[Array, bool]:
        """The rows, and whether they are bit patterns of BF16."""
        return self.array, self.dtype == "BF16"

    @property
    def amax(self) -> float:
        """The largest absolute value of what codes should span."""
        return float(max(-self.low.min(), self.high.max()))


def examine(job: Job, item: QuantizedPair, strip: Strip) -> Measure:
    """Measure rows of a quantized module against the base's."""
    grid, columns = grid_of(item.scheme), item.weight.shape[1]
    raw = read(job.base, item.source, strip.spans, "source")
    seen = Measure(elements=strip.rows * columns, rows=strip.rows)
    if grid is None or not seen.elements:
        return replace(seen, unpredicted=strip.rows)
    allowance = job.allowances.get(item.name, STRICT)
    weights = base_weights(raw, item.weight.dtype, grid, strip.spans, allowance)
    if weights is None:
        return replace(seen, unpredicted=strip.rows, amax=nan)
    stored = stored_rows(job.checkpoint, item, strip.spans)
    whole = whole_scale(job.checkpoint, item)
    scale_dtype = scale_dtype_of(item)
    rows = rows_of(grid, item.form, stored, scale_dtype, columns, whole)
    arithmetics = arithmetics_of(grid, item.scheme, item.form, weights.dtype, whole)
    if not allowance.smoothed:
        weights = with_choice(weights, item.scheme, rows, arithmetics[0].rule, allowance.steps)
    noise = np.empty(seen.rows, np.float64)
    figures = _held(weights, rows, arithmetics[0], noise)
    doubted = item.is_searched_on_its_word and not allowance.smoothed
    own_noise = _noise_of_largest(weights, rows, arithmetics[0].rule) if doubted else 0.0
    seen = replace(seen, own_noise=own_noise, **_measured(rows, scale_dtype, weights, figures))
    if allowance.smoothed:
        own = weights_of(raw, item.weight.dtype, grid)
        assert own is not None  # what was multiplied by finite factors is finite
        seen = replace(seen, **_taken_back(item, own, rows, strip.spans, allowance))
    if allowance.smoothed or not _has_scales_of_tiles(item):
        seen = replace(seen, unpredicted=strip.rows)
    else:
        codes, scales = _agreement(item, weights, rows, arithmetics, figures.wrong)
        zero_points = stored.get("weight_zero_point")
        if zero_points is not None and zero_points.dtype == np.int32:
            scales += padded_zero_points(zero_points, seen.rows, grid.bits)
        seen = replace(seen, different_codes=codes, different_scales=scales)
        # What is rounded to nearest, ties to even, is nearest, unless the scale of the whole is itself in doubt.
        if seen.exact and not doubted and allowance.instead is None and allowance.dampening is None:
            # Under a scale of the whole that is wrong, those of tiles may agree with it and be far from their need.
            return replace(seen, far=_far_energy(weights, rows)) if whole is not None else seen
    seen = replace(seen, far=_far_energy(weights, rows))
    hit = np.zeros(columns, np.uint8)
    count, first = rounding.not_nearest(
        *weights.taken,
        PRECISIONS[weights.dtype].number,
        rows.codes,
        grid.nibbles,
        grid.places,
        rows.tiles,
        _slacks(item, grid, allowance),
        hit,
    )
    moves, for_nothing = moves_of(weights.taken, rows)
    seen = replace(seen, moves=moves, for_nothing=for_nothing)
    if allowance.dampening is None:
        beyond = _loose(item, weights, rows, noise, whole if allowance.instead is None else allowance.instead)
        seen = replace(seen, not_nearest=int(count), loose_rows=len(beyond))
    else:
        seen = replace(seen, not_nearest=int(count))
        seen = compensation.measured(seen, weights.taken, rows, noise, hit, allowance.dampening)
        beyond, first = np.array([seen.first] if seen.first >= 0 else []), -1
    if first < 0 and len(beyond):
        first = int(beyond[0]) * columns
    if first >= 0:
        first = _row_of(strip.spans, first // columns) * columns + first % columns
    return replace(seen, first=int(first))


def errors_of_choice(job: Job, item: QuantizedPair, search: Search) -> tuple[int, float, float]:
    """How many tiles have another scale than the observer chooses, and what their errors come to under either.

    An error counts as the search counts it, by its power. Reads the module once more.
    """
    grid, columns = grid_of(item.scheme), item.weight.shape[1]
    assert grid is not None
    found, of_stored, of_chosen = 0, 0.0, 0.0
    for piece in cut(Pairing((item,))):
        for strip in piece.strips:
            weights = weights_of(read(job.base, item.source, strip.spans, "source"), item.weight.dtype, grid)
            assert weights is not None
            whole = whole_scale(job.checkpoint, item)
            stored = stored_rows(job.checkpoint, item, strip.spans)
            rows = rows_of(grid, item.form, stored, scale_dtype_of(item), columns, whole)
            rule = arithmetics_of(grid, item.scheme, item.form, weights.dtype, whole)[0].rule
            steps = job.allowances.get(item.name, STRICT).steps
            weights = with_choice(weights, item.scheme, rows, rule, steps)
            divisors, zeros = np.empty_like(rows.scales), np.zeros_like(rows.scales)
            rounding.needed(rule, weights.low, weights.high, divisors, zeros)
            other = (divisors != rows.divisors) | (zeros != rows.zeros)
            found += int(other.sum())
            where = spread(rows, other.astype(np.float32)) != 0
            errors = [
                float((np.abs(_distances(weights, one)[where]).astype(np.float64) ** search.norm).sum())
                for one in (rows, replace(rows, divisors=divisors, zeros=zeros))
            ]
            of_stored, of_chosen = of_stored + errors[0], of_chosen + errors[1]
    return found, of_stored, of_chosen


def _distances(weights: Weights, rows: Rows) -> Floats:
    """How far each weight is from the nearest place under the scales of rows."""
    values = np.empty(weights.array.shape, np.float32)
    rounding.nearest_values(*weights.taken, rounding.F32, rows.grid.places, rows.tiles, values)
    with np.errstate(all="ignore"):
        distances: Floats = float_values(weights.array, weights.dtype) - values * spread(rows, rows.divisors)
    return distances


def volume_of(job: Job, item: QuantizedPair) -> float | None:
    """The volume of a compensated module's errors; None where it has none. Reads the module a second time."""
    grid, (count, columns) = grid_of(item.scheme), item.weight.shape
    if grid is None or not compensation.has_volume(count, columns):
        return None
    allowance, volume = job.allowances.get(item.name, STRICT), compensation.Volume(columns)
    for piece in cut(Pairing((item,))):
        for strip in piece.strips:
            values = float_values(read(job.base, item.source, strip.spans, "source"), item.weight.dtype)
            if allowance.smoothed:
                values = _smoothed(values, strip.spans, allowance)
            stored, scale_dtype = stored_rows(job.checkpoint, item, strip.spans), scale_dtype_of(item)
            volume.add(
                values, rows_of(grid, item.form, stored, scale_dtype, columns, whole_scale(job.checkpoint, item))
            )
    return volume.size


def scale_dtype_of(item: QuantizedPair) -> str:
    return item.stored["weight_scale"].tensor.dtype


def _far_energy(weights: Weights, rows: Rows) -> float:
    """Energy of the weights whose scales no observer would choose; of a whole tensor's scale, see `judge.too_wide`."""
    if rows.grid.height == 0:
        return 0.0
    with np.errstate(all="ignore"):
        found: float = rounding.far_energy(
            *weights.taken,
            np.float32(rows.grid.half_range),
            not rows.grid.symmetric,
            weights.smallest,
            weights.largest,
            replace(rows, divisors=np.abs(rows.divisors)).tiles if rows.grid.signed else rows.tiles,
            NARROWEST_TILE,
            WIDEST_TILE,
        )
    return found


def _slacks(item: QuantizedPair, grid: Grid, allowance: Allowance) -> tuple[np.float32, np.float32]:
    """How uncertain a quotient is, and its place: with zero points that was rounded to the weights' dtype once more."""
    again = PRECISIONS[item.weight.dtype].epsilon / 2 if allowance.smoothed and not grid.symmetric else 0.0
    return np.float32(QUOTIENT_SLACK + allowance.slack), np.float32(again)


def base_weights(raw: Array, dtype: str, grid: Grid, spans: Spans, allowance: Allowance) -> Weights | None:
    """Rows of the base, or what smoothing left of them; None where one of their values is NaN or infinite."""
    if allowance.smoothed:
        return weights_of(_smoothed(float_values(raw, dtype), spans, allowance), "F32", grid)
    return weights_of(raw, dtype, grid)


def _taken_back(item: QuantizedPair, own: Weights, rows: Rows, spans: Spans, allowance: Allowance) -> dict[str, Any]:
    """How far smoothed rows lie from the base's own once the smoothing is taken back, beside rounding those."""
    values = float_values(own.array, own.dtype)
    with np.errstate(all="ignore"):
        stored = values_of(rows)
        stored *= spread(rows, rows.divisors)
        if allowance.columns is not None:
            stored /= allowance.columns[None, :]
        if allowance.rows is not None:
            stored *= np.concatenate([allowance.rows[first : first + count] for first, count in spans])[:, None]
        mapped_noise = _energy(np.subtract(values, stored, out=stored))
        del stored  # of all that an audit holds this is the most
    own_noise = _noise_of_largest(own, rows, own_rule(rows.grid, item.scheme, own.dtype))
    return {"own_signal": _energy(values), "own_noise": own_noise, "mapped_noise": mapped_noise}


def _noise_of_largest(own: Weights, rows: Rows, rule: rounding.Rule) -> float:
    """Sum of squares of the errors that rounding the base's own weight by min-max makes.

    Args:
        rule: how scales follow from the smallest and the largest value of each tile.
    """
    with np.errstate(all="ignore"):
        rounded = _rounded(own, rows, rule)
        return _energy(np.subtract(float_values(own.array, own.dtype), rounded, out=rounded))


def _energy(values: Floats) -> float:
    """The sum of squares, in float64."""
    return float(np.einsum("ij,ij->", values, values, dtype=np.float64))


def _rounded(own: Weights, rows: Rows, rule: rounding.Rule) -> Array:
    """Rows of the base's own weight, rounded to nearest under the scales that their largest values give."""
    divisors, zeros = np.empty_like(own.smallest), np.zeros_like(own.smallest)
    rounding.needed(rule, own.smallest, own.largest, divisors, zeros)
    values = np.empty(own.array.shape, np.float32)
    rounded = replace(rows, divisors=divisors, zeros=zeros)
    rounding.nearest_values(*own.taken, PRECISIONS[own.dtype].number, rows.grid.places, rounded.tiles, values)
    values *= spread(rows, divisors)
    return values


def weights_of(raw: Array, dtype: str, grid: Grid) -> Weights | None:
    """Rows as the loops take them; None where one of their values is NaN or infinite."""
    array = raw if dtype == "BF16" else np.ascontiguousarray(raw, np.float32)
    rows, columns = array.shape
    height, width = grid.height or rows, grid.width or columns
    smallest, largest = (np.empty((-(-rows // height), -(-columns // width)), np.float32) for _ in range(2))
    # Scales without zero points follow from magnitudes alone, unless they have the sign of the largest.
    find = rounding.magnitudes if grid.symmetric and not grid.signed else rounding.extremes
    finite = find(array, dtype == "BF16", height, width, smallest, largest)
    return Weights(array, dtype, smallest, largest, smallest, largest) if finite else None


def with_choice(weights: Weights, scheme: Scheme, rows: Rows, rule: rounding.Rule, steps: int | None) -> Weights:
    """Weights with the ranges that the scheme's observer chooses, where it chooses any.

    Args:
        rows: what is stored of them; of results that cannot be told apart here, the one that is stored counts.
        rule: how stored scales follow from ranges.
        steps: how many ranges are tried; without it, as many as may be.
    """
    search = search_of(scheme.weights)
    if search is None:
        return weights
    steps = search.steps if steps is None else steps
    chosen = choose(weights.array, weights.dtype, rows.grid, scheme, search, steps, rows, rule)
    return replace(weights, low=chosen.low, high=chosen.high, improving=chosen.improving)


def _held(weights: Weights, rows: Rows, arithmetic: Arithmetic, noise: Array) -> rounding.Figures:
    """Codes held against what an arithmetic gives; fills the noise of each row."""
    divided = replace(rows, divisors=arithmetic.divisors(rows.scales))
    with np.errstate(all="ignore"):
        found: rounding.Figures = rounding.examine(
            *weights.taken,
            PRECISIONS[weights.dtype].number,
            arithmetic.in_float32,
            rows.codes,
            rows.grid.nibbles,
            rows.grid.places,
            divided.tiles,
            noise,
        )
    return found


def _has_scales_of_tiles(item: QuantizedPair) -> bool:
    """Whether rows alone say what their scales and zero points must be, or do so under the scale of the whole."""
    args = item.scheme.weights
    return args.symmetric or args.strategy in ("channel", "group")


def _agreement(
    item: QuantizedPair, weights: Weights, rows: Rows, arithmetics: Sequence[Arithmetic], codes: int
) -> tuple[int, int]:
    """Codes and scales that are not those of round-to-nearest, by the arithmetic that comes nearest.

    Args:
        codes: those that are not by the first arithmetic.
    """
    best = codes, _wrong_scales(item, weights, rows, arithmetics[0])
    for arithmetic in arithmetics[1:]:
        if not sum(best):
            break
        wrong = _held(weights, rows, arithmetic, np.empty(len(rows.codes), np.float64)).wrong
        best = min(best, (wrong, _wrong_scales(item, weights, rows, arithmetic)), key=sum)
    return best


def _wrong_scales(item: QuantizedPair, weights: Weights, rows: Rows, arithmetic: Arithmetic) -> int:
    expected = FORMATS[item.form].stored_tensors(item.scheme, item.weight)["weight_scale"].dtype
    if item.stored["weight_scale"].tensor.dtype != expected:
        return rows.scales.size
    if arithmetic.rule.kind == rounding.WHOLE:
        return 0
    wrong: int = rounding.wrong_scales(arithmetic.rule, weights.low, weights.high, rows.scales, rows.zeros)
    return wrong


def whole_scale(reader: Reader, item: QuantizedPair) -> np.float32 | None:
    """The stored scale of a whole tensor: NVFP4's global scale, or the one of a per-tensor scheme; None without one."""
    strategy = item.scheme.weights.strategy
    names = {"tensor_group": ("weight_global_scale", "weight_scale_2"), "tensor": ("weight_scale",)}.get(strategy, ())
    for local in names:
        if local in item.stored:
            return read_scale(reader, item.stored[local], local)
    return None


def read_scale(reader: Reader, region: Region, purpose: str) -> np.float32:
    """A tensor of one element."""
    values: Floats = float_values(read(reader, region.flat(), ((0, 1),), purpose), region.tensor.dtype)
    return np.float32(values[0, 0])


def stored_shape(reader: Reader, item: QuantizedPair) -> tuple[int, int] | None:
    """What ``weight_shape`` of packed integers says; None where nothing is stored."""
    region = item.stored.get("weight_shape")
    if region is None:
        return None
    rows, columns = read(reader, region.flat(2), ((0, 1),), "weight_shape")[0].tolist()
    return rows, columns


def _measured(rows: Rows, scale_dtype: str, weights: Weights, figures: rounding.Figures) -> dict[str, Any]:
    """The figures of rows that need no judgement."""
    stored = np.abs(rows.scales) if rows.grid.signed else rows.scales
    scales: rounding.ScaleFigures = rounding.look_at_scales(stored, np.float32(_TINIEST.get(scale_dtype, 0.0)))
    return {
        "amax": weights.amax,
        "improving": weights.improving,
        "saturated": int(figures.saturated),
        "zeroed": int(figures.zeroed),
        "nan_codes": int(figures.nan_codes),
        "signal": float(figures.signal),
        "noise": float(figures.noise) if isfinite(figures.noise) else nan,
        "steps": float(figures.steps),
        "scales": rows.scales.size,
        "dead_scales": int(scales.dead),
        "bad_scales": int(scales.bad),
        "subnormal_scales": int(scales.subnormal),
    }


def _loose(item: QuantizedPair, weights: Weights, rows: Rows, noise: Array, whole: np.float32 | None) -> Array:
    """Rows whose error is larger than nearest rounding under twice the min-max scale could make it.

    Args:
        whole: the scale of the whole tensor under which the scales of tiles are to be.
    """
    rule = arithmetics_of(rows.grid, item.scheme, item.form, weights.dtype, whole)[0].rule
    divisors = np.ascontiguousarray(rows.divisors)
    if rule.kind != rounding.WHOLE:
        divisors = np.empty_like(rows.divisors)
        zeros = np.empty_like(rows.divisors)
        rounding.needed(rule, weights.smallest, weights.largest, divisors, zeros)
    bound = np.empty(len(noise), np.float64)
    tiles = replace(rows, divisors=divisors).tiles
    rounding.squared_steps(*weights.taken, rows.grid.places, tiles, bound)
    return np.flatnonzero(~(noise <= bound))


def _smoothed(values: Floats, spans: Spans, allowance: Allowance) -> Floats:
    """The base's weights as smoothing leaves them, up to its roundings."""
    if allowance.columns is not None:
        values = values * allowance.columns[None, :]
    if allowance.rows is not None:
        divided = np.concatenate([allowance.rows[first : first + count] for first, count in spans])
        values = values / divided[:, None]
    return np.ascontiguousarray(values, np.float32)


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


def _row_of(spans: Spans, position: int) -> int:
    """The row that stands at `position` among those of a strip."""
    for first, count in spans:
        if position < count:
            return first + position
        position -= count
    raise IndexError(position)
