"""Builds whose scales an observer chooses: what oneshot writes, exact to the audit, and a worse choice is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import Tensors, copy_checkpoint, edit_json, edit_tensors
from tests.conftest import Command, Once, run_script
from tests.sources import write_moe
from tests.test_audit import look, verdicts
from tests.test_streaming import raw_tensors
from tests.toy_models import TOYS
from weighbridge.auditing import conclusion, sections
from weighbridge.auditing.judge import ORDER, Verdict
from weighbridge.checkpoint.model import open_directory
from weighbridge.formats.quantization import read_declaration
from weighbridge.numbers import encoding_of, load_kernels
from weighbridge.recipe import load_recipe

MIXED = """\
name: mixed
description: Attention, experts and the dense mlp, each by a scheme and an observer of its own.
base: {model: example-org/toy, licence: apache-2.0}
method: METHOD
config_groups:
  attention:
    targets: ['re:.*self_attn\\.(q_proj|k_proj|v_proj|q_a_proj|kv_a_proj_with_mqa)$']
    weights: {num_bits: 4, type: float, strategy: tensor_group, group_size: 16, observer: nvfp4_expanded_mse,
      scale_dtype: torch.float8_e4m3fn}
  values:
    targets: ['re:.*(o_proj|q_b_proj|kv_b_proj)$']
    weights: {num_bits: 8, type: float, strategy: channel, observer: memoryless_mse, observer_kwargs: {patience: 1}}
  merged:
    targets: ['re:.*(gate_proj|up_proj|w1|w3)$']
    weights: {num_bits: 4, type: float, strategy: tensor_group, group_size: 16, observer: memoryless_mse,
      scale_dtype: torch.float8_e4m3fn, observer_kwargs: {norm: 2.0, expand: 1.2, grid: 50}}
  down:
    targets: ['re:.*(down_proj|w2)$']
    weights: {num_bits: 4, type: int, strategy: group, group_size: 32, symmetric: false, observer: memoryless_mse}
fused_groups: [[q_proj, k_proj, v_proj], [gate_proj, up_proj], [q_a_proj, kv_a_proj_with_mqa], [w1, w3]]
ignore: [lm_head, 're:.*embed.*', 're:.*(norm|router|gate|vision_tower).*(?<!_proj)$']
allow: [coverage/untargeted because it is a toy, coverage/low because it is a toy,
  ignore/matches-nothing because it is of several families, fused/experts-differ because it is a toy]
"""

SIGNED = """\
name: signed
description: Four-bit integers with signed scales.
base: {model: example-org/toy, licence: apache-2.0}
method: model_free_ptq
config_groups:
  all:
    weights: {num_bits: 4, type: int, strategy: group, group_size: 32, observer: OBSERVER}
ignore: [lm_head, 're:.*embed.*', 're:.*(norm|router|gate|vision_tower).*(?<!_proj)$']
allow: [ignore/matches-nothing because it is of several families]
"""


def build(text: str, source: Path | str, directory: Path, *options: str) -> Path:
    """A build by the text of a recipe."""
    (directory / "recipe.yaml").write_text(text)
    arguments = (directory / "recipe.yaml", "--model", source, "--output", directory / "build", "--reference", "none")
    outcome = run_script("build.py", *arguments, *options)
    assert outcome.code == 0, outcome.err + outcome.out
    return directory / "build"


@pytest.fixture(scope="session")
def toy(once: Once) -> Callable[[str], Path]:
    return lambda name: once(f"toy-{name}", TOYS[name])


@pytest.fixture(scope="session")
def mixed(once: Once, toy: Callable[[str], Path]) -> Callable[[str], Path]:
    """A toy's build by `MIXED`, made once."""

    def made(name: str) -> Path:
        def make(directory: Path) -> None:
            build(MIXED.replace("METHOD", "model_free_ptq"), toy(name), directory, "--audit")

        return once(f"observed-{name}", make) / "build"

    return made


@pytest.mark.parametrize("name", TOYS)
def test_a_build_is_what_oneshot_writes_and_exact(
    name: str, mixed: Callable[[str], Path], toy: Callable[[str], Path], tmp_path: Path
) -> None:
    # transformers gives Mixtral's experts other names, which a build by oneshot would have to keep.
    method, *options = ("model_free_ptq", "--engine", "upstream") if name == "mixtral" else ("oneshot",)
    theirs = raw_tensors(build(MIXED.replace("METHOD", method), toy(name), tmp_path, *options))
    ours = raw_tensors(mixed(name))
    assert ours.keys() == theirs.keys()
    assert [tensor for tensor in ours if ours[tensor] != theirs[tensor]] == []
    # The build was audited by its recipe before it was kept; without one, config.json names the observers.
    found = look(mixed(name), toy(name))
    assert verdicts(found).keys() == {Verdict.IDENTICAL, Verdict.EXACT}
    facts = sections(found)[0].facts
    assert any("nvfp4_expanded_mse, as its own config.json says (the choice of who made it)" in fact for fact in facts)


