"""The composite action and the hooks of pre-commit: their scripts run as processes, with what a user would give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, environment
from tests.hub_server import serve
from tests.test_report_formats import RECIPE

ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS: Mapping[str, dict[str, Any]] = {step["name"]: step for step in ACTION["runs"]["steps"]}
LINT, GATE = "Lint recipes", "Hold the checkpoint against the policy"
GOOD = RECIPE.replace("  - re:.*nothing_of_this_name.*\n", "")


def git(directory: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(directory), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a good recipe, committed."""
    directory = tmp_path / "repository"
    (directory / "recipes").mkdir(parents=True)
    git(directory.parent, "init", "--quiet", "--initial-branch", "main", directory.name)
    (directory / "recipes" / "good.yaml").write_text(GOOD)
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message", "good")
    return directory


def run_step(name: str, directory: Path, inputs: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a step's script with its variables as the action would set them."""
    given: dict[str, str] = {**{key: spec.get("default", "") for key, spec in ACTION["inputs"].items()}, **inputs}
    variables = {
        variable: given[value.removeprefix("${{ inputs.").removesuffix(" }}")] if "inputs." in value else inputs["base"]
        for variable, value in STEPS[name]["env"].items()
    }
    path = {"PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]]  # as GitHub runs it
    return subprocess.run(
        command, cwd=directory, env={**environment(), **path, **variables}, capture_output=True, text=True, check=False
    )


def test_no_script_has_an_input_written_into_it() -> None:
    """An input in a script is run as part of it; it goes by a variable."""
    assert [step["name"] for step in STEPS.values() if "${{" in step["run"]] == []


def test_changed_recipes_are_linted_and_others_not(repository: Path) -> None:
    base = git(repository, "rev-parse", "HEAD")
    done = run_step(LINT, repository, {"base": base})
    assert (done.returncode, "no recipe has changed" in done.stdout) == (0, True), done.stderr
    (repository / "recipes" / "bad one.yaml").write_text(RECIPE)
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "bad")
    done = run_step(LINT, repository, {"base": base})
    assert done.returncode == 1, done.stdout + done.stderr
    (run,) = json.loads((repository / "weighbridge-sarif" / "lint.sarif").read_text())["runs"]
    places = {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in run["results"]}
    assert places == {"recipes/bad%20one.yaml"}


def test_named_recipes_are_linted_whatever_their_names(repository: Path) -> None:
    odd = "recipes/$(touch ran); good.yaml"
    (repository / "recipes" / "$(touch ran); good.yaml").write_text(GOOD)
    done = run_step(LINT, repository, {"base": "", "recipes": f"recipes/good.yaml\n{odd}\n"})
    assert (done.returncode, (repository / "ran").exists()) == (0, False), done.stdout + done.stderr


def test_checkpoint_is_held_against_the_policy(signed_builds: Path, repository: Path) -> None:
    (repository / "policy.yaml").write_text(f"signed_by: [{{key: {signed_builds / 'key.pub.pem'}}}]\n")
    (repository / "weighbridge-sarif").mkdir()
    inputs = {"base": "", "checkpoint": str(signed_builds / "build")}
    assert run_step(GATE, repository, inputs).returncode == 0
    (repository / "policy.yaml").write_text("licences: [MIT]\n")
    assert run_step(GATE, repository, inputs).returncode == 1
    assert json.loads((repository / "weighbridge-sarif" / "gate.sarif").read_text())["runs"][0]["results"]


@pytest.mark.campaign
def test_hooks_run_in_pre_commit_itself(repository: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "pre-commit"], check=True)
    (repository / "recipes" / "bad.yaml").write_text(RECIPE)
    git(repository, "add", "--all")
    for files, code in ((["recipes/good.yaml"], 0), (["recipes/good.yaml", "recipes/bad.yaml"], 1)):
        command = [str(python), "-m", "pre_commit", "try-repo", str(ROOT), "weighbridge-lint", "--files", *files]
        home = {"PRE_COMMIT_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            command, cwd=repository, env={**os.environ, **home}, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr


def test_hooks_are_what_pre_commit_asks_for() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert {hook["id"] for hook in hooks} == {"weighbridge-lint", "weighbridge-plan"}
    for hook in hooks:
        assert {"id", "name", "entry", "language", "files"} <= hook.keys()


@pytest.mark.parametrize(("recipe", "code"), [(GOOD, 0), (RECIPE, 1)], ids=["good", "bad"])
def test_plan_of_the_hook_is_made_for_each_recipe(recipe: str, code: int, repository: Path, mini: Path) -> None:
    (hook,) = [hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text()) if "plan" in hook["id"]]
    for name in ("one", "two"):
        (repository / "recipes" / f"{name}.yaml").write_text(recipe)
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["sh", "-c", f"{hook['entry']} recipes/one.yaml recipes/two.yaml"]
    with serve({"weighbridge/gemma-4-mini": mini}) as hub:
        asked = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "*",
            "HF_HOME": str(repository / "home"),
        }
        done = subprocess.run(
            command, cwd=repository, env={**environment(), **path, **asked}, capture_output=True, text=True, check=False
        )
    assert done.returncode == code, done.stdout + done.stderr
