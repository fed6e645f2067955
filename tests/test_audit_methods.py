"""The audit on what every method of the project builds: calibrated, smoothed, compensated, converted; toys too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.alterations import EVERYWHERE, Altered, one_element
from tests.audit_rows import Memory
from tests.checkpoints import Tensors, edit_json, read_tensors
from tests.conftest import Command, Once, run_script
from tests.test_audit import altered, diverging, look, verdicts
from tests.test_oneshot import made
from tests.toy_models import TOYS, TOYS_TO_SMOOTH
from weighbridge.auditing import conclusion
from weighbridge.auditing.judge import Verdict
from weighbridge.auditing.method import compensated, method_of
from weighbridge.auditing.recomputed import compare
from weighbridge.checkpoint.model import open_directory
from weighbridge.formats.tensors import Tensor
from weighbridge.machine.columns import Columns
from weighbridge.recipe import load_recipe
from weighbridge.work.regions import Region

KEPT_OF_TOYS = {
    "llama": ["lm_head", "re:.*embed.*", "re:.*norm.*"],
    "qwen3-moe": ["lm_head", "re:.*embed.*", "re:.*mlp.gate$", "re:.*norm.*"],
}
GROUPS_OF_32 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
CHANNELS = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
SCHEMES: dict[str, dict[str, object]] = {
    "FP8_DYNAMIC": {"scheme": "FP8_DYNAMIC"},
    "FP8_BLOCK": {"scheme": "FP8_BLOCK"},
    "W8A8": {"scheme": "W8A8"},
    "W4A16": {"config_groups": {"group_0": {"weights": GROUPS_OF_32}}},
    "W8A16": {"config_groups": {"group_0": {"weights": {**GROUPS_OF_32, "num_bits": 8}}}},
    "W4A16 by channels": {"config_groups": {"group_0": {"weights": {**CHANNELS, "num_bits": 4}}}},
    "NVFP4A16": {"scheme": "NVFP4A16"},
    "MXFP4": {"scheme": "MXFP4"},
    "MXFP8": {"scheme": "MXFP8"},
}


def recipe_of(path: Path, toy: str, **content: object) -> Path:
    """A recipe file for a toy."""
    base = {"model": "weighbridge/toy", "revision": "0" * 40, "licence": "apache-2.0"}
    text = {"name": "toy", "description": "A toy.", "base": base, "method": "model_free_ptq"}
    text["ignore"] = KEPT_OF_TOYS[toy]
    path.write_text(yaml.safe_dump({**text, **content}, sort_keys=False))
    return path


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("toy", ["llama", "qwen3-moe"])
def test_data_free_builds_of_toys_are_exact(
    toy: str, scheme: str, once: Once, call_build: Command, tmp_path: Path
) -> None:
    source = once(f"toy-{toy}", TOYS[toy])
    recipe = recipe_of(tmp_path / "recipe.yaml", toy, **SCHEMES[scheme])
    outcome = call_build(recipe, "--model", source, "--output", tmp_path / "build")
    assert outcome.code == 0, outcome.err + outcome.out
    found = look(tmp_path / "build", source, loaded=load_recipe(str(recipe)))
    assert conclusion(found) == "derives exactly from the base"
    assert verdicts(found)[Verdict.EXACT] >= 14


def test_calibrated_rounding_to_nearest_is_exact(once: Once, mini: Path) -> None:
    found = look(made(once, "nvfp4") / "build", mini, loaded=load_recipe("nvfp4"))
    assert verdicts(found) == {Verdict.IDENTICAL: 111, Verdict.EXACT: 185}


@pytest.mark.campaign
def test_calibrated_fp8_with_a_kv_cache_is_exact(once: Once, mini: Path) -> None:
    found = look(made(once, "fp8-dynamic-kv8") / "build", mini, loaded=load_recipe("fp8-dynamic-kv8"))
    assert verdicts(found) == {Verdict.IDENTICAL: 111, Verdict.EXACT: 185}
    assert [(left.kind, len(left.names), left.excused) for left in found.leftovers] == [("added", 12, True)]


@pytest.mark.parametrize("recipe", ["nvfp4-full-modelopt", "nvfp4-experts-modelopt"])
def test_conversion_keeps_what_is_exact(recipe: str, call_build: Command, mini: Path, tmp_path: Path) -> None:
    outcome = call_build(recipe, "--model", "mini", "--output", tmp_path / "build")
    assert outcome.code == 0, outcome.err + outcome.out
    assert conclusion(look(tmp_path / "build", mini)) == "derives exactly from the base"


def test_what_a_conversion_made_floats_again_is_what_its_codes_meant(
    call_build: Command, mini: Path, tmp_path: Path
) -> None:
    recipe = "nvfp4-mlp-modelopt"
    outcome = call_build(recipe, "--model", "mini", "--output", tmp_path / "build")
    assert outcome.code == 0, outcome.err + outcome.out
    found = look(tmp_path / "build", mini, loaded=load_recipe(recipe))
    assert verdicts(found) == {Verdict.IDENTICAL: 111, Verdict.EXACT: 162, Verdict.DEQUANTIZED: 23}
    name = "model.language_model.layers.4.self_attn.o_proj.weight"

    def change(tensors: Tensors) -> None:
        tensors[name] = replace(tensors[name], data=bytes([tensors[name].data[0] ^ 1]) + tensors[name].data[1:])

    copy = altered(tmp_path / "build", tmp_path / "copy", change)
    assert diverging(look(copy, mini, loaded=load_recipe(recipe))) == {name}


# --- compensated

AS_CHANGED = [f"derives from the base as {how}, within stated limits" for how in ("smoothed", "compensated")]

GPTQ = "w4a16-gptq"


def test_gptq_is_compensated_where_the_recipe_says_so(once: Once, mini: Path) -> None:
    found = look(made(once, GPTQ) / "build", mini, loaded=load_recipe(GPTQ))
    assert verdicts(found) == {Verdict.IDENTICAL: 111, Verdict.COMPENSATED: 185}
    assert conclusion(found) in AS_CHANGED


@pytest.mark.parametrize("order", ["static", None])
def test_config_that_says_how_columns_were_ordered_excuses_nothing(
    order: str | None, once: Once, mini: Path, tmp_path: Path
) -> None:
    build = altered(made(once, GPTQ) / "build", tmp_path / "copy", lambda _: None)

    def say(config: dict[str, object]) -> None:
        groups = config["quantization_config"]["config_groups"]  # type: ignore[index]
        for group in groups.values():
            group["weights"]["actorder"] = order

    edit_json(build / "config.json", say)
    assert conclusion(look(build, mini)) == "does not derive from the base"


ABOVE_THE_LIMIT = ("one scale", "an expert of zeros", "two experts", "one bit of a kept tensor", "two tokens")


@pytest.mark.campaign
@pytest.mark.parametrize("kind", ABOVE_THE_LIMIT)
def test_alterations_above_the_stated_limit_of_gptq_are_named(
    kind: str, once: Once, mini: Path, tmp_path: Path
) -> None:
    loaded = load_recipe(GPTQ)
    for seed in range(12):
        done: list[Altered] = []
        change = EVERYWHERE[kind]
        copy = altered(
            made(once, GPTQ) / "build",
            tmp_path / f"copy-{seed}",
            lambda tensors, change=change, seed=seed, done=done: done.append(  # type: ignore[misc]
                change(np.random.default_rng(seed), tensors)
            ),
        )
        assert diverging(look(copy, mini, loaded=loaded)) == set(done[0].names), done[0].what


# --- smoothed

AWQ = "w4a16-awq"


def test_awq_follows_by_its_pairs(once: Once, mini: Path) -> None:
    found = look(made(once, AWQ) / "build", mini, loaded=load_recipe(AWQ))
    counts = verdicts(found)
    assert counts.keys() == {Verdict.IDENTICAL, Verdict.EXACT, Verdict.PAIRED}
    assert counts[Verdict.EXACT] == 23  # attention is not smoothed
    assert found.smoothed_limit < 2


def test_awq_that_nobody_speaks_of_does_not_derive(once: Once, mini: Path) -> None:
    assert conclusion(look(made(once, AWQ) / "build", mini)) == "does not derive from the base"


@pytest.mark.campaign
def test_two_steps_of_a_smoothed_code_are_seen(once: Once, mini: Path, tmp_path: Path) -> None:
    for seed in range(12):
        done: list[Altered] = []
        copy = altered(
            made(once, AWQ) / "build",
            tmp_path / f"copy-{seed}",
            lambda tensors, seed=seed, done=done: done.append(  # type: ignore[misc]
                one_element(np.random.default_rng(seed), tensors)
            ),
        )
        assert done[0].names <= diverging(look(copy, mini, loaded=load_recipe(AWQ))), done[0].what


@pytest.mark.campaign
@pytest.mark.parametrize("scheme", ["FP8", "NVFP4"])
def test_calibrated_rounding_of_toys_is_exact(scheme: str, once: Once, tmp_path: Path) -> None:
    source = once("toy-llama", TOYS["llama"])
    text = tmp_path / "text.txt"
    text.write_text("".join(f"sentence {number} of some text\n" for number in range(32)))
    calibration = {"dataset": {"file": str(text)}, "samples": 32, "sequence_length": 64, "experts": "all"}
    recipe = recipe_of(tmp_path / "recipe.yaml", "llama", method="oneshot", scheme=scheme, calibration=calibration)
    output = tmp_path / "build"
    outcome = run_script("build.py", recipe, "--model", source, "--output", output, env={"OMP_NUM_THREADS": "1"})
    assert outcome.code == 0, outcome.err + outcome.out
    assert conclusion(look(output, source, loaded=load_recipe(str(recipe)))) == "derives exactly from the base"


QWEN_MAPPINGS = [
    {
        "smooth_layer": r"re:.*input_layernorm$",
        "balance_layers": [r"re:.*q_proj$", r"re:.*k_proj$", r"re:.*v_proj$"],
    },
    {"smooth_layer": r"re:.*experts\.\d+\.up_proj$", "balance_layers": [r"re:.*experts\.\d+\.down_proj$"]},
]


GEMMA_MAPPINGS = [
    {"smooth_layer": "re:.*input_layernorm$", "balance_layers": ["re:.*q_proj$", "re:.*k_proj$", "re:.*v_proj$"]},
    {"smooth_layer": "re:.*pre_feedforward_layernorm$", "balance_layers": ["re:.*gate_proj$", "re:.*up_proj$"]},
    {"smooth_layer": "re:.*up_proj$", "balance_layers": ["re:.*down_proj$"]},
]
BESIDE_WEIGHTS = {
    "qwen2": ({}, "model.layers.1.self_attn.v_proj.bias"),
    "gemma3": ({"mappings": GEMMA_MAPPINGS}, "model.layers.0.pre_feedforward_layernorm.weight"),
}
"""Toy -> the modifier's options, and a tensor that it must change."""


