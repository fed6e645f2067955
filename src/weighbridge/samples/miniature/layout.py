"""Which tensors the miniature has, what shapes they take, and in which shard each lies."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

Shape = tuple[int, ...]

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

# In the real model every layer that straddles the boundary leaves its attention, its small router tensors and
# `gate_up_proj` in the first shard. The cut layers here are one of each kind: a local one and the global one.
_SECOND_SHARD = re.compile(
    r"model\.language_model\.layers\.[45]\."
    r"(experts\.down_proj|input_layernorm|mlp|post_|pre_|router\.proj)"
)
_BUFFER = re.compile(r".*\.(layer_scalar|std_bias|std_scale)")
_EMBEDDING = "model.language_model.embed_tokens.weight"


def shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Every tensor that a model of this config.json stores, in order of name; all are BF16."""
    text, vision = config["text_config"], config["vision_config"]
    width, vision_width = text["hidden_size"], vision["hidden_size"]
    found: dict[str, Shape] = {
        _EMBEDDING: (text["vocab_size"], width),
        "model.language_model.norm.weight": (width,),
        "model.embed_vision.embedding_projection.weight": (width, vision_width),
        "model.vision_tower.patch_embedder.input_proj.weight": (vision_width, 3 * vision["patch_size"] ** 2),
        "model.vision_tower.patch_embedder.position_embedding_table": (
            2,
            vision["position_embedding_size"],
            vision_width,
        ),
        "model.vision_tower.std_bias": (vision_width,),
        "model.vision_tower.std_scale": (vision_width,),
    }
    for number, kind in enumerate(text["layer_types"]):
        for name, shape in _text_layer(text, is_global=kind == "full_attention").items():
            found[f"model.language_model.layers.{number}.{name}"] = shape
    for number in range(vision["num_hidden_layers"]):
        for name, shape in _vision_layer(vision).items():
            found[f"model.vision_tower.encoder.layers.{number}.{name}"] = shape
    return dict(sorted(found.items()))


def shard_of(name: str) -> str:
    """The file that holds the tensor of this name."""
    return SHARDS[_SECOND_SHARD.match(name) is not None]


def index(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The content of model.safetensors.index.json."""
    elements = sum(map(math.prod, shapes.values()))
    # The real index counts as transformers does: buffers are no parameters, and the tied lm_head, which is not stored,
    # is one of its own.
    buffers = sum(math.prod(shape) for name, shape in shapes.items() if _BUFFER.fullmatch(name))
    metadata = {
        "total_parameters": elements - buffers + math.prod(shapes[_EMBEDDING]),
        "total_size": 2 * elements,
    }
    return {"metadata": metadata, "weight_map": {name: shard_of(name) for name in shapes}}


def _text_layer(text: Mapping[str, Any], *, is_global: bool) -> dict[str, Shape]:
    width, dense, experts, inner = (
        text[key] for key in ("hidden_size", "intermediate_size", "num_experts", "moe_intermediate_size")
    )
    head = text["global_head_dim"] if is_global else text["head_dim"]
    queries = text["num_attention_heads"] * head
    keys = text["num_global_key_value_heads" if is_global else "num_key_value_heads"] * head
    norms = (
        "input_layernorm",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        "post_feedforward_layernorm_1",
        "post_feedforward_layernorm_2",
        "pre_feedforward_layernorm",
        "pre_feedforward_layernorm_2",
    )
    layer: dict[str, Shape] = {
        "experts.down_proj": (experts, width, inner),
        "experts.gate_up_proj": (experts, 2 * inner, width),
        "layer_scalar": (1,),
        "mlp.down_proj.weight": (width, dense),
        "mlp.gate_proj.weight": (dense, width),
        "mlp.up_proj.weight": (dense, width),
        "router.per_expert_scale": (experts,),
        "router.proj.weight": (experts, width),
        "router.scale": (width,),
        "self_attn.k_norm.weight": (head,),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, queries),
        "self_attn.q_norm.weight": (head,),
        "self_attn.q_proj.weight": (queries, width),
    }
    if not is_global:  # a global layer's values are its keys
        layer["self_attn.v_proj.weight"] = (keys, width)
    return layer | {f"{norm}.weight": (width,) for norm in norms}


def _vision_layer(vision: Mapping[str, Any]) -> dict[str, Shape]:
    width, inner, head = vision["hidden_size"], vision["intermediate_size"], vision["head_dim"]
    heads = vision["num_attention_heads"] * head
    norms = (
        "input_layernorm",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        "pre_feedforward_layernorm",
    )
    return {
        "mlp.down_proj.linear.weight": (width, inner),
        "mlp.gate_proj.linear.weight": (inner, width),
        "mlp.up_proj.linear.weight": (inner, width),
        "self_attn.k_norm.weight": (head,),
        "self_attn.k_proj.linear.weight": (heads, width),
        "self_attn.o_proj.linear.weight": (width, heads),
        "self_attn.q_norm.weight": (head,),
        "self_attn.q_proj.linear.weight": (heads, width),
        "self_attn.v_proj.linear.weight": (heads, width),
    } | {f"{norm}.weight": (width,) for norm in norms}
