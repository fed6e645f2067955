"""Roles and embeddings are read off names alone; models that transformers makes on the meta device hold the tables."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import pytest

from tests.planning import MINI, source
from weighbridge.checkpoint.modules import is_embedding, split_parameter
from weighbridge.families import UNKNOWN, Role

NAMES: dict[Role, tuple[str, ...]] = {
    Role.ATTENTION: (
        "model.language_model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.q_a_proj",
        "model.layers.0.self_attn.kv_a_proj_with_mqa",
        "model.layers.0.self_attn.kv_b_proj",
        "transformer.h.0.attn.c_attn",
        "layers.0.attention.wq",
    ),
    Role.MLP: (
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.gate_up_proj",
        "model.layers.0.feed_forward.w1",
        "transformer.h.0.mlp.c_fc",
        "model.decoder.layers.0.fc1",
    ),
    Role.EXPERTS: (
        "model.language_model.layers.0.experts.7.gate_proj",
        "model.layers.0.mlp.experts.127.down_proj",
        "model.layers.0.block_sparse_moe.experts.3.w1",
        "model.layers.0.mlp.shared_experts.up_proj",
        "model.layers.0.mlp.shared_expert.up_proj",
        "model.layers.0.feed_forward.experts.gate_up_proj",
    ),
    Role.MIXER: ("model.layers.0.linear_attn.in_proj_qkvz", "model.layers.0.mamba.in_proj"),
    Role.CONVOLUTION: ("model.layers.0.linear_attn.conv1d", "model.layers.0.self_attn.q_conv1d"),
    Role.MTP: ("mtp.fc", "model.layers.61.eh_proj"),
    Role.TALKER: ("talker.model.layers.0.mlp.gate_proj", "code2wav.pre_transformer.layers.0.self_attn.q_proj"),
    Role.INDEXER: ("model.layers.0.self_attn.indexer.wq_b",),
    Role.ROUTER: (
        "model.language_model.layers.0.router.proj",
        "model.layers.0.mlp.gate",
        "model.layers.0.block_sparse_moe.gate",
        "model.layers.0.feed_forward.router",
        "model.layers.0.mlp.shared_expert_gate",
        "layers.0.ffn.gate",
    ),
    Role.NORMS: (
        "model.language_model.layers.0.post_feedforward_layernorm_1",
        "model.layers.0.self_attn.q_norm",
        "model.layers.0.self_attn.kv_a_layernorm",
        "model.layers.61.shared_head.norm",
        "model.norm",
        "transformer.h.0.ln_1",
        "transformer.ln_f",
        "embeddings.LayerNorm",
    ),
    Role.EMBEDDINGS: (
        "model.language_model.embed_tokens",
        "model.language_model.embed_tokens_per_layer",
        "transformer.wte",
        "transformer.word_embeddings",
        "model.decoder.embed_positions",
        "tok_embeddings",
    ),
    Role.HEAD: ("lm_head", "language_model.lm_head", "embed_out", "score", "model.layers.61.shared_head.head"),
    Role.VISION: (
        "model.vision_tower.encoder.layers.0.self_attn.q_norm",
        "model.vision_tower.encoder.layers.0.mlp.down_proj.linear",
        "model.embed_vision.embedding_projection",
        "vision_embedder.patch_dense",
        "visual.blocks.0.attn.qkv",
        "multi_modal_projector.linear_1",
    ),
    Role.AUDIO: (
        "model.audio_tower.layers.0.feed_forward1.ffw_layer_1.linear",
        "model.embed_audio.embedding_projection",
        "thinker.audio_tower.layers.0.fc1",
    ),
    Role.OTHER: (
        "model.language_model.layers.0",  # holds layer_scalar
        "model.language_model.per_layer_model_projection",
        "backbone.layers.0.mixer.in_proj",
    ),
}


@pytest.mark.parametrize(("name", "role"), [(name, role) for role, names in NAMES.items() for name in names])
def test_role_is_read_off_the_name(name: str, role: Role) -> None:
    assert UNKNOWN.role_of(name) is role


# --- models of other families, made without weights -------------------------------------------------------------------

DECODER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
GROUPED = {**DECODER, "num_key_value_heads": 2, "intermediate_size": 96}
MOE = {**GROUPED, "head_dim": 16, "moe_intermediate_size": 32, "num_experts": 4}
MLA = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
DEEPSEEK = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
TOWER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}


def _gemma4() -> dict[str, Any]:
    """The miniature's configuration with what its siblings have: an audio tower and an embedding for each layer."""
    config: dict[str, Any] = deepcopy(dict(source(MINI).config))
    config["audio_config"] = {"model_type": "gemma4_audio", **TOWER}
    config["text_config"] |= {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 128}
    return config


