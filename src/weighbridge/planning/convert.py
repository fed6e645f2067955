"""Plans that convert: a quantized source in another format, with modules dequantized or experts regrouped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from weighbridge.checkpoint.coded import OF_THE_CACHE
from weighbridge.checkpoint.consistency import check_consistent
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import FUSED_EXPERTS, Place, split_parameter
from weighbridge.errors import Argument, Clause, StructureError
from weighbridge.formats import FORMATS, modelopt
from weighbridge.formats.declaration import LINEAR, Declaration, Group
from weighbridge.formats.schemes import Scheme, SchemeMismatch
from weighbridge.formats.tensors import FLOATING_SOURCES, Tensor
from weighbridge.planning.declare import declaration_in, declare, linears
from weighbridge.planning.model import (
    Decision,
    Obstacle,
    Part,
    Plan,
    by_entry,
    find_fused_groups,
    tied_heads,
)
from weighbridge.planning.quantize import KV_CACHE_SCALES, check_names
from weighbridge.planning.units import Unit, check_floats, units_of
from weighbridge.recipe import Conversion, LoadedRecipe
from weighbridge.text.patterns import PatternList, pattern_list

KEPT = Decision("kept as the source stores it")

_EXPERT = re.compile(r"(?P<layer>.*)\.(?P<expert>[0-9]{1,6})\.(?P<member>gate_proj|up_proj|down_proj)")
_FUSED_OF = {member: fused for fused, members in FUSED_EXPERTS.items() for member in members}


def plan_conversion(loaded: LoadedRecipe, source: Checkpoint) -> Plan:
    """Decide what becomes of every tensor of a source that a recipe with ``method: convert`` names.

    Raises:
        StructureError: the source is not quantized, contradicts itself, or has experts that cannot be regrouped.
    """
    assert loaded.recipe.convert is not None
    if source.declaration is None:
        raise StructureError(
            "is not quantized, and a conversion starts from what is",
            where=source.label,
            remedy=Clause(f"name a build of {loaded.recipe.base.model} as ", Argument("source")),
        )
    return plan_rewrite(loaded, source, loaded.recipe.convert)


def plan_rewrite(loaded: LoadedRecipe, source: Checkpoint, changes: Conversion) -> Plan:
    """Decide what becomes of every tensor of a quantized `source` in the recipe's format and after `changes`.

    Raises:
        StructureError: as `plan_conversion`.
    """
    check_consistent(source)
    if source.declaration is not None and source.declaration.attention:
        raise StructureError("a config group of attention is not converted", where=source.label)
    target = loaded.recipe.format
    chooser = _Chooser(loaded, changes)
    units = list(units_of(source))
    layers = _Layers(units, source.label) if changes.experts == "fused" else None
    chosen = [chooser.choose(unit) for unit in units]
    for unit, (scheme, _) in zip(units, chosen, strict=True):
        if scheme is None:
            check_floats(unit, where=source.label)
    dropped = _dropped(source, units, [scheme for scheme, _ in chosen], target)
    parts: list[Part] = []
    obstacles: list[Obstacle] = []
    for unit, (scheme, decision) in zip(units, chosen, strict=True):
        if unit.stored is None and unit.place.tensor in dropped:
            continue
        if unit.local in KV_CACHE_SCALES and source.declaration and source.declaration.quant_method != target:
            where = f"{source.label}: {unit.place.tensor}"
            raise StructureError("scales of the KV cache are not converted", where=where)
        if scheme is not None and unit.stored is not None and unit.stored.format not in FORMATS:
            raise StructureError(
                f"is stored by the method {unit.stored.format}, whose codes are made floats here and not rewritten",
                where=f"{source.label}: {unit.place.tensor}",
                remedy="name it in convert.dequantize, or quantize the source by a recipe of another method",
            )
        try:
            stored = _rewritten(unit, scheme, target, source) if scheme else {}
            parts.append(_part(unit, scheme, decision, stored, layers, changes))
        except SchemeMismatch as mismatch:
            if scheme is None:
                raise StructureError(str(mismatch), where=f"{source.label}: {unit.place.tensor}") from None
            reason = str(mismatch)
            obstacles.append(Obstacle(unit.place.tensor, unit.module, unit.weight, scheme, None, mismatch.rule, reason))
            parts.append(_part(unit, None, decision, {}, layers, changes))
    check_names(parts, where=source.label)
    declaration = _declaration(parts, source, loaded.recipe.fused_groups)
    if OF_THE_CACHE in dropped.values():
        declaration = replace(declaration, kv_cache=None)
    quantization, documents = declare(declaration, parts, source, format=target)
    return Plan(loaded, source, tuple(parts), tuple(obstacles), quantization, documents=documents, dropped=dropped)


def _dropped(
    source: Checkpoint, units: Sequence[Unit], schemes: Sequence[Scheme | None], format: str
) -> Mapping[str, str]:
    """What does not go along: the scales of activations of what becomes floats, and those of the KV cache where all of
    it does and another format would declare them.

    Args:
        schemes: what each unit is stored as afterwards.
    """
    floats = {unit.module for unit, scheme in zip(units, schemes, strict=True) if unit.stored and scheme is None}
    if not floats:
        return {}
    all_of_it = not any(schemes) and source.declaration is not None and source.declaration.quant_method != format
    return {
        name: why
        for name, why in source.dropped.items()
        if (all_of_it if why == OF_THE_CACHE else split_parameter(name)[0] in floats)
    }


class _Chooser:
    """Says what each module is to be, and which line of the recipe says so."""

    def __init__(self, loaded: LoadedRecipe, changes: Conversion) -> None:
        self.dequantized: PatternList = pattern_list(tuple(changes.dequantize))
        self.decisions = [
            by_entry(loaded, f"dequantize {entry}", "convert", "dequantize", index)
            for index, entry in enumerate(changes.dequantize)
        ]

    def choose(self, unit: Unit) -> tuple[Scheme | None, Decision]:
        if unit.stored is None:
            return None, KEPT
        index = self.dequantized.first(unit.module)
        return (unit.stored.scheme, KEPT) if index is None else (None, self.decisions[index])


def _rewritten(unit: Unit, scheme: Scheme, target: str, source: Checkpoint) -> dict[str, Tensor]:
    """What a format stores for a module that keeps its codes; its scales keep their dtype, where they may.

    Raises:
        SchemeMismatch: the format, or that of the source, is not written for such a scheme.
    """
    assert unit.stored is not None
    FORMATS[unit.stored.format].stored_tensors(scheme, unit.weight)
    stored = FORMATS[target].stored_tensors(scheme, unit.weight)
    if target == modelopt.METHOD:
        return stored
    for local in ("weight_scale", "input_scale"):
        place = unit.stored.places.get(local)
        dtype = source.structure[place.tensor].dtype if place is not None else ""
        if local in stored and dtype in FLOATING_SOURCES:
            stored[local] = Tensor(dtype, stored[local].shape)
    return stored


def _part(
    unit: Unit,
    scheme: Scheme | None,
    decision: Decision,
    stored: Mapping[str, Tensor],
    layers: _Layers | None,
    changes: Conversion,
) -> Part:
    """The part of a unit, with the tensors that it is written to."""
    was = None if unit.stored is None else replace(unit.stored, becomes="rewrite")
    locals_ = dict(stored) or {unit.local: unit.weight}
    expert = _EXPERT.fullmatch(unit.module)
    fused = layers is not None or (unit.fused is not None and changes.experts == "as-stored")
    if expert is None or not fused or (unit.fused is None and not _is_linear(unit)):
        outputs = {f"{unit.module}.{local}" if unit.module else local: tensor for local, tensor in locals_.items()}
        return Part(unit.place, unit.module, unit.weight, scheme, decision, outputs, was)
    count, members = (
        layers.of(expert["layer"], expert["member"]) if layers is not None else _layout_of(unit, expert["member"])
    )
    module = f"{expert['layer']}.{_FUSED_OF[expert['member']]}"
    outputs, into = {}, {}
    for local, tensor in locals_.items():
        if len(tensor.shape) != 2 or tensor.shape[0] != unit.weight.shape[0]:
            raise SchemeMismatch("scheme/fused-experts", f"fused experts have no place for {local} {tensor}")
        name = module if local == "weight" else f"{module}.{local}"
        rows, columns = tensor.shape
        outputs[name] = Tensor(tensor.dtype, (count, rows * len(members), columns))
        into[name] = Place(name, int(expert["expert"]), rows * members.index(expert["member"]))
    return Part(unit.place, module, unit.weight, scheme, decision, outputs, was, into)


def _is_linear(unit: Unit) -> bool:
    return unit.local == "weight" and len(unit.weight.shape) == 2


def _layout_of(unit: Unit, member: str) -> tuple[int, Sequence[str]]:
    """Number of experts and members in the order of rows, of the fused tensor that a unit is part of."""
    assert unit.fused is not None
    return unit.fused.shape[0], FUSED_EXPERTS[_FUSED_OF[member]]


class _Layers:
    """The experts of each layer, which fused tensors hold all together or not at all."""

    def __init__(self, units: Sequence[Unit], where: str) -> None:
        found: dict[tuple[str, str], dict[tuple[int, str], Unit]] = {}
        for unit in units:
            match = _EXPERT.fullmatch(unit.module)
            if match is not None and _is_linear(unit):
                group = found.setdefault((match["layer"], _FUSED_OF[match["member"]]), {})
                group[int(match["expert"]), match["member"]] = unit
        self.counts: dict[tuple[str, str], int] = {}
        for (layer, fused), group in found.items():
            members = FUSED_EXPERTS[fused]
            count = len(group) // len(members)
            complete = group.keys() == {(expert, member) for expert in range(count) for member in members}
            kinds = {(unit.weight, unit.stored and unit.stored.scheme) for unit in group.values()}
            if not complete or len(kinds) > 1:
                raise StructureError(
                    f"the experts of {layer} are not all there, or not all alike, and cannot be one tensor", where=where
                )
            self.counts[layer, fused] = count

    def of(self, layer: str, member: str) -> tuple[int, Sequence[str]]:
        """Number of experts and members in the order of rows, of the fused tensor for this member."""
        fused = _FUSED_OF[member]
        return self.counts[layer, fused], FUSED_EXPERTS[fused]


def _declaration(parts: Sequence[Part], source: Checkpoint, merged: Sequence[Sequence[str]]) -> Declaration:
    """What the output declares, by effect: every linear that is not quantized is named.

    Beside a kept member of a merged linear stands the member that is not stored (the values that are the keys), too:
    servers ask for each.
    """
    quantized = {part.module: part.scheme for part in parts if part.scheme is not None}
    schemes = sorted(set(quantized.values()), key=str)
    kept = set(linears(parts)).difference(quantized)
    groups: tuple[Group, ...]
    if len(schemes) == 1:
        groups = (Group((LINEAR,), schemes[0]),)
    else:
        members = {scheme: [module for module in quantized if quantized[module] == scheme] for scheme in schemes}
        groups = tuple(Group(tuple(sorted(members[scheme])), scheme) for scheme in schemes)
    fused = find_fused_groups(kept, merged, source.family)
    absent = {f"{group.parent}.{member}" for group in fused for member in group.absent}
    ignore = sorted(kept | absent | tied_heads(source.config, [part.module for part in parts]))
    return declaration_in(groups, ignore, source.declaration.kv_cache if source.declaration else None)
