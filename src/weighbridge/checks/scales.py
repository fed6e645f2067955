"""The values of calibrated scales, read straight from the shards: there, finite, positive, equal where servers merge.

A scale that calibration never reached is NaN or whatever lay in memory, and a server multiplies by it without a word.
Only scales of one element are read: input scales, global scales, scales of the KV cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import split_parameter
from weighbridge.checkpoint.problems import Problem, findings_of
from weighbridge.checkpoint.renaming import usual_name
from weighbridge.errors import StructureError
from weighbridge.formats.layouts import LAYOUTS
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import StoredTensor
from weighbridge.machine.standing import explained
from weighbridge.planning import FusedGroup
from weighbridge.report import Section

SCALES = frozenset(
    {
        *("input_scale", "output_scale", "weight_scale", "k_scale", "v_scale", "q_scale"),
        *("input_global_scale", "weight_global_scale", "weight_scale_2"),
    }
)
"""Local names of scales; those with more than one element are left to the audit, which reads the weights too."""

GLOBAL_SCALES = ("weight_global_scale", "input_global_scale", "weight_scale_2", "input_scale")
"""What members of a fused group share where weights have a global scale: compressed-tensors' names, and modelopt's for
what it stores as their reciprocals."""

_AGAIN = "calibrate with more text, or show every expert every token (calibration.experts: all)"

_WIDTHS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def scales_sections(checkpoint: Checkpoint, groups: Sequence[FusedGroup]) -> list[Section]:
    """Judge the scales of a checkpoint on disk; empty where it has none of one element and needs none.

    Args:
        checkpoint: with `directory`, `shards` and `schemes`.
        groups: linears that servers merge; those that are not quantized, or have no global scale, are passed over.

    Raises:
        StructureError: a shard cannot be read.
    """
    values = read_scales(checkpoint)
    # Experts that are named the other way round are merged all the same.
    scales = {usual_name(name): value for name, value in values.items()}
    schemes = {usual_name(module): scheme for module, scheme in checkpoint.schemes.items()}
    findings = tuple(findings_of([*_missing(checkpoint), *_bad(values), *_unequal(scales, schemes, groups)]))
    if not values and not findings:
        return []
    judged = "not all as they must be" if findings else "finite, positive, and equal where servers merge"
    return [Section("scales", "its scales", f"{len(values):,} scales of whole tensors are {judged}", findings=findings)]


def read_scales(checkpoint: Checkpoint) -> dict[str, float]:
    """Every scale of one element: tensor name -> value, which F32 and F64 represent exactly.

    Raises:
        StructureError: a shard cannot be read, or is not as long as its header said.
    """
    assert checkpoint.directory is not None
    values: dict[str, float] = {}
    for shard, header in checkpoint.shards.items():
        wanted = {
            name: stored
            for name, stored in header.tensors.items()
            if split_parameter(name)[1] in SCALES and stored.tensor.parameters == 1 and stored.tensor.dtype in _WIDTHS
        }
        path = checkpoint.directory / shard
        values.update(_read(path, header.data_offset, wanted, where=f"{checkpoint.label}/{shard}"))
    return values


def _read(path: Path, offset: int, wanted: Mapping[str, StoredTensor], *, where: str) -> Iterator[tuple[str, float]]:
    with explained(where), path.open("rb") as file:
        for name, stored in wanted.items():
            file.seek(offset + stored.begin)
            raw = file.read(stored.end - stored.begin)
            if len(raw) < stored.end - stored.begin:
                raise StructureError("is cut off", where=where)
            yield name, _decoded(raw, stored.tensor.dtype)


def _decoded(raw: bytes, dtype: str) -> float:
    number = np.frombuffer(raw, _WIDTHS[dtype])
    if dtype == "BF16":  # the upper half of an F32
        number = (number.astype("<u4") << np.uint32(16)).view("<f4")
    return float(number[0])


def _missing(checkpoint: Checkpoint) -> Iterator[Problem]:
    if checkpoint.declaration is not None and checkpoint.declaration.quant_method in LAYOUTS:
        return  # named by what the checkpoint is held against itself by, and by that method's own names
    for module, scheme in checkpoint.schemes.items():
        activations = scheme.input_activations
        if activations is None or activations.dynamic is True:
            continue
        local = "input_global_scale" if activations.dynamic == "local" else "input_scale"
        if not any(f"{module}.{name}" in checkpoint.structure for name in (local, "input_scale")):
            what = "missing: the scheme has static activations"
            yield "calibration/no-input-scale", f"{module}.{local}", what, _AGAIN


def _bad(values: Mapping[str, float]) -> Iterator[Problem]:
    for name, value in values.items():
        problem = _problem(value)
        if problem:
            yield "calibration/bad-scale", name, f"is {problem}; a scale is finite and positive", _AGAIN


def _problem(value: float) -> str:
    if np.isnan(value):
        return "NaN"
    if np.isinf(value):
        return "infinite"
    return "" if value > 0 else "zero" if value == 0 else "negative"


def _unequal(
    values: Mapping[str, float], schemes: Mapping[str, Scheme], groups: Sequence[FusedGroup]
) -> Iterator[Problem]:
    for parent, members, _ in groups:
        modules = [f"{parent}.{member}" for member in members if f"{parent}.{member}" in schemes]
        if not all(schemes[module].weights.strategy == "tensor_group" for module in modules):
            continue
        for local in GLOBAL_SCALES:
            found = {module: values[f"{module}.{local}"] for module in modules if f"{module}.{local}" in values}
            first = next(iter(found.values()), np.nan)
            others = tuple(split_parameter(module)[1] for module, value in found.items() if value != first)
            if others and not np.isnan(first):  # NaN differs from itself, and is found already
                what = f"differs from that of {' and '.join(others)}, which servers merge with it under one scale"
                remedy = "a server takes one of them for all; build again with the group in fused_groups"
                yield "calibration/unequal-scales", f"{next(iter(found))}.{local}", what, remedy
