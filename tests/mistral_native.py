"""Tiny checkpoints in Mistral's own form: params.json and consolidated*.safetensors, random weights from a seed.

The names are those of published checkpoints: dense as Mistral-7B-Instruct-v0.3, latent attention and experts as
Mistral-Large-3-675B, a vision tower as Pixtral-12B, an audio tower as Voxtral-Mini. params.json has their keys.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import RawTensor, Tensors, write_shard

DIM, INNER, HEAD, HEADS, KV_HEADS, VOCAB, LAYERS = 256, 512, 64, 4, 2, 256, 2
PARAMS, TEKKEN = "params.json", "tekken.json"
INDEX = "consolidated.safetensors.index.json"

DENSE: dict[str, Any] = {
    "dim": DIM,
    "n_layers": LAYERS,
    "head_dim": HEAD,
    "hidden_dim": INNER,
    "n_heads": HEADS,
    "n_kv_heads": KV_HEADS,
    "norm_eps": 1e-05,
    "vocab_size": VOCAB,
    "rope_theta": 1000000.0,
    "max_seq_len": 512,
    "max_position_embeddings": 512,
    "tied_embeddings": False,
}
MOE: dict[str, Any] = {
    **DENSE,
    "head_dim": 128,
    "kv_lora_rank": 128,
    "q_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_kv_heads": HEADS,
    "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 512},
    "moe": {
        "expert_hidden_dim": 128,
        "expert_model_parallel": 1,
        "expert_parallel": 1,
        "first_k_dense_replace": 1,
        "num_expert_groups": 1,
        "num_expert_groups_per_tok": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_shared_experts": 1,
        "route_every_n": 1,
        "routed_scale": 1.0,
    },
    "yarn": {"alpha": 1, "apply_scale": False, "beta": 32, "factor": 36, "original_max_position_embeddings": 512},
}
TOWER: dict[str, Any] = {
    "hidden_size": 64,
    "num_channels": 3,
    "image_size": 64,
    "patch_size": 16,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "rope_theta": 10000.0,
    "image_token_id": 10,
    "image_break_token_id": 12,
    "image_end_token_id": 13,
    "adapter_bias": True,
}
VISION: dict[str, Any] = {**DENSE, "vision_encoder": TOWER}
AUDIO: dict[str, Any] = {
    **DENSE,
    "multimodal": {
        "whisper_model_args": {
            "encoder_args": {
                "audio_encoding_args": {
                    "sampling_rate": 16000,
                    "num_mel_bins": 8,
                    "hop_length": 160,
                    "window_size": 400,
                },
                "dim": 64,
                "n_layers": 1,
                "head_dim": 32,
                "hidden_dim": 128,
                "n_heads": 2,
                "vocab_size": VOCAB,
                "max_source_positions": 64,
            },
            "downsample_args": {"downsample_factor": 4},
        }
    },
}
LARGE: dict[str, Any] = {
    **MOE,
    "vision_encoder": {
        **TOWER,
        "mm_projector_id": "patch_merge",
        "spatial_merge_size": 2,
        "add_pre_mm_projector_layer_norm": True,
    },
}
"""What Mistral-Large-3 has: latent attention, experts, and a tower whose patches are merged."""
KINDS: dict[str, dict[str, Any]] = {"dense": DENSE, "moe": MOE, "vision": VISION, "audio": AUDIO}

Shapes = dict[str, tuple[int, ...]]


def shapes_of(params: dict[str, Any]) -> Shapes:
    """Every tensor of a model with this params.json."""
    embedding = "mm_whisper_embeddings.tok_embeddings" if "multimodal" in params else "tok_embeddings"
    shapes: Shapes = {f"{embedding}.weight": (VOCAB, DIM), "norm.weight": (DIM,), "output.weight": (VOCAB, DIM)}
    for layer in range(LAYERS):
        here = f"layers.{layer}"
        shapes |= {f"{here}.attention_norm.weight": (DIM,), f"{here}.ffn_norm.weight": (DIM,)}
        shapes |= _attention(f"{here}.attention", params)
        moe = params.get("moe")
        if moe is None or layer < moe["first_k_dense_replace"]:
            shapes |= _mlp(f"{here}.feed_forward", DIM, INNER)
            continue
        shapes[f"{here}.gate.weight"] = (moe["num_experts"], DIM)
        shapes |= _mlp(f"{here}.shared_experts", DIM, moe["expert_hidden_dim"])
        for expert in range(moe["num_experts"]):
            shapes |= _mlp(f"{here}.experts.{expert}", DIM, moe["expert_hidden_dim"])
    if "vision_encoder" in params:
        shapes |= _vision(params["vision_encoder"])
    if "multimodal" in params:
        shapes |= _audio(params["multimodal"]["whisper_model_args"]["encoder_args"])
    return shapes


def _mlp(name: str, width: int, inner: int) -> Shapes:
    return {
        f"{name}.w1.weight": (inner, width),
        f"{name}.w2.weight": (width, inner),
        f"{name}.w3.weight": (inner, width),
    }


def _attention(name: str, params: dict[str, Any]) -> Shapes:
    heads, head = params["n_heads"], params["head_dim"]
    if "kv_lora_rank" not in params:
        rows = params["n_kv_heads"] * head
        return {
            f"{name}.wq.weight": (heads * head, DIM),
            f"{name}.wk.weight": (rows, DIM),
            f"{name}.wv.weight": (rows, DIM),
            f"{name}.wo.weight": (DIM, heads * head),
        }
    low, rank, rope = params["q_lora_rank"], params["kv_lora_rank"], params["qk_rope_head_dim"]
    return {
        f"{name}.wq_a.weight": (low, DIM),
        f"{name}.q_a_norm.weight": (low,),
        f"{name}.wq_b.weight": (heads * (params["qk_nope_head_dim"] + rope), low),
        f"{name}.wkv_a_with_mqa.weight": (rank + rope, DIM),
        f"{name}.kv_a_norm.weight": (rank,),
        f"{name}.wkv_b.weight": (heads * (params["qk_nope_head_dim"] + params["v_head_dim"]), rank),
        f"{name}.wo.weight": (DIM, heads * params["v_head_dim"]),
    }


def _vision(tower: dict[str, Any]) -> Shapes:
    width, patch = tower["hidden_size"], tower["patch_size"]
    here = "vision_encoder.transformer.layers.0"
    merged: Shapes = {
        "patch_merger.merging_layer.weight": (width, width * tower.get("spatial_merge_size", 1) ** 2),
        "pre_mm_projector_norm.weight": (width,),
    }
    return {
        **(merged if "mm_projector_id" in tower else {}),
        "vision_encoder.patch_conv.weight": (width, tower["num_channels"], patch, patch),
        "vision_encoder.ln_pre.weight": (width,),
        f"{here}.attention_norm.weight": (width,),
        f"{here}.ffn_norm.weight": (width,),
        **{f"{here}.attention.{name}.weight": (width, width) for name in ("wq", "wk", "wv", "wo")},
        **_mlp(f"{here}.feed_forward", width, tower["intermediate_size"]),
        "vision_language_adapter.w_in.weight": (DIM, width),
        "vision_language_adapter.w_in.bias": (DIM,),
        "vision_language_adapter.w_out.weight": (DIM, DIM),
        "vision_language_adapter.w_out.bias": (DIM,),
    }


def _audio(tower: dict[str, Any]) -> Shapes:
    width, inner = tower["dim"], tower["hidden_dim"]
    encoder = "mm_whisper_embeddings.whisper_encoder"
    here = f"{encoder}.transformer.layers.0"
    return {
        f"{encoder}.conv_layers.0.weight": (width, 8, 3),
        f"{encoder}.conv_layers.0.bias": (width,),
        f"{encoder}.conv_layers.1.weight": (width, width, 3),
        f"{encoder}.conv_layers.1.bias": (width,),
        **{f"{here}.attention.{name}.weight": (width, width) for name in ("wq", "wk", "wv", "wo")},
        **{f"{here}.attention.{name}.bias": (width,) for name in ("wq", "wv", "wo")},
        **{
            f"{here}.{norm}.{local}": (width,)
            for norm in ("attention_norm", "ffn_norm")
            for local in ("weight", "bias")
        },
        f"{here}.feed_forward.w1.weight": (inner, width),
        f"{here}.feed_forward.w1.bias": (inner,),
        f"{here}.feed_forward.w2.weight": (width, inner),
        f"{here}.feed_forward.w2.bias": (width,),
        f"{encoder}.transformer.norm.weight": (width,),
        f"{encoder}.transformer.norm.bias": (width,),
        "mm_whisper_embeddings.audio_language_projection.0.weight": (DIM, 4 * width),
        "mm_whisper_embeddings.audio_language_projection.2.weight": (DIM, DIM),
    }


def tensors_of(params: dict[str, Any]) -> Tensors:
    """Every tensor of such a model, BF16, of small random values; norms are ones."""
    random = np.random.default_rng(20261128)
    return {
        name: bf16(np.ones(shape) if "norm" in name else random.normal(0, 0.05, shape))
        for name, shape in shapes_of(params).items()
    }


def loud_tensors(params: dict[str, Any]) -> Tensors:
    """As `tensors_of`, with rows of queries and keys that are of very different sizes."""
    random = np.random.default_rng(20261129)
    return {
        name: bf16(np.ones(shape) if "norm" in name else random.normal(0, 0.08, shape) * _loudness(name, shape, random))
        for name, shape in shapes_of(params).items()
    }


def _loudness(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray[Any, Any]:
    turned = name.endswith(("attention.wq.weight", "attention.wk.weight"))
    return 10.0 ** random.uniform(-0.7, 0.7, (shape[0], 1)) if turned else np.ones(1)


def bf16(values: np.ndarray[Any, Any]) -> RawTensor:
    """Values as BF16, cut off."""
    bits = values.astype("<f4").view("<u4")
    return RawTensor("BF16", values.shape, (bits >> np.uint32(16)).astype("<u2").tobytes())


def write_mistral(directory: Path, params: dict[str, Any], tensors: Tensors | None = None, *, shards: int = 1) -> Path:
    """Write a checkpoint with this params.json into `directory`, as Mistral publishes them."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = tensors_of(params) if tensors is None else tensors
    names = list(tensors)
    if shards == 1:
        write_shard(directory / "consolidated.safetensors", tensors)
    else:
        weight_map: dict[str, str] = {}
        for number in range(shards):
            shard = f"consolidated-{number + 1:05}-of-{shards:05}.safetensors"
            own = names[number::shards]
            write_shard(directory / shard, {name: tensors[name] for name in own})
            weight_map |= dict.fromkeys(own, shard)
        index = {
            "metadata": {"total_size": sum(len(tensor.data) for tensor in tensors.values())},
            "weight_map": weight_map,
        }
        (directory / INDEX).write_text(json.dumps(index, indent=2))
    (directory / PARAMS).write_text(json.dumps(params, indent=4))
    (directory / TEKKEN).write_text('{"config": {"pattern": ".", "default_vocab_size": 256}, "vocab": []}')
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny model\n")
    return directory


