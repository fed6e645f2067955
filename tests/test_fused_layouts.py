"""Experts that families store in one tensor, transposed or interleaved: quantized as if they lay one by one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import RawTensor, Tensors, edit_tensors, read_tensors, write_tensors
from tests.conftest import Command
from weighbridge.checkpoint.model import open_directory
from weighbridge.planning import make_plan
from weighbridge.recipe import load_recipe

EXPERTS, HIDDEN, INNER, LAYERS = 3, 64, 96, 2
Array = np.ndarray[Any, Any]

RECIPE = """\
name: fused
description: Experts of a test.
base: {{model: org/experts, revision: "{zeros}", licence: apache-2.0}}
method: model_free_ptq
scheme: {scheme}
ignore: ["re:.*norm.*"{more}]
fused_groups: [[gate_proj, up_proj]]
"""


def _turned(parts: Mapping[str, Array]) -> dict[str, Array]:
    """Llama 4, Qwen3-VL-MoE: [E, in, out], the gate in the first half of the columns."""
    gate_up = np.concatenate([parts["gate_proj"], parts["up_proj"]], axis=1)
    return {"gate_up_proj": gate_up.swapaxes(1, 2), "down_proj": parts["down_proj"].swapaxes(1, 2)}


def _interleaved(parts: Mapping[str, Array]) -> dict[str, Array]:
    """gpt-oss: [E, in, out], gate and up column by column."""
    gate_up = np.stack([parts["gate_proj"], parts["up_proj"]], axis=2).reshape(EXPERTS, 2 * INNER, HIDDEN)
    return {"gate_up_proj": gate_up.swapaxes(1, 2), "down_proj": parts["down_proj"].swapaxes(1, 2)}


def _input_linear(parts: Mapping[str, Array]) -> dict[str, Array]:
    """Granite: [E, out, in] under names of its own."""
    gate_up = np.concatenate([parts["gate_proj"], parts["up_proj"]], axis=1)
    return {"input_linear.weight": gate_up, "output_linear.weight": parts["down_proj"]}


def _three(parts: Mapping[str, Array]) -> dict[str, Array]:
    """Step 3: one tensor for each of the three."""
    return {f"{member}.weight": array for member, array in parts.items()}


# architecture -> what holds the fused tensors, what holds the experts one by one, and how they lie
LAYOUTS: dict[str, tuple[str, str, Any]] = {
    "Llama4ForCausalLM": ("feed_forward.experts", "feed_forward.experts", _turned),
    "Qwen3VLMoeForConditionalGeneration": ("mlp.experts", "mlp.experts", _turned),
    "GptOssForCausalLM": ("mlp.experts", "mlp.experts", _interleaved),
    "GraniteMoeHybridForCausalLM": ("block_sparse_moe", "block_sparse_moe.experts", _input_linear),
    "Step3p5ForCausalLM": ("moe", "moe.experts", _three),
}


def _bf16(array: Array) -> RawTensor:
    bits = (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype("<u2")
    return RawTensor("BF16", tuple(array.shape), bits.tobytes())


def _write(directory: Path, architecture: str, tensors: Tensors) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"architectures": [architecture], "hidden_size": HIDDEN}))
    write_tensors(directory, tensors)
    return directory


def pair(directory: Path, architecture: str) -> tuple[Path, Path]:
    """The same model with fused experts as the family has them, and with experts one by one."""
    fused_in, single_in, lay = LAYOUTS[architecture]
    random = np.random.default_rng(7)
    fused: Tensors = {"model.norm.weight": _bf16(random.standard_normal(HIDDEN))}
    single: Tensors = dict(fused)
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        query = _bf16(random.standard_normal((HIDDEN, HIDDEN)))
        parts = {
            "gate_proj": random.standard_normal((EXPERTS, INNER, HIDDEN)),
            "up_proj": random.standard_normal((EXPERTS, INNER, HIDDEN)),
            "down_proj": random.standard_normal((EXPERTS, HIDDEN, INNER)),
        }
        fused |= {f"{start}{fused_in}.{name}": _bf16(array) for name, array in lay(parts).items()}
        for member, array in parts.items():
            for expert in range(EXPERTS):
                single[f"{start}{single_in}.{expert}.{member}.weight"] = _bf16(array[expert])
        for side in (fused, single):
            side[f"{start}self_attn.q_proj.weight"] = query
        if architecture == "GptOssForCausalLM":
            biases = {
                "gate_proj": random.standard_normal((EXPERTS, INNER)),
                "up_proj": random.standard_normal((EXPERTS, INNER)),
            }
            both = np.stack([biases["gate_proj"], biases["up_proj"]], axis=2).reshape(EXPERTS, 2 * INNER)
            fused[f"{start}{fused_in}.gate_up_proj_bias"] = _bf16(both)
            for member, array in biases.items():
                for expert in range(EXPERTS):
                    single[f"{start}{single_in}.{expert}.{member}.bias"] = _bf16(array[expert])
    return _write(directory / "fused", architecture, fused), _write(directory / "single", architecture, single)


def recipe(path: Path, scheme: str, more: str = "") -> Path:
    path.write_text(RECIPE.format(zeros="0" * 40, scheme=scheme, more=more))
    return path


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "NVFP4A16"])
@pytest.mark.parametrize("architecture", LAYOUTS)
def test_fused_experts_become_what_the_same_experts_become_one_by_one(
    architecture: str, scheme: str, tmp_path: Path, call_build: Command
) -> None:
    fused, single = pair(tmp_path, architecture)
    path = recipe(tmp_path / "recipe.yaml", scheme)
    for source in (fused, single):
        outcome = call_build(path, "--model", source, "--output", tmp_path / f"{source.name}-build", "--audit")
        assert outcome.code == 0, outcome.err + outcome.out
        assert "it derives exactly from the base" in " ".join(outcome.out.split())
    assert read_tensors(tmp_path / "fused-build") == read_tensors(tmp_path / "single-build")


@pytest.mark.parametrize("architecture", LAYOUTS)
def test_fused_experts_that_are_kept_are_copied_one_by_one(
    architecture: str, tmp_path: Path, call_build: Command
) -> None:
    fused, single = pair(tmp_path, architecture)
    path = recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC", ', "re:.*experts.*"')
    grouped = "fused_groups: [[gate_proj, up_proj]]"
    path.write_text(path.read_text().replace(grouped, "allow: [coverage/low because a test wants experts kept]"))
    for source in (fused, single):
        outcome = call_build(path, "--model", source, "--output", tmp_path / f"{source.name}-build", "--audit")
        assert outcome.code == 0, outcome.err + outcome.out
    assert read_tensors(tmp_path / "fused-build") == read_tensors(tmp_path / "single-build")


@pytest.mark.parametrize("architecture", LAYOUTS)
def test_one_element_of_experts_that_are_kept_is_found_however_they_lie(
    architecture: str, tmp_path: Path, call_validate: Command
) -> None:
    fused, single = pair(tmp_path, architecture)
    parameters = sum(math.prod(tensor.shape) for tensor in read_tensors(single).values())
    same = call_validate(single, "--source", fused, "--format", "json")
    assert same.report["metrics"]["elements_checked_count"] == parameters
    name = next(name for name in read_tensors(single) if name.endswith("up_proj.weight"))

    def alter(tensors: Tensors) -> None:
        tensors[name] = replace(tensors[name], data=tensors[name].data[:-1] + b"\x41")

    edit_tensors(single, alter)
    judged = call_validate(single, "--source", fused)
    assert judged.code == 1, judged.err
    assert name in judged.out


@pytest.mark.parametrize(
    "architecture", [name for name, (_, _, lay) in LAYOUTS.items() if lay in (_turned, _interleaved)]
)
def test_experts_of_a_family_that_lie_upright_are_taken_as_they_lie(architecture: str, tmp_path: Path) -> None:
    """transformers may save [E, out, in] where the published file has [E, in, out]: shapes decide where they can."""
    fused, _ = pair(tmp_path, architecture)
    upright = {
        name: RawTensor(t.dtype, (t.shape[0], t.shape[2], t.shape[1]), t.data) if len(t.shape) == 3 else t
        for name, t in read_tensors(fused).items()
    }
    write_tensors(fused, upright)
    plan = make_plan(load_recipe(str(recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC"))), open_directory(fused))
    assert not any(part.place.transposed for part in plan.parts)
    shapes = {
        part.module.rpartition(".")[2]: part.weight.shape
        for part in plan.parts
        if part.place.expert == 0 and part.scheme
    }
    assert shapes == {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}


def test_strips_of_transposed_experts_are_cut_as_others_are(
    tmp_path: Path, call_build: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weighbridge.work.pieces.PIECE_BYTES", 4096)
    fused, single = pair(tmp_path, "GptOssForCausalLM")
    path = recipe(tmp_path / "recipe.yaml", "NVFP4A16")
    for source in (fused, single):
        outcome = call_build(path, "--model", source, "--output", tmp_path / f"{source.name}-build", "--audit")
        assert outcome.code == 0, outcome.err + outcome.out
    assert read_tensors(tmp_path / "fused-build") == read_tensors(tmp_path / "single-build")
