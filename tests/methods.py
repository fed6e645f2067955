"""Whole checkpoints of every quantization method, as headers: what servers read, written down by hand, small.

Nothing here is computed by the code under test: names, dtypes and shapes are those of vLLM 0.32's ``create_weights``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.checkpoints import RawTensor, write_tensors
from weighbridge.checkpoint.header import Header
from weighbridge.checkpoint.model import Checkpoint, assemble
from weighbridge.formats.tensors import StoredTensor, Structure, Tensor

HIDDEN, INNER, KV, VOCABULARY, EXPERTS = 256, 512, 128, 64, 3
LAYER = "model.layers.0"
LLAMA = {
    **{f"{LAYER}.self_attn.{name}": (HIDDEN, HIDDEN) for name in ("q_proj", "o_proj")},
    **{f"{LAYER}.self_attn.{name}": (KV, HIDDEN) for name in ("k_proj", "v_proj")},
    **{f"{LAYER}.mlp.{name}": (INNER, HIDDEN) for name in ("gate_proj", "up_proj")},
    f"{LAYER}.mlp.down_proj": (HIDDEN, INNER),
}
"""Linears of one layer: module -> [out, in]."""
MOE = {
    **{name: shape for name, shape in LLAMA.items() if "self_attn" in name},
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
Entries = Mapping[str, tuple[str, tuple[int, ...]]]
"""Local name -> dtype and shape."""


@dataclass(frozen=True)
class Method:
    """A whole checkpoint of one method.

    Attributes:
        quantization: what config.json has under ``quantization_config``.
        structure: every tensor.
        optional: tensors that may be missing, as a server may do without them.
        config: the other keys of config.json.
    """

    quantization: Mapping[str, Any]
    structure: Structure
    optional: frozenset[str] = frozenset()
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stored(self) -> list[str]:
        """The tensors that quantization stores, codes and scales."""
        return [name for name in self.structure if name not in KEPT]

    def opened(self, structure: Structure | None = None, quant_config: Mapping[str, Any] | None = None) -> Checkpoint:
        """The checkpoint as headers, with another structure if one is given."""
        config = {"model_type": "llama", **self.config}
        if self.quantization:
            config["quantization_config"] = dict(self.quantization)
        return assemble(
            label="checkpoint",
            shards={"model.safetensors": header_of(self.structure if structure is None else structure)},
            index=None,
            config=config,
            files={},
            quant_config=quant_config,
        )


def header_of(structure: Structure) -> Header:
    """A header in which these tensors lie one behind the other."""
    stored, position = {}, 0
    for name, tensor in structure.items():
        stored[name] = StoredTensor(tensor, position, position + tensor.nbytes)
        position += tensor.nbytes
    return Header(stored, {}, 8)


_ONES = {"F32": struct.pack("<f", 1), "BF16": struct.pack("<f", 1)[2:], "F16": struct.pack("<e", 1)}


def write(directory: Path, structure: Structure) -> None:
    """Write one shard with this structure: floats are 1, as no scale may be 0, and codes 0."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: RawTensor(
            tensor.dtype,
            tensor.shape,
            _ONES[tensor.dtype] * tensor.parameters if tensor.dtype in _ONES else bytes(tensor.nbytes),
        )
        for name, tensor in structure.items()
    }
    write_tensors(directory, tensors)


def _kept() -> dict[str, Tensor]:
    norms = ("input_layernorm", "post_attention_layernorm")
    return {
        "model.embed_tokens.weight": Tensor("BF16", (VOCABULARY, HIDDEN)),
        **{f"{LAYER}.{norm}.weight": Tensor("BF16", (HIDDEN,)) for norm in norms},
        "lm_head.weight": Tensor("BF16", (VOCABULARY, HIDDEN)),
        f"{LAYER}.mlp.gate.weight": Tensor("BF16", (EXPERTS, HIDDEN)),
    }


KEPT = _kept()


def of_linears(
    store: Callable[[int, int], Entries], linears: Mapping[str, tuple[int, int]] = LLAMA
) -> dict[str, Tensor]:
    """What is kept, and for each linear what `store` says of its [out, in]."""
    return KEPT | {
        f"{module}.{local}": Tensor(*entry)
        for module, shape in linears.items()
        for local, entry in store(*shape).items()
    }


