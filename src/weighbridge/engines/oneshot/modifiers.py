"""A recipe's ``modifiers`` as llm-compressor's own objects, validated by their own classes before a model is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weighbridge.engines.quiet import quieted
from weighbridge.errors import RecipeError
from weighbridge.formats.declaration import Group
from weighbridge.formats.schemes import args_to_config, to_config
from weighbridge.recipe import LoadedRecipe, Recipe

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier

MODULES: Mapping[str, str] = {
    "AWQModifier": "llmcompressor.modifiers.transform.awq",
    "SmoothQuantModifier": "llmcompressor.modifiers.transform.smoothquant",
    "GPTQModifier": "llmcompressor.modifiers.gptq",
    "QuantizationModifier": "llmcompressor.modifiers.quantization",
}
"""Modifiers that recipes may name -> the module of llm-compressor 0.14.0.1 that each is in."""


@dataclass(frozen=True)
class Modifiers:
    """The modifiers of a recipe, in their order."""

    instances: tuple[Modifier, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(type(modifier).__name__ for modifier in self.instances)


def make_modifiers(loaded: LoadedRecipe, *, tied: Collection[str] = ()) -> Modifiers:
    """The recipe's modifiers; where none of them quantizes, a QuantizationModifier that does, last.

    Schemes, the ignore list and the KV cache are the recipe's own and handed to those that quantize; the KV cache is
    done by the first of them.

    Args:
        tied: modules of the model that no tensor is stored for, as their weights are another's; none is quantized.

    Raises:
        RecipeError: a value that llm-compressor does not take; with file and line.
    """
    recipe = loaded.recipe
    said = {
        modifier.name: (modifier.options, loaded.location("modifiers", index, modifier.name))
        for index, modifier in enumerate(recipe.modifiers)
    }
    quantizing = recipe.quantizing
    first = next(iter(quantizing))
    own = {name: _quantization(recipe, groups, tied, cached=name == first) for name, groups in quantizing.items()}
    for name in quantizing:
        said.setdefault(name, ({}, loaded.document.where))
    return Modifiers(
        tuple(_make(name, {**options, **own.get(name, {})}, where) for name, (options, where) in said.items())
    )


def _make(name: str, options: Mapping[str, Any], where: str) -> Modifier:
    with quieted():
        from importlib import import_module

        from pydantic import ValidationError

        kind = getattr(import_module(MODULES[name]), name)
        try:
            made: Modifier = kind(**options)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            message = str(first["msg"]).removeprefix("Value error, ")
            raise RecipeError(f"{name}{f'.{place}' if place else ''}: {message}", where=where) from error
        except (ValueError, TypeError, KeyError) as error:  # raised by validators that pydantic does not wrap
            raise RecipeError(f"{name}: {error}", where=where) from error
        return made


def _quantization(recipe: Recipe, groups: Sequence[Group], tied: Collection[str], *, cached: bool) -> dict[str, Any]:
    """What a recipe says of quantization, as arguments of a modifier that quantizes some of its groups.

    A module that several groups target is the first one's, and one's that targets the class Linear last of all; so the
    modifier passes by what a group before its own takes, and another modifier quantizes.
    """
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig

    config = {
        f"group_{index}": {"targets": list(group.targets), **to_config(group.scheme)}
        for index, group in enumerate(groups)
    }
    cache = recipe.kv_cache if cached and recipe.kv_cache and recipe.kv_cache.scales == "calibrated" else None
    return {
        "config_groups": QuantizationConfig.model_validate({"config_groups": config}).config_groups,
        "ignore": [*recipe.ignored, *recipe.passed_by(groups), *sorted(tied)],
        "targets": [],
        "kv_cache_scheme": cache and QuantizationArgs.model_validate(args_to_config(cache.args)),
    }
