"""Static FP8 in the formats of modelopt and of compressed-tensors: the same codes and scales, both ways.

What modelopt itself exports is in tests/test_modelopt_oracle.py, its codes as floats in tests/test_source_codecs.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.published import WAYS, write
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
    names = {torch.float8_e4m3fn: "F8_E4M3", torch.float32: "F32", torch.bfloat16: "BF16"}
    return {
        local: Stored(Tensor(names[tensor.dtype], tuple(tensor.shape)), bytes(tensor.view(torch.uint8).numpy()))
        for local, tensor in tensors.items()
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_there_and_back_are_the_same_codes_and_the_same_scales(dtype: str) -> None:
    ours = module(dtype)
    there = rewritten(Rewrite(FP8, "compressed-tensors", modelopt.METHOD), ours).contents
    assert there["weight"] == ours["weight"].content
    for local in ("weight_scale", "input_scale"):
        theirs_as_f32 = there[local] if dtype == "float32" else there[local][2:]  # BF16 is the upper half
        assert theirs_as_f32 == ours[local].content
    stored = FORMATS[modelopt.METHOD].stored_tensors(FP8, Tensor("BF16", (8, 16)))
    theirs = {local: Stored(tensor, there[local]) for local, tensor in stored.items()}
    back = rewritten(Rewrite(FP8, modelopt.METHOD, "compressed-tensors"), theirs).contents
    assert back == there  # F32, of one element as before


def test_plan_of_a_conversion_keeps_the_scales_as_they_are(tmp_path: Path) -> None:
    source = write(WAYS["modelopt fp8"], tmp_path / "source")
    said = CONVERT.format(zeros="0" * 40, format="compressed-tensors", dequantize="'re:.*o_proj'")
    plan = make_plan(read_recipe(said.encode(), where="convert.yaml"), open_directory(source))
    scales = {str(tensor) for part in plan.parts for name, tensor in part.outputs.items() if name.endswith("_scale")}
    assert scales == {"F32 [1]"}
    assert {part.action for part in plan.parts} == {"keep", "rewrite", "dequantize"}
