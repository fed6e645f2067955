"""What a checkpoint's config.json says of its quantization, by effect: the scheme that each module gets.

Two configs may spell one thing in many ways (patterns or resolved names, one group or several); they are compared by
what each module gets once targets and ignore lists are resolved against the checkpoint's own modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from weighbridge.errors import StructureError
from weighbridge.formats import compressed_tensors, modelopt
from weighbridge.formats.declaration import LINEAR, Declaration, Group, read_strings, read_word
from weighbridge.formats.schemes import KV_CACHES, Scheme
from weighbridge.patterns import REGEX_PREFIX, PatternError, pattern_list

CONFIG_KEYS = ("quantization_config", "compression_config")


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
    reader = READERS.get(method)
    return Declaration(quant_method=method) if reader is None else reader(raw, where=f"{where}: quantization_config")


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


def _read_modelopt(raw: Mapping[str, Any], *, where: str) -> Declaration:
    """modelopt's declaration: one algorithm, and what it leaves out. An algorithm not known here targets nothing."""
    algorithm = read_word(raw, "quant_algo", default="", where=where)
    scheme = modelopt.ALGORITHMS.get(algorithm)
    exclude = read_strings(raw.get("ignore", raw.get("exclude_modules")), where=f"{where}.ignore")
    kv_cache = modelopt.declared_kv_cache(raw)
    if kv_cache is not None and kv_cache not in KV_CACHES:
        raise StructureError(f"the KV cache scheme {kv_cache!r} is not known here", where=where)
    return Declaration(
        quant_method=modelopt.METHOD,
        format=algorithm,
        groups=(Group((LINEAR,), scheme),) if scheme is not None else (),
        ignore=tuple(map(modelopt.expression_of, exclude)),
        kv_cache=KV_CACHES[kv_cache] if kv_cache is not None else None,
    )


READERS: Mapping[str, Callable[..., Declaration]] = {
    compressed_tensors.METHOD: compressed_tensors.read_declaration,
    modelopt.METHOD: _read_modelopt,
}
"""By the name that ``quant_method`` has in config.json: what reads the rest (the config, and ``where`` it stands)."""
