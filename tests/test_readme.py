"""Every command that the README shows is run here, as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from weighbridge.source import make_miniature

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.strip()]

# What a reader has in another place, or what cannot be done here: the model's weights, a GPU, a network.
PLACES = {"/models/gemma-4-26B-A4B-it-FP8": "{scratch}/out", "/models/gemma-4-26B-A4B-it": "{mini}", "cuda:0": "cpu"}
NEEDS_NETWORK = "make fp8-dynamic"
RUNS_THE_TESTS = {"make test", "make test-all"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which builds are made without getting into anybody's way: links to everything but builds/."""
    directory = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name not in ("builds", ".git"):
            (directory / path.name).symlink_to(path)
    return directory


def run(command: str, workplace: Path, scratch: Path) -> subprocess.CompletedProcess[str]:
    for written, here in PLACES.items():
        command = command.replace(written, here.format(scratch=scratch, mini=make_miniature()))
    environment = os.environ | {"PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    arguments = shlex.split(command)
    return subprocess.run(arguments, cwd=workplace, env=environment, capture_output=True, text=True, check=False)


def test_the_readme_shows_commands() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in RUNS_THE_TESTS and c != NEEDS_NETWORK])
def test_command_of_the_readme_does_what_it_promises(command: str, workplace: Path, tmp_path: Path) -> None:
    if "builds/example" in command and not (workplace / "builds/example").exists():
        assert run(COMMANDS[[*map(is_example, COMMANDS)].index(True)], workplace, tmp_path).returncode == 0
    done = run(command, workplace, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def is_example(command: str) -> bool:
    """Whether a command makes the build that the following ones validate."""
    return command.startswith("python build.py") and "--output builds/example" in command


def test_the_main_job_without_a_network_says_what_to_do_instead(workplace: Path, tmp_path: Path) -> None:
    assert NEEDS_NETWORK in COMMANDS
    done = run(NEEDS_NETWORK, workplace, tmp_path)
    assert done.returncode == 2
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "google/gemma-4-26B-A4B-it" in sentence
    assert "MODEL=" in sentence
    assert "make demo" in sentence


@pytest.mark.parametrize("command", sorted(RUNS_THE_TESTS & set(COMMANDS)))
def test_the_tests_are_run_by_pytest(command: str, workplace: Path, tmp_path: Path) -> None:
    assert "-m pytest" in run(f"{command} --dry-run", workplace, tmp_path).stdout


def test_the_demo_runs_twice_and_says_where_everything_lies(workplace: Path, tmp_path: Path) -> None:
    for _ in range(2):
        done = run("make demo", workplace, tmp_path)
        assert done.returncode == 0, done.stderr
    assert "PASS" in done.stdout
    for word in ("the checkpoint:", "its recipe:", "its reference:"):
        assert word in done.stdout
