"""compressed-tensors' quantization config, as config.json holds it: read whole, or refused by what is not known.

Source: ``QuantizationConfig``, ``QuantizationScheme`` and ``QuantizationArgs`` of compressed-tensors 0.19.0, which
refuse unknown keys in groups and arguments; at the top, where they ignore them, nothing is ignored here. Arguments that
0.19.0 no longer takes and older releases wrote are read: ``actorder: group``, and blocks written ``128x128``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

from weighbridge.errors import StructureError
from weighbridge.formats.declaration import AttentionGroup, Declaration, Group, check_keys, read_strings, read_word
from weighbridge.formats.schemes import PRESETS, STRATEGIES, Dynamic, QuantizationArgs, Scheme

METHOD = "compressed-tensors"

CONFIG = (
    *("quant_method", "format", "config_groups", "ignore", "kv_cache_scheme", "quantization_status", "version"),
    *("global_compression_ratio", "sparsity_config", "transform_config"),
    *("run_compressed", "dequantize", "use_optimized_inference"),  # how transformers holds it in memory
)
GROUP = ("targets", "weights", "input_activations", "output_activations", "format")
ARGUMENTS = (
    *("num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic", "actorder"),
    *("scale_dtype", "zp_dtype", "observer", "observer_kwargs"),
)
"""The keys that compressed-tensors, transformers and llm-compressor have written, at each level."""

FORMATS = (
    *("dense", "int-quantized", "float-quantized", "naive-quantized", "pack-quantized", "mixed-precision", "fakequant"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"),
)
SPARSE_FORMATS = ("sparse-bitmask", "sparse-24-bitmask", "marlin-24")
"""What older releases stored pruned weights as, and compressed-tensors 0.19.0 knows no more."""

STATUSES = ("initialized", "calibration", "frozen", "compressed", "decompressed")

MOMENTS: Mapping[bool | str, tuple[str, ...]] = {
    True: ("token", "tensor", "tensor_group", "group"),
    "local": ("tensor_group",),
}
"""Strategies whose scales can be computed as values arrive."""

INPUT_STRATEGIES = ("token", "tensor", "group", "tensor_group", "attn_head")
ATTENTION_STRATEGIES = ("tensor", "attn_head")
ATTENTION_SUFFIX = "Attention"
"""vLLM leaves out a group whose one target ends so (``CompressedTensorsConfig.from_config``)."""

DTYPES = frozenset(
    {
        *("float64", "double", "float32", "float", "float16", "half", "bfloat16", "uint8", "int8", "int16", "short"),
        *("int32", "int", "int64", "long", "bool", "uint16", "uint32", "uint64"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
    }
)
"""Names of torch's dtypes that scales and zero points can have, with and without ``torch.`` before them."""

_TEXT = re.compile(r"[\x20-\x7e]{0,64}")
LARGEST = 1 << 20


def read_declaration(raw: Mapping[str, Any], _: Mapping[str, Any], *, where: str) -> Declaration:
    """Read a quantization config whose ``quant_method`` is compressed-tensors.

    Raises:
        StructureError: it is malformed, or says something that is not known here.
    """
    check_keys(raw, CONFIG, where=where)
    raw_groups = {} if raw.get("config_groups") is None else raw["config_groups"]
    if not isinstance(raw_groups, dict):
        raise StructureError("config_groups is no mapping", where=where)
    groups = [_read_group(name, group, where=f"{where}.config_groups.{name}") for name, group in raw_groups.items()]
    kv_cache = raw.get("kv_cache_scheme")
    format = _read_format(raw.get("format", ""), (*FORMATS, *SPARSE_FORMATS), where=where)
    _check_remarks(raw, where=where)
    return Declaration(
        quant_method=METHOD,
        format=format,
        groups=tuple(group for group in groups if isinstance(group, Group)),
        attention=tuple(group for group in groups if isinstance(group, AttentionGroup)),
        ignore=read_strings(raw.get("ignore"), where=f"{where}.ignore"),
        kv_cache=None if kv_cache is None else read_args(kv_cache, where=f"{where}.kv_cache_scheme"),
        status=_read_status(raw, where=where),
        unread=_unread(raw, format, where=where),
    )


