"""A plan says, from headers alone, exactly what a build will write, and which line of the recipe decided it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checkpoints import CONFIG, read_tensors, shards_of
from tests.conftest import FP8_DYNAMIC
from tests.reference_locks import reference_lock
from weighbridge.base.references import find_references
from weighbridge.checkpoint.model import Checkpoint, open_directory
from weighbridge.checks.diff import diff, explain
from weighbridge.errors import StructureError
from weighbridge.formats.quantization import resolve
from weighbridge.formats.schemes import PRESETS
from weighbridge.formats.tensors import Structure, Tensor, payload_bytes
from weighbridge.planning import Plan, make_plan
from weighbridge.recipe import load_recipe

GOOGLE = "google/gemma-4-26B-A4B-it"
LAYER = "model.language_model.layers"
KEPT = ["lm_head", "re:.*embed.*", "re:.*router", "re:.*vision_tower.*", "re:.*norm.*"]


@pytest.fixture(scope="module")
def google() -> Checkpoint:
    return reference_lock(GOOGLE)


@pytest.fixture(scope="module")
def plan(google: Checkpoint) -> Plan:
    return make_plan(load_recipe(str(FP8_DYNAMIC)), google)


def planned(
    directory: Path, source: Checkpoint, *, ignore: list[str], method: str = "model_free_ptq", **what: Any
) -> Plan:
    """The plan of a recipe written into `directory`."""
    content = {
        "name": "tried",
        "description": "A recipe of a test.",
        "base": {"model": GOOGLE, "licence": "apache-2.0"},
        "method": method,
        **what,
        "ignore": ignore,
    }
    path = directory / "tried.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return make_plan(load_recipe(str(path)), source)


# --- the real model ---


def test_real_plan_predicts_every_tensor_and_byte(plan: Plan) -> None:
    structure = plan.predicted.structure
    assert len(structure) == 24_198
    assert payload_bytes(structure) == 27_161_975_452


def test_real_plan_quantizes_the_published_modules(plan: Plan) -> None:
    kinds = Counter(
        next(kind for kind in ("self_attn", "experts", "mlp", "other") if f".{kind}." in f"{module}.other.")
        for module in plan.schemes
    )
    assert kinds == {"self_attn": 115, "mlp": 90, "experts": 11_520}
    assert set(plan.schemes.values()) == {PRESETS["FP8_DYNAMIC"]}


def test_real_plan_splits_and_keeps_every_parameter_of_the_source(plan: Plan) -> None:
    assert sum(part.weight.parameters for part in plan.parts) == 25_805_936_206


def test_parts_of_a_fused_tensor_cover_it_without_overlap(plan: Plan, google: Checkpoint) -> None:
    name = f"{LAYER}.3.experts.gate_up_proj"
    experts, rows, columns = google.structure[name].shape
    covered = Counter(
        (part.place.expert, row)
        for part in plan.parts
        if part.source == name and part.weight.shape[1] == columns
        for row in range(part.place.first_row, part.place.first_row + part.weight.shape[0])
    )
    assert covered == {(expert, row): 1 for expert in range(experts) for row in range(rows)}


def test_gate_is_the_first_half_of_the_rows(plan: Plan) -> None:
    last = [part for part in plan.parts if part.place.expert == 127]
    first_rows = {part.module.rpartition(".")[2]: part.place.first_row for part in last}
    assert first_rows == {"gate_proj": 0, "up_proj": 704, "down_proj": 0}


def test_only_difference_from_the_published_build_is_the_explained_head(plan: Plan, google: Checkpoint) -> None:
    (against,) = find_references(plan.loaded, google)
    explained = explain(diff(plan.predicted, against.reference), against.explanations)
    assert explained.holds
    ((entry, differences),) = explained.by_entry
    assert [(difference.kind, difference.name) for difference in differences] == [
        ("only-in-reference", "lm_head.weight")
    ]
    assert against.reference.structure["lm_head.weight"].nbytes == 1_476_395_008
    assert "tied" in entry.why


BUILT_IN_RULES = {"only tensors named .weight are quantized", "modules whose name ends in norm are kept"}


def test_every_decision_names_its_rule(plan: Plan) -> None:
    by_recipe = re.compile(r"(scheme|ignore \S+) \(\S*fp8-dynamic\.yaml:\d+\)")
    nameless = [
        said
        for said in {str(part.decision) for part in plan.parts}
        if said not in BUILT_IN_RULES and not by_recipe.fullmatch(said)
    ]
    assert nameless == []


# rule of the recipe, how many source tensors (experts one by one) it decides
DECISIONS = {
    "scheme": 11_725,
    "ignore re:.*embed.*": 3,  # embed_tokens, embed_vision and the patch embedder of the vision tower
    "ignore re:.*router": 30,
    "ignore re:.*vision_tower.*": 189,
    "ignore re:.*norm.*": 90,
}


@pytest.mark.parametrize(("rule", "count"), DECISIONS.items())
def test_each_rule_decides_what_it_is_for_and_is_named_with_its_line(plan: Plan, rule: str, count: int) -> None:
    (decision,) = {part.decision for part in plan.parts if part.decision.said == rule}
    line = int(decision.place.rpartition(":")[2])
    assert decision.path == (rule,) or decision.path[0] == "ignore"
    assert rule.removeprefix("ignore ") in FP8_DYNAMIC.read_text().splitlines()[line - 1]
    assert sum(part.decision == decision for part in plan.parts) == count


def test_group_size_that_does_not_divide_is_an_obstacle_for_each_width(google: Checkpoint, tmp_path: Path) -> None:
    obstacles = planned(tmp_path, google, scheme="W4A16", ignore=KEPT).obstacles
    assert Counter(obstacle.reason for obstacle in obstacles) == {
        "group size 128 does not divide width 704": 30 * 128,
        "group size 128 does not divide width 2112": 30,
    }
    assert {obstacle.module.rpartition(".")[2] for obstacle in obstacles} == {"down_proj"}


@pytest.mark.parametrize("size", [32, 64])
def test_group_sizes_that_divide_every_width_meet_no_obstacle(google: Checkpoint, tmp_path: Path, size: int) -> None:
    groups = {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": size}}}
    made = planned(tmp_path, google, config_groups=groups, ignore=KEPT)
    assert (made.obstacles, len(made.schemes)) == ((), 11_725)


def test_layers_whose_values_are_their_keys_are_no_obstacle_to_nvfp4(google: Checkpoint, tmp_path: Path) -> None:
    made = planned(tmp_path, google, scheme="NVFP4A16", ignore=KEPT)
    assert (made.obstacles, len(made.schemes)) == ((), 11_725)
    lacking = [group for group in made.fused_groups if group.absent]
    assert [(group.parent, group.absent) for group in lacking] == [
        (f"{LAYER}.{layer}.self_attn", ("v_proj",)) for layer in (5, 11, 17, 23, 29)
    ]


def test_norm_that_the_default_does_not_keep_is_an_obstacle(google: Checkpoint, tmp_path: Path) -> None:
    obstacles = planned(tmp_path, google, scheme="FP8_DYNAMIC", ignore=KEPT[:-1]).obstacles
    assert {obstacle.module.rpartition(".")[2] for obstacle in obstacles} == {
        "post_feedforward_layernorm_1",
        "post_feedforward_layernorm_2",
        "pre_feedforward_layernorm_2",
    }
    assert {obstacle.rule for obstacle in obstacles} == {"scheme/one-dimensional"}


def test_embeddings_are_quantized_data_free_unless_they_are_ignored(google: Checkpoint, tmp_path: Path) -> None:
    made = planned(tmp_path, google, scheme="FP8_DYNAMIC", ignore=["re:.*norm.*"])
    assert "model.language_model.embed_tokens" in made.schemes


def test_embeddings_are_no_linears_to_oneshot(google: Checkpoint, tmp_path: Path) -> None:
    made = planned(tmp_path, google, scheme="FP8_DYNAMIC", ignore=["re:.*norm.*"], method="oneshot")
    assert "model.language_model.embed_tokens" not in made.schemes
    assert made.obstacles == ()


def test_tied_head_that_is_not_stored_is_known(plan: Plan) -> None:
    assert plan.tied_modules == {"lm_head"}


def test_config_of_the_output_is_that_of_the_source_and_the_quantization(plan: Plan, google: Checkpoint) -> None:
    config = plan.output_config()
    assert {key: value for key, value in config.items() if key != "quantization_config"} == google.config


# --- the miniature: what is planned is what llm-compressor writes ---


# How the recipe says it, and how llm-compressor's own config does.
BUILDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    name: ({"scheme": name}, {name: ["Linear"]})
    for name in ("FP8_DYNAMIC", "FP8_BLOCK", "W8A8", "MXFP4", "NVFP4A16", "MXFP8")
}
W4A16_32 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
W4A16_ASYMMETRIC = W4A16_32 | {"symmetric": False}
ATTENTION = "re:.*self_attn.*"
BUILDS |= {
    "W4A16 group 32": (
        {"config_groups": {"all": {"weights": W4A16_32}}},
        {"all": {"targets": ["Linear"], "weights": W4A16_32}},
    ),
    "W4A16 group 32 asymmetric": (
        {"config_groups": {"all": {"weights": W4A16_ASYMMETRIC}}},
        {"all": {"targets": ["Linear"], "weights": W4A16_ASYMMETRIC}},
    ),
    "attention apart": (
        {
            "config_groups": {
                "attention": {"targets": [ATTENTION], "scheme": "FP8_DYNAMIC"},
                "others": {"targets": ["re:.*mlp.*", "re:.*experts.*"], "weights": W4A16_32},
            }
        },
        {
            "FP8_DYNAMIC": [ATTENTION],
            "others": {"targets": ["re:.*mlp.*", "re:.*experts.*"], "weights": W4A16_32},
        },
    ),
    "attention alone": (
        {"config_groups": {"attention": {"targets": [ATTENTION], "scheme": "W8A8"}}},
        {"W8A8": [ATTENTION]},
    ),
    "the first group takes all": (
        {
            "config_groups": {
                "all": {"scheme": "W8A8"},
                "attention": {"targets": [ATTENTION], "scheme": "FP8_DYNAMIC"},
            }
        },
        {"W8A8": ["Linear"], "FP8_DYNAMIC": [ATTENTION]},
    ),
}


EXPERTS = 2


@pytest.fixture(scope="module")
def two_layers(mini: Path) -> Checkpoint:
    """The miniature with one layer of each kind (layer 5 has no v_proj) and two experts in each."""
    checkpoint = open_directory(mini)
    left_out = re.compile(rf"{re.escape(LAYER)}\.[1-4]\.")
    structure = {
        name: replace(tensor, shape=(EXPERTS, *tensor.shape[1:])) if ".experts." in name else tensor
        for name, tensor in checkpoint.structure.items()
        if not left_out.match(name)
    }
    return replace(checkpoint, structure=structure)


@pytest.fixture(scope="module")
def tensors_of_two_layers(mini: Path, two_layers: Checkpoint) -> dict[str, Any]:
    import safetensors.torch

    loaded = {name: tensor for shard in shards_of(mini) for name, tensor in safetensors.torch.load_file(shard).items()}
    return {name: loaded[name][:EXPERTS] if ".experts." in name else loaded[name] for name in two_layers.structure}


def structure_of(directory: Path) -> Structure:
    """Names, dtypes and shapes of what lies in a directory."""
    return {name: Tensor(raw.dtype, raw.shape) for name, raw in read_tensors(directory).items()}


@pytest.mark.parametrize(("recipe", "groups"), BUILDS.values(), ids=BUILDS)
def test_plan_is_what_llm_compressor_makes_of_the_tensors(
    recipe: dict[str, Any],
    groups: dict[str, Any],
    two_layers: Checkpoint,
    tensors_of_two_layers: dict[str, Any],
    tmp_path: Path,
) -> None:
    import safetensors.torch
    from compressed_tensors.quantization import QuantizationConfig
    from llmcompressor.entrypoints.model_free.converter import ModelFreePtqConverter

    made = planned(tmp_path, two_layers, ignore=KEPT, **recipe)
    assert made.obstacles == ()
    config = QuantizationConfig.model_validate({"config_groups": groups, "ignore": KEPT})
    written = ModelFreePtqConverter(config).process(dict(tensors_of_two_layers))
    # Ragged blocks are cut out of padded ones, which safetensors does not save as they are.
    contiguous = {name: tensor.contiguous() for name, tensor in written.items()}
    safetensors.torch.save_file(contiguous, tmp_path / "model.safetensors")
    assert made.predicted.structure == structure_of(tmp_path)


def test_plan_is_what_model_free_ptq_writes(mini: Path, tmp_path: Path) -> None:
    from llmcompressor import model_free_ptq

    made = planned(tmp_path, open_directory(mini), scheme="W8A8", ignore=KEPT)
    model_free_ptq(mini, tmp_path / "output", scheme="W8A8", ignore=KEPT)
    assert made.predicted.structure == structure_of(tmp_path / "output")


# Groups that overlap are read one way by model_free_ptq and another by servers.
@pytest.mark.parametrize("name", [name for name in BUILDS if name != "the first group takes all"])
def test_config_of_the_output_declares_what_is_planned(name: str, two_layers: Checkpoint, tmp_path: Path) -> None:
    made = planned(tmp_path, two_layers, ignore=KEPT, **BUILDS[name][0])
    assert made.declaration is not None
    declared = resolve(made.declaration, made.predicted.modules, where=CONFIG)
    assert declared == made.schemes


# What no model has, and llm-compressor could not split.
UNSPLITTABLE = {
    "odd number of rows": Tensor("BF16", (4, 7, 32)),
    "experts without end": Tensor("BF16", (2**17, 2, 0)),
}


@pytest.mark.parametrize("tensor", UNSPLITTABLE.values(), ids=UNSPLITTABLE)
def test_fused_tensor_that_cannot_be_split_is_refused_by_name(tensor: Tensor, tmp_path: Path) -> None:
    name = "layers.0.experts.gate_up_proj"
    source = Checkpoint(label="here", structure={name: tensor}, config={})
    with pytest.raises(StructureError, match=re.escape(name)):
        planned(tmp_path, source, scheme="FP8_DYNAMIC", ignore=[])


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.patch_embed.weight", Tensor("BF16", (8, 3, 16, 16))),
        ("model.conv.weight", Tensor("BF16", (8, 4, 3))),
        ("model.scale.weight", Tensor("BF16", (8,))),
    ],
    ids=["two-dimensional convolution", "one-dimensional convolution", "vector"],
)
def test_weight_that_is_no_matrix_is_an_obstacle(name: str, tensor: Tensor, tmp_path: Path) -> None:
    source = Checkpoint(label="here", structure={name: tensor}, config={})
    made = planned(tmp_path, source, scheme="FP8_DYNAMIC", ignore=[])
    assert [(obstacle.tensor, obstacle.decision.said if obstacle.decision else "") for obstacle in made.obstacles] == [
        (name, "scheme")
    ]
    assert made.predicted.structure == {name: tensor}
