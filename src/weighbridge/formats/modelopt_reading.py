"""NVIDIA modelopt's declarations, read: ``quantization_config`` of config.json, and ``hf_quant_config.json``.

Both say one thing in different keys; modelopt before 0.31 wrote the second alone. ``quant_algo`` holds for every linear
that is not excluded, or is MIXED_PRECISION, and ``quantized_layers`` has an algorithm for each module. Source:
``get_quant_config`` and ``convert_hf_quant_config_format`` of modelopt 0.47.0, vLLM 0.32's ``ModelOptQuantConfigBase``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from weighbridge.errors import StructureError
from weighbridge.formats.declaration import LINEAR, Declaration, Group, check_keys, read_strings
from weighbridge.formats.modelopt import HF_QUANT_CONFIG, METHOD, declared_kv_cache, expression_of
from weighbridge.formats.schemes import KV_CACHES, PRESETS, QuantizationArgs, Scheme
from weighbridge.formats.wildcards import is_wildcard, pattern_of

METHODS = (METHOD, "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed")
"""vLLM's names of it, of which a config.json may have any."""

MIXED = "MIXED_PRECISION"
MAX_LAYERS = 500_000

_STATIC_FP8 = QuantizationArgs(8, "float", "tensor")
_NVFP4 = PRESETS["NVFP4A16"].weights

_PLAIN: Mapping[str, tuple[Scheme, int]] = {
    "FP8": (PRESETS["FP8"], 0),
    "FP8_PER_CHANNEL_PER_TOKEN": (PRESETS["FP8_DYNAMIC"], 0),
    "FP8_PB_WO": (Scheme(PRESETS["FP8_BLOCK"].weights), 128),
    "FP8_BLOCK_SCALES": (Scheme(PRESETS["FP8_BLOCK"].weights), 128),
    "NVFP4": (PRESETS["NVFP4"], 16),
    "W4A16_NVFP4": (PRESETS["NVFP4A16"], 16),
    "W4A8_NVFP4_FP8": (Scheme(_NVFP4, _STATIC_FP8), 16),
    "MXFP8": (PRESETS["MXFP8"], 32),
}
"""``quant_algo`` -> the scheme of the same effect, and the group size that it has where none is declared."""

_OBSCURE: Mapping[str, str] = {
    **dict.fromkeys(
        ("W4A16_AWQ", "W4A8_AWQ", "NVFP4_AWQ", "NVFP4_SVD", "W8A8_SQ_PER_CHANNEL"),
        "whose pre_quant_scale is folded into other layers where it can be: whether one is missing cannot be told",
    ),
}

_TOWERS = ("re:.*vision_tower", "re:.*vision_model", "re:.*vit_large_projector")
"""What vLLM leaves as it is under one algorithm whether it is excluded or not: modelopt before 0.39 did not say so."""

_SPELLED = {"config_groups", "ignore", "kv_cache_scheme", "producer", "quant_algo", "quant_method"}
_DETAILS = {"group_size", "has_zero_point", "pre_quant_scale", "lora_rank", "quantized_layers"}
_PLAINLY = {"quant_algo", "kv_cache_quant_algo", "exclude_modules", *_DETAILS}
_ARGUMENTS = {"dynamic", "num_bits", "type", "group_size", "strategy"}
_GROUP = {"input_activations", "weights", "targets", "has_zero_point", "pre_quant_scale", "lora_rank", "quant_algo"}
_LAYER = {
    "quant_algo",
    "group_size",
    "has_zero_point",
    "pre_quant_scale",
    "lora_rank",
    "block_payload_bytes",
    "packing",
}


