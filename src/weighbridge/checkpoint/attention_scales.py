"""The scales of attention: what is stored for its queries, keys and values, and what its KV cache is declared as.

Source: ``initialize_attn_qparams`` of compressed-tensors 0.19.0 for what is stored; ``get_cache_scale_mapper`` and
``CompressedTensorsKVCacheMethod`` of vLLM 0.32 for the names and shapes that it loads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from weighbridge.checkpoint.modules import split_parameter
from weighbridge.checkpoint.problems import Problem
from weighbridge.families import Family, Role, family_of
from weighbridge.formats.declaration import Declaration
from weighbridge.formats.schemes import QuantizationArgs
from weighbridge.formats.tensors import FLOATING_SOURCES, Structure, Tensor
from weighbridge.text.names import layer_of

PROJECTIONS = frozenset(
    {
        *("k_proj", "qkv_proj", "kv_b_proj", "kv_a_proj_with_mqa", "query_key_value", "c_attn", "Wqkv", "qkv", "wk"),
    }
)
"""Names of linears that only an attention with a KV cache has."""

_SPELLINGS = (
    re.compile(r"(?P<attention>.+)\.(?P<kind>[qkv])_proj\.(?P=kind)_(?P<what>scale|zero_point)"),  # modelopt
    re.compile(r"(?P<attention>.+)\.(?P<kind>[qkv])_proj\.output_(?P<what>scale|zero_point)"),  # early llm-compressor
    re.compile(r"(?P<attention>.+)\.qk(?:qk)?v_proj\.(?P<kind>[qkv])_(?P<what>scale|zero_point)"),
    re.compile(r"(?P<attention>.+)\.(?P<kind>[kv])_cache\.(?P<what>scale)"),
    re.compile(r"(?P<attention>.+)\.(?P<kind>q)\.(?P<what>scale)"),
    re.compile(r"(?P<attention>.+)\.(?P<kind>[qkv]|kv|prob)_(?P<what>scale|zero_point)"),
)
_INNER = re.compile(r"(.+)\.(?:attn|mla_attn)")


class AttentionScale(NamedTuple):
    """A tensor that belongs to an attention's queries (``q``), keys (``k``) or values (``v``)."""

    name: str
    attention: str
    kind: str
    what: str
    tensor: Tensor


def attention_scales(structure: Structure, declaration: Declaration | None, family: Family) -> list[AttentionScale]:
    """Every tensor that is named as a scale or zero point of attention.

    Scales of a projection's own outputs (``k_proj.output_scale``) are those of the cache only where a cache is declared
    and no group quantizes outputs.
    """
    outputs = declaration is not None and (
        declaration.kv_cache is None or any(group.scheme.output_activations for group in declaration.groups)
    )
    found = []
    for name, tensor in structure.items():
        if not name.endswith(("scale", "zero_point")):
            continue
        match = next(filter(None, (spelling.fullmatch(name) for spelling in _SPELLINGS)), None)
        if match is not None and not (name.endswith(("output_scale", "output_zero_point")) and outputs):
            found.append(AttentionScale(name, _outer(match["attention"], family), match["kind"], match["what"], tensor))
    return found


def attention_problems(
    scales: Iterable[AttentionScale],
    structure: Structure,
    declaration: Declaration | None,
    config: Mapping[str, Any],
) -> Iterator[Problem]:
    """Scales of attention that nothing declares, that belong to no attention, are missing, or cannot be loaded."""
    scales = list(scales)
    queries = None if declaration is None else next((group.args for group in declaration.attention), None)
    cache = declaration.kv_cache if declaration is not None and declaration.kv_cache is not None else queries
    attentions = _attentions(structure, family_of(config))
    heads = _Heads.of(config)
    for scale in scales:
        of_queries = scale.kind in ("q", "prob")
        # A lock keeps what its source declares of the cache, and not the groups of attention.
        args = queries if of_queries and declaration is not None and declaration.place else cache
        if scale.attention not in attentions:
            why = "is the scale of an attention, and there is no attention of the text model"
            yield "config/stray-scale", scale.name, why, "take it out, or restore what it belongs to"
        elif args is None or args.dynamic is True:
            said = "queries" if of_queries else "a KV cache"
            why = f"is a scale of attention, and config.json declares no static scales of {said}"
            remedy = "declare it (kv_cache_scheme, or a config group of the attention's class), or take the tensor out"
            yield "config/undeclared-scale", scale.name, why, remedy
        else:
            yield from _misshapen(scale, args, heads)
    if scales and cache is not None and cache.dynamic is not True:
        yield from _missing(scales, attentions, heads, wanted=("k", "v") if queries is None else ("q", "k", "v"))


