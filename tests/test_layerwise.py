"""Calibration with one layer in memory: the numbers of plain oneshot on the whole model, method by architecture, and
the same bytes however often it is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml

import weighbridge as wb
from tests.checkpoints import Tensors, read_tensors
from tests.conftest import ROOT, Once, environment
from tests.toy_models import TOYS, TOYS_TO_SMOOTH, write_tied
from weighbridge.base.source import open_source, with_own_texts
from weighbridge.engines import layerwise, oneshot
from weighbridge.engines.layerwise import hessians, kept, passes
from weighbridge.engines.layerwise.skeleton import open_skeleton
from weighbridge.planning import Plan, make_plan
from weighbridge.progress import Progress
from weighbridge.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = bytes(32)
SEED_TEXT = "the quick brown fox jumps over a lazy dog and finds that it is not as lazy as it looks "
ALL = {**TOYS, **TOYS_TO_SMOOTH, "llama-tied": write_tied}
W8A8 = {"scheme": "W8A8", "modifiers": [{"SmoothQuantModifier": {"smoothing_strength": 0.8}}, {"GPTQModifier": {}}]}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
BY_32 = {"targets": ["Linear"], "weights": INT4}
BY_IMPORTANCE = {"config_groups": {"group_0": {**BY_32, "weights": {**INT4, "observer": "imatrix_mse"}}}}
HEAD = {
    "targets": ["re:.*self_attn.*proj$", "lm_head"],
    "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
    "input_activations": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True},
}
WITH_A_HEAD = {
    "ignore": ["re:.*embed.*", "re:.*mlp.gate$", "re:.*norm.*"],
    "config_groups": {"head": HEAD, "rest": {**BY_32, "targets": ["re:.*mlp.*(proj|w[123])$"]}},
}
ROUNDED, BY_GPTQ = {"QuantizationModifier": {"groups": ["head"]}}, {"GPTQModifier": {"groups": ["rest"]}}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "FP8, nothing calibrated": {"scheme": "FP8_DYNAMIC", "calibration": None},
    "FP8, static": {"scheme": "FP8"},
    "FP8 and a KV cache": {"scheme": "FP8_DYNAMIC", "kv_cache": {"scheme": "FP8", "scales": "calibrated"}},
    "NVFP4": {"scheme": "NVFP4"},
    "W4A16 by GPTQ": {"config_groups": {"group_0": BY_32}, "modifiers": [{"GPTQModifier": {}}]},
    "W4A16 by AWQ": {"config_groups": {"group_0": BY_32}, "modifiers": [{"AWQModifier": {"duo_scaling": False}}]},
    "W4A16 by AWQ, then GPTQ": {
        "config_groups": {"group_0": BY_32},
        "modifiers": [{"AWQModifier": {"duo_scaling": False}}, {"GPTQModifier": {}}],
    },
    "W8A8, smoothed, by GPTQ": W8A8,
    "importance of inputs": BY_IMPORTANCE,
    "importance of inputs, smoothed": {**BY_IMPORTANCE, "modifiers": [{"SmoothQuantModifier": {}}]},
    "attention and head rounded without data, then GPTQ": {**WITH_A_HEAD, "modifiers": [ROUNDED, BY_GPTQ]},
    "GPTQ, then attention and head rounded without data": {**WITH_A_HEAD, "modifiers": [BY_GPTQ, ROUNDED]},
}
SMOOTHED = [method for method, changes in METHODS.items() if "AWQ" in str(changes) or "Smooth" in str(changes)]
WITHOUT_MAPPINGS = {"qwen3-moe", "mixtral", "deepseek-v2"}
"""Toys that llm-compressor's own mappings of what to smooth do not fit."""
CASES = [
    (toy, method)
    for toy in ALL
    for method in METHODS
    if (toy not in WITHOUT_MAPPINGS if method in SMOOTHED else toy in TOYS)
]
IN_SHORT = {("llama", method) for method in METHODS} | {("qwen3-moe", "NVFP4"), ("gemma3", "W4A16 by AWQ, then GPTQ")}


