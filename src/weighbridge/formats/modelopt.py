"""NVIDIA modelopt's checkpoint format, written: what it stores for a weight, and how it declares what is quantized.

One algorithm holds for every linear that ``exclude_modules`` does not name. The declaration stands twice: in
``hf_quant_config.json``, and in config.json as ``quantization_config``, where the list is called ``ignore``. Global
scales are the reciprocals of compressed-tensors'. Source: ``modelopt.torch.export`` (``unified_export_hf``,
``convert_hf_config``) and vLLM's ``ModelOptQuantConfigBase``. What is read stands in
`weighbridge.formats.modelopt_reading`.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weighbridge.formats.schemes import PRESETS, Scheme, SchemeMismatch, rows_and_columns
from weighbridge.formats.tensors import Tensor
from weighbridge.formats.wildcards import is_wildcard, pattern_of

METHOD = "modelopt"
HF_QUANT_CONFIG = "hf_quant_config.json"
GROUP_SIZE = 16

ALGORITHMS: Mapping[str, Scheme] = {"NVFP4": PRESETS["NVFP4"], "FP8": PRESETS["FP8"]}
"""modelopt's ``quant_algo`` -> the scheme of the same effect, of what is written here.

Its NVFP4 activations have a calibrated global scale and scales of 16 values taken as they arrive, which
compressed-tensors calls locally dynamic.
"""


def stored_tensors(scheme: Scheme, weight: Tensor) -> dict[str, Tensor]:
    """The tensors that modelopt stores for a module whose weight is `weight` ([out, in], float).

    Returns:
        Local name -> dtype and shape: ``weight`` (U8 [out, in / 2], two E2M1 codes a byte, or F8_E4M3 [out, in]),
        ``weight_scale`` (F8_E4M3 [out, in / 16], or F32 [] for FP8), ``weight_scale_2`` (F32 [], NVFP4 only) and
        ``input_scale`` (F32 []).

    Raises:
        SchemeMismatch: modelopt has no form for the scheme here, or it cannot be applied to this shape.
    """
    rows, columns = rows_and_columns(weight)
    algorithm = algorithm_of(scheme)
    scalar = Tensor("F32", ())
    if algorithm == "FP8":
        return {"weight": Tensor("F8_E4M3", weight.shape), "weight_scale": scalar, "input_scale": scalar}
    if columns % GROUP_SIZE:
        raise SchemeMismatch("scheme/group-size", f"group size {GROUP_SIZE} does not divide width {columns}")
    return {
        "weight": Tensor("U8", (rows, columns // 2)),
        "weight_scale": Tensor("F8_E4M3", (rows, columns // GROUP_SIZE)),
        "weight_scale_2": scalar,
        "input_scale": scalar,
    }


def weight_of(scheme: Scheme, stored: Mapping[str, Tensor]) -> Tensor | None:
    """The float weight ([out, in]) that must have been quantized to give `stored`; None if nothing can have.

    The dtype is not to be seen in what modelopt stores, and is said to be BF16.
    """
    codes = stored.get("weight")
    if codes is None or len(codes.shape) != 2:
        return None
    rows, columns = codes.shape
    return Tensor("BF16", (rows, columns * 2 if scheme.weights.num_bits == 4 else columns))


def algorithm_of(scheme: Scheme) -> str:
    """modelopt's name of a scheme.

    Raises:
        SchemeMismatch: it has none here.
    """
    for name, known in ALGORITHMS.items():
        if known == scheme:
            return name
    raise SchemeMismatch("scheme/format", f"the modelopt format is supported only for {', '.join(ALGORITHMS)}")


def exclusions(linears: Iterable[str], quantized: Iterable[str]) -> list[str]:
    """The shortest wildcards that name every kept linear and no quantized one, sorted.

    For each linear the outermost ancestor below which nothing is quantized: ``model.vision_tower*``, or with a dot
    before the asterisk where the bare prefix would mean more (``layers.1*`` is layer 10 too); a linear that has no such
    ancestor stands plainly (``lm_head``). Source: ``_prefix_wildcard_summarize_exclude_modules`` of modelopt 0.47.0.
    """
    taken = sorted(set(quantized))

    def is_free(prefix: str) -> bool:
        """Whether no quantized module's name begins so."""
        following = bisect_left(taken, prefix)
        return following == len(taken) or not taken[following].startswith(prefix)

    found = set()
    for module in sorted(set(linears).difference(taken)):
        candidates = (end for ancestor in _ancestors(module) for end in (ancestor, f"{ancestor}."))
        prefix = next((candidate for candidate in candidates if is_free(candidate)), None)
        found.add(module if prefix is None else f"{prefix}*")
    return sorted(found)


def expression_of(entry: str) -> str:
    """An entry of an exclude list as a ``re:`` pattern of the same effect in vLLM.

    An entry with a wildcard must match the whole name as fnmatch has it, any other must occur in it
    (``ModelOptQuantConfigBase.is_layer_excluded`` of vLLM 0.32, which is asked for each linear; of what vLLM merges it
    asks for the merged name).
    """
    return pattern_of(entry) if is_wildcard(entry) else f"re:.*{re.escape(entry)}"


def quantization_config(
    algorithm: str, exclude: Sequence[str], *, kv_cache: str | None, producer: str
) -> dict[str, Any]:
    """What stands in config.json: the declaration in the keys that compressed-tensors has for it, and modelopt's own.

    Args:
        kv_cache: ``FP8``, or None for a KV cache in the model's dtype.
        producer: the version of what wrote the checkpoint.
    """
    arguments = _arguments(algorithm)
    content: dict[str, Any] = {
        "config_groups": {
            "group_0": {"input_activations": arguments, "weights": dict(arguments), "targets": ["Linear"]},
        },
        "ignore": list(exclude),
        "quant_algo": algorithm,
    }
    if kv_cache is not None:
        content["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
    return {**content, "producer": {"name": METHOD, "version": producer}, "quant_method": METHOD}


def hf_quant_config(algorithm: str, exclude: Sequence[str], *, kv_cache: str | None, producer: str) -> bytes:
    """The content of ``hf_quant_config.json``, which says the same; arguments as for `quantization_config`."""
    quantization: dict[str, Any] = {"quant_algo": algorithm, "kv_cache_quant_algo": kv_cache}
    if algorithm != "FP8":
        quantization["group_size"] = GROUP_SIZE
    quantization["exclude_modules"] = list(exclude)
    content = {"producer": {"name": METHOD, "version": producer}, "quantization": quantization}
    return (json.dumps(content, indent=4) + "\n").encode()


def declared_kv_cache(raw: Mapping[str, Any]) -> str | None:
    """The KV cache that a config.json's declaration names: ``FP8`` or None; anything else as it is written."""
    scheme = raw.get("kv_cache_scheme")
    if isinstance(scheme, Mapping):
        eight = scheme.get("num_bits") == 8 and scheme.get("type") == "float"
        return "FP8" if eight else json.dumps(scheme, sort_keys=True)[:80]
    named = raw.get("kv_cache_quant_algo", scheme)
    return None if named is None else str(named)[:80]


def _arguments(algorithm: str) -> dict[str, Any]:
    if algorithm == "FP8":
        return {"dynamic": False, "num_bits": 8, "type": "float"}
    return {"dynamic": False, "num_bits": 4, "type": "float", "group_size": GROUP_SIZE}


def _ancestors(module: str) -> list[str]:
    """Every module that holds this one, the outermost first."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
