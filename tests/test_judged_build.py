"""A recipe that limits how far a build's answers may lie from its source's: within, it is kept; beyond, nothing is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checkpoints import copy_checkpoint, without_evidence
from tests.conftest import Command, call_main
from weighbridge.cli import evaluate
from weighbridge.recipe.catalogue import RECIPES

RECIPE = (RECIPES / "google/gemma-4-26B-A4B-it/fp8-dynamic.yaml").read_text()

pytestmark = pytest.mark.usefixtures("one_thread")


def recipe(directory: Path, limits: str) -> Path:
    path = directory / "fp8-dynamic.yaml"
    path.write_text(f"{RECIPE}quality: {{{limits}, windows: 2}}\n")
    return path


def test_build_within_its_limits_is_kept_with_the_figures_as_evidence(
    tmp_path: Path, call_build: Command, call_validate: Command, mini_build: Path
) -> None:
    output = tmp_path / "build"
    outcome = call_build(recipe(tmp_path, "max_kl: 100.0"), "--model", "mini", "--output", output)
    assert outcome.code == 0, outcome.err + outcome.out
    assert json.loads((output / "evidence/quality.json").read_text())["holds"]
    assert call_validate(output, "--evidence").code == 0
    ours, plain = without_evidence(output), without_evidence(mini_build)
    assert {name for name in plain if ours[name] != plain[name]} == {"README.md"}, "the card holds another recipe"


def test_build_beyond_its_limits_is_not_kept(tmp_path: Path, call_build: Command) -> None:
    output = tmp_path / "build"
    outcome = call_build(recipe(tmp_path, "max_kl: 1.0e-9"), "--model", "mini", "--output", output)
    assert outcome.code == 1
    assert "nothing was kept" in outcome.out
    assert not output.exists()


def test_result_of_evaluate_is_recorded_in_the_evidence(
    tmp_path: Path, mini_build: Path, call_validate: Command
) -> None:
    build = copy_checkpoint(mini_build, tmp_path / "build")
    outcome = call_main(evaluate.main, (build, "--source", "mini", "--windows", "2", "--record"))
    assert outcome.code == 0, outcome.err
    content = (build / "evidence/added/quality.json").read_text()
    assert str(tmp_path) not in content
    assert call_validate(build, "--evidence").code == 0


def test_results_of_several_builds_are_not_recorded_in_one(mini_build: Path) -> None:
    outcome = call_main(evaluate.main, (mini_build, mini_build, "--source", "mini", "--record"))
    assert outcome.code == 2
    assert "evaluate the others by themselves" in outcome.err
