"""What a checkpoint was made by, as the recipe says that the auditor gives: what that promises, and what it excuses.

Nothing is excused for what the checkpoint says of itself: whoever altered its weights could write that, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from weighbridge.auditing.pairing import OF_RECIPE, Pair, QuantizedPair
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.formats.declaration import Declaration, Group
from weighbridge.formats.observers import by_largest_values, is_recomputed
from weighbridge.formats.quantization import resolve
from weighbridge.formats.schemes import PRESETS
from weighbridge.machine.installation import need
from weighbridge.planning.declare import declaration_of
from weighbridge.recipe import LoadedRecipe, load_recipe
from weighbridge.recipe.modifiers import SMOOTHING

_BY_GPTQ, _ROUNDED = PRESETS["W4A16"], PRESETS["W8A16"]


@dataclass(frozen=True)
class Mapped:
    """A smooth layer, whose outputs are divided, and the layers whose input columns are multiplied by the same.

    Attributes:
        modifier: llm-compressor's name of what chose the factors.
    """

    modifier: str
    smooth: str
    balance: tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """What is known of how a checkpoint was made.

    Attributes:
        said_by: the recipe; empty without one.
        declared: what the recipe declares of every module, and with it which observer chose its scales; None without
            a recipe that quantizes.
        promises_exact: every quantized weight that is not compensated must be rounded to nearest under the scales that
            the recipe's observers choose, to the bit.
        promises_scales: scales of what is compensated are those of the largest values, to the bit, whatever became of
            the codes.
        dampening: GPTQ's share of the Hessian's mean diagonal that is added to it; None without compensation.
        compensating: the groups that GPTQ quantizes, where another modifier quantizes others.
        smoothing: pairs whose product follows from the base, though neither does alone.
        dequantized: modules (names and expressions) whose codes a conversion made floats again.
        before: the recipe that made what was converted.
    """

    said_by: str = ""
    declared: Declaration | None = None
    promises_exact: bool = False
    promises_scales: bool = False
    dampening: float | None = None
    compensating: tuple[Group, ...] = ()
    smoothing: tuple[Mapped, ...] = ()
    dequantized: tuple[str, ...] = ()
    before: LoadedRecipe | None = field(default=None, repr=False)


def method_of(checkpoint: Checkpoint, loaded: LoadedRecipe | None) -> Method:
    """Read off a recipe what the numbers must be; without one every weight must be the nearest to the base's."""
    if loaded is None:
        return Method()
    recipe = loaded.recipe
    if recipe.method == "convert":
        before = load_recipe(recipe.base.recipe) if recipe.base.recipe is not None else None
        declared = declaration_of(before.recipe) if before is not None and before.recipe.method != "convert" else None
        changed = tuple(recipe.convert.dequantize) if recipe.convert is not None else ()
        return Method(loaded.document.where, declared, dequantized=changed, before=before)
    dampening: float | None = None
    mapped: list[Mapped] = []
    for modifier in recipe.modifiers:
        if modifier.GPTQModifier is not None:
            dampening = modifier.GPTQModifier.dampening_frac
        if modifier.name in SMOOTHING:
            mapped += _mapped(
                modifier.name, modifier.options.get("mappings") or _default_mappings(modifier.name, checkpoint)
            )
    unsmoothed = not any(modifier.name in SMOOTHING for modifier in recipe.modifiers)
    declared = declaration_of(recipe)
    by_gptq = recipe.quantizing.get("GPTQModifier", ())
    moved, rounded = (tuple(group for group in declared.groups if (group in by_gptq) is of) for of in (True, False))
    scales = unsmoothed and all(by_largest_values(group.scheme.weights) for group in moved or rounded)
    exact = unsmoothed and bool(rounded) and all(is_recomputed(group.scheme.weights) for group in rounded)
    compensating = moved if rounded else ()
    return Method(loaded.document.where, declared, exact, scales, dampening, compensating, tuple(mapped))


def compensated(modules: Sequence[str], method: Method) -> frozenset[str]:
    """The modules whose rows may make up for errors: all that GPTQ quantizes, and none that another modifier does."""
    if method.dampening is None:
        return frozenset()
    if not method.compensating or method.declared is None:
        return frozenset(modules)
    # Groups of both modifiers may have the same scheme, so each is given one that says whose it is.
    whose = {group: _BY_GPTQ if group in method.compensating else _ROUNDED for group in method.declared.groups}
    told = replace(method.declared, groups=tuple(replace(group, scheme=own) for group, own in whose.items()))
    found = resolve(told, modules, where=method.said_by)
    return frozenset(module for module, scheme in found.items() if scheme is _BY_GPTQ)


def observed(pairs: Sequence[Pair], method: Method) -> tuple[Pair, ...]:
    """Pairs with the observers that the recipe names, where it gives a module the scheme that config.json does.

    Of other modules, and without a recipe, it is what config.json says: the supplier's word.
    """
    if method.declared is None:
        return tuple(pairs)
    modules = [item.name for item in pairs if isinstance(item, QuantizedPair)]
    schemes = resolve(method.declared, modules, where=method.said_by)
    return tuple(
        replace(item, scheme=schemes[item.name], observed_by=OF_RECIPE)
        if isinstance(item, QuantizedPair) and schemes.get(item.name) == item.scheme
        else item
        for item in pairs
    )


def _mapped(modifier: str, mappings: Sequence[Any]) -> list[Mapped]:
    """Mappings as modifiers take them: mappings with names, or pairs of (balance layers, smooth layer)."""
    found = []
    for item in mappings:
        if isinstance(item, Mapping) and "smooth_layer" in item:
            balance = item.get("balance_layers") or ()
            found.append(Mapped(modifier, str(item["smooth_layer"]), tuple(map(str, balance))))
        elif isinstance(item, Sequence) and len(item) == 2 and not isinstance(item, str):
            balance = item[0] if isinstance(item[0], Sequence) and not isinstance(item[0], str) else [item[0]]
            found.append(Mapped(modifier, str(item[1]), tuple(map(str, balance))))
    return found


def _default_mappings(name: str, checkpoint: Checkpoint) -> list[Any]:
    """What a modifier of llm-compressor smooths in a model of this architecture where nothing is said."""
    need("build")  # the table is llm-compressor's own
    architectures = checkpoint.config.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if name == "AWQModifier":
        from llmcompressor.modifiers.transform.awq.mappings import AWQ_MAPPING_REGISTRY, default_mappings

        found = AWQ_MAPPING_REGISTRY.get(architecture, default_mappings)
        return [{"smooth_layer": item.smooth_layer, "balance_layers": item.balance_layers} for item in found]
    from llmcompressor.modifiers.transform.smoothquant.utils import get_layer_mappings_from_architecture

    return [[item.balance_layers, item.smooth_layers] for item in get_layer_mappings_from_architecture(architecture)]
