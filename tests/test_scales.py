"""The values of calibrated scales: whatever a server would multiply by without a word is found by name."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints import CONFIG, RawTensor, Tensors, edit_tensors, write_tensors
from weighbridge.checkpoint.model import open_directory
from weighbridge.checks.scales import read_scales, scales_sections
from weighbridge.errors import StructureError
from weighbridge.planning import FusedGroup
from weighbridge.report import Finding, Section

LAYER = "model.layers.{}."
ATTENTION, DENSE, EXPERT = f"{LAYER}self_attn", f"{LAYER}mlp", f"{LAYER}experts.{{}}"
LAYERS, EXPERTS = 2, 3
GROUPS = [
    *(FusedGroup(ATTENTION.format(layer), ("q_proj", "k_proj"), ("v_proj",)) for layer in range(LAYERS)),
    *(FusedGroup(DENSE.format(layer), ("gate_proj", "up_proj"), ()) for layer in range(LAYERS)),
    *(
        FusedGroup(EXPERT.format(layer, expert), ("gate_proj", "up_proj"), ())
        for layer in range(LAYERS)
        for expert in range(EXPERTS)
    ),
]


def scalar(value: float, dtype: str = "F32") -> RawTensor:
    """A scale of one element."""
    data = struct.pack("<f", value)
    return RawTensor(dtype, (1,), data[2:] if dtype == "BF16" else data)


def nvfp4(weight: float, activations: float) -> dict[str, RawTensor]:
    """What compressed-tensors stores for an NVFP4 linear of 32 by 32."""
    return {
        "weight_packed": RawTensor("U8", (32, 16), bytes(512)),
        "weight_scale": RawTensor("F8_E4M3", (32, 2), b"\x38" * 64),
        "weight_global_scale": scalar(weight),
        "input_global_scale": scalar(activations),
    }


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A small NVFP4 build: two layers of attention without values, a dense mlp and three experts; and a KV cache."""
    tensors: Tensors = {}
    for layer in range(LAYERS):
        attention = ATTENTION.format(layer)
        linears = [f"{attention}.{name}" for name in ("q_proj", "k_proj", "o_proj")]
        for parent in (DENSE.format(layer), *(EXPERT.format(layer, expert) for expert in range(EXPERTS))):
            linears += [f"{parent}.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
        for number, linear in enumerate(linears):
            weight = 100.0 + number // 3 * 10 + (5 if linear.endswith(("o_proj", "down_proj")) else 0)
            tensors |= {f"{linear}.{local}": tensor for local, tensor in nvfp4(weight, weight / 7).items()}
        tensors |= {f"{attention}.{name}": scalar(0.015625, "BF16") for name in ("k_scale", "v_scale")}
    write_tensors(tmp_path, tensors, shards=3)
    quantization = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    quantization |= {"config_groups": {"NVFP4": ["Linear"]}, "ignore": []}  # type: ignore[dict-item]
    (tmp_path / CONFIG).write_text(json.dumps({"quantization_config": quantization}))
    return tmp_path


def judged(build: Path) -> Section:
    (section,) = scales_sections(open_directory(build), GROUPS)
    return section


def only(section: Section) -> Finding:
    """The one finding, which fails."""
    (finding,) = section.findings
    assert not section.holds
    return finding


def setting(values: Mapping[str, float]) -> Callable[[Tensors], None]:
    """Sets scales: name -> value."""

    def change(tensors: Tensors) -> None:
        for name, value in values.items():
            tensors[name] = scalar(value, tensors[name].dtype)

    return change


def test_scales_as_they_should_be_hold(build: Path) -> None:
    section = judged(build)
    assert section.holds
    assert section.findings == ()
    assert section.summary.startswith("64 scales")


@given(st.floats(width=32), st.sampled_from(["F32", "BF16"]))
def test_values_are_read_as_they_are_stored(value: float, dtype: str) -> None:
    tensor = scalar(value, dtype)
    with tempfile.TemporaryDirectory() as directory:
        stored = {"a.weight_packed": RawTensor("U8", (3,), b"abc"), "a.input_scale": tensor, "a.weight_scale": tensor}
        (Path(directory) / "config.json").write_text("{}")
        write_tensors(Path(directory), {**stored, "b.weight_scale": RawTensor("F8_E4M3", (1,), b"\x00")})
        values = read_scales(open_directory(Path(directory)))
    (expected,) = struct.unpack("<f", tensor.data.rjust(4, b"\0"))
    assert {name: struct.pack("<f", found) for name, found in values.items()} == dict.fromkeys(
        ["a.input_scale", "a.weight_scale"], struct.pack("<f", expected)
    )


@pytest.mark.parametrize(
    ("value", "problem"),
    [(float("nan"), "NaN"), (float("inf"), "infinite"), (-float("inf"), "infinite"), (0.0, "zero"), (-1.0, "negative")],
)
@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.experts.2.down_proj.input_global_scale",
        "model.layers.0.self_attn.o_proj.weight_global_scale",
        "model.layers.1.self_attn.k_scale",
    ],
)
def test_a_scale_that_is_no_positive_number_is_found_by_name(
    name: str, value: float, problem: str, build: Path
) -> None:
    edit_tensors(build, setting({name: value}), shards=3)
    finding = only(judged(build))
    assert (finding.rule, finding.where, finding.count) == ("calibration/bad-scale", name, 1)
    assert finding.message == f"is {problem}; a scale is finite and positive"
    assert finding.remedy