def read_declaration(raw: Mapping[str, Any], _: Mapping[str, Any], *, where: str) -> Declaration:
    """Read the ``quantization_config`` of a config.json.

    Raises:
        StructureError: malformed, contradictory, or with a key that is not known.
    """
    if "quantization" in raw:  # the older spelling, moved into config.json as it was
        return read_document(raw, where=where)
    check_keys(raw, _SPELLED | _PLAINLY, where=where)
    groups = _read_groups(raw.get("config_groups"), where=f"{where}.config_groups")
    exclude = read_strings(raw.get("ignore", raw.get("exclude_modules")), where=f"{where}.ignore")
    size = raw.get("group_size")
    if size is None:
        size = next((group["weights"]["group_size"] for group in groups if _has_size(group)), None)
    declaration = _declaration(raw, exclude, size, where=where, config_groups=groups)
    if declaration.format != MIXED and not declaration.unread:
        _check_groups(declaration, groups, where=f"{where}.config_groups")
    return declaration


def read_document(raw: Mapping[str, Any], *, where: str) -> Declaration:
    """Read an ``hf_quant_config.json``.

    Raises:
        StructureError: as `read_declaration`.
    """
    check_keys(raw, {"producer", "quantization", "quant_method"}, where=where)
    quantization = raw.get("quantization")
    if not isinstance(quantization, dict):
        raise StructureError("quantization is no mapping", where=where)
    where = f"{where}: quantization"
    check_keys(quantization, _PLAINLY, where=where)
    exclude = read_strings(quantization.get("exclude_modules"), where=f"{where}.exclude_modules")
    return replace(
        _declaration(quantization, exclude, quantization.get("group_size"), where=where), place=HF_QUANT_CONFIG
    )


def _declaration(
    raw: Mapping[str, Any],
    exclude: tuple[str, ...],
    size: Any,
    *,
    where: str,
    config_groups: Sequence[Mapping[str, Any]] = (),
) -> Declaration:
    algorithm = _read_algorithm(raw, where=where)
    layers = raw.get("quantized_layers")
    kv_cache = declared_kv_cache(raw)
    if kv_cache is not None and kv_cache not in KV_CACHES:
        raise StructureError(f"the KV cache scheme {kv_cache!r} is not known here", where=where)
    declaration = Declaration(
        quant_method=METHOD,
        format=algorithm,
        ignore=tuple(map(expression_of, exclude)),
        kv_cache=KV_CACHES[kv_cache] if kv_cache is not None else None,
    )
    if algorithm == MIXED:
        groups, unread = _read_layers(layers, where=f"{where}.quantized_layers")
        return replace(declaration, groups=groups, unread=unread)
    if layers:
        raise StructureError(f"has quantized_layers beside the quant_algo {algorithm or 'none'}", where=where)
    if not algorithm:
        return declaration if kv_cache is not None else replace(declaration, unread="and declares no quant_algo")
    declaration = replace(declaration, ignore=(*declaration.ignore, *_TOWERS))
    unread = _why_unread(algorithm, [raw, *config_groups])
    if unread:
        return replace(declaration, unread=unread)
    scheme = _scheme(algorithm, size, where=where)
    weights_alone = bool(config_groups) and all(group.get("input_activations") is None for group in config_groups)
    if weights_alone and algorithm == "NVFP4":  # as vLLM reads it, and what is stored says the same
        scheme = Scheme(scheme.weights)
    return replace(declaration, groups=(Group((LINEAR,), scheme),))


def _read_layers(raw: Any, *, where: str) -> tuple[tuple[Group, ...], str]:
    """A group for each scheme, whose targets are modules, ancestors of modules, or patterns; or why that cannot be."""
    if not isinstance(raw, dict) or not raw:
        raise StructureError(f"{MIXED} needs the algorithm of each module, and this is no such mapping", where=where)
    if len(raw) > MAX_LAYERS:
        raise StructureError(f"names more than {MAX_LAYERS:,} modules", where=where)
    targets: dict[Scheme, list[str]] = {}
    for name, layer in raw.items():
        here = f"{where}.{name}"
        if not isinstance(layer, dict):
            raise StructureError("is no mapping", where=here)
        check_keys(layer, _LAYER, where=here)
        algorithm = _read_algorithm(layer, where=here)
        unread = _why_unread(algorithm, [layer])
        if unread:
            return (), f"{unread} (it stands at {name[:120]})"
        plain = not is_wildcard(name) and name != LINEAR  # a module of that name, not every linear
        targets.setdefault(_scheme(algorithm, layer.get("group_size"), where=here), []).append(
            name if plain else pattern_of(name)
        )
    return tuple(Group(tuple(names), scheme) for scheme, names in targets.items()), ""


