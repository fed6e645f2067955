"""A recipe that plans without an error can be built: every preset, by every method, modifier and observer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Once
from tests.planning import recipe_text
from tests.toy_models import TOYS
from weighbridge.base.source import open_source
from weighbridge.building import BuildRequest, build
from weighbridge.errors import RecipeError
from weighbridge.formats.observers import OBSERVERS
from weighbridge.formats.schemes import PRESETS, to_config
from weighbridge.linting import lint
from weighbridge.planning import make_plan
from weighbridge.progress import Progress
from weighbridge.recipe import LoadedRecipe, read_recipe
from weighbridge.report import Severity

pytestmark = pytest.mark.usefixtures("one_thread")

KEPT = ["lm_head", "re:.*embed.*", "re:.*norm.*", "re:.*down_proj"]
"""Of the toy, whose inner width no group of 128 divides; so that AWQ meets layers of which nothing is quantized."""
ALLOWED = [f"{rule} because it is a test of builds" for rule in ("coverage/low", "serve/no-kernel")]
METHODS: Mapping[str, Mapping[str, Any]] = {
    "model_free_ptq": {"method": "model_free_ptq"},
    "oneshot": {"method": "oneshot"},
    **{
        name: {"method": "oneshot", "modifiers": [{name: {}}]}
        for name in ("QuantizationModifier", "GPTQModifier", "AWQModifier", "SmoothQuantModifier")
    },
}
NO_OBSERVER = "none"

Outcome = Callable[[Mapping[str, Any]], str]


@pytest.fixture
def outcome(once: Once, tmp_path: Path) -> Outcome:
    """What becomes of a recipe: ``built``, or what its plan says against it. A build that fails, fails the test."""
    toy = once("toy-llama", TOYS["llama"])
    text = tmp_path / "text.txt"
    text.write_text("".join(f"sentence {number} of some text, {number * 7919 % 1000}\n" for number in range(16)))
    data = {"dataset": {"file": str(text)}, "samples": 4, "sequence_length": 32, "experts": "all"}

    def read(content: Mapping[str, Any]) -> LoadedRecipe:
        return read_recipe(recipe_text(content).encode(), where="recipe.yaml")

    def of(keys: Mapping[str, Any]) -> str:
        base = {"model": "example-org/toy", "licence": "apache-2.0"}
        content = {"name": "test", "description": "A test.", "base": base, "ignore": KEPT, "allow": ALLOWED, **keys}
        try:
            loaded = read(content)
            if loaded.recipe.method == "oneshot" and loaded.recipe.needing_data:
                loaded = read({**content, "calibration": data})
        except RecipeError as error:
            assert "\n" not in str(error)
            return str(error)
        source = open_source(str(toy))
        errors = [found for found in lint(make_plan(loaded, source)) if found.severity is Severity.ERROR]
        if errors:
            assert all(error.remedy for error in errors)
            return f"{errors[0].rule}: {errors[0].message}"
        request = BuildRequest(loaded=loaded, source=source, output=tmp_path / "build", force=True)
        report = build(request, progress=Progress(shown=False))
        assert report.holds, report.verdict
        return "built"

    return of


def content_of(preset: str, observer: str) -> dict[str, Any]:
    """A preset by its name, or spelled out with an observer of its weights."""
    if observer == NO_OBSERVER:
        return {"scheme": preset.lower()}
    group = {key: value for key, value in to_config(PRESETS[preset]).items() if value is not None and key != "format"}
    group["weights"] = {**group["weights"], "observer": observer}
    return {"config_groups": {"all": group}}


A_FEW = [
    (preset, method, observer)
    for (preset, method), observer in zip(
        zip(PRESETS, cycle(METHODS), strict=False),
        cycle([NO_OBSERVER, *OBSERVERS, NO_OBSERVER]),
        strict=False,
    )
]
"""Every preset, and in turn every method and observer."""


@pytest.mark.parametrize(("preset", "method", "observer"), A_FEW)
def test_what_plans_is_built(preset: str, method: str, observer: str, outcome: Outcome) -> None:
    found = outcome({**METHODS[method], **content_of(preset, observer)})
    assert found == "built" or found.startswith(("scheme/", "recipe.yaml:")), found


@pytest.mark.parametrize(("options", "expected"), [({}, "scheme/strategy: "), ({"duo_scaling": False}, "built")])
def test_awq_takes_ragged_blocks_without_their_weights_alone(
    options: dict[str, Any], expected: str, outcome: Outcome
) -> None:
    content = {"method": "oneshot", "scheme": "FP8_BLOCK", "modifiers": [{"AWQModifier": options}]}
    assert outcome(content).startswith(expected)


@pytest.mark.parametrize("order", [("QuantizationModifier", "GPTQModifier"), ("GPTQModifier", "QuantizationModifier")])
def test_a_module_that_two_modifiers_target_is_the_first_groups(order: tuple[str, str], outcome: Outcome) -> None:
    first, second = order
    groups = {
        "all": {"targets": ["Linear"], "scheme": "W8A8"},
        "keys": {"targets": ["re:.*k_proj"], "scheme": "W4A16"},
    }
    modifiers = [{first: {"groups": ["keys"]}}, {second: {"groups": ["all"]}}]
    allowed = [*ALLOWED, "fused/schemes-differ because it is a test of builds"]
    assert outcome({"method": "oneshot", "config_groups": groups, "modifiers": modifiers, "allow": allowed}) == "built"


@pytest.mark.campaign
@pytest.mark.parametrize("observer", [NO_OBSERVER, *OBSERVERS])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", PRESETS)
def test_whatever_plans_is_built(preset: str, method: str, observer: str, outcome: Outcome) -> None:
    found = outcome({**METHODS[method], **content_of(preset, observer)})
    assert found == "built" or found.startswith(("scheme/", "recipe.yaml:")), found
