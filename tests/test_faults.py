"""Faults planted in a good build are found and named; what only looks different is no fault."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checkpoints import (
    RawTensor,
    Tensors,
    as_bf16,
    copy_checkpoint,
    edit_config,
    edit_tensors,
    read_tensors,
    rename_tensors,
    write_tensors,
)
from tests.conftest import FP8_DYNAMIC, MINI_BUILD_LOCK, ROOT, Command, Outcome, environment

LAYER = "model.language_model.layers.0"
EXPERT = f"{LAYER}.experts.3.gate_proj"
LAYERS = "model.language_model.layers.{0-5}"
V_PROJ = "model.language_model.layers.{0-4}.self_attn.v_proj"
QUANTIZED = (
    (f"{LAYERS}.experts.{{0-7}}.gate_proj", 48),
    (f"{LAYERS}.mlp.down_proj", 6),
    (f"{LAYERS}.self_attn.o_proj", 6),
    (V_PROJ, 5),
)
"""Some of the patterns of quantized modules, and how many modules each stands for."""

ALONE, PLAN, REFERENCE = "against itself", "against the recipe's plan", "against a reference"
JUDGES = {
    ALONE: (),
    PLAN: ("--recipe", "fp8-dynamic", "--reference", "none"),
    REFERENCE: ("--reference", str(MINI_BUILD_LOCK)),
}


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a build.

    Attributes:
        plant: does it to the directory of a good build.
        alone: a name that a comparison of the build with itself must print on a line of its own; empty where nothing
            is wrong with the build by itself.
        compared: such a name where the build is held against its plan or a reference.
    """

    plant: Callable[[Path], None]
    alone: str
    compared: str