# family -> configuration class and arguments
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma4": ("Gemma4Config", _gemma4()),
    "gemma3": ("Gemma3TextConfig", {**GROUPED, "head_dim": 16}),
    "llama": ("LlamaConfig", GROUPED),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 16}),
    "qwen3-moe": ("Qwen3MoeConfig", MOE),
    "mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 4}),
    "deepseek-v3": (
        "DeepseekV3Config",
        {**GROUPED, **MLA, **DEEPSEEK, "num_key_value_heads": 4, "moe_intermediate_size": 32},
    ),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 50_300}),
    "opt": ("OPTConfig", {**DECODER, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "bloom": ("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128}),
    "bert": ("BertConfig", {**DECODER, "intermediate_size": 96}),
    "siglip": (
        "SiglipConfig",
        {
            "text_config": {**TOWER, "vocab_size": 49_500},
            "vision_config": {**TOWER, "image_size": 32, "patch_size": 16},
        },
    ),
}


@cache
def modules(family: str) -> dict[str, Any]:
    """Every module of a family's model by its name, without weights."""
    import torch
    import transformers
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

    name, arguments = FAMILIES[family]
    made = {"gemma4": AutoModelForImageTextToText, "bert": AutoModel, "siglip": AutoModel}
    with torch.device("meta"):
        model = made.get(family, AutoModelForCausalLM).from_config(getattr(transformers, name)(**arguments))
    return dict(model.named_modules())


def parameters(family: str) -> dict[str, tuple[int, ...]]:
    """Every parameter of a family's model -> its shape."""
    return {
        f"{name}.{local}".removeprefix("."): tuple(parameter.shape)
        for name, module in modules(family).items()
        for local, parameter in module.named_parameters(recurse=False)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_embedding_names_holds_for_every_embedding_and_for_no_linear(family: str) -> None:
    import torch

    by_class = {
        kind: {name for name, module in modules(family).items() if isinstance(module, kind)}
        for kind in (torch.nn.Embedding, torch.nn.Linear)
    }
    assert by_class[torch.nn.Embedding]
    assert {name for name in modules(family) if is_embedding(name)} == by_class[torch.nn.Embedding]


@pytest.mark.parametrize(
    "family", ["gemma4", "gemma3", "llama", "qwen3", "qwen3-moe", "mixtral", "deepseek-v3", "gpt2"]
)
def test_every_matrix_of_a_served_family_has_a_role(family: str) -> None:
    unknown = {
        split_parameter(name)[0].rpartition(".")[2]
        for name, shape in parameters(family).items()
        if len(shape) >= 2 and UNKNOWN.role_of(split_parameter(name)[0]) is Role.OTHER
    }
    # What Gemma 4's smaller siblings feed into every layer: linears of a kind of their own.
    per_layer = {"per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"}
    assert unknown == (per_layer if family == "gemma4" else set())


@pytest.mark.parametrize("family", ["gemma4", "llama", "qwen3-moe", "mixtral", "deepseek-v3"])
def test_every_norm_by_class_is_a_norm_by_role_or_part_of_a_tower(family: str) -> None:
    by_class = {name for name, module in modules(family).items() if type(module).__name__.endswith("Norm")}
    with_weights = {name for name in by_class if f"{name}.weight" in parameters(family)}
    assert with_weights
    assert {UNKNOWN.role_of(name) for name in with_weights} <= {Role.NORMS, Role.VISION, Role.AUDIO}


@pytest.mark.parametrize("family", ["qwen3-moe", "mixtral", "deepseek-v3"])
def test_the_gate_beside_experts_is_a_router_and_the_gate_of_an_mlp_is_not(family: str) -> None:
    routers = {name for name in parameters(family) if UNKNOWN.role_of(split_parameter(name)[0]) is Role.ROUTER}
    assert {name.partition(".mlp.")[2] for name in routers} <= {"gate.weight", "gate.e_score_correction_bias"}
    assert any(name.endswith(".mlp.gate.weight") for name in routers)
