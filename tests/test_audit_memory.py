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