def read_args(raw: Any, *, where: str) -> QuantizationArgs:
    """Read compressed-tensors' ``QuantizationArgs`` from JSON or YAML values.

    Raises:
        StructureError: not a mapping, a key that it does not have, or a value that the field cannot have.
    """
    if not isinstance(raw, dict):
        raise StructureError("is no mapping of quantization arguments", where=where)
    check_keys(raw, ARGUMENTS, where=where)
    bits, kind, strategy = raw.get("num_bits", 8), _lower(raw.get("type", "int")), _lower(raw.get("strategy"))
    group_size, dynamic, symmetric = (
        raw.get("group_size"),
        _lower(raw.get("dynamic", False)),
        raw.get("symmetric", True),
    )
    if group_size is not None and (type(group_size) is not int or not -1 <= group_size <= LARGEST):
        raise StructureError(f"group_size cannot be {str(group_size)[:40]!r}", where=where)
    if strategy is None:
        strategy = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
    if type(bits) is not int or not 1 <= bits <= 16:
        raise StructureError(f"num_bits cannot be {str(bits)[:40]!r}", where=where)
    if kind == "float" and bits not in (4, 8):
        raise StructureError(f"floats of {bits} bits are not known, only of 4 (E2M1) and 8 (E4M3)", where=where)
    if kind not in ("float", "int") or strategy not in STRATEGIES:
        raise StructureError(
            f"unknown type or strategy: {str(kind)[:40]!r}, {str(strategy)[:40]!r}",
            where=where,
            remedy=_nearest(str(strategy), STRATEGIES) if kind in ("float", "int") else "a type is 'float' or 'int'",
        )
    if (type(dynamic) is not bool and dynamic != "local") or not isinstance(symmetric, bool):
        raise StructureError("dynamic must be true, false or 'local', and symmetric true or false", where=where)
    if strategy not in MOMENTS.get(dynamic, STRATEGIES) or (strategy == "token" and not dynamic):
        raise StructureError(f"strategy {strategy} cannot have dynamic {dynamic}", where=where)
    grouped = strategy in ("group", "tensor_group")
    if grouped is not (type(group_size) is int and group_size > 0):
        raise StructureError(f"strategy {strategy} cannot have group_size {str(group_size)[:40]!r}", where=where)
    _check_zero_points(raw, symmetric, bits, str(kind), where=where)
    return QuantizationArgs(
        num_bits=bits,
        type="float" if kind == "float" else "int",
        strategy=str(strategy),
        symmetric=symmetric,
        dynamic=_moment(dynamic),
        group_size=group_size if grouped else None,
        block_structure=_read_block(raw.get("block_structure"), str(strategy), where=where),
        scale_dtype=_read_dtype(raw, "scale_dtype", where=where),
        observer=_read_observer(raw, where=where),
        observer_kwargs=_read_kwargs(raw, where=where),
        actorder=_read_order(raw.get("actorder"), where=where),
    )


def read_scheme(raw: Mapping[str, Any], *, where: str) -> Scheme:
    """Read compressed-tensors' ``QuantizationScheme`` (its targets and its format apart).

    Raises:
        StructureError: no weights, or malformed arguments.
    """
    check_keys(raw, GROUP, where=where)
    if raw.get("weights") is None:
        raise StructureError(
            "a scheme without weights is not known here",
            where=where,
            remedy="servers take such a group only where its one target is a class of attention, e.g. LlamaAttention",
        )
    inputs, outputs = _read_activations(raw, where=where)
    _read_group_format(raw, where=where)
    return Scheme(
        weights=read_args(raw["weights"], where=f"{where}.weights"),
        input_activations=inputs,
        output_activations=outputs,
    )


