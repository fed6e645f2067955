"""Small checkpoints as publishers store them quantized, one for each codec, and what upstream makes of them as floats.

Codes and scales are drawn at random, so that every code occurs; nothing of the code under test computes them. Widths
are chosen to be awkward where real ones are: fewer rows than a block of 128 has, and blocks that are cut off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from weighbridge.formats.schemes import PRESETS, to_config

Tensors = dict[str, torch.Tensor]

HIDDEN, INNER, KV, EXPERTS, VOCABULARY = 256, 384, 96, 2, 64
LAYER = "model.layers.0"
LINEARS: Mapping[str, tuple[int, int]] = {
    f"{LAYER}.self_attn.q_proj": (HIDDEN, HIDDEN),
    f"{LAYER}.self_attn.k_proj": (KV, HIDDEN),
    f"{LAYER}.self_attn.v_proj": (KV, HIDDEN),
    f"{LAYER}.self_attn.o_proj": (HIDDEN, HIDDEN),
    **{
        f"{LAYER}.mlp.experts.{expert}.{name}": shape
        for expert in range(EXPERTS)
        for name, shape in (
            ("gate_proj", (INNER, HIDDEN)),
            ("up_proj", (INNER, HIDDEN)),
            ("down_proj", (HIDDEN, INNER)),
        )
    },
}
"""Linears that are published quantized: module -> [out, in]."""

CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "num_hidden_layers": 1,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Way:
    """How a publisher stores a model.

    Attributes:
        quantization: what config.json has under ``quantization_config``.
        stored: [out, in], random numbers -> local name -> tensor.
        floats: all tensors, directory of the checkpoint -> all tensors with their weights as floats, by upstream.
        beside: tensors beside the linears that quantization left there.
        linears: module -> [out, in] of what is stored so.
        dropped: names that do not go along with the weights.
    """

    quantization: Mapping[str, Any]
    stored: Callable[[int, int, torch.Generator], Tensors]
    floats: Callable[[Tensors, Path], Tensors]
    beside: Mapping[str, torch.Tensor] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    linears: Mapping[str, tuple[int, int]] = field(default_factory=lambda: LINEARS)


def write(way: Way, directory: Path, *, seed: int = 0) -> Path:
    """Write the checkpoint as its publisher would."""
    directory.mkdir(parents=True)
    save_file(tensors_of(way, seed=seed), directory / "model.safetensors", metadata={"format": "pt"})
    config = {**CONFIG, **way.config, "quantization_config": dict(way.quantization)}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    return directory


def tensors_of(way: Way, *, seed: int = 0) -> Tensors:
    """Every tensor of the checkpoint."""
    random = torch.Generator().manual_seed(seed)
    return {
        **_kept(random),
        **{
            f"{module}.{local}": tensor
            for module, shape in way.linears.items()
            for local, tensor in way.stored(*shape, random).items()
        },
        **way.beside,
    }


def write_gpt_oss(directory: Path, *, layers: int = 1, seed: int = 0) -> Path:
    """Write experts in the layout of gpt-oss: rows of gate and up take turns, with biases; attention is floats."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("*.safetensors*"):
        path.unlink()
    random = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for layer in range(layers):
        here = f"model.layers.{layer}"
        for name, rows, columns in (("gate_up_proj", 2 * INNER, HIDDEN), ("down_proj", HIDDEN, INNER)):
            module = f"{here}.mlp.experts.{name}"
            groups = columns // 32
            tensors[f"{module}_blocks"] = _bytes(EXPERTS, rows, groups, 16, random=random)
            tensors[f"{module}_scales"] = torch.randint(
                110, 125, (EXPERTS, rows, groups), dtype=torch.uint8, generator=random
            )
            tensors[f"{module}_bias"] = torch.randn(EXPERTS, rows, generator=random).to(torch.bfloat16)
        for name, shape in (
            ("self_attn.q_proj.weight", (HIDDEN, HIDDEN)),
            ("self_attn.sinks", (4,)),
            ("mlp.router.weight", (EXPERTS, HIDDEN)),
            ("mlp.router.bias", (EXPERTS,)),
            ("input_layernorm.weight", (HIDDEN,)),
        ):
            tensors[f"{here}.{name}"] = torch.randn(shape, generator=random).to(torch.bfloat16)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.randn((VOCABULARY, HIDDEN), generator=random).to(torch.bfloat16)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    config = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "quantization_config": quantization}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def write_gpt_oss_floats(quantized: Path, directory: Path) -> Path:
    """Write what transformers makes of it, its experts one by one as llm-compressor calls them."""
    from safetensors.torch import load_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    directory.mkdir(parents=True)
    tensors = load_file(quantized / "model.safetensors")
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for name, blocks in tensors.items():
        if not name.endswith("_blocks"):
            continue
        module = name.removesuffix("_blocks")
        parent, _, fused = module.rpartition(".")
        weights = convert_moe_packed_tensors(blocks, tensors[f"{module}_scales"])  # [experts, in, out]
        bias = tensors[f"{module}_bias"]
        members = ("gate_proj", "up_proj") if fused == "gate_up_proj" else ("down_proj",)
        for expert in range(EXPERTS):
            for first, member in enumerate(members):
                own = f"{parent}.{expert}.{member}"
                found[f"{own}.weight"] = weights[expert][:, first :: len(members)].T.contiguous()
                found[f"{own}.bias"] = bias[expert][first :: len(members)].contiguous()
    save_file(found, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((quantized / "config.json").read_text())
    config.pop("quantization_config")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def write_large(directory: Path, *, experts: int) -> Path:
    """Write experts in blocks of FP8, 6 MB of codes each: enough of them for many pieces."""
    directory.mkdir(parents=True)
    random = torch.Generator().manual_seed(1)
    tensors = {"model.norm.weight": torch.ones(1024, dtype=torch.bfloat16)}
    for expert in range(experts):
        for name, shape in (("gate_proj", (2048, 1024)), ("up_proj", (2048, 1024)), ("down_proj", (1024, 2048))):
            module = f"{LAYER}.mlp.experts.{expert}.{name}"
            tensors |= {f"{module}.{local}": tensor for local, tensor in _blocks(torch.float32)(*shape, random).items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": BLOCKS}))
    return directory


def write_floats(way: Way, quantized: Path, directory: Path) -> Path:
    """Write what upstream makes of it: all floats, and a config that declares nothing quantized."""
    directory.mkdir(parents=True)
    tensors = way.floats(tensors_of(way), quantized)
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if name not in way.dropped}
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({**CONFIG, **way.config}, indent=2))
    return directory