def _read_algorithm(raw: Mapping[str, Any], *, where: str) -> str:
    algorithm = raw.get("quant_algo")
    if algorithm is None:
        return ""
    if not isinstance(algorithm, str) or not re.fullmatch(r"\w{1,64}", algorithm, re.ASCII):
        raise StructureError(f"quant_algo cannot be {str(algorithm)[:40]!r}", where=where)
    return algorithm.upper()


def _why_unread(algorithm: str, stated: Sequence[Mapping[str, Any]]) -> str:
    if algorithm in _PLAIN:
        # No algorithm that is read here has either; vLLM looks at neither and would leave them out.
        beside = next((key for key in ("pre_quant_scale", "has_zero_point") for each in stated if each.get(key)), None)
        return f"quant_algo {algorithm} with {beside}, which it does not have" if beside else ""
    return (
        f"quant_algo {algorithm or 'none'}, {_OBSCURE.get(algorithm, 'whose way of storing weights is not read here')}"
    )


def _scheme(algorithm: str, size: Any, *, where: str) -> Scheme:
    scheme, usual = _PLAIN[algorithm]
    if size is not None and (type(size) is not int or not 0 <= size <= 1 << 20):
        raise StructureError(f"group_size cannot be {str(size)[:40]!r}", where=where)
    if not size or size == usual:  # modelopt writes 0 where an algorithm has no groups
        return scheme
    if not usual:
        raise StructureError(f"{algorithm} has no groups, and group_size is {size}", where=where)
    if scheme.weights.strategy == "block":
        return Scheme(replace(scheme.weights, block_structure=(size, size)))
    inputs = scheme.input_activations
    if inputs is not None and inputs.group_size is not None:
        inputs = replace(inputs, group_size=size)
    return Scheme(replace(scheme.weights, group_size=size), inputs)


def _read_groups(raw: Any, *, where: str) -> list[Mapping[str, Any]]:
    if raw is None:
        return []
    if not isinstance(raw, dict):
        raise StructureError("is no mapping", where=where)
    for name, group in raw.items():
        here = f"{where}.{name}"
        if not isinstance(group, dict):
            raise StructureError("is no config group", where=here)
        check_keys(group, _GROUP, where=here)
        for part in ("weights", "input_activations"):
            arguments = group.get(part)
            if arguments is not None and not isinstance(arguments, dict):
                raise StructureError("is no mapping of quantization arguments", where=f"{here}.{part}")
            check_keys(arguments or {}, _ARGUMENTS, where=f"{here}.{part}")
    return list(raw.values())


def _check_groups(declaration: Declaration, groups: list[Mapping[str, Any]], *, where: str) -> None:
    """Refuse groups that say other bits than the algorithm: some servers go by the one, some by the other."""
    declared = {group.scheme.weights.num_bits for group in declaration.groups}
    for bits in _bits(groups):
        if declared and not (type(bits) is int and bits in declared):
            what = f"says weights of {str(bits)[:40]} bits, and quant_algo is {declaration.format}"
            raise StructureError(what, where=where)


def _bits(groups: list[Mapping[str, Any]]) -> Iterator[Any]:
    for group in groups:
        weights = group.get("weights")
        if isinstance(weights, dict) and "num_bits" in weights:
            yield weights["num_bits"]


def _has_size(group: Mapping[str, Any]) -> bool:
    weights = group.get("weights")
    return isinstance(weights, dict) and weights.get("group_size") is not None
