"""Models to be quantized: toys of many architectures with random weights, and small ones that have learnt something."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from weighbridge.base.source import open_model
from weighbridge.engines.oneshot.load import load_model, load_tokenizer
from weighbridge.engines.quiet import quieted
from weighbridge.samples.trained.text import held_out_text

Tensor = torch.Tensor

VOCABULARY = 512
LENGTH = 128
_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_MIXTURE: Mapping[str, Any] = {"moe_intermediate_size": 128, "num_experts_per_tok": 2}
_LATENT: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
}
_OPT: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "ffn_dim": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "word_embed_proj_dim": 256,
}
TOYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("Llama", _SIZES),
    "qwen2": ("Qwen2", _SIZES),
    "qwen3": ("Qwen3", {**_SIZES, "head_dim": 64}),
    "qwen3-moe": ("Qwen3Moe", {**_SIZES, **_MIXTURE, "head_dim": 64, "num_experts": 4, "mlp_only_layers": [0]}),
    "mixtral": ("Mixtral", {**_SIZES, "num_local_experts": 4}),
    "deepseek-v2": ("DeepseekV2", {**_SIZES, **_MIXTURE, **_LATENT}),
    "gpt-neox": ("GPTNeoX", {key: value for key, value in _SIZES.items() if "key_value" not in key}),
    "opt": ("OPT", _OPT),
}
"""Name -> transformers' prefix of the classes, and what the configuration says."""

MADE = ("mini", "trained-mini", "smollm2")
"""Those that Weighbridge makes itself: Gemma 4 with random weights, the same trained, and a published Llama."""

NAMES = (*TOYS, "llama-outliers", "opt-outliers", *MADE)
KEPT = ("lm_head", "embed", "router", "vision", "gate.weight", "mlp.gate", "embed_out")
_LAYERS_TAKEN = {"smollm2": (0, 1, 12, 29), "trained-mini": (0, 2, 5), "mini": (0, 5)}
_EXPERTS_TAKEN = (0, 1, 2)


@dataclass(frozen=True)
class Sample:
    """A linear layer and what it was given.

    Attributes:
        weight: its BF16 values as float32.
        hessians: ``few`` or ``many`` tokens -> the sum of products of its inputs.
    """

    name: str
    weight: Tensor
    hessians: Mapping[str, Tensor]


@dataclass(frozen=True)
class Given:
    """A model's linears with what calibration showed them."""

    name: str
    samples: Sequence[Sample]


def loaded(name: str) -> Any:
    """A model in BF16 with its experts one by one."""
    return load_model(directory_of(name), device=None, where=name)


def directory_of(name: str) -> Path:
    """Where a model's checkpoint lies; a toy's until the process ends."""
    if name in MADE:
        directory = open_model(name).directory
        assert directory is not None
        return directory
    return Path(_written(name).name)


@cache
def _written(name: str) -> tempfile.TemporaryDirectory[str]:
    scratch = tempfile.TemporaryDirectory()
    _write(name.removesuffix("-outliers"), Path(scratch.name), outliers=name.endswith("-outliers"))
    return scratch


def _write(name: str, directory: Path, *, outliers: bool) -> None:
    """A toy with random weights; with outliers, a few channels of each norm are many times the others."""
    import transformers

    prefix, options = TOYS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = getattr(transformers, f"{prefix}Config")(**options)
        model = getattr(transformers, f"{prefix}ForCausalLM")(config)
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name and parameter_name.endswith("weight"):
                parameter.data.mul_(torch.randn_like(parameter).mul(0.5).exp())
                if outliers:
                    parameter.data[torch.randperm(len(parameter))[:3]] *= 40
        model.to(torch.bfloat16).save_pretrained(directory)


def batches(name: str, count: int) -> list[Tensor]:
    """Token ids of held-out Python sources: as the model's tokenizer has them, or of a toy the bytes."""
    text = held_out_text()
    if name in MADE:
        ids = load_tokenizer(directory_of(name), where=name)(text[: 8 * count * LENGTH])["input_ids"]
    else:
        ids = list(text[: count * LENGTH].encode()[: count * LENGTH])
    rows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).reshape(-1, LENGTH)[:count]
    return [rows[first : first + 4] for first in range(0, len(rows), 4)]


