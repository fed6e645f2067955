"""Checkpoints as people published or reported them: the exit code of each, and what is said of it.

Each row is of the kind of a public report; the thorough tests of the kind stand in test_methods.py, test_declared.py,
test_patterns.py and test_diff.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Command, Outcome
from tests.methods import EXPERTS, LAYER, METHODS, MOE, modelopt, nvfp4, write
from tests.methods import LLAMA as LINEARS
from tests.test_declared import (
    ATTN,
    FP8_CACHE,
    GROUPS,
    LAST,
    LINEAR_GROUP,
    LLAMA,
    MLP,
    NAMES,
    OF_ATTENTION,
    PER_HEAD,
    PLAIN,
    SPELLED,
    changed,
    declared,
    mixed,
    one_axis_less,
    ordered,
    overlapping,
    packed,
    per_head,
    scales,
    stored,
)
from weighbridge.formats.schemes import PRESETS, to_config
from weighbridge.formats.tensors import Structure, Tensor


@dataclass(frozen=True)
class Published:
    """A checkpoint that somebody published.

    Attributes:
        quantization: what config.json has under ``quantization_config``; None where it declares nothing.
        config: the rest of config.json.
        quant_config: modelopt's own file beside it.
    """

    structure: Structure
    quantization: Mapping[str, Any] | None
    config: Mapping[str, Any] = field(default_factory=lambda: LLAMA)
    quant_config: Mapping[str, Any] | None = None

    def put(self, directory: Path) -> Path:
        write(directory, self.structure)
        config = {key: value for key, value in self.config.items() if key != "num_hidden_layers"}
        if self.quantization is not None:
            config["quantization_config"] = self.quantization
        (directory / "config.json").write_text(json.dumps(config))
        if self.quant_config is not None:
            (directory / "hf_quant_config.json").write_text(json.dumps(self.quant_config))
        return directory


def of_method(name: str, *, without: tuple[str, ...] = (), **changes: Tensor) -> Published:
    """A whole checkpoint of a method, without some tensors, or with others in place of its own."""
    method = METHODS[name]
    kept = {key: tensor for key, tensor in method.structure.items() if key not in without}
    return Published(kept | changes, method.quantization, method.config)


def with_preset(preset: str) -> dict[str, Any]:
    return declared({"targets": ["Linear"], **to_config(PRESETS[preset])}, format=PRESETS[preset].format)


def scalars(structure: Structure) -> dict[str, Tensor]:
    """Scales of whole tensors as [] in place of [1]."""
    return changed(changed(structure, "weight_scale", one_axis_less), "input_scale", one_axis_less)


NVFP4_WITHOUT_INPUTS = modelopt("NVFP4") | {
    "config_groups": {
        "group_0": {
            "weights": {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": False},
            "input_activations": None,
            "targets": ["Linear"],
        }
    }
}
DOCUMENT = {
    "producer": {"name": "modelopt", "version": "0.29.0"},
    "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head", "*mlp.gate"]},
}
OTHER_DOCUMENT = {
    "producer": {"name": "modelopt", "version": "0.29.0"},
    "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "exclude_modules": ["*mlp.gate"]},
}
RAW_HEAD = {"mtp.fc.weight": Tensor("F8_E4M3", (64, 128)), "mtp.norm.weight": Tensor("BF16", (64,))}
DOWN = f"{LAYER}.mlp.experts.down_proj"
LOST = tuple(f"{DOWN}_{local}" for local in ("weight_scale", "weight_scale_2", "input_scale"))
O_PROJ = f"{LAYER}.self_attn.o_proj"
HALF_CALIBRATED = (
    *(f"{LAYER}.mlp.experts.1.{name}.input_scale" for name in ("gate_proj", "up_proj", "down_proj")),
    f"{LAYER}.mlp.experts.2.up_proj.weight_scale_2",
)
PROJECTION_FIRST = {
    name.replace(f"{expert}.{part}", f"{part}.{expert}"): tensor
    for name, tensor in METHODS["modelopt NVFP4 of experts"].structure.items()
    for expert, part in [tuple(name.split(".")[5:7]) if ".experts." in name else ("", "")]
}
WHOLE = {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": True}
STATIC_INT8 = {"targets": ["Linear"], "weights": WHOLE, "input_activations": WHOLE}
INT8 = {
    name: Tensor("I8", tensor.shape) if tensor.dtype == "F8_E4M3" else tensor for name, tensor in stored("FP8").items()
}
LOOKING = r"re:^(?!mtp\.).*layers\.\d+\.{}$"
SPLIT = (
    ([LOOKING.format(r"mlp\.(gate|up|down)_proj")], "NVFP4A16"),
    ([LOOKING.format(r"self_attn\.(q|k|v|o)_proj")], "FP8_DYNAMIC"),
)
OF_THE_THINKER = {f"thinker.{name}": tensor for name, tensor in stored().items()}
NEW_DTYPES = {
    **{name: tensor for name, tensor in PLAIN.items() if "layers.0.mlp.down_proj" not in name},
    "model.layers.0.mlp.down_proj.weight": Tensor("F4", (64, 128)),
    "model.layers.0.mlp.down_proj.scale": Tensor("F8_E8M0", (64, 4)),
    "model.layers.0.mlp.empty": Tensor("F4", (0, 8)),
    "model.layers.0.mlp.flag": Tensor("BOOL", ()),
}
QUANTIZER_NAMES = {
    name.replace("weight_scale", "weight_quantizer.scale"): tensor
    for name, tensor in METHODS["quark MXFP4"].structure.items()
}
QUARK = dict(METHODS["quark MXFP4"].quantization)
CACHED = QUARK | {"export": {"kv_cache_group": ["*k_proj", "*v_proj"], "weight_format": "real_quantized"}}

# checkpoint, exit code, what is said of it
CASES: dict[str, tuple[Published, int, tuple[str, ...]]] = {
    "c03 fused experts": (of_method("modelopt NVFP4 of fused experts"), 0, ("2 modules quantized",)),
    "c03 fused experts without their scales": (of_method("modelopt NVFP4 of fused experts", without=LOST), 1, LOST),
    "c04 mixed precision": (of_method("modelopt MIXED_PRECISION"), 0, (f"{len(LINEARS)} modules quantized",)),
    "c04 mixed precision, a scale gone": (
        of_method("modelopt MIXED_PRECISION", without=(f"{LAYER}.mlp.down_proj.weight_scale_2",)),
        1, (f"{LAYER}.mlp.down_proj.weight_scale_2",),
    ),
    "c05 weights alone": (
        Published(METHODS["modelopt W4A16_NVFP4"].structure, NVFP4_WITHOUT_INPUTS),
        0, ("the weights alone are quantized",),
    ),
    "c07 a head in FP8 without scales": (
        Published(stored("NVFP4") | RAW_HEAD, with_preset("NVFP4") | {"ignore": ["lm_head", "re:mtp.*"]}),
        1, ("mtp.fc", "lost with their scales"),
    ),
    "c08 DeepSeek V4": (of_method("fp8 of DeepSeek V4"), 0, ("11 modules quantized", "judged by names, dtypes")),
    "c08 DeepSeek V4, scales missing and misshapen": (
        of_method("fp8 of DeepSeek V4", without=("layers.0.attn.wq_a.scale",),
                  **{"layers.0.ffn.experts.1.w2.scale": Tensor("F8_E8M0", (1, 1))}),
        1, ("layers.0.attn.wq_a.scale", "layers.0.ffn.experts.1.w2.scale"),
    ),
    "c09 lookarounds": (Published(mixed("NVFP4A16"), overlapping(*SPLIT)), 0, ("21 modules quantized",)),
    "c10 overlapping groups in the order of their texts": (
        Published(mixed("FP8_DYNAMIC"), overlapping(([ATTN, LAST], "FP8_DYNAMIC"), ([MLP], "NVFP4A16"))),
        0, ("config/overlap", "here the same", *NAMES),
    ),
    "c10 overlapping groups in another order": (
        Published(mixed("FP8_DYNAMIC"), overlapping(([ATTN, SPELLED], "FP8_DYNAMIC"), ([MLP], "NVFP4A16"))),
        0, ("config/overlap", "the stored tensors agree with the first", *NAMES),
    ),
    "c11 attention, one scale each": (
        Published(stored() | scales("q", "k", "v"), declared(*GROUPS, kv_cache_scheme=FP8_CACHE)), 0, (),
    ),
    "c11 attention, a scale for each head": (
        Published(stored() | per_head(), declared(
            LINEAR_GROUP, OF_ATTENTION | {"input_activations": PER_HEAD}, kv_cache_scheme=PER_HEAD)), 0, (),
    ),
    "c12 the KV cache alone": (
        Published(PLAIN | scales("k", "v"), declared(format="dense", kv_cache_scheme=FP8_CACHE)),
        0, ("only the KV cache quantized",),
    ),
    "c13 columns grouped by activation": (Published(packed(), ordered("group")), 0, ("vLLM 0.32 refuse such",)),
    "c13 columns grouped by activation, an index missing": (
        Published(packed(without="model.layers.1.mlp.down_proj"), ordered("group")),
        1, ("model.layers.1.mlp.down_proj.weight_g_idx",),
    ),
    "c13 columns in their order": (Published(packed(indexed=False), ordered("static")), 0, ()),
    "c15 names of quantizers": (Published(QUANTIZER_NAMES, QUARK), 1, ("weight_quantizer.scale", "no server reads")),
    "c15 names that servers read": (of_method("quark MXFP4"), 0, ("quark: weights float4 per group 32",)),
    "c15 a KV cache of which nothing is said": (
        Published(METHODS["quark MXFP4"].structure, CACHED),
        2, ("cannot be judged: quantized by quark", "kv_cache_group"),
    ),
    "c18 modelopt's own file alone": (
        Published(METHODS["modelopt NVFP4"].structure, None, quant_config=DOCUMENT),
        0, (f"{len(LINEARS)} modules quantized",),
    ),
    "c18 two declarations that disagree": (
        Published(METHODS["modelopt NVFP4"].structure, modelopt("NVFP4"), quant_config=OTHER_DOCUMENT),
        1, ("the KV cache is none by config.json, and float8", "lm_head"),
    ),
    "c20 groups named by their scheme": (
        Published(stored(), declared(config_groups={"FP8_DYNAMIC": LINEAR_GROUP})), 0, ("21 modules quantized",),
    ),
    "c20 scales of rows in one axis": (
        Published(changed(stored(), "weight_scale", one_axis_less), declared(LINEAR_GROUP)),
        1, ("vLLM's loader stops at any other shape",),
    ),
    "c20 scales as scalars": (Published(scalars(stored("FP8")), with_preset("FP8")), 0, ("vLLM's loaders take both",)),
    "c20 static INT8": (Published(INT8, declared(STATIC_INT8, format="int-quantized")), 0, ("21 modules quantized",)),
    "c21 experts that calibration did not reach": (
        of_method("modelopt NVFP4 of experts",
                  without=(*HALF_CALIBRATED, *(f"{O_PROJ}.{local}" for local in nvfp4(*MOE[O_PROJ]))),
                  **{f"{O_PROJ}.weight": Tensor("BF16", MOE[O_PROJ])}),
        1, (*HALF_CALIBRATED, O_PROJ),
    ),
    "c22 experts with the number in front": (of_method("modelopt NVFP4 of experts"), 0, ()),
    "c22 experts with the projection in front": (
        Published(PROJECTION_FIRST, modelopt("NVFP4"), {}),
        1, ("names/expert-after-projection", "no loader reads these names"),
    ),
    "c26 the config of a part": (
        Published(OF_THE_THINKER, None,
                  {"thinker_config": {"quantization_config": declared(LINEAR_GROUP, ignore=["re:.*lm_head"])}}),
        0, ("21 modules quantized", "thinker_config.quantization_config, where vLLM 0.32 does not look"),
    ),
    "c30 new dtypes, and no declaration": (
        Published(NEW_DTYPES, None), 1, ("model.layers.0.mlp.down_proj", "model.layers.0.mlp.empty", "config/missing"),
    ),
}  # fmt: skip


def said(outcome: Outcome) -> str:
    """Everything that a report or a refusal says."""
    return outcome.err if outcome.code == 2 else json.dumps(outcome.report, ensure_ascii=False)


@pytest.mark.parametrize(("published", "code", "words"), CASES.values(), ids=CASES)
def test_a_published_checkpoint_ends_as_a_user_expects(
    published: Published, code: int, words: tuple[str, ...], tmp_path: Path, call_validate: Command
) -> None:
    outcome = call_validate(published.put(tmp_path / "published"), "--format", "json")
    assert outcome.code == code, outcome.err
    assert [word for word in words if word not in said(outcome)] == []


def findings(outcome: Outcome) -> list[dict[str, Any]]:
    return [finding for section in outcome.report["sections"] for finding in section["findings"]]


@pytest.mark.parametrize("case", ["c05 weights alone", "c07 a head in FP8 without scales"])
def test_no_remedy_would_make_it_worse(case: str, tmp_path: Path, call_validate: Command) -> None:
    outcome = call_validate(CASES[case][0].put(tmp_path / "published"), "--format", "json")
    remedies = " ".join(finding["remedy"] for finding in findings(outcome))
    assert "calibrate" not in remedies
    assert "ignore list" not in remedies


def test_each_expert_that_calibration_did_not_reach_is_named_once(tmp_path: Path, call_validate: Command) -> None:
    published, _, names = CASES["c21 experts that calibration did not reach"]
    outcome = call_validate(published.put(tmp_path / "published"), "--format", "json")
    errors = [finding["where"] for finding in findings(outcome) if finding["severity"] == "error"]
    assert sorted(errors) == sorted(names)


def test_experts_named_the_other_way_are_renamed_in_one_difference(tmp_path: Path, call_validate: Command) -> None:
    usual, other = (
        CASES[f"c22 experts with the {first} in front"][0].put(tmp_path / first) for first in ("number", "projection")
    )
    outcome = call_validate(other, "--reference", usual, "--format", "json")
    renamed = [finding for finding in findings(outcome) if finding["rule"].startswith("diff/")]
    assert [finding["rule"] for finding in renamed] == ["diff/renamed"]
    assert renamed[0]["count"] == 3 * EXPERTS * len(nvfp4(16, 16))


def test_a_recipe_with_lookarounds_plans_what_such_a_build_has(tmp_path: Path, call_build: Command) -> None:
    source = Published(PLAIN, None).put(tmp_path / "source")
    recipe = {
        "name": "split",
        "description": "The mlp in NVFP4, attention in FP8.",
        "base": {"model": "example-org/tiny", "licence": "apache-2.0"},
        "method": "model_free_ptq",
        "config_groups": {
            f"group_{index}": {"targets": targets, "scheme": scheme} for index, (targets, scheme) in enumerate(SPLIT)
        },
        "ignore": ["lm_head", "re:.*embed.*", "re:.*norm.*"],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    outcome = call_build(path, "--plan", "--model", source, "--format", "json")
    assert outcome.code == 0, outcome.err
    assert "21 modules quantized" in said(outcome)
