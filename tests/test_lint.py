"""What lint says of recipes, rule by rule; docs/reference/rules.md has one more example of each, with the reasons."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.planning import (
    KEPT,
    KEPT_OF_ODD,
    MINI,
    ODD,
    REAL,
    ROOT,
    TRANSPOSED,
    findings,
    groups,
    integers,
    plan,
    recipe,
    recipe_text,
)
from weighbridge.checkpoint.lock import open_lock
from weighbridge.errors import StructureError, WeighbridgeError
from weighbridge.formats.quantization import read_declaration, resolve
from weighbridge.formats.tensors import Tensor
from weighbridge.linting import RULES, lint
from weighbridge.linting.serving import TENSOR_PARALLEL_SIZES
from weighbridge.linting.suggest import matching, unanchored
from weighbridge.planning import make_plan
from weighbridge.recipe import load_recipe
from weighbridge.recipe.catalogue import recipe_names
from weighbridge.report import Finding
from weighbridge.text.patterns import pattern_list

LAYERS = "model.language_model.layers"
EVIL = (
    "(a+)+$",
    "(a|aa)+$",
    "(.*a){25}",
    "(x+x+)+y",
    "((a*)*)*b",
    "([a-z]+)*$",
    "(.*)*(.*)*(.*)*z",
    "(?!(a+)+b)((a*)*)*c",
)
INEXPRESSIBLE = (r"(?!x)(a)\1", r"(a)\1", "(?>a+)b")


def only(found: Sequence[Finding], rule: str) -> Finding:
    (finding,) = [finding for finding in found if finding.rule == rule]
    return finding


def raised(found: Sequence[Finding]) -> set[str]:
    """The rules behind errors and warnings."""
    return {finding.rule for finding in found if finding.severity != "note"}


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("openai/gpt-oss-20b", "published quantized (MXFP4 experts)"),
        ("deepseek-ai/DeepSeek-V3.1", "published quantized (FP8 in blocks)"),
        ("moonshotai/Kimi-K2-Thinking", "published quantized (INT4 of groups of 32)"),
        ("meta-llama/Llama-3.3-70B-Instruct", ""),
        ("somebody/a-model-of-their-own", ""),
    ],
)
def test_floats_made_of_what_is_published_quantized_are_said_to_be(base: str, said: str) -> None:
    named = {"model": base, "revision": "0" * 40, "licence": "apache-2.0"}
    found = [item for item in findings(recipe(base=named)) if item.rule == "source/made-floats"]
    assert [said in item.message for item in found] == ([True] if said else [])


@pytest.mark.parametrize(
    ("base", "rule"),
    [
        ("google/gemma-4-26B-A4B-it", "source/rounded-before"),  # by its lock
        ("google/gemma-4-31B-it", "source/rounded-before"),  # by its family: there is no lock of it
        ("openai/gpt-oss-20b", "source/quantized"),
        ("deepseek-ai/DeepSeek-R1", "source/quantized"),
        ("somebody/a-model-of-their-own", "source/quantized"),
    ],
)
def test_codes_of_what_is_published_in_floats_are_an_error(base: str, rule: str) -> None:
    named = {"model": base, "revision": "0" * 40, "licence": "apache-2.0"}
    found = findings(recipe(base=named, scheme="NVFP4A16"), "references/weighbridge/gemma-4-mini-FP8-dynamic.yaml")
    said = [item for item in found if item.rule.startswith("source/")]
    assert [(item.rule, item.severity) for item in said] == [(rule, RULES[rule].severity)]


# --- entries that match nothing, or not what they seem to -------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "rule", "remedy"),
    [
        ("embed_tokens", "ignore/anchored", r"did you mean re:.*embed_tokens$?"),
        ("re:embed_tokens", "ignore/anchored", r"did you mean re:.*embed_tokens$?"),
        ("re:^embed_tokens$", "ignore/anchored", r"did you mean re:.*embed_tokens$?"),
        # An end that would leave router.proj out is not suggested.
        ("re:router", "ignore/anchored", r"did you mean re:.*router?"),
        ("router", "ignore/anchored", r"did you mean re:.*router?"),
        ("self_attn", "ignore/anchored", r"did you mean re:.*self_attn?"),
        (".*embed.*", "ignore/lacks-re", r"did you mean re:.*embed.*?"),
        ("*embed*", "ignore/lacks-re", r"did you mean re:.*embed.*?"),
        ("layers.*.mlp", "ignore/lacks-re", r"did you mean re:.*layers.*\.mlp?"),
        ("regex:.*embed", "ignore/lacks-re", r"did you mean re:.*embed?"),
        ("Re: .*embed", "ignore/lacks-re", r"did you mean re:.*embed?"),
        ("lm_head$", "ignore/lacks-re", r"did you mean re:lm_head$?"),
        ("(nothing|at_all)", "ignore/lacks-re", "write re: first, and check what it should match"),
        ("re:.*embed_tokens.weight", "ignore/matches-nothing", "did you mean re:.*embed_tokens?"),
        (r"re:.*embed_tokens\.weight$", "ignore/matches-nothing", "did you mean re:.*embed_tokens$?"),
        ("embed_tokens.weight", "ignore/matches-nothing", "did you mean re:.*embed_tokens$?"),
        ("re:.*experts.gate_up_proj", "ignore/matches-nothing", "layers.0.experts.0.gate_proj"),
        ("re:.*qkv_proj", "ignore/matches-nothing", "did you mean re:.*(q_proj|k_proj|v_proj)?"),
        ("re:.*vison_tower.*", "ignore/matches-nothing", "did you mean vision_tower?"),
        ("re:.*Router", "ignore/matches-nothing", "did you mean router?"),
        ("model.lm_head", "ignore/matches-nothing", "did you mean re:.*lm_head$?"),
        ("language_model.model.layers.0.mlp.up_proj", "ignore/matches-nothing", r"re:.*layers\.0\.mlp\.up_proj$"),
        ("Linear", "ignore/matches-nothing", "Linear is a class and belongs into targets"),
        ("gibberish", "ignore/matches-nothing", "correct it, or take it out"),
    ],
)
def test_an_entry_that_matches_nothing_is_an_error_with_a_suggestion(entry: str, rule: str, remedy: str) -> None:
    finding = only(findings(recipe([*KEPT, entry])), rule)
    assert finding.severity == "error"
    assert finding.where.endswith(f"recipe.yaml:15 {entry}")
    assert remedy in finding.remedy


@pytest.mark.parametrize("entry", ["embed_tokens", "re:router", "*embed*", "self_attn", "embed_tokens.weight"])
def test_a_suggestion_matches_what_the_entry_did_not(entry: str) -> None:
    (finding,) = [found for found in findings(recipe([*KEPT, entry])) if found.severity == "error"]
    suggested = finding.remedy.partition("did you mean ")[2].removesuffix("?")
    modules = plan(recipe()).modules
    assert any(pattern_list((suggested,)).matches(module) for module in modules)


@given(st.data())
def test_what_is_suggested_for_a_part_of_a_name_matches_the_names_that_contain_it(data: st.DataObject) -> None:
    modules = plan(recipe()).modules
    name = data.draw(st.sampled_from(modules))
    begin = data.draw(st.integers(0, len(name) - 1))
    entry = name[begin : data.draw(st.integers(begin + 1, len(name)))]
    suggestion = unanchored(entry, modules)
    assert suggestion is not None
    assert set(matching(suggestion[0], modules)) == {module for module in modules if entry in module}


@pytest.mark.parametrize("entry", ["lm_head", "re:.*lm_head", "re:lm_head", "re:.*lm_head.*"])
def test_an_entry_that_names_only_the_tied_head_is_a_note(entry: str) -> None:
    found = findings(recipe([entry, *KEPT[1:]]))
    assert only(found, "ignore/tied").severity == "note"
    assert not raised(found)


def test_a_tied_head_that_config_would_declare_quantized_is_a_warning() -> None:
    finding = only(findings(recipe(KEPT[1:])), "serve/tied-head")
    assert finding.severity == "warning"
    assert "lm_head" in finding.remedy


def test_a_head_of_its_own_is_no_tied_head() -> None:
    assert "serve/tied-head" not in raised(findings(recipe(KEPT_OF_ODD[1:]), ODD))


@pytest.mark.parametrize(
    ("entries", "redundant", "cover"),
    [
        (("re:.*embed.*", "re:.*embed_tokens"), "re:.*embed_tokens", "re:.*embed.*"),
        (("re:.*embed_tokens", "re:.*embed.*"), "re:.*embed_tokens", "re:.*embed.*"),
        (("model.language_model.embed_tokens", "re:.*embed_tokens$"), "re:.*embed_tokens$", "model.language_model"),
        (("lm_head", "re:.*lm_head"), "re:.*lm_head", "lm_head"),
        # Covered by a wider one, although its twin stands behind it.
        (("re:.*embed_tokens", "re:.*embed_tokens$", "re:.*embed.*"), "re:.*embed_tokens", "re:.*embed.*"),
    ],
    ids=["subset", "subset-first", "twins", "tied-twins", "twin-and-superset"],
)
def test_an_entry_that_another_makes_redundant_is_a_warning(
    entries: tuple[str, ...], redundant: str, cover: str
) -> None:
    found = findings(recipe([*entries, "re:.*router", "re:.*vision.*", "re:.*norm.*"]))
    matching = [finding for finding in found if finding.rule == "ignore/redundant"]
    finding = next(finding for finding in matching if finding.where.endswith(f" {redundant}"))
    assert finding.severity == "warning"
    assert cover in finding.message


def test_only_the_later_of_two_twins_is_redundant() -> None:
    found = findings(recipe([*KEPT, "re:.*embed"]))
    assert only(found, "ignore/redundant").where.endswith(" re:.*embed")


def test_entries_that_overlap_without_covering_each_other_are_both_needed() -> None:
    entries = ["lm_head", "re:.*embed.*", "re:.*(router|vision_tower).*", "re:.*(norm|vision).*"]
    assert not raised(findings(recipe(entries)))


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        ("re:.*layers.1.*mlp.*", r"re:.*layers.1\b.*mlp.*"),
        (r"re:.*layers\.(1|2).*mlp.*", r"re:.*layers\.(1\b|2\b).*mlp.*"),
        (r"re:.*layers\.2", r"re:.*layers\.2\b"),
    ],
)
def test_a_number_that_also_matches_longer_numbers_is_a_warning(entry: str, meant: str) -> None:
    finding = only(findings(recipe([*KEPT, entry]), REAL), "pattern/open-number")
    assert finding.severity == "warning"
    assert finding.remedy == f"did you mean {meant}?"


def test_numbers_that_match_as_they_read_are_left_alone() -> None:
    entries = [
        r"re:.*layers\.1\..*mlp.*",
        r"re:.*layers\.1[0-9]\.mlp.*",
        r"re:.*layers\.2\d\.mlp.*",
        r"re:.*layers\.\d{2}\.mlp\.up.*",
        r"re:.*layers\.7.*mlp.*",
        "re:.*layernorm_1",
    ]
    assert "pattern/open-number" not in raised(findings(recipe([*KEPT, *entries]), REAL))


def test_numbers_in_targets_are_watched_too() -> None:
    content = recipe(scheme=None, config_groups=groups(first=(["re:.*layers.1.*"], "W8A8"), rest=(["Linear"], "W8A8")))
    assert "pattern/open-number" in raised(findings(content, REAL))


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "remedy"),
    [
        (["re:.*self_atn.*"], "did you mean self_attn?"),
        (["self_attn"], "did you mean re:.*self_attn?"),
        (["LlamaAttention"], "correct it, or take it out"),
    ],
)
def test_a_group_that_targets_nothing_is_an_error(targets: list[str], remedy: str) -> None:
    content = recipe(scheme=None, config_groups=groups(first=(targets, "W8A8"), rest=(["Linear"], "FP8_DYNAMIC")))
    finding = only(findings(content), "targets/matches-nothing")
    assert finding.severity == "error"
    assert remedy in finding.remedy


def test_a_group_that_an_earlier_one_leaves_nothing_for_is_an_error() -> None:
    content = recipe(
        scheme=None, config_groups=groups(all=(["Linear"], "FP8_DYNAMIC"), attention=(["re:.*self_attn.*"], "W8A8"))
    )
    found = findings(content)
    assert only(found, "targets/shadowed").where.endswith(" attention")
    # Servers take the group with the expression, and so would read FP8 as INT8.
    assert "serve/undeclared" in raised(found)


def test_the_group_with_the_expression_goes_first() -> None:
    content = recipe(
        scheme=None, config_groups=groups(attention=(["re:.*self_attn.*"], "W8A8"), all=(["Linear"], "FP8_DYNAMIC"))
    )
    assert not raised(findings(content))


# --- what is quantized ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lock", "kept", "rule", "where"),
    [
        (MINI, KEPT, "quantize/embedding", "model.language_model.embed_tokens"),
        (MINI, KEPT, "quantize/router", f"{LAYERS}.{{0-5}}.router.proj"),
        (MINI, KEPT, "quantize/vision", "model.embed_vision.embedding_projection"),
        (MINI, KEPT, "quantize/vision", "model.vision_tower.patch_embedder.input_proj"),
        (ODD, KEPT_OF_ODD, "quantize/head", "lm_head"),
        (ODD, KEPT_OF_ODD, "quantize/norm", "model.layers.{0-1}.post_norm_1"),
        (ODD, KEPT_OF_ODD, "quantize/audio", "audio_tower.layers.{0-1}.self_attn.q_proj"),
        (ODD, KEPT_OF_ODD, "quantize/mtp", "mtp.fc"),
    ],
)
def test_what_should_hardly_ever_be_quantized_is_an_error(
    lock: str, kept: Sequence[str], rule: str, where: str
) -> None:
    found = [finding for finding in findings(recipe([]), lock) if finding.rule == rule]
    assert where in {finding.where for finding in found}
    assert {finding.severity for finding in found} == {"error"}
    assert all("scheme (" in finding.message for finding in found)  # says which line decided
    assert rule not in raised(findings(recipe(kept), lock))


def test_a_quantized_module_of_unknown_purpose_is_a_note() -> None:
    finding = only(findings(recipe(KEPT_OF_ODD), ODD), "quantize/unknown")
    assert (finding.severity, finding.where) == ("note", "model.per_layer_model_projection")


def test_a_recipe_that_quantizes_nothing_is_an_error() -> None:
    assert only(findings(recipe(["re:.*"])), "quantize/nothing").severity == "error"


# --- what a scheme can be applied to ----------------------------------------------------------------------------------


def test_one_dimensional_tensors_are_an_error_that_cannot_be_allowed() -> None:
    content = recipe(KEPT[:-1], allow=["scheme/one-dimensional because it was asked for"])
    found = [finding for finding in findings(content) if finding.rule == "scheme/one-dimensional"]
    assert {finding.severity for finding in found} == {"error"}
    assert f"{LAYERS}.{{0-5}}.post_feedforward_layernorm_1" in {finding.where for finding in found}


def test_a_convolution_is_no_matrix() -> None:
    kept = [entry for entry in KEPT_OF_ODD if "conv1d" not in entry]
    finding = only(findings(recipe(kept), ODD), "scheme/not-two-dimensional")
    assert finding.where == "model.layers.{0-1}.linear_attn.conv1d"


def test_a_group_size_that_does_not_divide_is_refused_with_the_widths_and_the_sizes_that_do() -> None:
    found = findings(recipe(scheme="W4A16"), REAL)
    refused = {finding.where: finding for finding in found if finding.rule == "scheme/group-size"}
    assert {finding.message.partition(";")[0] for finding in refused.values()} == {
        "group size 128 does not divide width 704",
        "group size 128 does not divide width 2112",
    }
    assert {finding.count for finding in refused.values()} == {3840, 30}
    assert all("32 or 64" in finding.remedy for finding in refused.values())
    # What cannot be done is said once: not also as partly quantized, uncovered or undeclared.
    assert raised(found) == {"scheme/group-size"}


@pytest.mark.parametrize("size", [32, 64])
def test_the_group_sizes_that_are_offered_can_be_taken(size: int) -> None:
    content = recipe(scheme=None, config_groups=groups(all=(["Linear"], integers(size))))
    assert not raised(findings(content, REAL))


def test_only_the_widths_of_the_group_that_was_refused_count() -> None:
    content = recipe(
        scheme=None,
        config_groups=groups(experts=(["re:.*experts.*"], integers(128)), rest=(["Linear"], "FP8_DYNAMIC")),
    )
    finding = only(findings(content), "scheme/group-size")
    assert "32 or 64" in finding.remedy  # 320, the dense mlp's width, would leave no 128 either, but is not asked


def test_a_format_with_fixed_groups_offers_no_others() -> None:
    found = findings(recipe([*KEPT[:-2], "re:.*norm.*"], scheme="MXFP4A16"))
    remedies = {finding.remedy for finding in found if finding.rule == "scheme/group-size"}
    assert remedies == {"the format fixes groups of 32: add it to ignore, or take another scheme"}


def test_a_group_size_that_servers_have_no_kernel_for_is_a_warning() -> None:
    content = recipe(scheme=None, config_groups=groups(all=(["Linear"], integers(16))))
    finding = only(findings(content), "serve/group-size")
    assert (finding.severity, "32, 64, 128" in finding.message) == ("warning", True)


def test_blocks_that_do_not_divide_are_a_warning() -> None:
    found = findings(recipe(scheme="FP8_BLOCK"))
    assert raised(found) == {"scheme/ragged-block"}
    assert f"{LAYERS}.{{0-5}}.mlp.gate_proj" in {finding.where for finding in found}


def test_a_strategy_that_weights_cannot_have_is_an_error() -> None:
    arguments = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    found = findings(recipe(scheme=None, config_groups=groups(all=(["Linear"], arguments))))
    assert raised(found) == {"scheme/strategy"}


def test_nvfp4_weights_plan_layers_whose_values_are_the_keys_without_complaint() -> None:
    found = findings(recipe(scheme="NVFP4A16"), REAL)
    assert not raised(found)
    finding = only(found, "fused/lacks-member")
    assert (finding.where, finding.count) == (f"{LAYERS}.{{5,11,17,23,29}}.self_attn", 5)
    assert "keys as values" in finding.message


@pytest.mark.parametrize("scheme", ["NVFP4", "FP8"])
def test_static_activations_in_a_data_free_recipe_are_an_error(scheme: str) -> None:
    finding = only(findings(recipe(scheme=scheme)), "scheme/needs-calibration")
    assert (finding.severity, finding.where[-len("recipe.yaml:8") :]) == ("error", "recipe.yaml:8")


def test_static_activations_of_a_config_group_are_reported_at_that_group() -> None:
    content = recipe(
        scheme=None, config_groups=groups(first=(["re:.*self_attn.*"], "FP8_DYNAMIC"), rest=(["Linear"], "NVFP4"))
    )
    finding = only(findings(content), "scheme/needs-calibration")
    line = int(finding.where.rpartition(":")[2])
    assert recipe_text(content).splitlines()[line - 1].strip() == "rest:"


def test_oneshot_may_have_static_activations() -> None:
    dataset = {"hub": "org/texts", "revision": "0" * 40}
    calibration = {"dataset": dataset, "samples": 8, "sequence_length": 64, "experts": "all"}
    assert not raised(findings(recipe(scheme="NVFP4", method="oneshot", calibration=calibration)))


def test_oneshot_without_calibration_has_no_static_activations() -> None:
    finding = only(findings(recipe(scheme="NVFP4", method="oneshot")), "scheme/needs-calibration")
    assert "the recipe names none" in finding.message


# --- what servers merge -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "where", "message"),
    [
        (r"re:.*v_proj", f"{LAYERS}.{{0-4}}.self_attn", "q_proj, k_proj quantized, v_proj kept"),
        (r"re:.*experts\.3\.up_proj", f"{LAYERS}.{{0-5}}.experts.3", "gate_proj quantized, up_proj kept"),
        (r"re:.*mlp\.gate", f"{LAYERS}.{{0-5}}.mlp", "up_proj quantized, gate_proj kept"),
        # vLLM asks the ignore list for v_proj in layers that have none, too.
        (r"re:.*v_proj", f"{LAYERS}.5.self_attn", "ignore keeps v_proj; it is not stored here"),
        (r"re:.*layers\.5\.self_attn\.[qk]_proj", f"{LAYERS}.5.self_attn", "no entry matches v_proj; it is not stored"),
    ],
)
def test_a_group_that_is_partly_kept_is_an_error_that_names_the_entry(entry: str, where: str, message: str) -> None:
    found = findings(recipe([*KEPT, entry]))
    (finding,) = [finding for finding in found if (finding.rule, finding.where) == ("fused/partly-ignored", where)]
    assert finding.severity == "error"
    assert message in finding.message
    assert "fused/experts-differ" not in raised(found)  # said once


def test_a_group_that_is_kept_whole_is_no_finding() -> None:
    assert not raised(findings(recipe([*KEPT, r"re:.*layers\.5\.self_attn\..*"])))


def test_different_schemes_in_one_group_are_an_error() -> None:
    content = recipe(
        scheme=None, config_groups=groups(keys=([r"re:.*[qk]_proj$"], "NVFP4A16"), rest=(["Linear"], "FP8_DYNAMIC"))
    )
    finding = only(findings(content), "fused/schemes-differ")
    assert (finding.where, finding.count) == (f"{LAYERS}.{{0-4}}.self_attn", 5)
    assert finding.message.startswith("q_proj has weights float4")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (r"re:.*experts\..*down_proj", "down_proj (8) kept; gate_proj, up_proj (16) weights float8"),
        (r"re:.*experts\.3\.", "down_proj, gate_proj, up_proj (3) kept"),
    ],
)
def test_experts_of_a_layer_without_one_scheme_are_an_error(entry: str, message: str) -> None:
    finding = only(findings(recipe([*KEPT, entry])), "fused/experts-differ")
    assert (finding.severity, finding.where) == ("error", f"{LAYERS}.{{0-5}}.experts")
    assert message in finding.message


def test_all_experts_of_some_layers_may_be_kept() -> None:
    assert not raised(findings(recipe([*KEPT, r"re:.*layers\.(0|5)\.experts\..*"])))


def test_merges_that_fused_groups_do_not_name_are_an_error_where_they_share_a_scale() -> None:
    finding = only(findings(recipe(KEPT_OF_ODD, scheme="NVFP4A16"), ODD), "fused/unlisted")
    assert finding.remedy == "add [w1, w3] to fused_groups"
    assert "fused/unlisted" not in raised(findings(recipe(KEPT_OF_ODD), ODD))
    named = recipe(KEPT_OF_ODD, scheme="NVFP4A16", fused_groups=[["q_proj", "k_proj", "v_proj"], ["w1", "w3"]])
    assert "fused/unlisted" not in raised(findings(named, ODD))


def test_merges_that_fused_groups_do_not_name_must_be_kept_whole_all_the_same() -> None:
    found = findings(recipe([*KEPT_OF_ODD, r"re:.*\.w3$"]), ODD)
    assert "w1 quantized, w3 kept" in only(found, "fused/partly-ignored").message


# --- servers ----------------------------------------------------------------------------------------------------------


def test_what_is_kept_although_the_config_will_target_it_is_an_error() -> None:
    kept = [entry for entry in KEPT_OF_ODD if "norm" not in entry]
    finding = only(findings(recipe([*kept, "re:.*layernorm", "re:.*post_norm.*"]), ODD), "serve/undeclared")
    assert finding.where == "model.layers.{0-1}.self_attn.q_norm"  # two axes, and kept for its name
    assert finding.message.startswith("is kept, but config.json will declare it weights float8")


def test_a_linear_of_which_the_config_says_nothing_is_an_error() -> None:
    bulk = ["re:.*experts.*", r"re:.*layers\.\d+\.mlp.*", r"re:.*layers\.\d+\.self_attn.*"]
    content = recipe(
        ["lm_head", "re:.*embed_tokens", "re:.*vision_tower.*", "re:.*norm.*"],
        scheme=None,
        config_groups=groups(bulk=(bulk, "FP8_DYNAMIC")),
    )
    found = {finding.where for finding in findings(content) if finding.rule == "serve/undeclared"}
    assert found == {"model.embed_vision.embedding_projection", f"{LAYERS}.{{0-5}}.router.proj"}


@pytest.mark.parametrize("entry", [r"re:model\.language_model\..*\.mlp\..*", "re:^model.language_model.layers.0.mlp.*"])
def test_an_expression_that_depends_on_a_prefix_is_a_warning(entry: str) -> None:
    assert only(findings(recipe([*KEPT, entry])), "serve/prefix").severity == "warning"


def test_a_plain_name_may_begin_with_a_prefix_because_vllm_renames_those() -> None:
    content = recipe([*KEPT, "model.language_model.layers.0.mlp.down_proj"])
    assert not raised(findings(content))


def test_a_target_that_depends_on_a_prefix_is_a_warning() -> None:
    content = recipe(
        scheme=None,
        config_groups=groups(first=([r"re:model\..*self_attn.*"], "W8A8"), rest=(["Linear"], "FP8_DYNAMIC")),
    )
    assert "serve/prefix" in raised(findings(content))


def test_members_as_targets_beside_linear_are_a_warning() -> None:
    content = recipe(
        scheme=None, config_groups=groups(first=([r"re:.*\.[qkv]_proj$"], "W8A8"), rest=(["Linear"], "FP8_DYNAMIC"))
    )
    finding = only(findings(content), "serve/merged-target")
    assert "qkv_proj" in finding.message
    assert "before PR 49483" in finding.message


@pytest.mark.parametrize(
    ("content", "lock", "message"),
    [
        (recipe(), REAL, "sizes 1, 2, 4, 8 fit"),
        (recipe(), MINI, "sizes 1, 2, 4 fit; 8 does not: 4 attention heads"),
        (recipe(scheme="NVFP4A16"), REAL, "size 1 fits; 2 does not: width 704 of"),
        (
            recipe(scheme=None, config_groups=groups(all=(["Linear"], integers(64)))),
            REAL,
            "size 1 fits; 2 does not: width 704 of",
        ),
        (recipe(scheme="FP8_BLOCK"), REAL, "no size fits; 1 does not: rows 704 of"),
        (recipe([*KEPT, "re:.*experts.*"], scheme="FP8_BLOCK"), REAL, "no size fits; 1 does not: rows 2112 of"),
        (
            recipe([*KEPT, "re:.*experts.*", r"re:.*\.mlp.*"], scheme="FP8_BLOCK"),
            REAL,
            "sizes 1, 2, 4, 8 fit",
        ),
    ],
    ids=["channel", "heads", "nvfp4", "group-64", "blocks", "blocks-of-mlp", "blocks-of-attention"],
)
def test_tensor_parallel_sizes_are_those_for_which_heads_widths_groups_and_blocks_divide(
    content: Mapping[str, Any], lock: str, message: str
) -> None:
    assert only(findings(content, lock), "serve/tensor-parallel").message.startswith(message)
    assert TENSOR_PARALLEL_SIZES == (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("FP8_DYNAMIC", ("SM 8.9", "Marlin")),
        ("NVFP4A16", ("16-bit activations", "SM 8.0")),
        ("MXFP4", ("SM 10.0", "Marlin")),
        ("MXFP8", ("MXFP8", "SM 10.0")),
        ("W8A8", ("INT8", "SM 7.5", "Blackwell")),
    ],
)
def test_a_note_says_which_gpus_run_the_scheme_natively(scheme: str, words: Sequence[str]) -> None:
    finding = only(findings(recipe(scheme=scheme)), "serve/gpu")
    assert (finding.severity, all(word in finding.message for word in words)) == ("note", True)


def test_notes_say_from_which_vllm_release_on_and_that_plain_transformers_is_no_judge() -> None:
    found = findings(recipe(scheme="NVFP4A16"))
    assert "vLLM 0.20" in only(found, "serve/vllm").message
    assert "triton" in only(found, "serve/vllm").message
    assert "random" in only(found, "serve/transformers").message


def test_notes_about_gemma_4_experts_are_not_given_for_other_models() -> None:
    rules = {finding.rule for finding in findings(recipe(KEPT_OF_ODD), ODD)}
    assert not rules & {"serve/vllm", "serve/transformers"}


# --- coverage ---------------------------------------------------------------------------------------------------------


def test_an_entry_that_keeps_the_experts_is_low_coverage() -> None:
    found = findings(recipe([*KEPT, "re:.*experts.*"]), REAL)
    assert raised(found) == {"coverage/low"}
    assert only(found, "coverage/low").message.startswith("quantizes 7% of the parameters")


def test_weights_that_no_target_names_and_no_entry_keeps_are_an_error() -> None:
    targets = [r"re:.*experts\..*", r"re:.*self_attn\..*"]
    content = recipe(scheme=None, config_groups=groups(some=(targets, "FP8_DYNAMIC")))
    found = [f for f in findings(content) if f.rule == "coverage/untargeted"]
    assert {finding.where for finding in found} == {
        f"{LAYERS}.{{0-5}}.mlp.{member}_proj" for member in ("gate", "up", "down")
    }


def test_weights_that_no_target_names_may_be_kept_by_an_entry() -> None:
    targets = [r"re:.*experts\..*", r"re:.*self_attn\..*"]
    content = recipe([*KEPT, r"re:.*\.mlp\..*"], scheme=None, config_groups=groups(some=(targets, "FP8_DYNAMIC")))
    assert "coverage/untargeted" not in raised(findings(content))


# --- the source -------------------------------------------------------------------------------------------------------


def test_a_base_without_a_revision_is_a_warning() -> None:
    content = recipe(base={"model": "weighbridge/gemma-4-mini", "licence": "apache-2.0"})
    assert only(findings(content), "base/unpinned").severity == "warning"


def test_experts_that_would_be_split_along_the_wrong_axis_are_an_error() -> None:
    content = recipe(["lm_head", "re:.*embed.*", "re:.*router", "re:.*norm.*"])
    finding = only(findings(content, TRANSPOSED), "source/experts-layout")
    assert (finding.where, finding.count) == ("model.layers.{0-1}.feed_forward.experts", 2)
    assert "gate_up_proj [4, 64, 96]" in finding.message


@pytest.mark.parametrize(
    ("family", "arguments"),
    [("Llama4TextConfig", {"intermediate_size_mlp": 48, "head_dim": 16}), ("GptOssConfig", {"head_dim": 16})],
)
def test_families_that_store_experts_so_are_found_by_it(family: str, arguments: dict[str, Any]) -> None:
    import torch
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 1, "num_local_experts": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128}
    with torch.device("meta"):
        config = getattr(transformers, family)(**sizes, **heads, **arguments)
        state = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    structure = {name: Tensor("BF16", tuple(parameter.shape)) for name, parameter in state.items()}
    made = plan(recipe(["lm_head", "re:.*embed.*", "re:.*router", "re:.*norm.*"]))
    found = lint(make_plan(made.loaded, replace(made.source, structure=structure, config={})))
    assert "source/experts-layout" in raised(found)


# --- allowances -------------------------------------------------------------------------------------------------------


def test_what_a_recipe_allows_is_a_note_that_gives_the_reason() -> None:
    content = recipe([KEPT[0], *KEPT[2:], "re:.*embed_vision.*"], allow=["quantize/embedding because it was measured"])
    found = findings(content)
    finding = only(found, "quantize/embedding")
    assert (finding.severity, finding.explained) == ("note", "allowed because it was measured")
    assert not finding.remedy
    assert not raised(found)


def test_an_entry_may_allow_what_is_about_itself() -> None:
    mapping = {"pattern": "re:.*audio_tower.*", "allow": "ignore/matches-nothing because siblings have an audio tower"}
    found = findings(recipe([*KEPT, mapping]))
    assert only(found, "ignore/matches-nothing").severity == "note"
    assert not raised(found)


def test_an_entry_does_not_allow_what_is_about_another() -> None:
    mapping = {"pattern": "re:.*audio_tower.*", "allow": "ignore/matches-nothing because siblings have an audio tower"}
    found = findings(recipe([*KEPT, mapping, "re:.*speech.*"]))
    assert [finding.where.rpartition(" ")[2] for finding in found if finding.severity == "error"] == ["re:.*speech.*"]


@pytest.mark.parametrize(
    ("rule", "found_rule", "severity"),
    [
        ("quantize/router", "allow/not-needed", "warning"),
        ("quantize/rooter", "allow/unknown-rule", "error"),
        ("scheme/group-size", "allow/unknown-rule", "error"),
        ("ignore/tied", "allow/unknown-rule", "error"),
    ],
    ids=["not-needed", "misspelt", "never-allowed", "a-note"],
)
def test_an_allowance_must_be_needed_known_and_possible(rule: str, found_rule: str, severity: str) -> None:
    found = findings(recipe(allow=[f"{rule} because somebody said so"]))
    finding = only(found, found_rule)
    assert (finding.severity, rule in finding.message) == (severity, True)


def test_each_allowance_is_needed_for_itself() -> None:
    reason = "ignore/matches-nothing because siblings have an audio tower"
    entries = [{"pattern": "re:.*audio.*", "allow": reason}, {"pattern": "re:.*mlp.*", "allow": reason}]
    found = findings(recipe([*KEPT, *entries]))
    assert only(found, "allow/not-needed").where.endswith("recipe.yaml:17")


# --- all together -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_the_recipes_of_the_catalogue_lint_without_errors_and_warnings(name: str) -> None:
    loaded = load_recipe(name)
    lock = f"references/{loaded.recipe.base.model}.yaml"
    if not (ROOT / lock).is_file():
        pytest.skip("references/ has no lock of this recipe's base")
    base = open_lock(ROOT / lock)  # none is kept: some stand for a hundred thousand tensors
    broken = raised(lint(make_plan(loaded, base)))
    assert broken <= (set() if base.origin.revision else {"base/unpinned"})


def test_findings_come_errors_first_then_warnings_then_notes() -> None:
    severities = [str(finding.severity) for finding in findings(recipe(["re:.*embed", "re:.*embed_tokens"]))]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert set(severities) == {"error", "warning", "note"}


def test_every_finding_is_of_a_known_rule() -> None:
    for content, lock in ((recipe([]), REAL), (recipe([], scheme="NVFP4"), ODD), (recipe(["x"]), TRANSPOSED)):
        assert {finding.rule for finding in findings(content, lock)} <= RULES.keys()


# --- patterns of strangers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expression", EVIL)
def test_an_evil_pattern_of_a_recipe_gives_its_finding(expression: str) -> None:
    found = findings(recipe([*KEPT, f"re:{LAYERS}{expression}"]))
    assert f"recipe.yaml:15 re:{LAYERS}{expression}" in {finding.where for finding in found}


@pytest.mark.parametrize("expression", EVIL)
def test_an_evil_pattern_matches_a_long_name_in_linear_time(expression: str) -> None:
    assert pattern_list((f"re:{expression}",)).matches("a" * 50_000 + "!") in ([], [0])


@pytest.mark.parametrize("expression", INEXPRESSIBLE)
def test_a_pattern_that_cannot_be_matched_in_linear_time_is_refused_in_one_sentence(expression: str) -> None:
    with pytest.raises(WeighbridgeError) as refusal:
        findings(recipe([*KEPT, f"re:{expression}"]))
    assert "recipe.yaml:15" in str(refusal.value)
    assert " time" in str(refusal.value)


@pytest.mark.parametrize("expression", [*EVIL, *INEXPRESSIBLE])
@pytest.mark.parametrize("place", ["ignore", "targets"])
def test_a_pattern_of_a_strangers_config_is_matched_in_linear_time_or_refused(expression: str, place: str) -> None:
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    (group if place == "targets" else quantization)[place] = [f"re:{expression}"]
    declaration = read_declaration(
        json.loads(json.dumps({"quantization_config": quantization})), where="stranger/config.json"
    )
    assert declaration is not None
    names = ["a" * 50_000 + "!", f"{LAYERS}.0.mlp.down_proj"]
    if expression in INEXPRESSIBLE:
        with pytest.raises(StructureError, match="stranger/config"):
            resolve(declaration, names, where="stranger/config.json")
    else:
        resolve(declaration, names, where="stranger/config.json")