def of_tensors(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    return lambda directory: edit_tensors(directory, change)


def of_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda directory: edit_config(directory, lambda config: change(config["quantization_config"]))


def left_bf16(tensors: Tensors, module: str, *, suffix: str = ".weight") -> None:
    tensors[f"{module}{suffix}"] = as_bf16(tensors.pop(f"{module}.weight"))
    del tensors[f"{module}.weight_scale"]


def quantized(tensors: Tensors, module: str) -> None:
    weight = tensors[f"{module}.weight"]
    rows, columns = weight.shape
    tensors[f"{module}.weight"] = RawTensor("F8_E4M3", weight.shape, bytes(rows * columns))
    tensors[f"{module}.weight_scale"] = RawTensor("BF16", (rows, 1), bytes(2 * rows))


def changed(tensors: Tensors, name: str, change: Callable[[RawTensor], RawTensor]) -> None:
    tensors[name] = change(tensors[name])


def swapped(tensors: Tensors, one: str, other: str) -> None:
    rename_tensors(tensors, {one: other, other: one})


def fused_to_three_axes(tensors: Tensors) -> None:
    parts = [
        as_bf16(tensors.pop(f"{LAYER}.experts.{expert}.{projection}.weight"))
        for expert in range(8)
        for projection in ("gate_proj", "up_proj")
    ]
    for expert in range(8):
        for projection in ("gate_proj", "up_proj"):
            del tensors[f"{LAYER}.experts.{expert}.{projection}.weight_scale"]
    data = b"".join(part.data for part in parts)
    tensors[f"{LAYER}.experts.gate_up_proj"] = RawTensor("BF16", (8, 384, 256), data)


def quantized_router(directory: Path, *, declared: bool) -> None:
    edit_tensors(directory, lambda tensors: quantized(tensors, f"{LAYER}.router.proj"))
    if declared:
        not_routers = r"re:.*layers\.[1-5]\.router"
        of_config(lambda config: config.update(ignore=[*without(config["ignore"], "router"), not_routers]))(directory)


def without(entries: Iterable[str], word: str) -> list[str]:
    return [entry for entry in entries if word not in entry]


def group(config: dict[str, Any]) -> dict[str, Any]:
    (found,) = config["config_groups"].values()
    assert isinstance(found, dict)
    return found


TENSOR_FAULTS = {
    "an expert left BF16": Fault(
        of_tensors(lambda tensors: left_bf16(tensors, EXPERT)), alone=EXPERT, compared=f"{EXPERT}.weight"
    ),
    # What llm-compressor 0.11 and 0.12 made of every expert.
    "an expert left BF16 without .weight": Fault(
        of_tensors(lambda tensors: left_bf16(tensors, EXPERT, suffix="")), alone=EXPERT, compared=EXPERT
    ),
    "a missing scale": Fault(
        of_tensors(lambda tensors: tensors.pop(f"{EXPERT}.weight_scale")),
        alone=f"{EXPERT}.weight_scale",
        compared=f"{EXPERT}.weight_scale",
    ),
    "a missing weight": Fault(
        of_tensors(lambda tensors: tensors.pop(f"{EXPERT}.weight")),
        alone=f"{EXPERT}.weight",
        compared=f"{EXPERT}.weight",
    ),
    "a wrong dtype of codes": Fault(
        of_tensors(lambda tensors: changed(tensors, f"{EXPERT}.weight", lambda weight: replace(weight, dtype="I8"))),
        alone=f"{EXPERT}.weight",
        compared=f"{EXPERT}.weight",
    ),
    # compressed-tensors stores scales in the dtype of the source, which a build by itself does not tell.
    "a wrong dtype of scales": Fault(
        of_tensors(
            lambda tensors: changed(tensors, f"{EXPERT}.weight_scale", lambda scale: replace(scale, dtype="F16"))
        ),
        alone="",
        compared=f"{EXPERT}.weight_scale",
    ),
    "a transposed weight": Fault(
        of_tensors(lambda tensors: changed(tensors, f"{EXPERT}.weight", lambda weight: weight.transposed(1))),
        alone=f"{EXPERT}.weight_scale",
        compared=f"{EXPERT}.weight",
    ),
    "a transposed scale": Fault(
        of_tensors(lambda tensors: changed(tensors, f"{EXPERT}.weight_scale", lambda scale: scale.transposed(2))),
        alone=f"{EXPERT}.weight_scale",
        compared=f"{EXPERT}.weight_scale",
    ),
    "a quantized router": Fault(
        lambda directory: quantized_router(directory, declared=False),
        alone=f"{LAYER}.router.proj",
        compared=f"{LAYER}.router.proj.weight_scale",
    ),
    "a quantized router that config.json declares": Fault(
        lambda directory: quantized_router(directory, declared=True),
        alone="",
        compared=f"{LAYER}.router.proj",  # its scale follows from that
    ),
    "an extra tensor": Fault(
        of_tensors(lambda tensors: tensors.update({"lm_head.weight": RawTensor("BF16", (512, 256), bytes(262_144))})),
        alone="",
        compared="lm_head.weight",
    ),
    "an extra linear": Fault(
        of_tensors(lambda tensors: tensors.update({f"{LAYER}.extra.weight": RawTensor("BF16", (2, 2), bytes(8))})),
        alone=f"{LAYER}.extra",
        compared=f"{LAYER}.extra.weight",
    ),
    "a lost norm": Fault(
        of_tensors(lambda tensors: tensors.pop(f"{LAYER}.post_feedforward_layernorm_1.weight")),
        alone="",
        compared=f"{LAYER}.post_feedforward_layernorm_1.weight",
    ),
    "a lost layer_scalar": Fault(
        of_tensors(lambda tensors: tensors.pop(f"{LAYER}.layer_scalar")), alone="", compared=f"{LAYER}.layer_scalar"
    ),
    "experts fused back to three axes": Fault(
        of_tensors(fused_to_three_axes), alone="", compared=f"{LAYER}.experts.gate_up_proj"
    ),
    "names of a module swapped with another's": Fault(
        of_tensors(lambda tensors: swapped(tensors, f"{EXPERT}.weight", f"{LAYER}.self_attn.k_proj.weight")),
        alone=f"{EXPERT}.weight_scale",
        compared=f"{EXPERT}.weight",
    ),
    "names of two norms swapped": Fault(
        of_tensors(
            lambda tensors: swapped(tensors, f"{LAYER}.self_attn.k_norm.weight", f"{LAYER}.input_layernorm.weight")
        ),
        alone="",
        compared=f"{LAYER}.self_attn.k_norm.weight",
    ),
}

ROUTERS = f"{LAYERS}.router.proj (6)"
CONFIG_FAULTS = {
    "a quantized module on the ignore list": Fault(
        of_config(lambda config: config["ignore"].append(EXPERT)), alone=EXPERT, compared=EXPERT
    ),
    "quantized modules under an ignored pattern": Fault(
        of_config(lambda config: config["ignore"].append("re:.*v_proj")),
        alone=f"{V_PROJ} (5)",
        compared=f"{V_PROJ} (5)",
    ),
    "a kept linear that is not ignored": Fault(
        of_config(lambda config: config.update(ignore=without(config["ignore"], "router"))),
        alone=ROUTERS,
        compared=ROUTERS,
    ),
    "static instead of dynamic activations": Fault(
        of_config(lambda config: group(config)["input_activations"].update(dynamic=False, strategy="tensor")),
        alone=f"{LAYERS}.mlp.down_proj.input_scale (6)",
        compared=f"{LAYERS}.mlp.down_proj (6)",
    ),
    "no activations": Fault(
        of_config(lambda config: group(config).update(input_activations=None)),
        alone="config.json",  # weights alone are stored under another format's name
        compared=f"{LAYERS}.mlp.down_proj (6)",
    ),
    "wrong bits": Fault(
        of_config(lambda config: group(config)["weights"].update(num_bits=4)),
        alone=f"{LAYERS}.mlp.down_proj (6)",
        compared=f"{LAYERS}.mlp.down_proj (6)",
    ),
    "a wrong type": Fault(
        of_config(lambda config: group(config)["weights"].update(type="int")),
        alone=f"{LAYERS}.mlp.down_proj.weight (6)",
        compared=f"{LAYERS}.mlp.down_proj (6)",
    ),
    "a wrong strategy": Fault(
        of_config(lambda config: group(config)["weights"].update(strategy="tensor")),
        alone=f"{LAYERS}.mlp.down_proj.weight_scale (6)",
        compared=f"{LAYERS}.mlp.down_proj (6)",
    ),
    "asymmetric weights": Fault(
        of_config(lambda config: group(config)["weights"].update(symmetric=False)),
        alone=f"{LAYERS}.mlp.down_proj.weight_zero_point (6)",
        compared=f"{LAYERS}.mlp.down_proj (6)",
    ),
    "a target that misses modules": Fault(
        of_config(lambda config: group(config).update(targets=[r"re:.*\.(mlp|experts)\..*"])),
        alone=f"{LAYERS}.self_attn.o_proj (6)",
        compared=f"{LAYERS}.self_attn.o_proj (6)",
    ),
    "a target that hits nothing": Fault(
        of_config(lambda config: group(config).update(targets=["re:nothing"])),
        alone="config.json",
        compared=f"{LAYERS}.mlp.down_proj (6)",
    ),
    "no config groups": Fault(
        of_config(lambda config: config.pop("config_groups")),
        alone="config.json",
        compared=f"{LAYERS}.mlp.down_proj (6)",
    ),
    "no quantization config": Fault(
        lambda directory: edit_config(directory, lambda config: config.pop("quantization_config")),
        alone=f"{LAYERS}.mlp.down_proj (6)",
        compared="config.json",
    ),
    "a wrong format": Fault(
        of_config(lambda config: config.update(format="pack-quantized")), alone="config.json", compared="config.json"
    ),
    "a quantized KV cache": Fault(
        of_config(lambda config: config.update(kv_cache_scheme={"num_bits": 8, "type": "float", "strategy": "tensor"})),
        alone="",
        compared="config.json",
    ),
}


@pytest.fixture
def copy(mini_build: Path, tmp_path: Path) -> Path:
    """A good build, to be damaged."""
    return copy_checkpoint(mini_build, tmp_path / "build")


@pytest.fixture(autouse=True)
def terminal_of_a_hundred_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def lines(outcome: Outcome) -> set[str]:
    return {line.strip() for line in outcome.out.splitlines()}


@pytest.mark.parametrize("judge", [PLAN, REFERENCE])
@pytest.mark.parametrize("fault", [*TENSOR_FAULTS, *CONFIG_FAULTS])
def test_fault_is_found_and_named_by_comparison(copy: Path, call_validate: Command, fault: str, judge: str) -> None:
    planted = (TENSOR_FAULTS | CONFIG_FAULTS)[fault]
    planted.plant(copy)
    outcome = call_validate(copy, *JUDGES[judge])
    assert (outcome.code, outcome.err) == (1, "")
    assert planted.compared in lines(outcome)


@pytest.mark.parametrize("judge", JUDGES)
def test_another_method_over_the_keys_of_this_one_cannot_be_judged(
    copy: Path, call_validate: Command, judge: str
) -> None:
    edit_config(copy, lambda config: config["quantization_config"].update(quant_method="fp8"))
    outcome = call_validate(copy, *JUDGES[judge])
    assert outcome.code == 2
    assert "cannot be judged: quantized by fp8" in outcome.err


@pytest.mark.parametrize("fault", [name for name, fault in (TENSOR_FAULTS | CONFIG_FAULTS).items() if fault.alone])
def test_fault_is_found_and_named_without_anything_to_compare_with(
    copy: Path, call_validate: Command, fault: str
) -> None:
    planted = (TENSOR_FAULTS | CONFIG_FAULTS)[fault]
    planted.plant(copy)
    outcome = call_validate(copy)
    assert (outcome.code, outcome.err) == (1, "")
    assert planted.alone in lines(outcome)


def test_recipe_alone_holds_a_build_against_itself_its_plan_and_its_reference(
    copy: Path, call_validate: Command
) -> None:
    edit_tensors(copy, lambda tensors: tensors.pop(f"{EXPERT}.weight_scale"))
    sections = call_validate(copy, "--recipe", "fp8-dynamic", "--format", "json").report["sections"]
    assert [(section["id"], section["holds"]) for section in sections] == [
        ("weights-unread", True),
        ("structure", False),
        ("serving-rules", True),
        ("account", True),
        ("against-plan", False),
        ("against-reference", False),
    ]


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("shards", [1, 3, 5])
def test_same_tensors_in_other_shards_are_no_fault(copy: Path, call_validate: Command, shards: int, judge: str) -> None:
    tensors = dict(reversed(read_tensors(copy).items()))
    write_tensors(copy, tensors, shards=shards)
    outcome = call_validate(copy, *JUDGES[judge])
    assert (outcome.code, outcome.err) == (0, "")


def resolved(config: dict[str, Any], modules: Iterable[str]) -> list[str]:
    """The ignore list as names, which is how ``oneshot`` writes it."""
    patterns = [entry.removeprefix("re:") for entry in config["ignore"] if entry.startswith("re:")]
    return [module for module in modules if any(re.match(pattern, module) for pattern in patterns)]


SPELLINGS: dict[str, Callable[[dict[str, Any], list[str]], object]] = {
    "ignore patterns as names": lambda config, modules: config.update(ignore=resolved(config, modules)),
    "ignore patterns as one": lambda config, _: config.update(
        ignore=["re:.*(?:embed|router|vision_tower|norm)", "lm_head"]
    ),
    "ignore entries that match nothing": lambda config, _: config["ignore"].extend(["re:.*audio_tower", "nothing"]),
    "ignore entries twice": lambda config, _: config["ignore"].extend(config["ignore"]),
    "another group name": lambda config, _: config.update(config_groups={"FP8": group(config)}),
    "two groups": lambda config, _: config.update(
        config_groups={
            "attention": {**group(config), "targets": [r"re:.*self_attn\.[qkvo]_proj$"]},
            "the rest": group(config),
        }
    ),
    "targets as an expression": lambda config, _: group(config).update(targets=[r"re:.*\.(q|k|v|o|gate|up|down)_proj"]),
    "targets as names": lambda config, modules: (
        group(config).update(targets=[name for name in modules if name not in resolved(config, modules)]),
    ),
    "defaults left out": lambda config, _: (
        group(config).update(
            weights={"num_bits": 8, "type": "float", "strategy": "channel"},
            input_activations={"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        ),
        group(config).pop("output_activations"),
        group(config).pop("format", None),
    ),
    "another observer": lambda config, _: group(config)["weights"].update(observer="mse"),
    "what is said of its making left out": lambda config, _: [
        config.pop(key, None) for key in ("version", "kv_cache_scheme")
    ],
}


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_same_config_in_another_spelling_is_no_fault(
    copy: Path, call_validate: Command, spelling: str, judge: str
) -> None:
    modules = [name.removesuffix(".weight") for name in read_tensors(copy) if name.endswith(".weight")]
    of_config(lambda config: SPELLINGS[spelling](config, modules))(copy)
    outcome = call_validate(copy, *JUDGES[judge])
    if judge == "against the recipe's plan" and spelling in BY_OTHER_EXPRESSIONS:
        assert outcome.code == 1
        assert "account/not-judged" in outcome.out
    else:
        assert (outcome.code, outcome.err) == (0, "")


BY_OTHER_EXPRESSIONS = (
    *("ignore patterns as one", "ignore entries that match nothing", "two groups", "targets as an expression"),
)
"""Spellings of which nobody knows what a server's own names and classes make: the same here, and not judged."""


def test_config_under_its_older_key_is_read_and_stands_where_not_every_server_looks(
    copy: Path, call_validate: Command
) -> None:
    edit_config(copy, lambda config: config.update(compression_config=config.pop("quantization_config")))
    assert call_validate(copy).code == 0
    outcome = call_validate(copy, "--recipe", "fp8-dynamic")
    assert outcome.code == 1
    assert "config.json:compression_config" in outcome.out


# A reference that has one tensor more than the build, and what a recipe says of it.
HEAD = {"difference": "only-in-reference", "tensors": "lm_head.weight", "why": "The reference stores the tied head."}


@pytest.fixture
def altered_reference(tmp_path: Path) -> Path:
    lock = yaml.safe_load(MINI_BUILD_LOCK.read_text())
    lock["repository"] = "someone/altered"
    lock["tensors"].append("lm_head.weight BF16 [512, 256]")
    path = tmp_path / "altered.lock"
    path.write_text(yaml.safe_dump(lock))
    return path


def recipe_that_explains(directory: Path, *entries: dict[str, str]) -> Path:
    recipe = yaml.safe_load(FP8_DYNAMIC.read_text())
    recipe["references"] = [{"lock": "someone/altered", "explains": [dict(entry) for entry in entries]}]
    path = directory / "explaining.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_explained_difference_is_no_fault_and_says_why(
    mini_build: Path, altered_reference: Path, tmp_path: Path, call_validate: Command
) -> None:
    recipe = recipe_that_explains(tmp_path, HEAD)
    outcome = call_validate(mini_build, "--recipe", recipe, "--reference", altered_reference)
    assert (outcome.code, outcome.err) == (0, "")
    assert {"lm_head.weight", f"explained: {HEAD['why']}"} <= lines(outcome)


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        pytest.param([], "lm_head.weight", id="no entry explains the difference"),
        pytest.param([{**HEAD, "difference": "dtype"}], "lm_head.weight", id="of another kind"),
        pytest.param([{**HEAD, "difference": "only-in-checkpoint"}], "lm_head.weight", id="the wrong way round"),
        pytest.param([HEAD, {**HEAD, "tensors": "lm_head.bias"}], "lm_head.bias", id="an entry explains nothing"),
        pytest.param(
            [HEAD, {**HEAD, "tensors": f"{EXPERT}.weight"}], f"{EXPERT}.weight", id="an entry for what is the same"
        ),
        pytest.param([HEAD, HEAD], "lm_head.weight", id="two entries for one difference"),
        pytest.param([{**HEAD, "tensors": "re:lm_head.*"}], "lm_head.weight", id="an expression is no pattern here"),
    ],
)
def test_explanations_and_differences_that_do_not_meet_are_faults(
    mini_build: Path,
    altered_reference: Path,
    tmp_path: Path,
    call_validate: Command,
    entries: list[dict[str, str]],
    named: str,
) -> None:
    recipe = recipe_that_explains(tmp_path, *entries)
    outcome = call_validate(mini_build, "--recipe", recipe, "--reference", altered_reference)
    assert (outcome.code, outcome.err) == (1, "")
    assert named in lines(outcome)


