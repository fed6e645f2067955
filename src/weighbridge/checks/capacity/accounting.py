"""What fits on a card: weights in memory, bytes of KV cache a token, and the tokens for which memory is left.

Computed from a config and a structure, never measured. Two accountings, because published figures use both: vLLM pages
every layer alike, so that a layer that caches little pays for the one that caches most; SGLang keeps a pool for layers
that attend to everything and a smaller one for layers with a sliding window. Sources: ``v1/core/kv_cache_utils.py`` and
``v1/kv_cache_interface.py`` of vLLM 0.32.0, ``srt/model_executor/pool_configurator.py`` of SGLang 0.5.23.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from weighbridge.checkpoint.modules import split_parameter
from weighbridge.errors import StructureError
from weighbridge.families import UNKNOWN, Role, family_of
from weighbridge.formats.quantization import text_config
from weighbridge.formats.tensors import Structure, payload_bytes

GIB = 1024**3
KV_BYTES: Mapping[str, int] = {"bf16": 2, "fp8": 1}
"""Bytes of one cached element by the name of the cache's dtype."""

VLLM_RESERVE = 2 * GIB
"""Assumed: activations and CUDA graphs beside weights and cache. Published logs of this model leave 1.6 GiB (a request
of 4,096 tokens) to 5.2 GiB (batches of 8,192 tokens); docs/explanation/capacity.md derives both."""
SGLANG_RESERVE = 480 * 1024**2
"""Assumed: the CUDA context, there before anything is loaded; what both published pools on 24 GB leave. Activations
live in what the fraction spares."""
SGLANG_LOADED = 450 * 1024**2
"""Assumed: SGLang says of weights by how much free memory fell, so what CUDA loads beside tensors is counted too. One
figure, fitted to the two published ones; docs/explanation/capacity.md says what is left of them without it."""

ROTARY_BYTES: Mapping[str, int] = {"vLLM": 2, "SGLang": 4}
"""Bytes of an element of the tables of cosines and sines: vLLM keeps them in BF16, SGLang (on CUDA) in F32."""

MAX_COUNT = 100_000_000
MAX_LAYERS = 10_000
_FULL, _SLIDING = "full_attention", "sliding_attention"
_UNEVEN = (
    *("full_attention_interval", "layers_block_type", "hybrid_override_pattern", "attn_layer_period"),
    *("attention_chunk_size", "sliding_window_pattern"),
)
"""Keys with which a config without ``layer_types`` says that its layers differ, in ways that are not read here."""

Server = Literal["vLLM", "SGLang"]


class Layers(NamedTuple):
    """The layers of one kind.

    Attributes:
        number: how many have a cache of their own.
        elements: keys and values that one of them caches for a token.
        head: width of a head's rotary embedding.
        window: how many tokens back it attends; None for all.
    """

    number: int
    elements: int
    head: int
    window: int | None = None


@dataclass(frozen=True)
class CacheShape:
    """What a model caches.

    Attributes:
        kinds: its layers by kind, those that attend to everything before those with a sliding window.
        positions: tokens that the model was made for (``max_position_embeddings``).
    """

    kinds: tuple[Layers, ...]
    positions: int

    def bytes_per_token(self, element_bytes: int, *, sliding: bool) -> int:
        """Bytes a token of all layers that slide, or of all that do not."""
        chosen = (kind for kind in self.kinds if (kind.window is not None) is sliding)
        return sum(kind.number * kind.elements for kind in chosen) * element_bytes


