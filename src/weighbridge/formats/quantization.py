"""What a checkpoint's config.json says of its quantization, by effect: the scheme that each module gets.

Two configs may spell one thing in many ways (patterns or resolved names, one group or several); they are compared by
what each module gets once targets and ignore lists are resolved against the checkpoint's own modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from weighbridge.errors import StructureError
from weighbridge.formats import methods, modelopt, modelopt_reading
from weighbridge.formats.declaration import LINEAR, Declaration, Group, read_strings, read_word
from weighbridge.formats.schemes import PRESETS, STRATEGIES, QuantizationArgs, Scheme
from weighbridge.patterns import REGEX_PREFIX, PatternError, pattern_list

CONFIG_KEYS = ("quantization_config", "compression_config")

MOMENTS: Mapping[bool | str, tuple[str, ...]] = {
    True: ("token", "tensor", "tensor_group", "group"),
    "local": ("tensor_group",),
}
"""Strategies whose scales can be computed as values arrive."""


def find_config(config: Mapping[str, Any], *, where: str) -> Mapping[str, Any] | None:
    """The quantization config inside a config.json, where vLLM looks for it (at the top, then in text_config).

    Raises:
        StructureError: it is no mapping.
    """
    for holder in (config, config.get("text_config")):
        if isinstance(holder, dict):
            for key in CONFIG_KEYS:
                if holder.get(key) is not None:
                    if not isinstance(holder[key], dict):
                        raise StructureError(f"{key} is no mapping", where=where)
                    found: Mapping[str, Any] = holder[key]
                    return found
    return None


def read_declaration(config: Mapping[str, Any], *, where: str) -> Declaration | None:
    """Read the quantization config of a config.json; None where there is none.

    Raises:
        StructureError: a compressed-tensors config that is malformed.
    """
    raw = find_config(config, where=where)
    if raw is None:
        return None
    method = read_word(raw, "quant_method", default="unknown", where=where)
    if method.startswith(modelopt.METHOD):  # modelopt_fp4, modelopt_mixed: vLLM's names of the same
        return modelopt_reading.read(raw, where=f"{where}: quantization_config")
    if method != "compressed-tensors":
        return methods.read(method, raw, config, where=f"{where}: quantization_config")
    where = f"{where}: quantization_config"
    groups = {} if raw.get("config_groups") is None else raw["config_groups"]
    if not isinstance(groups, dict):
        raise StructureError("config_groups is no mapping", where=where)
    kv_cache = raw.get("kv_cache_scheme")
    return Declaration(
        quant_method=method,
        format=read_word(raw, "format", default="", where=where),
        groups=tuple(_read_group(name, group, where=f"{where}.config_groups.{name}") for name, group in groups.items()),
        ignore=read_strings(raw.get("ignore"), where=f"{where}.ignore"),
        kv_cache=None if kv_cache is None else read_args(kv_cache, where=f"{where}.kv_cache_scheme"),
    )


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without the quantization config that `find_config` would find in it."""
    bare = {key: value for key, value in config.items() if key not in CONFIG_KEYS}
    text = bare.get("text_config")
    if isinstance(text, dict):
        bare["text_config"] = {key: value for key, value in text.items() if key not in CONFIG_KEYS}
    return bare


def resolve(declaration: Declaration, modules: Iterable[str], *, where: str) -> dict[str, Scheme]:
    """The scheme that each of `modules` gets; modules that get none are left out.

    A target that is a module's name goes before one that is a pattern, and that before the class name ``Linear``; of
    several patterns the first in the order of their text, of several groups that name one target the last
    (``match_targets`` and ``apply_quantization_config`` of compressed-tensors 0.19.0; vLLM takes the first name or
    pattern in the order of the config).

    Raises:
        StructureError: a pattern that does not compile or cannot be matched in linear time.
    """
    scheme_of = {target: group.scheme for group in declaration.groups for target in group.targets}
    targets = tuple(sorted(scheme_of.keys() - {LINEAR}, key=lambda target: (REGEX_PREFIX in target, target)))
    try:
        target_list = pattern_list(targets)
        ignored = pattern_list(declaration.ignore)
    except PatternError as error:
        raise StructureError(error.what, where=where, remedy=error.remedy) from None
    linear = scheme_of.get(LINEAR)
    if LINEAR in declaration.ignore:
        return {}
    resolved = {}
    for module in modules:
        if ignored.first(module) is not None:
            continue
        index = target_list.first(module)
        scheme = linear if index is None else scheme_of[targets[index]]
        if scheme is not None:
            resolved[module] = scheme
    return resolved


