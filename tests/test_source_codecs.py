"""Sources that are published quantized: decoded and quantized anew piece by piece, with the bytes of two steps.

The two steps are upstream's dequantizer, which makes a BF16 checkpoint, and a build from that.
"""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.entrypoints.convert import CompressedTensorsDequantizer, FP8BlockDequantizer

from tests.checkpoints import (
    RawTensor,
    Tensors,
    copy_checkpoint,
    edit_config,
    edit_tensors,
    read_tensors,
    write_tensors,
)
from tests.conftest import Command, Once, environment
from weighbridge.checkpoint.model import open_directory
from weighbridge.planning import make_plan
from weighbridge.recipe import load_recipe

HIDDEN, INNER, EXPERTS, LAYERS = 256, 384, 2, 2
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": LAYERS,
    "tie_word_embeddings": False,
}
RECIPE = """\
name: again
description: A source that is quantized already, in another scheme.
base: {{model: org/published, revision: "{zeros}", licence: apache-2.0}}
method: model_free_ptq
{scheme}
ignore: [lm_head, "re:.*embed.*", "re:.*gate$", "re:.*norm.*"{more}]
fused_groups: [[q_proj, k_proj, v_proj], [gate_proj, up_proj]]
allow: [source/quantized because a test wants to]
"""
ALLOWED = "allow: [source/quantized because a test wants to]\n"
GROUPS = """\
config_groups:
  group_0:
    targets: [Linear]
    weights: {num_bits: 4, type: int, symmetric: true, strategy: group, group_size: 32}"""
SCHEMES = {
    "FP8_DYNAMIC": "scheme: FP8_DYNAMIC",
    "FP8_BLOCK": "scheme: FP8_BLOCK",
    "W4A16": GROUPS,
    "NVFP4A16": "scheme: NVFP4A16",
    "MXFP4": "scheme: MXFP4",
}


def recipe(path: Path, scheme: str, more: str = "") -> Path:
    path.write_text(RECIPE.format(zeros="0" * 40, scheme=SCHEMES[scheme], more=more))
    return path


def _bf16(random: np.random.Generator, *shape: int) -> RawTensor:
    values = (random.standard_normal(shape, np.float32) * 0.05).view(np.uint32) >> 16
    return RawTensor("BF16", shape, values.astype("<u2").tobytes())


