"""Conversions: quantized checkpoints in another format, with modules dequantized, or with experts regrouped."""

from __future__ import annotations

import math
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.entrypoints.convert import ModelOptNvfp4Converter
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file

from tests.checkpoints import RawTensor, Tensors, copy_checkpoint, edit_config, edit_tensors, read_tensors
from tests.conftest import ROOT, Command, Once, run_script
from tests.planning import source
from weighbridge.checkpoint.model import open_directory
from weighbridge.formats.schemes import PRESETS, to_config
from weighbridge.formats.tensors import payload_bytes
from weighbridge.planning import make_plan
from weighbridge.recipe import load_recipe

RECIPE = """\
name: conversion
description: a conversion of a test
base: {{model: org/quantized, revision: "{zeros}", licence: apache-2.0}}
method: convert
{changes}
"""


def write_conversion(path: Path, changes: str) -> Path:
    path.write_text(RECIPE.format(zeros="0" * 40, changes=changes))
    return path


BIAS = RawTensor("F32", (4,), struct.pack("<4f", 1.5, -2.0, 0.1, 3e-9))

Convert = Callable[..., Path]
"""Converts a checkpoint as some lines of a recipe say, and gives the directory of the result."""


@pytest.fixture
def convert(tmp_path: Path, call_build: Command) -> Convert:
    def run(checkpoint: Path, changes: str, *options: str) -> Path:
        number = len(list(tmp_path.glob("conversion-*.yaml")))
        recipe = write_conversion(tmp_path / f"conversion-{number}.yaml", changes)
        output = tmp_path / f"converted-{number}"
        outcome = call_build(recipe, "--model", checkpoint, "--output", output, *options)
        assert outcome.code == 0, outcome.err + outcome.out
        return output

    return run


@pytest.fixture(scope="session")
def nvfp4(once: Once, mini: Path) -> Path:
    """The miniature in NVFP4 with input scales: its data-free weights, and scales as a calibration might give them."""

    def make(directory: Path) -> None:
        outcome = run_script("build.py", "nvfp4a16", "--model", "mini", "--output", directory / "build")
        assert outcome.code == 0, outcome.err + outcome.out
        edit_tensors(directory / "build", add_input_scales)
        edit_config(directory / "build", declare_nvfp4)

    return once("nvfp4", make) / "build"


def add_input_scales(tensors: Tensors) -> None:
    """An input scale for each module: the members of a fused group share theirs."""
    for name in [name for name in tensors if name.endswith(".weight_packed")]:
        parent, _, member = name.removesuffix(".weight_packed").rpartition(".")
        value = 100 + sum(map(ord, parent)) / 7 + (len(member) if member in ("o_proj", "down_proj") else 0)
        tensors[f"{parent}.{member}.input_global_scale"] = RawTensor("F32", (1,), struct.pack("<f", value))


def declare_nvfp4(config: dict[str, dict[str, object]]) -> None:
    config["quantization_config"]["config_groups"] = {"group_0": {"targets": ["Linear"], **to_config(PRESETS["NVFP4"])}}


def codes(tensors: Tensors) -> dict[str, bytes]:
    """Codes and block scales, whatever the format calls them."""
    return {
        name.replace(".weight_packed", ".weight"): tensor.data
        for name, tensor in tensors.items()
        if name.endswith((".weight_packed", ".weight", ".weight_scale"))
    }


def scales(tensors: Tensors) -> dict[str, float]:
    found = {name: tensor.data for name, tensor in tensors.items() if name.endswith("_global_scale")}
    return {name: struct.unpack("<f", data)[0] for name, data in found.items()}


# --- what the plan says -----------------------------------------------------------------------------------------------


def test_on_the_real_structure_exactly_the_attention_projections_become_bf16() -> None:
    plan = make_plan(load_recipe("nvfp4-mlp-modelopt"), source("references/RedHatAI/gemma-4-26B-A4B-it-NVFP4.yaml"))
    dequantized = [part for part in plan.parts if part.action == "dequantize"]
    assert len(dequantized) == 115
    assert {tensor.dtype for part in dequantized for tensor in part.outputs.values()} == {"BF16"}
    assert (len(plan.predicted.structure), len(plan.schemes)) == (47_648 - 3 * 115, 11_725 - 115)


