"""modelopt's format: what it stores, what it leaves out and how it says so, held against what modelopt wrote itself."""

from __future__ import annotations

import fnmatch
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.planning import ROOT, source
from weighbridge.engines.rewriting import reciprocal
from weighbridge.errors import StructureError
from weighbridge.formats import modelopt
from weighbridge.formats.quantization import read_declaration, resolve
from weighbridge.formats.schemes import KV_CACHES, PRESETS, SchemeMismatch
from weighbridge.formats.tensors import Tensor
from weighbridge.planning import Plan, make_plan
from weighbridge.recipe import load_recipe
from weighbridge.text.patterns import pattern_list

WRITTEN: dict[str, Any] = json.loads((ROOT / "tests" / "data" / "modelopt-experts.json").read_text())
"""What modelopt 0.47.0 wrote for the miniature's experts (`tests.modelopt_locks`): both declarations."""

WEIGHT = Tensor("BF16", (704, 2816))
SCALAR = Tensor("F32", ())


@pytest.fixture(scope="module")
def experts() -> Plan:
    return make_plan(load_recipe("nvfp4-experts-modelopt"), source("references/weighbridge/gemma-4-mini.yaml"))


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_nvfp4_is_two_codes_a_byte_and_scales_of_sixteen_under_one() -> None:
    assert modelopt.stored_tensors(PRESETS["NVFP4"], WEIGHT) == {
        "weight": Tensor("U8", (704, 1408)),
        "weight_scale": Tensor("F8_E4M3", (704, 176)),
        "weight_scale_2": SCALAR,
        "input_scale": SCALAR,
    }


def test_fp8_is_codes_under_one_scale() -> None:
    stored = modelopt.stored_tensors(PRESETS["FP8"], WEIGHT)
    assert stored == {"weight": Tensor("F8_E4M3", (704, 2816)), "weight_scale": SCALAR, "input_scale": SCALAR}


@pytest.mark.parametrize("name", modelopt.ALGORITHMS)
def test_the_weight_is_known_from_what_is_stored(name: str) -> None:
    scheme = modelopt.ALGORITHMS[name]
    assert modelopt.weight_of(scheme, modelopt.stored_tensors(scheme, WEIGHT)) == WEIGHT


@pytest.mark.parametrize(
    ("scheme", "shape", "rule"),
    [
        ("FP8_DYNAMIC", (64, 64), "scheme/format"),
        ("W4A16", (64, 128), "scheme/format"),
        ("NVFP4", (64, 24), "scheme/group-size"),
        ("NVFP4", (64,), "scheme/one-dimensional"),
        ("NVFP4", (2, 64, 64), "scheme/not-two-dimensional"),
    ],
)
def test_what_modelopt_cannot_store_is_refused_by_rule(scheme: str, shape: tuple[int, ...], rule: str) -> None:
    with pytest.raises(SchemeMismatch) as caught:
        modelopt.stored_tensors(PRESETS[scheme], Tensor("BF16", shape))
    assert caught.value.rule == rule


# --- what is declared -------------------------------------------------------------------------------------------------


def test_the_declaration_is_the_one_that_modelopt_writes(experts: Plan) -> None:
    wanted = {**WRITTEN["quantization_config"], "producer": {"name": "modelopt", "version": "weighbridge-0.1.0"}}
    assert json.dumps(experts.quantization) == json.dumps(wanted)


def test_the_document_beside_it_is_the_one_that_modelopt_writes(experts: Plan) -> None:
    wanted = {**WRITTEN["hf_quant_config"], "producer": {"name": "modelopt", "version": "weighbridge-0.1.0"}}
    assert experts.documents[modelopt.HF_QUANT_CONFIG].decode() == json.dumps(wanted, indent=4) + "\n"


def test_what_modelopt_declares_is_what_it_quantized(experts: Plan) -> None:
    declaration = read_declaration({"quantization_config": WRITTEN["quantization_config"]}, where="config.json")
    assert declaration is not None
    assert resolve(declaration, experts.predicted.modules, where="") == experts.schemes
    assert declaration.kv_cache == KV_CACHES["FP8"]