def in_fp8(params: dict[str, Any], *, activations: str | None = "TENSOR") -> tuple[dict[str, Any], Tensors]:
    """The same model in Mistral's own FP8: linears of the text under one scale each, ``qscale_weight``.

    Args:
        activations: what ``qscheme_act`` says; with ``NO_SCALES`` there is no ``qscale_act``.
    """
    import torch  # stays away from every other

    tensors: Tensors = {}
    for name, tensor in tensors_of(params).items():
        if not (name.startswith("layers.") and len(tensor.shape) == 2) or ".gate." in name:
            tensors[name] = tensor
            continue
        values = torch.frombuffer(bytearray(tensor.data), dtype=torch.bfloat16).reshape(tensor.shape).float()
        scale = values.abs().max() / 448
        codes = (values / scale).to(torch.float8_e4m3fn).view(torch.uint8)
        tensors[name] = RawTensor("F8_E4M3", tensor.shape, codes.numpy().tobytes())
        module = name.removesuffix(".weight")
        tensors[f"{module}.qscale_weight"] = RawTensor("F32", (), np.float32(scale).tobytes())
        if activations != "NO_SCALES":
            tensors[f"{module}.qscale_act"] = RawTensor("F32", (), np.float32(0.5).tobytes())
    said = {"qformat_weight": "fp8_e4m3"} | ({} if activations is None else {"qscheme_act": activations})
    return {**params, "quantization": said}, tensors