@pytest.mark.parametrize("toy", TOYS_TO_SMOOTH)
def test_biases_and_norms_that_awq_smooths_derive_and_are_held_against_the_base(
    toy: str, once: Once, tmp_path: Path
) -> None:
    source = once(f"toy-{toy}", TOYS_TO_SMOOTH[toy])
    options, name = BESIDE_WEIGHTS[toy]
    text = tmp_path / "text.txt"
    text.write_text("".join(f"sentence {number} of some text, {number * 7919 % 1000}\n" for number in range(64)))
    recipe = recipe_of(
        tmp_path / "recipe.yaml",
        "llama",
        method="oneshot",
        modifiers=[{"AWQModifier": options}],
        calibration={"dataset": {"file": str(text)}, "samples": 64, "sequence_length": 64, "experts": "all"},
        **SCHEMES["W4A16"],
    )
    output = tmp_path / "build"
    outcome = run_script("build.py", recipe, "--model", source, "--output", output, env={"OMP_NUM_THREADS": "1"})
    assert outcome.code == 0, outcome.err + outcome.out
    loaded = load_recipe(str(recipe))
    assert conclusion(look(output, source, loaded=loaded)) == "derives from the base as smoothed, within stated limits"
    theirs = read_tensors(source)[name]
    assert read_tensors(output)[name] != theirs
    left = altered(output, tmp_path / "left", lambda tensors: tensors.update({name: theirs}))
    assert conclusion(look(left, source, loaded=loaded)) == "does not derive from the base"