@dataclass(frozen=True)
class Demand:
    """What is asked for, and what is assumed.

    Attributes:
        memory: bytes of the card.
        kv_dtype: dtype of the cache, one of `KV_BYTES`; None for BF16, or for what a checkpoint declares.
        context: tokens of a request; None for all that the model was made for.
        utilization: share of the card that weights and cache may have: ``--gpu-memory-utilization`` of vLLM,
            ``--mem-fraction-static`` of SGLang.
        reserve: bytes of that share that neither gets; None for `VLLM_RESERVE` and `SGLANG_RESERVE`.
        batched_tokens: ``--max-num-batched-tokens`` of vLLM.
        block_tokens: ``--block-size`` of vLLM: tokens of a block of its cache, in the layers that cache most.
        sliding_share: ``--swa-full-tokens-ratio`` of SGLang.
    """

    memory: int
    kv_dtype: str | None = None
    context: int | None = None
    utilization: float = 0.9
    reserve: int | None = None
    batched_tokens: int = 8192
    block_tokens: int = 16
    sliding_share: float = 0.8

    @property
    def element_bytes(self) -> int:
        """Bytes of one cached element."""
        return KV_BYTES[self.kv_dtype or "bf16"]


@dataclass(frozen=True)
class Weights:
    """What a server holds of weights, in bytes.

    Attributes:
        payload: the checkpoint's tensors.
        rotary: tables of cosines and sines for every position.
        twice: block scales of which SGLang keeps a second copy.
        loaded: see `SGLANG_LOADED`.
    """

    payload: int
    rotary: int
    twice: int = 0
    loaded: int = 0

    @property
    def total(self) -> int:
        return self.payload + self.rotary + self.twice + self.loaded


@dataclass(frozen=True)
class Capacity:
    """One server's accounting.

    Attributes:
        server: whose accounting it is.
        weights: what it holds of them.
        cache: bytes that are left for the KV cache; negative where the weights alone are too much.
        bytes_per_token: what a token of the cache takes.
        tokens: tokens of cache that fit.
        requests: requests of `context` tokens that fit at a time.
        context: tokens of a request.
    """

    server: Server
    weights: Weights
    cache: int
    bytes_per_token: int
    tokens: int
    requests: float
    context: int


def read_cache_shape(config: Mapping[str, Any], *, where: str) -> CacheShape:
    """What a model caches, by its config.json: heads that share keys and values, sliding windows, latent attention.

    Keys are those of transformers 5.17. Layers that share another layer's cache have none of their own.

    Raises:
        StructureError: a number that is needed is not there or is none, or layers of a kind that is not read here.
    """
    text = text_config(config)
    count = _number(text, "num_hidden_layers", where=where, limit=MAX_LAYERS)
    types = _layer_types(text, count, where=where)
    shared = text.get("num_kv_shared_layers") or 0
    if not isinstance(shared, int) or not 0 <= shared < count:
        raise StructureError(f"num_kv_shared_layers must be below the {count} layers", where=where)
    own = _per_layer(text, where=where)
    alike = Counter(
        _layer({**text, **own.get(index, {})}, kind, where=where) for index, kind in enumerate(types[: count - shared])
    )
    kinds = [layer._replace(number=number) for layer, number in alike.items()]
    kinds.sort(key=lambda kind: kind.window is not None)
    return CacheShape(tuple(kinds), _number(text, "max_position_embeddings", where=where))


