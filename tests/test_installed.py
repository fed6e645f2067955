"""The wheel: it has the catalogue, and one command for everything."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import ROOT
from weighbridge.__main__ import COMMANDS
from weighbridge.planning.declare import WRITTEN_AS_BY
from weighbridge.recipe.catalogue import recipe_names, unit_names


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
    assert all((unpacked / f"weighbridge/recipes/units/{name}.yaml").is_file() for name in unit_names())
    assert (unpacked / "weighbridge/report/page.html.j2").is_file()
    lock = unpacked / "weighbridge/references/google/gemma-4-26B-A4B-it.yaml"
    done = weighbridge("plan", "fp8-dynamic", "--model", str(lock), "--format", "json", path=unpacked)
    assert done.returncode == 0, done.stderr
    assert f"{unpacked.name}/weighbridge/recipes" in done.stdout


BUILDS = ("numba", "llvmlite", "torch", "llmcompressor", "compressed_tensors", "transformers", "accelerate", "datasets")
WITHOUT = f"""import sys
sys.modules.update(dict.fromkeys({(*BUILDS, "pyarrow", "safetensors", "loguru", "tokenizers")!r}))
import importlib.util as util
find = util.find_spec
util.find_spec = lambda name, *rest: None if sys.modules.get(name, 0) is None else find(name, *rest)
"""
"""Python in which the packages of a build are not to be had."""


def without_builds(*arguments: str | Path, but: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command where only the packages of the core are; `but` these are, too."""
    script = f"{WITHOUT}for name in {but!r}:\n    del sys.modules[name]\n"
    script += f"sys.argv = {['weighbridge', *map(str, arguments)]!r}\n"
    script += "from weighbridge.__main__ import main\nsys.exit(main())"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


CORE: dict[str, tuple[str, ...]] = {
    "plan": ("plan", "nvfp4", "--model", "mini"),
    "lint": ("lint", "fp8-dynamic", "w4a16-awq"),
    "recipes": ("recipes", "--model", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    "validate": ("validate", "BUILD", "--recipe", "fp8-dynamic"),
    "evidence": ("validate", "BUILD", "--evidence", "--source", "mini"),
    "explain": ("explain", "scheme/observer"),
    "schema": ("schema", "recipe"),
}


@pytest.mark.parametrize("command", CORE.values(), ids=CORE)
def test_core_needs_nothing_that_builds(command: tuple[str, ...], mini_build: Path) -> None:
    done = without_builds(*(mini_build if word == "BUILD" else word for word in command))
    assert done.returncode == 0, done.stderr + done.stdout


def test_differences_need_nothing_that_builds(mini_build: Path) -> None:
    done = without_builds("diff", "mini", mini_build)
    assert done.returncode == 1, done.stderr
    assert "DIFFERS" in done.stdout


def test_data_free_build_and_its_audit_need_numba_alone(tmp_path: Path) -> None:
    arguments = ("build", "nvfp4a16", "--model", "mini", "--audit", "--output", tmp_path / "build")
    done = without_builds(*arguments, but=("numba", "llvmlite"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("build", "fp8-dynamic", "--model", "mini"), "weighbridge[build]"),
        (("validate", "BUILD", "--source", "mini"), "weighbridge[audit]"),
        (("reproduce", "BUILD", "--model", "mini"), "weighbridge[build]"),
        (("evaluate", "BUILD", "--source", "mini"), "weighbridge[build]"),
    ],
    ids=["build", "audit", "reproduce", "evaluate"],
)
def test_what_packages_are_missing_for_is_one_sentence(command: tuple[str, ...], extra: str, mini_build: Path) -> None:
    done = without_builds(*(mini_build if word == "BUILD" else word for word in command))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"pip install '{extra}'" in done.stderr


def test_format_is_that_of_the_compressed_tensors_that_is_tested() -> None:
    assert version("compressed-tensors") == WRITTEN_AS_BY