def test_explanation_that_is_wider_than_the_difference_is_a_fault(
    copy: Path, tmp_path: Path, altered_reference: Path, call_validate: Command
) -> None:
    wide = f"{LAYERS}.layer_scalar"
    lock = yaml.safe_load(altered_reference.read_text())
    lock["tensors"] = [line for line in lock["tensors"] if "lm_head" not in line and "layer_scalar" not in line]
    lock["tensors"].append("model.language_model.layers.{0-3}.layer_scalar BF16 [1]")
    altered_reference.write_text(yaml.safe_dump(lock))
    entry = {"difference": "only-in-checkpoint", "tensors": wide, "why": "The reference lost some of them."}
    recipe = recipe_that_explains(tmp_path, entry)
    outcome = call_validate(copy, "--recipe", recipe, "--reference", altered_reference)
    assert outcome.code == 1
    assert wide in lines(outcome)
    assert "model.language_model.layers.0.layer_scalar" in outcome.out


def test_two_entries_for_one_difference_are_told_from_an_entry_for_none(
    mini_build: Path, altered_reference: Path, tmp_path: Path, call_validate: Command
) -> None:
    arguments = (mini_build, "--reference", altered_reference, "--format", "json", "--recipe")
    twice = call_validate(*arguments, recipe_that_explains(tmp_path, HEAD, HEAD))
    messages = [finding["message"] for section in twice.report["sections"] for finding in section["findings"]]
    assert not any("does not differ so" in message for message in messages)


