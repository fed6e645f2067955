"""A recipe's modifiers: llm-compressor's own objects, refused by file and line before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from tests.planning import KEPT, integers, recipe
from weighbridge.base.source import open_source, with_own_texts
from weighbridge.engines import oneshot
from weighbridge.engines.oneshot.modifiers import MODULES, make_modifiers
from weighbridge.errors import RecipeError
from weighbridge.linting import lint
from weighbridge.planning import make_plan
from weighbridge.recipe import LoadedRecipe, load_recipe
from weighbridge.recipe.catalogue import RECIPES
from weighbridge.recipe.modifiers import ELSEWHERE, Modifier
from weighbridge.recipe.modifiers import REFUSED as NOT_TAKEN

GEMMA = RECIPES / "google" / "gemma-4-26B-A4B-it"
W4 = {"group_0": {"targets": ["Linear"], "weights": integers(32)}}
DATA = {"dataset": {"hub": "org/chat"}, "samples": 2, "sequence_length": 8, "experts": "all"}

QUANTIZING = ("GPTQModifier", "QuantizationModifier")

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


REFUSED: dict[str, tuple[str, str]] = {
    "a misspelt modifier": (
        "modifiers:\n  - GTPQModifier: {}\n",
        "recipe.yaml:2: unknown key 'modifiers.0.GTPQModifier'; did you mean 'GPTQModifier'?",
    ),
    **{
        name: (f"modifiers:\n  - {name}: {{}}\n", f"recipe.yaml:2: modifiers.0: {name} {why}")
        for name, why in NOT_TAKEN.items()
    },
    "an unknown key": (
        "modifiers:\n  - AWQModifier: {}\n  - GPTQModifier:\n      blocksize: 64\n",
        "recipe.yaml:4: unknown key 'modifiers.1.GPTQModifier.blocksize'; did you mean 'block_size'?",
    ),
    "a key of training": ("modifiers:\n  - GPTQModifier: {start: 0}\n", "unknown key 'modifiers.0.GPTQModifier.start'"),
    "nothing where options stand": ("modifiers:\n  - GPTQModifier:\n", "write {} where nothing is said of it"),
    "a wrong value": (
        "modifiers:\n  - GPTQModifier: {dampening_frac: much}\n",
        "recipe.yaml:2: modifiers.0.GPTQModifier.dampening_frac: Input should be a valid number",
    ),
    "a share that is none": ("modifiers:\n  - GPTQModifier: {dampening_frac: 0}\n", "should be greater than 0"),
    "an order that servers refuse": (
        "modifiers:\n  - GPTQModifier: {actorder: group}\n",
        "actorder: group is no longer known to compressed-tensors 0.19",
    ),
    "an unknown order": ("modifiers:\n  - GPTQModifier: {actorder: columns}\n", "actorder cannot be 'columns'"),
    "two orders": (
        "modifiers:\n  - GPTQModifier: {actorder: null}\nconfig_groups:\n  all:\n    weights: {num_bits: 4, type: int, "
        "actorder: weight}\n",
        "GPTQModifier says actorder: null, and the config group 'all' weight; say it once",
    ),
    "a grid too small to be searched": ("modifiers:\n  - AWQModifier: {n_grid: 2}\n", "greater than or equal to 4"),
    "an unknown key of a mapping": (
        "modifiers:\n  - AWQModifier:\n      mappings: [{smooth: a, balance_layers: [b]}]\n",
        "unknown key 'modifiers.0.AWQModifier.mappings.0.smooth'",
    ),
    "one scale for a weight of which columns are weighed": (
        "modifiers:\n  - AWQModifier: {}\nconfig_groups:\n  all:\n    weights: {num_bits: 8, type: int}\n",
        "AWQModifier has no duo_scaling where a whole weight has one scale; say duo_scaling: false",
    ),
    "a scheme": (
        "modifiers:\n  - GPTQModifier: {scheme: W4A16}\n",
        "recipe.yaml:2: modifiers.0.GPTQModifier: a recipe says 'scheme' once, outside its modifiers: "
        "under scheme or config_groups",
    ),
    "an ignore list": ("modifiers:\n  - QuantizationModifier: {ignore: [lm_head]}\n", "under ignore"),
    "an observer": ("modifiers:\n  - GPTQModifier: {weight_observer: mse}\n", "under observer of a config group"),
    "a KV cache": ("modifiers:\n  - GPTQModifier: {kv_cache_scheme: {}}\n", "under kv_cache"),
    "two that quantize the same": (
        "modifiers:\n  - GPTQModifier: {}\n  - QuantizationModifier: {}\n",
        "modifiers: two quantize; say under groups of each which of the config_groups it quantizes",
    ),
    "a group that nothing quantizes": (
        "modifiers:\n  - GPTQModifier: {groups: [one]}\nconfig_groups:\n  one: {scheme: W4A16, targets: [a]}\n  two:\n"
        "    {scheme: W8A16, targets: [b]}\n",
        "modifiers: none quantizes the config group 'two'",
    ),
    "a group that there is not": ("modifiers:\n  - GPTQModifier: {groups: [x]}\n", "there is no config group 'x'"),
    "one that scales what is quantized": (
        "modifiers:\n  - GPTQModifier: {}\n  - AWQModifier: {}\n",
        "AWQModifier stands behind a modifier that quantizes what it would scale; put it first",
    ),
    "one twice": ("modifiers:\n  - AWQModifier: {}\n  - AWQModifier: {}\n", "modifiers: AWQModifier stands twice"),
    "two in one entry": (
        "modifiers:\n  - GPTQModifier: {}\n    AWQModifier: {}\n",
        "recipe.yaml:2: modifiers.0: 2 modifiers stand where one belongs; begin each with a dash of its own",
    ),
    "no groups": ("config_groups: {}\n", "recipe.yaml:1: config_groups has no group; name one"),
    "no targets": ("config_groups: {a: {scheme: W4A16, targets: []}}\n", "config_groups.a.targets must not be empty"),
    "nothing to quantize to": ("config_groups: {a: {scheme: unquantized}}\n", "quantizes nothing; keep modules by"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_modifier_can_be_is_refused_by_file_and_line_before_anything_is_planned(case: str, load: Load) -> None:
    text, sentence = REFUSED[case]
    with pytest.raises(RecipeError) as refused:
        load(text, calibration=DATA, **({"config_groups": None} if "config_groups:" in text else {}))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", MODULES)
def test_options_of_a_modifier_are_those_of_llm_compressor(name: str) -> None:
    from importlib import import_module

    from llmcompressor.modifiers import Modifier as Upstream

    kind = getattr(import_module(MODULES[name]), name)
    theirs = {key for key in kind.model_fields if key not in Upstream.model_fields and not key.endswith("_")}
    ours = get_args(Modifier.model_fields[name].annotation)[0]
    elsewhere = set(ELSEWHERE) if name in QUANTIZING else set()
    assert theirs - elsewhere - WITHOUT_EFFECT == ours.model_fields.keys() - {"groups"}
    defaults = {key: field.default for key, field in ours.model_fields.items() if key in DEFAULTS}
    assert {key: kind.model_fields[key].default for key in defaults} == defaults


WITHOUT_EFFECT = {"num_calibration_steps", "calibration_function", "bypass_divisibility_checks"}
"""Options that a recipe cannot say: upstream reads the first two nowhere, and no plan passes that needs the third."""
DEFAULTS = {"block_size", "dampening_frac", "batched_quantization", "duo_scaling", "n_grid", "smoothing_strength"}


def test_modifiers_that_are_refused_are_those_that_llm_compressor_has_beside() -> None:
    from llmcompressor.modifiers import factory

    found = factory.ModifierFactory.load_from_package("llmcompressor.modifiers")
    assert found.keys() - MODULES.keys() - {"Modifier"} == NOT_TAKEN.keys() - {"IMatrixGatherer"}


def test_two_modifiers_quantize_a_group_each(load: Load) -> None:
    made = make_modifiers(
        load(
            """\