@pytest.mark.parametrize(
    ("recipe", "tensors", "payload"),
    [("nvfp4", 47_648, 16_417_035_012), ("nvfp4-experts-modelopt", 47_033, 18_782_360_732)],
)
def test_on_the_real_structure_builds_are_as_large_as_the_published_ones(
    recipe: str, tensors: int, payload: int
) -> None:
    plan = make_plan(load_recipe(recipe), source("references/google/gemma-4-26B-A4B-it.yaml"))
    assert (len(plan.predicted.structure), payload_bytes(plan.predicted.structure)) == (tensors, payload)


# --- another format ---------------------------------------------------------------------------------------------------


@pytest.fixture
def modelopt(convert: Convert, nvfp4: Path) -> Path:
    return convert(nvfp4, "format: modelopt\nconvert: {}")


def test_modelopt_keeps_codes_and_block_scales_byte_for_byte(modelopt: Path, nvfp4: Path) -> None:
    assert codes(read_tensors(modelopt)) == codes(read_tensors(nvfp4))


def test_upstreams_converter_reads_what_was_written(modelopt: Path, nvfp4: Path) -> None:
    converted = ModelOptNvfp4Converter(targets=[r"re:.*(proj)$"], ignore=[r"re:.*(router|vision|embed).*"]).process(
        load_file(modelopt / "model.safetensors")
    )
    original = load_file(nvfp4 / "model.safetensors")
    assert converted.keys() == original.keys()
    for name, tensor in original.items():
        if not name.endswith("global_scale"):
            assert torch.equal(converted[name].view(torch.uint8), tensor.view(torch.uint8)), name
        else:
            assert math.isclose(converted[name].item(), tensor.item(), rel_tol=2**-23), name


def test_global_scales_come_back_exactly_but_for_those_that_are_named(
    convert: Convert, nvfp4: Path, tmp_path: Path, call_build: Command
) -> None:
    recipe = write_conversion(tmp_path / "to.yaml", "format: modelopt\nconvert: {}")
    outcome = call_build(recipe, "--model", nvfp4, "--output", tmp_path / "there", "--format", "json")
    (section,) = [section for section in outcome.report["sections"] if section["id"] == "global-scales"]
    inexact = {name for row in section["tables"][0]["rows"] for name in expand(row[0])}
    back = scales(read_tensors(convert(tmp_path / "there", "convert: {}")))
    before = scales(read_tensors(nvfp4))
    changed = {name for name, value in before.items() if back[name] != value}
    renamed = {
        name.replace("weight_global_scale", "weight_scale_2").replace("input_global_scale", "input_scale")
        for name in changed
    }
    assert renamed == inexact
    assert 0 < len(changed) < len(before) / 3


def expand(pattern: str) -> Iterator[str]:
    from weighbridge.text.names import parse_pattern

    yield from parse_pattern(pattern, where="report")


def test_there_and_back_is_the_checkpoint_it_was(convert: Convert, nvfp4: Path, modelopt: Path) -> None:
    back, before = open_directory(convert(modelopt, "convert: {}")), open_directory(nvfp4)
    assert (back.structure, back.schemes) == (before.structure, before.schemes)


def test_modelopts_own_document_is_written_and_not_carried_back(convert: Convert, modelopt: Path) -> None:
    back = convert(modelopt, "convert: {}")
    assert (modelopt / "hf_quant_config.json").is_file()
    assert not (back / "hf_quant_config.json").exists()


def test_every_other_file_is_the_sources(modelopt: Path, nvfp4: Path) -> None:
    for path in nvfp4.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in ("config.json", "README.md"):
            assert (modelopt / path.name).read_bytes() == path.read_bytes()


# --- dequantizing -----------------------------------------------------------------------------------------------------

SCHEMES = ("fp8-dynamic", "fp8-block", "w4a16", "nvfp4a16", "mxfp4")