def check_against_structure(shape: CacheShape, config: Mapping[str, Any], structure: Structure, *, where: str) -> None:
    """Hold what the config says of keys against the rows of every ``k_proj`` of the language model.

    Raises:
        StructureError: a projection whose rows are those of no kind of layer.
    """
    if "kv_lora_rank" in text_config(config):
        return  # latent attention has no k_proj
    expected, family = {kind.elements // 2 for kind in shape.kinds}, family_of(config)
    for name, tensor in structure.items():
        module, parameter = split_parameter(name)
        if not module.endswith(".self_attn.k_proj") or family.role_of(module) is not Role.ATTENTION:
            continue
        if parameter in ("weight", "weight_packed") and tensor.shape[0] not in expected:
            rows = " or ".join(f"{number:,}" for number in sorted(expected))
            raise StructureError(f"{name} has {tensor.shape[0]:,} rows where config.json makes it {rows}", where=where)


def weights_in_memory(server: Server, structure: Structure, shape: CacheShape) -> Weights:
    """What a server holds of weights: the tensors, and what it makes beside them.

    Both take the rotary tables for every position of the model, whatever context is served. For NVFP4 experts in
    modelopt's format SGLang (0.5.13 to 0.5.23) allocates rearranged block scales, and does not free them where Marlin
    runs the experts, as it does on cards before Blackwell.
    """
    tables = {(kind.head, kind.window is None) for kind in shape.kinds}
    rotary = shape.positions * sum(head for head, _ in tables) * ROTARY_BYTES[server]
    if server == "vLLM":
        return Weights(payload_bytes(structure), rotary)
    return Weights(payload_bytes(structure), rotary, twice=_expert_scales(structure), loaded=SGLANG_LOADED)


def vllm_capacity(structure: Structure, shape: CacheShape, demand: Demand) -> Capacity:
    """vLLM's accounting: groups of equally many layers take blocks of one size from one pool.

    A block holds `block_tokens` tokens of the layers that cache most, and more of the others. `tokens` are those that
    every layer could hold at once, as vLLM logged them until 0.20; later versions log `requests` times `context`.
    """
    weights = weights_in_memory("vLLM", structure, shape)
    cache = _left(demand, weights, VLLM_RESERVE)
    element = demand.element_bytes
    widest = max(kind.elements for kind in shape.kinds)
    group = _group_size([kind.number for kind in shape.kinds])
    groups = sum(_ceil_div(kind.number, group) for kind in shape.kinds)
    bytes_per_token = groups * group * widest * element
    blocks = max(cache, 0) // (demand.block_tokens * widest * element * group)
    context = demand.context or shape.positions
    needed = sum(_ceil_div(kind.number, group) * _blocks(kind, widest, context, demand) for kind in shape.kinds)
    tokens = blocks // groups * demand.block_tokens
    return Capacity("vLLM", weights, cache, bytes_per_token, tokens, blocks / needed, context)


def sglang_capacity(structure: Structure, shape: CacheShape, demand: Demand) -> Capacity:
    """SGLang's accounting: a pool of `tokens` for layers that attend to everything, a share of it for those that slide.

    A request takes a place for each of its tokens in the one and for its window in the other.
    """
    weights = weights_in_memory("SGLang", structure, shape)
    cache = _left(demand, weights, SGLANG_RESERVE)
    element = demand.element_bytes
    full, sliding = (shape.bytes_per_token(element, sliding=slides) for slides in (False, True))
    share = demand.sliding_share if full else 1.0
    bytes_per_token = round(full + share * sliding)
    tokens = max(cache, 0) // bytes_per_token
    context = demand.context or shape.positions
    windows = [kind.window for kind in shape.kinds if kind.window is not None]
    requests = tokens / context if full else float(tokens)
    for window in windows:
        requests = min(requests, tokens * share / min(context, window))
    return Capacity("SGLang", weights, cache, bytes_per_token, tokens, requests, context)


def _left(demand: Demand, weights: Weights, reserve: int) -> int:
    """Bytes for the cache, once weights and reserve are taken from the share of the card."""
    spared = reserve if demand.reserve is None else demand.reserve
    return int(demand.memory * demand.utilization) - weights.total - spared


def _ceil_div(total: int, part: int) -> int:
    """How many parts hold the total."""
    return -(-total // part)


def _group_size(counts: Sequence[int]) -> int:
    """How many layers vLLM puts into a group: the fewest of a kind, or the most where that is not half as many more."""
    return max(counts) if max(counts) < 1.5 * min(counts) else min(counts)


def _blocks(kind: Layers, widest: int, context: int, demand: Demand) -> int:
    """Blocks that a request takes of one group of layers.

    A window that moves may begin within a block, hence one block more; a chunk of a prompt is held whole.
    """
    tokens = demand.block_tokens * (widest // kind.elements if widest % kind.elements == 0 else 1)
    if kind.window is None:
        return _ceil_div(context, tokens)
    held = min(kind.window - 1 + demand.batched_tokens, context)
    return _ceil_div(held, tokens) + 1


def _expert_scales(structure: Structure) -> int:
    """Bytes of the block scales of NVFP4 experts in modelopt's format: F8_E4M3 beside codes of two elements a byte."""
    return sum(
        tensor.nbytes
        for name, tensor in structure.items()
        if name.endswith(".weight_scale")
        and tensor.dtype == "F8_E4M3"
        and UNKNOWN.role_of(name.removesuffix(".weight_scale")) is Role.EXPERTS
        and structure.get(name.removesuffix("_scale"), tensor).dtype == "U8"
    )


def _layer_types(text: Mapping[str, Any], count: int, *, where: str) -> Sequence[str]:
    """For each layer whether it attends to everything or slides."""
    types = text.get("layer_types")
    if types is None:
        uneven = next((key for key in _UNEVEN if text.get(key)), None)
        if text.get("sliding_window") and text.get("use_sliding_window", True):
            uneven = uneven or "sliding_window"
        if uneven:
            what = f"has {uneven} and no layer_types, so which layers cache what is not known"
            remedy = "write layer_types into it as transformers does when it saves the model"
            raise StructureError(what, where=where, remedy=remedy)
        return [_FULL] * count
    if not isinstance(types, list) or len(types) != count:
        raise StructureError(f"layer_types must name a type for each of the {count} layers", where=where)
    other = next((kind for kind in types if kind not in (_FULL, _SLIDING)), None)
    if other is not None:
        raise StructureError(f"has layers of the type {str(other)[:40]!r}, whose cache is not computed", where=where)
    return types


def _per_layer(text: Mapping[str, Any], *, where: str) -> Mapping[int, Mapping[str, Any]]:
    """What single layers have of their own, as transformers from 5.17 saves it: ``{"05": {"head_dim": 512}}``."""
    own = text.get("per_layer_config") or {}
    if not isinstance(own, Mapping) or not all(
        key.isascii() and key.isdigit() and len(key) < 9 and isinstance(value, Mapping) for key, value in own.items()
    ):
        raise StructureError("per_layer_config must map numbers of layers to keys and values", where=where)
    return {int(key): value for key, value in own.items()}


def _layer(text: Mapping[str, Any], kind: str, *, where: str) -> Layers:
    """One layer, by the config as it holds for this layer."""
    window = _number(text, "sliding_window", where=where) if kind == _SLIDING else None
    if text.get("kv_lora_rank"):
        rotary = _number(text, "qk_rope_head_dim", where=where)
        return Layers(1, _number(text, "kv_lora_rank", where=where) + rotary, rotary, window)
    heads = _number(text, "num_attention_heads", where=where)
    groups = _number(text, "num_key_value_heads", where=where, default=heads)
    head = text.get("head_dim")
    head = (
        _number(text, "hidden_size", where=where) // heads if head is None else _number(text, "head_dim", where=where)
    )
    if kind == _FULL:  # Gemma 4's own keys for its layers that attend to everything
        head = _number(text, "global_head_dim", where=where, default=head)
        if text.get("attention_k_eq_v"):
            groups = _number(text, "num_global_key_value_heads", where=where, default=groups)
    if text.get("v_head_dim") not in (None, head):
        raise StructureError("has values of another width than keys, whose cache is not computed", where=where)
    return Layers(1, 2 * groups * head, head, window)


def _number(
    text: Mapping[str, Any], key: str, *, where: str, default: int | None = None, limit: int = MAX_COUNT
) -> int:
    """A whole number of at least one; null means what the key's absence means."""
    value = text.get(key)
    value = default if value is None else value
    if value is None:
        raise StructureError(f"has no {key}, which the KV cache's size depends on", where=where)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise StructureError(f"{key} must be a whole number from 1 to {limit:,}, not {str(value)[:40]}", where=where)
    return value