@pytest.mark.parametrize(
    "change",
    [
        {"ignore": "lm_head"},
        {"ignore": [1]},
        {"quant_algo": ["NVFP4"]},
        {"quant_algo": "../NVFP4"},
        {"kv_cache_scheme": {"num_bits": 4, "type": "float"}},
        {"kv_cache_scheme": "NVFP4"},
        {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": [4]}}}},
        {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4.0}}}},
    ],
    ids=json.dumps,
)
def test_a_malformed_declaration_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StructureError):
        read_declaration({"quantization_config": {**WRITTEN["quantization_config"], **change}}, where="config.json")


def test_an_algorithm_that_is_not_known_quantizes_nothing_here() -> None:
    config = {**WRITTEN["quantization_config"], "quant_algo": "W4A8_AWQ"}
    declaration = read_declaration({"quantization_config": config}, where="config.json")
    assert declaration is not None
    assert (declaration.format, declaration.groups) == ("W4A8_AWQ", ())


# --- what is left out -------------------------------------------------------------------------------------------------

PART = st.sampled_from(["model", "layers", "mlp", "experts", "self_attn", "vision", "0", "1", "10", "2"])
NAMES = st.lists(PART, min_size=1, max_size=5).map(".".join)


@given(st.sets(NAMES, max_size=12), st.sets(NAMES, max_size=12))
@example({"layers.1.mlp"}, {"layers.10.mlp"})
@example({"model.vision.0", "model.vision.1"}, {"model.mlp"})
def test_exclusions_name_every_kept_linear_and_no_quantized_one(kept: set[str], quantized: set[str]) -> None:
    kept = {name for name in kept - quantized if not any(other.startswith(f"{name}.") for other in quantized)}
    entries = modelopt.exclusions(kept, quantized)
    assert all(any(fnmatch.fnmatchcase(name, entry) for entry in entries) for name in kept)
    assert not any(fnmatch.fnmatchcase(name, entry) for name in quantized for entry in entries)


def test_a_whole_tower_is_one_entry() -> None:
    tower = [f"model.vision_tower.layers.{number}.q_proj.linear" for number in range(27)]
    assert modelopt.exclusions([*tower, "lm_head"], ["model.language_model.layers.0.mlp.up_proj"]) == [
        "lm_head",
        "model.vision_tower*",
    ]


@given(st.text("ab.*?[]!-^_", min_size=1, max_size=8), st.text("ab._-", min_size=1, max_size=10))
@example("layers.[0-3].*", "layers.2.a")
@example("[!a]", "b")
@example("[b-a]", "b")
@example("[]a]", "a")
@example("[a", "[a")
def test_an_entry_with_wildcards_means_what_fnmatch_means(entry: str, name: str) -> None:
    assume(any(character in entry for character in "*?["))
    matched = pattern_list((modelopt.expression_of(entry),)).first(name) is not None
    assert matched == fnmatch.fnmatchcase(name, entry)


@given(st.text("ab.", min_size=1, max_size=4), st.text("ab.", min_size=1, max_size=10))
def test_an_entry_without_wildcards_is_looked_for_anywhere_in_a_name(entry: str, name: str) -> None:
    assert (pattern_list((modelopt.expression_of(entry),)).first(name) is not None) == (entry in name)


# --- reciprocals ------------------------------------------------------------------------------------------------------


@given(st.floats(min_value=2.0**-100, max_value=2.0**100, width=32))
def test_where_a_reciprocal_does_not_lead_back_no_f32_does(value: float) -> None:
    one, wanted = np.float32(1), np.float32(value)
    written = np.float32(reciprocal(value))
    above = below = written
    for _ in range(4):
        above, below = np.nextafter(above, np.float32(np.inf)), np.nextafter(below, np.float32(0))
        assert one / written == wanted or (one / above != wanted and one / below != wanted)


def test_a_reciprocal_leads_back_for_five_values_in_six() -> None:
    values = np.random.default_rng(7).uniform(1, 2, 4000).astype(np.float32)
    exact = [np.float32(1) / np.float32(reciprocal(float(value))) == value for value in values]
    assert 0.80 < np.mean(exact) < 0.86
    assert all(exact[index] for index, value in enumerate(values) if value < 2**0.5)
