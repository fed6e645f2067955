"""Why a plan decides as it does: every tensor has a rule, and a rule of the recipe has the recipe's own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import FP8_DYNAMIC, MINI_LOCK
from weighbridge.base.source import open_source
from weighbridge.planning import Plan, make_plan
from weighbridge.planning.reasons import reasons, rules_by_tensor
from weighbridge.recipe import load_recipe

ROUTER = "Routers choose experts by small differences, and vLLM does not load a quantized router.proj."


def plan_of(recipe: Path) -> Plan:
    return make_plan(load_recipe(str(recipe)), open_source(str(MINI_LOCK)))


def test_every_tensor_of_the_output_has_a_rule() -> None:
    plan = plan_of(FP8_DYNAMIC)
    assert rules_by_tensor(plan).keys() == plan.predicted.structure.keys()


def test_rule_of_the_recipe_is_named_with_its_line_and_without_its_directory() -> None:
    rules = rules_by_tensor(plan_of(FP8_DYNAMIC))
    line = 1 + FP8_DYNAMIC.read_text().splitlines().index("  - re:.*router")
    router = "model.language_model.layers.0.router.proj.weight"
    assert rules[router] == f"ignore re:.*router (fp8-dynamic.yaml:{line})"


def test_reason_is_the_comment_above_the_entry() -> None:
    plan = plan_of(FP8_DYNAMIC)
    router = rules_by_tensor(plan)["model.language_model.layers.0.router.proj.weight"]
    assert reasons(plan)[router] == ROUTER


def test_entry_without_a_comment_has_no_reason(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    lines = FP8_DYNAMIC.read_text().splitlines()
    recipe.write_text("\n".join(line for line in lines if not line.lstrip().startswith("#")))
    assert reasons(plan_of(recipe)) == {}


def test_reason_comes_with_what_is_extended(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"extends: {FP8_DYNAMIC}\nname: mine\nscheme: FP8_BLOCK\n")
    found = reasons(plan_of(recipe))
    assert [why for rule, why in found.items() if rule.startswith("ignore re:.*router (fp8-dynamic.yaml:")] == [ROUTER]


@pytest.mark.parametrize("directory", ["with space", "a.b", "deep/er"])
def test_directory_of_a_recipe_is_in_no_rule(directory: str, tmp_path: Path) -> None:
    recipe = tmp_path / directory / "recipe.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_bytes(FP8_DYNAMIC.read_bytes())
    assert not [rule for rule in rules_by_tensor(plan_of(recipe)).values() if directory in rule]