@pytest.mark.parametrize("observer", ["signed_minmax", "signed_mse"])
def test_a_build_with_signed_scales_is_exact(observer: str, toy: Callable[[str], Path], tmp_path: Path) -> None:
    made = build(SIGNED.replace("OBSERVER", observer), toy("llama"), tmp_path, "--audit")
    assert conclusion(look(made, toy("llama"))) == "derives exactly from the base"
    other = tmp_path / "other"
    copy_checkpoint(made, other)
    config = json.loads((other / "config.json").read_text())
    (group,) = config["quantization_config"]["config_groups"].values()
    del group["weights"]["observer"]
    (other / "config.json").write_text(json.dumps(config))
    assert {judged.rule for judged in look(other, toy("llama")).diverging} == {"audit/dead-scale"}


def test_a_worse_choice_of_scales_is_named_with_both_errors(
    mixed: Callable[[str], Path], toy: Callable[[str], Path], tmp_path: Path
) -> None:
    module = "model.layers.1.mlp.down_proj"
    made = mixed("llama")
    declaration = read_declaration(json.loads((made / "config.json").read_text()), where="config.json")
    assert declaration is not None
    scheme = next(group.scheme for group in declaration.groups if not group.scheme.weights.symmetric)
    by_largest = replace(scheme, weights=replace(scheme.weights, observer=None, observer_kwargs={}))
    base = raw_tensors(toy("llama"))[f"{module}.weight"]
    shape = open_directory(toy("llama")).structure[f"{module}.weight"].shape
    weight = np.frombuffer(base, np.uint16).reshape(shape)
    coarser = load_kernels("cpu").quantize(weight, "BF16", by_largest)

    def change(tensors: Tensors) -> None:
        for local, array in coarser.items():
            name = f"{module}.{local}"
            tensors[name] = replace(tensors[name], data=array.tobytes())

    copy_checkpoint(made, tmp_path / "copy")
    edit_tensors(tmp_path / "copy", change)
    loaded = load_recipe(str(made.parent / "recipe.yaml"))
    found = look(tmp_path / "copy", toy("llama"), loaded=loaded)
    (wrong,) = [judged for judged in found.judged if judged.verdict is Verdict.NEAREST]
    assert (wrong.name, wrong.rule) == (module, "audit/not-exact")
    assert wrong.why == "has scales that are worse choices than those of memoryless_mse, as the recipe says"
    worse, own = (float(part.split(" ")[0].rstrip(",")) for part in wrong.detail.split(" to ")[1:])
    assert worse > own > 0
    assert any(not section.holds for section in sections(found))


GROUPS = "num_bits: 4, type: int, strategy: group, group_size: 32"
NVFP4 = "num_bits: 4, type: float, strategy: tensor_group, group_size: 16, scale_dtype: torch.float8_e4m3fn"

NAMED: dict[str, tuple[str, str, Verdict]] = {
    # weights, observer with its arguments, verdict where config.json alone says so
    "the range of the values among those that are tried": (
        GROUPS,
        "memoryless_mse, observer_kwargs: {expand: 1.2, norm: 2.0, grid: 50}",
        Verdict.EXACT,
    ),
    "a norm that sees the largest error alone": (
        GROUPS,
        "mse, observer_kwargs: {norm: 16, maxshrink: 0.9, patience: 100}",
        Verdict.EXACT,
    ),
    "one range, twice as wide": (GROUPS, "mse, observer_kwargs: {expand: 2, maxshrink: 0}", Verdict.NEAREST),
    "one range, sixteen times as wide": (GROUPS, "mse, observer_kwargs: {expand: 16, maxshrink: 0}", Verdict.DIVERGES),
    "steps that lead nowhere": (
        GROUPS,
        "mse, observer_kwargs: {expand: 16, maxshrink: 0.001, grid: 20000}",
        Verdict.DIVERGES,
    ),
    "steps that pass over the range of the values": (
        GROUPS,
        "mse, observer_kwargs: {expand: 3, maxshrink: 1, grid: 2}",
        Verdict.NEAREST,
    ),
    "a norm that counts what is off, and not how far": (
        GROUPS,
        "mse, observer_kwargs: {norm: 0.001, maxshrink: 1, patience: 100}",
        Verdict.DIVERGES,
    ),
    "zero points": (
        f"{GROUPS}, symmetric: false",
        "mse, observer_kwargs: {expand: 2, maxshrink: 0}",
        Verdict.NEAREST,
    ),
    "signed scales": (GROUPS, "signed_mse, observer_kwargs: {expand: 2, maxshrink: 0}", Verdict.NEAREST),
    "under a global scale": (
        NVFP4,
        "nvfp4_expanded_mse, observer_kwargs: {expand: 16, maxshrink: 0}",
        Verdict.DIVERGES,
    ),
}


