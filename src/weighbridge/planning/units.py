"""What a source holds, one weight or tensor at a time, whether it is quantized already or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from weighbridge.checkpoint.consistency import inconsistencies
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import FUSED_WEIGHT, FusedExperts, split_experts, split_parameter
from weighbridge.errors import StructureError
from weighbridge.formats import DECODED
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import Tensor
from weighbridge.planning.model import Place, Stored, place_of
from weighbridge.report import Severity

DEQUANTIZED = "BF16"
"""The dtype that codes are made into where they become floats."""


def check_source(source: Checkpoint) -> None:
    """Refuse a quantized source that contradicts itself.

    Raises:
        StructureError: with what is wrong with it.
    """
    wrong = next((finding for finding in inconsistencies(source) if finding.severity is Severity.ERROR), None)
    if wrong is not None:
        raise StructureError(f"contradicts itself: {wrong.where} {wrong.message}", where=source.label)


@dataclass(frozen=True, slots=True)
class Unit:
    """A module's weight or a tensor of its own, one expert at a time, as the source holds it.

    Attributes:
        source: the tensor, or for a quantized module that of its codes.
        module: its module, as it would be called with experts one by one.
        local: its local name in that module.
        weight: the weight itself, unquantized.
        places: for a quantized module, local name -> where in the source.
        place: where the tensor itself lies.
        fused: the whole tensor that holds it with other experts, where one does.
    """

    module: str
    local: str
    weight: Tensor
    scheme: Scheme | None
    places: Mapping[str, Place]
    place: Place
    fused: Tensor | None = None
    format: str = ""

    @property
    def name(self) -> str:
        """What its tensor is called where it is a float."""
        return f"{self.module}.{self.local}" if self.module else self.local

    @property
    def stored(self) -> Stored | None:
        """How the source stores it, where that is quantized already."""
        return None if self.scheme is None else Stored(self.scheme, self.format, self.places)


def units_of(source: Checkpoint) -> Iterator[Unit]:
    """Everything that a source holds, in its order; a quantized module stands where its first tensor does."""
    done: set[str] = set()
    for name, tensor in source.structure.items():
        module = name if name in source.schemes else split_parameter(name)[0]
        scheme = source.schemes.get(module)
        if scheme is None or (name != module and split_parameter(name)[1] not in source.modules[module]):
            yield from _kept(name, tensor, source.fused_experts.get(name))
        elif module not in done:
            done.add(module)
            yield from _quantized(source, module, scheme)


def _kept(name: str, tensor: Tensor, fused: FusedExperts | None) -> Iterator[Unit]:
    if fused is None:
        yield Unit(*split_parameter(name), tensor, None, {}, Place(name))
        return
    for part in split_experts(name, tensor, fused):
        module, local = split_parameter(part.name)
        yield Unit(module, local, part.tensor, None, {}, place_of(name, part), tensor)


def _quantized(source: Checkpoint, module: str, scheme: Scheme) -> Iterator[Unit]:
    assert source.declaration is not None
    form = source.declaration.quant_method
    tensors = source.modules[module]
    if FUSED_WEIGHT not in tensors:
        weight = DECODED[form](scheme, tensors)
        assert weight is not None  # the source agrees with itself, and its codes are decoded here
        places = {local: Place(f"{module}.{local}") for local in tensors}
        codes = next(iter(places.values())).tensor
        yield Unit(module, "weight", weight, scheme, places, Place(codes), format=form)
        return
    fused = tensors[FUSED_WEIGHT]
    places_of: dict[str, dict[str, Place]] = {}
    for local, tensor in tensors.items():
        name = module if local == FUSED_WEIGHT else f"{module}.{local}"
        assert tensor.shape[:2] == fused.shape[:2]  # likewise
        for part in split_experts(name, tensor, source.fused_experts[name]):
            expert, stored = split_parameter(part.name)
            places_of.setdefault(expert, {})[stored] = place_of(name, part)
    dtype = next((tensor.dtype for local, tensor in tensors.items() if local == "weight_scale"), DEQUANTIZED)
    for part in split_experts(module, fused, source.fused_experts[module]):
        expert, _ = split_parameter(part.name)
        weight = Tensor(dtype, part.tensor.shape)
        places = places_of[expert]
        yield Unit(expert, "weight", weight, scheme, places, places["weight"], fused, format=form)
