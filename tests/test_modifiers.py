"""A recipe's modifiers: llm-compressor's own objects, refused by file and line before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.planning import KEPT, integers, recipe
from weighbridge.base.source import open_source, with_own_texts
from weighbridge.engines import oneshot
from weighbridge.engines.oneshot.modifiers import ALLOWED, make_modifiers
from weighbridge.errors import RecipeError
from weighbridge.recipe import LoadedRecipe, load_recipe
from weighbridge.recipe.catalogue import RECIPES

GEMMA = RECIPES / "google" / "gemma-4-26B-A4B-it"
W4 = {"group_0": {"targets": ["Linear"], "weights": integers(32)}}
DATA = {"dataset": {"hub": "org/chat"}, "samples": 2, "sequence_length": 8, "experts": "all"}

Load = Callable[..., LoadedRecipe]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a recipe of four-bit integers for oneshot, with these keys, from ``recipe.yaml`` in the working directory;
    text is YAML of its ``modifiers``."""
    monkeypatch.chdir(tmp_path)

    def make(text: str = "", **keys: Any) -> LoadedRecipe:
        content = recipe(KEPT, **{"scheme": None, "config_groups": W4, "method": "oneshot", **keys})
        Path("recipe.yaml").write_text(f"{text}{yaml.safe_dump(content, sort_keys=False)}")
        return load_recipe("recipe.yaml")

    return make


def test_without_modifiers_everything_is_rounded_to_nearest(load: Load) -> None:
    (modifier,) = make_modifiers(load()).instances
    assert type(modifier).__name__ == "QuantizationModifier"


def test_modifiers_stand_in_their_order_with_their_own_options(load: Load) -> None:
    made = make_modifiers(
        load(
            """\
modifiers:
  - SmoothQuantModifier: {smoothing_strength: 0.8, mappings: [[["re:.*q_proj"], "re:.*input_layernorm"]]}
  - GPTQModifier: {block_size: 64, dampening_frac: 0.05}
""",
            calibration=DATA,
        )
    )
    smooth, gptq = made.instances
    assert made.names == ("SmoothQuantModifier", "GPTQModifier")
    assert (smooth.smoothing_strength, smooth.mappings) == (0.8, [[["re:.*q_proj"], "re:.*input_layernorm"]])
    assert (gptq.block_size, gptq.dampening_frac) == (64, 0.05)


@pytest.mark.parametrize("name", ["GPTQModifier", "QuantizationModifier"])
def test_the_recipe_tells_the_modifier_that_quantizes_what_and_how(name: str, load: Load) -> None:
    loaded = load(f"modifiers: [{{{name}: {{}}}}]\n", kv_cache={"scheme": "FP8", "scales": "calibrated"})
    (modifier,) = make_modifiers(loaded).instances
    (group,) = modifier.resolved_config.config_groups.values()
    assert (group.targets, group.weights.num_bits, group.weights.group_size) == (["Linear"], 4, 32)
    assert modifier.ignore == list(KEPT)
    assert (modifier.kv_cache_scheme.num_bits, modifier.kv_cache_scheme.strategy) == (8, "tensor")


def test_awq_scales_and_a_modifier_behind_it_quantizes(load: Load) -> None:
    made = make_modifiers(
        load(
            """\
modifiers:
  - AWQModifier:
      n_grid: 4
      mappings: [{smooth_layer: "re:.*norm$", balance_layers: ["re:.*up_proj$"], activation_hook_target: experts}]
"""
        )
    )
    awq, quantization = made.instances
    (mapping,) = awq.mappings
    assert (mapping.smooth_layer, mapping.balance_layers, mapping.activation_hook_target) == (
        "re:.*norm$",
        ["re:.*up_proj$"],
        "experts",
    )
    assert (made.names[1], quantization.ignore) == ("QuantizationModifier", list(KEPT))
    assert made.needing_data == ("AWQModifier",)


