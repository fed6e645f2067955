"""The streaming engine: upstream's numbers, one set of bytes under all settings, bounded memory, resuming."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import miniature_locks
from tests.checkpoints import without_evidence
from tests.sources import write_moe, write_recipe
from weighbridge.base.locks import lock_path
from weighbridge.checkpoint.model import open_directory
from weighbridge.errors import StructureError
from weighbridge.formats.observers import MIN_MAX
from weighbridge.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
BUILD = [sys.executable, str(ROOT / "build.py")]
RECIPES = {
    "FP8-dynamic": "fp8-dynamic",
    "FP8-block": "fp8-block",
    "W4A16": "w4a16",
    "W4A16-G64": "w4a16-g64",
    "NVFP4A16": "nvfp4a16",
    "MXFP4": "mxfp4",
    "W4A16-experts-FP8": "w4a16-experts-fp8",
    "NVFP4A16-experts-FP8": "nvfp4a16-experts-fp8",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 100 MB in 30 pieces."""
    directory = tmp_path_factory.mktemp("source")
    write_moe(directory, layers=6)
    return directory


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "fp8.yaml", "FP8_DYNAMIC")


@pytest.fixture(scope="module")
def undisturbed(source: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    output = tmp_path_factory.mktemp("undisturbed") / "build"
    build(recipe, source, output, "--shard-size", "20MB")
    return digests(output)


def build(recipe: Path | str, source: Path | str, output: Path, *options: str) -> str:
    command = [*BUILD, str(recipe), "--model", str(source), "--output", str(output), "--reference", "none", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file but the evidence, which says when it was made."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in without_evidence(directory).items()}


def raw_tensors(directory: Path) -> dict[str, bytes]:
    """Every tensor's bytes."""
    found: dict[str, bytes] = {}
    for shard, header in open_directory(directory).shards.items():
        content = (directory / shard).read_bytes()[header.data_offset :]
        found |= {name: content[stored.begin : stored.end] for name, stored in header.tensors.items()}
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_writes_what_oneshot_writes_bit_by_bit(name: str, tmp_path: Path, mini: Path) -> None:
    miniature_locks.oneshot(mini, tmp_path / "oneshot", name)
    committed = lock_path(miniature_locks.lock_name(name)).read_text()
    assert miniature_locks.oneshot_lock(tmp_path / "oneshot", name) == committed
    # Upstream's search takes minutes on the miniature; tests/test_observers.py compares it on smaller models.
    (tmp_path / "recipe.yaml").write_bytes(
        load_recipe(RECIPES[name]).raw.replace(b"nvfp4_expanded_mse", MIN_MAX.encode())
    )
    build(tmp_path / "recipe.yaml", "mini", tmp_path / "ours")
    ours, theirs = raw_tensors(tmp_path / "ours"), raw_tensors(tmp_path / "oneshot")
    assert ours.keys() == theirs.keys()
    assert [tensor for tensor in ours if ours[tensor] != theirs[tensor]] == []


def test_members_of_fused_groups_share_their_global_scale(tmp_path: Path) -> None:
    build("nvfp4a16", "mini", tmp_path / "build")
    scales = {
        name: np.frombuffer(content, "<f4")[0]
        for name, content in raw_tensors(tmp_path / "build").items()
        if name.endswith("weight_global_scale")
    }
    groups: dict[str, set[float]] = {}
    for name, scale in scales.items():
        parent, member = name.removesuffix(".weight_global_scale").rsplit(".", 1)
        kind = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "up", "up_proj": "up"}.get(member)
        if kind:
            groups.setdefault(f"{parent} {kind}", set()).add(float(scale))
    assert len(groups) == 6 + 6 + 6 * 8  # attention and dense mlp of six layers, eight experts in each
    assert {name for name, found in groups.items() if len(found) != 1} == set()


def test_a_bias_has_no_share_in_the_global_scale_of_its_weight(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    weight, bias = torch.full((32, 64), 0.25), torch.full((32,), 100.0)
    tensors = {"model.layers.0.mlp.up_proj.weight": weight, "model.layers.0.mlp.up_proj.bias": bias}
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, tmp_path / "source/model.safetensors")
    (tmp_path / "source/config.json").write_text("{}")
    recipe = write_recipe(
        tmp_path / "recipe.yaml", "scheme: NVFP4A16\nallow: [ignore/matches-nothing because it is a test]\n"
    )
    build(recipe, tmp_path / "source", tmp_path / "build", "--audit")
    built = load_file(tmp_path / "build/model.safetensors")
    assert built["model.layers.0.mlp.up_proj.weight_global_scale"].item() == 448 * 6 / 0.25


def test_shards_are_the_files_that_safetensors_would_write(tmp_path: Path) -> None:
    build("w4a16", "mini", tmp_path / "build", "--shard-size", "3MB")
    shards = sorted((tmp_path / "build").glob("*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        save_file(load_file(shard), tmp_path / "again.safetensors", metadata={"format": "pt"})
        assert shard.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


@pytest.mark.parametrize(
    "options",
    [("--workers", "1"), ("--workers", "4"), ("--memory", "0.75GiB"), ("--memory", "4GiB", "--workers", "2")],
    ids=" ".join,
)
def test_bytes_do_not_depend_on_workers_or_memory(
    options: tuple[str, ...], source: Path, recipe: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    build(recipe, source, tmp_path / "build", "--shard-size", "20MB", *options)
    assert digests(tmp_path / "build") == undisturbed


def test_a_build_killed_again_and_again_ends_with_the_same_bytes(
    source: Path, recipe: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    kill_campaign(source, recipe, undisturbed, tmp_path, kills=4, seed=1)


@pytest.mark.campaign
def test_sixty_kills(source: Path, recipe: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    kill_campaign(source, recipe, undisturbed, tmp_path, kills=60, seed=int(time.time()))


def kill_campaign(
    source: Path, recipe: Path, undisturbed: dict[str, str], tmp_path: Path, *, kills: int, seed: int
) -> None:
    """Kill builds at random moments after the first journal entry, until `kills` have hit; each resume is checked."""
    sys.stdout.write(f"seed {seed}\n")
    chance = random.Random(seed)
    output = tmp_path / "build"
    done = 0
    while done < kills:
        command = [*BUILD, str(recipe), "--model", str(source), "--output", str(output), "--shard-size", "20MB"]
        known = journalled(output)
        process = subprocess.Popen([*command, "--format", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.poll() is None and len(journalled(output)) <= max(len(known), 1):
            time.sleep(0.005)
        time.sleep(chance.random() * 0.15)
        process.send_signal(signal.SIGKILL)
        stdout, stderr = process.communicate()
        if process.returncode == -signal.SIGKILL:
            done += 1
        else:
            assert process.returncode == 0, stderr.decode()
            assert_went_on(stdout, known)
        if output.exists():  # whole, also where the kill came between the rename and the end of the process
            assert digests(output) == undisturbed
            shutil.rmtree(output)
    known = journalled(output)
    report = build(recipe, source, output, "--shard-size", "20MB", "--format", "json")
    assert_went_on(report.encode(), known)
    assert digests(output) == undisturbed
    assert list(tmp_path.glob(".build*")) == []


def assert_went_on(report: bytes, known: set[int]) -> None:
    """All that the journal had was found and only the rest made: nothing finished is done twice."""
    summary = next(s["summary"] for s in json.loads(report)["sections"] if s["id"] == "build")
    words = summary.replace(",", "").split()
    pieces, made = int(words[0]), int(words[2])
    assert made == pieces - len(known), summary


def journalled(output: Path) -> set[int]:
    lines = [line for path in output.parent.glob(f".{output.name}.staging-*/journal.jsonl") for line in _lines(path)]
    return {json.loads(line.partition(" ")[2])[0] for line in lines}


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text().split("\n")[:-1]
    except FileNotFoundError:
        return


@pytest.fixture
def interrupted(source: Path, recipe: Path, tmp_path: Path) -> Path:
    """The staging directory of a build that was killed with some pieces done."""
    command = [*BUILD, str(recipe), "--model", str(source), "--output", str(tmp_path / "build"), "--shard-size", "20MB"]
    process = subprocess.Popen([*command, "--workers", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(journalled(tmp_path / "build")) < 3:
        time.sleep(0.002)
    process.kill()
    process.wait()
    (staging,) = tmp_path.glob(".build.staging-*")
    return staging


def test_a_finished_piece_that_was_altered_is_made_anew(
    interrupted: Path, source: Path, recipe: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    shard = sorted((interrupted / "checkpoint").glob("*.safetensors.part"))[0]
    content = bytearray(shard.read_bytes())
    written = next(index for index in range(len(content) - 1, 0, -1) if content[index])
    content[written] ^= 1
    shard.write_bytes(content)
    report = build(recipe, source, tmp_path / "build", "--shard-size", "20MB")
    assert "altered since and made anew" in " ".join(report.split())
    assert digests(tmp_path / "build") == undisturbed


def test_what_a_killed_build_leaves_is_no_checkpoint(interrupted: Path) -> None:
    for directory in (interrupted, interrupted / "checkpoint"):
        with pytest.raises(StructureError, match="holds no safetensors file"):
            open_directory(directory)


def test_a_staging_directory_of_another_build_is_named_and_left_alone(
    interrupted: Path, source: Path, recipe: Path, tmp_path: Path
) -> None:
    before = digests(interrupted / "checkpoint")
    report = build(recipe, source, tmp_path / "build", "--shard-size", "30MB")
    assert interrupted.name in report
    assert digests(interrupted / "checkpoint") == before


def test_a_source_that_was_touched_begins_a_new_build(
    interrupted: Path, recipe: Path, source: Path, tmp_path: Path
) -> None:
    os.utime(source / "model.safetensors")
    assert interrupted.name in build(recipe, source, tmp_path / "build", "--shard-size", "20MB")


HEEDING = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script that heeds Ctrl-C: what a shell runs in the background ignores it, and so does all that it starts."""


def test_interrupting_says_how_to_go_on(source: Path, recipe: Path, tmp_path: Path) -> None:
    heeding = [sys.executable, "-c", HEEDING, *BUILD[1:]]
    command = [*heeding, str(recipe), "--model", str(source), "--output", str(tmp_path / "build"), "--workers", "1"]
    for _ in range(20):  # on a busy machine the build may be whole before it hears of it
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not journalled(tmp_path / "build"):
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
        if not (tmp_path / "build").exists():
            break
        shutil.rmtree(tmp_path / "build")
    assert process.returncode == 2
    assert stderr.count("\n") == 1
    assert "give the same command again to go on" in stderr
    assert not (tmp_path / "build").exists()
    build(recipe, source, tmp_path / "build")


@pytest.mark.parametrize("value", [0x7F80, 0xFF80, 0x7FC0], ids=["infinity", "minus infinity", "NaN"])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: int, recipe: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_moe(source, layers=1, experts=2)
    header = open_directory(source).shards["model.safetensors"]
    stored = header.tensors["model.layers.0.experts.down_proj"]
    with (source / "model.safetensors").open("r+b") as file:
        file.seek(header.data_offset + stored.end - 2)
        file.write(value.to_bytes(2, "little"))
    command = [*BUILD, str(recipe), "--model", str(source), "--output", str(tmp_path / "out" / "build")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "model.layers.0.experts.1.down_proj.weight: the weight holds NaN or infinity" in done.stderr
    assert not (tmp_path / "out").exists()


def test_too_little_memory_for_one_worker_is_one_sentence(source: Path, recipe: Path, tmp_path: Path) -> None:
    command = [*BUILD, str(recipe), "--model", str(source), "--output", str(tmp_path / "build"), "--memory", "50MB"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --memory: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.campaign
def test_builds_a_shard_three_times_the_memory_it_may_address(tmp_path: Path) -> None:
    limit = 1_200_000_000
    source = tmp_path / "source"
    source.mkdir()
    write_moe(source, layers=20, experts=32, hidden=1024, inner=960)
    assert (source / "model.safetensors").stat().st_size >= 3 * limit
    recipe = write_recipe(tmp_path / "recipe.yaml", "NVFP4A16")
    command = [*BUILD, str(recipe), "--model", str(source), "--output", str(tmp_path / "build"), "--memory", "0.75GiB"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 0, done.stderr
