"""Every weight of a checkpoint as float32, one tensor at a time and experts one by one, however it is stored.

What stored codes mean is the audit's own reading of them (`weighbridge.auditing.grid`), not compressed-tensors'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from weighbridge.auditing.grid import Floats, float_values, grid_of, rows_of, spread, values_of
from weighbridge.auditing.pairing import QuantizedPair, is_quantized, modules_of, regions, schemes_of
from weighbridge.auditing.reading import ARRAYS, fill
from weighbridge.auditing.work import read_scale, stored_rows, stored_shape, whole_scale
from weighbridge.checkpoint.consistency import inconsistencies
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.readable import check_measured
from weighbridge.errors import StructureError
from weighbridge.extras.quality.activations import Activations, check_known
from weighbridge.formats import FORMATS, modelopt
from weighbridge.formats.schemes import Scheme, SchemeMismatch
from weighbridge.formats.tensors import FLOATING_SOURCES, Tensor
from weighbridge.report import Severity
from weighbridge.work.reading import Reader
from weighbridge.work.regions import Region


@dataclass(frozen=True)
class Weight:
    """A tensor of a model, as a checkpoint stores it.

    Attributes:
        name: as it would be called unquantized, e.g. ``…experts.7.gate_proj.weight``.
        tensor: its dtype and shape; of a quantized weight, those of the weight and not of its codes.
        label: how messages call the checkpoint.
        reader: what reads the checkpoint.
        kept: where a tensor lies that is stored as it is; None for a quantized one.
        module: what is stored of a quantized one; None for a kept one.
    """

    name: str
    tensor: Tensor
    label: str
    reader: Reader
    kept: Region | None = None
    module: QuantizedPair | None = None


def weights_of(checkpoint: Checkpoint, reader: Reader) -> dict[str, Weight]:
    """Every tensor of the model that a checkpoint stores, by its name.

    Raises:
        StructureError: config.json and the tensors contradict each other, or are quantized in a way not known here.
    """
    label = checkpoint.label
    _check(checkpoint)
    stored, schemes = regions(checkpoint), schemes_of(checkpoint)
    form = checkpoint.declaration.quant_method if checkpoint.declaration else ""
    modules = {name: found for name, found in modules_of(stored, schemes).items() if is_quantized(found)}
    weights: dict[str, Weight] = {}
    taken: set[str] = set()
    for module, found in modules.items():
        pair = _quantized(module, schemes[module], form, found, reader, label=label)
        weights[f"{module}.weight"] = Weight(f"{module}.weight", pair.weight, label, reader, module=pair)
        taken.update(f"{module}.{local}" for local in found)
    for name, region in stored.items():
        if name not in taken:
            weights[name] = Weight(name, region.tensor, label, reader, kept=region)
    return weights


def read_weight(weight: Weight) -> Floats:
    """The weight as float32, of the shape of `Weight.tensor`; codes are multiplied by their scales and rounded once.

    Raises:
        StructureError: it cannot be read, is no float, or holds NaN or infinity.
        HubError: it lies on the hub, which does not answer.
    """
    values = _read_kept(weight) if weight.module is None else _read_quantized(weight.module, weight.reader)
    if not np.isfinite(values).all():
        raise StructureError(
            f"{weight.name} holds NaN or infinity", where=weight.label, remedy="validate.py --source says which"
        )
    return values.reshape(weight.tensor.shape)


def activations_of(weight: Weight) -> Activations | None:
    """How the inputs of a module are quantized; None where they stay as they are.

    Raises:
        StructureError: in a way that is not known here, or by a scale that is not finite and positive.
    """
    if weight.module is None or weight.module.scheme.input_activations is None:
        return None
    module, args = weight.module, weight.module.scheme.input_activations
    check_known(args, where=f"{weight.label}: {module.name}")
    if args.dynamic is True:
        return Activations(args)
    local = "input_global_scale" if "input_global_scale" in module.stored else "input_scale"
    scale = float(read_scale(weight.reader, module.stored[local], local))
    if not (np.isfinite(scale) and scale > 0):
        what = f"{module.name}.{local} is {scale}, where a scale is finite and positive"
        remedy = "calibrate with more text, or show every expert every token (calibration.experts: all)"
        raise StructureError(what, where=weight.label, remedy=remedy)
    if module.form == modelopt.METHOD and args.dynamic == "local":
        scale = float(np.float32(1) / np.float32(scale))
    return Activations(args, scale)


def stored_bytes(weight: Weight) -> int:
    """Bytes that a checkpoint stores for a weight, scales included."""
    if weight.module is None:
        return weight.tensor.nbytes
    return sum(region.tensor.nbytes for region in weight.module.stored.values())


def _check(checkpoint: Checkpoint) -> None:
    check_measured(checkpoint)
    for finding in inconsistencies(checkpoint):
        if finding.severity is Severity.ERROR:
            raise StructureError(f"{finding.where} {finding.message}", where=checkpoint.label, remedy=finding.remedy)


def _quantized(
    module: str, scheme: Scheme, form: str, stored: Mapping[str, Region], reader: Reader, *, label: str
) -> QuantizedPair:
    tensors = {local: region.tensor for local, region in stored.items()}
    weight = FORMATS[form].weight_of(scheme, tensors)
    if weight is None or len(weight.shape) != 2:
        raise StructureError(f"{module} has scales and no weight", where=label)
    pair = QuantizedPair(module, scheme, form, Region("", 0, weight), stored)
    shape = stored_shape(reader, pair) if tensors.get("weight_shape") == Tensor("I64", (2,)) else None
    if shape is not None:
        weight = Tensor(weight.dtype, shape)
        pair = QuantizedPair(module, scheme, form, Region("", 0, weight), stored)
    try:
        expected = FORMATS[form].stored_tensors(scheme, weight)
    except SchemeMismatch as mismatch:
        raise StructureError(f"{module} cannot be {scheme}: {mismatch}", where=label) from None
    wrong = sorted(local for local in expected.keys() | tensors.keys() if expected.get(local) != tensors.get(local))
    if wrong:
        local = wrong[0]
        raise StructureError(
            f"{module}.{local} is {tensors.get(local, 'missing')}; its scheme stores {expected.get(local, 'no such')}",
            where=label,
        )
    if grid_of(scheme) is None or scheme.output_activations is not None:
        raise StructureError(f"{module}: {scheme} is not dequantized here", where=label)
    return pair


def _read_kept(weight: Weight) -> Floats:
    region = weight.kept
    assert region is not None
    if region.tensor.dtype not in FLOATING_SOURCES:
        raise StructureError(f"{weight.name} is {region.tensor}, no weight of a known kind", where=weight.label)
    raw = np.empty(region.tensor.nbytes, np.uint8)
    fill(weight.reader, region, memoryview(raw.data))
    return float_values(raw.view(ARRAYS[region.tensor.dtype]), region.tensor.dtype)


def _read_quantized(module: QuantizedPair, reader: Reader) -> Floats:
    grid = grid_of(module.scheme)
    assert grid is not None
    total, columns = module.weight.shape
    stored = stored_rows(reader, module, ((0, total),))
    scale_dtype = module.stored["weight_scale"].tensor.dtype
    rows = rows_of(grid, module.form, stored, scale_dtype, columns, whole_scale(reader, module))
    return values_of(rows) * spread(rows, rows.divisors)