def read_args(raw: Any, *, where: str) -> QuantizationArgs:
    """Read compressed-tensors' ``QuantizationArgs`` from JSON or YAML values.

    Raises:
        StructureError: not a mapping, or a value that the field cannot have.
    """
    if not isinstance(raw, dict):
        raise StructureError("is no mapping of quantization arguments", where=where)
    bits, kind = raw.get("num_bits", 8), str(raw.get("type", "int")).lower()
    group_size = raw.get("group_size")
    block = raw.get("block_structure")
    strategy = raw.get("strategy") or ("tensor" if group_size is None else "channel" if group_size == -1 else "group")
    dynamic = raw.get("dynamic", False)
    symmetric = raw.get("symmetric", True)
    if type(bits) is not int or not 1 <= bits <= 16:
        raise StructureError(f"num_bits cannot be {str(bits)[:40]!r}", where=where)
    if kind == "float" and bits not in (4, 8):
        raise StructureError(f"floats of {bits} bits are not known, only of 4 (E2M1) and 8 (E4M3)", where=where)
    if kind not in ("float", "int") or strategy not in STRATEGIES:
        raise StructureError(f"unknown type or strategy: {kind[:40]!r}, {str(strategy)[:40]!r}", where=where)
    if (type(dynamic) is not bool and dynamic != "local") or not isinstance(symmetric, bool):
        raise StructureError("dynamic must be true, false or 'local', and symmetric true or false", where=where)
    if strategy not in MOMENTS.get(dynamic, STRATEGIES) or (strategy == "token" and not dynamic):
        raise StructureError(f"strategy {strategy} cannot have dynamic {dynamic}", where=where)
    if isinstance(block, str):  # as compressed-tensors once wrote it
        block = [int(side) if side.isdecimal() and len(side) < 8 else side for side in block.split("x")]
    if strategy not in ("group", "tensor_group") and type(group_size) is int and group_size > 0:
        raise StructureError(f"strategy {strategy} cannot have group_size {group_size}", where=where)
    if strategy != "block" and block is not None:
        raise StructureError(f"strategy {strategy} cannot have block_structure {str(block)[:40]!r}", where=where)
    if strategy in ("group", "tensor_group") and (type(group_size) is not int or not 1 <= group_size <= 1 << 20):
        raise StructureError(f"strategy {strategy} cannot have group_size {str(group_size)[:40]!r}", where=where)
    if strategy == "block" and not (
        isinstance(block, list)
        and len(block) == 2
        and all(type(side) is int and 1 <= side <= 1 << 20 for side in block)
    ):
        raise StructureError(f"strategy block cannot have block_structure {str(block)[:40]!r}", where=where)
    return QuantizationArgs(
        num_bits=bits,
        type="float" if kind == "float" else "int",
        strategy=strategy,
        symmetric=symmetric,
        dynamic=dynamic,
        group_size=group_size if strategy in ("group", "tensor_group") else None,
        block_structure=(block[0], block[1]) if strategy == "block" and isinstance(block, list) else None,
        scale_dtype=raw.get("scale_dtype") if isinstance(raw.get("scale_dtype"), str) else None,
        observer=raw.get("observer") if isinstance(raw.get("observer"), str) else None,
    )


def read_scheme(raw: Mapping[str, Any], *, where: str) -> Scheme:
    """Read compressed-tensors' ``QuantizationScheme`` (its targets apart).

    Raises:
        StructureError: no weights, or malformed arguments.
    """
    if raw.get("weights") is None:
        raise StructureError("a scheme without weights is not known here", where=where)
    inputs, outputs = raw.get("input_activations"), raw.get("output_activations")
    return Scheme(
        weights=read_args(raw["weights"], where=f"{where}.weights"),
        input_activations=None if inputs is None else read_args(inputs, where=f"{where}.input_activations"),
        output_activations=None if outputs is None else read_args(outputs, where=f"{where}.output_activations"),
    )


def _read_group(name: str, raw: Any, *, where: str) -> Group:
    if isinstance(raw, list):  # the short form: preset name -> targets
        if name.upper() not in PRESETS:
            raise StructureError(f"{name[:40]!r} is no preset known here", where=where)
        return Group(targets=read_strings(raw, where=where), scheme=PRESETS[name.upper()])
    if not isinstance(raw, dict):
        raise StructureError("is no config group", where=where)
    targets = read_strings(raw.get("targets"), where=f"{where}.targets")
    return Group(targets=targets, scheme=read_scheme(raw, where=where))
