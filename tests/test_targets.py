"""Every build target of the Makefile makes its build of the miniature, from one call and without a network."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment
from weighbridge.recipe.catalogue import MAIN_MODEL, find_recipe, recipe_names

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.search(r"^RECIPES := ((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
assert TARGETS is not None
RECIPES = TARGETS[1].replace("\\", "").split()


def test_each_recipe_of_the_main_model_is_a_target_and_each_target_a_recipe() -> None:
    of_main_model = {name.rpartition("/")[2] for name in recipe_names() if name.startswith(f"{MAIN_MODEL}/")}
    elsewhere = {"qat-nvfp4-full-modelopt", "nvfp4-mlp-modelopt"}
    assert set(RECIPES) == of_main_model | elsewhere
    assert all(find_recipe(name).is_file() for name in RECIPES)


@pytest.mark.parametrize("target", RECIPES)
def test_each_target_says_in_make_help_what_it_builds(target: str) -> None:
    assert re.search(rf"^{re.escape(target)}: ## \w", MAKEFILE, re.MULTILINE)


@pytest.mark.campaign
@pytest.mark.parametrize("target", RECIPES)
def test_one_make_call_builds_the_miniature_offline_and_holds_it_against_its_reference(
    target: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["make", target, "MODEL=mini", f"OUTPUT={tmp_path / 'build'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    held = " ".join(done.stdout.split("PASS")[1].split())
    assert "against weighbridge/gemma-4-mini-" in held
    assert "names, dtypes, shapes and schemes are the same" in held