@pytest.mark.parametrize("case", NAMED)
def test_a_search_on_the_suppliers_word_is_exact_if_its_scales_are_no_worse_than_those_of_the_largest_values(
    case: str, toy: Callable[[str], Path], tmp_path: Path, call_build: Command
) -> None:
    weights, observer, alone = NAMED[case]
    text = SIGNED.replace(f"{GROUPS}, observer: OBSERVER", f"{weights}, observer: {observer}")
    recipe, made = tmp_path / "recipe.yaml", tmp_path / "build"
    recipe.write_text(text)
    outcome = call_build(recipe, "--model", toy("llama"), "--output", made, "--reference", "none")
    assert outcome.code == 0, outcome.err + outcome.out
    asked = look(made, toy("llama"), loaded=load_recipe(str(recipe)))
    assert verdicts(asked).keys() == {Verdict.IDENTICAL, Verdict.EXACT}
    found = look(made, toy("llama"))
    assert verdicts(found).keys() == {Verdict.IDENTICAL, alone}
    worst = max(found.judged, key=lambda judged: ORDER[judged.verdict])
    if alone is Verdict.NEAREST:
        assert "worse than those of the largest values" in worst.why
        theirs, largest = (float(part.split(",")[0].split(" ")[0]) for part in worst.detail.split(" to ")[1:])
        assert theirs > largest > 0
    named = observer.partition(",")[0]
    (said,) = [fact for fact in sections(found)[0].facts if "chosen by" in fact]
    assert said.startswith(f"scales chosen by {named} (") and "the choice of who made it" in said
    assert ("expand" in said) is ("expand" in observer)


CLAIMED: dict[str, tuple[str, object]] = {
    # observer and arguments of a config.json that cannot be, or say nothing
    "more steps than anybody takes": ("memoryless_mse", {"grid": 1e9}),
    "an integer beyond all floats": ("memoryless_mse", {"grid": 10**400}),
    "a negative one": ("memoryless_mse", {"patience": -(10**400)}),
    "a text": ("memoryless_mse", {"norm": "2.4"}),
    "a truth": ("memoryless_mse", {"norm": True}),
    "a list": ("mse", {"maxshrink": [0.2]}),
    "no steps to zero": ("mse", {"grid": 0}),
    "an argument that it has not": ("mse", {"x" * 100_000: 1}),
    "an observer that looks at data": ("imatrix_mse", {}),
    "none that is known": ("best", {"norm": 10**400}),
    "one for other hardware": ("memoryless_mse", {"triton_error_buffer": ["x"]}),
}


@pytest.mark.parametrize("case", CLAIMED)
def test_what_a_config_claims_of_its_observer_is_judged_in_plain_words(
    case: str, toy: Callable[[str], Path], once: Once, tmp_path: Path
) -> None:
    def make(directory: Path) -> None:
        build(SIGNED.replace("OBSERVER", "minmax"), toy("llama"), directory)

    made = once("by-largest", make)
    copy_checkpoint(made / "build", tmp_path / "copy")
    observer, arguments = CLAIMED[case]

    def claim(config: dict[str, Any]) -> None:
        (group,) = config["quantization_config"]["config_groups"].values()
        group["weights"] |= {"observer": observer, "observer_kwargs": arguments}

    edit_json(tmp_path / "copy/config.json", claim)
    found = look(tmp_path / "copy", toy("llama"))
    searched = case == "one for other hardware"
    # What cannot be computed is held against the largest values, which gave all scales here.
    assert verdicts(found).keys() == {Verdict.IDENTICAL, Verdict.NEAREST if searched else Verdict.EXACT}
    (said,) = [fact for fact in sections(found)[0].facts if "chosen by" in fact]
    assert said == f"scales chosen by {observer}, as its own config.json says (the choice of who made it)"


STOPPING = SIGNED.replace("OBSERVER", "memoryless_mse, observer_kwargs: {grid: 40, maxshrink: 0.9, patience: 1}")


def test_a_search_that_stops_is_the_same_in_pieces_and_with_little_memory(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_moe(tmp_path / "source", layers=1)
    builds = []
    for number, options in enumerate((("--workers", "1"), ("--memory", "0.75GiB"))):
        directory = tmp_path / str(number)
        directory.mkdir()
        builds.append(raw_tensors(build(STOPPING, tmp_path / "source", directory, *options)))
    assert builds[0] == builds[1]
    source = open_directory(tmp_path / "source")
    declared: Any = read_declaration(json.loads((tmp_path / "0/build/config.json").read_text()), where="")
    scheme = declared.groups[0].scheme
    kernels, raw = load_kernels("cpu"), raw_tensors(tmp_path / "source")
    stopped = 0
    for name in (name for name in builds[0] if name.endswith("weight_scale")):
        weight = name.removesuffix("_scale")
        if weight in source.structure:
            array = np.frombuffer(raw[weight], np.uint16).reshape(source.structure[weight].shape)
            assert kernels.quantize(array, "BF16", scheme)["weight_scale"].tobytes() == builds[0][name]
            search = encoding_of(scheme).search
            stopped += search is not None and search.reached(kernels.improving(array, "BF16", scheme)) < search.steps
    assert stopped