@pytest.mark.parametrize("name", SCHEMES)
def test_a_dequantized_weight_is_what_upstream_decompresses_whole(
    name: str, convert: Convert, tmp_path: Path, call_build: Command
) -> None:
    call_build(name, "--model", "mini", "--output", tmp_path / "quantized")
    converted = convert(tmp_path / "quantized", "convert: {dequantize: ['re:.*layers.2.*']}")
    stored, restored = open_directory(tmp_path / "quantized"), read_tensors(converted)
    quantized = {name: tensor for shard in stored.shards for name, tensor in load(stored.directory, shard).items()}
    for module in [module for module in stored.schemes if ".layers.2." in module]:
        scheme = QuantizationScheme(targets=["Linear"], **to_config(stored.schemes[module]))
        compressor = BaseCompressor.get_value_from_registry(stored.schemes[module].format)
        state = {local: quantized[f"{module}.{local}"] for local in stored.modules[module]}
        wanted = compressor.decompress(state, scheme)["weight"].to(torch.bfloat16)
        assert restored[f"{module}.weight"].data == wanted.contiguous().view(torch.uint8).numpy().tobytes(), module


def load(directory: Path | None, shard: str) -> dict[str, torch.Tensor]:
    assert directory is not None
    return dict(load_file(directory / shard))


def test_dequantizing_everything_leaves_an_unquantized_checkpoint(convert: Convert, mini_build: Path) -> None:
    checkpoint = open_directory(convert(mini_build, "convert: {dequantize: ['re:.*']}"))
    assert checkpoint.declaration is None
    assert {tensor.dtype for tensor in checkpoint.structure.values()} == {"BF16"}


def test_what_is_left_of_a_partly_dequantized_checkpoint_is_declared_by_effect(
    convert: Convert, mini_build: Path
) -> None:
    checkpoint = open_directory(convert(mini_build, "convert: {dequantize: ['re:.*self_attn.*']}"))
    before = open_directory(mini_build)
    assert checkpoint.schemes == {
        module: scheme for module, scheme in before.schemes.items() if "self_attn" not in module
    }


# --- experts ----------------------------------------------------------------------------------------------------------


def test_experts_in_one_tensor_and_one_by_one_again_are_the_same_bytes(convert: Convert, mini_build: Path) -> None:
    fused = convert(mini_build, "convert: {experts: fused}")
    split = convert(fused, "convert: {experts: split}")
    assert read_tensors(split) == read_tensors(mini_build)
    assert open_directory(split).schemes == open_directory(mini_build).schemes


def test_fused_experts_are_gate_before_up_one_expert_after_the_other(convert: Convert, mini_build: Path) -> None:
    fused = read_tensors(convert(mini_build, "convert: {experts: fused}"))
    single = read_tensors(mini_build)
    prefix = "model.language_model.layers.3.experts"
    for parameter, suffix in (("weight", ""), ("weight_scale", ".weight_scale")):
        wanted = b"".join(
            single[f"{prefix}.{expert}.{member}.{parameter}"].data
            for expert in range(8)
            for member in ("gate_proj", "up_proj")
        )
        assert fused[f"{prefix}.gate_up_proj{suffix}"].data == wanted


def test_fused_experts_can_be_dequantized(convert: Convert, mini_build: Path) -> None:
    single = convert(mini_build, "convert: {dequantize: ['re:.*experts.*']}")
    fused = convert(convert(mini_build, "convert: {experts: fused}"), "convert: {dequantize: ['re:.*experts.*']}")
    name = "model.language_model.layers.0.experts"
    wanted = b"".join(read_tensors(single)[f"{name}.{expert}.down_proj.weight"].data for expert in range(8))
    assert read_tensors(fused)[f"{name}.down_proj"].data == wanted


def test_experts_that_were_dequantized_in_one_tensor_can_be_split(convert: Convert, mini_build: Path) -> None:
    everything = "convert: {dequantize: ['re:.*experts.*'], experts: "
    fused = convert(mini_build, f"{everything}fused}}")
    split = convert(fused, "convert: {experts: split}")
    assert read_tensors(split) == read_tensors(convert(mini_build, f"{everything}split}}"))


def test_what_is_no_matrix_of_an_expert_stays_beside_the_fused_ones(
    convert: Convert, mini_build: Path, tmp_path: Path
) -> None:
    biased = copy_checkpoint(mini_build, tmp_path / "biased")
    bias = {f"model.language_model.layers.3.experts.{expert}.down_proj.bias": BIAS for expert in range(8)}
    edit_tensors(biased, lambda tensors: tensors.update(bias))
    fused = read_tensors(convert(biased, "convert: {experts: fused}"))
    assert {name: fused.get(name) for name in bias} == bias
    assert "model.language_model.layers.3.experts.down_proj" in fused


