"""The calibrated engine: upstream's numbers from the recipe alone, what it measures, and what it leaves when killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.checkpoints import (
    RawTensor,
    Tensors,
    copy_checkpoint,
    edit_config,
    edit_tensors,
    read_tensors,
    shards_of,
    without_evidence,
)
from tests.conftest import ROOT, Command, Once, Outcome, environment, keep_outcome, kept_outcome, run_script
from tests.miniature_locks import CALIBRATED, REDHATAI_IGNORE, calibrated, lock_name, oneshot_lock
from tests.toy_models import TOYS
from weighbridge.base.locks import lock_path
from weighbridge.base.source import open_source, with_own_texts
from weighbridge.checkpoint.model import open_directory
from weighbridge.engines import oneshot
from weighbridge.engines.oneshot.coverage import ExpertCoverage, check_sums, grids, starved, table
from weighbridge.engines.oneshot.dataset import open_rows
from weighbridge.engines.oneshot.load import load_tokenizer
from weighbridge.engines.oneshot.samples import make_samples
from weighbridge.errors import BuildError, StructureError
from weighbridge.planning import make_plan
from weighbridge.progress import Progress
from weighbridge.recipe import load_recipe
from weighbridge.recipe.catalogue import RECIPES
from weighbridge.samples.miniature.text import exchanges

GEMMA = RECIPES / "google" / "gemma-4-26B-A4B-it"
LAYERS, EXPERTS, TOP = 6, 8, 2


pytestmark = pytest.mark.usefixtures("one_thread")


def differing(one: Tensors, other: Tensors) -> list[str]:
    """Names of tensors that are not the same to the last bit in both."""
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


def made(once: Once, recipe: str) -> Path:
    """A directory with ``build``, what a recipe makes of the miniature, and what making it answered."""

    def make(directory: Path) -> None:
        arguments = (recipe, "--model", "mini", "--output", directory / "build", "--format", "json")
        outcome = run_script("build.py", *arguments, env={"OMP_NUM_THREADS": "1"})
        assert outcome.code == 0, outcome.err + outcome.out
        keep_outcome(directory, outcome)

    return once(f"mini-{recipe}", make)


@pytest.fixture(scope="module")
def nvfp4(once: Once) -> Path:
    return made(once, "nvfp4")


def section(outcome: Outcome, id: str) -> dict[str, Any]:
    (found,) = (part for part in outcome.report["sections"] if part["id"] == id)
    return dict(found)


def write_recipe(path: Path, name: str, **changes: Any) -> Path:
    """A recipe of the catalogue with other keys; those that are None are left out."""
    content = yaml.safe_load((GEMMA / f"{name}.yaml").read_text())
    content |= changes
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


def with_text(path: Path, lines: int, *, name: str = "nvfp4", references: Any = None, **settings: Any) -> Path:
    """A recipe calibrated with a file of so many lines of the miniature's own text."""
    text = path.parent / "text.txt"
    text.write_text("".join(f"{pair.question} {pair.answer}\n" for pair in exchanges()[:lines]))
    calibration = {"samples": lines, "sequence_length": 64, "experts": "all", **settings}
    calibration |= {"dataset": {"file": str(text)}}
    return write_recipe(path, name, calibration=calibration, references=references)


# --- upstream's numbers


def test_lock_of_a_calibrated_build_is_what_upstream_makes(mini: Path, tmp_path: Path) -> None:
    calibrated(mini, tmp_path, "FP8-dynamic-KV8")
    assert oneshot_lock(tmp_path, "FP8-dynamic-KV8") == lock_path(lock_name("FP8-dynamic-KV8")).read_text()


@pytest.mark.campaign
@pytest.mark.parametrize("build", [build for build in CALIBRATED if build != "FP8-dynamic-KV8"])
def test_locks_of_all_calibrated_builds_are_what_upstream_makes(build: str, mini: Path, tmp_path: Path) -> None:
    calibrated(mini, tmp_path, build)
    assert oneshot_lock(tmp_path, build) == lock_path(lock_name(build)).read_text()


