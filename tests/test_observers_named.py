"""Every recipe names the observer of each scale that its build chooses, so that no default of upstream's decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from tests.test_modifiers import QUANTIZING
from weighbridge.engines.oneshot.modifiers import make_modifiers
from weighbridge.formats.observers import MIN_MAX, MOVING_MIN_MAX, OBSERVERS, with_observers
from weighbridge.formats.schemes import PRESETS, to_config
from weighbridge.planning.declare import compressed_tensors_config, declaration_of
from weighbridge.recipe import load_recipe
from weighbridge.recipe.catalogue import find_recipe, recipe_names

KINDS = {"weights": "weight", "input_activations": "input", "output_activations": "output"}
"""Whose scales a config group is about -> what llm-compressor calls it."""

RECIPES = {name: load_recipe(name) for name in recipe_names()}
QUANTIZE = [name for name, loaded in RECIPES.items() if loaded.recipe.method != "convert"]
CALIBRATE = [name for name in QUANTIZE if RECIPES[name].recipe.method == "oneshot"]


def chosen(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The observers of a quantization config, of all scales that are not taken wholly as values arrive."""
    for name, group in config["config_groups"].items():
        for kind in KINDS:
            if group.get(kind) is not None and group[kind]["dynamic"] is not True:
                yield f"{name}.{kind}", group[kind]["observer"]
    if config.get("kv_cache_scheme") is not None:
        yield "kv_cache_scheme", config["kv_cache_scheme"]["observer"]


@pytest.mark.parametrize("name", QUANTIZE)
def test_what_a_build_declares_names_an_observer_for_each_scale(name: str) -> None:
    recipe = RECIPES[name].recipe
    said = dict(chosen(compressed_tensors_config(declaration_of(recipe))))
    if recipe.kv_cache is not None and recipe.kv_cache.scales == "none":
        assert said.pop("kv_cache_scheme") is None  # servers take 1
    assert said
    assert set(said.values()) <= OBSERVERS.keys()


@pytest.mark.parametrize("name", CALIBRATE)
def test_what_oneshot_is_handed_names_an_observer_for_each_scale(name: str) -> None:
    recipe = RECIPES[name].recipe
    (modifier,) = [each for each in make_modifiers(RECIPES[name]).instances if type(each).__name__ in QUANTIZING]
    handed = modifier.model_dump(include={"config_groups", "kv_cache_scheme"})
    declared = dict(chosen(compressed_tensors_config(declaration_of(recipe))))
    if recipe.kv_cache is not None and recipe.kv_cache.scales == "none":
        declared.pop("kv_cache_scheme")
    assert dict(chosen(handed)) == declared


@pytest.mark.parametrize("name", QUANTIZE)
def test_groups_that_are_spelled_out_name_theirs_in_the_file(name: str) -> None:
    groups = yaml.safe_load(find_recipe(name).read_text()).get("config_groups", {})
    for group in groups.values():
        for args in (group[kind] for kind in KINDS if kind in group):
            assert args.get("dynamic") is True or args["observer"] in OBSERVERS


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_mean_what_they_mean_upstream(preset: str) -> None:
    """Fails where a default of upstream changes: names here stay, and the docs are to say what differs."""
    import torch
    from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
    from llmcompressor.modifiers.quantization.calibration import initialize_observer

    def observers(scheme: Any) -> dict[str, Any]:
        linear = torch.nn.Linear(256, 256)
        linear.quantization_scheme = scheme
        for kind in KINDS.values():
            initialize_observer(linear, kind)
        found = {kind: getattr(linear, f"{kind}_observer", None) for kind in KINDS.values()}
        return {kind: type(observer) for kind, observer in found.items() if observer is not None}

    ours = {"targets": ["Linear"], **to_config(with_observers(PRESETS[preset]))}
    theirs = observers(preset_name_to_scheme(preset, ["Linear"]))
    assert observers(QuantizationScheme.model_validate(ours)) == theirs != {}


@pytest.mark.parametrize(("kind", "name"), [("weight", MIN_MAX), ("input", MOVING_MIN_MAX), ("output", MOVING_MIN_MAX)])
def test_what_is_taken_where_nothing_is_said_is_upstreams_default(kind: str, name: str) -> None:
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization.calibration import initialize_observer
    from llmcompressor.observers import Observer

    args = QuantizationArgs(num_bits=8, type="float", strategy="tensor")
    linear = torch.nn.Linear(8, 8)
    linear.quantization_scheme = QuantizationScheme(
        targets=["Linear"], weights=args, input_activations=args, output_activations=args
    )
    initialize_observer(linear, kind)
    named = Observer.load_from_registry(name, base_name=kind, args=args)
    assert type(getattr(linear, f"{kind}_observer")) is type(named)
