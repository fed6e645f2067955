"""Structures of published models of several families: real dimensions, on the meta device, without weights or network.

transformers names things otherwise than files do: it keeps experts fused, and renames modules on load. What a file
holds is derived here by the conversion that ``save_pretrained`` applies to go back (``revert_weight_conversion`` of
transformers 5.17). Dimensions are those of the published config.json. ``python -m tests.families`` writes the locks
of those whose headers nobody here has read into references/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from tests.reference_locks import reference_lock
from weighbridge.base.locks import lock_path
from weighbridge.checkpoint.lock import write_lock
from weighbridge.checkpoint.model import Checkpoint, Origin
from weighbridge.formats.tensors import Tensor


@dataclass(frozen=True)
class Family:
    """How to make a published model on the meta device.

    Attributes:
        model: name of transformers' class.
        config: what config.json says, as far as shapes follow from it.
        in_file: entries of the text config to replace so that the model has the tensors that the file holds.
    """

    model: str
    config: Mapping[str, Any]
    in_file: Mapping[str, Any] = field(default_factory=dict)


_BIG_VISION_TOWER = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 72,
    "standardize": True,
}

FAMILIES: Mapping[str, Family] = {
    # Its config.json is in its lock, and so are its tensors: what shows that the structures here are those of files.
    "google/gemma-4-26B-A4B-it": Family(
        model="Gemma4ForConditionalGeneration",
        config=reference_lock("google/gemma-4-26B-A4B-it").config,
    ),
    "google/gemma-4-31B-it": Family(
        model="Gemma4ForConditionalGeneration",
        config={
            "text_config": {
                "hidden_size": 5376,
                "intermediate_size": 21504,
                "num_hidden_layers": 60,
                "num_attention_heads": 32,
                "num_key_value_heads": 16,
                "num_global_key_value_heads": 4,
                "head_dim": 256,
                "global_head_dim": 512,
                "attention_k_eq_v": True,
                "hidden_size_per_layer_input": 0,
            },
            "vision_config": _BIG_VISION_TOWER,
            "audio_config": None,
        },
    ),
    "google/gemma-4-12B-it": Family(
        model="Gemma4UnifiedForConditionalGeneration",
        config={
            "text_config": {
                "hidden_size": 3840,
                "intermediate_size": 15360,
                "num_hidden_layers": 48,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "num_global_key_value_heads": 1,
                "head_dim": 256,
                "global_head_dim": 512,
                "attention_k_eq_v": True,
            },
            "vision_config": {"mm_embed_dim": 3840, "mm_posemb_size": 1120},
            "audio_config": {"audio_embed_dim": 640},
        },
    ),
    "google/gemma-4-E4B-it": Family(
        model="Gemma4ForConditionalGeneration",
        config={
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 42,
                "num_attention_heads": 8,
                "num_key_value_heads": 2,
                "head_dim": 256,
                "global_head_dim": 512,
                "hidden_size_per_layer_input": 256,
                "num_kv_shared_layers": 18,
            },
            "vision_config": {"use_clipped_linears": True},  # otherwise transformers' defaults, as in the next line
            "audio_config": {},
        },
        # The file holds keys and values of the layers that share them; transformers makes none for those.
        in_file={"num_kv_shared_layers": 0},
    ),
    "meta-llama/Llama-3.1-8B-Instruct": Family(
        model="LlamaForCausalLM",
        config={
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
        },
    ),
    "Qwen/Qwen3-30B-A3B": Family(
        model="Qwen3MoeForCausalLM",
        config={
            "vocab_size": 151936,
            "hidden_size": 2048,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "tie_word_embeddings": False,
        },
    ),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": Family(
        model="MixtralForCausalLM",
        config={
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "tie_word_embeddings": False,
        },
    ),
    "deepseek-ai/DeepSeek-V2-Lite": Family(
        model="DeepseekV2ForCausalLM",
        config={
            "vocab_size": 102400,
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "tie_word_embeddings": False,
        },
    ),
}
"""Hub id -> family."""


@cache
def meta_model(repository: str) -> Any:
    """The model (a transformers ``PreTrainedModel``) on the meta device, with every tensor that the file holds."""
    import torch

    family = FAMILIES[repository]
    config = dict(family.config)
    if family.in_file:
        config["text_config"] = {**config["text_config"], **family.in_file}
    with torch.device("meta"):
        return _class_of(family)(_class_of(family).config_class.from_dict(config))


@cache
def checkpoint(repository: str) -> Checkpoint:
    """The model as its published files describe it: names on disk, all tensors BF16, and config.json."""
    family = FAMILIES[repository]
    return Checkpoint(
        label=repository,
        structure={name: Tensor("BF16", shape) for name, shape in sorted(_shapes_in_file(meta_model(repository)))},
        config=_class_of(family).config_class.from_dict(dict(family.config)).to_dict(),
        origin=Origin(repository=repository, base=repository),
    )


def _class_of(family: Family) -> Any:
    import transformers

    return getattr(transformers, family.model)


def meta_structure(family: Family) -> dict[str, Tensor]:
    """A model's tensors as transformers would save them, all BF16."""
    import torch

    with torch.device("meta"):
        model = _class_of(family)(_class_of(family).config_class.from_dict(dict(family.config)))
    return {name: Tensor("BF16", shape) for name, shape in _shapes_in_file(model)}


def model_type(family: Family) -> str:
    """What config.json calls the family."""
    return str(_class_of(family).config_class.model_type)


def _shapes_in_file(model: Any) -> list[tuple[str, tuple[int, ...]]]:
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    state = model.state_dict(keep_vars=True)
    stored = {id(tensor): name for name, tensor in reversed(state.items())}  # a tied head is stored once, as embedding
    with torch.no_grad():
        tensors = revert_weight_conversion(model, {name: state[name] for name in stored.values()})
    return [(name, tuple(tensor.shape)) for name, tensor in tensors.items()]


LOCKED = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen/Qwen3-30B-A3B",
    "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "deepseek-ai/DeepSeek-V2-Lite",
)
"""Families that have a derived lock in references/, so that they can be planned without a network."""
NOTE = (
    "names and shapes by transformers 5.17 from the dimensions below, all BF16; the number of tensors and their bytes "
    "are those published, but the headers, the rest of config.json and the commit have not been seen"
)


def derived_lock(repository: str) -> str:
    """The lock of a published model, with of its config.json what is known here."""
    family = FAMILIES[repository]
    identity = {"architectures": [family.model], "model_type": _class_of(family).config_class.model_type}
    origin = Origin(repository, "", repository, "derived", NOTE)
    return write_lock(replace(checkpoint(repository), config={**identity, **family.config}, origin=origin))


def main() -> None:
    """Write the locks into references/."""
    for repository in LOCKED:
        lock_path(repository).parent.mkdir(exist_ok=True)
        lock_path(repository).write_text(derived_lock(repository))


if __name__ == "__main__":
    main()