def test_tensors_are_those_that_plain_oneshot_makes_of_the_same_tokens(nvfp4: Path, mini: Path, tmp_path: Path) -> None:
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot as upstream
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    done = with_own_texts(load_recipe("nvfp4"), open_source("mini")).recipe.calibration
    assert done is not None
    samples = make_samples(done, open_rows(done), load_tokenizer(mini, where="mini"))
    assert samples.sha256 == section(kept_outcome(nvfp4), "calibration")["facts"]["sha256 of the token ids"]
    rows = {
        "input_ids": list(map(list, samples.token_ids)),
        "attention_mask": [[1] * len(i) for i in samples.token_ids],
    }
    model = AutoModelForImageTextToText.from_pretrained(mini, dtype=torch.bfloat16)
    upstream(
        model=model,
        processor=AutoTokenizer.from_pretrained(mini),
        recipe=QuantizationModifier(targets="Linear", scheme="NVFP4", ignore=REDHATAI_IGNORE),
        dataset=Dataset.from_dict(rows),
        num_calibration_samples=len(samples.token_ids),
        batch_size=8,
    )
    model.save_pretrained(tmp_path, save_compressed=True)
    assert differing(read_tensors(nvfp4 / "build"), read_tensors(tmp_path)) == []


@pytest.mark.parametrize("name", TOYS)
def test_toys_of_other_families_become_what_plain_oneshot_makes_of_them(name: str, once: Once, tmp_path: Path) -> None:
    from llmcompressor import oneshot as upstream
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    toy = once(f"toy-{name}", TOYS[name])
    ignore = ["lm_head", "re:.*embed.*", "re:.*mlp.gate$", "re:.*norm.*"]
    recipe = write_recipe(tmp_path / "recipe.yaml", "nvfp4", scheme="FP8_DYNAMIC", ignore=ignore, calibration=None)
    (tmp_path / "ours").mkdir()
    plan = make_plan(load_recipe(str(recipe)), open_source(str(toy)))
    made = oneshot.quantize(plan, plan.source, tmp_path / "ours", device="cpu", progress=Progress(shown=False))
    assert made == oneshot.Calibrated(tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(toy, dtype="auto")
    modifier = QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=ignore)
    upstream(model=model, processor=AutoTokenizer.from_pretrained(toy), recipe=modifier)
    model.save_pretrained(tmp_path / "theirs", save_compressed=True)
    assert differing(read_tensors(tmp_path / "ours"), read_tensors(tmp_path / "theirs")) == []


def test_the_same_recipe_gives_the_same_bytes_in_another_process(
    nvfp4: Path, tmp_path: Path, call_build: Command
) -> None:
    again = call_build("nvfp4", "--model", "mini", "--output", tmp_path / "build")
    assert again.code == 0, again.err
    assert without_evidence(tmp_path / "build") == without_evidence(nvfp4 / "build")


@pytest.mark.campaign
@pytest.mark.parametrize(
    "recipe", ["w4a16-gptq", "w4a16-awq", "w4a16-awq-gptq", "nvfp4-gptq", "nvfp4-4o6", "nvfp4-experts-fp8"]
)
def test_other_calibrated_recipes_build_and_hold(recipe: str, once: Once) -> None:
    report = kept_outcome(made(once, recipe)).report
    assert report["holds"]


# --- what is recorded and measured


def test_report_says_what_was_really_used(nvfp4: Path) -> None:
    outcome = kept_outcome(nvfp4)
    facts = section(outcome, "calibration")["facts"]
    assert facts["text"] == "gemma-4-mini.jsonl"
    assert facts["samples"] == "32 of 256 rows, chosen by seed 0"
    assert facts["tokens"] == "4,096, at most 128 a sample, rendered as chat"
    assert facts["experts see"] == "every token"
    assert outcome.err == ""


def test_tokens_are_counted_where_every_expert_sees_all(nvfp4: Path) -> None:
    (figures,) = section(kept_outcome(nvfp4), "calibration")["tables"]
    assert [row[0] for row in figures["rows"]] == [
        f"model.language_model.layers.{layer}.experts" for layer in range(LAYERS)
    ]
    for _, experts, *seen, least, most in figures["rows"]:
        assert (experts, seen) == (EXPERTS, [4096, 4096, 4096])
        assert 0 < least <= 4096 * TOP / EXPERTS <= most < 4096


