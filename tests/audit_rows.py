"""Rows of one module, held by the audit against a base, both in memory: what single limits are tested with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.kernel_agreement import COVERED
from weighbridge.auditing.measure import Measure
from weighbridge.auditing.pairing import QuantizedPair
from weighbridge.auditing.pieces import Strip
from weighbridge.auditing.work import STRICT, Allowance, Job, examine, volume_of
from weighbridge.formats import FORMATS
from weighbridge.formats.schemes import QuantizationArgs, Scheme
from weighbridge.formats.tensors import Tensor
from weighbridge.numbers import load_kernels
from weighbridge.work.regions import Region

Array = np.ndarray[Any, Any]


def integers(bits: int, *, group: int | None = 32, symmetric: bool = True) -> Scheme:
    """Packed integers in groups, or per row."""
    strategy = "channel" if group is None else "group"
    return Scheme(QuantizationArgs(bits, "int", strategy, symmetric=symmetric, group_size=group))


SCHEMES: Mapping[str, Scheme] = {
    **{name: scheme for name, scheme in COVERED.items() if scheme.weights.symmetric},
    "W4A16 in groups of 32": integers(4),
    "W8A16 in groups of 32": integers(8),
    "W4A16 per row": integers(4, group=None),
}
"""Every scheme that the kernels cover."""


class Memory:
    """A checkpoint of named arrays, as a `Reader`."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.contents = {name: np.ascontiguousarray(array).tobytes() for name, array in arrays.items()}

    def read(self, file: str, offset: int, target: memoryview) -> None:
        """See `Reader`."""
        target[:] = self.contents[file][offset : offset + len(target)]


@dataclass(frozen=True)
class Module:
    """A quantized module beside its base.

    Attributes:
        weight: raw elements of `dtype`, [rows, columns].
        arrays: local name -> what is stored.
    """

    weight: Array
    dtype: str
    scheme: Scheme
    arrays: Mapping[str, Array]
    form: str = "compressed-tensors"
    given: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def pair(self) -> QuantizedPair:
        """As the audit pairs them."""
        whole = Tensor(self.dtype, (self.weight.shape[0], self.weight.shape[1]))
        tensors = {**FORMATS[self.form].stored_tensors(self.scheme, whole), **self.given}
        stored = {name: Region(name, 0, tensors[name]) for name in self.arrays}
        return QuantizedPair("module", self.scheme, self.form, Region("base", 0, whole), stored)

    def measured(self, allowance: Allowance = STRICT) -> Measure:
        """What the audit measures of all rows."""
        job = Job((self.pair,), Memory(self.arrays), Memory({"base": self.weight}), {"module": allowance})
        return examine(job, self.pair, Strip(0, ((0, len(self.weight)),), self.weight.nbytes))

    def volume(self, allowance: Allowance = STRICT) -> float:
        """The volume that the audit measures of its errors."""
        job = Job((self.pair,), Memory(self.arrays), Memory({"base": self.weight}), {"module": allowance})
        found = volume_of(job, self.pair)
        assert found is not None
        return found


def quantized(weight: Array, dtype: str, scheme: Scheme) -> Module:
    """A weight as the project's kernels round it, to llm-compressor's bytes."""
    return Module(weight, dtype, scheme, dict(load_kernels("cpu").quantize(weight, dtype, scheme)))


def bf16(values: Array) -> Array:
    """The bit patterns of values that BF16 has."""
    patterns: Array = (np.ascontiguousarray(values, np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    assert bool(((patterns.astype(np.uint32) << np.uint32(16)).view(np.float32) == values).all()), "are no BF16"
    return patterns