def test_scales_that_are_wrong_alike_are_one_finding_with_layers_and_experts(build: Path) -> None:
    def change(tensors: Tensors) -> None:
        for layer in range(LAYERS):
            for expert in (0, 2):
                name = f"{EXPERT.format(layer, expert)}.down_proj.input_global_scale"
                tensors[name] = scalar(float("nan"))

    edit_tensors(build, change, shards=3)
    finding = only(judged(build))
    assert finding.where == "model.layers.{0-1}.experts.{0,2}.down_proj.input_global_scale"
    assert finding.count == 4


def test_an_input_scale_that_is_not_there_is_found_by_name(build: Path) -> None:
    name = "model.layers.1.experts.1.down_proj.input_global_scale"
    edit_tensors(build, lambda tensors: tensors.pop(name), shards=3)
    finding = only(judged(build))
    assert (finding.rule, finding.where) == ("calibration/no-input-scale", name)


@pytest.mark.parametrize("local", ["weight_global_scale", "input_global_scale"])
@pytest.mark.parametrize(
    ("parent", "changed", "first", "others"),
    [
        ("model.layers.0.self_attn", "k_proj", "q_proj", "k_proj"),
        ("model.layers.1.mlp", "gate_proj", "gate_proj", "up_proj"),
        ("model.layers.1.experts.0", "up_proj", "gate_proj", "up_proj"),
    ],
)
def test_members_of_a_fused_group_that_differ_are_found_by_name(
    parent: str, changed: str, first: str, others: str, local: str, build: Path
) -> None:
    name = f"{parent}.{changed}.{local}"
    edit_tensors(build, setting({name: 64.0}), shards=3)
    finding = only(judged(build))
    assert (finding.rule, finding.where) == ("calibration/unequal-scales", f"{parent}.{first}.{local}")
    assert finding.message.startswith(f"differs from that of {others}, which servers merge with it")


def test_one_unit_in_the_last_place_is_a_difference(build: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight_global_scale"

    def change(tensors: Tensors) -> None:
        (bits,) = struct.unpack("<I", tensors[name].data)
        tensors[name] = replace(tensors[name], data=struct.pack("<I", bits + 1))

    edit_tensors(build, change, shards=3)
    assert only(judged(build)).rule == "calibration/unequal-scales"


def test_linears_that_servers_do_not_merge_may_differ(build: Path) -> None:
    values = {f"model.layers.{layer}.self_attn.o_proj.weight_global_scale": 3.0 + layer for layer in range(LAYERS)}
    edit_tensors(build, setting(values), shards=3)
    assert judged(build).holds


def test_members_that_lack_a_value_are_not_called_different_as_well(build: Path) -> None:
    edit_tensors(build, setting({"model.layers.0.mlp.gate_proj.input_global_scale": float("nan")}), shards=3)
    assert only(judged(build)).rule == "calibration/bad-scale"


def test_a_shard_that_shrank_since_its_header_was_read_is_refused(build: Path) -> None:
    checkpoint = open_directory(build)
    shard = next(iter(checkpoint.shards))
    content = (build / shard).read_bytes()
    (build / shard).write_bytes(content[: checkpoint.shards[shard].data_offset])
    with pytest.raises(StructureError, match=f"{shard}: is cut off"):
        scales_sections(checkpoint, GROUPS)