def test_floats_of_the_source_keep_their_dtype(convert: Convert, mini_build: Path, tmp_path: Path) -> None:
    wide = copy_checkpoint(mini_build, tmp_path / "wide")
    edit_tensors(wide, lambda tensors: tensors.update({"model.language_model.layers.0.bias": BIAS}))
    assert (
        read_tensors(convert(wide, "convert: {dequantize: ['re:.*self_attn.*']}"))["model.language_model.layers.0.bias"]
        == BIAS
    )


def test_dequantized_weights_are_bf16_whatever_their_scales_are(
    convert: Convert, mini_build: Path, tmp_path: Path
) -> None:
    half = copy_checkpoint(mini_build, tmp_path / "half")
    scales = {name: tensor for name, tensor in read_tensors(half).items() if name.endswith(".weight_scale")}
    wider = {name: RawTensor("F32", tensor.shape, _as_f32(tensor.data)) for name, tensor in scales.items()}
    edit_tensors(half, lambda tensors: tensors.update(wider))
    changes = "convert: {dequantize: ['re:.*self_attn.*']}"
    assert {t.dtype for name, t in read_tensors(convert(half, changes)).items() if "self_attn.q_proj" in name} == {
        "BF16"
    }


def _as_f32(bf16: bytes) -> bytes:
    return (np.frombuffer(bf16, "<u2").astype("<u4") << 16).tobytes()


@pytest.mark.parametrize(("scheme", "scale"), [("nvfp4a16", "weight_global_scale"), ("fp8-block", "weight_scale")])
def test_scales_that_are_not_of_rows_have_no_place_in_fused_experts(
    scheme: str, scale: str, tmp_path: Path, call_build: Command
) -> None:
    assert call_build(scheme, "--model", "mini", "--output", tmp_path / "quantized").code == 0
    recipe = write_conversion(tmp_path / "fused.yaml", "convert: {experts: fused}")
    outcome = call_build(recipe, "--model", tmp_path / "quantized", "--output", tmp_path / "fused")
    assert outcome.code == 1
    assert f"have no place for {scale}" in " ".join(outcome.out.split())


def test_a_module_that_its_source_keeps_is_kept_by_its_source_though_dequantize_names_it(
    mini_build: Path, tmp_path: Path
) -> None:
    recipe = write_conversion(tmp_path / "all.yaml", "convert: {dequantize: ['re:.*']}")
    plan = make_plan(load_recipe(str(recipe)), open_directory(mini_build))
    decided = {part.decision.said for part in plan.parts if part.module.endswith("router.proj")}
    assert decided == {"kept as the source stores it"}


