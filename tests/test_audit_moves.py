"""How far codes are from the nearest, and how many bits a build may hide in that."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.audit_rows import SCHEMES, Module, integers, quantized
from tests.kernel_agreement import hard_weight
from tests.test_audit_compensated import GROUP, at_will, bf16_bits, codes_of, compensated, with_codes
from weighbridge.auditing.grid import grid_of, rows_of, spread
from weighbridge.auditing.judge import Judged, Verdict
from weighbridge.auditing.measure import Measure
from weighbridge.auditing.moves import FURTHEST, PARTS, at_rest, entropy, moved_further, moves_of
from weighbridge.auditing.unexplained import bits_of_module
from weighbridge.auditing.work import Allowance

Array = np.ndarray[Any, Any]


def places_of(scheme: str) -> Array:
    """Every place of a scheme's grid, ascending, of those that codes stand for."""
    grid = grid_of(SCHEMES[scheme])
    assert grid is not None
    codes = np.arange(256 if grid.bits == 8 else 16)
    values = grid.values[codes]
    return np.unique(values[np.isfinite(values)])


def slowly(module: Module) -> Counter[tuple[int, int]]:
    """The part of half a step that each weight lies from its nearest place, and by how many places its code is off."""
    grid = grid_of(module.scheme)
    assert grid is not None
    places = places_of(next(name for name, scheme in SCHEMES.items() if scheme == module.scheme))
    rows = rows_of(grid, module.form, module.arrays, "F32", module.weight.shape[1], None)
    codes = rows.codes
    if grid.nibbles:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(len(codes), -1)
    found: Counter[tuple[int, int]] = Counter()
    for weight, divisor, code in zip(module.weight.flat, spread(rows, rows.divisors).flat, codes.flat, strict=True):
        place = np.clip(np.float32(weight / divisor), places[0], places[-1])
        apart = np.abs(places.astype(np.float64) - place)
        nearest = int(apart.argmin())
        if not np.isfinite(grid.values[code]):
            found[0, FURTHEST] += 1
            continue
        stored = int(np.flatnonzero(places == grid.values[code])[0])
        power = max(2.0 ** math.floor(math.log2(abs(place))) if place else 0.0, float(grid.places.smallest))
        part = float(place - places[nearest]) / (power / float(grid.places.fraction))
        move = (stored - nearest) * (-1 if part < 0 else 1)
        found[min(int(abs(part) * 2 * PARTS), PARTS - 1), max(-FURTHEST, min(move, FURTHEST))] += 1
    return found


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "W4A16 in groups of 32", "W8A16 in groups of 32"])
def test_moves_are_those_that_a_slow_count_finds(scheme: str) -> None:
    """Codes of an honest module, some of them a few places aside. No weight of F32 lies halfway between two places."""
    random = np.random.default_rng(3)
    weight = (0.02 * random.standard_normal((16, 64))).astype(np.float32)
    honest = quantized(weight, "F32", SCHEMES[scheme])
    name = "weight" if "weight" in honest.arrays else "weight_packed"
    stored = honest.arrays[name].view(np.uint8)
    aside = random.integers(0, 4, stored.shape, np.uint8) * (random.random(stored.shape) < 0.3)
    changed = (stored ^ aside).view(honest.arrays[name].dtype)
    module = replace(honest, arrays={**honest.arrays, name: changed})
    grid = grid_of(module.scheme)
    assert grid is not None
    rows = rows_of(grid, module.form, module.arrays, "F32", 64, None)
    moves, for_nothing = moves_of((module.weight, False), rows)
    counts = np.array(moves).reshape(PARTS, -1)
    zeros = int((np.frombuffer(changed.tobytes(), np.uint8) & 0x7F == 0).sum()) if scheme == "FP8_DYNAMIC" else 0
    assert for_nothing == zeros  # whose signs nothing decides; integers have one zero
    found = {(part, move - FURTHEST): int(counts[part, move]) for part, move in np.argwhere(counts)}
    assert found == dict(slowly(module))


def of_moves(moves: dict[tuple[int, int], int]) -> tuple[int, ...]:
    table = np.zeros((PARTS, 2 * FURTHEST + 1), np.int64)
    for (part, move), count in moves.items():
        table[part, FURTHEST + move] = count
    return tuple(table.ravel().tolist())