def quantized_linears(model: Any) -> dict[str, Any]:
    """The linears that recipes quantize, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not any(part in name for part in KEPT)
    }


def taken(name: str, linears: Mapping[str, Any]) -> dict[str, Any]:
    """Of a large model the linears of a few layers and experts; of a toy all."""
    layers = _LAYERS_TAKEN.get(name)
    if layers is None:
        return dict(linears)
    wanted = [f"layers.{layer}." for layer in layers]
    experts = [f"experts.{expert}." for expert in _EXPERTS_TAKEN]
    return {
        linear: module
        for linear, module in linears.items()
        if any(part in linear for part in wanted)
        and ("experts." not in linear or any(part in linear for part in experts))
    }


def given(name: str) -> Given:
    """A model's linears with the Hessians of few and of many tokens; experts see all tokens that reach their layer."""
    from llmcompressor.modeling.moe.context import moe_calibration_context

    with quieted(), torch.no_grad():
        model = loaded(name).eval()
        linears = taken(name, quantized_linears(model))
        sums = {
            linear: torch.zeros(module.weight.shape[1], module.weight.shape[1]) for linear, module in linears.items()
        }
        few: dict[str, Tensor] = {}

        def hook(linear: str) -> Callable[..., None]:
            def keep(_module: Any, inputs: Any, _output: Any) -> None:
                values = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
                if linear not in few and len(values):
                    part = values[: max(8, values.shape[1] // 8)]
                    few[linear] = part.T @ part
                sums[linear] += values.T @ values

            return keep

        hooks = [module.register_forward_hook(hook(linear)) for linear, module in linears.items()]
        with moe_calibration_context():
            for batch in batches(name, 64):
                model(input_ids=batch)
        for each in hooks:
            each.remove()
    return Given(
        name,
        [
            Sample(linear, module.weight.detach().float(), {"many": sums[linear], "few": few[linear]})
            for linear, module in linears.items()
            if linear in few
        ],
    )


IGNORED = ("lm_head", "embed_out", "re:.*embed.*", "re:.*router", "re:.*vision_tower.*", r"re:.*\.gate$")
_SHORTENED = {"smollm2": 4}
_GEMMA = r"re:.*language_model\.layers\.\d+"
_GEMMA_MAPPINGS = (
    {
        "smooth_layer": rf"{_GEMMA}\.pre_feedforward_layernorm$",
        "balance_layers": [rf"{_GEMMA}\.mlp\.gate_proj$", rf"{_GEMMA}\.mlp\.up_proj$"],
    },
    {"smooth_layer": rf"{_GEMMA}\.mlp\.up_proj$", "balance_layers": [rf"{_GEMMA}\.mlp\.down_proj$"]},
    {
        "smooth_layer": rf"{_GEMMA}\.pre_feedforward_layernorm_2$",
        "balance_layers": [rf"{_GEMMA}\.experts\.\d+\.gate_proj$", rf"{_GEMMA}\.experts\.\d+\.up_proj$"],
        "activation_hook_target": "experts",
    },
    {
        "smooth_layer": rf"{_GEMMA}\.experts\.\d+\.up_proj$",
        "balance_layers": [rf"{_GEMMA}\.experts\.\d+\.down_proj$"],
    },
)
_ATTENTION = {
    "smooth_layer": "re:.*input_layernorm$",
    "balance_layers": ["re:.*q_proj$", "re:.*k_proj$", "re:.*v_proj$"],
}
_QWEN_MAPPINGS = (
    _ATTENTION,
    {"smooth_layer": r"re:.*experts\.\d+\.up_proj$", "balance_layers": [r"re:.*experts\.\d+\.down_proj$"]},
)
MAPPINGS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "mini": _GEMMA_MAPPINGS,
    "trained-mini": _GEMMA_MAPPINGS,
    "qwen3-moe": _QWEN_MAPPINGS,
}
"""What AWQ smooths where llm-compressor's own mappings do not fit."""


@dataclass(frozen=True)
class Built:
    """A linear before and after a whole build.

    Attributes:
        before: the base's weight.
        after: the weight that was rounded, or is to be.
        qparams: scale, zero point and global scale.
        args: of its quantization.
    """

    name: str
    before: Tensor
    after: Tensor
    qparams: Mapping[str, Any]
    args: Any


def build(name: str, modifiers: Sequence[Any], samples: int) -> list[Built]:
    """Run llm-compressor's ``oneshot`` with these modifiers on a model, in memory, as a calibrated build does."""
    from weighbridge.engines.oneshot.calibrate import calibrate
    from weighbridge.engines.oneshot.modifiers import Modifiers
    from weighbridge.engines.oneshot.samples import Samples
    from weighbridge.recipe.calibration import Calibration, Dataset

    with quieted():
        model = loaded(name).eval()
        kept = _SHORTENED.get(name)
        if kept is not None:
            model.model.layers = model.model.layers[:kept]
            model.config.num_hidden_layers = kept
        before = {linear: module.weight.detach().float() for linear, module in quantized_linears(model).items()}
        ids = tuple(tuple(row.tolist()) for batch in batches(name, samples) for row in batch)
        calibration = Calibration(
            dataset=Dataset(file="text.txt"), samples=len(ids), sequence_length=LENGTH, batch_size=4, experts="all"
        )
        rows: Any = None
        calibrate(model, _tokenizer(), Modifiers(tuple(modifiers)), Samples(rows, (), ids), calibration, where=name)
    found = []
    for linear, module in quantized_linears(model).items():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        qparams = {
            "scale": module.weight_scale.detach(),
            "zero_point": module.weight_zero_point.detach() if hasattr(module, "weight_zero_point") else None,
            "global_scale": module.weight_global_scale.detach() if hasattr(module, "weight_global_scale") else None,
        }
        found.append(Built(linear, before[linear], module.weight.detach().float(), qparams, scheme.weights))
    return found


def _tokenizer() -> Any:
    """One that nobody asks anything: llm-compressor wants to have one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