class _Heads(NamedTuple):
    """What a config says of attention: heads of queries and of keys, layers, and the layers that have their own keys.

    Numbers that a config does not say are empty or None.
    """

    queries: frozenset[int]
    keys: frozenset[int]
    layers: int | None
    own: int | None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Heads:
        text = _text_config(config)
        layers, shared = _number(text, "num_hidden_layers"), _number(text, "num_kv_shared_layers")
        keys = {_number(text, key) for key in ("num_key_value_heads", "num_global_key_value_heads")}
        queries = _number(text, "num_attention_heads")
        return cls(
            queries=frozenset(() if queries is None else (queries,)),
            keys=frozenset(number for number in keys if number is not None)
            or frozenset(() if queries is None else (queries,)),
            layers=layers,
            own=layers - (shared or 0) if layers is not None else None,
        )


def _misshapen(scale: AttentionScale, args: QuantizationArgs, heads: _Heads) -> Iterator[Problem]:
    name, tensor = scale.name, scale.tensor
    if scale.what == "scale" and tensor.dtype not in FLOATING_SOURCES:
        yield "config/wrong-tensor", name, f"is {tensor}; scales of attention are BF16, F16 or F32", ""
        return
    if args.strategy == "tensor":
        if tensor.shape not in ((), (1,)):
            yield "config/wrong-tensor", name, f"is {tensor}; one scale of the whole tensor is [1]", ""
        return
    if args.strategy != "attn_head":
        yield "config/wrong-tensor", name, f"is {tensor}; no server has scales of a KV cache per {args.strategy}", ""
        return
    counts = heads.queries if scale.kind in ("q", "prob") else heads.keys
    shapes = {shape for count in counts for shape in ((count, 1, 1), (count,))}
    plain = len(tensor.shape) in (1, 3) and tensor.shape[1:] in ((), (1, 1))
    if tensor.shape not in shapes if shapes else not plain:
        wanted = " or ".join(str([count, 1, 1]) for count in sorted(counts)) or "[heads, 1, 1]"
        yield "config/wrong-tensor", name, f"is {tensor}; one scale for each head is {wanted}", ""


def _missing(
    scales: Iterable[AttentionScale], attentions: Iterable[str], heads: _Heads, *, wanted: tuple[str, ...]
) -> Iterator[Problem]:
    stored: dict[str, set[str]] = {}
    for scale in scales:
        if scale.what == "scale":
            stored.setdefault(scale.attention, set()).update(scale.kind)
    for attention in attentions:
        if not stored.get(attention) and _is_optional(attention, heads):
            continue
        for kind in wanted:
            if kind not in stored.get(attention, set()):
                why = "missing; other layers have it, and servers take 1.0 in its place"
                remedy = "calibrate every layer, or take the scales out and declare the scheme alone"
                yield "config/missing-tensor", f"{attention}.{kind}_scale", why, remedy


def _is_optional(attention: str, heads: _Heads) -> bool:
    """Whether calibration may pass an attention by: drafting heads, and layers that use the keys of others."""
    layer = layer_of(attention)
    beyond = heads.own is not None and layer is not None and layer >= heads.own
    return beyond or "mtp" in attention.split(".")


def _attentions(structure: Structure, family: Family) -> list[str]:
    """The attentions of the text model: those that have a projection of keys."""
    found: dict[str, None] = {}
    for name in structure:
        attention, _, projection = split_parameter(name)[0].rpartition(".")
        if projection in PROJECTIONS and family.role_of(attention) is Role.ATTENTION:
            found[attention] = None
    return list(found)


def _outer(attention: str, family: Family) -> str:
    """An attention without the inner module that servers keep its cache in."""
    match = _INNER.fullmatch(attention)
    return match[1] if match is not None and family.role_of(match[1]) is Role.ATTENTION else attention


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the text model: at the top, in ``text_config``, or there below a part's own config."""
    if isinstance(config.get("text_config"), dict):
        return dict(config["text_config"])
    if _number(config, "num_hidden_layers") is None:
        for key, part in config.items():
            if key.endswith("_config") and isinstance(part, dict) and isinstance(part.get("text_config"), dict):
                return dict(part["text_config"])
    return config


def _number(config: Mapping[str, Any], key: str) -> int | None:
    number = config.get(key)
    return number if type(number) is int and number > 0 else None
