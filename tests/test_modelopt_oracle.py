"""NVIDIA's own modelopt builds the miniature: what it writes holds here, and is what the locks say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Command, Once, environment
from tests.miniature_locks import lock_name
from tests.modelopt_locks import BUILDS
from weighbridge.base.locks import lock_path

pytestmark = [pytest.mark.campaign, pytest.mark.parametrize("build", BUILDS)]

INSTALL = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", "constraints.txt")
REQUIREMENTS = ("--requirement", "tests/modelopt-requirements.txt")


@pytest.fixture(scope="module")
def oracle(once: Once) -> Path:
    """A directory with ``builds`` and ``locks``, made by `tests.modelopt_locks` in an environment that has modelopt."""

    def make(directory: Path) -> None:
        home = directory / "environment"
        python = home / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([python, *INSTALL, *REQUIREMENTS], cwd=ROOT, check=True)
        arguments = (directory / "builds", directory / "locks")
        script = (python, "-m", "tests.modelopt_locks", *arguments)
        subprocess.run(script, cwd=ROOT, env=environment({"PYTHONPATH": "src"}), check=True)
        shutil.rmtree(home)  # more than a gigabyte, of no more use

    return once("modelopt", make)


def test_what_modelopt_writes_holds(build: str, oracle: Path, call_validate: Command) -> None:
    outcome = call_validate(oracle / "builds" / Path(lock_name(build)).name)
    assert outcome.code == 0, outcome.out + outcome.err


def test_what_modelopt_writes_is_what_the_lock_says(build: str, oracle: Path) -> None:
    lock = lock_path(lock_name(build))
    assert (oracle / "locks" / lock.name).read_text() == lock.read_text()
