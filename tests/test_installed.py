"""The wheel: it has the catalogue, and one command for everything."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

from tests.conftest import ROOT
from weighbridge.__main__ import COMMANDS
from weighbridge.recipe.catalogue import recipe_names


def weighbridge(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; with `path`, the package that lies there."""
    first = f"sys.path.insert(0, {str(path)!r})" if path else ""
    script = f"""import sys
sys.argv = ["weighbridge", *{list(arguments)!r}]
{first}
from weighbridge.__main__ import main
sys.exit(main())
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd="/")


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_there_and_says_what_it_takes(command: str) -> None:
    assert callable(import_module(f"weighbridge.cli.{COMMANDS[command][0]}").main)


def test_without_a_command_the_commands_are_listed() -> None:
    done = weighbridge()
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("typed", "remedy"), [("biuld", "did you mean build?"), ("xyz", "'weighbridge --help' lists them")]
)
def test_unknown_command_is_refused_in_one_sentence(typed: str, remedy: str) -> None:
    done = weighbridge(typed)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: there is no command {typed!r}; {remedy}\n"


def test_plan_is_a_build_that_stops_before_it() -> None:
    lock = ROOT / "references/google/gemma-4-26B-A4B-it.yaml"
    done = weighbridge("plan", "fp8-dynamic", "--model", str(lock))
    assert done.returncode == 0, done.stderr
    assert "24,198 tensors" in done.stdout


@pytest.mark.campaign
def test_wheel_holds_recipes_and_locks_and_plans_with_them(tmp_path: Path) -> None:
    made = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(made, check=True)
    (wheel,) = tmp_path.glob("weighbridge-*.whl")
    unpacked = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(unpacked)
    assert all((unpacked / "weighbridge/recipes" / f"{name}.yaml").is_file() for name in recipe_names())
    assert (unpacked / "weighbridge/report/page.html.j2").is_file()
    lock = unpacked / "weighbridge/references/google/gemma-4-26B-A4B-it.yaml"
    done = weighbridge("plan", "fp8-dynamic", "--model", str(lock), "--format", "json", path=unpacked)
    assert done.returncode == 0, done.stderr
    assert f"{unpacked.name}/weighbridge/recipes" in done.stdout
