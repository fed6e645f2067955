"""Weights that a conversion made floats again: what the codes of round-to-nearest mean, not what was there before."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

from weighbridge.audit.grid import Array
from weighbridge.audit.judge import group_amaxes
from weighbridge.audit.method import Method
from weighbridge.audit.pairing import KeptPair, Region
from weighbridge.audit.reading import ARRAYS, Reader
from weighbridge.engines.kernels import SchemeNotCovered, load_kernels
from weighbridge.engines.rewriting import COMPRESSED_TENSORS, Rewrite, Stored, rewritten
from weighbridge.formats.schemes import Scheme, stored_tensors
from weighbridge.formats.tensors import Tensor
from weighbridge.patterns import pattern_list
from weighbridge.plan import make_plan
from weighbridge.structure.checkpoint import Checkpoint
from weighbridge.structure.modules import split_parameter

DEQUANTIZED = "BF16"


def find_dequantized(
    differing: list[KeptPair], method: Method, base: Checkpoint, checkpoint: Reader, source: Reader
) -> frozenset[str]:
    """Names of the tensors that are, bit by bit, what the base's weights become when rounded and made floats again.

    Whole weights are read, and a largest value counts as it is, or as that of the fused group.

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
    amaxes = {name: _amax(item, source) for name, item in asked.items()}
    groups = group_amaxes(amaxes, plan.fused_groups)
    return frozenset(
        item.name
        for name, item in asked.items()
        if any(_is_rounded(item, plan.schemes[name], amax, checkpoint, source) for amax in {groups[name], amaxes[name]})
    )


def _amax(item: KeptPair, source: Reader) -> float:
    return load_kernels("cpu").amax(_whole(item.source, source), item.source.tensor.dtype)


def _is_rounded(item: KeptPair, scheme: Scheme, amax: float, checkpoint: Reader, source: Reader) -> bool:
    tensor = item.source.tensor
    try:
        arrays = load_kernels("cpu").quantize(_whole(item.source, source), tensor.dtype, scheme, amax=amax)
    except SchemeNotCovered:
        return False
    expected = stored_tensors(scheme, tensor)
    stored = {local: Stored(expected[local], array.tobytes()) for local, array in arrays.items()}
    if "weight_shape" in expected:
        stored["weight_shape"] = Stored(Tensor("I64", (2,)), struct.pack("<2q", *tensor.shape))
    contents: Mapping[str, bytes] = rewritten(Rewrite(scheme, COMPRESSED_TENSORS, None), stored).contents
    found = _whole(item.stored, checkpoint)
    return item.stored.tensor.dtype == DEQUANTIZED and contents.get("weight") == found.tobytes()


def _whole(region: Region, reader: Reader) -> Array:
    target = np.empty(region.tensor.nbytes, np.uint8)
    reader.read(region.file, region.offset, memoryview(target.data))
    return target.view(ARRAYS[region.tensor.dtype]).reshape(region.tensor.shape)