@pytest.mark.campaign
def test_core_is_installed_into_an_empty_environment_and_works_elsewhere(tmp_path: Path, mini_build: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", ROOT]
    subprocess.run(pip, check=True)
    packages = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "torch" not in packages and "numba" not in packages
    for command in CORE.values():
        words = [str(mini_build) if word == "BUILD" else word for word in command]
        done = subprocess.run(
            [python, "-m", "weighbridge", *words],
            cwd=tmp_path,
            env={"HF_HUB_OFFLINE": "1", "WEIGHBRIDGE_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
    built = tmp_path / "built"
    subprocess.run([*pip[:-1], "numba"], check=True)
    build: list[str | Path] = [
        python,
        "-m",
        "weighbridge",
        "build",
        "fp8-dynamic",
        "--model",
        "mini",
        "--audit",
        "--output",
        built,
    ]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (built / "model.safetensors").read_bytes() == (mini_build / "model.safetensors").read_bytes()


def test_recipes_are_listed_for_a_model_and_a_card_as_json_too() -> None:
    done = weighbridge("recipes", "--model", "google/gemma-4-26B-A4B-it", "--gpu", "24GB", "--format", "json")
    assert done.returncode == 0, done.stderr
    listed = {item["name"].rpartition("/")[2]: item for item in json.loads(done.stdout)["recipes"]}
    assert (listed["fp8-dynamic"]["fits"], listed["nvfp4a16"]["fits"]) == (False, True)
    assert listed["fp8-dynamic"]["bytes"] > listed["nvfp4a16"]["bytes"] > 10**10
    none = weighbridge("recipes", "--model", "google/gemma-4-26B-A4B-it", "--gpu", "8GB")
    assert (none.returncode, none.stdout.splitlines()[0].split()) == (1, ["recipe", "method", "GB", "fits"])
    unknown = weighbridge("recipes", "--model", "nobody/nothing")
    assert (unknown.returncode, "new-recipe nobody/nothing" in unknown.stderr) == (2, True)


def test_rule_is_explained_and_a_misspelt_one_asked_about() -> None:
    assert "No recipe may break it." in weighbridge("explain", "serve/undeclared").stdout
    assert "allow: base/unpinned because" in weighbridge("explain", "base/unpinned").stdout
    assert "stops nothing" in weighbridge("explain", "ignore/tied").stdout
    wrong = weighbridge("explain", "ignore/teid")
    assert (wrong.returncode, "did you mean ignore/tied?" in wrong.stderr) == (2, True)


def test_help_of_a_command_is_asked_for_by_name() -> None:
    assert weighbridge("help", "diff").stdout == weighbridge("diff", "--help").stdout
    assert weighbridge("help").stdout == weighbridge("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fp8-dynamic", "MODLE=mini"), "make fp8-dynamic takes no MODLE; it takes MODEL OUTPUT DEVICE ARGS"),
        (("plan", "RECIPE=w4a16"), "make plan takes no RECIPE; it takes MODEL ARGS"),
        (("demo", "MODEL=mini"), "make demo takes no MODEL; it takes no variables"),
        (("fp8-dynamic", "MODEL=mini", "ARGS=--workers 1 --seed=3", "-n"), "--model mini"),
        (("plan", "MODEL=mini", "-n"), "--plan --model mini"),
    ],
    ids=[
        "misspelt",
        "of another target",
        "of a target that takes none",
        "arguments with an equals sign",
        "a plan of another model",
    ],
)
def test_variables_of_make_are_taken_or_refused(arguments: tuple[str, ...], said: str) -> None:
    done = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert said in done.stdout + done.stderr
    assert (done.returncode == 0) == ("-n" in arguments)


@pytest.mark.parametrize("command", [("lint", "fp8-dynamic"), ("diff", "mini", "mini")], ids=["lint", "diff"])
def test_report_over_a_key_is_refused_by_new_commands_too(command: tuple[str, ...], tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("-----BEGIN PRIVATE KEY-----\n")
    done = weighbridge(*command, "--report", str(key))
    assert (done.returncode, key.read_text()) == (2, "-----BEGIN PRIVATE KEY-----\n")


def test_recipe_of_no_lock_is_not_judged_and_does_not_pass() -> None:
    done = weighbridge("lint", "google/gemma-4-12B-it/fp8-dynamic")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--model" in done.stderr


def test_whole_catalogue_is_listed_for_a_card() -> None:
    done = weighbridge("recipes", "--gpu", "24GB", "--format", "json")
    assert done.returncode == 0, done.stderr
    fits = {item["name"]: item["fits"] for item in json.loads(done.stdout)["recipes"]}
    assert fits["google/gemma-4-26B-A4B-it/w4a16"] is True
    assert fits["google/gemma-4-31B-it/fp8-dynamic"] is None
