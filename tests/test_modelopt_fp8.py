"""Static FP8 in the formats of modelopt and of compressed-tensors: the same codes and scales, both ways and as floats.

What modelopt itself exports is in tests/test_modelopt_oracle.py.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from tests.checkpoints import RawTensor, read_tensors
from tests.conftest import Command
from tests.test_source_codecs import _linears, _raw, _torch, _write, floats, recipe
from weighbridge.checkpoint.model import open_directory
from weighbridge.engines.rewriting import Rewrite, Stored, rewritten
from weighbridge.formats import FORMATS, modelopt
from weighbridge.formats.schemes import PRESETS
from weighbridge.formats.tensors import Tensor
from weighbridge.planning import make_plan
from weighbridge.recipe import read_recipe

FP8 = PRESETS["FP8"]
CONVERT = """\
name: other-format
description: Static FP8 in the other format.
base: {{model: org/published, revision: "{zeros}", licence: apache-2.0}}
method: convert
format: {format}
convert: {{dequantize: [{dequantize}]}}
"""


def module(dtype: str) -> dict[str, Stored]:
    """A module of 8 rows, in compressed-tensors' form, its scales of a dtype."""
    weight = torch.linspace(-3, 3, 8 * 16).reshape(8, 16)
    scale = (weight.abs().max() / 448).to(getattr(torch, dtype))
    codes = (weight / scale.float()).to(torch.float8_e4m3fn)
    tensors = {"weight": codes, "weight_scale": scale.reshape(1), "input_scale": torch.tensor([0.25]).to(scale.dtype)}
    return {local: Stored(Tensor(_raw(t).dtype, tuple(t.shape)), _raw(t).data) for local, t in tensors.items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_there_and_back_are_the_same_codes_and_the_same_scales(dtype: str) -> None:
    ours = module(dtype)
    there = rewritten(Rewrite(FP8, "compressed-tensors", modelopt.METHOD), ours).contents
    assert there["weight"] == ours["weight"].content
    numbers = {local: struct.unpack("<f", there[local])[0] for local in ("weight_scale", "input_scale")}
    assert numbers == {local: float(_value(ours[local])) for local in numbers}
    stored = FORMATS[modelopt.METHOD].stored_tensors(FP8, Tensor("BF16", (8, 16)))
    theirs = {local: Stored(tensor, there[local]) for local, tensor in stored.items()}
    back = rewritten(Rewrite(FP8, modelopt.METHOD, "compressed-tensors"), theirs).contents
    assert back == there  # F32, of one element as before


def _value(item: Stored) -> torch.Tensor:
    return _torch(RawTensor(item.tensor.dtype, item.tensor.shape, item.content))[0]


def test_modelopts_static_fp8_as_floats_is_codes_times_scale() -> None:
    ours = module("float32")
    there = rewritten(Rewrite(FP8, "compressed-tensors", modelopt.METHOD), ours).contents
    stored = FORMATS[modelopt.METHOD].stored_tensors(FP8, Tensor("BF16", (8, 16)))
    theirs = {local: Stored(tensor, there[local]) for local, tensor in stored.items()}
    loose = rewritten(Rewrite(FP8, modelopt.METHOD, None), theirs).contents["weight"]
    codes = _torch(RawTensor("F8_E4M3", (8, 16), ours["weight"].content)).float()
    assert loose == _raw((codes * _value(ours["weight_scale"])).to(torch.bfloat16)).data


def modelopt_source(directory: Path) -> tuple[Path, Path]:
    """A checkpoint as modelopt exports static FP8, and the same as BF16."""
    tensors, loose = floats(), floats()
    for name in _linears(tensors):
        weight = _torch(tensors[f"{name}.weight"]).float()
        scale = weight.abs().max() / 448
        codes = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}.weight"] = _raw(codes)
        tensors[f"{name}.weight_scale"] = RawTensor("F32", (), struct.pack("<f", float(scale)))
        tensors[f"{name}.input_scale"] = RawTensor("F32", (), struct.pack("<f", 0.5))
        loose[f"{name}.weight"] = _raw((codes.float() * scale).to(torch.bfloat16))
    kept = ["lm_head", *(f"model.layers.{layer}.mlp.gate" for layer in range(2))]
    config = modelopt.quantization_config("FP8", kept, kv_cache=None, producer="modelopt-0.47.0")
    return (
        _write(directory / "source", tensors, quantization_config=config),
        _write(directory / "floats", loose),
    )


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "NVFP4A16"])
def test_modelopts_static_fp8_is_a_source_like_others(scheme: str, tmp_path: Path, call_build: Command) -> None:
    source, loose = modelopt_source(tmp_path)
    path = recipe(tmp_path / "recipe.yaml", scheme)
    again = call_build(path, "--model", source, "--output", tmp_path / "again", "--audit")
    assert again.code == 0, again.err + again.out
    path.write_text(path.read_text().replace("allow: [source/quantized because a test wants to]\n", ""))
    assert call_build(path, "--model", loose, "--output", tmp_path / "twin").code == 0
    assert read_tensors(tmp_path / "again") == read_tensors(tmp_path / "twin")


def test_plan_of_a_conversion_keeps_the_scales_as_they_are(tmp_path: Path) -> None:
    source, _ = modelopt_source(tmp_path)
    said = CONVERT.format(zeros="0" * 40, format="compressed-tensors", dequantize="'re:.*o_proj'")
    plan = make_plan(read_recipe(said.encode(), where="convert.yaml"), open_directory(source))
    scales = {str(tensor) for part in plan.parts for name, tensor in part.outputs.items() if name.endswith("_scale")}
    assert scales == {"F32 [1]"}
    assert {part.action for part in plan.parts} == {"keep", "rewrite", "dequantize"}
