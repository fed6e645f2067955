"""The recipe's JSON Schema: what an editor accepts is what the loader accepts, for every recipe there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from weighbridge.cli.schema import PLACES, schema_text
from weighbridge.recipe.catalogue import RECIPES, recipe_names
from weighbridge.recipe.json_schema import json_schema

SCHEMA = PLACES["recipe"]
FP8 = yaml.safe_load((RECIPES / "google/gemma-4-26B-A4B-it/fp8-dynamic.yaml").read_text())


def accepts(recipe: Any) -> bool:
    return bool(Draft202012Validator(json_schema()).is_valid(recipe))


def test_published_schema_is_that_of_the_models() -> None:
    assert SCHEMA.read_text() == schema_text("recipe"), "weighbridge schema recipe writes it anew"


def test_schema_is_one() -> None:
    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_of_the_catalogue_is_accepted(name: str) -> None:
    assert accepts(yaml.safe_load((RECIPES / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_names_the_schema_for_editors(name: str) -> None:
    path = RECIPES / f"{name}.yaml"
    first = path.read_text().splitlines()[0]
    assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve() == SCHEMA


MISTAKES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a misspelt key": lambda recipe: recipe.update(ignored=["lm_head"]),
    "a misspelt key within": lambda recipe: recipe["base"].update(license="mit"),
    "no base": lambda recipe: recipe.pop("base"),
    "an unknown method": lambda recipe: recipe.update(method="ptq"),
    "text for a list": lambda recipe: recipe.update(ignore="lm_head"),
    "a change that is none": lambda recipe: recipe.update(ignore={"ad": ["lm_head"]}),
    "something beside a unit": lambda recipe: recipe.update(ignore=[{"use": "tied-head", "allow": "a/b because"}]),
    "a short revision": lambda recipe: recipe["base"].update(revision="4d7ae49"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_marked(mistake: str) -> None:
    recipe = json.loads(json.dumps(FP8))
    assert accepts(recipe)
    MISTAKES[mistake](recipe)
    assert not accepts(recipe)


def test_recipe_that_extends_another_may_say_less() -> None:
    assert accepts({"name": "mine", "extends": "fp8-dynamic"})
    assert not accepts({"name": "mine"})


def test_recipe_that_extends_another_may_change_its_lists() -> None:
    changes = {"ignore": {"add": ["a", {"use": "tied-head"}], "remove": ["lm_head"]}, "allow": {"remove": ["x"]}}
    assert accepts({"name": "mine", "extends": "fp8-dynamic", **changes})