REFUSED: dict[str, tuple[str, str]] = {
    "an unknown modifier": (
        "modifiers:\n  - MagicModifier: {}\n",
        f"recipe.yaml:2: 'MagicModifier' is no modifier here; there are {', '.join(ALLOWED)}",
    ),
    "one whose outcome no plan predicts": ("modifiers:\n  - REAPModifier: {}\n", "'REAPModifier' is no modifier here"),
    "an unknown key": (
        "modifiers:\n  - AWQModifier: {}\n  - GPTQModifier:\n      blocksize: 64\n",
        "recipe.yaml:3: GPTQModifier has no 'blocksize'; it has",
    ),
    "a key of training": ("modifiers:\n  - GPTQModifier: {start: 0}\n", "GPTQModifier has no 'start'"),
    "a wrong value": (
        "modifiers:\n  - GPTQModifier: {dampening_frac: much}\n",
        "recipe.yaml:2: GPTQModifier.dampening_frac: Input should be a valid number",
    ),
    "a value that its validator refuses": (
        "modifiers:\n  - AWQModifier: {duo_scaling: sometimes}\n",
        "recipe.yaml:2: AWQModifier.duo_scaling",
    ),
    "an unknown key of a mapping": (
        "modifiers:\n  - AWQModifier:\n      mappings: [{smooth: a, balance_layers: [b]}]\n",
        "recipe.yaml:2: AWQModifier.mappings.0",
    ),
    "a scheme": (
        "modifiers:\n  - GPTQModifier: {scheme: W4A16}\n",
        "recipe.yaml:2: GPTQModifier says 'scheme', which a recipe says once, outside its modifiers; "
        "say it under scheme or config_groups",
    ),
    "an ignore list": ("modifiers:\n  - QuantizationModifier: {ignore: [lm_head]}\n", "say it under ignore"),
    "a KV cache": ("modifiers:\n  - GPTQModifier: {kv_cache_scheme: {}}\n", "say it under kv_cache"),
    "two that quantize": (
        "modifiers:\n  - GPTQModifier: {}\n  - QuantizationModifier: {}\n",
        "recipe.yaml:3: QuantizationModifier quantizes what GPTQModifier quantizes already; keep one of the two",
    ),
    "two in one entry": (
        "modifiers:\n  - GPTQModifier: {}\n    AWQModifier: {}\n",
        "recipe.yaml:2: names 2 modifiers where one belongs; begin each with a dash of its own",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_modifier_can_be_is_refused_by_file_and_line(case: str, load: Load) -> None:
    modifiers, sentence = REFUSED[case]
    with pytest.raises(RecipeError) as refused:
        make_modifiers(load(modifiers, calibration=DATA))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "modifier"),
    [
        ({"scheme": "NVFP4", "config_groups": None}, "QuantizationModifier"),
        ({"kv_cache": {"scheme": "FP8", "scales": "calibrated"}}, "QuantizationModifier"),
        ({"modifiers": [{"GPTQModifier": {}}]}, "GPTQModifier"),
    ],
)
def test_what_must_see_data_is_refused_without_them(
    keys: dict[str, Any], modifier: str, load: Load, mini: Path
) -> None:
    with pytest.raises(RecipeError, match=f"recipe.yaml: {modifier} must see calibration data, and the recipe names"):
        oneshot.check(load(**keys), open_source("mini"))


def test_data_that_nothing_looks_at_are_refused(load: Load, mini: Path) -> None:
    loaded = load(scheme="FP8_DYNAMIC", config_groups=None, calibration=DATA)
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+: nothing in the recipe uses calibration data"):
        oneshot.check(loaded, open_source("mini"))


@pytest.mark.parametrize(
    "name",
    [
        *("nvfp4", "nvfp4-4o6", "nvfp4-gptq", "nvfp4-experts-fp8", "fp8-dynamic-kv8"),
        *("w4a16-gptq", "w4a16-awq", "w4a16-awq-gptq"),
    ],
)
def test_calibrated_recipes_of_the_catalogue_are_whole(name: str, mini: Path) -> None:
    source = open_source("mini")
    oneshot.check(with_own_texts(load_recipe(str(GEMMA / f"{name}.yaml")), source), source)