def _read_group(name: str, raw: Any, *, where: str) -> Group | AttentionGroup:
    if isinstance(raw, list):  # the short form: preset name -> targets
        if name.upper() not in PRESETS:
            raise StructureError(
                f"{name[:40]!r} is no preset known here", where=where, remedy=_nearest(name[:64].upper(), PRESETS)
            )
        return Group(targets=read_strings(raw, where=where), scheme=PRESETS[name.upper()])
    if not isinstance(raw, dict):
        raise StructureError("is no config group", where=where)
    check_keys(raw, GROUP, where=where)
    targets = read_strings(raw.get("targets"), where=f"{where}.targets")
    if raw.get("weights") is None and len(targets) == 1 and targets[0].endswith(ATTENTION_SUFFIX):
        return AttentionGroup(targets, _read_attention(raw, where=where))
    return Group(targets=targets, scheme=read_scheme(raw, where=where), format=_read_group_format(raw, where=where))


def _read_attention(raw: Mapping[str, Any], *, where: str) -> QuantizationArgs:
    """How a group quantizes attention. Source: ``_validate_attention_scheme`` of compressed-tensors 0.19.0."""
    inputs, outputs = _read_activations(raw, where=where)
    if inputs is None or outputs is not None:
        raise StructureError("a group that targets attention has input_activations, and no other", where=where)
    if inputs.strategy not in ATTENTION_STRATEGIES:
        known = " or ".join(ATTENTION_STRATEGIES)
        raise StructureError(f"attention is quantized per {known}, not per {inputs.strategy}", where=where)
    _read_group_format(raw, where=where)
    return inputs


def _read_activations(raw: Mapping[str, Any], *, where: str) -> tuple[QuantizationArgs | None, QuantizationArgs | None]:
    read: list[QuantizationArgs | None] = []
    for key in ("input_activations", "output_activations"):
        args = None if raw.get(key) is None else read_args(raw[key], where=f"{where}.{key}")
        if args is not None and args.actorder is not None:
            raise StructureError("actorder is of weights alone", where=f"{where}.{key}")
        read.append(args)
    inputs, outputs = read
    if inputs is not None and inputs.strategy not in INPUT_STRATEGIES:
        raise StructureError(
            f"activations cannot be quantized per {inputs.strategy}", where=f"{where}.input_activations"
        )
    return inputs, outputs


def _check_remarks(raw: Mapping[str, Any], *, where: str) -> None:
    """Keys that describe: they must be what they should be, and say nothing of the tensors."""
    version, ratio = raw.get("version"), raw.get("global_compression_ratio")
    if version is not None and not (isinstance(version, str) and _TEXT.fullmatch(version)):
        raise StructureError(f"version cannot be {str(version)[:40]!r}", where=where)
    if ratio is not None and type(ratio) not in (int, float):
        raise StructureError(f"global_compression_ratio cannot be {str(ratio)[:40]!r}", where=where)
    for key in ("run_compressed", "dequantize", "use_optimized_inference"):
        if not isinstance(raw.get(key), bool | None):
            raise StructureError(f"{key} must be true or false", where=where)


def _read_status(raw: Mapping[str, Any], *, where: str) -> str:
    status = raw.get("quantization_status")
    if status is None:
        return ""
    if status not in STATUSES:
        raise StructureError(
            f"quantization_status cannot be {str(status)[:40]!r}",
            where=where,
            remedy=f"it is one of {', '.join(STATUSES)}",
        )
    return str(status)


def _unread(raw: Mapping[str, Any], format: str, *, where: str) -> str:
    """What changes how tensors are to be read and is not read here; empty where there is nothing of the kind."""
    for key, what in (("transform_config", "rotations of weights"), ("sparsity_config", "pruned weights")):
        if not isinstance(raw.get(key), dict | None):
            raise StructureError(f"{key} is no mapping", where=where)
        dense = key == "sparsity_config" and (raw.get(key) or {}).get("format") == "dense"
        if raw.get(key) and not dense and any(value not in (None, {}, []) for value in raw[key].values()):
            return f"whose {key} ({what}) is not read here"
    return f"whose format {format} (pruned weights) is not read here" if format in SPARSE_FORMATS else ""