@pytest.mark.campaign
@pytest.mark.parametrize("modifier", ["AWQModifier", "GPTQModifier", "SmoothQuantModifier"])
@pytest.mark.parametrize("toy", ["llama", "qwen3-moe"])
def test_calibrated_builds_of_toys_derive(toy: str, modifier: str, once: Once, tmp_path: Path) -> None:
    source = once(f"toy-{toy}", TOYS[toy])
    text = tmp_path / "text.txt"
    text.write_text("".join(f"sentence {number} of some text, {number * 7919 % 1000}\n" for number in range(64)))
    calibration = {"dataset": {"file": str(text)}, "samples": 64, "sequence_length": 64, "experts": "all"}
    scheme = SCHEMES["W8A8"] if modifier == "SmoothQuantModifier" else SCHEMES["W4A16"]
    options: dict[str, object] = {"smoothing_strength": 0.5} if modifier == "SmoothQuantModifier" else {}
    if toy == "qwen3-moe" and modifier == "AWQModifier":  # its own mappings stop at a dense layer among mixtures
        options["mappings"] = QWEN_MAPPINGS
    recipe = recipe_of(
        tmp_path / "recipe.yaml",
        toy,
        method="oneshot",
        modifiers=[{modifier: options}],
        calibration=calibration,
        **scheme,
    )
    output = tmp_path / "build"
    outcome = run_script("build.py", recipe, "--model", source, "--output", output, env={"OMP_NUM_THREADS": "1"})
    assert outcome.code == 0, outcome.err + outcome.out
    found = look(output, source, loaded=load_recipe(str(recipe)))
    assert conclusion(found) in AS_CHANGED


