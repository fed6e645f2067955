"""Small real checkpoints of several families, as transformers saves them: random BF16 weights, the same for one seed.

Sizes are chosen to be awkward where real ones are: experts of width 96 that no block of 128 divides, fewer keys than
queries, a dense layer before the mixtures, a head that is not tied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

VOCABULARY = 256
_COMMON: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}


def write_llama(directory: Path, *, seed: int = 0, inner: int = 192) -> None:
    """A dense model: 21 tensors; with another `inner` width, one that groups of 128 may divide."""
    from transformers import LlamaConfig, LlamaForCausalLM

    _write(LlamaForCausalLM, LlamaConfig(**{**_COMMON, "intermediate_size": inner}), directory, seed)


def write_tied(directory: Path, *, seed: int = 0) -> None:
    """A dense model whose head is its embedding: 20 tensors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    _write(LlamaForCausalLM, LlamaConfig(**{**_COMMON, "tie_word_embeddings": True}), directory, seed)


def write_qwen3_moe(directory: Path, *, seed: int = 0) -> None:
    """A dense layer, then one of 4 experts, stored one by one: 35 tensors."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        **_COMMON,
        head_dim=32,
        moe_intermediate_size=96,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
    )
    _write(Qwen3MoeForCausalLM, config, directory, seed)


def write_mixtral(directory: Path, *, seed: int = 0) -> None:
    """Two layers of 4 experts that are called w1, w2 and w3: 41 tensors."""
    from transformers import MixtralConfig, MixtralForCausalLM

    _write(MixtralForCausalLM, MixtralConfig(**_COMMON, num_local_experts=4), directory, seed)


def write_deepseek_v2(directory: Path, *, seed: int = 0) -> None:
    """Latent attention, queries too; a dense layer, then one of 4 routed experts and a shared one: 40 tensors."""
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    config = DeepseekV2Config(
        **{**_COMMON, "num_key_value_heads": 4},  # as many as there are heads: each has its own of what is latent
        moe_intermediate_size=96,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        q_lora_rank=64,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=32,
    )
    _write(DeepseekV2ForCausalLM, config, directory, seed)


def write_qwen2(directory: Path, *, seed: int = 0) -> None:
    """A dense model whose queries, keys and values have biases, which are not zero: 27 tensors."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    def give_biases(model: Any) -> None:
        for name, tensor in model.named_parameters():
            if name.endswith(".bias"):
                tensor.data.normal_()

    _write(Qwen2ForCausalLM, Qwen2Config(**{**_COMMON, "num_key_value_heads": 4}), directory, seed, give_biases)


def write_gemma3(directory: Path, *, seed: int = 0) -> None:
    """A dense model of three layers that attend in two ways, whose norms multiply by one more than their weights: 41
    tensors."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    def spread_norms(model: Any) -> None:
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.data.normal_(std=0.3)

    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(**{**_COMMON, "num_hidden_layers": 3}, head_dim=32, layer_types=kinds)
    _write(Gemma3ForCausalLM, config, directory, seed, spread_norms)


TOYS: Mapping[str, Callable[[Path], None]] = {
    "llama": write_llama,
    "qwen3-moe": write_qwen3_moe,
    "mixtral": write_mixtral,
    "deepseek-v2": write_deepseek_v2,
}
"""Name -> what writes the checkpoint into an existing directory."""

TOYS_TO_SMOOTH: Mapping[str, Callable[[Path], None]] = {"qwen2": write_qwen2, "gemma3": write_gemma3}
"""Those that have more than weights to smooth."""


def _write(
    model_class: Any, config: Any, directory: Path, seed: int, change: Callable[[Any], None] = lambda model: None
) -> None:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).to(torch.bfloat16)
        change(model)
    model.save_pretrained(directory)
    write_tokenizer(directory)


def write_tokenizer(directory: Path) -> None:
    """One token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(symbols) == VOCABULARY
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