def nvfp4(rows: int, columns: int) -> Entries:
    return {
        "weight": ("U8", (rows, columns // 2)),
        "weight_scale": ("F8_E4M3", (rows, columns // 16)),
        "weight_scale_2": ("F32", ()),
        "input_scale": ("F32", ()),
    }


def nvfp4_weights(rows: int, columns: int) -> Entries:
    return {local: entry for local, entry in nvfp4(rows, columns).items() if local != "input_scale"}


def fp8_tensor(rows: int, columns: int) -> Entries:
    return {"weight": ("F8_E4M3", (rows, columns)), "weight_scale": ("F32", ()), "input_scale": ("F32", ())}


def fp8_row(rows: int, columns: int) -> Entries:
    return {"weight": ("F8_E4M3", (rows, columns)), "weight_scale": ("F32", (rows,))}


def fp8_blocks_of_modelopt(rows: int, columns: int) -> Entries:
    return {"weight": ("F8_E4M3", (rows, columns)), "weight_scale": ("F32", (-(-rows // 128), 1, columns // 128, 1))}


def mxfp8(rows: int, columns: int) -> Entries:
    return {"weight": ("F8_E4M3", (rows, columns)), "weight_scale": ("U8", (rows, columns // 32))}


def fp8_blocks(rows: int, columns: int) -> Entries:
    return {"weight": ("F8_E4M3", (rows, columns)), "weight_scale_inv": ("F32", (rows // 128, columns // 128))}


def gptq(rows: int, columns: int) -> Entries:
    return {
        "qweight": ("I32", (columns // 8, rows)),
        "qzeros": ("I32", (columns // 128, rows // 8)),
        "scales": ("F16", (columns // 128, rows)),
        "g_idx": ("I32", (columns,)),
    }


def awq(rows: int, columns: int) -> Entries:
    return {
        "qweight": ("I32", (columns, rows // 8)),
        "qzeros": ("I32", (columns // 128, rows // 8)),
        "scales": ("F16", (columns // 128, rows)),
    }


def mxfp4(rows: int, columns: int) -> Entries:
    return {"weight": ("U8", (rows, columns // 2)), "weight_scale": ("U8", (rows, columns // 32))}


def fused(form: str) -> dict[str, Tensor]:
    """Fused experts of modelopt or gpt-oss, beside what is kept."""
    found: dict[str, Tensor] = dict(KEPT)
    for name, rows, columns in (("gate_up_proj", 2 * INNER, HIDDEN), ("down_proj", HIDDEN, INNER)):
        module = f"{LAYER}.mlp.experts.{name}"
        if form == "modelopt":
            found |= {
                module: Tensor("U8", (EXPERTS, rows, columns // 2)),
                f"{module}_weight_scale": Tensor("F8_E4M3", (EXPERTS, rows, columns // 16)),
                f"{module}_weight_scale_2": Tensor("F32", (EXPERTS,)),
                f"{module}_input_scale": Tensor("F32", (EXPERTS,)),
            }
        else:
            found |= {
                f"{module}_blocks": Tensor("U8", (EXPERTS, rows, columns // 32, 16)),
                f"{module}_scales": Tensor("U8", (EXPERTS, rows, columns // 32)),
                f"{module}_bias": Tensor("BF16", (EXPERTS, rows)),
            }
    return found


def deepseek_v4() -> dict[str, Tensor]:
    found = dict(KEPT)
    for name, rows, columns in (("attn.wq_a", 128, HIDDEN), ("attn.wo_b", HIDDEN, 256)):
        found[f"layers.0.{name}.weight"] = Tensor("F8_E4M3", (rows, columns))
        found[f"layers.0.{name}.scale"] = Tensor("F8_E8M0", (rows // 128, columns // 128))
    for expert in range(EXPERTS):
        for name, rows, columns in (("w1", INNER, HIDDEN), ("w2", HIDDEN, INNER), ("w3", INNER, HIDDEN)):
            module = f"layers.0.ffn.experts.{expert}.{name}"
            found[f"{module}.weight"] = Tensor("I8", (rows, columns // 2))
            found[f"{module}.scale"] = Tensor("F8_E8M0", (rows, columns // 32))
    return found


def modelopt(algorithm: str, **more: Any) -> dict[str, Any]:
    """A modelopt declaration in config.json."""
    return {"quant_method": "modelopt", "quant_algo": algorithm, "ignore": ["lm_head", "*mlp.gate"], **more}


def mixed(attention: Mapping[str, Any], mlp: Mapping[str, Any]) -> dict[str, Any]:
    layers = {name: dict(attention if "self_attn" in name else mlp) for name in LLAMA}
    return modelopt("MIXED_PRECISION", quantized_layers=layers)


MXFP4_OF_QUARK = {"dtype": "fp4", "is_dynamic": False, "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}


def quark(weight: Mapping[str, Any], inputs: Mapping[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {
        "quant_method": "quark",
        "exclude": ["lm_head", "re:.*gate$"],
        "export": {"kv_cache_group": [], "weight_format": "real_quantized"},
        "global_quant_config": {"weight": weight, "input_tensors": inputs, "output_tensors": None},
        "layer_quant_config": {},
        **more,
    }


BLOCK_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
MIXED = mixed({"quant_algo": "FP8"}, {"quant_algo": "W4A16_NVFP4", "group_size": 16})
MIXED_STRUCTURE = of_linears(
    fp8_tensor, {name: shape for name, shape in LLAMA.items() if "self_attn" in name}
) | of_linears(nvfp4_weights, {name: shape for name, shape in LLAMA.items() if "mlp" in name})

METHODS: Mapping[str, Method] = {
    "modelopt NVFP4": Method(modelopt("NVFP4"), of_linears(nvfp4)),
    "modelopt NVFP4 of experts": Method(modelopt("NVFP4"), of_linears(nvfp4, MOE)),
    "modelopt NVFP4 of fused experts": Method(modelopt("NVFP4"), fused("modelopt")),
    "modelopt_fp4": Method(modelopt("nvfp4") | {"quant_method": "modelopt_fp4"}, of_linears(nvfp4)),
    "modelopt W4A16_NVFP4": Method(modelopt("W4A16_NVFP4"), of_linears(nvfp4_weights)),
    "modelopt W4A8_NVFP4_FP8": Method(modelopt("W4A8_NVFP4_FP8"), of_linears(nvfp4)),
    "modelopt FP8": Method(modelopt("FP8"), of_linears(fp8_tensor)),
    "modelopt FP8_PER_CHANNEL_PER_TOKEN": Method(modelopt("FP8_PER_CHANNEL_PER_TOKEN"), of_linears(fp8_row)),
    "modelopt FP8_PB_WO": Method(modelopt("fp8_pb_wo"), of_linears(fp8_blocks_of_modelopt)),
    "modelopt MXFP8": Method(modelopt("MXFP8"), of_linears(mxfp8)),
    "modelopt MIXED_PRECISION": Method(MIXED, MIXED_STRUCTURE),
    "fp8 of blocks": Method(BLOCK_FP8, of_linears(fp8_blocks, MOE)),
    "fp8 of tensors": Method({"quant_method": "fp8", "activation_scheme": "static"}, of_linears(fp8_tensor)),
    "fp8 of DeepSeek V4": Method(
        BLOCK_FP8 | {"scale_fmt": "ue8m0"},
        deepseek_v4(),
        config={"model_type": "deepseek_v4", "expert_dtype": "fp4"},
    ),
    "mxfp4 of gpt-oss": Method(
        {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
        fused("gpt-oss"),
        config={"model_type": "gpt_oss"},
    ),
    "gptq": Method(GPTQ, of_linears(gptq)),
    "gptq of experts": Method(GPTQ, of_linears(gptq, MOE)),
    "awq": Method(AWQ, of_linears(awq)),
    "awq with a list": Method(AWQ | {"modules_to_not_convert": ["lm_head"]}, of_linears(awq, MOE)),
    "quark MXFP4": Method(quark(MXFP4_OF_QUARK, MXFP4_OF_QUARK | {"is_dynamic": True}), of_linears(mxfp4)),
    "quark FP8": Method(
        quark(
            {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False},
            {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False},
        ),
        of_linears(fp8_tensor),
    ),
}


def another_dtype(tensor: Tensor) -> Tensor:
    """The same shape in a dtype that no method stores anything in."""
    return Tensor("I16", tensor.shape)