CALIBRATION = {"dataset": {"file": "text.txt"}, "samples": 4, "sequence_length": 16, "experts": "all"}
SEARCHED = {"group_0": {"weights": {**GROUPS_OF_32, "observer": "memoryless_mse"}}}
WEIGHED = {"group_0": {"weights": {**GROUPS_OF_32, "observer": "imatrix_mse"}}}
"""By what the calibration data say of each column."""
PROMISES: dict[str, tuple[dict[str, object], bool, bool]] = {
    "rounding": (SCHEMES["W4A16"], True, True),
    "searched scales": ({"config_groups": SEARCHED}, True, False),
    "scales searched for with data": ({"config_groups": WEIGHED}, False, False),
    "GPTQ": ({**SCHEMES["W4A16"], "modifiers": [{"GPTQModifier": {}}]}, False, True),
    "AWQ": ({**SCHEMES["W4A16"], "modifiers": [{"AWQModifier": {}}]}, False, False),
}
"""What a recipe says -> whether codes and scales follow from the base, and whether scales are of its largest values."""


@pytest.mark.parametrize(("content", "exact", "scales"), PROMISES.values(), ids=PROMISES)
def test_what_a_recipe_promises_of_numbers(
    content: dict[str, object], exact: bool, scales: bool, once: Once, tmp_path: Path
) -> None:
    recipe = recipe_of(tmp_path / "recipe.yaml", "llama", **content, method="oneshot", calibration=CALIBRATION)
    source = open_directory(once("toy-llama", TOYS["llama"]))
    found = method_of(source, load_recipe(str(recipe)))
    assert (found.promises_exact, found.promises_scales) == (exact, scales)


ATTENTION = "model.layers.0.self_attn.q_proj"
MLP = "model.layers.0.mlp.up_proj"
TWO = {
    "attention": {"targets": ["re:.*self_attn.*"], "weights": {**GROUPS_OF_32, "num_bits": 8}},
    "all": {"targets": ["Linear"], "weights": GROUPS_OF_32},
}


ALIKE = {name: {**group, "weights": dict(GROUPS_OF_32)} for name, group in TWO.items()}


@pytest.mark.parametrize("groups", [TWO, ALIKE], ids=["two schemes", "one scheme"])
@pytest.mark.parametrize(("gptq", "expected"), [("attention", {ATTENTION}), ("all", {MLP})])
def test_only_what_gptq_quantizes_may_make_up_for_errors(
    gptq: str, expected: set[str], groups: dict[str, object], once: Once, tmp_path: Path
) -> None:
    (other,) = TWO.keys() - {gptq}
    modifiers = [{"QuantizationModifier": {"groups": [other]}}, {"GPTQModifier": {"groups": [gptq]}}]
    content = {"config_groups": groups, "modifiers": modifiers, "method": "oneshot", "calibration": CALIBRATION}
    recipe = recipe_of(tmp_path / "recipe.yaml", "llama", **content)
    source = open_directory(once("toy-llama", TOYS["llama"]))
    found = method_of(source, load_recipe(str(recipe)))
    assert compensated([ATTENTION, MLP], found) == expected
    assert (found.promises_exact, found.promises_scales) == (True, True)


