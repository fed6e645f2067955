"""Plans that quantize: which scheme each weight of a float source gets, and what decided that."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from weighbridge.checkpoint.consistency import check_consistent
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import is_embedding, split_parameter
from weighbridge.checkpoint.readable import check_read_by_transformers
from weighbridge.errors import StructureError
from weighbridge.families import Role
from weighbridge.formats import FORMATS
from weighbridge.formats.codecs import DECODED
from weighbridge.formats.declaration import LINEAR, Group
from weighbridge.formats.schemes import Scheme, SchemeMismatch
from weighbridge.formats.tensors import FLOATING_SOURCES, Tensor
from weighbridge.planning.declare import declaration_of, declare
from weighbridge.planning.model import Decision, Obstacle, Part, Plan, by_entry
from weighbridge.planning.units import Unit, check_floats, check_read_alone, units_of
from weighbridge.recipe import LoadedRecipe
from weighbridge.text.patterns import PatternList, pattern_list

KV_CACHE_SCALES = ("k_scale", "v_scale")

_WEIGHTS_ALONE = Decision("only tensors named .weight are quantized")
_NORMS = Decision("modules whose name ends in norm are kept")
_LINEAR_MODULES = Decision("oneshot quantizes Linear modules")
_UNTARGETED = Decision("no config group targets it")


def plan_quantization(loaded: LoadedRecipe, source: Checkpoint) -> Plan:
    """Decide what becomes of every tensor of a `source`; codes of one that is quantized already are made BF16 first.

    Decisions are llm-compressor's own: fused experts are split first; then a ``.weight`` whose module is targeted,
    not ignored, and does not end in ``norm`` is quantized (``match_quantizable_tensors``, compressed-tensors 0.19.0).

    Raises:
        StructureError: two tensors of the source would be written under one name; a quantized source contradicts
            itself, or would become floats that no server loads; or the recipe calibrates what transformers cannot load.
        BuildError: the recipe calibrates, and codes of several modules lie in one tensor.
    """
    recipe = loaded.recipe
    if recipe.method == "oneshot":
        check_read_by_transformers(source)
    chooser = _Chooser(loaded)
    parts: list[Part] = []
    obstacles: list[Obstacle] = []
    if source.declaration is not None:
        check_consistent(source)
    for unit in units_of(source):
        if unit.place.tensor in source.dropped and unit.stored is None:
            continue
        module, weight = unit.module, unit.weight
        scheme, decision = chooser.choose(unit)
        outputs = {unit.name: weight}
        if scheme is not None:
            try:
                tensors = _stored(recipe.format, scheme, weight)
                outputs = {f"{module}.{local}": tensor for local, tensor in tensors.items()}
            except SchemeMismatch as mismatch:
                name = unit.place.tensor
                obstacles.append(Obstacle(name, module, weight, scheme, decision, mismatch.rule, str(mismatch)))
                scheme = None
        else:
            check_floats(unit, where=source.label)
        if recipe.method == "oneshot":
            check_read_alone(unit, where=source.label)
        parts.append(Part(unit.place, module, weight, scheme, decision, outputs, unit.stored))
    check_names(parts, where=source.label)
    quantization, documents = declare(declaration_of(recipe), parts, source, format=recipe.format)
    return Plan(
        loaded=loaded,
        source=source,
        parts=tuple(parts),
        obstacles=tuple(obstacles),
        quantization=quantization,
        additions=_kv_cache_scales(loaded, source),
        documents=documents,
        dropped=source.dropped,
    )


def check_names(parts: Sequence[Part], *, where: str) -> None:
    """Refuse parts that would be written to one place.

    Raises:
        StructureError: with the name.
    """
    written: set[object] = set()
    for part in parts:
        places = [part.into.get(name, name) for name in part.outputs]
        if not written.isdisjoint(places):
            twice = min(str(place) for place in places if place in written)
            raise StructureError(f"two of its tensors would both become {twice!r}", where=where)
        written.update(places)


def _kv_cache_scales(loaded: LoadedRecipe, source: Checkpoint) -> dict[str, Tensor]:
    """The scales of keys and values that a calibrated KV cache adds to each attention of the language model.

    One BF16 [1] for keys and one for values beside the projections, on layers too whose values are the keys
    (``initialize_hooked_kv_cache`` and ``QuantizedKVCache``, compressed-tensors 0.19.0).
    """
    cache = loaded.recipe.kv_cache
    if cache is None or cache.scales == "none":
        return {}
    added = {}
    for name, tensor in source.structure.items():
        attention, _, member = split_parameter(name)[0].rpartition(".")
        if member == "k_proj" and name.endswith(".weight") and source.family.role_of(attention) is Role.ATTENTION:
            dtype = tensor.dtype if tensor.dtype in FLOATING_SOURCES else DECODED
            added.update({f"{attention}.{scale}": Tensor(dtype, (1,)) for scale in KV_CACHE_SCALES})
    return added


@lru_cache(maxsize=1024)  # experts are many and alike
def _stored(format: str, scheme: Scheme, weight: Tensor) -> dict[str, Tensor]:
    return FORMATS[format].stored_tensors(scheme, weight)


class _Chooser:
    """Chooses the scheme of a part, and says what chose it."""

    def __init__(self, loaded: LoadedRecipe) -> None:
        self.recipe = loaded.recipe
        self.ignored = pattern_list(self.recipe.ignored)
        self.ignoring = [
            by_entry(loaded, f"ignore {entry}", "ignore", index) for index, entry in enumerate(self.recipe.ignored)
        ]
        names = ["scheme"] if self.recipe.scheme is not None else list(self.recipe.config_groups or ())
        path: tuple[str, ...] = ("config_groups",) if self.recipe.config_groups else ()
        self.groups: list[tuple[Group, PatternList, Decision]] = [
            (group, pattern_list(group.targets), by_entry(loaded, name, *path, name))
            for name, group in zip(names, self.recipe.groups, strict=True)
        ]
        if self.recipe.method == "oneshot":  # names and expressions go before the class; model_free_ptq takes the first
            self.groups.sort(key=lambda item: LINEAR in item[0].targets)

    def choose(self, unit: Unit) -> tuple[Scheme | None, Decision]:
        module = unit.module
        if unit.local != "weight":
            return None, _WEIGHTS_ALONE
        if module.endswith("norm"):
            return None, _NORMS
        if self.recipe.method == "oneshot" and (len(unit.weight.shape) != 2 or is_embedding(module)):
            return None, _LINEAR_MODULES
        group = next(
            (item for item in self.groups if LINEAR in item[0].targets or item[1].first(module) is not None), None
        )
        if group is None:
            return None, _UNTARGETED
        index = self.ignored.first(module)
        if index is not None:
            return None, self.ignoring[index]
        return group[0].scheme, group[2]
