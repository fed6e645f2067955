"""A base that its publisher quantized: what its codes mean, by the audit's own reading of them.

Builds start from the BF16 values that upstream's dequantizers give; so does the audit, by its own arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from weighbridge.auditing.arithmetic import narrowed
from weighbridge.auditing.grid import Array, Floats, float_values, grid_of, rows_of, spread, values_of
from weighbridge.auditing.pairing import Coded, Region
from weighbridge.formats import fp8

WHOLE = ("weight_global_scale", "weight_scale_2")
"""Scales of a whole module under which it has others."""

Read = Callable[[Region, int, int], Array]
"""Reads rows of a stored tensor: the tensor, the first row, and how many."""


def decoded(coded: Coded, count: int, columns: int, read: Read) -> Array:
    """Rows of a weight that is stored as codes: BF16 as bit patterns, uint16 [count, columns].

    Codes times scales are rounded as upstream's dequantizers round: once to the dtype of the scales where these are of
    16 bits, and to BF16 at the end.
    """
    unit = _unit(coded)
    begin = coded.first // unit * unit
    end = min(coded.rows, -(-(coded.first + count) // unit) * unit)
    stored: dict[str, Array] = {}
    scale_dtype, whole = "F32", None
    for local, region in coded.stored.items():
        known = "weight_scale" if local in fp8.SCALES else local
        if local in WHOLE or (known == "weight_scale" and coded.scheme.weights.strategy == "tensor"):
            flat = region._replace(tensor=replace(region.tensor, shape=(1, 1)))
            whole = np.float32(float_values(read(flat, 0, 1), region.tensor.dtype)[0, 0])
        elif len(region.tensor.shape) == 2 and local.startswith("weight"):
            own = region.tensor.shape[0]
            shares = (begin, end) if own == coded.rows else (begin // unit, -(-end // unit))
            stored[known] = read(region, shares[0], shares[1] - shares[0])
        if known == "weight_scale":
            scale_dtype = region.tensor.dtype
    grid = grid_of(coded.scheme)
    assert grid is not None  # or it would not be decoded at all
    rows = rows_of(grid, coded.form, stored, scale_dtype, columns, whole)
    product: Floats = values_of(rows) * spread(rows, rows.divisors)
    if scale_dtype in ("BF16", "F16") and coded.scheme.weights.strategy != "tensor_group":
        product = narrowed(product, scale_dtype)
    bits = (narrowed(product, "BF16").view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return bits[coded.first - begin : coded.first - begin + count]


def _unit(coded: Coded) -> int:
    """Rows that share scales or words of zero points."""
    args = coded.scheme.weights
    if args.block_structure is not None:
        return args.block_structure[0]
    return 32 // args.num_bits if args.type == "int" and not args.symmetric else 1
