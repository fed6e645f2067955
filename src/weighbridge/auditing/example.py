"""One weight that differs, for people: what the base has, the code that was expected, and the one that is stored."""

from __future__ import annotations

import numpy as np

from weighbridge.auditing import rounding
from weighbridge.auditing.arithmetic import PRECISIONS
from weighbridge.auditing.grid import float_values, grid_of, rows_of, spread, values_of
from weighbridge.auditing.pairing import KeptPair, Pair, QuantizedPair
from weighbridge.auditing.pieces import cut_by_elements, units_of
from weighbridge.auditing.reading import ARRAYS, read
from weighbridge.auditing.work import STRICT, Job, base_weights, in_rows, scale_dtype_of, stored_rows, whole_scale
from weighbridge.formats.tensors import FLOATING_SOURCES

MOST = 64
"""Tensors of which an example is read; over a network each costs a request."""


def example(job: Job, item: Pair, index: int) -> str:
    """The element at a flat index of a pair, in words; empty where none can be told.

    Raises:
        StructureError, HubError: a side cannot be read.
    """
    return _quantized(job, item, index) if isinstance(item, QuantizedPair) else _kept(job, item, index)


def _quantized(job: Job, item: QuantizedPair, index: int) -> str:
    grid, columns = grid_of(item.scheme), item.weight.shape[1]
    row, column = divmod(index, columns)
    total, unit = units_of(item)
    first = row // unit * unit
    spans = ((first, min(unit, total - first)),)
    if grid is None:
        return ""
    raw = read(job.base, item.source, spans, "source")
    weights = base_weights(raw, item.weight.dtype, grid, spans, job.allowances.get(item.name, STRICT))
    if weights is None:
        return ""
    stored = stored_rows(job.checkpoint, item, spans)
    rows = rows_of(grid, item.form, stored, scale_dtype_of(item), columns, whole_scale(job.checkpoint, item))
    nearest = np.empty(weights.array.shape, np.float32)
    rounding.nearest_values(*weights.taken, PRECISIONS[weights.dtype].number, grid.places, rows.tiles, nearest)
    at = (row - first, column)
    value = float(float_values(weights.array, weights.dtype)[at])
    zero = 0.0 if grid.symmetric else float(spread(rows, rows.zeros)[at])
    expected, found = (float(side[at]) + zero for side in (nearest, values_of(rows)))
    scale = float(spread(rows, rows.divisors)[at])
    return f"base {value:.6g}, scale {scale:.6g}: code {expected:g}, stored {found:g}"


def _kept(job: Job, item: KeptPair, index: int) -> str:
    dtype = item.source.tensor.dtype
    if dtype not in FLOATING_SOURCES or not cut_by_elements(item):
        return ""
    base, found = (
        float(
            float_values(read(reader, in_rows(region, item), ((index, 1),), purpose).view(ARRAYS[dtype]), dtype).item()
        )
        for reader, region, purpose in ((job.base, item.source, "source"), (job.checkpoint, item.stored, "weight"))
    )
    return f"base {base:.6g}, stored {found:.6g}"