def test_list_of_explanations_does_not_apply_to_another_reference(
    mini_build: Path, altered_reference: Path, tmp_path: Path, call_validate: Command
) -> None:
    lock = altered_reference.read_text().replace("someone/altered", "someone/else")
    altered_reference.write_text(lock)
    recipe = recipe_that_explains(tmp_path, HEAD)
    outcome = call_validate(mini_build, "--recipe", recipe, "--reference", altered_reference)
    assert outcome.code == 1
    assert "lm_head.weight" in lines(outcome)


def lose_scales(directory: Path) -> None:
    """Take away the scales of every gate_proj, and one norm."""

    def lose(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("gate_proj.weight_scale")]:
            del tensors[name]
        del tensors[f"{LAYER}.post_feedforward_layernorm_1.weight"]

    edit_tensors(directory, lose)


def test_differences_are_grouped_by_pattern_with_a_count(copy: Path, call_validate: Command) -> None:
    lose_scales(copy)
    outcome = call_validate(copy, *JUDGES[REFERENCE])
    assert {
        f"{LAYERS}.experts.{{0-7}}.gate_proj.weight_scale (48)",
        f"{LAYERS}.mlp.gate_proj.weight_scale (6)",
    } <= lines(outcome)


@pytest.mark.parametrize("columns", ["40", "60", "100", "1000"])
def test_single_tensor_stands_with_its_full_name_whatever_the_terminal(
    copy: Path, call_validate: Command, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lose_scales(copy)
    outcome = call_validate(copy, *JUDGES[REFERENCE])
    assert f"{LAYER}.post_feedforward_layernorm_1.weight" in lines(outcome)


def test_verdict_names_its_first_fault_unbroken_on_a_narrow_terminal(
    copy: Path, call_validate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    name = f"{LAYER}.post_feedforward_layernorm_1.weight"
    edit_tensors(copy, lambda tensors: tensors.pop(name))
    _, _, verdict = call_validate(copy, *JUDGES[REFERENCE]).out.rpartition("FAIL")
    assert name in verdict


def test_each_difference_of_a_set_is_in_exactly_one_pattern(copy: Path, call_validate: Command) -> None:
    lose_scales(copy)
    report = call_validate(copy, *JUDGES[REFERENCE], "--format", "json").report
    findings = report["sections"][-1]["findings"]
    assert {finding["rule"] for finding in findings} == {"diff/only-in-reference"}
    assert sum(finding["count"] for finding in findings) == 48 + 6 + 1


def test_difference_from_plan_and_reference_is_told_once(copy: Path, call_validate: Command) -> None:
    lose_scales(copy)
    report = call_validate(copy, "--recipe", "fp8-dynamic", "--format", "json").report
    *_, plan, reference = report["sections"]
    (same,) = reference["findings"]
    assert (same["rule"], same["count"], same["where"]) == ("diff/same-as-plan", 48 + 6 + 1, plan["title"])
    assert sum(finding["count"] for finding in plan["findings"]) == same["count"]
    assert plan["summary"] == "55 unexplained differences"
    assert reference["summary"] == "55 unexplained differences (55 of them listed against the recipe's plan)"
    assert (plan["holds"], reference["holds"]) == (False, False)


def test_what_differs_from_the_reference_alone_is_told_beside_what_the_plan_shows_too(
    copy: Path, altered_reference: Path, tmp_path: Path, call_validate: Command
) -> None:
    lose_scales(copy)
    recipe = recipe_that_explains(tmp_path)
    outcome = call_validate(copy, "--recipe", recipe, "--reference", altered_reference, "--format", "json")
    findings = outcome.report["sections"][-1]["findings"]
    told = [(finding["rule"], finding["count"]) for finding in findings]
    assert told == [("diff/only-in-reference", 1), ("diff/same-as-plan", 55)]
    assert findings[0]["where"] == "lm_head.weight"


def test_json_has_the_findings_of_the_text(copy: Path, call_validate: Command) -> None:
    lose_scales(copy)
    arguments = (copy, "--recipe", "fp8-dynamic")
    report = call_validate(*arguments, "--format", "json").report
    text = lines(call_validate(*arguments))
    findings = [finding for section in report["sections"] for finding in section["findings"]]
    for finding in findings:
        count = f" ({finding['count']:,})" if finding["count"] > 1 else ""
        assert f"{finding['where']}{count}" in text
    wrong = [finding["rule"] for finding in findings if finding["severity"] == "error"]
    assert sum(line.startswith("x error") for line in text) == len(set(wrong))
    assert (report["holds"], report["command"]) == (False, "validate")


def test_json_of_a_good_build_holds(mini_build: Path, call_validate: Command) -> None:
    outcome = call_validate(mini_build, "--recipe", "fp8-dynamic", "--format", "json")
    assert outcome.code == 0
    assert outcome.report["holds"]
    findings = [finding for section in outcome.report["sections"] for finding in section["findings"]]
    assert {finding["severity"] for finding in findings} == {"note"}, "what servers are known to do with it"


def test_markdown_has_a_row_for_each_finding(copy: Path, call_validate: Command) -> None:
    lose_scales(copy)
    outcome = call_validate(copy, *JUDGES[REFERENCE], "--format", "markdown")
    assert outcome.code == 1
    assert outcome.out.startswith("# validate: ")
    assert f"| `{LAYERS}.mlp.gate_proj.weight_scale` | 6 |" in outcome.out
    tables = outcome.out.split("\n\n| severity")[1:]
    rows = [line for table in tables for line in table.split("\n\n")[0].splitlines()]
    assert len({row.count(" | ") for row in rows}) == 1


@pytest.mark.parametrize("form", ["text", "json", "markdown"])
def test_report_file_has_what_is_printed_and_what_it_is_filed_by(
    mini_build: Path, tmp_path: Path, run_validate: Command, form: str
) -> None:
    report = tmp_path / "report"
    outcome = run_validate(mini_build, "--recipe", "fp8-dynamic", "--format", form, "--report", report)
    kept = report.read_text()
    if form == "json":
        printed, filed = json.loads(outcome.out), json.loads(kept)
        head = filed.pop("head")
        assert {**filed, "head": printed["head"]} == printed
        assert printed["head"].keys() == {"base", "recipe", "recipe SHA-256"}
        assert head.keys() == {"base", "recipe", "recipe SHA-256", "made by", "at", "command"}
        assert "--recipe fp8-dynamic" in head["command"]
        assert filed["metrics"].items() >= {"errors_count": 0, "modules_quantized_count": 185}.items()
    else:
        missing = [line for line in outcome.out.splitlines() if line not in kept.splitlines()]
        assert missing == []
        assert all(f"{label}: " in kept for label in ("base", "recipe SHA-256", "made by", "at", "command"))


@pytest.mark.parametrize("form", ["text", "json", "markdown"])
def test_report_of_a_build_is_printed_as_it_is_kept(form: str, tmp_path: Path, run_build: Command) -> None:
    report = tmp_path / "report"
    outcome = run_build(
        *("fp8-dynamic", "--model", "mini", "--output", tmp_path / "b", "--format", form, "--report", report)
    )
    assert (outcome.code, outcome.out) == (0, report.read_text())
    for label in ("base", "recipe", "recipe SHA-256", "made by", "at", "command"):
        assert re.search(rf'^[ -]*"?{label}"?: ', outcome.out, re.MULTILINE), label


def test_report_goes_into_a_pipe_that_is_named_and_through_a_link(
    mini_build: Path, tmp_path: Path, call_validate: Command
) -> None:
    pipe, link, kept = tmp_path / "pipe", tmp_path / "link", tmp_path / "kept"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)  # nobody may write
    reader.start()
    outcome = call_validate(mini_build, "--report", pipe)
    reader.join(60)
    assert (outcome.code, pipe.is_fifo()) == (0, True)
    assert read[0].endswith(outcome.out)
    link.symlink_to(kept)
    kept.touch(mode=0o600)
    call_validate(mini_build, "--report", link)
    assert (link.is_symlink(), kept.stat().st_mode & 0o777) == (True, 0o600)
    assert kept.read_text().endswith(outcome.out)


@pytest.mark.parametrize("name", ["/dev/stdout", "/proc/self/fd/1", "link"])
def test_report_goes_into_the_stream_that_is_named_wherever_it_leads(
    name: str, mini_build: Path, tmp_path: Path
) -> None:
    log, link = tmp_path / "log", tmp_path / "link"
    log.write_text("before\n")
    link.symlink_to("/dev/stdout")
    command: list[str | Path] = [sys.executable, ROOT / "validate.py", mini_build, "--report", tmp_path / name]
    with log.open("a") as file:
        assert subprocess.run(command, stdout=file, env=environment(), check=False).returncode == 0
    before, kept, printed = log.read_text().partition("command: ")
    assert before.startswith("before\n") and kept
    assert printed.count("PASS  ") == 2, "the report, and what is printed beside it"


@pytest.mark.parametrize("option", ["--report", "--write-lock", "--log-file"])
def test_file_whose_links_lead_to_one_another_is_refused(
    option: str, mini_build: Path, tmp_path: Path, call_validate: Command
) -> None:
    outcome = call_validate(mini_build, option, looped(tmp_path))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "symbolic links" in outcome.err


@pytest.mark.parametrize("below", ["", "build"])
def test_output_whose_links_lead_to_one_another_is_refused(below: str, tmp_path: Path, call_build: Command) -> None:
    outcome = call_build("fp8-dynamic", "--model", "mini", "--output", looped(tmp_path) / below)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)


