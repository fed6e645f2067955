"""Structures of large published models whose headers nobody here has read: derived from their dimensions.

Dimensions are those of the published config.json. Names and shapes come from transformers on the meta device, as
`tests.families` makes them, and from there by what publishers do otherwise: layers for speculative decoding, codes and
scales in the place of weights, experts in one tensor. What comes of it is held against the numbers that are published:
of tensors, of elements, of bytes. ``python -m tests.flagships`` writes the locks into references/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from tests.families import Family, meta_structure, model_type
from weighbridge.base.locks import lock_path
from weighbridge.checkpoint.lock import write_lock
from weighbridge.checkpoint.model import Checkpoint, Origin
from weighbridge.checkpoint.quantized import quantized_modules
from weighbridge.formats.quantization import read_declaration
from weighbridge.formats.tensors import Structure, Tensor

Layout = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Flagship:
    """How the files of a published model come of its dimensions.

    Attributes:
        family: the model in transformers.
        known: how much of what comes of it is published, for the lock's note.
        layout: from transformers' tensors, all BF16, to those of the files; in this order.
        quantization: config.json's quantization_config.
        model_type: config.json's, where it is not transformers' own.
    """

    family: Family
    known: str
    layout: tuple[Layout, ...] = ()
    quantization: Mapping[str, Any] = field(default_factory=dict)
    model_type: str = ""


def drafter(layer: int, hidden: int, vocabulary: int | None = None) -> Layout:
    """Add a layer for speculative decoding: like the last one, with what joins it to the model.

    Args:
        layer: its number, that of the layers before it.
        vocabulary: where it has the embedding and the head once more.
    """
    joined = {"eh_proj": (hidden, 2 * hidden), "enorm": (hidden,), "hnorm": (hidden,), "shared_head.norm": (hidden,)}
    twice = {"embed_tokens": (vocabulary, hidden), "shared_head.head": (vocabulary, hidden)} if vocabulary else {}

    def added(structure: dict[str, Tensor]) -> dict[str, Tensor]:
        last, own = f"model.layers.{layer - 1}.", f"model.layers.{layer}."
        alike = {own + name.removeprefix(last): tensor for name, tensor in structure.items() if name.startswith(last)}
        joints = {f"{own}{name}.weight": Tensor("BF16", shape) for name, shape in {**joined, **twice}.items()}
        return {**structure, **alike, **joints}

    return added


def floats(*ends: str) -> Layout:
    """Store tensors whose names end so in F32."""

    def stored(structure: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: replace(t, dtype="F32") if name.endswith(ends) else t for name, t in structure.items()}

    return stored


def blocks(*ends: str) -> Layout:
    """Store the weights of modules whose names end so in FP8, with an F32 scale for each block of 128x128."""

    def stored(structure: dict[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, tensor in structure.items():
            module, _, local = name.rpartition(".")
            coded = local == "weight" and module.endswith(ends)
            found[name] = Tensor("F8_E4M3", tensor.shape) if coded else tensor
            if coded:
                found[f"{module}.weight_scale_inv"] = Tensor("F32", tuple(-(-axis // 128) for axis in tensor.shape))
        return found

    return stored


def frequencies(layers: int, count: int) -> Layout:
    """Add what no server reads: the frequencies of the rotary embedding, which older code saved in each layer."""

    def added(structure: dict[str, Tensor]) -> dict[str, Tensor]:
        names = (f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(layers))
        return {**structure, **dict.fromkeys(names, Tensor("BF16", (count,)))}

    return added


def mxfp4_experts(structure: dict[str, Tensor]) -> dict[str, Tensor]:
    """Store gpt-oss' experts as it does: rows before columns, and 32 codes of four bits under an exponent."""
    found: dict[str, Tensor] = {}
    for name, tensor in structure.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            found[name] = tensor
            continue
        experts, columns, rows = tensor.shape
        found[f"{name}_blocks"] = Tensor("U8", (experts, rows, columns // 32, 16))
        found[f"{name}_scales"] = Tensor("U8", (experts, rows, columns // 32))
    return found


def fused_experts(structure: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep all experts of a layer in two tensors, gate above up, which transformers would write one by one."""
    found: dict[str, Tensor] = {}
    count: dict[str, int] = {}
    for name, tensor in structure.items():
        parent, experts, rest = name.partition(".mlp.experts.")
        if not experts:
            found[name] = tensor
            continue
        member = rest.split(".")[1]
        count[parent] = count.get(parent, 0) + (member == "down_proj")
        rows, columns = tensor.shape
        if member == "down_proj":
            found[f"{parent}.mlp.experts.down_proj"] = Tensor(tensor.dtype, (count[parent], rows, columns))
        else:
            found[f"{parent}.mlp.experts.gate_up_proj"] = Tensor(tensor.dtype, (0, 2 * rows, columns))
    for parent, experts_of_it in count.items():
        fused = f"{parent}.mlp.experts.gate_up_proj"
        found[fused] = replace(found[fused], shape=(experts_of_it, *found[fused].shape[1:]))
    return found


def qwen_drafter(structure: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the layer for speculative decoding of Qwen3.5 and 3.6: like the last one, which is of full attention."""
    last, hidden = "model.language_model.layers.39.", 2048
    alike = {"mtp.layers.0." + name.removeprefix(last): t for name, t in structure.items() if name.startswith(last)}
    norms = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    joints = {f"mtp.{name}.weight": Tensor("BF16", (hidden,)) for name in norms}
    return {**structure, **alike, **joints, "mtp.fc.weight": Tensor("BF16", (hidden, 2 * hidden))}


def fp8_blocks(**more: Any) -> dict[str, Any]:
    """The quantization_config of blocks of FP8."""
    return {"activation_scheme": "dynamic", "quant_method": "fp8", "weight_block_size": [128, 128], **more}


_EXPERTS = ("gate_proj", "up_proj", "down_proj")
_LATENT = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")

_DEEPSEEK_V3 = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
"""Dimensions that R1 and V3.2 share."""

_NEMOTRON_3_NANO = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
"""Its layers, as its config.json writes them (hybrid_override_pattern)."""
_NEMOTRON_BLOCKS = {"M": "mamba", "E": "moe", "*": "attention"}

FLAGSHIPS: Mapping[str, Flagship] = {
    "meta-llama/Llama-3.3-70B-Instruct": Flagship(
        Family(
            model="LlamaForCausalLM",
            config={
                "vocab_size": 128256,
                "hidden_size": 8192,
                "intermediate_size": 28672,
                "num_hidden_layers": 80,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "tie_word_embeddings": False,
            },
        ),
        known="its 70,553,706,496 parameters are those published",
    ),
    "Qwen/Qwen3-235B-A22B": Flagship(
        Family(
            model="Qwen3MoeForCausalLM",
            config={
                "vocab_size": 151936,
                "hidden_size": 4096,
                "moe_intermediate_size": 1536,
                "num_hidden_layers": 94,
                "num_attention_heads": 64,
                "num_key_value_heads": 4,
                "head_dim": 128,
                "num_experts": 128,
                "tie_word_embeddings": False,
            },
        ),
        known="its 36,945 tensors and their 470,187,269,120 bytes are those published",
    ),
    "zai-org/GLM-4.6": Flagship(
        Family(
            model="Glm4MoeForCausalLM",
            config={
                "vocab_size": 151552,
                "hidden_size": 5120,
                "intermediate_size": 12288,
                "moe_intermediate_size": 1536,
                "num_hidden_layers": 92,
                "num_attention_heads": 96,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "attention_bias": True,
                "use_qk_norm": True,
                "n_routed_experts": 160,
                "n_shared_experts": 1,
                "first_k_dense_replace": 3,
                "num_nextn_predict_layers": 1,
                "tie_word_embeddings": False,
            },
        ),
        known=(
            "its 356,785,898,816 parameters are those published, and that the biases "
            "of routers are F32 is how transformers and vLLM hold them"
        ),
        layout=(drafter(92, 5120), floats("e_score_correction_bias")),
    ),
    "openai/gpt-oss-120b": Flagship(
        Family(
            model="GptOssForCausalLM",
            config={
                "vocab_size": 201088,
                "hidden_size": 2880,
                "intermediate_size": 2880,
                "num_hidden_layers": 36,
                "num_local_experts": 128,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "head_dim": 64,
                "attention_bias": True,
                "tie_word_embeddings": False,
            },
        ),
        known="its elements in BF16 and those in four bits with their scales are as many as published",
        layout=(mxfp4_experts,),
        quantization={
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                *("model.layers.*.self_attn", "model.layers.*.mlp.router"),
                *("model.embed_tokens", "lm_head"),
            ],
        },
    ),
    "deepseek-ai/DeepSeek-R1": Flagship(
        Family(
            model="DeepseekV3ForCausalLM",
            config={**_DEEPSEEK_V3, "tie_word_embeddings": False},
        ),
        known="its 91,991 tensors, their 688,574,839,360 bytes and the elements of each dtype are those published",
        layout=(
            drafter(61, 7168, 129280),
            floats("e_score_correction_bias"),
            blocks(*_EXPERTS, *_LATENT),
        ),
        quantization=fp8_blocks(fmt="e4m3"),
    ),
    "deepseek-ai/DeepSeek-V3.2": Flagship(
        Family(
            model="DeepseekV32ForCausalLM",
            config={
                **_DEEPSEEK_V3,
                "index_head_dim": 128,
                "index_n_heads": 64,
                "index_topk": 2048,
                "tie_word_embeddings": False,
            },
        ),
        known=(
            "its 92,425 tensors, their dtypes and 685,396,921,376 elements are those published, here or of V3.2-Exp"
        ),
        layout=(
            drafter(61, 7168, 129280),
            floats("norm.weight", "k_norm.bias", "e_score_correction_bias"),
            blocks(*_EXPERTS, *_LATENT, "indexer.wk", "indexer.wq_b"),
        ),
        quantization=fp8_blocks(fmt="e4m3", scale_fmt="ue8m0"),
    ),
    "moonshotai/Kimi-K2-Instruct": Flagship(
        Family(
            model="DeepseekV3ForCausalLM",
            config={
                **_DEEPSEEK_V3,
                "vocab_size": 163840,
                "num_attention_heads": 64,
                "num_key_value_heads": 64,
                "n_routed_experts": 384,
                "first_k_dense_replace": 1,
                "num_nextn_predict_layers": 0,
                "tie_word_embeddings": False,
            },
        ),
        known="its 139,644 tensors, their shapes and dtypes and 1,026,470,731,056 elements are those somebody listed",
        layout=(frequencies(61, 56), floats("e_score_correction_bias"), blocks(*_EXPERTS, *_LATENT)),
        quantization=fp8_blocks(fmt="e4m3"),
        model_type="kimi_k2",
    ),
    "MiniMaxAI/MiniMax-M2": Flagship(
        Family(
            model="MiniMaxM2ForCausalLM",
            config={
                "vocab_size": 200064,
                "hidden_size": 3072,
                "intermediate_size": 1536,
                "num_hidden_layers": 62,
                "num_attention_heads": 48,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "num_local_experts": 256,
                "tie_word_embeddings": False,
            },
        ),
        known="its 230,121,630,720 bytes are those published",
        layout=(
            floats("e_score_correction_bias", "block_sparse_moe.gate.weight"),
            blocks("q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2", "w3"),
        ),
        quantization=fp8_blocks(
            fmt="float8_e4m3fn", modules_to_not_convert=["gate", "e_score_correction_bias", "lm_head"]
        ),
    ),
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": Flagship(
        Family(
            model="Mistral3ForConditionalGeneration",
            config={
                "text_config": {
                    "model_type": "mistral",
                    "vocab_size": 131072,
                    "hidden_size": 5120,
                    "intermediate_size": 32768,
                    "num_hidden_layers": 40,
                    "num_attention_heads": 32,
                    "num_key_value_heads": 8,
                    "head_dim": 128,
                    "tie_word_embeddings": False,
                },
                "vision_config": {
                    "model_type": "pixtral",
                    "hidden_size": 1024,
                    "intermediate_size": 4096,
                    "num_hidden_layers": 24,
                    "num_attention_heads": 16,
                    "head_dim": 64,
                    "patch_size": 14,
                    "image_size": 1540,
                },
                "spatial_merge_size": 2,
                "tie_word_embeddings": False,
            },
        ),
        known="its 24,011,361,280 parameters are those published",
    ),
    "ibm-granite/granite-4.0-h-small": Flagship(
        Family(
            model="GraniteMoeHybridForCausalLM",
            config={
                "vocab_size": 100352,
                "hidden_size": 4096,
                "intermediate_size": 768,
                "shared_intermediate_size": 1536,
                "num_hidden_layers": 40,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "num_local_experts": 72,
                "layer_types": ["attention" if layer % 10 == 5 else "mamba" for layer in range(40)],
                "mamba_n_heads": 128,
                "mamba_d_head": 64,
                "mamba_d_state": 128,
                "mamba_d_conv": 4,
                "mamba_n_groups": 1,
                "mamba_expand": 2,
                "tie_word_embeddings": True,
            },
        ),
        known="its 32,207,337,984 parameters are those published",
    ),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": Flagship(
        Family(
            model="NemotronHForCausalLM",
            config={
                "vocab_size": 131072,
                "hidden_size": 2688,
                "layers_block_type": [_NEMOTRON_BLOCKS[letter] for letter in _NEMOTRON_3_NANO],
                "num_attention_heads": 32,
                "num_key_value_heads": 2,
                "head_dim": 128,
                "moe_intermediate_size": 1856,
                "moe_shared_expert_intermediate_size": 3712,
                "n_routed_experts": 128,
                "n_shared_experts": 1,
                "mamba_num_heads": 64,
                "mamba_head_dim": 64,
                "ssm_state_size": 128,
                "n_groups": 8,
                "conv_kernel": 4,
                "tie_word_embeddings": False,
            },
        ),
        known=(
            "its 6,243 tensors and 31,577,940,288 elements are those published; 69 tensors in F32 were counted, and "
            "that these are A_log, D and the biases of routers is inferred"
        ),
        layout=(floats("mixer.A_log", "mixer.D", "e_score_correction_bias"),),
    ),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": Flagship(
        Family(
            model="Llama4ForConditionalGeneration",
            config={
                "text_config": {
                    "model_type": "llama4_text",
                    "vocab_size": 202048,
                    "hidden_size": 5120,
                    "intermediate_size": 8192,
                    "intermediate_size_mlp": 16384,
                    "num_hidden_layers": 48,
                    "num_attention_heads": 40,
                    "num_key_value_heads": 8,
                    "head_dim": 128,
                    "num_local_experts": 16,
                    "interleave_moe_layer_step": 1,
                    "tie_word_embeddings": False,
                },
                "vision_config": {
                    "model_type": "llama4_vision_model",
                    "hidden_size": 1408,
                    "intermediate_size": 5632,
                    "num_hidden_layers": 34,
                    "num_attention_heads": 16,
                    "patch_size": 14,
                    "image_size": 336,
                    "pixel_shuffle_ratio": 0.5,
                    "projector_input_dim": 4096,
                    "projector_output_dim": 4096,
                    "vision_output_dim": 4096,
                },
                "tie_word_embeddings": False,
            },
        ),
        known="its 108,641,793,536 parameters are those published",
    ),
    "Qwen/Qwen3.6-35B-A3B": Flagship(
        Family(
            model="Qwen3_5MoeForConditionalGeneration",
            config={
                "text_config": {
                    "model_type": "qwen3_5_moe_text",
                    "vocab_size": 248320,
                    "hidden_size": 2048,
                    "moe_intermediate_size": 512,
                    "shared_expert_intermediate_size": 512,
                    "num_hidden_layers": 40,
                    "num_attention_heads": 16,
                    "num_key_value_heads": 2,
                    "head_dim": 256,
                    "num_experts": 256,
                    "full_attention_interval": 4,
                    "linear_conv_kernel_dim": 4,
                    "linear_key_head_dim": 128,
                    "linear_num_key_heads": 16,
                    "linear_num_value_heads": 32,
                    "linear_value_head_dim": 128,
                    "mtp_num_hidden_layers": 1,
                    "tie_word_embeddings": False,
                },
                "vision_config": {
                    "model_type": "qwen3_5_moe_vision",
                    "hidden_size": 1152,
                    "intermediate_size": 4304,
                    "depth": 27,
                    "num_heads": 16,
                    "num_position_embeddings": 2304,
                    "out_hidden_size": 2048,
                    "patch_size": 16,
                    "spatial_merge_size": 2,
                    "temporal_patch_size": 2,
                },
                "tie_word_embeddings": False,
            },
        ),
        known="its 1,045 tensors and their 71,903,645,408 bytes are those published",
        layout=(fused_experts, qwen_drafter),
    ),
}
"""Hub id -> how its files come of its dimensions."""

NOTE = (
    "names and shapes by transformers 5.17 from the dimensions below, laid out as its publisher does; {known}; the "
    "headers, the rest of config.json and the commit have not been seen"
)


def checkpoint(repository: str) -> Checkpoint:
    """The model as its published files describe it."""
    flagship = FLAGSHIPS[repository]
    family = flagship.family
    structure = meta_structure(family)
    for laid_out in flagship.layout:
        structure = laid_out(structure)
    named = flagship.model_type or model_type(family)
    config = {"architectures": [family.model], "model_type": named, **family.config}
    if flagship.quantization:
        config["quantization_config"] = dict(flagship.quantization)
    found = Checkpoint(
        label=repository,
        structure=dict(sorted(structure.items())),
        config=config,
        declaration=read_declaration(config, where=repository),
        origin=Origin(repository=repository, base=repository, basis="derived"),
    )
    if found.declaration is None:
        return found
    return replace(found, schemes=quantized_modules(found.declaration, found.modules, found.family, where=repository))


def parameters(structure: Structure) -> dict[str, int]:
    """Elements by dtype, as the hub counts them."""
    counted: dict[str, int] = {}
    for tensor in structure.values():
        counted[tensor.dtype] = counted.get(tensor.dtype, 0) + prod(tensor.shape)
    return counted


def derived_lock(repository: str) -> str:
    """The lock of a published model, with of its config.json what is known here."""
    found = checkpoint(repository)
    note = NOTE.format(known=FLAGSHIPS[repository].known)
    return write_lock(replace(found, origin=replace(found.origin, note=note)))


def main() -> None:
    """Write the locks into references/."""
    for repository in FLAGSHIPS:
        lock_path(repository).parent.mkdir(exist_ok=True)
        lock_path(repository).write_text(derived_lock(repository))


if __name__ == "__main__":
    main()