def test_tokens_are_counted_where_they_go_their_way_and_the_miniatures_text_reaches_every_expert(
    mini: Path, tmp_path: Path
) -> None:
    source = open_source("mini")
    plan = make_plan(with_own_texts(load_recipe("fp8-dynamic-kv8"), source), source)
    built = oneshot.quantize(plan, plan.source, tmp_path, device="cpu", progress=Progress(shown=False))
    (figures,) = built.sections[0].tables
    for _, experts, least, median, most, *routed in figures.rows:
        assert (experts, [least, most]) == (EXPERTS, routed)
        assert 16 <= least <= median <= most  # type: ignore[operator]
        assert least < 4096 * TOP / EXPERTS < most  # type: ignore[operator]


def test_routing_does_not_depend_on_what_the_experts_are_shown(mini: Path, tmp_path: Path) -> None:
    counts = []
    for experts in ("all", "routed"):
        (tmp_path / experts).mkdir()
        recipe = with_text(tmp_path / f"{experts}.yaml", 4, name="fp8-dynamic-kv8", experts=experts, least_tokens=0)
        plan = make_plan(load_recipe(str(recipe)), open_source("mini"))
        built = oneshot.quantize(plan, plan.source, tmp_path / experts, device="cpu", progress=Progress(shown=False))
        (figures,) = built.sections[0].tables
        counts.append([row[-2:] for row in figures.rows])
        record = built.record
        assert record is not None
        assert (record.experts, record.tokens, len(record.rows)) == (experts, 256, 4)
    assert counts[0] == counts[1]


def coverage(*seen: int) -> ExpertCoverage:
    return ExpertCoverage("model.layers.3.experts", seen, seen)


@pytest.mark.parametrize(
    ("seen", "least", "found"),
    [
        ((4, 9, 4), 4, []),
        ((0, 9, 0), 1, [("model.layers.3.experts.{0,2}", 2, "saw no token of the calibration data")]),
        ((0, 9, 4), 0, []),
        ((3, 9, 2), 4, [("model.layers.3.experts.{0,2}", 2, "saw 2 tokens, 4 are asked for at least")]),
        (
            (0, 3, 4),
            4,
            [
                ("model.layers.3.experts.0", 1, "saw no token of the calibration data"),
                ("model.layers.3.experts.1", 1, "saw 3 tokens, 4 are asked for at least"),
            ],
        ),
    ],
)
def test_experts_that_saw_too_little_are_named(
    seen: tuple[int, ...], least: int, found: list[tuple[str, int, str]]
) -> None:
    findings = starved([coverage(*seen)], least)
    assert [(finding.where, finding.count, finding.message) for finding in findings] == found
    assert {finding.rule for finding in findings} <= {"calibration/starved-expert"}


def test_table_shows_the_least_the_median_and_the_most() -> None:
    layer = ExpertCoverage("experts", (8, 8, 8, 8), (1, 2, 3, 6))
    assert table([layer]).rows == (("experts", 4, 8, 8, 8, 1, 6),)


@pytest.mark.parametrize(
    ("seen", "shown"),
    [
        ((1, 2, 3, 6), ["tokens that each expert saw"]),
        ((8, 8, 8, 8), ["tokens that each expert saw", "tokens that were routed to each expert"]),
    ],
)
def test_what_was_routed_is_shown_where_experts_saw_more(seen: tuple[int, ...], shown: list[str]) -> None:
    found = grids([ExpertCoverage("model.layers.3.experts", seen, (1, 2, 3, 6))])
    assert [grid.title for grid in found] == shown
    assert found[-1].values == ((1.0, 2.0, 3.0, 6.0),)


@pytest.mark.parametrize("routed", [(0, 0), (5, 4)])
def test_counts_that_do_not_add_up_are_no_measurement(routed: tuple[int, int]) -> None:
    with pytest.raises(BuildError, match=r"experts: . routings of 4 tokens were counted"):
        check_sums([ExpertCoverage("experts", routed, routed)], 4)


# --- what fails


def test_a_calibration_that_starves_experts_is_found_by_layer_and_expert_and_nothing_is_kept(
    tmp_path: Path, call_build: Command
) -> None:
    recipe = with_text(tmp_path / "starving.yaml", 1, sequence_length=2, experts="routed", least_tokens=1)
    outcome = call_build(recipe, "--model", "mini", "--output", tmp_path / "out" / "build", "--format", "json")
    assert outcome.code == 1, outcome.err
    calibration = section(outcome, "calibration")
    names = {finding["where"] for finding in calibration["findings"] if finding["rule"] == "calibration/starved-expert"}
    assert names
    assert all(name.startswith("model.language_model.layers.") and ".experts." in name for name in names)
    scales = section(outcome, "scales")["findings"]
    assert {(finding["rule"], finding["message"]) for finding in scales} >= {
        ("calibration/bad-scale", "is NaN; a scale is finite and positive")
    }
    assert all(".experts." in finding["where"] for finding in scales)
    assert not (tmp_path / "out").exists()


