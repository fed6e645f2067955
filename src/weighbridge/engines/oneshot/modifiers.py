"""A recipe's ``modifiers`` as llm-compressor's own objects, validated by their own classes before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weighbridge.engines.quiet import quieted
from weighbridge.errors import RecipeError
from weighbridge.formats.schemes import args_to_config, to_config
from weighbridge.recipe import LoadedRecipe

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier

ALLOWED: Mapping[str, str] = {
    "AWQModifier": "llmcompressor.modifiers.transform.awq",
    "SmoothQuantModifier": "llmcompressor.modifiers.transform.smoothquant",
    "GPTQModifier": "llmcompressor.modifiers.gptq",
    "QuantizationModifier": "llmcompressor.modifiers.quantization",
}
"""Modifiers of llm-compressor 0.14.0.1 whose outcome a plan can predict -> the module each is in.

Of the others, rotations (SpinQuantModifier, QuIPModifier) add transforms of their own to config.json, the pruning ones
remove weights or experts, and AutoRoundModifier needs a package that is not part of this stack.
"""

QUANTIZING = ("GPTQModifier", "QuantizationModifier")
ELSEWHERE: Mapping[str, str] = {
    "scheme": "scheme or config_groups",
    "config_groups": "config_groups",
    "targets": "targets of a config group",
    "ignore": "ignore",
    "kv_cache_scheme": "kv_cache",
}
"""Keys of a quantizing modifier that a recipe says outside of it -> where it says them."""


@dataclass(frozen=True)
class Modifiers:
    """The modifiers of a recipe, in their order."""

    instances: tuple[Modifier, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(type(modifier).__name__ for modifier in self.instances)

    @property
    def needing_data(self) -> tuple[str, ...]:
        """Names of those that must see calibration data."""
        return tuple(type(modifier).__name__ for modifier in self.instances if modifier.requires_calibration_data)


def make_modifiers(loaded: LoadedRecipe) -> Modifiers:
    """The recipe's modifiers; where none of them quantizes, a QuantizationModifier that does, last.

    The scheme, the ignore list and the KV cache are the recipe's own and handed to the modifier that quantizes.

    Raises:
        RecipeError: an unknown modifier, an unknown key, a wrong value, or two that quantize; with file and line.
    """
    said: list[tuple[str, dict[str, Any], str]] = []
    for index, entry in enumerate(loaded.recipe.modifiers):
        if len(entry) != 1:
            raise RecipeError(
                f"names {len(entry)} modifiers where one belongs",
                where=loaded.location("modifiers", index),
                remedy="begin each with a dash of its own",
            )
        ((name, options),) = entry.items()
        said.append((name, options, loaded.location("modifiers", index, name)))
    for name, options, where in said:
        _check(name, options, where)
    quantizing = [(name, where) for name, _, where in said if name in QUANTIZING]
    if len(quantizing) > 1:
        raise RecipeError(
            f"{quantizing[1][0]} quantizes what {quantizing[0][0]} quantizes already",
            where=quantizing[1][1],
            remedy="keep one of the two",
        )
    if not quantizing:
        said.append(("QuantizationModifier", {}, loaded.document.where))
    return Modifiers(tuple(_make(loaded, name, options, where) for name, options, where in said))


def _check(name: str, options: Mapping[str, Any], where: str) -> None:
    if name not in ALLOWED:
        raise RecipeError(f"{name!r} is no modifier here", where=where, remedy=f"there are {', '.join(ALLOWED)}")
    elsewhere = next((key for key in options if key in ELSEWHERE), None) if name in QUANTIZING else None
    if elsewhere is not None:
        raise RecipeError(
            f"{name} says {elsewhere!r}, which a recipe says once, outside its modifiers",
            where=where,
            remedy=f"say it under {ELSEWHERE[elsewhere]}",
        )


def _make(loaded: LoadedRecipe, name: str, options: Mapping[str, Any], where: str) -> Modifier:
    with quieted():
        from importlib import import_module

        from pydantic import ValidationError

        kind = getattr(import_module(ALLOWED[name]), name)
        known = _options_of(kind)
        unknown = next((key for key in options if key not in known), None)
        if unknown is not None:
            raise RecipeError(f"{name} has no {unknown!r}", where=where, remedy=f"it has {', '.join(known)}")
        try:
            return kind(**options, **(_quantization(loaded) if name in QUANTIZING else {}))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            message = str(first["msg"]).removeprefix("Value error, ")
            raise RecipeError(f"{name}{f'.{place}' if place else ''}: {message}", where=where) from error
        except (ValueError, TypeError, KeyError) as error:  # raised by validators that pydantic does not wrap
            raise RecipeError(f"{name}: {error}", where=where) from error


def _options_of(kind: type[Modifier]) -> tuple[str, ...]:
    """What a recipe may say of a modifier: its own options, without those of training and of bookkeeping."""
    from llmcompressor.modifiers import Modifier

    elsewhere = ELSEWHERE if kind.__name__ in QUANTIZING else {}
    own = (name for name in kind.model_fields if name not in Modifier.model_fields and name not in elsewhere)
    return tuple(name for name in own if not name.endswith("_"))


def _quantization(loaded: LoadedRecipe) -> dict[str, Any]:
    """What the recipe itself says of quantization, as arguments of a modifier that quantizes."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig

    recipe = loaded.recipe
    groups = {
        f"group_{index}": {"targets": list(group.targets), **to_config(group.scheme)}
        for index, group in enumerate(recipe.groups)
    }
    cache = recipe.kv_cache if recipe.kv_cache is not None and recipe.kv_cache.scales == "calibrated" else None
    return {
        "config_groups": QuantizationConfig.model_validate({"config_groups": groups}).config_groups,
        "ignore": list(recipe.ignored),
        "targets": [],
        "kv_cache_scheme": cache and QuantizationArgs.model_validate(args_to_config(cache.args)),
    }