@pytest.mark.parametrize(("searched", "exact", "scales"), [("attention", True, True), ("all", True, False)])
def test_each_modifiers_groups_promise_what_their_observers_do(
    searched: str, exact: bool, scales: bool, once: Once, tmp_path: Path
) -> None:
    """GPTQ quantizes "all": its scales are those of the largest values, unless its own observer searches."""
    groups = {**TWO, searched: {**TWO[searched], "weights": {**GROUPS_OF_32, "observer": "memoryless_mse"}}}
    modifiers = [{"QuantizationModifier": {"groups": ["attention"]}}, {"GPTQModifier": {"groups": ["all"]}}]
    content = {"config_groups": groups, "modifiers": modifiers, "method": "oneshot", "calibration": CALIBRATION}
    recipe = recipe_of(tmp_path / "recipe.yaml", "llama", **content)
    found = method_of(open_directory(once("toy-llama", TOYS["llama"])), load_recipe(str(recipe)))
    assert (found.promises_exact, found.promises_scales) == (exact, scales)


# --- recomputed


def calibrated_once(once: Once, name: str, **content: object) -> tuple[Path, Path, Path]:
    """A toy, a recipe that calibrates on a text of its own, and what it made."""
    source = once("toy-llama", TOYS["llama"])

    def make(directory: Path) -> None:
        text = directory / "text.txt"
        text.write_text("".join(f"sentence {number} of some text, {number * 7919 % 1000}\n" for number in range(64)))
        calibration = {"dataset": {"file": str(text)}, "samples": 64, "sequence_length": 64, "experts": "all"}
        recipe = recipe_of(directory / "recipe.yaml", "llama", method="oneshot", calibration=calibration, **content)
        outcome = run_script("build.py", recipe, "--model", source, "--output", directory / "build")
        assert outcome.code == 0, outcome.err + outcome.out

    directory = once(name, make)
    return source, directory / "recipe.yaml", directory / "build"


@pytest.fixture(scope="session")
def calibrated(once: Once) -> tuple[Path, Path, Path]:
    """A toy, a recipe that compensates, and what it made."""
    return calibrated_once(once, "toy-llama-gptq", modifiers=[{"GPTQModifier": {}}], **SCHEMES["W4A16"])


def test_ones_own_calibrated_build_is_exact_by_recomputation(calibrated: tuple[Path, Path, Path]) -> None:
    source, recipe, build = calibrated
    arguments: list[str | Path] = [build, "--source", source, "--recipe", recipe, "--reference", "none"]
    plain = run_script("validate.py", *arguments, "--format", "json")
    again = run_script("validate.py", *arguments, "--recompute", "--format", "json")
    assert plain.code == again.code == 0, again.err + again.out
    summaries = [
        next(section["summary"] for section in outcome.report["sections"] if section["id"] == "audit")
        for outcome in (plain, again)
    ]
    assert summaries[0].startswith("derives from the base as compensated, within stated limits")
    assert summaries[1].startswith("derives exactly from the base, as running its recipe again shows")