def _kept(random: torch.Generator) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        f"{LAYER}.input_layernorm.weight": (HIDDEN,),
        f"{LAYER}.post_attention_layernorm.weight": (HIDDEN,),
        f"{LAYER}.mlp.gate.weight": (EXPERTS, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    return {name: torch.randn(shape, generator=random).to(torch.bfloat16) for name, shape in shapes.items()}


def _bytes(*shape: int, random: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)


def _words(*shape: int, random: torch.Generator) -> torch.Tensor:
    return torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int64, generator=random).to(torch.int32)


def _fp8(*shape: int, random: torch.Generator) -> torch.Tensor:
    codes = _bytes(*shape, random=random)
    codes[(codes & 0x7F) == 0x7F] = 0x7E  # no NaN
    return codes.view(torch.float8_e4m3fn)


def _positive_fp8(*shape: int, random: torch.Generator) -> torch.Tensor:
    return torch.randint(1, 0x7F, shape, dtype=torch.uint8, generator=random).view(torch.float8_e4m3fn)


def _scales(*shape: int, random: torch.Generator, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return ((torch.rand(shape, generator=random) + 0.05) * 2e-3).to(dtype)


# --- block FP8: DeepSeek, Qwen3-FP8, MiniMax --------------------------------------------------------------------------

BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}


