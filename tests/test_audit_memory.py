"""What a worker of an audit or of a comparison holds in memory: no more than it is counted with, and not much less."""

from __future__ import annotations

import importlib
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.audit_rows import SCHEMES, Memory, Module, quantized
from weighbridge.auditing.arithmetic import narrowed
from weighbridge.auditing.grid import grid_of, rows_of, spread, values_of
from weighbridge.auditing.pairing import KeptPair
from weighbridge.auditing.run import WORKER_PIECES
from weighbridge.auditing.work import STRICT, Allowance
from weighbridge.formats.tensors import DTYPE_BITS, Tensor
from weighbridge.work.pieces import PIECE_BYTES
from weighbridge.work.regions import Region

COLUMNS = 2048
GREEDIEST = "F16", "NVFP4A16"
"""Of all dtypes and schemes: rows are widened, and scales are many."""

Array = np.ndarray[Any, Any]

compare: Any = importlib.import_module("weighbridge.auditing.compare")
dequantized: Any = importlib.import_module("weighbridge.auditing.dequantized")
recomputed: Any = importlib.import_module("weighbridge.auditing.recomputed")


def piece(dtype: str, scheme: str) -> Module:
    """A module that is one piece of its base."""
    rows = PIECE_BYTES * 8 // DTYPE_BITS[dtype] // COLUMNS
    wide = np.random.default_rng(0).standard_normal((rows, COLUMNS)).astype(np.float32)
    raw: dict[str, Array] = {
        "BF16": (wide.view(np.uint32) >> np.uint32(16)).astype(np.uint16),
        "F16": wide.astype(np.float16),
        "F32": wide,
    }
    module = quantized(raw[dtype], dtype, SCHEMES[scheme])
    module.measured(smoothing(module))  # compiles all that is measured by
    module.measured()
    return module


def most_pieces(work: Callable[[], object]) -> float:
    """The most that work in a new thread held at a time, in pieces."""
    peaks = []

    def watched() -> None:
        tracemalloc.start()
        work()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    thread = threading.Thread(target=watched)
    thread.start()
    thread.join()
    return float(peaks[0]) / PIECE_BYTES


def smoothing(module: Module) -> Allowance:
    rows, columns = module.weight.shape
    return Allowance(columns=np.ones(columns, np.float32), rows=np.ones(rows, np.float32), slack=0.01, dampening=0.01)


def beside_itself(module: Module) -> object:
    """A module compared with itself, quantized and as it was."""
    shape = Tensor(module.dtype, (len(module.weight), COLUMNS))
    stored, source = Memory(module.arrays), Memory({"base": module.weight})
    side = compare._Side(shape, pair=module.pair)
    kept = compare._Side(shape, region=Region("base", 0, shape))
    compare._parting((stored, stored), compare._Shared("module.weight", (side, side)))
    return compare._parting((source, source), compare._Shared("module.weight", (kept, kept)))


def test_tensors_are_compared_with_those_of_a_second_run_in_parts() -> None:
    """The larger a part, the more memory; the smaller, the more reads."""
    size = 10 * 1024 * 1024
    reads: list[tuple[int, int]] = []

    class Counting(Memory):
        def read(self, file: str, offset: int, target: memoryview) -> None:
            reads.append((offset, len(target)))
            super().read(file, offset, target)

    stored, again = (Counting({"shard": np.zeros(size, np.uint8)}) for _ in range(2))
    region = Region("shard", 0, Tensor("U8", (size,)))
    assert recomputed._same(stored, region, again, region)
    part = PIECE_BYTES
    assert reads[::2] == reads[1::2] == [(0, part), (part, part), (2 * part, size - 2 * part)]


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "NVFP4A16", "W4A16"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_worker_holds_no_more_than_it_is_counted_with(dtype: str, scheme: str) -> None:
    module = piece(dtype, scheme)
    assert most_pieces(lambda: module.measured(smoothing(module))) <= WORKER_PIECES
    assert most_pieces(lambda: module.measured(STRICT)) <= WORKER_PIECES
    assert most_pieces(lambda: beside_itself(module)) <= compare.WORKER_PIECES


def test_worker_is_not_counted_with_much_more_than_it_holds() -> None:
    module = piece(*GREEDIEST)
    assert most_pieces(lambda: module.measured(smoothing(module))) > 0.9 * WORKER_PIECES
    assert most_pieces(lambda: beside_itself(module)) > 0.9 * compare.WORKER_PIECES


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK", "W4A16"])
def test_weight_that_was_made_floats_again_is_held_against_the_base_in_parts(scheme: str) -> None:
    """Whatever its size, and down to its last element."""
    module, columns = piece("BF16", scheme), COLUMNS
    weight = np.concatenate([module.weight] * 5)
    whole = quantized(weight, "BF16", SCHEMES[scheme])
    grid = grid_of(whole.scheme)
    assert grid is not None
    rows = rows_of(grid, whole.form, dict(whole.arrays), whole.pair.stored["weight_scale"].tensor.dtype, columns, None)
    floats = narrowed(values_of(rows) * spread(rows, rows.divisors), "BF16")
    again = (floats.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    shape = Tensor("BF16", weight.shape)
    item = KeptPair("module.weight", Region("base", 0, shape), Region("again", 0, shape))
    source = Memory({"base": weight})

    def is_rounded(stored: Memory) -> bool:
        amax = dequantized._amax(item, whole.scheme, source)
        return bool(dequantized._is_rounded(item, whole.scheme, amax, stored, source))

    made = Memory({"again": again})
    assert is_rounded(made)
    assert most_pieces(lambda: is_rounded(made)) <= WORKER_PIECES
    again[-1, -1] ^= 1
    assert not is_rounded(Memory({"again": again}))


def test_rows_that_are_longer_than_a_piece_count_as_what_they_are() -> None:
    """Blocks hold rows together, as many as 128 of them."""
    rows = compare._Side(Tensor("BF16", (256, PIECE_BYTES // 100)))
    assert rows.largest == 128 * 2 * (PIECE_BYTES // 100) > PIECE_BYTES
    assert compare._Side(Tensor("BF16", (PIECE_BYTES, 2))).largest == PIECE_BYTES