def test_alteration_below_every_limit_is_seen_by_recomputation(
    calibrated: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    source, recipe, build = calibrated
    name = "model.layers.0.mlp.down_proj.weight_packed"

    def change(tensors: Tensors) -> None:
        tensors[name] = replace(tensors[name], data=bytes([tensors[name].data[0] ^ 1]) + tensors[name].data[1:])

    copy = altered(build, tmp_path / "copy", change)
    arguments: list[str | Path] = ["--source", source, "--recipe", recipe, "--reference", "none", "--recompute"]
    outcome = run_script("validate.py", copy, *arguments, "--format", "json")
    findings = [finding for section in outcome.report["sections"] for finding in section.get("findings", ())]
    rules = ("audit/not-recomputed", "audit/no-first-column")
    seen = {finding["where"] for finding in findings if finding["rule"] in rules}
    assert seen == {"model.layers.0.mlp.down_proj"}
    assert outcome.code == 1
    assert "is not what running its recipe again gives" in outcome.out


def test_exact_weight_where_the_recipe_compensates_is_seen_by_recomputation(
    calibrated: tuple[Path, Path, Path], call_build: Command, tmp_path: Path
) -> None:
    source, recipe, build = calibrated
    plain = recipe_of(tmp_path / "plain.yaml", "llama", **SCHEMES["W4A16"])
    assert call_build(plain, "--model", source, "--output", tmp_path / "plain").code == 0
    rounded, name = read_tensors(tmp_path / "plain"), "model.layers.0.mlp.down_proj"
    copy = altered(
        build,
        tmp_path / "copy",
        lambda tensors: tensors.update({key: value for key, value in rounded.items() if key.startswith(f"{name}.")}),
    )
    arguments: list[str | Path] = ["--source", source, "--recipe", recipe, "--reference", "none", "--recompute"]
    outcome = run_script("validate.py", copy, *arguments, "--format", "json")
    findings = [finding for section in outcome.report["sections"] for finding in section.get("findings", ())]
    assert {item["where"] for item in findings if item["rule"] == "audit/not-recomputed"} == {name}
    assert outcome.code == 1


@pytest.mark.parametrize(
    ("change", "others"),
    [
        (lambda arrays: None, set()),
        (lambda arrays: arrays["a"].fill(2), {"a"}),
        (lambda arrays: arrays.pop("b"), {"b"}),
        (lambda arrays: arrays.update(c=np.zeros((1, 4), np.uint8)), {"c"}),
        (lambda arrays: arrays.update(a=arrays["a"].reshape(4, 1)), {"a"}),
    ],
    ids=["the same", "other bytes", "one less", "one more", "another shape"],
)
def test_all_tensors_of_both_sides_are_compared(change: Callable[[dict[str, Any]], object], others: set[str]) -> None:
    one = {"a": np.ones((1, 4), np.uint8), "b": np.zeros((2, 2), np.uint8)}
    two = {name: array.copy() for name, array in one.items()}
    change(two)
    places = [{name: Region(name, 0, Tensor("U8", array.shape)) for name, array in side.items()} for side in (one, two)]
    for first, second in ((0, 1), (1, 0)):
        readers = [Memory(side) for side in (one, two)]
        found = compare(places[first], readers[first], places[second], readers[second])
        assert set(found.others) == others
        assert found.compared == (3 if "c" in others else 2)


def test_rows_that_lie_as_columns_are_compared_where_they_lie() -> None:
    """Gate and up of a matrix [in, gate and up]: neither is its first bytes alone."""
    matrix = np.arange(24, dtype=np.float16).reshape(4, 6)
    places = {
        name: Region("shard", 0, Tensor("F16", (3, 4)), Columns(first, 1, 6))
        for name, first in {"gate": 0, "up": 3}.items()
    }
    for row, column in np.ndindex(matrix.shape):
        other = matrix.copy()
        other[row, column] = np.nan
        readers = Memory({"shard": matrix}), Memory({"shard": other})
        assert compare(places, readers[0], places, readers[1]).others == {"gate" if column < 3 else "up"}
        assert not compare(places, readers[1], places, readers[1]).others


@pytest.fixture(scope="session")
def with_activations(once: Once) -> tuple[Path, Path, Path]:
    """A toy, a recipe whose scales of activations are calibrated, and what it made."""
    return calibrated_once(once, "toy-llama-nvfp4", scheme="NVFP4")


@pytest.mark.parametrize("changed", [False, True])
def test_scales_of_activations_are_those_of_running_the_recipe_again(
    with_activations: tuple[Path, Path, Path], tmp_path: Path, changed: bool
) -> None:
    source, recipe, build = with_activations
    name = "model.layers.0.mlp.down_proj.input_global_scale"

    def change(tensors: Tensors) -> None:
        data = np.frombuffer(tensors[name].data, np.float32) * np.float32(1024 if changed else 1)
        tensors[name] = replace(tensors[name], data=data.tobytes())

    copy = altered(build, tmp_path / "copy", change)
    arguments: list[str | Path] = ["--source", source, "--recipe", recipe, "--reference", "none", "--recompute"]
    outcome = run_script("validate.py", copy, *arguments, "--format", "json")
    assert outcome.code == (1 if changed else 0), outcome.err + outcome.out
    said = "is not what running its recipe again gives: 1 of its weights and scales" if changed else "derives exactly"
    assert said in next(item["summary"] for item in outcome.report["sections"] if item["id"] == "audit")


@pytest.mark.parametrize(
    ("added", "sentence"),
    [
        (["--source", "mini", "--recipe", "fp8-dynamic", "--recompute"], "leave --recompute out"),
        (["--source", "mini", "--recompute"], "name that recipe with --recipe"),
        (["--recompute"], "without --source"),
        (["--source", "mini", "--calibration", "text.txt"], "without --recompute"),
        (["--source", "mini", "--recipe", "w4a16-gptq", "--recompute", "--sample", "10"], "compares whole weights"),
    ],
)
def test_recomputing_what_cannot_be_is_refused_in_a_sentence(
    added: list[str], sentence: str, call_validate: Command, mini_build: Path
) -> None:
    outcome = call_validate(mini_build, *added)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert outcome.err.count("\n") == 1