def looped(directory: Path) -> Path:
    """A link to a link to it."""
    (directory / "one").symlink_to("other")
    (directory / "other").symlink_to("one")
    return directory / "one"


PEM = "-----BEGIN PRIVATE KEY-----\nMII\n"


@pytest.mark.parametrize(
    "before", ["", "\n", "Bag Attributes\n    friendlyName: key\n"], ids=["PEM", "a blank line", "text"]
)
def test_report_over_a_key_is_refused(before: str, mini_build: Path, tmp_path: Path, call_validate: Command) -> None:
    key = tmp_path / "key.pem"
    key.write_text(before + PEM)
    outcome = call_validate(mini_build, "--report", key)
    assert (outcome.code, "holds a key" in outcome.err, key.read_text()) == (2, True, before + PEM)


@pytest.fixture
def lock_of_build(mini_build: Path, tmp_path: Path, call_validate: Command) -> Path:
    # Known by its content: the suffix is none of a lock's.
    lock = tmp_path / "build.txt"
    assert call_validate(mini_build, "--write-lock", lock).code == 0
    return lock


def test_written_lock_validates_the_build_it_was_written_from(
    mini_build: Path, lock_of_build: Path, call_validate: Command
) -> None:
    outcome = call_validate(mini_build, "--reference", lock_of_build)
    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize("judge", JUDGES)