def _read_format(format: Any, known: tuple[str, ...], *, where: str) -> str:
    word = read_word({"format": format}, "format", default="", where=where)
    if word and word not in known:
        raise StructureError(f"the format {word[:40]!r} is not known", where=where, remedy=_nearest(word, known))
    return word


def _read_group_format(raw: Mapping[str, Any], *, where: str) -> str:
    format = "" if raw.get("format") is None else _read_format(raw["format"], FORMATS, where=where)
    if format == "mixed-precision":
        raise StructureError("one group cannot have the format mixed-precision", where=where)
    return format


def _read_block(block: Any, strategy: str, *, where: str) -> tuple[int, int] | None:
    if isinstance(block, str):  # as compressed-tensors once wrote it
        block = [int(side) if side.isdecimal() and len(side) < 8 else side for side in block.split("x")]
    if block is not None and strategy != "block":
        raise StructureError(f"strategy {strategy} cannot have block_structure {str(block)[:40]!r}", where=where)
    if strategy != "block":
        return None
    if (
        not isinstance(block, list | tuple)
        or len(block) != 2
        or not all(type(side) is int and 1 <= side <= LARGEST for side in block)
    ):
        raise StructureError(f"strategy block cannot have block_structure {str(block)[:40]!r}", where=where)
    return block[0], block[1]


def _read_dtype(raw: Mapping[str, Any], key: str, *, where: str) -> str | None:
    dtype = raw.get(key)
    if dtype is None:
        return None
    if not isinstance(dtype, str) or dtype.removeprefix("torch.") not in DTYPES:
        raise StructureError(f"{key} cannot be {str(dtype)[:40]!r}", where=where, remedy="write it as torch.bfloat16")
    return f"torch.{dtype.removeprefix('torch.')}"


def _check_zero_points(raw: Mapping[str, Any], symmetric: bool, bits: int, kind: str, *, where: str) -> None:
    """Zero points are stored as codes are; symmetric values have none, whatever ``zp_dtype`` says."""
    dtype = _read_dtype(raw, "zp_dtype", where=where)
    own = "torch.float8_e4m3fn" if kind == "float" else "torch.int8" if bits <= 8 else "torch.int16"
    if dtype not in (None, own) and not symmetric:
        raise StructureError(f"zero points of {kind}{bits} are {own}, not {dtype}", where=where)


def _read_observer(raw: Mapping[str, Any], *, where: str) -> str | None:
    observer = raw.get("observer")
    if observer is not None and not (isinstance(observer, str) and _TEXT.fullmatch(observer)):
        raise StructureError(f"observer cannot be {str(observer)[:40]!r}", where=where)
    return observer


def _read_kwargs(raw: Mapping[str, Any], *, where: str) -> Mapping[str, Any]:
    kwargs = raw.get("observer_kwargs", {})
    if not (isinstance(kwargs, dict) and all(isinstance(key, str) for key in kwargs)):
        raise StructureError("observer_kwargs is no mapping", where=where)
    return dict(kwargs)


def _read_order(order: Any, *, where: str) -> Literal["weight", "static", "group"] | None:
    """``static`` is another word for ``weight``, which stays as it was said; ``dynamic`` and true are for ``group``."""
    if order is None or order is False:
        return None
    if order in ("weight", "static"):
        return "static" if order == "static" else "weight"
    if _lower(order) in ("group", "dynamic") or order is True:
        return "group"
    raise StructureError(
        f"actorder cannot be {str(order)[:40]!r}", where=where, remedy="it is weight (static), group (dynamic) or null"
    )


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _moment(dynamic: Any) -> Dynamic:
    return "local" if dynamic == "local" else dynamic is True


def _nearest(word: str, known: Any) -> str:
    close = get_close_matches(word[:64], known, n=1)
    return f"did you mean {close[0]!r}?" if close else ""
