"""Weights that a conversion made floats again: what the codes of round-to-nearest mean, not what was there before."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from weighbridge.auditing import rounding
from weighbridge.auditing.arithmetic import PRECISIONS, Arithmetic, arithmetics_of, narrowed, whole_scales
from weighbridge.auditing.grid import Floats, Grid, float_values, grid_of
from weighbridge.auditing.judge import group_amaxes
from weighbridge.auditing.method import Method
from weighbridge.auditing.pairing import KeptPair
from weighbridge.auditing.pieces import Spans
from weighbridge.auditing.reading import read
from weighbridge.auditing.work import Weights, weights_of
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import split_parameter
from weighbridge.formats.schemes import Scheme
from weighbridge.planning import make_plan
from weighbridge.text.patterns import pattern_list
from weighbridge.work.pieces import in_strips
from weighbridge.work.reading import Reader

COMPRESSED_TENSORS = "compressed-tensors"
DEQUANTIZED = "BF16"


def find_dequantized(
    differing: list[KeptPair], method: Method, base: Checkpoint, checkpoint: Reader, source: Reader
) -> frozenset[str]:
    """Names of the tensors that are, bit by bit, what the base's weights become when rounded and made floats again.

    A largest value counts as it is, or as that of the fused group.

    Args:
        differing: tensors that both sides keep as floats and that are not the same.

    Raises:
        StructureError, HubError: a side cannot be read.
    """
    if method.before is None or not method.dequantized:
        return frozenset()
    plan = make_plan(method.before, base)
    chosen = pattern_list(method.dequantized)
    modules = {split_parameter(item.name)[0]: item for item in differing if item.name.endswith(".weight")}
    asked = {name: item for name, item in modules.items() if chosen.first(name) is not None and name in plan.schemes}
    amaxes = {name: _amax(item, plan.schemes[name], source) for name, item in asked.items()}
    groups = group_amaxes(amaxes, plan.fused_groups)
    return frozenset(
        item.name
        for name, item in asked.items()
        if any(_is_rounded(item, plan.schemes[name], amax, checkpoint, source) for amax in {groups[name], amaxes[name]})
    )


def _strips(item: KeptPair, scheme: Scheme) -> Iterator[Spans]:
    """The rows of a weight, as many at a time as a piece of work has."""
    rows = item.source.tensor.shape[0]
    for strip in in_strips(rows, item.source.tensor.nbytes // max(rows, 1), scheme.weights.unit):
        yield ((strip.start, len(strip)),)


def _amax(item: KeptPair, scheme: Scheme, source: Reader) -> float:
    grid = grid_of(scheme)
    if grid is None:
        return math.nan
    found = (_weights(item, grid, spans, source) for spans in _strips(item, scheme))
    return float(np.max([math.nan if weights is None else weights.amax for weights in found]))


def _weights(item: KeptPair, grid: Grid, spans: Spans, source: Reader) -> Weights | None:
    return weights_of(read(source, item.source, spans, "source"), item.source.tensor.dtype, grid)


def _is_rounded(item: KeptPair, scheme: Scheme, amax: float, checkpoint: Reader, source: Reader) -> bool:
    """Whether a tensor is what rounding the base's weight gives, made floats of the dtype `DEQUANTIZED` again."""
    grid = grid_of(scheme)
    if grid is None or item.stored.tensor.dtype != DEQUANTIZED or math.isnan(amax):
        return False
    dtype = item.source.tensor.dtype
    scales = whole_scales(grid, COMPRESSED_TENSORS, scheme, dtype, [amax])
    whole = scales[0] if scales else None
    arithmetic = arithmetics_of(grid, scheme, COMPRESSED_TENSORS, dtype, whole)[0]
    for spans in _strips(item, scheme):
        weights = _weights(item, grid, spans, source)
        if weights is None:
            return False
        expected = _rounded(weights, grid, scheme, arithmetic, whole)
        stored = read(checkpoint, item.stored, spans, "weight")
        if not (float_values(stored, DEQUANTIZED) == expected).all():
            return False
    return True


def _rounded(weights: Weights, grid: Grid, scheme: Scheme, arithmetic: Arithmetic, whole: np.float32 | None) -> Floats:
    """What rows become when they are rounded, and made floats of the dtype `DEQUANTIZED` again."""
    dtype = weights.dtype
    divisors, zeros = np.empty_like(weights.smallest), np.zeros_like(weights.smallest)
    if arithmetic.rule.kind == rounding.WHOLE:
        divisors[:] = whole
    else:
        rounding.needed(arithmetic.rule, weights.smallest, weights.largest, divisors, zeros)
    rows, columns = weights.array.shape
    height, width = grid.height or rows, grid.width or columns
    values = np.empty((rows, columns), np.float32)
    number = rounding.F32 if arithmetic.in_float32 else PRECISIONS[dtype].number
    tiles = (divisors, zeros, height, width, not grid.symmetric)
    rounding.nearest_values(*weights.taken, number, grid.places, tiles, values)
    # compressed-tensors multiplies in the dtype of its scales: that of the weight, or under a global scale float32.
    product = values * divisors.repeat(height, 0).repeat(width, 1)[:rows, :columns]
    if scheme.weights.strategy != "tensor_group":
        product = narrowed(product, dtype)
    return narrowed(product, DEQUANTIZED)
