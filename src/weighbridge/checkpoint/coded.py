"""The quantized modules of a checkpoint as codes that stand for weights, experts one at a time however they lie.

Beside them quantization leaves what goes along with codes alone: scales of activations and of the KV cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from weighbridge.checkpoint.attention_scales import attention_scales
from weighbridge.checkpoint.modules import (
    FUSED_WEIGHT,
    FusedExperts,
    Place,
    place_of,
    split_experts,
    split_parameter,
    tensor_name,
)
from weighbridge.checkpoint.quantized import Modules, is_quantized
from weighbridge.families import Family
from weighbridge.formats import FORMATS
from weighbridge.formats.codecs import Coded, Undecodable, coded
from weighbridge.formats.declaration import Declaration
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import Structure, Tensor

OF_ACTIVATIONS = frozenset(
    {
        *("input_scale", "input_global_scale", "input_zero_point", "output_scale", "output_zero_point"),
        *("activation_scale", "qscale_act"),
    }
)
"""Local names of what belongs to the activations of a module whose weight is quantized."""

OF_THE_CACHE = "is a scale of the KV cache, which the recipe says anew, or leaves in the model's dtype"

_BIAS = "_bias"


@dataclass(frozen=True, slots=True)
class CodedModule:
    """A module that a checkpoint stores as codes.

    Attributes:
        scheme: what is declared of it.
        weight: the weight that its codes stand for; None where nobody here knows.
        coded: how they do; None where they are not decoded here.
        undecoded: why not.
        places: local name -> where it lies.
        fused: the tensor whose part its codes are, where that holds all experts.
    """

    scheme: Scheme
    weight: Tensor | None
    coded: Coded | None
    undecoded: str
    places: Mapping[str, Place]
    fused: Tensor | None = None


def coded_modules(
    declaration: Declaration, modules: Modules, schemes: Mapping[str, Scheme], fused: Mapping[str, FusedExperts]
) -> dict[str, Mapping[str, CodedModule]]:
    """Every module that is stored quantized -> how its codes are read, by its name; of fused experts, by those of each.

    Args:
        modules: as `quantizable_modules` finds them.
        schemes: what is declared of them.
        fused: how the experts lie in the tensors that hold all of a layer.
    """
    return {
        module: dict(_read(declaration, module, scheme, modules[module], fused))
        for module, scheme in schemes.items()
        if is_quantized(modules.get(module, {}))
    }


def _read(
    declaration: Declaration,
    module: str,
    scheme: Scheme,
    tensors: Mapping[str, Tensor],
    fused: Mapping[str, FusedExperts],
) -> Iterator[tuple[str, CodedModule]]:
    if FUSED_WEIGHT not in tensors and not any(local.startswith("_") for local in tensors):
        yield module, _module(declaration, scheme, tensors, {local: Place(f"{module}.{local}") for local in tensors})
        return
    names = {local: tensor_name(module, local) for local in tensors if local != _BIAS}  # a bias stays a float
    unknown = next((name for name in names.values() if name not in fused), None)
    if unknown is not None:
        why = f"all experts lie in one tensor, and of {unknown} it is not known how"
        yield module, CodedModule(scheme, None, None, why, {local: Place(name) for local, name in names.items()})
        return
    stored: dict[str, dict[str, Tensor]] = {}
    places: dict[str, dict[str, Place]] = {}
    for local, name in names.items():
        for part in split_experts(name, tensors[local], fused[name]):
            expert, own_local = split_parameter(part.name)
            stored.setdefault(expert, {})[own_local] = part.tensor
            places.setdefault(expert, {})[own_local] = place_of(name, part)
    whole = next(tensors[local] for local in (FUSED_WEIGHT, *tensors) if local in tensors)
    for expert, own in stored.items():
        yield expert, replace(_module(declaration, scheme, own, places[expert]), fused=whole)


def _module(
    declaration: Declaration, scheme: Scheme, tensors: Mapping[str, Tensor], places: Mapping[str, Place]
) -> CodedModule:
    method = declaration.quant_method
    try:
        read = coded(method, declaration.format, scheme, tensors)
    except Undecodable as reason:
        weight = FORMATS[method].weight_of(scheme, tensors) if method in FORMATS else None
        return CodedModule(scheme, weight, None, str(reason), places)
    turned = {reading.local for reading in read.readings.values() if reading.transposed}
    lying = {local: place._replace(transposed=True) if local in turned else place for local, place in places.items()}
    return CodedModule(scheme, read.weight, read, "", lying)


def dropped_scales(structure: Structure, declaration: Declaration, modules: Modules, family: Family) -> dict[str, str]:
    """What goes along with codes and not with the weights that they stand for: its name -> why.

    Args:
        modules: those that are stored quantized.
    """
    activations = "is a scale of activations, which goes along with the codes that it was calibrated for"
    dropped = {
        tensor_name(module, local): activations
        for module, tensors in modules.items()
        for local in tensors
        if local in OF_ACTIVATIONS
    }
    return dropped | {scale.name: OF_THE_CACHE for scale in attention_scales(structure, declaration, family)}
