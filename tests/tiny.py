"""A tiny Llama of no lock, with every kind of file that a publisher puts beside the weights, and a recipe for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import CONFIG, RawTensor, Tensors, edit_config, write_shard, write_tensors
from tests.mistral_native import DENSE, MOE, write_mistral

HIDDEN, INNER, HEADS, KV, LAYERS, VOCAB = 64, 128, 4, 32, 2, 256

CONFIG_OF: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "transformers_version": "5.17.0",
}
BESIDE: dict[str, Any] = {
    "generation_config.json": {"do_sample": True, "eos_token_id": [2, 3], "temperature": 0.6, "top_p": 0.9},
    "tokenizer_config.json": {"add_bos_token": True, "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"},
    "tokenizer.json": {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}},
    "special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>"},
}
TEXTS = {
    "chat_template.jinja": "{% for m in messages %}{{ m['content'] }}{% endfor %}\n",
    "README.md": "---\nlicense: apache-2.0\n---\n# A tiny model\n",
    "LICENSE": "Apache License 2.0\n",
    ".gitattributes": "*.safetensors filter=lfs\n",
}
RECIPE = """\
name: tiny-fp8
description: FP8 of a tiny Llama.
base:
  model: example-org/tiny-llama
  revision: "0000000000000000000000000000000000000000"
  licence: apache-2.0
method: model_free_ptq
scheme: FP8_DYNAMIC
ignore:
  - lm_head
  - re:.*embed.*
  - re:.*norm.*
"""


def _left_behind(directory: Path) -> None:
    write_shard(directory / "consolidated.safetensors", {"norm.weight": tiny_tensors()["model.norm.weight"]})


def _forgotten(directory: Path) -> None:
    norm = tiny_tensors()["model.norm.weight"]
    write_shard(directory / "model-00003-of-00003.safetensors", {"model.layers.2.input_layernorm.weight": norm})


def _redirected(directory: Path) -> None:
    edit_config(directory, lambda config: config.update(transformers_weights="other.safetensors"))


def _gpt_oss(directory: Path) -> None:
    from tests.published import write_gpt_oss  # torch stays away from every other

    for path in directory.iterdir():
        path.unlink()
    write_gpt_oss(directory)


def _mistral(directory: Path) -> None:
    _in_mistrals_form(directory, DENSE)


def _mistral_experts(directory: Path) -> None:
    _in_mistrals_form(directory, {**DENSE, "moe": {**MOE["moe"], "num_shared_experts": 0}})


def _in_mistrals_form(directory: Path, params: dict[str, Any]) -> None:
    for path in directory.iterdir():
        path.unlink()
    write_mistral(directory, params)


def _tied_and_stored(directory: Path) -> None:
    edit_config(directory, lambda config: config.update(tie_word_embeddings=True))


MADE: dict[str, Callable[[Path], None]] = {
    "made/left-behind": _left_behind,
    "made/forgotten": _forgotten,
    "made/redirected": _redirected,
    "made/gpt-oss": _gpt_oss,
    "made/tied-and-stored": _tied_and_stored,
    "made/mistral": _mistral,
    "made/mistral-experts": _mistral_experts,
}
"""Sources that examples of docs/reference/rules.md are planned for -> how each is made of the tiny Llama."""


def tiny_tensors() -> Tensors:
    """Every tensor of the model, BF16, of small random values."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        here = f"model.layers.{layer}"
        shapes |= {
            f"{here}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{here}.self_attn.k_proj.weight": (KV, HIDDEN),
            f"{here}.self_attn.v_proj.weight": (KV, HIDDEN),
            f"{here}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{here}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{here}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"{here}.mlp.down_proj.weight": (HIDDEN, INNER),
            f"{here}.input_layernorm.weight": (HIDDEN,),
            f"{here}.post_attention_layernorm.weight": (HIDDEN,),
        }
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    random = np.random.default_rng(20261127)
    return {name: _bf16(random.normal(0, 0.02, shape)) for name, shape in shapes.items()}


def _bf16(values: np.ndarray[Any, Any]) -> RawTensor:
    bits = values.astype("<f4").view("<u4")
    return RawTensor("BF16", values.shape, (bits >> np.uint32(16)).astype("<u2").tobytes())


def write_tiny(directory: Path, *, shards: int = 2) -> Path:
    """Write the model into `directory`, as a publisher would."""
    directory.mkdir(parents=True)
    write_tensors(directory, tiny_tensors(), shards=shards)
    for name, content in {CONFIG: CONFIG_OF, **BESIDE}.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
    for name, text in TEXTS.items():
        (directory / name).write_text(text)
    return directory