@pytest.mark.parametrize("seed", range(5))
def test_bits_are_the_conditional_entropy_of_the_moves(seed: int) -> None:
    random = np.random.default_rng(seed)
    moves = {
        (part, move): int(random.integers(1, 1000)) for part in range(PARTS) for move in range(1 - FURTHEST, FURTHEST)
    }
    by_part = defaultdict(list)
    for (part, _), count in moves.items():
        by_part[part].append(count)
    total = sum(moves.values())
    expected = sum(-count / total * math.log2(count / sum(counts)) for counts in by_part.values() for count in counts)
    assert entropy(of_moves(moves), 4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("moves", "bits", "further", "rest"),
    [
        ({}, 0.0, 0.0, (0, 0)),
        ({(0, 0): 5, (7, 0): 5}, 0.0, 0.0, (0, 0)),  # nearest
        ({(0, 0): 5, (7, 1): 5}, 0.0, 0.0, (0, 0)),  # what follows from the distance holds nothing
        ({(3, 0): 5, (3, 1): 5}, 1.0, 0.0, (0, 0)),  # rounded up or down at will
        ({(0, 0): 2, (0, 1): 1, (0, -1): 1}, 1.5, 0.0, (1, 1)),
        ({(3, 2): 4}, 0.0, 1.0, (0, 0)),
        ({(3, FURTHEST): 4}, 4.0, 1.0, (0, 0)),  # what is that far is not told: all bits of a code
    ],
)
def test_what_moves_hold(moves: dict[tuple[int, int], int], bits: float, further: float, rest: tuple[int, int]) -> None:
    told = of_moves(moves)
    assert (entropy(told, 4), moved_further(told), at_rest(told)) == (bits, further, rest)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_is_unexplained_in_what_is_exact(scheme: str) -> None:
    module = quantized(hard_weight("normal", "BF16", 32, 256), "BF16", SCHEMES[scheme])
    seen = module.measured()
    assert seen.moves == ()
    assert bits_of_module(module.pair, seen, Judged("module", Verdict.EXACT)) == 0


def test_sign_of_a_zero_is_a_bit_that_nothing_explains() -> None:
    """An NVFP4 code of a zero with a sign stands for the same: such a module is nearest, and not exact."""
    weight = hard_weight("normal", "BF16", 16, 64)
    weight[:, ::4] = 0
    honest = quantized(weight, "BF16", SCHEMES["NVFP4A16"])
    packed = honest.arrays["weight_packed"].copy()
    packed[:, ::2] |= 8  # the first code of every second byte is that of a zero
    module = replace(honest, arrays={**honest.arrays, "weight_packed": packed})
    seen = module.measured()
    assert (seen.not_nearest, seen.different_codes > 0) == (0, True)
    assert bits_of_module(module.pair, seen, Judged("module", Verdict.NEAREST)) >= 0.25


def test_what_lies_beyond_the_last_column_is_unexplained() -> None:
    honest = quantized(hard_weight("normal", "BF16", 16, 60), "BF16", integers(4, group=None))
    words = honest.arrays["weight_packed"].copy()
    words[3, -1] |= np.int32(1 << 28)
    module = replace(honest, arrays={**honest.arrays, "weight_packed": words})
    assert bits_of_module(module.pair, module.measured(), Judged("module", Verdict.NEAREST)) >= 32 / (16 * 60)


def test_everything_is_unexplained_of_a_scheme_that_is_not_known() -> None:
    module = quantized(hard_weight("normal", "BF16", 16, 64), "BF16", integers(4))
    seen = Measure(elements=16 * 64, rows=16, unpredicted=16)
    assert bits_of_module(module.pair, seen, Judged("module", Verdict.DIVERGES)) == 4 + 16 / 32


@pytest.mark.parametrize("scale", [0.0, math.nan, math.inf])
def test_scale_that_is_no_number_leaves_every_code_unexplained(scale: float) -> None:
    module = quantized(hard_weight("normal", "BF16", 16, 32), "BF16", integers(4))
    scales = np.full_like(module.arrays["weight_scale"], bf16_bits(np.array([scale], np.float32))[0])
    seen = replace(module, arrays={**module.arrays, "weight_scale": scales}).measured()
    assert sum(seen.moves) == seen.elements


def test_what_is_chosen_at_will_shows_in_the_bits() -> None:
    """Of weakly compensated codes, which hold few bits of their own: each that is chosen at will holds one."""
    honest = compensated(4, GROUP, True, 0.1, None)
    held = []
    for share in (0, 0.25, 0.5, 1):
        codes = at_will(share)(honest, np.random.default_rng(0)) if share else codes_of(honest)
        held.append(entropy(with_codes(honest, codes).measured(Allowance(dampening=0.1)).moves, 4))
    assert held[0] < 0.85 < min(held[1:])
    assert held[-1] == pytest.approx(1, abs=0.02)


def test_figures_of_two_parts_are_those_of_both() -> None:
    one, other = Measure(moves=(1, 2)), Measure(moves=(3, 4))
    assert (one + other).moves == (4, 6)
    assert (one + Measure()).moves == (Measure() + one).moves == (1, 2)