# --- the same bytes, bounded memory, resumed ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [("--workers", "1"), ("--workers", "4"), ("--memory", "4GiB")], ids=" ".join)
def test_bytes_do_not_depend_on_resources(options: tuple[str, ...], convert: Convert, nvfp4: Path) -> None:
    changes = "format: modelopt\nconvert: {dequantize: ['re:.*self_attn.*']}"
    one, other = convert(nvfp4, changes), convert(nvfp4, changes, *options)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_a_killed_conversion_goes_on_where_it_was(
    tmp_path: Path, convert: Convert, nvfp4: Path, call_build: Command
) -> None:
    changes = "format: modelopt\nconvert: {dequantize: ['re:.*self_attn.*']}"
    recipe = write_conversion(tmp_path / "killed.yaml", changes)
    output = tmp_path / "killed"
    command = [sys.executable, str(ROOT / "build.py"), recipe, "--model", nvfp4, "--output", output, "--workers", "1"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(path.stat().st_size for path in tmp_path.glob(".killed.*/journal.jsonl")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    outcome = call_build(recipe, "--model", nvfp4, "--output", output, "--force")
    assert outcome.code == 0, outcome.err
    undisturbed = convert(nvfp4, changes)
    assert (output / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()


# --- what cannot be converted -----------------------------------------------------------------------------------------

SCALE = "model.language_model.layers.1.mlp.up_proj.input_global_scale"


def set_scale(value: float) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensors[SCALE] = replace(tensors[SCALE], data=struct.pack("<f", value))

    return change


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_a_scale_without_a_reciprocal_is_refused_by_name(
    value: float, nvfp4: Path, tmp_path: Path, call_build: Command
) -> None:
    damaged = copy_checkpoint(nvfp4, tmp_path / "damaged")
    edit_tensors(damaged, set_scale(value))
    recipe = write_conversion(tmp_path / "recipe.yaml", "format: modelopt\nconvert: {}")
    outcome = call_build(recipe, "--model", damaged, "--output", tmp_path / "out")
    assert outcome.code == 2
    assert SCALE in outcome.err
    assert not (tmp_path / "out").exists()


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def test_a_source_that_contradicts_itself_is_refused(nvfp4: Path, tmp_path: Path, call_build: Command) -> None:
    damaged = copy_checkpoint(nvfp4, tmp_path / "damaged")
    edit_tensors(damaged, drop(SCALE))
    recipe = write_conversion(tmp_path / "recipe.yaml", "format: modelopt\nconvert: {}")
    outcome = call_build(recipe, "--model", damaged, "--output", tmp_path / "out")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"contradicts itself: {SCALE} missing" in outcome.err


def test_a_source_that_is_not_quantized_is_refused(mini: Path, tmp_path: Path, call_build: Command) -> None:
    recipe = write_conversion(tmp_path / "recipe.yaml", "convert: {experts: fused}")
    outcome = call_build(recipe, "--model", mini, "--output", tmp_path / "out")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "is not quantized, and a conversion starts from what is" in outcome.err


def test_scales_of_the_cache_are_kept_in_their_format_and_not_converted_to_another(
    nvfp4: Path, tmp_path: Path, call_build: Command
) -> None:
    cached = copy_checkpoint(nvfp4, tmp_path / "cached")
    edit_tensors(cached, add_cache_scales)
    edit_config(cached, lambda config: config["quantization_config"].update(kv_cache_scheme=FP8_CACHE))
    for form, code in (("modelopt", 2), ("compressed-tensors", 0)):
        changes = f"format: {form}\nconvert: {{dequantize: ['re:.*o_proj']}}"
        recipe = write_conversion(tmp_path / f"{form}.yaml", changes)
        outcome = call_build(recipe, "--model", cached, "--plan")
        assert outcome.code == code, outcome.err
        assert ("scales of the KV cache are not converted" in outcome.err) == (code == 2)


FP8_CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}


def add_cache_scales(tensors: Tensors) -> None:
    of_text = [name for name in tensors if "language_model" in name and ".q_proj." in name]
    for parent in {name.rpartition(".q_proj.")[0] for name in of_text}:
        for local in ("k_scale", "v_scale"):
            tensors[f"{parent}.{local}"] = RawTensor("F32", (1,), struct.pack("<f", 1.0))


def test_experts_that_are_not_all_there_cannot_be_one_tensor(
    mini_build: Path, tmp_path: Path, call_build: Command
) -> None:
    damaged = copy_checkpoint(mini_build, tmp_path / "damaged")

    def lose_an_expert(tensors: Tensors) -> None:
        for name in [name for name in tensors if "layers.3.experts.5." in name]:
            del tensors[name]

    edit_tensors(damaged, lose_an_expert)
    recipe = write_conversion(tmp_path / "recipe.yaml", "convert: {experts: fused}")
    outcome = call_build(recipe, "--model", damaged, "--output", tmp_path / "out")
    assert outcome.code == 2
    assert "the experts of model.language_model.layers.3.experts are not all there" in outcome.err


SAYS = {
    "no changes named": ("", "method: convert says under convert what is changed"),
    "a scheme": ("scheme: NVFP4\nconvert: {}", "method: convert knows no scheme"),
    "an ignore list": ("ignore: [lm_head]\nconvert: {}", "method: convert knows no ignore"),
    "an unknown key": ("convert: {dequantise: []}", "did you mean 'dequantize'?"),
    "a pattern that does not compile": ("convert: {dequantize: ['re:*']}", "did you mean 're:.*'?"),
    "an unknown layout": ("convert: {experts: merged}", "convert.experts"),
}


@pytest.mark.parametrize(("changes", "sentence"), SAYS.values(), ids=SAYS)
def test_a_recipe_that_says_something_else_is_refused(
    changes: str, sentence: str, mini_build: Path, tmp_path: Path, call_build: Command
) -> None:
    recipe = write_conversion(tmp_path / "recipe.yaml", changes)
    outcome = call_build(recipe, "--model", mini_build, "--plan")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert sentence in outcome.err