modifiers:
  - AWQModifier: {}
  - QuantizationModifier: {groups: [attention]}
  - GPTQModifier: {groups: [mlp], block_size: 64}
config_groups:
  mlp: {targets: ['re:.*mlp.*'], scheme: w8a8}
  attention: {targets: ['re:.*attn.*'], scheme: W4A16}
""",
            config_groups=None,
            kv_cache={"scheme": "FP8", "scales": "calibrated"},
        )
    )
    _, rounding, gptq = made.instances
    assert made.names == ("AWQModifier", "QuantizationModifier", "GPTQModifier")
    assert [list(one.resolved_targets) for one in (gptq,)] == [["re:.*mlp.*"]]
    assert "re:.*attn.*" in rounding.resolved_targets
    assert (rounding.kv_cache_scheme is None, gptq.kv_cache_scheme is None) == (False, True)
    (group,) = gptq.resolved_config.config_groups.values()
    assert (group.weights.num_bits, group.weights.actorder) == (8, "static")


CACHE = {"kv_cache": {"scheme": "FP8", "scales": "calibrated"}}
SEEING: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "static activations": ({"scheme": "NVFP4", "config_groups": None}, ("QuantizationModifier",)),
    "dynamic activations": ({"scheme": "FP8_DYNAMIC", "config_groups": None}, ()),
    "a KV cache": (CACHE, ("QuantizationModifier",)),
    "a KV cache that is declared alone": ({"kv_cache": {"scheme": "FP8", "scales": "none"}}, ()),
    "GPTQ": ({"modifiers": [{"GPTQModifier": {}}]}, ("GPTQModifier",)),
    "AWQ": ({"modifiers": [{"AWQModifier": {}}]}, ("AWQModifier",)),
    "an observer of weights": (
        {"config_groups": {"a": {"weights": {**integers(32), "observer": "imatrix_mse"}}}},
        ("QuantizationModifier",),
    ),
}


@pytest.mark.parametrize("case", SEEING)
def test_what_must_see_data_is_refused_without_them_by_the_plan(case: str, load: Load, mini: Path) -> None:
    keys, seeing = SEEING[case]
    loaded = load(**keys)
    upstream = [type(one).__name__ for one in make_modifiers(loaded).instances if one.requires_calibration_data]
    assert loaded.recipe.needing_data == tuple(upstream) == seeing
    source = open_source("mini")
    rules = {finding.rule for finding in lint(make_plan(loaded, source))}
    assert ("scheme/needs-calibration" in rules) is bool(seeing)
    rules = {finding.rule for finding in lint(make_plan(load(**keys, calibration=DATA), source))}
    assert ("calibration/unused" in rules) is not bool(seeing)
    assert "scheme/needs-calibration" not in rules


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


DOWN, EXPERTS, OTHERS = "re:.*down_proj", "re:.*experts.*", "Linear"
OVERLAPPING: dict[str, tuple[list[list[str]], list[int], bool]] = {
    "nothing in common": ([["re:.*self_attn.*"], [OTHERS]], [0], False),
    "the special one first": ([[DOWN], [EXPERTS], [OTHERS]], [0], False),
    "those of one next to each other": ([[DOWN], [EXPERTS], [OTHERS]], [0, 1], False),
    "those of one around the other's": ([[DOWN], [EXPERTS], [OTHERS]], [0, 2], True),
    "the class beside a pattern, around the other's": ([[OTHERS, DOWN], [EXPERTS]], [1], True),
}
"""The targets of groups -> which of the groups GPTQ quantizes, and whether the two modifiers' lists cannot say so."""


@pytest.mark.parametrize("case", OVERLAPPING)
def test_two_modifiers_must_be_able_to_tell_their_modules_apart(case: str, load: Load, mini: Path) -> None:
    targets, by_gptq, refused = OVERLAPPING[case]
    groups = {f"group_{index}": {"targets": own, "weights": integers(32)} for index, own in enumerate(targets)}
    rounded = [name for index, name in enumerate(groups) if index not in by_gptq]
    modifiers = [
        {"GPTQModifier": {"groups": [f"group_{index}" for index in by_gptq]}},
        {"QuantizationModifier": {"groups": rounded}},
    ]
    plan = make_plan(load(config_groups=groups, modifiers=modifiers, calibration=DATA), open_source("mini"))
    assert ("scheme/two-modifiers" in {finding.rule for finding in lint(plan)}) == refused
