"""Every quantization method by its layout: whole it holds, and whatever is missing, odd or too much is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Command
from tests.methods import (
    AWQ,
    BLOCK_FP8,
    EXPERTS,
    GPTQ,
    HIDDEN,
    INNER,
    KEPT,
    LAYER,
    LLAMA,
    METHODS,
    MIXED,
    MIXED_STRUCTURE,
    MOE,
    MXFP4_OF_QUARK,
    Method,
    another_dtype,
    awq,
    fp8_blocks,
    fp8_tensor,
    fused,
    gptq,
    modelopt,
    nvfp4,
    nvfp4_weights,
    of_linears,
    quark,
    write,
)
from tests.planning import recipe
from weighbridge.account import State
from weighbridge.account.quantization import judge_quantization
from weighbridge.checkpoint.consistency import inconsistencies
from weighbridge.checkpoint.lock import open_lock, write_lock
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.readable import check_measured
from weighbridge.checks.validation import validate
from weighbridge.errors import StructureError
from weighbridge.formats.methods import KEYS
from weighbridge.formats.quantization import read_declaration
from weighbridge.formats.tensors import Structure, Tensor
from weighbridge.planning import make_plan
from weighbridge.recipe import load_recipe
from weighbridge.report import Finding, Severity
from weighbridge.text.names import parse_pattern


def errors(method: Method, structure: Structure | None = None) -> list[Finding]:
    findings = inconsistencies(method.opened(structure))
    return [finding for finding in findings if finding.severity is Severity.ERROR]


def named(findings: list[Finding]) -> set[str]:
    """Every name that findings stand for."""
    return {name for finding in findings for name in parse_pattern(finding.where, where="")}


FUSED_FP8 = Method(
    {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"FP8_DYNAMIC": ["Linear"]},
        "ignore": ["lm_head", "re:.*gate$"],
    },
    KEPT
    | {f"{LAYER}.mlp.experts.gate_up_proj": Tensor("F8_E4M3", (EXPERTS, 2 * INNER, HIDDEN))}
    | {f"{LAYER}.mlp.experts.gate_up_proj.weight_scale": Tensor("BF16", (EXPERTS, 2 * INNER, 1))}
    | {f"{LAYER}.mlp.experts.down_proj": Tensor("F8_E4M3", (EXPERTS, HIDDEN, INNER))}
    | {f"{LAYER}.mlp.experts.down_proj.weight_scale": Tensor("BF16", (EXPERTS, HIDDEN, 1))},
)


# --- whole ------------------------------------------------------------------------------------------------------------


UNSERVED = {"modelopt W4A8_NVFP4_FP8": {"serve/no-kernel"}}
"""Methods that vLLM 0.32 refuses to load, and the rule that says so: nothing else is wrong with them."""


def broken_rules(checkpoint: Checkpoint) -> set[str]:
    sections = validate(checkpoint).sections
    return {item.rule for part in sections for item in part.findings if item.severity is Severity.ERROR}


@pytest.mark.parametrize(("name", "method"), METHODS.items(), ids=METHODS)
def test_a_whole_checkpoint_holds_and_its_modules_are_counted(name: str, method: Method) -> None:
    checkpoint = method.opened()
    assert broken_rules(checkpoint) == UNSERVED.get(name, set())
    weights = {name.rpartition(".")[0] for name in method.stored if name.endswith(("weight", "qweight"))}
    fused_weights = {name for name in method.stored if name.endswith(("_proj", "_proj_blocks"))}
    assert len(checkpoint.schemes) == len(weights | fused_weights) > 0


SAID = {
    "fp8 of blocks": "fp8: weights float8 per block 128x128; input activations float8 per group 128, dynamic",
    "mxfp4 of gpt-oss": "mxfp4: weights float4 per group 32",
    "gptq": "gptq: weights int4 per group 128",
    "awq": "awq: weights int4 asymmetric per group 128",
}


@pytest.mark.parametrize(("name", "words"), SAID.items(), ids=SAID)
def test_what_a_method_declares_is_said_plainly(name: str, words: str) -> None:
    (note,) = (item for item in inconsistencies(METHODS[name].opened()) if item.rule == "config/judged-by-layout")
    assert note.message.startswith(words)


# --- damaged ----------------------------------------------------------------------------------------------------------

SITES = [(name, tensor) for name, method in METHODS.items() for tensor in method.stored]


@given(st.sampled_from(SITES))
@settings(max_examples=400)
def test_each_tensor_that_is_missing_is_named(site: tuple[str, str]) -> None:
    method, dropped = METHODS[site[0]], site[1]
    structure = {name: tensor for name, tensor in method.structure.items() if name != dropped}
    assert dropped in named(errors(method, structure))


@given(st.sampled_from(SITES))
@settings(max_examples=400)
def test_each_tensor_of_another_dtype_is_named(site: tuple[str, str]) -> None:
    method, changed = METHODS[site[0]], site[1]
    structure = {**method.structure, changed: another_dtype(method.structure[changed])}
    assert changed in named(errors(method, structure))


SCALES = [(name, tensor) for name, tensor in SITES if not tensor.endswith(("weight", "_proj", "_blocks"))]


@given(st.sampled_from(SCALES), st.data())
@settings(max_examples=400)
def test_each_scale_of_another_shape_is_named(site: tuple[str, str], data: st.DataObject) -> None:
    method, changed = METHODS[site[0]], site[1]
    tensor = method.structure[changed]
    own = tensor.shape
    axis = data.draw(st.integers(0, len(own)))
    longer = [(*own[:axis], own[axis] + 1, *own[axis + 1 :])] if axis < len(own) else []
    shape = data.draw(st.sampled_from([(*own[:axis], 3, *own[axis:]), *longer]))
    structure = {**method.structure, changed: Tensor(tensor.dtype, shape)}
    assert changed in named(errors(method, structure))


CODES = [
    site for site in SITES if site not in SCALES and not site[0].endswith(("FP8", "of tensors", "fp4", "PRECISION"))
]


@given(st.sampled_from(CODES))
@settings(max_examples=200)
def test_codes_of_another_shape_are_found_by_what_lies_beside_them(site: tuple[str, str]) -> None:
    method, changed = METHODS[site[0]], site[1]
    tensor = method.structure[changed]
    structure = {
        **method.structure,
        changed: Tensor(tensor.dtype, (*tensor.shape[:-2], 2 * tensor.shape[-2], tensor.shape[-1])),
    }
    module = changed.removesuffix("_blocks").removesuffix(".weight").removesuffix(".qweight")
    assert any(name.startswith(module) for name in named(errors(method, structure)))


@given(st.sampled_from(SITES), st.sampled_from(["weight_zero_point", "weight_packed", "codebook", "weight_scale_3"]))
@settings(max_examples=200)
def test_each_surplus_tensor_is_named(site: tuple[str, str], local: str) -> None:
    method = METHODS[site[0]]
    module = site[1].rpartition(".")[0]
    if site[1].rpartition(".")[2] not in ("weight", "qweight"):
        return
    surplus = f"{module}.{local}"
    structure = {**method.structure, surplus: Tensor("F32", (1,))}
    assert surplus in named(errors(method, structure))


@pytest.mark.parametrize("name", METHODS)
def test_a_scale_without_its_module_is_named(name: str) -> None:
    method = METHODS[name]
    local = {"gptq": "qzeros", "awq": "qzeros"}.get(str(method.quantization["quant_method"]), "weight_scale")
    stray = f"{LAYER}.self_attn.z_proj.{local}"
    found = errors(method, {**method.structure, stray: Tensor("F32", (4, 1))})
    assert any(name.startswith(f"{LAYER}.self_attn.z_proj") for name in named(found))


STRAYS = {
    tensor.rpartition(".")[2]: method.structure[tensor]
    for method in METHODS.values()
    for tensor in method.stored
    if not tensor.endswith("_bias")
}
"""What each method stores, by local name."""


@pytest.mark.parametrize(("local", "tensor"), STRAYS.items(), ids=STRAYS)
@pytest.mark.parametrize("method", [Method({}, KEPT), FUSED_FP8, *METHODS.values()], ids=["none", "fp8 rows", *METHODS])
def test_what_a_method_stores_is_named_where_it_belongs_to_nothing(method: Method, local: str, tensor: Tensor) -> None:
    stray = f"model.memory.experts.z_proj.{local}" if "_proj" not in local else f"model.memory.experts.{local}"
    found = named(errors(method, {**method.structure, stray: tensor}))
    assert any(name.startswith("model.memory.experts") for name in found)


@pytest.mark.parametrize(
    "name", [name for name in METHODS if "fused" not in name and "V4" not in name and "oss" not in name]
)
def test_a_linear_that_is_left_as_a_float_is_named(name: str) -> None:
    method, module = METHODS[name], f"{LAYER}.self_attn.k_proj"
    structure = {key: tensor for key, tensor in method.structure.items() if not key.startswith(f"{module}.")}
    structure[f"{module}.weight"] = Tensor("BF16", LLAMA[module])
    (finding,) = errors(method, structure)
    assert finding.where == module


@pytest.mark.parametrize("form", [GPTQ, AWQ], ids=["gptq", "awq"])
def test_where_servers_go_by_what_is_stored_a_float_linear_is_said_and_holds(form: Mapping[str, Any]) -> None:
    whole = METHODS[str(form["quant_method"])]
    module = f"{LAYER}.self_attn.o_proj"
    structure = {key: tensor for key, tensor in whole.structure.items() if not key.startswith(f"{module}.")}
    structure[f"{module}.weight"] = Tensor("BF16", LLAMA[module])
    findings = inconsistencies(whole.opened(structure))
    assert not [item for item in findings if item.severity is Severity.ERROR]
    assert module in named([item for item in findings if item.rule == "config/left-unquantized"])


def test_codes_that_belong_to_no_module_are_named() -> None:
    method = METHODS["fp8 of blocks"]
    stray = f"{LAYER}.self_attn.memory"
    assert stray in named(errors(method, {**method.structure, stray: Tensor("F8_E4M3", (8, 8))}))


@pytest.mark.parametrize("name", METHODS)
def test_a_declaration_that_nothing_follows_does_not_hold(name: str) -> None:
    method = METHODS[name]
    plain = {**KEPT, **{f"{module}.weight": Tensor("BF16", shape) for module, shape in LLAMA.items()}}
    assert errors(method, plain)


# --- what servers take, too -------------------------------------------------------------------------------------------


def test_a_scale_of_one_element_may_have_one_axis_or_none() -> None:
    structure = {
        name: Tensor(tensor.dtype, (1,)) if tensor.shape == () else tensor
        for name, tensor in METHODS["modelopt NVFP4"].structure.items()
    }
    assert not errors(METHODS["modelopt NVFP4"], structure)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E8M0"])
def test_block_scales_may_be_of_several_dtypes(dtype: str) -> None:
    method = METHODS["fp8 of blocks"]
    structure = {
        name: Tensor(dtype, tensor.shape) if name.endswith("_inv") else tensor
        for name, tensor in method.structure.items()
    }
    assert not errors(method, structure)


V4 = METHODS["fp8 of DeepSeek V4"]


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_scales_beside_experts_of_four_bits_are_powers_of_two_as_vllm_holds_them(dtype: str) -> None:
    name = "layers.0.attn.wq_a.scale"
    assert {finding.where for finding in errors(V4, {**V4.structure, name: Tensor(dtype, (1, 2))})} == {name}


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F32", "BF16"])
def test_scales_beside_experts_of_eight_bits_may_be_of_several_dtypes(dtype: str) -> None:
    structure = {name: tensor for name, tensor in V4.structure.items() if ".experts." not in name}
    structure["layers.0.attn.wq_a.scale"] = Tensor(dtype, (1, 2))
    assert errors(replace(V4, config={**V4.config, "expert_dtype": "fp8"}), structure) == []


@pytest.mark.parametrize("experts", [None, "", "bf16", ["fp4"], 4])
def test_experts_that_vllm_does_not_know_are_not_judged(experts: object) -> None:
    opened = replace(V4, config={**V4.config, "expert_dtype": experts}).opened()
    assert opened.declaration is not None
    assert "expert_dtype" in opened.declaration.unread


def test_what_rounds_activations_alone_is_not_judged_by_the_tensors() -> None:
    verdicts = {verdict.name: verdict.state for verdict in judge_quantization(V4.opened(), None, None)}
    assert verdicts["config.json:quantization_config.scale_fmt"] is State.NOT_JUDGED
    assert verdicts["config.json:quantization_config.fmt"] is State.HELD


def test_ragged_blocks_have_scales_of_their_own() -> None:
    odd = {f"{LAYER}.self_attn.o_proj": (200, 300)}
    structure = of_linears(lambda rows, columns: {
        "weight": ("F8_E4M3", (rows, columns)), "weight_scale_inv": ("F32", (2, 3))
    }, odd)  # fmt: skip
    assert not errors(Method(BLOCK_FP8, structure))


def test_no_module_has_a_g_idx_or_all_have() -> None:
    structure = {name: tensor for name, tensor in METHODS["gptq"].structure.items() if not name.endswith("g_idx")}
    assert not errors(METHODS["gptq"], structure)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_of_any_bits_is_judged(bits: int) -> None:
    structure = of_linears(lambda rows, columns: {
        "qweight": ("I32", (columns * bits // 32, rows)),
        "qzeros": ("I32", (columns // 128, rows * bits // 32)),
        "scales": ("BF16", (columns // 128, rows)),
        "g_idx": ("I32", (columns,)),
    })  # fmt: skip
    assert not errors(Method(GPTQ | {"bits": bits}, structure))
    assert errors(Method(GPTQ | {"bits": 4 if bits == 8 else 8}, structure))


def test_fused_experts_of_transformers_fp8_are_judged() -> None:
    structure = {
        **KEPT,
        f"{LAYER}.mlp.experts.down_proj": Tensor("F8_E4M3", (EXPERTS, HIDDEN, INNER)),
        f"{LAYER}.mlp.experts.down_proj_scale_inv": Tensor("F32", (EXPERTS, HIDDEN // 128, INNER // 128)),
    }
    method = Method(BLOCK_FP8, structure)
    assert not errors(method)
    del structure[f"{LAYER}.mlp.experts.down_proj_scale_inv"]
    assert named(errors(method, structure)) == {f"{LAYER}.mlp.experts.down_proj_scale_inv"}


def test_what_is_listed_as_kept_and_stored_quantized_is_named() -> None:
    kept = BLOCK_FP8 | {"modules_to_not_convert": ["self_attn.o_proj"]}
    assert named(errors(Method(kept, of_linears(fp8_blocks)))) == {f"{LAYER}.self_attn.o_proj"}


def test_a_parameter_that_happens_to_be_called_scale_is_none() -> None:
    method = METHODS["fp8 of blocks"]
    assert not errors(method, {**method.structure, f"{LAYER}.router.scale": Tensor("BF16", (HIDDEN,))})


# --- what is not read -------------------------------------------------------------------------------------------------

UNREAD: Mapping[str, Mapping[str, Any]] = {
    **{
        name: {"quant_method": name}
        for name in (
            *("bitsandbytes", "auto-round", "intel/auto-round", "hqq", "exl2", "torchao", "fbgemm_fp8", "ptpc_fp8"),
            *("experts_int8", "bitnet", "unheard_of", "modelopt_of_tomorrow", "org/method-1.5+a"),
        )
    },
    "no method at all": {"bits": 4},
    "gptq with dynamic rules": GPTQ | {"dynamic": {"+:.*0.*": {"bits": 8}}},
    "gptq of five bits": GPTQ | {"bits": 5},
    "gptq for marlin": GPTQ | {"checkpoint_format": "marlin"},
    "awq gemv": AWQ | {"version": "gemv"},
    "awq of eight bits": AWQ | {"bits": 8},
    "awq of llm-awq": AWQ | {"backend": "llm-awq"},
    "fp8 e5m2": BLOCK_FP8 | {"fmt": "e5m2"},
    "fp8 without a scheme of activations": {"quant_method": "fp8"},
    "mxfp4 of another model": {"quant_method": "mxfp4"},
    "modelopt AWQ": modelopt("W4A16_AWQ"),
    "modelopt algorithm of tomorrow": modelopt("NVFP3"),
    "modelopt without an algorithm": {"quant_method": "modelopt"},
    "modelopt mixed with one that is not read": modelopt(
        "MIXED_PRECISION", quantized_layers={next(iter(LLAMA)): {"quant_algo": "W4A8_AWQ", "group_size": 128}}
    ),
    **{
        f"modelopt {algorithm} with {key}": modelopt(algorithm, **{key: True})
        for algorithm in ("FP8", "NVFP4", "W4A16_NVFP4")
        for key in ("pre_quant_scale", "has_zero_point")
    },
    "modelopt with a pre_quant_scale in its group": modelopt(
        "NVFP4", config_groups={"group_0": {"weights": {"num_bits": 4}, "pre_quant_scale": True}}
    ),
    "modelopt mixed with a pre_quant_scale": modelopt(
        "MIXED_PRECISION", quantized_layers={next(iter(LLAMA)): {"quant_algo": "NVFP4", "pre_quant_scale": True}}
    ),
    "quark int4": quark({"dtype": "int4", "qscheme": "per_group", "group_size": 128}, None),
    "quark by type": quark(MXFP4_OF_QUARK, None, layer_type_quant_config={"Linear": {}}),
    "quark with a KV cache of nothing": quark(MXFP4_OF_QUARK, None) | {"export": {"kv_cache_group": ["*k_proj"]}},
}


@pytest.mark.parametrize("quantization", UNREAD.values(), ids=UNREAD)
def test_what_is_not_read_is_never_judged_to_hold(quantization: Mapping[str, Any]) -> None:
    with pytest.raises(StructureError, match="cannot be judged: quantized by"):
        validate(Method(quantization, of_linears(nvfp4)).opened())


@pytest.mark.parametrize("method", ["hqq", "intel/auto-round"])
def test_what_is_not_read_is_exit_2_and_one_sentence(method: str, tmp_path: Path, call_validate: Command) -> None:
    write(tmp_path, of_linears(nvfp4))
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": method}}))
    outcome = call_validate(tmp_path)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert f"quantized by {method}, whose way of storing weights is not read here" in outcome.err


MALFORMED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "block of one side": (BLOCK_FP8 | {"weight_block_size": [128]}, "weight_block_size cannot be"),
    "static blocks": (BLOCK_FP8 | {"activation_scheme": "static"}, "refused by vLLM"),
    "activations of no kind": (BLOCK_FP8 | {"activation_scheme": 7}, "activation_scheme cannot be"),
    "kept things as text": (BLOCK_FP8 | {"ignored_layers": "lm_head"}, "is no list of names"),
    "group of nothing": (GPTQ | {"group_size": 0}, "group_size cannot be"),
    "symmetry as text": (GPTQ | {"sym": "yes"}, "bits and sym cannot be"),
    "zero point as text": (AWQ | {"zero_point": "yes"}, "zero_point cannot be"),
    "no mapping of layers": (modelopt("MIXED_PRECISION"), "needs the algorithm of each module"),
    "a layer that is none": (modelopt("MIXED_PRECISION", quantized_layers={"a": 1}), "is no mapping"),
    "layers beside one algorithm": (
        modelopt("FP8", quantized_layers={"a": {"quant_algo": "FP8"}}),
        "beside the quant_algo",
    ),
    "groups where there are none": (modelopt("FP8", group_size=16), "has no groups"),
    "group size as text": (modelopt("NVFP4", group_size="16"), "group_size cannot be"),
    "groups of other bits": (
        modelopt("NVFP4", config_groups={"group_0": {"weights": {"num_bits": 8}}}),
        "says weights of 8 bits",
    ),
}


@pytest.mark.parametrize(("quantization", "sentence"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_declaration_is_one_sentence(quantization: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(StructureError, match=sentence):
        read_declaration({"quantization_config": quantization}, where="config.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([*METHODS.values(), *(Method(raw, {}) for raw in UNREAD.values())]), st.data())
@settings(max_examples=600)
def test_whatever_stands_under_a_key_is_read_or_refused(method: Method, data: st.DataObject) -> None:
    raw = dict(method.quantization)
    raw[data.draw(st.sampled_from(sorted(raw)))] = data.draw(JSON)
    config = {**method.config, "quantization_config": raw}
    try:
        read_declaration(config, where="config.json")
    except StructureError as refusal:
        assert str(refusal).startswith("config.json")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_part_of_a_composite_model_may_have_the_declaration(method: Method) -> None:
    part = {**method.config, "quantization_config": method.quantization}
    whole = read_declaration(part, where="config.json")
    nested = read_declaration({"model_type": "composite", "thinker_config": {"text_config": part}}, where="config.json")
    assert nested == whole
    assert nested is not None
    assert nested.place == "thinker_config.text_config.quantization_config"


# --- modelopt's declarations ------------------------------------------------------------------------------------------

STEPS = [
    (),
    ("config_groups", "group_0"),
    ("config_groups", "group_0", "weights"),
    ("config_groups", "group_0", "input_activations"),
]


@pytest.mark.parametrize("steps", STEPS, ids=lambda steps: ".".join(steps) or "top")
def test_a_key_that_modelopt_does_not_write_is_refused_by_name(steps: tuple[str, ...]) -> None:
    arguments = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    raw = modelopt("NVFP4", config_groups={
        "group_0": {"weights": arguments, "input_activations": dict(arguments), "targets": ["Linear"]}
    })  # fmt: skip
    holder: Any = raw
    for step in steps:
        holder = holder[step]
    holder["rotation"] = True
    with pytest.raises(StructureError, match="unknown key 'rotation'"):
        read_declaration({"quantization_config": raw}, where="config.json")


def document(algorithm: str = "NVFP4", **more: Any) -> dict[str, Any]:
    quantization = {"quant_algo": algorithm, "kv_cache_quant_algo": None, "exclude_modules": ["lm_head", "*mlp.gate"]}
    return {"producer": {"name": "modelopt", "version": "0.29.0"}, "quantization": {**quantization, **more}}


def test_modelopts_own_file_alone_is_the_declaration() -> None:
    checkpoint = Method({}, of_linears(nvfp4)).opened(quant_config=document())
    assert len(checkpoint.schemes) == len(LLAMA)
    assert validate(checkpoint).holds


@pytest.mark.parametrize("level", ["document", "quantization"])
def test_a_key_that_modelopt_does_not_write_is_refused_in_its_own_file(level: str) -> None:
    raw = document()
    (raw if level == "document" else raw["quantization"])["rotation"] = True
    with pytest.raises(StructureError, match="unknown key 'rotation'"):
        Method({}, of_linears(nvfp4)).opened(quant_config=raw)


def test_modelopts_own_file_is_read_from_disk(tmp_path: Path, call_validate: Command) -> None:
    write(tmp_path, of_linears(nvfp4))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(document()))
    report = call_validate(tmp_path, "--format", "json").report
    (itself,) = (section for section in report["sections"] if section["id"] == "structure")
    assert itself["holds"]
    assert f"{len(LLAMA)} modules quantized" in itself["summary"]


AGREEING, FIRST = modelopt("NVFP4"), next(iter(LLAMA))
DISAGREEING: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], tuple[str, ...]]] = {
    "algorithm": (AGREEING, document("W4A16_NVFP4"), ("quant_algo is NVFP4", "W4A16_NVFP4")),
    "kv cache": (AGREEING, document(kv_cache_quant_algo="FP8"), ("the KV cache is none", "float8 per tensor")),
    "exclusions": (AGREEING, document(exclude_modules=["*mlp.gate"]), ("it is not quantized", "weights float4")),
    "layers": (
        MIXED,
        document("MIXED_PRECISION", quantized_layers={**MIXED["quantized_layers"], FIRST: {"quant_algo": "NVFP4"}}),
        ("weights float8 per tensor", "weights float4"),
    ),
    "method": (GPTQ, document(), ("the quantization is gptq", "modelopt")),
}  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs", "words"), DISAGREEING.values(), ids=DISAGREEING)
def test_two_declarations_that_disagree_by_effect_are_an_error_with_both_values(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], words: tuple[str, ...]
) -> None:
    checkpoint = Method(ours, of_linears(nvfp4)).opened(quant_config=theirs)
    found = [item.message for item in inconsistencies(checkpoint) if item.rule == "config/declared-twice"]
    assert found
    assert all(word in found[0] for word in words)


def test_two_declarations_that_say_one_thing_in_other_words_agree() -> None:
    spelled = document(exclude_modules=["lm_head", f"{LAYER}.mlp.gate"])
    checkpoint = Method(AGREEING, of_linears(nvfp4, MOE)).opened(quant_config=spelled)
    assert validate(checkpoint).holds


def test_a_layer_that_is_called_linear_is_not_every_linear() -> None:
    raw = modelopt("MIXED_PRECISION", quantized_layers={"Linear": {"quant_algo": "FP8"}})
    assert not Method(raw, of_linears(fp8_tensor)).opened().schemes


def test_what_quantized_layers_does_not_name_is_kept_as_it_is() -> None:
    kept = f"{LAYER}.mlp.down_proj"
    layers = {name: layer for name, layer in MIXED["quantized_layers"].items() if name != kept}
    structure = {name: tensor for name, tensor in MIXED_STRUCTURE.items() if not name.startswith(f"{kept}.")}
    structure[f"{kept}.weight"] = Tensor("BF16", LLAMA[kept])
    assert validate(Method(MIXED | {"quantized_layers": layers}, structure).opened()).holds


def test_quantized_layers_may_name_what_holds_modules_or_a_pattern() -> None:
    layers = {
        f"{LAYER}.self_attn": {"quant_algo": "FP8"},
        "*.mlp.*_proj": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
    }
    method = Method(modelopt("MIXED_PRECISION", quantized_layers=layers), METHODS["modelopt MIXED_PRECISION"].structure)
    assert not errors(method)


# exclusions, whether vLLM finds them by the name of what it merges
MERGED: Mapping[str, tuple[list[str], bool]] = {
    "by the parent": ([f"{LAYER}.self_attn*"], True),
    "by every name": ([f"{LAYER}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")], True),
    "by the merged name": (["*.q_proj", "*.k_proj", "*.v_proj", "*.qkv_proj", "*.o_proj"], True),
    "by wildcards of the members": (["*.q_proj", "*.k_proj", "*.v_proj", "*.o_proj"], False),
}


@pytest.mark.parametrize(("exclude", "seen"), MERGED.values(), ids=MERGED)
def test_exclusions_that_vllm_does_not_find_are_said(exclude: list[str], seen: bool) -> None:
    attention = {name: shape for name, shape in LLAMA.items() if "self_attn" in name}
    structure = of_linears(nvfp4, {name: shape for name, shape in LLAMA.items() if name not in attention})
    structure |= {f"{name}.weight": Tensor("BF16", shape) for name, shape in attention.items()}
    quantization = modelopt("NVFP4") | {"ignore": ["lm_head", "*mlp.gate", *exclude]}
    findings = inconsistencies(Method(quantization, structure).opened())
    said = named([item for item in findings if item.rule == "config/kept-unmerged"])
    assert said == (set() if seen else {f"{LAYER}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")})
    assert not [item for item in findings if item.severity is Severity.ERROR]


def test_a_vision_tower_that_an_older_modelopt_did_not_exclude_is_left_as_it_is() -> None:
    tower = {"model.vision_tower.layers.0.self_attn.q_proj.weight": Tensor("BF16", (HIDDEN, HIDDEN))}
    assert not errors(Method(modelopt("NVFP4"), of_linears(nvfp4) | tower))


WEIGHTS_ALONE = {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}, "input_activations": None}}


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        (modelopt("NVFP4", config_groups=WEIGHTS_ALONE), "multiplied every expert by 0"),
        (modelopt("W4A16_NVFP4"), "with the activations as they are"),
    ],
    ids=["by their groups", "by their name"],
)
def test_weights_alone_are_said_and_nobody_is_told_to_calibrate(quantization: dict[str, Any], said: str) -> None:
    checkpoint = Method(quantization, of_linears(nvfp4_weights)).opened()
    report = validate(checkpoint)
    assert report.holds
    (note,) = (item for section in report.sections for item in section.findings if item.rule == "config/weights-alone")
    assert "W4A16_NVFP4" in note.message
    assert said in note.message
    assert not any("calibrat" in item.remedy for section in report.sections for item in section.findings)


def test_a_kv_cache_alone_may_be_declared() -> None:
    quantization = {"quant_method": "modelopt", "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False}}
    plain = {**KEPT, **{f"{module}.weight": Tensor("BF16", shape) for module, shape in LLAMA.items()}}
    assert not errors(Method(quantization, plain))


# --- fused experts in compressed-tensors' schemes ---

SCALE = f"{LAYER}.mlp.experts.down_proj.weight_scale"
FUSED_FAULTS: Mapping[str, tuple[str, Tensor | None]] = {
    "scale missing": (SCALE, None),
    "scale of another dtype": (SCALE, Tensor("I16", (EXPERTS, HIDDEN, 1))),
    "scale without an axis": (SCALE, Tensor("BF16", (EXPERTS, HIDDEN))),
    "scale for other rows": (SCALE, Tensor("BF16", (EXPERTS, INNER, 1))),
    "codes of another dtype": (f"{LAYER}.mlp.experts.down_proj", Tensor("I8", (EXPERTS, HIDDEN, INNER))),
    "scale too much": (f"{LAYER}.mlp.experts.down_proj.weight_scale_2", Tensor("F32", (EXPERTS,))),
}


def test_fused_experts_with_a_scale_for_each_row_hold() -> None:
    assert not errors(FUSED_FP8)


@pytest.mark.parametrize(("name", "tensor"), FUSED_FAULTS.values(), ids=FUSED_FAULTS)
def test_fused_experts_are_judged(name: str, tensor: Tensor | None) -> None:
    structure = {key: value for key, value in FUSED_FP8.structure.items() if key != name}
    if tensor is not None:
        structure[name] = tensor
    assert named(errors(FUSED_FP8, structure)) == {name}


def test_fused_experts_that_are_kept_are_no_target_of_linear() -> None:
    structure = {
        name: Tensor("BF16", tensor.shape)
        for name, tensor in FUSED_FP8.structure.items()
        if not name.endswith("weight_scale")
    }
    structure[f"{LAYER}.self_attn.q_proj.weight"] = Tensor("F8_E4M3", (HIDDEN, HIDDEN))
    structure[f"{LAYER}.self_attn.q_proj.weight_scale"] = Tensor("BF16", (HIDDEN, 1))
    assert not errors(FUSED_FP8, structure)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projections", [("gate_proj", "up_proj", "down_proj"), ("w1", "w2", "w3")])
def test_experts_named_after_their_projection_are_one_finding(projections: tuple[str, ...]) -> None:
    names = [f"{LAYER}.mlp.experts.{part}.{expert}" for part in projections for expert in range(EXPERTS)]
    structure = of_linears(nvfp4, dict.fromkeys(names, (INNER, HIDDEN)))
    (finding,) = errors(Method(modelopt("NVFP4"), structure))
    assert finding.rule == "names/expert-after-projection"
    assert finding.count == 4 * len(names)
    assert "no loader reads these names" in finding.message


def test_names_of_quantizer_objects_are_refused_by_name() -> None:
    structure = {name.replace("weight_scale", "weight_quantizer.scale"): tensor for name, tensor in
                 METHODS["quark MXFP4"].structure.items()}  # fmt: skip
    found = errors(Method(METHODS["quark MXFP4"].quantization, structure))
    assert found[0].rule == "names/quantizer-objects"
    assert "weight_quantizer.scale" in found[0].where


# --- numbers ----------------------------------------------------------------------------------------------------------

MEASURED = {"modelopt NVFP4", "modelopt NVFP4 of experts", "modelopt_fp4", "modelopt FP8"}
"""What is held against a base here."""
NOT_DECODED = {"modelopt NVFP4 of fused experts", "quark MXFP4", "quark FP8"}
"""What no build starts from."""


@pytest.mark.parametrize("name", METHODS)
def test_what_is_not_measured_is_refused_before_its_numbers_are_asked_for(name: str) -> None:
    checkpoint = METHODS[name].opened()
    if name in MEASURED:
        check_measured(checkpoint)
    else:
        with pytest.raises(StructureError, match="measured"):
            check_measured(checkpoint)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_not_decoded_is_no_source_of_a_build(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(["lm_head", "re:.*embed.*", "re:.*norm.*"])))
    if name not in NOT_DECODED:
        assert make_plan(load_recipe(str(path)), METHODS[name].opened()).parts
        return
    with pytest.raises(StructureError, match="decoded"):
        make_plan(load_recipe(str(path)), METHODS[name].opened())


def test_the_structure_of_what_is_not_measured_is_compared(tmp_path: Path, call_validate: Command) -> None:
    method = METHODS["fp8 of blocks"]
    for name in ("one", "other"):
        write(tmp_path / name, method.structure)
        (tmp_path / name / "config.json").write_text(json.dumps({"quantization_config": method.quantization}))
    assert call_validate(tmp_path / "one", "--reference", tmp_path / "other").code == 0
    refused = call_validate(tmp_path / "one", "--compare", tmp_path / "other")
    assert refused.code == 2
    assert "quant_method is fp8" in refused.err


# --- locks ---


@pytest.mark.parametrize(("name", "method"), METHODS.items(), ids=METHODS)
def test_a_lock_of_it_says_the_same_and_holds(name: str, method: Method, tmp_path: Path) -> None:
    checkpoint = method.opened()
    path = tmp_path / "lock.yaml"
    path.write_text(write_lock(checkpoint))
    locked = open_lock(path)
    assert (locked.structure, locked.schemes) == (checkpoint.structure, checkpoint.schemes)
    assert broken_rules(locked) == UNSERVED.get(name, set())


def test_a_lock_of_a_method_that_is_not_read_is_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "lock.yaml"
    path.write_text(write_lock(METHODS["gptq"].opened()).replace("quant_method: gptq", "quant_method: tomorrow"))
    with pytest.raises(StructureError, match="cannot be judged: quantized by tomorrow"):
        validate(open_lock(path))


# --- many -------------------------------------------------------------------------------------------------------------


def test_a_long_list_of_what_is_kept_is_matched() -> None:
    listed = BLOCK_FP8 | {"modules_to_not_convert": [f"model.layers.{n}.mlp.gate" for n in range(50_000)]}
    assert not errors(Method(listed, of_linears(fp8_blocks)))


def test_a_list_longer_than_any_declarations_is_refused() -> None:
    listed = AWQ | {"modules_to_not_convert": [f"model.layers.{n}.mlp.gate" for n in range(5_000)]}
    with pytest.raises(StructureError, match="more than 4,096 patterns"):
        Method(listed, of_linears(awq)).opened()


@pytest.mark.parametrize("entry", ["self_attn.o_proj", f"{LAYER}.self_attn.o_proj", "o_proj", f"{LAYER}.self_attn"])
def test_what_is_kept_may_be_named_by_parts_of_a_name(entry: str) -> None:
    structure = of_linears(fp8_blocks, {name: shape for name, shape in LLAMA.items() if "mlp" in name})
    structure |= {f"{name}.weight": Tensor("BF16", shape) for name, shape in LLAMA.items() if "self_attn" in name}
    found = named(errors(Method(BLOCK_FP8 | {"modules_to_not_convert": [entry]}, structure)))
    kept = {name for name in LLAMA if "self_attn" in name and (entry.endswith("self_attn") or name.endswith("o_proj"))}
    assert found == {name for name in LLAMA if "self_attn" in name} - kept


def test_static_scales_of_another_name_are_surplus() -> None:
    dynamic = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    found = named(errors(Method(dynamic, of_linears(fp8_tensor))))
    assert found == {f"{module}.input_scale" for module in LLAMA}


def test_modules_that_gptq_lists_are_asked_for() -> None:
    listed = GPTQ | {"modules_in_block_to_quantize": [["self_attn.o_proj"], ["mlp.down_proj"]]}
    linears = {name: shape for name, shape in LLAMA.items() if name.endswith(("o_proj", "down_proj"))}
    floats = {f"{name}.weight": Tensor("BF16", shape) for name, shape in LLAMA.items() if name not in linears}
    structure = {**of_linears(gptq, linears), **floats}
    assert not errors(Method(listed, structure))
    for local in ("qweight", "qzeros", "scales", "g_idx"):
        del structure[f"{LAYER}.mlp.down_proj.{local}"]
    structure[f"{LAYER}.mlp.down_proj.weight"] = Tensor("BF16", LLAMA[f"{LAYER}.mlp.down_proj"])
    assert named(errors(Method(listed, structure))) == {f"{LAYER}.mlp.down_proj"}


def test_fused_experts_that_lie_transposed_are_judged() -> None:
    structure = {
        name: Tensor(tensor.dtype, (EXPERTS, HIDDEN // 2, 2 * INNER)) if name.endswith("gate_up_proj") else tensor
        for name, tensor in fused("modelopt").items()
    }
    name = f"{LAYER}.mlp.experts.gate_up_proj_weight_scale"
    structure[name] = Tensor("F8_E4M3", (EXPERTS, HIDDEN // 16, 2 * INNER))
    assert not errors(METHODS["modelopt NVFP4 of fused experts"], structure)


@pytest.mark.parametrize("method", sorted(KEYS))
def test_a_key_that_nobody_knows_is_not_read_past(method: str) -> None:
    raw = {"quant_method": method, "nobody_knows_this": 1}
    declaration = read_declaration({"quantization_config": raw}, where="config.json")
    assert declaration is not None
    assert "nobody_knows_this" in declaration.unread
