"""What a source holds, one weight or tensor at a time, whether it is quantized already or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import FusedExperts, Place, place_of, split_experts, split_parameter
from weighbridge.errors import BuildError, StructureError
from weighbridge.formats.codecs import CODES
from weighbridge.formats.tensors import Tensor
from weighbridge.planning.model import Stored


def check_floats(unit: Unit, *, where: str) -> None:
    """Refuse a unit that would become floats in a layout that no server loads.

    Raises:
        StructureError: it is an expert of gpt-oss.
    """
    if unit.stored is not None and unit.stored.format == "mxfp4":
        raise StructureError(
            f"{unit.module} would become floats, and servers load those of gpt-oss from one transposed tensor alone, "
            "which is not written here",
            where=where,
            remedy="quantize all experts, or keep the source's own",
        )


def check_read_alone(unit: Unit, *, where: str) -> None:
    """Refuse a unit of a quantized source that has no tensors of its own, for calibration, which reads by module.

    Raises:
        BuildError: it is one of several in a tensor of codes.
    """
    if unit.stored is None:
        return
    if unit.stored.coded is None or any(place.expert is not None for place in unit.stored.places.values()):
        raise BuildError(
            f"{unit.module} is stored as codes that calibration cannot read as a module's own",
            where=where,
            remedy="name the base that it was made of, or make floats of it first (method: convert)",
        )


@dataclass(frozen=True, slots=True)
class Unit:
    """A module's weight or a tensor of its own, one expert at a time, as the source holds it.

    Attributes:
        module: its module, as it would be called with experts one by one.
        local: its local name in that module.
        weight: the weight itself, unquantized.
        place: where it lies in the source; of a quantized module, its codes.
        stored: how the source stores it, where that is quantized already.
        fused: the whole tensor that holds it with other experts, where one does.
    """

    module: str
    local: str
    weight: Tensor
    place: Place
    stored: Stored | None = None
    fused: Tensor | None = None

    @property
    def name(self) -> str:
        """What its tensor is called where it is a float."""
        return f"{self.module}.{self.local}" if self.module else self.local


def units_of(source: Checkpoint) -> Iterator[Unit]:
    """Everything that a source holds, in its order; a quantized module stands where its first tensor does."""
    owners = {
        place.tensor: module
        for module, found in source.coded.items()
        for item in found.values()
        for place in item.places.values()
    }
    done: set[str] = set()
    for name, tensor in source.structure.items():
        module = owners.get(name)
        if module is None:
            yield from _kept(name, tensor, source.fused_experts.get(name))
        elif module not in done:
            done.add(module)
            yield from _quantized(source, module)


def _kept(name: str, tensor: Tensor, fused: FusedExperts | None) -> Iterator[Unit]:
    if fused is None:
        yield Unit(*split_parameter(name), tensor, Place(name))
        return
    for part in split_experts(name, tensor, fused):
        yield Unit(*split_parameter(part.name), part.tensor, place_of(name, part), fused=tensor)


def _quantized(source: Checkpoint, module: str) -> Iterator[Unit]:
    assert source.declaration is not None
    for name, item in source.coded[module].items():
        stored = Stored(item.scheme, source.declaration.quant_method, item.coded, item.places)
        assert item.weight is not None  # or it is refused before
        codes = next(iter(item.places.values()))
        if item.coded is not None:
            codes = item.places[item.coded.readings[CODES].local]
        yield Unit(name, "weight", item.weight, codes, stored, item.fused)
