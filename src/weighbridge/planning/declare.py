"""How the config of a build declares its quantization, in the words of its format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import is_embedding
from weighbridge.checkpoint.own_names import entries_for
from weighbridge.errors import RecipeError
from weighbridge.formats import modelopt
from weighbridge.formats.declaration import LINEAR, Declaration, Group
from weighbridge.formats.schemes import QuantizationArgs, args_to_config, to_config
from weighbridge.planning.model import Part, tied_heads
from weighbridge.recipe import Recipe
from weighbridge.version import __version__

WRITTEN_AS_BY = "0.19.0"
"""The version of compressed-tensors whose format is written, whether or not it is installed."""
PRODUCER = f"weighbridge-{__version__}"
"""Servers know the format by its producer's name, modelopt; the version says who it really was."""


def declaration_of(recipe: Recipe) -> Declaration:
    """What a recipe that quantizes declares, in compressed-tensors' words."""
    return declaration_in(recipe.groups, recipe.ignored, recipe.kv_cache.args if recipe.kv_cache else None)


def declaration_in(groups: Sequence[Group], ignore: Sequence[str], kv_cache: QuantizationArgs | None) -> Declaration:
    """A declaration in compressed-tensors' words, with the format that its groups are stored in."""
    formats = {group.scheme.format for group in groups}
    return Declaration(
        quant_method="compressed-tensors",
        format=formats.pop() if len(formats) == 1 else "mixed-precision" if formats else "dense",
        groups=tuple(groups),
        ignore=tuple(ignore),
        kv_cache=kv_cache,
    )


def declare(
    declaration: Declaration, parts: Sequence[Part], source: Checkpoint, *, format: str
) -> tuple[Mapping[str, Any] | None, Mapping[str, bytes]]:
    """The quantization config that the config holds, and the files that the format asks for beside it.

    Args:
        declaration: what is meant, in compressed-tensors' words.
        parts: what is written; where none is quantized, nor the KV cache, there is no config.
        format: in whose words it is to be declared: ``compressed-tensors`` or ``modelopt``.

    Raises:
        RecipeError: modelopt has no words for it, or no server reads these in the config of this source.
    """
    if all(part.scheme is None for part in parts) and (declaration.groups or declaration.kv_cache is None):
        return None, {}
    if format == modelopt.METHOD:
        if source.family.params:
            what = "is in Mistral's own form, which vLLM reads in compressed-tensors' words alone"
            raise RecipeError(what, where=source.label, remedy="take format: compressed-tensors")
        return _modelopt(declaration, parts, source)
    return compressed_tensors_config(as_servers_call_it(declaration, parts, source)), {}


def as_servers_call_it(declaration: Declaration, parts: Sequence[Part], source: Checkpoint) -> Declaration:
    """A declaration by the names that servers match it against; see `weighbridge.checkpoint.own_names`."""
    if not source.family.params:
        return declaration
    quantized = {part.module: part.scheme for part in parts if part.scheme is not None}
    kept = [module for module in linears(parts) if module not in quantized]

    def targets(group: Group) -> tuple[str, ...]:
        own = [module for module, scheme in quantized.items() if scheme == group.scheme]
        others = [*kept, *(module for module, scheme in quantized.items() if scheme != group.scheme)]
        return group.targets if LINEAR in group.targets else tuple(entries_for(own, others, source.family))

    groups = tuple(replace(group, targets=targets(group)) for group in declaration.groups)
    return replace(declaration, groups=groups, ignore=tuple(entries_for(kept, quantized, source.family)))


def compressed_tensors_config(declaration: Declaration) -> dict[str, Any]:
    """A quantization config as compressed-tensors writes it."""
    return {
        "config_groups": {
            f"group_{index}": {"targets": list(group.targets), **to_config(group.scheme)}
            for index, group in enumerate(declaration.groups)
        },
        "format": declaration.format,
        "ignore": list(declaration.ignore),
        "kv_cache_scheme": declaration.kv_cache and args_to_config(declaration.kv_cache),
        "quant_method": declaration.quant_method,
        "quantization_status": "compressed",
        "version": WRITTEN_AS_BY,
    }


def _modelopt(
    declaration: Declaration, parts: Sequence[Part], source: Checkpoint
) -> tuple[Mapping[str, Any] | None, Mapping[str, bytes]]:
    quantized = {part.module: part.scheme for part in parts if part.scheme is not None}
    schemes = set(quantized.values())
    if len(schemes) != 1:
        raise RecipeError(
            "modelopt's format has one algorithm for all that is quantized, and there are several schemes here",
            where=source.label,
            remedy="give all config groups one scheme, or take format: compressed-tensors",
        )
    algorithm = modelopt.algorithm_of(schemes.pop())
    heads = tied_heads(source.config, [part.module for part in parts])
    exclude = modelopt.exclusions([*linears(parts), *heads], quantized)
    kv_cache = "FP8" if declaration.kv_cache is not None else None
    config = modelopt.quantization_config(algorithm, exclude, kv_cache=kv_cache, producer=PRODUCER)
    document = modelopt.hf_quant_config(algorithm, exclude, kv_cache=kv_cache, producer=PRODUCER)
    return config, {modelopt.HF_QUANT_CONFIG: document}


def linears(parts: Iterable[Part]) -> Iterator[str]:
    """Modules of the output whose weight has two axes and that are no embeddings, quantized or not."""
    for part in parts:
        is_weight = part.scheme is not None or f"{part.module}.weight" in part.outputs or part.into
        if is_weight and len(part.weight.shape) == 2 and not is_embedding(part.module):
            yield part.module
