"""The audit's compiled loops against those made of torch operations, which were written from the definitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from weighbridge.audit import compiled
from weighbridge.audit.grid import Rows, float_values, grid_of, rows_of
from weighbridge.audit.portable import PortableLoops
from weighbridge.engines.kernels import load_kernels
from weighbridge.engines.kernels.agreement import KINDS, SCHEMES, hard_weight
from weighbridge.engines.kernels.encoding import SOURCES
from weighbridge.formats.schemes import PRESETS, stored_tensors
from weighbridge.formats.tensors import Tensor

ROUNDED_TO = {"BF16": 0, "F16": 1, "F32": 2}
SLACK = np.float32(2.0**-21)
WHOLE: Mapping[str, str] = {"tensor_group": "weight_global_scale", "tensor": "weight_scale"}


def taken(weight: Any, dtype: str) -> tuple[Any, bool]:
    """Weights as the loops take them."""
    return (weight, True) if dtype == "BF16" else (np.ascontiguousarray(weight, np.float32), False)


def stored(weight: Any, dtype: str, name: str) -> Rows:
    """A weight, rounded by the project's kernels, as numbers."""
    scheme = SCHEMES[name]
    arrays = load_kernels("cpu").quantize(weight, dtype, scheme)
    scale_dtype = stored_tensors(scheme, Tensor(dtype, weight.shape))["weight_scale"].dtype
    local = WHOLE.get(scheme.weights.strategy)
    whole = None
    if local == "weight_scale":
        whole = float_values(arrays[local], dtype)[0]
    elif local is not None:
        whole = arrays[local][0]
    grid = grid_of(scheme)
    assert grid is not None
    return rows_of(grid, "compressed-tensors", arrays, scale_dtype, weight.shape[1], whole)


def damaged(rows: Rows, seed: int) -> Rows:
    """The same with some codes anything at all."""
    random = np.random.default_rng(seed)
    codes = rows.codes.copy()
    hit = random.random(codes.shape) < 0.01
    codes[hit] = random.integers(0, 256, int(hit.sum()), dtype=np.uint8)
    return replace(rows, codes=codes)


def measured(loops: Any, weight: Any, dtype: str, rows: Rows) -> tuple[Any, ...]:
    noise = np.empty(len(rows.codes), np.float64)
    with np.errstate(all="ignore"):
        found = loops.measure(*taken(weight, dtype), rows.codes, *rows.reading, *rows.tiles, *rows.limits, noise)
    return (*found, noise)


def judged(loops: Any, weight: Any, dtype: str, rows: Rows) -> tuple[int, int, bytes]:
    hit = np.zeros(weight.shape[1], np.uint8)
    with np.errstate(all="ignore"):
        count, first = loops.not_nearest(
            *taken(weight, dtype), ROUNDED_TO[dtype], rows.codes, *rows.reading, *rows.tiles, SLACK, hit
        )
    return int(count), int(first), hit.tobytes()


TAME = ("normal", "outliers", "zero rows and blocks", "ties")


@pytest.mark.parametrize("dtype", SOURCES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_compiled_figures_are_torchs(scheme: str, dtype: str) -> None:
    for kind in TAME:
        weight = hard_weight(kind, dtype, 24, 256)
        rows = damaged(stored(weight, dtype, scheme), 1)
        if scheme == "FP8_BLOCK" or rows.grid.kind == 0:
            rows = replace(rows, codes=np.where((rows.codes & 0x7F) == 0x7F, 0, rows.codes).astype(np.uint8))
        one, other = (measured(loops, weight, dtype, rows) for loops in (compiled, PortableLoops("cpu")))
        assert one[2:5] == other[2:5], kind
        np.testing.assert_allclose([*one[:2], one[5]], [*other[:2], other[5]], rtol=1e-4)
        np.testing.assert_allclose(one[6], other[6], rtol=1e-3, atol=1e-30)


@pytest.mark.parametrize("dtype", SOURCES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_compiled_judgement_is_torchs(scheme: str, dtype: str) -> None:
    for kind in TAME:
        weight = hard_weight(kind, dtype, 24, 256)
        rows = damaged(stored(weight, dtype, scheme), 2)
        one, other = (judged(loops, weight, dtype, rows) for loops in (compiled, PortableLoops("cpu")))
        assert one == other, kind
        assert one[0] > 0


@pytest.mark.parametrize("dtype", SOURCES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_kernels_round_is_nearest(kind: str, scheme: str, dtype: str) -> None:
    weight = hard_weight(kind, dtype, 16, 256)
    rows = stored(weight, dtype, scheme)
    assert judged(compiled, weight, dtype, rows)[:2] == (0, -1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_two_steps_away_is_never_nearest(scheme: str) -> None:
    weight = hard_weight("normal", "BF16", 16, 256)
    rows = stored(weight, "BF16", scheme)
    random = np.random.default_rng(4)
    for _ in range(50):
        row, byte = (int(random.integers(size)) for size in rows.codes.shape)
        code = int(rows.codes[row, byte])
        low = code & 7
        moved = low - 2 if low >= 4 else low + 2
        codes = rows.codes.copy()
        codes[row, byte] = (code & 0xF8) | moved
        assert judged(compiled, weight, "BF16", replace(rows, codes=codes))[0] == 1


@pytest.mark.parametrize("dtype", SOURCES)
def test_squared_steps_are_torchs(dtype: str) -> None:
    for scheme in SCHEMES:
        weight = hard_weight("normal", dtype, 16, 256)
        rows = stored(weight, dtype, scheme)
        sums = [np.empty(16, np.float64) for _ in range(2)]
        both: list[Any] = [compiled, PortableLoops("cpu")]
        for loops, total in zip(both, sums, strict=True):
            loops.squared_steps(rows.codes, 256, *rows.reading, *rows.tiles, total)
        np.testing.assert_allclose(sums[0], sums[1], rtol=1e-5)


@pytest.mark.parametrize("dtype", SOURCES)
@pytest.mark.parametrize("kind", KINDS)
def test_modelopts_rounding_is_torchs(kind: str, dtype: str) -> None:
    weight = hard_weight(kind, dtype, 16, 256)
    amax = float(np.abs(float_values(weight, dtype)).max())
    shared = np.float32(amax) / np.float32(2688)
    made = []
    for loops in (compiled, PortableLoops("cpu")):
        scales, codes = np.empty((16, 16), np.uint8), np.empty((16, 128), np.uint8)
        with np.errstate(all="ignore"):
            loops.modelopt_nvfp4(*taken(weight, dtype), shared, scales, codes)
        made.append((scales.tobytes(), codes.tobytes()))
    if shared * 6 >= 2.0**-126:  # a subnormal scale divides to infinity on one side and to NaN on the other
        assert made[0] == made[1]


def test_every_preset_with_a_grid_has_one() -> None:
    assert {name for name, scheme in PRESETS.items() if grid_of(scheme) is None} == set()