def test_written_lock_stands_for_the_build_as_a_checkpoint(
    lock_of_build: Path, call_validate: Command, judge: str
) -> None:
    outcome = call_validate(lock_of_build, *JUDGES[judge])
    assert (outcome.code, outcome.err) == (0, "")


def test_lock_of_a_lock_is_the_same_structure(lock_of_build: Path, tmp_path: Path, call_validate: Command) -> None:
    again = tmp_path / "again.yaml"
    assert call_validate(lock_of_build, "--write-lock", again).code == 0
    first, second = (yaml.safe_load(path.read_text()) for path in (lock_of_build, again))
    assert [first[key] for key in ("tensors", "quantization")] == [second[key] for key in ("tensors", "quantization")]


@pytest.mark.parametrize("fault", ["a missing scale", "a quantized module on the ignore list"])
def test_written_lock_finds_a_fault_in_a_copy(
    copy: Path, lock_of_build: Path, call_validate: Command, fault: str
) -> None:
    planted = (TENSOR_FAULTS | CONFIG_FAULTS)[fault]
    planted.plant(copy)
    outcome = call_validate(copy, "--reference", lock_of_build)
    assert outcome.code == 1
    assert planted.compared in lines(outcome)


def test_build_can_be_the_reference_of_another(mini_build: Path, copy: Path, call_validate: Command) -> None:
    edit_tensors(copy, lambda tensors: tensors.pop(f"{EXPERT}.weight_scale"))
    outcome = call_validate(mini_build, "--reference", copy)
    assert outcome.code == 1
    assert f"{EXPERT}.weight_scale" in lines(outcome)


def test_every_reference_is_judged_and_one_that_fails_is_enough(
    mini_build: Path, mini: Path, call_validate: Command
) -> None:
    outcome = call_validate(mini_build, "--reference", MINI_BUILD_LOCK, "--reference", mini, "--format", "json")
    assert outcome.code == 1
    against = [section["holds"] for section in outcome.report["sections"] if section["id"] == "against-reference"]
    assert against == [True, False]


def test_source_is_not_quantized_and_agrees_with_itself(mini: Path, call_validate: Command) -> None:
    outcome = call_validate(mini, "--format", "json")
    assert outcome.code == 0
    assert "nothing quantized" in json.dumps(outcome.report)


def test_validating_imports_no_torch(mini_build: Path, call_validate: Command, without_torch: None) -> None:
    assert call_validate(mini_build, "--recipe", "fp8-dynamic").code == 0