def floats() -> Tensors:
    """A small Qwen3-MoE of BF16."""
    random = np.random.default_rng(11)
    tensors: Tensors = {
        "model.embed_tokens.weight": _bf16(random, 128, HIDDEN),
        "lm_head.weight": _bf16(random, 128, HIDDEN),
        "model.norm.weight": _bf16(random, HIDDEN),
    }
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        for name, rows in {"q_proj": HIDDEN, "k_proj": 128, "v_proj": 128, "o_proj": HIDDEN}.items():
            tensors[f"{start}self_attn.{name}.weight"] = _bf16(random, rows, HIDDEN)
        tensors[f"{start}mlp.gate.weight"] = _bf16(random, EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            for name, shape in {
                "gate_proj": (INNER, HIDDEN),
                "up_proj": (INNER, HIDDEN),
                "down_proj": (HIDDEN, INNER),
            }.items():
                tensors[f"{start}mlp.experts.{expert}.{name}.weight"] = _bf16(random, *shape)
    return tensors


def _write(directory: Path, tensors: Tensors, **config: Any) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    write_tensors(directory, tensors)
    return directory


def _torch(tensor: RawTensor) -> torch.Tensor:
    kinds = {"F8_E4M3": torch.float8_e4m3fn, "F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8}
    kinds |= {"I32": torch.int32, "I64": torch.int64}
    return torch.frombuffer(bytearray(tensor.data), dtype=torch.uint8).view(kinds[tensor.dtype]).reshape(tensor.shape)


def _raw(tensor: torch.Tensor) -> RawTensor:
    names = {torch.float8_e4m3fn: "F8_E4M3", torch.float32: "F32", torch.bfloat16: "BF16"}
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return RawTensor(names[tensor.dtype], tuple(tensor.shape), content)


def _linears(tensors: Tensors) -> list[str]:
    return [name.removesuffix(".weight") for name in tensors if name.endswith("_proj.weight")]


def _blocks(dtype: torch.dtype) -> Callable[[Path], tuple[Path, Path]]:
    """DeepSeek's, Qwen's and MiniMax's FP8: codes with a scale for each block of 128 by 128."""

    def make(directory: Path) -> tuple[Path, Path]:
        tensors = floats()
        for module in _linears(tensors):
            weight = _torch(tensors[f"{module}.weight"]).float()
            rows, columns = weight.shape
            tiles = weight.reshape(rows // 128, 128, columns // 128, 128).permute(0, 2, 1, 3)
            scale = (tiles.abs().amax((2, 3)) / 448).to(dtype)
            codes = (tiles / scale.float()[:, :, None, None]).to(torch.float8_e4m3fn)
            tensors[f"{module}.weight"] = _raw(codes.permute(0, 2, 1, 3).reshape(rows, columns))
            tensors[f"{module}.weight_scale_inv"] = _raw(scale)
        declared = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
        source = _write(directory / "source", tensors, quantization_config=declared)
        converter = FP8BlockDequantizer(targets=[r"re:.*_proj$"], weight_block_size=(128, 128))
        loose = converter.process({name: _torch(tensor) for name, tensor in tensors.items()})
        return source, _write(directory / "floats", {name: _raw(tensor) for name, tensor in loose.items()})

    return make


def _whole(directory: Path) -> tuple[Path, Path]:
    """FP8 under one scale a tensor, with static scales of activations, as Ministral is published."""
    tensors, loose = floats(), floats()
    for module in _linears(tensors):
        weight = _torch(tensors[f"{module}.weight"]).float()
        scale = weight.abs().max() / 448
        codes = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{module}.weight"] = _raw(codes)
        tensors[f"{module}.weight_scale"] = RawTensor("F32", (), struct.pack("<f", float(scale)))
        tensors[f"{module}.input_scale"] = RawTensor("F32", (), struct.pack("<f", 0.5))
        loose[f"{module}.weight"] = _raw((codes.float() * scale).to(torch.bfloat16))
    declared = {"quant_method": "fp8", "activation_scheme": "static"}
    return _write(directory / "source", tensors, quantization_config=declared), _write(directory / "floats", loose)


def _built(scheme: str) -> Callable[[Path, Command], tuple[Path, Path]]:
    """A build of this project as a source; and what upstream's dequantizer makes of it."""

    def make(directory: Path, call_build: Command) -> tuple[Path, Path]:
        base = _write(directory / "base", floats())
        first = recipe(directory / "first.yaml", scheme)
        first.write_text(first.read_text().replace(ALLOWED, ""))
        assert call_build(first, "--model", base, "--output", directory / "built").code == 0
        tensors = {name: _torch(tensor) for name, tensor in read_tensors(directory / "built").items()}
        loose = CompressedTensorsDequantizer(str(directory / "built")).process(tensors)
        return directory / "built", _write(directory / "floats", {name: _raw(item) for name, item in loose.items()})

    return make


CODECS: dict[str, Any] = {
    "fp8 in blocks, scales F32": _blocks(torch.float32),
    "fp8 in blocks, scales BF16": _blocks(torch.bfloat16),
    "fp8 of whole tensors": _whole,
    "compressed-tensors FP8 by row": _built("FP8_DYNAMIC"),
    "compressed-tensors FP8 in blocks": _built("FP8_BLOCK"),
    "compressed-tensors INT4 in groups": _built("W4A16"),
    "compressed-tensors NVFP4": _built("NVFP4A16"),
    "compressed-tensors MXFP4": _built("MXFP4"),
}


@pytest.fixture
def sources(once: Once, call_build: Command) -> Callable[[str], tuple[Path, Path]]:
    """A quantized source by the name of its codec, and the same as BF16."""

    def made(codec: str) -> tuple[Path, Path]:
        def make(directory: Path) -> None:
            maker = CODECS[codec]
            pair = maker(directory) if codec.startswith("fp8") else maker(directory, call_build)
            (directory / "pair.json").write_text(json.dumps([path.name for path in pair]))

        directory = once(f"codec-{codec.replace(' ', '-').replace(',', '')}", make)
        source, loose = json.loads((directory / "pair.json").read_text())
        return directory / source, directory / loose

    return made


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("codec", CODECS)
def test_build_of_a_quantized_source_is_that_of_its_dequantized_twin_and_derives_exactly(
    codec: str, scheme: str, sources: Callable[[str], tuple[Path, Path]], tmp_path: Path, call_build: Command
) -> None:
    source, loose = sources(codec)
    path = recipe(tmp_path / "recipe.yaml", scheme)
    again = call_build(path, "--model", source, "--output", tmp_path / "again", "--audit")
    assert again.code == 0, again.err + again.out
    assert "derives exactly from the base, which its publisher had quantized" in " ".join(again.out.split())
    text = path.read_text().replace(ALLOWED, "")
    path.write_text(text)
    twin = call_build(path, "--model", loose, "--output", tmp_path / "twin")
    assert twin.code == 0, twin.err + twin.out
    assert read_tensors(tmp_path / "again") == read_tensors(tmp_path / "twin")


def test_what_a_recipe_keeps_of_a_quantized_source_is_bf16(
    sources: Callable[[str], tuple[Path, Path]], tmp_path: Path, call_build: Command
) -> None:
    source, loose = sources("fp8 in blocks, scales F32")
    path = recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC", ', "re:.*self_attn.*"')
    outcome = call_build(path, "--model", source, "--output", tmp_path / "build", "--audit")
    assert outcome.code == 0, outcome.err + outcome.out
    kept = {name: tensor for name, tensor in read_tensors(loose).items() if "self_attn" in name}
    built = read_tensors(tmp_path / "build")
    assert {name: built[name] for name in kept} == kept


def test_a_change_of_one_code_of_the_source_is_seen_by_the_audit(
    sources: Callable[[str], tuple[Path, Path]], tmp_path: Path, call_build: Command, call_validate: Command
) -> None:
    source, _ = sources("fp8 in blocks, scales F32")
    path = recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC")
    assert call_build(path, "--model", source, "--output", tmp_path / "build").code == 0
    other = copy_checkpoint(source, tmp_path / "other")

    def alter(tensors: Tensors) -> None:
        name = "model.layers.1.mlp.experts.1.down_proj.weight"
        codes = bytearray(tensors[name].data)
        codes[5000] ^= 0x10  # by a factor of two
        tensors[name] = RawTensor("F8_E4M3", tensors[name].shape, bytes(codes))

    edit_tensors(other, alter)
    assert call_validate(tmp_path / "build", "--source", source, "--recipe", path).code == 0
    judged = call_validate(tmp_path / "build", "--source", other, "--recipe", path)
    assert judged.code == 1
    assert "model.layers.1.mlp.experts.1.down_proj" in judged.out


def test_evidence_of_such_a_build_holds_and_it_is_built_again_with_the_same_bytes(
    sources: Callable[[str], tuple[Path, Path]], tmp_path: Path, call_build: Command, call_validate: Command
) -> None:
    source, _ = sources("fp8 of whole tensors")
    path = recipe(tmp_path / "recipe.yaml", "NVFP4A16")
    assert call_build(path, "--model", source, "--output", tmp_path / "build").code == 0
    assert call_validate(tmp_path / "build", "--evidence", "--source", source).code == 0
    command = [sys.executable, "-m", "weighbridge", "reproduce", str(tmp_path / "build"), "--model", str(source)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


STOPPED = """
import os, signal, sys
from weighbridge.cli import build
from weighbridge.engines.streaming import journal, pieces

pieces.PIECE_BYTES = 65536
add, left = journal.Journal.add, int(sys.argv.pop(1))

def add_and_stop(self, done):
    global left
    add(self, done)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

journal.Journal.add = add_and_stop
sys.exit(build.main(sys.argv[1:]))
"""


def test_a_killed_build_of_a_quantized_source_ends_with_the_same_bytes(
    sources: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    source, _ = sources("fp8 in blocks, scales F32")
    path = recipe(tmp_path / "recipe.yaml", "NVFP4A16")

    def run(output: str, pieces: int) -> int:
        command = [sys.executable, "-c", STOPPED, str(pieces), str(path), "--model", str(source), "--workers", "1"]
        return subprocess.run([*command, "--output", str(tmp_path / output)], env=environment(), check=False).returncode

    assert run("undisturbed", 10_000) == 0
    assert run("killed", 3) == -signal.SIGKILL
    assert run("killed", 10_000) == 0
    assert read_tensors(tmp_path / "killed") == read_tensors(tmp_path / "undisturbed")


# --- what is refused


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_scale_that_means_nothing_is_refused_by_name(
    value: float, sources: Callable[[str], tuple[Path, Path]], tmp_path: Path, call_build: Command
) -> None:
    source = copy_checkpoint(sources("fp8 in blocks, scales F32")[0], tmp_path / "damaged")
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"

    def damage(tensors: Tensors) -> None:
        scale = bytearray(tensors[name].data)
        scale[4:8] = struct.pack("<f", value)
        tensors[name] = RawTensor("F32", tensors[name].shape, bytes(scale))

    edit_tensors(source, damage)
    outcome = call_build(
        recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC"), "--model", source, "--output", tmp_path / "no"
    )
    assert outcome.code == 2
    assert f"{name}: the scale is" in outcome.err
    assert not (tmp_path / "no").exists()


def _scale_of_another_shape(directory: Path) -> None:
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    edit_tensors(directory, lambda tensors: tensors.update({name: RawTensor("F32", (1, 1), struct.pack("<f", 1.0))}))


def _scale_gone(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: tensors.pop("model.layers.0.self_attn.o_proj.weight_scale_inv"))


def _cache_scales(directory: Path) -> None:
    scale = RawTensor("F32", (1,), struct.pack("<f", 1.0))
    names = [f"model.layers.{layer}.self_attn.{kind}_scale" for layer in range(LAYERS) for kind in "kv"]
    edit_tensors(directory, lambda tensors: tensors.update(dict.fromkeys(names, scale)))


def _unknown_method(directory: Path) -> None:
    edit_config(directory, lambda config: config["quantization_config"].update(quant_method="hqq"))


REFUSED: dict[Callable[[Path], None], str] = {
    _scale_of_another_shape: "contradicts itself",
    _scale_gone: "stored in a way of fp8 that is not decoded here",
    _cache_scales: "contradicts itself",
    _unknown_method: "is already quantized, and cannot be the source of another build",
}


@pytest.mark.parametrize(("change", "sentence"), REFUSED.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_source_that_is_not_what_it_declares_is_refused_in_one_sentence(
    change: Callable[[Path], None],
    sentence: str,
    sources: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
    call_build: Command,
) -> None:
    source = copy_checkpoint(sources("fp8 in blocks, scales F32")[0], tmp_path / "changed")
    change(source)
    outcome = call_build(
        recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC"), "--model", source, "--output", tmp_path / "no"
    )
    assert outcome.code == 2
    assert sentence in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_build_that_is_quantized_again_is_said_to_be_rounded_twice(
    sources: Callable[[str], tuple[Path, Path]], tmp_path: Path, call_build: Command
) -> None:
    source, _ = sources("compressed-tensors INT4 in groups")
    path = recipe(tmp_path / "recipe.yaml", "NVFP4A16")
    path.write_text(path.read_text().replace(ALLOWED, ""))
    planned = call_build(path, "--plan", "--model", source)
    assert planned.code == 0
    assert "rounded a second time" in " ".join(planned.out.split())
    plan = make_plan(load_recipe(str(path)), open_directory(source))
    assert {part.action for part in plan.parts} == {"keep", "requantize"}
