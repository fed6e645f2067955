"""Small models of many families, as transformers makes and saves them, for a server to load and compute with.

Random weights, two layers, a byte-pair tokenizer of 512 words: enough for each kind of layer that an architecture has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.checkpoints import edit_config
from weighbridge.samples.trained import tokens
from weighbridge.samples.trained.text import training_text

VOCABULARY = 512
SPREAD = 0.06
"""Standard deviation of every matrix: logits differ by about one, so that a wrong scale is seen."""

_COMMON: Mapping[str, Any] = {
    **{"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": VOCABULARY},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 1024},
    **{"tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
_EXPERTS: Mapping[str, Any] = {
    **{"num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 128, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1},
}
_DENSE = (
    *("ArceeForCausalLM", "Ernie4_5ForCausalLM", "Exaone4ForCausalLM", "Gemma3ForCausalLM", "Glm4ForCausalLM"),
    *("GraniteForCausalLM", "HunYuanDenseV1ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"),
    *("NemotronForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM"),
    *("Qwen3ForCausalLM", "SeedOssForCausalLM", "SmolLM3ForCausalLM", "StableLmForCausalLM", "Starcoder2ForCausalLM"),
)
_TIED = ("CohereForCausalLM", "Cohere2ForCausalLM")
_MIXTURES = (
    *("Dots1ForCausalLM", "Glm4MoeForCausalLM", "GraniteMoeForCausalLM", "MixtralForCausalLM", "OlmoeForCausalLM"),
    "Qwen3MoeForCausalLM",
)

SERVED: Mapping[str, Mapping[str, Any]] = {
    **{architecture: {} for architecture in _DENSE},
    **{architecture: {"tie_word_embeddings": True} for architecture in _TIED},
    **dict.fromkeys(_MIXTURES, _EXPERTS),
}
"""Architecture -> what its config says otherwise.

Left out, because vLLM 0.32 on a CPU computes something else than transformers does from the untouched source too:
DeepSeek-V2 and V3 (its latent attention there), Ernie 4.5 MoE, LFM2, and by 6e-5 nats Gemma 2. MiniMax-M2 loads, but
vLLM's router on CPUs takes no sigmoid without groups.
"""

COMPUTED_OTHERWISE: Mapping[str, Mapping[str, Any]] = {"Lfm2ForCausalLM": {"tie_word_embeddings": True}}
"""One of those that are left out."""

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "Glm4MoeForCausalLM": {"head_dim": 64},
    "Lfm2ForCausalLM": {
        **{"block_dim": 256, "conv_dim": 256, "conv_dim_out": 256, "block_ff_dim": 512, "block_multiple_of": 256},
        **{"block_auto_adjust_ff_dim": False, "block_ffn_dim_multiplier": 1.0},
    },
}
"""What published configs say, vLLM asks for, and transformers' classes leave out."""


_TOLD = {**SERVED, **COMPUTED_OTHERWISE}


def write_served(architecture: str, directory: Path) -> Path:
    """A BF16 checkpoint of an architecture with random weights, its tokenizer beside it."""
    import torch
    import transformers

    model_class = getattr(transformers, architecture)
    usual = model_class.config_class()
    said = {key: value for key, value in {**_COMMON, **_TOLD[architecture]}.items() if hasattr(usual, key)}
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**said)).to(torch.bfloat16)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=SPREAD)
    model.save_pretrained(directory)
    edit_config(directory, lambda config: config.update(PUBLISHED.get(architecture, {})))
    (directory / "tokenizer.json").write_text(json.dumps(tokens.learn([training_text()], VOCABULARY)))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return directory
