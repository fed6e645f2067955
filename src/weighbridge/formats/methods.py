"""The quantization methods that are read and not written here: what a config of each declares, in our own terms.

A declaration whose effect is not understood says so in `Declaration.unread`, and nothing that declares it is ever
judged to hold. Source: ``from_config`` of vLLM 0.32's quantization configs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from weighbridge.errors import StructureError
from weighbridge.formats.declaration import LINEAR, Declaration, Group, read_strings
from weighbridge.formats.layouts import DEEPSEEK_V4, DEEPSEEK_V4_FP8, GPTQ_V2
from weighbridge.formats.schemes import KV_CACHES, PRESETS, QuantizationArgs, Scheme
from weighbridge.formats.wildcards import is_wildcard, pattern_of
from weighbridge.text.patterns import REGEX_PREFIX, PatternError, pattern_list

_FP8_TENSOR = QuantizationArgs(8, "float", "tensor")
_FP8_TENSOR_DYNAMIC = QuantizationArgs(8, "float", "tensor", dynamic=True)
_MXFP4 = PRESETS["MXFP4A16"]
_OF_EXPERTS = {"fp4": DEEPSEEK_V4, "fp8": DEEPSEEK_V4_FP8}
_E4M3 = (None, "e4m3", "float8_e4m3fn")
"""What DeepSeek and MiniMax call the one format of codes; vLLM does not look at it."""


def _read_fp8(raw: Mapping[str, Any], config: Mapping[str, Any], *, where: str) -> Declaration:
    """DeepSeek's and Qwen's blocks under one scale each, or whole tensors under one."""
    model = str(config.get("model_type", ""))
    experts = config.get("expert_dtype", "fp4")
    activations = raw.get("activation_scheme")
    unread = _first(
        (
            model == "deepseek_v4" and str(experts) not in _OF_EXPERTS,
            f"with expert_dtype {_shown(experts)}, not read here",
        ),
        (raw.get("fmt") not in _E4M3, f"fmt {_shown(raw.get('fmt'))}, where only e4m3 is read"),
        (activations is None, "and declares no activation_scheme, which vLLM needs"),
        (raw.get("store_dtype") is not None, "with a store_dtype, which is not read here"),
        (bool(raw.get("moe_quant_algo")), "with a moe_quant_algo, which is not read here"),
        (model.startswith("deepseek_v4") and model != "deepseek_v4", f"of {model}, whose layout is not read here"),
    )
    if unread:
        return Declaration("fp8", unread=unread)
    if activations not in ("dynamic", "static"):
        raise StructureError(f"activation_scheme cannot be {_shown(activations)}", where=where)
    block = raw.get("weight_block_size")
    if block is None:
        inputs = _FP8_TENSOR if activations == "static" else _FP8_TENSOR_DYNAMIC
        scheme = Scheme(_FP8_TENSOR, inputs)
    else:
        sides = _read_block(block, where=where)
        if activations == "static":
            raise StructureError("blocks with static activations are refused by vLLM", where=where)
        weights = QuantizationArgs(8, "float", "block", block_structure=sides)
        scheme = Scheme(weights, QuantizationArgs(8, "float", "group", group_size=sides[1], dynamic=True))
    groups = [Group((LINEAR,), scheme)]
    if model == "deepseek_v4" and experts == "fp4":
        groups.append(Group((r"re:.*\.experts\.[0-9]+\.w[123]$",), _MXFP4))
    return Declaration(
        "fp8",
        format=_OF_EXPERTS[experts] if model == "deepseek_v4" else "",
        groups=tuple(groups),
        ignore=_parts_of_names(raw, "ignored_layers", "modules_to_not_convert", where=where),
    )


def _read_mxfp4(raw: Mapping[str, Any], config: Mapping[str, Any], *, where: str) -> Declaration:
    """gpt-oss: the experts, and nothing else."""
    if config.get("model_type") != "gpt_oss":
        return Declaration("mxfp4", unread="of a model other than gpt-oss, whose way of storing it is not read here")
    return Declaration(
        "mxfp4",
        groups=(Group((r"re:.*\.experts\.(gate_up|down)_proj$",), _MXFP4),),
        ignore=_parts_of_names(raw, "modules_to_not_convert", where=where),
    )


def _read_gptq(raw: Mapping[str, Any], _: Mapping[str, Any], *, where: str) -> Declaration:
    bits, size, symmetric, reordered = (raw.get(key) for key in ("bits", "group_size", "sym", "desc_act"))
    form = raw.get("checkpoint_format", "gptq")
    unread = _first(
        (bool(raw.get("dynamic")), "with dynamic rules, one for each module, which are not read here"),
        (bool(raw.get("is_marlin_format")), "packed for Marlin, which is not read here"),
        (raw.get("format", "gptq") not in ("gptq", GPTQ_V2), f"format {_shown(raw.get('format'))}, not read here"),
        (raw.get("method", "gptq") != "gptq", f"method {_shown(raw.get('method'))}, which is not read here"),
        (raw.get("pack_dtype", "int32") != "int32", f"pack_dtype {_shown(raw.get('pack_dtype'))}, not read here"),
        (form not in ("gptq", GPTQ_V2), f"checkpoint_format {_shown(form)}, which is not read here"),
        (bits not in (2, 3, 4, 8), f"of {_shown(bits)} bits, of which no layout is known"),
        (raw.get("format", form) != form, "whose format is not its checkpoint_format, of which readers take one each"),
        (None in (size, symmetric, reordered), "and does not declare group_size, sym and desc_act, which vLLM needs"),
    )
    if unread:
        return Declaration("gptq", unread=unread)
    if not isinstance(reordered, bool):
        raise StructureError(f"desc_act cannot be {_shown(reordered)}", where=where)
    args = replace(_integers(bits, size, symmetric, where=where), actorder="group" if reordered else None)
    return Declaration(
        "gptq",
        format=GPTQ_V2 if form == GPTQ_V2 else "",
        groups=(Group(_listed(raw, where=where), Scheme(args)),),
        ignore=_parts_of_names(raw, "modules_to_not_convert", where=where),
    )


def _read_awq(raw: Mapping[str, Any], _: Mapping[str, Any], *, where: str) -> Declaration:
    bits = raw.get("bits", raw.get("w_bit"))
    size = raw.get("group_size", raw.get("q_group_size"))
    zeros, version = raw.get("zero_point"), raw.get("version", "gemm")
    unread = _first(
        ("bits" in raw and "w_bit" in raw, "with bits and w_bit, of which readers take one each"),
        (
            "group_size" in raw and "q_group_size" in raw,
            "with group_size and q_group_size, of which readers take one each",
        ),
        (str(version).lower() != "gemm", f"version {_shown(version)}, where only gemm is read"),
        (bits != 4, f"of {_shown(bits)} bits, where only 4 are read"),
        (raw.get("backend") == "llm-awq", "packed by llm-awq, in an order that is not read here"),
        (size is None or zeros is None, "and does not declare group_size and zero_point, which vLLM needs"),
    )
    if unread:
        return Declaration("awq", unread=unread)
    if not isinstance(zeros, bool):
        raise StructureError(f"zero_point cannot be {_shown(zeros)}", where=where)
    names = read_strings(raw.get("modules_to_not_convert"), where=f"{where}.modules_to_not_convert")
    return Declaration(
        "awq",
        groups=(Group((LINEAR,), Scheme(_integers(bits, size, not zeros, where=where))),),
        ignore=tuple(f"re:.*{re.escape(name)}" for name in names if name),  # vLLM: anywhere in the name
    )


def _read_quark(raw: Mapping[str, Any], _: Mapping[str, Any], *, where: str) -> Declaration:
    everywhere, layers = raw.get("global_quant_config"), raw.get("layer_quant_config") or {}
    export = raw.get("export")
    if not isinstance(export, dict) or not isinstance(everywhere, dict) or not isinstance(layers, dict):
        return Declaration("quark", unread="and has no export, global_quant_config or layer_quant_config that is read")
    cached = read_strings(export.get("kv_cache_group"), where=f"{where}.export.kv_cache_group")
    caches = _matching(cached, layers, where=f"{where}.export.kv_cache_group")
    lacking = cached[0] if cached and not caches and not set(cached) <= layers.keys() else ""
    scheme = _quark_scheme(everywhere)
    unread = _first(
        (bool(raw.get("layer_type_quant_config")), "with a layer_type_quant_config, which is not read here"),
        (export.get("weight_format", "real_quantized") != "real_quantized", "whose weights are not really quantized"),
        (scheme is None, "in a scheme that is not read here (global_quant_config)"),
        (bool(lacking), f"with kv_cache_group {_shown(lacking)} and no layer_quant_config of it, where vLLM stops"),
    )
    if unread or scheme is None:
        return Declaration("quark", unread=unread)
    groups, kv_cache = {scheme: [LINEAR]}, None
    for name, layer in layers.items():
        own = _quark_scheme(layer, outputs=name in caches) if isinstance(layer, dict) else None
        if own is None:
            return Declaration("quark", unread=f"in a scheme that is not read here (layer_quant_config {_shown(name)})")
        if name in caches:
            if not _is_static_fp8(layer.get("output_tensors")):
                return Declaration("quark", unread="whose KV cache is in a scheme that is not read here")
            kv_cache = KV_CACHES["FP8"]
        if own != scheme:
            groups.setdefault(own, []).append(pattern_of(name) if is_wildcard(name) else name)
    exclude = read_strings(raw.get("exclude"), where=f"{where}.exclude")
    return Declaration(
        "quark",
        groups=tuple(Group(tuple(targets), own) for own, targets in groups.items()),
        ignore=tuple(
            pattern_of(entry) if is_wildcard(entry) and not entry.startswith("re:") else entry for entry in exclude
        ),
        kv_cache=kv_cache,
    )


KEYS: Mapping[str, frozenset[str]] = {
    "fp8": frozenset(
        {
            *("activation_scheme", "weight_block_size", "fmt", "scale_fmt", "store_dtype", "moe_quant_algo"),
            *("modules_to_not_convert", "ignored_layers", "is_checkpoint_fp8_serialized", "dequantize"),
        }
    ),
    "mxfp4": frozenset({"modules_to_not_convert", "dequantize"}),
    "gptq": frozenset(
        {
            *(
                "bits",
                "group_size",
                "sym",
                "desc_act",
                "static_groups",
                "damp_percent",
                "damp_auto_increment",
                "dynamic",
            ),
            *("true_sequential", "checkpoint_format", "pack_dtype", "meta", "lm_head", "model_name_or_path"),
            *(
                "model_file_base_name",
                "modules_in_block_to_quantize",
                "modules_to_not_convert",
                "quantizer",
                "tokenizer",
            ),
            *("dataset", "block_name_to_quantize", "module_name_preceding_first_block", "batch_size", "pad_token_id"),
            *("use_cuda_fp16", "model_seqlen", "exllama_config", "use_exllama", "disable_exllama", "max_input_length"),
            *("cache_block_outputs", "backend", "is_marlin_format", "format", "method", "hyb_act", "act_group_aware"),
        }
    ),
    "awq": frozenset(
        {
            *("bits", "w_bit", "group_size", "q_group_size", "zero_point", "version", "modules_to_not_convert"),
            *("backend", "do_fuse", "exllama_config", "fuse_max_seq_len", "modules_to_fuse"),
        }
    ),
    "quark": frozenset(
        {
            *(
                "export",
                "exclude",
                "global_quant_config",
                "layer_quant_config",
                "layer_type_quant_config",
                "quant_mode",
            ),
            *("version", "algo_config", "softmax_quant_spec", "kv_cache_quant_config", "kv_cache_post_rope"),
        }
    ),
}
"""By ``quant_method``: the keys that its writers and readers know (transformers 5.17's configs, AutoGPTQ, GPTQModel,
AutoAWQ, Quark, vLLM 0.32). With any other key nobody knows what is declared."""

_READERS: Mapping[str, Callable[..., Declaration]] = {
    "fp8": _read_fp8,
    "mxfp4": _read_mxfp4,
    "gptq": _read_gptq,
    "awq": _read_awq,
    "quark": _read_quark,
}


def _whole(method: str) -> Callable[..., Declaration]:
    """A reader that does not read past a key that nobody knows."""

    def read(raw: Mapping[str, Any], config: Mapping[str, Any], *, where: str) -> Declaration:
        unknown = sorted(raw.keys() - KEYS[method] - {"quant_method"})
        if unknown:
            return Declaration(method, unread=f"with the key {_shown(unknown[0])}, which is not read here")
        return _READERS[method](raw, config, where=where)

    return read


READERS: Mapping[str, Callable[..., Declaration]] = {method: _whole(method) for method in _READERS}
"""By ``quant_method``: what reads such a quantization config, given the config that it stands in, too."""


def _quark_scheme(raw: Mapping[str, Any], *, outputs: bool = False) -> Scheme | None:
    """The scheme of a Quark layer config; None for one that is not read. `outputs`: those of the KV cache may stand."""
    if raw.get("bias") or (raw.get("output_tensors") and not outputs):
        return None
    weights, inputs = _unwrapped(raw.get("weight")), _unwrapped(raw.get("input_tensors"))
    if not isinstance(weights, dict) or weights.get("is_dynamic"):
        return None
    dtype, layout = weights.get("dtype"), weights.get("qscheme")
    if dtype == "fp4" and layout == "per_group" and weights.get("group_size") == 32:
        return _quark_mxfp4(inputs)
    if dtype == "fp8_e4m3" and isinstance(inputs, dict) and inputs.get("dtype") == "fp8_e4m3":
        return _quark_fp8(weights, inputs)
    return None


def _quark_mxfp4(inputs: Any) -> Scheme | None:
    if inputs is None:
        return _MXFP4
    if _is_static_fp8(inputs):
        return Scheme(_MXFP4.weights, _FP8_TENSOR)
    dynamic = isinstance(inputs, dict) and inputs.get("is_dynamic") is True
    same = dynamic and inputs.get("dtype") == "fp4" and inputs.get("group_size") == 32
    return PRESETS["MXFP4"] if same else None


def _quark_fp8(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> Scheme | None:
    layout, dynamic = weights.get("qscheme"), inputs.get("is_dynamic") is True
    if layout == "per_block":
        return PRESETS["FP8_BLOCK"] if weights.get("block_size") == [128, 128] and dynamic else None
    if layout not in ("per_tensor", "per_channel"):
        return None
    args = QuantizationArgs(8, "float", "tensor" if layout == "per_tensor" else "channel")
    if dynamic:
        token = inputs.get("qscheme") == "per_channel"
        return Scheme(args, QuantizationArgs(8, "float", "token" if token else "tensor", dynamic=True))
    return Scheme(args, _FP8_TENSOR) if _is_static_fp8(inputs) else None


def _matching(wildcards: tuple[str, ...], names: Iterable[str], *, where: str) -> set[str]:
    """Those of `names` that are one of `wildcards`, or that one of them matches."""
    try:
        patterns = pattern_list(tuple(map(pattern_of, wildcards)))
    except PatternError as error:
        raise StructureError(error.what, where=where, remedy=error.remedy) from None
    plainly = frozenset(wildcards)
    return {name for name in names if name in plainly or patterns.has(name)}


def _is_static_fp8(raw: Any) -> bool:
    args = _unwrapped(raw)
    return (
        isinstance(args, dict)
        and args.get("dtype") == "fp8_e4m3"
        and args.get("qscheme") == "per_tensor"
        and not args.get("is_dynamic")
    )


def _unwrapped(raw: Any) -> Any:
    return raw[0] if isinstance(raw, list) and len(raw) == 1 else raw


def _integers(bits: Any, size: Any, symmetric: Any, *, where: str) -> QuantizationArgs:
    if type(size) is not int or not (size == -1 or 1 <= size <= 1 << 20):
        raise StructureError(f"group_size cannot be {_shown(size)}", where=where)
    if type(bits) is not int or not isinstance(symmetric, bool):
        raise StructureError(f"bits and sym cannot be {_shown(bits)} and {_shown(symmetric)}", where=where)
    if size == -1:
        return QuantizationArgs(bits, "int", "channel", symmetric=symmetric)
    return QuantizationArgs(bits, "int", "group", symmetric=symmetric, group_size=size)


def _read_block(raw: Any, *, where: str) -> tuple[int, int]:
    if (
        not isinstance(raw, list)
        or len(raw) != 2
        or not all(type(side) is int and 1 <= side <= 1 << 20 for side in raw)
    ):
        raise StructureError(f"weight_block_size cannot be {_shown(raw)}", where=where)
    return raw[0], raw[1]


def _parts_of_names(raw: Mapping[str, Any], *keys: str, where: str) -> tuple[str, ...]:
    """A list of what is kept: modules, what holds them, or other parts of their names (`Layout.in_parts`).

    vLLM takes whole names, transformers also regular expressions and ends of names; what both mean is meant here.
    """
    key = next((key for key in keys if raw.get(key)), keys[0])
    names = read_strings(raw.get(key), where=f"{where}.{key}")
    return tuple(name for name in names if name and not name.startswith(REGEX_PREFIX))


def _listed(raw: Mapping[str, Any], *, where: str) -> tuple[str, ...]:
    """What ``modules_in_block_to_quantize`` names, anywhere in a module's name; ``Linear`` without such a list."""
    listed = raw.get("modules_in_block_to_quantize")
    if isinstance(listed, list):  # transformers groups them by what is quantized together
        listed = [name for item in listed for name in (item if isinstance(item, list) else [item])]
    names = read_strings(listed, where=f"{where}.modules_in_block_to_quantize")
    return tuple(f"re:.*{re.escape(name)}" for name in names if name) or (LINEAR,)


def _first(*reasons: tuple[bool, str]) -> str:
    return next((reason for holds, reason in reasons if holds), "")


def _shown(raw: Any) -> str:
    return repr(raw)[:60] if not isinstance(raw, str) else raw[:60]