def planned(toy: Path, method: Mapping[str, Any], tmp_path: Path) -> Plan:
    """What a method makes of a toy, calibrated with some lines of text where it needs any."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{SEED_TEXT[i:]}{SEED_TEXT[: 3 * i]}\n" for i in range(12)))
    content = {
        "name": "toy",
        "description": "A toy.",
        "base": {"model": "org/toy", "licence": "apache-2.0"},
        "method": "oneshot",
        "ignore": ["lm_head", "re:.*embed.*", "re:.*mlp.gate$", "re:.*norm.*"],
        "calibration": {
            "dataset": {"file": str(text)},
            "render": "text",
            "samples": 12,
            "sequence_length": 48,
            "batch_size": 4,
            "experts": "routed",
        },
        **method,
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    source = open_source(str(toy))
    plan = make_plan(load_recipe(str(recipe)), source)
    return replace(plan, loaded=with_own_texts(plan.loaded, source))


def by_layer(plan: Plan, directory: Path) -> oneshot.Calibrated:
    directory.mkdir(exist_ok=True)
    return layerwise.quantize(
        plan, plan.source, directory, key=KEY, device="cpu", progress=Progress(shown=False, every=None)
    )


def as_a_whole(plan: Plan, directory: Path) -> oneshot.Calibrated:
    directory.mkdir()
    return oneshot.quantize(plan, plan.source, directory, device="cpu", progress=Progress(shown=False, every=None))


def differing(one: Tensors, other: Tensors) -> list[str]:
    """Names of tensors that are not the same to the last bit in both."""
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


def check_same(toy: str, method: str, once: Once, tmp_path: Path) -> None:
    plan = planned(once(f"toy-{toy}", ALL[toy]), METHODS[method], tmp_path)
    whole, layers = as_a_whole(plan, tmp_path / "whole"), by_layer(plan, tmp_path / "layers")
    assert differing(read_tensors(whole.shards), read_tensors(layers.shards)) == []
    assert replace(layers, shards=whole.shards) == whole


@pytest.mark.parametrize(("toy", "method"), [case for case in CASES if case in IN_SHORT])
def test_tensors_and_what_is_said_are_those_of_the_whole_model(
    toy: str, method: str, once: Once, tmp_path: Path
) -> None:
    check_same(toy, method, once, tmp_path)


@pytest.mark.campaign
@pytest.mark.parametrize(("toy", "method"), [case for case in CASES if case not in IN_SHORT])
def test_so_they_are_for_the_rest_of_the_table(toy: str, method: str, once: Once, tmp_path: Path) -> None:
    check_same(toy, method, once, tmp_path)


@pytest.mark.parametrize("toy", [*ALL, "mini"])
def test_a_model_without_weights_has_the_buffers_that_loading_it_makes(
    toy: str, mini: Path, once: Once, tmp_path: Path
) -> None:
    from weighbridge.engines.oneshot.load import loader_of

    directory = mini if toy == "mini" else once(f"toy-{toy}", ALL[toy])
    plan = planned(directory, METHODS["FP8, nothing calibrated"], tmp_path)
    model = open_skeleton(plan, device="cpu").model
    loaded = loader_of(directory)[0].from_pretrained(directory, dtype="auto")
    stored = loaded.state_dict().keys()
    made = {name: buffer for name, buffer in loaded.named_buffers() if name not in stored}
    found = {name: buffer for name, buffer in model.named_buffers() if name not in stored}
    assert found.keys() == made.keys() != set()
    assert [name for name in made if found[name].dtype != made[name].dtype or (found[name] != made[name]).any()] == []
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


RECIPE = """\
name: made
description: A source that is quantized, or floats made of it.
base: {model: org/toy, licence: apache-2.0}
"""
SOURCES = {
    "FP8 in blocks": ("FP8_BLOCK", "llama", ""),
    "FP8 by row, experts": ("FP8_DYNAMIC", "qwen3-moe", ""),
    "NVFP4, experts": ("NVFP4A16", "mixtral", "fused_groups: [[q_proj, k_proj, v_proj], [w1, w3]]\n"),
    "MXFP4": ("MXFP4", "llama", ""),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_quantized_source_is_calibrated_like_the_floats_that_its_codes_mean(
    name: str, once: Once, tmp_path: Path
) -> None:
    scheme, toy, fused = SOURCES[name]
    router = [] if toy == "llama" else ["re:.*[.]gate$"]
    ignore = ["lm_head", "re:.*embed.*", "re:.*norm.*", "re:.*layers.0.*self_attn.*", *router]
    quantize, convert = tmp_path / "quantize.yaml", tmp_path / "convert.yaml"
    quantize.write_text(f"{RECIPE}method: model_free_ptq\nscheme: {scheme}\nignore: {ignore}\n{fused}")
    convert.write_text(f"{RECIPE}method: convert\nconvert: {{dequantize: ['re:.*']}}\n")
    coded, floats = tmp_path / "coded", tmp_path / "floats"
    for recipe, source, output in ((quantize, once(f"toy-{toy}", ALL[toy]), coded), (convert, coded, floats)):
        made = wb.build(recipe, source, output, references=["none"])
        assert made.holds, made.verdict
    of_codes, of_floats = (
        by_layer(planned(source, METHODS["NVFP4"], tmp_path), tmp_path / f"of-{source.name}")
        for source in (coded, floats)
    )
    assert differing(read_tensors(of_codes.shards), read_tensors(of_floats.shards)) == []


@pytest.mark.parametrize("method", [method for method, changes in METHODS.items() if "ignore" in changes])
def test_a_head_that_is_the_embedding_is_quantized_by_neither(method: str, once: Once, tmp_path: Path) -> None:
    plan = planned(once("toy-llama-tied", write_tied), METHODS[method], tmp_path)
    tensors = read_tensors(by_layer(plan, tmp_path / "layers").shards)
    assert {name.rpartition(".")[0] for name in tensors} == set(plan.modules)
    assert differing(tensors, read_tensors(as_a_whole(plan, tmp_path / "whole").shards)) == []


@pytest.mark.parametrize("method", [method for method, changes in METHODS.items() if "ignore" in changes])
def test_a_head_above_what_is_held_of_the_rest_is_quantized_as_one(
    method: str, once: Once, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "REST_BYTES", 1)
    check_same("llama", method, once, tmp_path)


# Hessians of attention take 262,144 bytes, those of an expert 167,936.
@pytest.mark.parametrize(("room", "blocks"), [(1, 4), (600_000, 2)], ids=["one expert at a time", "two at a time"])
def test_hessians_in_blocks_are_those_of_one_pass(
    room: int, blocks: int, once: Once, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded: list[int] = []

    def round_block(modifier: Any, block: hessians.Experts) -> None:
        rounded.append(len(block))
        hessians.round_block(modifier, block)

    monkeypatch.setattr(passes, "round_block", round_block)
    monkeypatch.setattr(layerwise, "room_for_hessians", lambda *_: room)
    check_same("qwen3-moe", "W4A16 by GPTQ", once, tmp_path)
    assert len(rounded) == blocks


# --- killed -----------------------------------------------------------------------------------------------------------

KILLED = "W8A8, smoothed, by GPTQ"
"""Two passes over the model, of which the first changes norms, too."""


def run(writes: int, toy: Path, tmp_path: Path, *, hash_seed: int = 0) -> tuple[int, list[str]]:
    """Calibrate in a process that is killed after so many writes; its exit status, and the parts that it read."""
    command = [sys.executable, "-m", "tests.killed_calibration", str(writes), str(toy), str(tmp_path / "recipe.yaml")]
    done = subprocess.run(
        [*command, str(tmp_path / "layers")],
        cwd=ROOT,
        env=environment({"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(hash_seed)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.fixture(scope="module")
def undisturbed(once: Once, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors, list[str]]:
    """A toy, what becomes of it, and the parts that are read for it."""
    toy, scratch = once("toy-llama", ALL["llama"]), tmp_path_factory.mktemp("undisturbed")
    planned(toy, METHODS[KILLED], scratch)
    code, read = run(0, toy, scratch)
    assert code == 0
    return toy, read_tensors(scratch / "layers" / "shards"), read


def check_goes_on(kills: Sequence[int], undisturbed: tuple[Path, Tensors, list[str]], tmp_path: Path) -> None:
    """Kill a calibration some times, let it end, and look at its bytes and at what was read twice."""
    toy, tensors, parts = undisturbed
    planned(toy, METHODS[KILLED], tmp_path)
    read: list[str] = []
    for writes in (*kills, 0):
        code, now = run(writes, toy, tmp_path)
        assert code == 0 or writes
        # A run goes on with the part at which the one before was killed, or with the next, if that was written down.
        assert not (read and now) or parts.index(now[0]) - parts.index(read[-1]) in (0, 1)
        read = now or read
        if code == 0:
            break
    assert read[-1] == parts[-1]
    assert differing(read_tensors(tmp_path / "layers" / "shards"), tensors) == []


@pytest.mark.parametrize("kills", [(20,), (35, 5), (50,)], ids=str)
def test_a_killed_calibration_goes_on_at_its_layer_and_ends_with_the_same_bytes(
    kills: Sequence[int], undisturbed: tuple[Path, Tensors, list[str]], tmp_path: Path
) -> None:
    check_goes_on(kills, undisturbed, tmp_path)


@pytest.mark.campaign
@pytest.mark.parametrize("number", range(40))
def test_so_does_one_that_is_killed_anywhere(
    number: int, undisturbed: tuple[Path, Tensors, list[str]], tmp_path: Path
) -> None:
    random = Random(number)
    check_goes_on([random.randrange(1, 60) for _ in range(random.randrange(1, 4))], undisturbed, tmp_path)


def test_it_goes_on_where_another_process_walks_through_sets_in_another_order(once: Once, tmp_path: Path) -> None:
    toy = once("toy-gemma3", ALL["gemma3"])
    plan = planned(toy, METHODS["FP8, static"], tmp_path)
    whole = as_a_whole(plan, tmp_path / "whole")
    for seed in range(3):
        shutil.rmtree(tmp_path / "layers", ignore_errors=True)
        code, killed = run(35, toy, tmp_path)
        assert code == -signal.SIGKILL
        code, read = run(0, toy, tmp_path, hash_seed=seed)
        assert code == 0
        assert read[0] == killed[-1], "goes on at the part where it was"
        assert differing(read_tensors(tmp_path / "layers" / "shards"), read_tensors(whole.shards)) == []


ALTERED: Mapping[str, Callable[[Path], Path]] = {
    "tensors of a part": lambda directory: next(directory.glob("pass-0/*.safetensors")),
    "a value between layers": lambda directory: next(directory.glob("activations/*/1/*")),
    "a line of the journal": lambda directory: directory / "journal.jsonl",
}


@pytest.mark.parametrize("what", ALTERED)
def test_what_was_altered_while_nothing_ran_is_made_anew(
    what: str, undisturbed: tuple[Path, Tensors, list[str]], tmp_path: Path
) -> None:
    toy, tensors, _ = undisturbed
    planned(toy, METHODS[KILLED], tmp_path)
    assert run(40, toy, tmp_path)[0] == -signal.SIGKILL
    victim = ALTERED[what](tmp_path / "layers")
    content = bytearray(victim.read_bytes())
    content[len(content) // 3] ^= 1
    victim.write_bytes(content)
    assert run(0, toy, tmp_path)[0] == 0
    assert differing(read_tensors(tmp_path / "layers" / "shards"), tensors) == []


PLANTED: Mapping[str, Callable[[Path, Path], None]] = {
    "a link": lambda place, elsewhere: place.symlink_to(elsewhere),
    "another name of a file": lambda place, elsewhere: place.hardlink_to(elsewhere),
    "a pipe": lambda place, _: os.mkfifo(place),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_was_planted_where_a_part_grows_is_replaced(what: str, tmp_path: Path) -> None:
    elsewhere, place = tmp_path / "elsewhere", tmp_path / "part-00000.safetensors"
    elsewhere.write_text("somebody's")
    PLANTED[what](tmp_path / f"{place.name}.part", elsewhere)
    kept.write_tensors(place, {"weight": torch.ones(2)})
    assert elsewhere.read_text() == "somebody's"
    assert kept.digest(place)