EXPERT = "model.language_model.layers.3.experts.5"
DAMAGE: dict[str, tuple[str, bytes | None, str]] = {
    "NaN": (f"{EXPERT}.down_proj.input_global_scale", b"\x00\x00\xc0\x7f", "calibration/bad-scale"),
    "missing": (f"{EXPERT}.down_proj.input_global_scale", None, "calibration/no-input-scale"),
    "unequal": (f"{EXPERT}.gate_proj.input_global_scale", b"\x00\x00\x80\x3f", "calibration/unequal-scales"),
    "unequal where values are keys": (
        "model.language_model.layers.5.self_attn.q_proj.weight_global_scale",
        b"\x00\x00\x80\x3f",
        "calibration/unequal-scales",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_scale_of_a_build_that_was_altered_is_found_by_name(
    case: str, nvfp4: Path, tmp_path: Path, call_validate: Command
) -> None:
    name, value, rule = DAMAGE[case]
    build = copy_checkpoint(nvfp4 / "build", tmp_path / "build")

    def damage(tensors: Tensors) -> None:
        tensor = tensors.pop(name)
        if value is not None:
            tensors[name] = RawTensor(tensor.dtype, tensor.shape, value)

    edit_tensors(build, damage)
    outcome = call_validate(build, "--recipe", "nvfp4", "--format", "json")
    assert outcome.code == 1, outcome.err
    found = {(finding["rule"], finding["where"]) for part in outcome.report["sections"] for finding in part["findings"]}
    assert (rule, name) in found


def test_too_little_data_are_refused_before_the_model_is_loaded(
    mini: Path, tmp_path: Path, call_build: Command
) -> None:
    model = copy_checkpoint(mini, tmp_path / "unloadable")
    edit_config(model, lambda config: config.update(model_type="nothing that transformers knows"))
    (tmp_path / "few.txt").write_text("one line\nand another\n")
    outcome = call_build(
        "nvfp4", "--model", model, "--output", tmp_path / "build", "--calibration", tmp_path / "few.txt"
    )
    assert outcome.code == 2
    assert "few.txt: has 2 rows, and 512 samples are asked for" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "build").exists()


def test_a_model_that_transformers_does_not_know_is_one_sentence(
    mini: Path, tmp_path: Path, call_build: Command
) -> None:
    model = copy_checkpoint(mini, tmp_path / "unloadable")
    edit_config(model, lambda config: config.update(model_type="nothing-known"))
    recipe = with_text(tmp_path / "recipe.yaml", 1)
    outcome = call_build(recipe, "--model", model, "--output", tmp_path / "build")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1


# --- AWQ scales what it may


@pytest.mark.campaign
@pytest.mark.parametrize("layer", range(LAYERS))
def test_awq_leaves_what_a_layer_computes(layer: int, once: Once, mini: Path) -> None:
    """A norm times the weights that it feeds is the source's, to half a step of the new weights and BF16's rounding."""
    ours, source = read_tensors(made(once, "w4a16-awq") / "build"), read_tensors(mini)
    prefix = f"model.language_model.layers.{layer}."
    fused = bf16(source[f"{prefix}experts.gate_up_proj"])
    fed = {
        ("pre_feedforward_layernorm", "mlp.gate_proj"): bf16(source[f"{prefix}mlp.gate_proj.weight"]),
        **{
            ("pre_feedforward_layernorm_2", f"experts.{expert}.gate_proj"): fused[expert, : fused.shape[1] // 2]
            for expert in range(EXPERTS)
        },
    }
    for (norm, linear), weight in fed.items():
        before, after = bf16(source[f"{prefix}{norm}.weight"]), bf16(ours[f"{prefix}{norm}.weight"])
        assert (before / after).std() > 0.05  # it is scaled, each channel in its own way
        codes, steps = unpacked(ours, f"{prefix}{linear}")
        error = np.abs(codes * steps * after - weight * before)
        assert (error <= 0.55 * steps * after + 2.0**-6 * np.abs(weight * before)).all()


def bf16(tensor: RawTensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The values of a BF16 tensor."""
    bits = np.frombuffer(tensor.data, "<u2").astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32).reshape(tensor.shape)


def unpacked(tensors: Mapping[str, RawTensor], module: str) -> tuple[Any, Any]:
    """Codes (-8 to 7) and steps of a linear of four-bit integers in groups, both [out, in]."""
    words = np.frombuffer(tensors[f"{module}.weight_packed"].data, "<u4")
    rows = tensors[f"{module}.weight_packed"].shape[0]
    nibbles = (words[:, None] >> np.arange(0, 32, 4, dtype=np.uint32)) & np.uint32(15)
    steps = bf16(tensors[f"{module}.weight_scale"])
    codes = nibbles.reshape(rows, -1).astype(np.float32) - 8
    return codes, np.repeat(steps, codes.shape[1] // steps.shape[1], axis=1)


# --- killed

DRIVER = """
import sys
from pathlib import Path
from weighbridge.engines import oneshot
from weighbridge.planning import make_plan
from weighbridge.progress import Progress
from weighbridge.recipe import load_recipe
from weighbridge.base.source import open_source, with_own_texts
from weighbridge.output.staging import claimed, staged

source = open_source("mini")
plan = make_plan(with_own_texts(load_recipe(sys.argv[1]), source), source)
with claimed(Path(sys.argv[2]), force=False, source=None) as claim, staged(claim) as staging:
    print("loading", flush=True)
    oneshot.quantize(plan, source, staging.checkpoint, device="cpu", progress=Progress(), shard_size=100_000)
    print("done", flush=True)
    sys.stdin.read()
"""


def looks_like_a_checkpoint(directory: Path) -> bool:
    """Whether any tool could take it for one."""
    if (directory / "config.json").exists() and shards_of(directory):
        return True
    try:
        open_directory(directory)
    except StructureError:
        return False
    return True


Moment = Callable[[Path], bool]
MOMENTS: dict[str, Moment] = {
    "before anything is written": lambda parent: bool(list(parent.glob("**/checkpoint"))),
    "with the first shard begun": lambda parent: bool(list(parent.glob("**/*.part"))),
    "with ten shards written": lambda parent: len(list(parent.glob("**/*.part"))) > 10,
    "with the last shard named": lambda parent: len(list(parent.glob("**/*.safetensors"))) > 10,
}
QUICK = ("with the first shard begun", "with the last shard named")


@pytest.mark.parametrize("moment", QUICK)
def test_a_killed_build_leaves_nothing_that_looks_like_a_checkpoint(moment: str, tmp_path: Path, mini: Path) -> None:
    killed(moment, tmp_path)


@pytest.mark.campaign
@pytest.mark.parametrize("moment", [moment for moment in MOMENTS if moment not in QUICK])
def test_a_build_killed_at_other_moments_leaves_nothing_either(moment: str, tmp_path: Path, mini: Path) -> None:
    killed(moment, tmp_path)


def killed(moment: str, tmp_path: Path) -> None:
    """Kill a build at a moment, and look at every directory that it leaves."""
    parent = tmp_path / "builds"
    recipe = with_text(tmp_path / "recipe.yaml", 1)
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(recipe), str(parent / "build")],
        env=environment({"OMP_NUM_THREADS": "1"}),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while process.poll() is None and not MOMENTS[moment](parent):
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    _, stderr = process.communicate()
    assert process.returncode == -signal.SIGKILL, stderr.decode()
    left = [path for path in parent.rglob("*") if path.is_dir()]
    assert left
    assert [path for path in left if looks_like_a_checkpoint(path)] == []
    assert not (parent / "build").exists()


# --- memory ---------------------------------------------------------------------------------------------------------


def test_the_bound_on_memory_is_beside_what_upstream_holds(run_build: Command, tmp_path: Path) -> None:
    # torch and llm-compressor alone are more than these bytes; the model of a real build is many times as much.
    arguments = ("fp8-dynamic", "--model", "mini", "--engine", "upstream", "--audit", "--memory", "200MB")
    outcome = run_build(*arguments, "--output", tmp_path / "build")
    assert outcome.code == 0, outcome.err