def _blocks(dtype: torch.dtype) -> Callable[[int, int, torch.Generator], Tensors]:
    def stored(rows: int, columns: int, random: torch.Generator) -> Tensors:
        return {
            "weight": _fp8(rows, columns, random=random),
            "weight_scale_inv": _scales(-(-rows // 128), -(-columns // 128), random=random, dtype=dtype),
        }

    return stored


def _fp8_dequantized(tensors: Tensors, _: Path) -> Tensors:
    """Upstream's converter of blocks; one scale of a whole tensor is taken for every block, as it broadcasts."""
    from compressed_tensors.entrypoints.convert import FP8BlockDequantizer

    renamed = {
        name.replace("weight_scale", "weight_scale_inv").replace("inv_inv", "inv"): t for name, t in tensors.items()
    }
    return dict(FP8BlockDequantizer(targets=[r"re:.*_proj$"]).process(renamed))


# --- DeepSeek V4: exponents as scales, experts in four bits --------------------------------------------------------

V4 = {"architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4"}
OF_V4: Mapping[str, tuple[int, int]] = {f"{LAYER}.attn.wq_a": (HIDDEN, HIDDEN), f"{LAYER}.attn.wo_b": (HIDDEN, INNER)}
EXPERTS_OF_V4: Mapping[str, tuple[int, int]] = {
    f"{LAYER}.ffn.experts.{expert}.{name}": (HIDDEN, INNER) if name == "w2" else (INNER, HIDDEN)
    for expert in range(EXPERTS)
    for name in ("w1", "w2", "w3")
}


def _exponents(*shape: int, random: torch.Generator) -> torch.Tensor:
    return torch.randint(110, 125, shape, dtype=torch.uint8, generator=random).view(torch.float8_e8m0fnu)


def _blocks_under_exponents(rows: int, columns: int, random: torch.Generator) -> Tensors:
    return {
        "weight": _fp8(rows, columns, random=random),
        "scale": _exponents(-(-rows // 128), -(-columns // 128), random=random),
    }


def _experts_under_exponents(rows: int, columns: int, random: torch.Generator) -> Tensors:
    return {
        "weight": _bytes(rows, columns // 2, random=random).view(torch.int8),
        "scale": _exponents(rows, columns // 32, random=random),
    }


def _dequantized_by_transformers(tensors: Tensors, _: Path) -> Tensors:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    dequantize = Fp8Dequantize(None)._dequantize_one
    return {
        name: dequantize(tensor, tensors[f"{module}.scale"]) if f"{module}.scale" in tensors else tensor
        for name, tensor in tensors.items()
        if not (module := name.rpartition(".")[0]) or not name.endswith(".scale")
    }


# --- FP8 of whole tensors and of rows ---------------------------------------------------------------------------------


def _one_scale(name: str, dtype: torch.dtype, inputs: str) -> Callable[[int, int, torch.Generator], Tensors]:
    def stored(rows: int, columns: int, random: torch.Generator) -> Tensors:
        return {
            "weight": _fp8(rows, columns, random=random),
            name: _scales(random=random, dtype=dtype),
            inputs: _scales(random=random, dtype=dtype),
        }

    return stored


def _of_linears(*locals_: str) -> tuple[str, ...]:
    return tuple(f"{module}.{local}" for module in LINEARS for local in locals_)


def _compressed(preset: str, *, ignore: tuple[str, ...] = ("lm_head", "re:.*gate$")) -> dict[str, Any]:
    scheme = PRESETS[preset]
    return {
        "quant_method": "compressed-tensors",
        "format": scheme.format,
        "config_groups": {"group_0": {"targets": ["Linear"], **to_config(scheme)}},
        "ignore": list(ignore),
        "quantization_status": "compressed",
    }


def _compressed_dequantized(tensors: Tensors, directory: Path) -> Tensors:
    from compressed_tensors.entrypoints.convert import CompressedTensorsDequantizer

    # Without a list of its own it stops at embeddings and norms, which have no scales.
    ignore = ("re:.*embed.*", "re:.*norm.*")
    return dict(CompressedTensorsDequantizer(directory, ignore=ignore).process(dict(tensors)))


def _rows_of_fp8(rows: int, columns: int, random: torch.Generator) -> Tensors:
    return {
        "weight": _fp8(rows, columns, random=random),
        "weight_scale": _scales(rows, 1, random=random, dtype=torch.bfloat16),
    }


def _blocks_of_fp8(rows: int, columns: int, random: torch.Generator) -> Tensors:
    return {
        "weight": _fp8(rows, columns, random=random),
        "weight_scale": _scales(-(-rows // 128), -(-columns // 128), random=random, dtype=torch.bfloat16),
    }


def _static_fp8(rows: int, columns: int, random: torch.Generator) -> Tensors:
    one = {local: _scales(1, random=random, dtype=torch.bfloat16) for local in ("weight_scale", "input_scale")}
    return {"weight": _fp8(rows, columns, random=random), **one}


# --- INT4 of Kimi K2, other integers ----------------------------------------------------------------------------------


def integers(size: int | None = None, *, symmetric: bool = True, bits: int = 4) -> dict[str, Any]:
    """A declaration of packed integers; in groups of this size, or of rows."""
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False}
    weights |= {"strategy": "channel"} if size is None else {"strategy": "group", "group_size": size}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    content = _compressed("W4A16")
    return {**content, "format": "pack-quantized", "config_groups": {"group_0": group}}


def _packed(
    size: int,
    *,
    shape: torch.dtype = torch.int32,
    dtype: torch.dtype = torch.bfloat16,
    zeros: bool = False,
    bits: int = 4,
) -> Callable[[int, int, torch.Generator], Tensors]:
    def stored(rows: int, columns: int, random: torch.Generator) -> Tensors:
        found = {
            "weight_packed": _words(rows, columns * bits // 32, random=random),
            "weight_scale": _scales(rows, columns // size, random=random, dtype=dtype),
            "weight_shape": torch.tensor([rows, columns], dtype=shape),
        }
        if zeros:
            found["weight_zero_point"] = _words(rows * bits // 32, columns // size, random=random)
        return found

    return stored


# --- NVFP4 in both formats, MXFP4 of compressed-tensors, FP8 of modelopt ----------------------------------------------


def _nvfp4(rows: int, columns: int, random: torch.Generator) -> Tensors:
    return {
        "weight_packed": _bytes(rows, columns // 2, random=random),
        "weight_scale": _positive_fp8(rows, columns // 16, random=random),
        "weight_global_scale": torch.rand(1, generator=random) * 1e4 + 1,
        "input_global_scale": torch.rand(1, generator=random) + 1,
    }


def _nvfp4_of_modelopt(rows: int, columns: int, random: torch.Generator) -> Tensors:
    return {
        "weight": _bytes(rows, columns // 2, random=random),
        "weight_scale": _positive_fp8(rows, columns // 16, random=random),
        "weight_scale_2": torch.rand((), generator=random) * 1e-4 + 1e-6,
        "input_scale": torch.rand((), generator=random) + 1,
    }


def _mxfp4(rows: int, columns: int, random: torch.Generator) -> Tensors:
    return {
        "weight_packed": _bytes(rows, columns // 2, random=random),
        "weight_scale": torch.randint(100, 130, (rows, columns // 32), dtype=torch.uint8, generator=random),
    }


def _narrow_mxfp4(rows: int, columns: int, random: torch.Generator) -> Tensors:
    """Codes whose groups reach their largest, under exponents that E4M3 scales have room for."""
    codes = _bytes(rows, columns // 2, random=random)
    codes[:, ::8] = 0x77
    exponents = torch.randint(120, 126, (rows, columns // 32), dtype=torch.uint8, generator=random)
    return {"weight_packed": codes, "weight_scale": exponents}


def _nvfp4_of_modelopt_dequantized(tensors: Tensors, directory: Path) -> Tensors:
    """Upstream's two converters one after the other; global scales as compressed-tensors stores them, [1]."""
    from compressed_tensors.entrypoints.convert import CompressedTensorsDequantizer, ModelOptNvfp4Converter

    converted = ModelOptNvfp4Converter(targets=[r"re:.*_proj$"]).process(dict(tensors))
    converted = {name: tensor.reshape(1) if not tensor.shape else tensor for name, tensor in converted.items()}
    there = directory.parent / "converted"
    there.mkdir()
    (there / "config.json").write_text(json.dumps({"quantization_config": _compressed("NVFP4")}))
    return dict(CompressedTensorsDequantizer(there, ignore=("re:.*embed.*", "re:.*norm.*")).process(converted))


def _modelopt(algorithm: str) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": algorithm, "ignore": ["lm_head", "*mlp.gate"]}


def _by_hand(tensors: Tensors, _: Path) -> Tensors:
    """Codes times scales, where upstream has no converter: multiplied in float32, rounded once."""
    found = dict(tensors)
    for module in LINEARS:
        weight, scale = found.pop(f"{module}.weight"), found.pop(f"{module}.weight_scale")
        rows, columns = weight.shape
        if scale.ndim == 4:
            scale = scale[:, 0, :, 0].repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
        elif scale.dtype == torch.uint8:
            scale = torch.pow(2.0, scale.to(torch.float32) - 127).repeat_interleave(32, 1)
        found[f"{module}.weight"] = (weight.float() * (scale[:, None] if scale.ndim == 1 else scale)).to(torch.bfloat16)
    return found


def _fp8_of_modelopt(rows: int, columns: int, random: torch.Generator) -> Tensors:
    return {
        "weight": _fp8(rows, columns, random=random),
        "weight_scale": _scales(random=random),
        "input_scale": _scales(random=random),
    }


def _fp8_rows_of_modelopt(rows: int, columns: int, random: torch.Generator) -> Tensors:
    return {"weight": _fp8(rows, columns, random=random), "weight_scale": _scales(rows, random=random)}


def _fp8_blocks_of_modelopt(rows: int, columns: int, random: torch.Generator) -> Tensors:
    return {
        "weight": _fp8(rows, columns, random=random),
        "weight_scale": _scales(-(-rows // 128), 1, columns // 128, 1, random=random),
    }


def _mxfp8_of_modelopt(rows: int, columns: int, random: torch.Generator) -> Tensors:
    exponents = torch.randint(100, 120, (rows, columns // 32), dtype=torch.uint8, generator=random)
    return {"weight": _fp8(rows, columns, random=random), "weight_scale": exponents}


# --- AWQ and GPTQ -----------------------------------------------------------------------------------------------------


def _awq(zeros: bool) -> Callable[[int, int, torch.Generator], Tensors]:
    def stored(rows: int, columns: int, random: torch.Generator) -> Tensors:
        found = {
            "qweight": _words(columns, rows // 8, random=random),
            "scales": _scales(columns // 128, rows, random=random, dtype=torch.float16),
        }
        return found | ({"qzeros": _words(columns // 128, rows // 8, random=random)} if zeros else {})

    return stored


def _awq_dequantized(zeros: bool) -> Callable[[Tensors, Path], Tensors]:
    """Upstream's converter to packed integers, and its dequantizer of those."""

    def floats(tensors: Tensors, directory: Path) -> Tensors:
        from compressed_tensors.entrypoints.convert import AutoAWQConverter, CompressedTensorsDequantizer

        converted = AutoAWQConverter(zero_point=zeros, targets=[r"re:.*_proj$"]).process(dict(tensors))
        there = directory.parent / "converted"
        there.mkdir()
        declared = {"quantization_config": integers(128, symmetric=not zeros)}
        (there / "config.json").write_text(json.dumps(declared))
        ignore = ("re:.*embed.*", "re:.*norm.*")
        return dict(CompressedTensorsDequantizer(there, ignore=ignore).process(converted))

    return floats


def _gptq(
    *, bits: int = 4, reordered: bool = False, middle: bool = False
) -> Callable[[int, int, torch.Generator], Tensors]:
    def stored(rows: int, columns: int, random: torch.Generator) -> Tensors:
        groups = torch.arange(columns, dtype=torch.int32) // 128
        if reordered:
            groups = groups[torch.randperm(columns, generator=random)]
        zeros = _words(columns // 128, rows * bits // 32, random=random)
        return {
            "qweight": _words(columns * bits // 32, rows, random=random),
            "qzeros": zeros.fill_(0x77777777 if bits == 4 else 0x7F7F7F7F) if middle else zeros,
            "scales": _scales(columns // 128, rows, random=random, dtype=torch.float16),
            "g_idx": groups,
        }

    return stored


def _gptq_dequantized(bits: int = 4, bias: int = 1) -> Callable[[Tensors, Path], Tensors]:
    """AutoGPTQ's formula, one column after the other: (code - (stored zero + 1)) x scale, in F16."""

    def unpacked(word: torch.Tensor, place: int) -> torch.Tensor:
        return (word >> (place * bits)) & ((1 << bits) - 1)

    def floats(tensors: Tensors, _: Path) -> Tensors:
        found = dict(tensors)
        each = 32 // bits
        for module, (rows, columns) in LINEARS.items():
            codes, zeros = (found.pop(f"{module}.{local}").to(torch.int64) for local in ("qweight", "qzeros"))
            scales, groups = found.pop(f"{module}.scales"), found.pop(f"{module}.g_idx")
            weight = torch.empty(rows, columns, dtype=torch.float16)
            for column in range(columns):
                group = int(groups[column])
                code = unpacked(codes[column // each], column % each)
                zero = torch.stack([unpacked(zeros[group], place) for place in range(each)], 1).reshape(-1)
                zero = (zero + bias) & ((1 << bits) - 1)
                weight[:, column] = (code - zero).to(torch.float16) * scales[group]
            found[f"{module}.weight"] = weight.to(torch.bfloat16)
        return found

    return floats


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": False}

WAYS: Mapping[str, Way] = {
    "fp8 blocks": Way(BLOCKS, _blocks(torch.float32), _fp8_dequantized),
    "fp8 blocks, BF16 scales": Way(BLOCKS, _blocks(torch.bfloat16), _fp8_dequantized),
    "fp8 blocks of MiniMax": Way(
        BLOCKS | {"fmt": "float8_e4m3fn", "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"]},
        _blocks(torch.float32),
        _fp8_dequantized,
    ),
    "fp8 blocks of DeepSeek V4": Way(
        BLOCKS,
        _blocks_under_exponents,
        _dequantized_by_transformers,
        config=V4,
        linears=OF_V4,
    ),
    "fp4 experts of DeepSeek V4": Way(
        BLOCKS,
        _experts_under_exponents,
        _dequantized_by_transformers,
        config=V4,
        linears=EXPERTS_OF_V4,
    ),
    "fp8 tensors": Way(
        {"quant_method": "fp8", "activation_scheme": "static"},
        _one_scale("weight_scale", torch.float32, "input_scale"),
        _fp8_dequantized,
        dropped=_of_linears("input_scale"),
    ),
    "fp8 tensors of Ministral": Way(
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
        _one_scale("weight_scale_inv", torch.bfloat16, "activation_scale"),
        _fp8_dequantized,
        dropped=_of_linears("activation_scale"),
    ),
    "compressed-tensors fp8 rows": Way(_compressed("FP8_DYNAMIC"), _rows_of_fp8, _compressed_dequantized),
    "compressed-tensors fp8 tensors": Way(
        _compressed("FP8"), _static_fp8, _compressed_dequantized, dropped=_of_linears("input_scale")
    ),
    "compressed-tensors fp8 blocks": Way(_compressed("FP8_BLOCK"), _blocks_of_fp8, _compressed_dequantized),
    "int4 of Kimi": Way(integers(32), _packed(32), _compressed_dequantized, dropped=_of_linears("weight_shape")),
    "int4 with F16 scales and zero points": Way(
        integers(128, symmetric=False),
        _packed(128, shape=torch.int64, dtype=torch.float16, zeros=True),
        _compressed_dequantized,
        dropped=_of_linears("weight_shape"),
    ),
    "int8 packed": Way(integers(64, bits=8), _packed(64, bits=8), _compressed_dequantized),
    "compressed-tensors nvfp4": Way(
        _compressed("NVFP4"), _nvfp4, _compressed_dequantized, dropped=_of_linears("input_global_scale")
    ),
    "compressed-tensors mxfp4": Way(_compressed("MXFP4A16"), _mxfp4, _compressed_dequantized),
    "compressed-tensors mxfp4 of narrow range": Way(_compressed("MXFP4A16"), _narrow_mxfp4, _compressed_dequantized),
    "modelopt nvfp4": Way(
        _modelopt("NVFP4"),
        _nvfp4_of_modelopt,
        _nvfp4_of_modelopt_dequantized,
        dropped=_of_linears("input_global_scale"),
    ),
    "modelopt fp8": Way(_modelopt("FP8"), _fp8_of_modelopt, _by_hand, dropped=_of_linears("input_scale")),
    "modelopt fp8 with a KV cache": Way(
        _modelopt("FP8") | {"kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"}},
        _fp8_of_modelopt,
        _by_hand,
        beside={f"{LAYER}.self_attn.{kind}_proj.{kind}_scale": torch.tensor(0.5) for kind in "kv"},
        dropped=(*_of_linears("input_scale"), *(f"{LAYER}.self_attn.{kind}_proj.{kind}_scale" for kind in "kv")),
    ),
    "modelopt fp8 of rows": Way(_modelopt("FP8_PER_CHANNEL_PER_TOKEN"), _fp8_rows_of_modelopt, _by_hand),
    "modelopt fp8 blocks": Way(_modelopt("FP8_PB_WO"), _fp8_blocks_of_modelopt, _by_hand),
    "awq": Way(AWQ, _awq(True), _awq_dequantized(True), dropped=_of_linears("weight_shape")),
    "awq without zero points": Way(
        AWQ | {"zero_point": False}, _awq(False), _awq_dequantized(False), dropped=_of_linears("weight_shape")
    ),
    "gptq": Way(GPTQ, _gptq(), _gptq_dequantized()),
    "gptq of 8 bits": Way(GPTQ | {"bits": 8, "sym": True}, _gptq(bits=8, middle=True), _gptq_dequantized(bits=8)),
    "gptq, symmetric": Way(GPTQ | {"sym": True}, _gptq(middle=True), _gptq_dequantized()),
    "gptq in activation order": Way(
        GPTQ | {"desc_act": True, "sym": False, "checkpoint_format": "gptq_v2"},
        _gptq(reordered=True),
        _gptq_dequantized(bias=0),
    ),
    "modelopt mxfp8": Way(_modelopt("MXFP8"), _mxfp8_of_modelopt, _by_hand),
}
"""By what a test calls it."""
