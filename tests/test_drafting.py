"""Drafted recipes: they lint clean on models of several families, and decide as the recipes written by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests import families
from tests.conftest import ROOT, Command, call_main
from tests.reference_locks import reference_lock
from weighbridge.base.locks import lock_path
from weighbridge.checkpoint.model import Checkpoint, Origin
from weighbridge.cli.draft import main as new_recipe
from weighbridge.errors import RecipeError
from weighbridge.formats.schemes import PRESETS
from weighbridge.formats.tensors import Tensor
from weighbridge.linting import lint
from weighbridge.linting.drafting import DATA_FREE, draft_recipe
from weighbridge.planning import Plan, find_merged_groups, make_plan
from weighbridge.recipe import load_recipe, read_recipe
from weighbridge.report import Severity
from weighbridge.text.patterns import pattern_list

GEMMA = "google/gemma-4-26B-A4B-it"
MIXTRAL = "mistralai/Mixtral-8x7B-Instruct-v0.1"
WRITTEN = sorted(families.FAMILIES)
PATH = Path("recipes/mine/draft.yaml")


def drafted(source: Checkpoint, model: str, scheme: str = "FP8_DYNAMIC") -> Plan:
    draft = draft_recipe(source, model=model, licence="apache-2.0", path=PATH, scheme=scheme)
    return make_plan(read_recipe(draft.text.encode(), where=str(PATH)), source)


def source_with(*names: str, shape: tuple[int, ...] = (64, 64)) -> Checkpoint:
    """The structure of Llama and some more tensors."""
    source = families.checkpoint("meta-llama/Llama-3.1-8B-Instruct")
    return replace(source, structure={**source.structure, **{name: Tensor("BF16", shape) for name in names}})


@pytest.mark.parametrize("repository", WRITTEN)
def test_draft_decides_as_the_recipe_written_by_hand(repository: str) -> None:
    source = families.checkpoint(repository)
    by_hand = make_plan(load_recipe(f"{repository}/fp8-dynamic"), source)
    assert drafted(source, repository).schemes == by_hand.schemes


@pytest.mark.parametrize("repository", WRITTEN)
def test_draft_lints_clean_but_for_a_revision_that_nobody_knows(repository: str) -> None:
    findings = lint(drafted(families.checkpoint(repository), repository))
    assert {item.rule for item in findings if item.severity is not Severity.NOTE} <= {"base/unpinned"}


@pytest.mark.parametrize("linear", ["w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"])
def test_no_entry_keeps_experts_by_a_name_that_vllm_asks_for(linear: str) -> None:
    plan = drafted(families.checkpoint(MIXTRAL), MIXTRAL)
    assert not pattern_list(plan.loaded.recipe.ignored).matches(f"model.layers.0.block_sparse_moe.experts.0.{linear}")
    assert pattern_list(plan.loaded.recipe.ignored).matches("model.layers.0.block_sparse_moe.gate")


@pytest.mark.parametrize("scheme", DATA_FREE)
def test_every_scheme_that_is_offered_can_be_drafted(scheme: str) -> None:
    plan = drafted(reference_lock(GEMMA), GEMMA, scheme)
    assert plan.loaded.recipe.name == scheme.lower().replace("_", "-")
    assert len(plan.schemes) == 11_725
    assert [finding for finding in lint(plan) if finding.severity is Severity.ERROR] == []


# A family, a parent's last name, the members that it has -> those that servers merge there.
MERGED = {
    "whisper's own attention": ("whisper", "self_attn", ("q_proj", "k_proj", "v_proj"), ("q_proj", "k_proj", "v_proj")),
    "whisper's other attention": ("whisper", "encoder_attn", ("q_proj", "k_proj", "v_proj"), ("k_proj", "v_proj")),
    "olmo's attention": ("olmo_hybrid", "self_attn", ("q_proj", "k_proj", "v_proj"), ("q_proj", "k_proj", "v_proj")),
    "olmo's state": (
        *("olmo_hybrid", "linear_attn", ("q_proj", "k_proj", "v_proj", "g_proj")),
        ("q_proj", "k_proj", "v_proj", "g_proj"),
    ),
    "kimi's attention": ("kimi_linear", "self_attn", ("q_proj", "k_proj", "v_proj"), ("q_proj", "k_proj", "v_proj")),
    "kimi's state": (
        *("kimi_linear", "self_attn", ("q_proj", "k_proj", "v_proj", "b_proj", "f_a_proj")),
        ("q_proj", "k_proj", "v_proj", "b_proj", "f_a_proj"),
    ),
}


def _attention(family: str, parent: str, members: tuple[str, ...]) -> Checkpoint:
    names = [f"model.layers.0.{parent}.{member}.weight" for member in members]
    return Checkpoint("made here", {name: Tensor("BF16", (64, 64)) for name in names}, {"model_type": family})


@pytest.mark.parametrize("case", MERGED)
def test_members_are_of_the_group_that_servers_merge_under_their_parent(case: str) -> None:
    family, parent, members, merged = MERGED[case]
    source = _attention(family, parent, members)
    expected = (f"model.layers.0.{parent}", merged, ())
    assert find_merged_groups(source.modules, source.family) == (expected,)
    merge = source.family.merge_of(f"{expected[0]}.{merged[-1]}")
    assert merge is not None
    assert {*merged} <= {*merge.members}
    plan = drafted(source, "org/model", "NVFP4A16")
    assert plan.fused_groups == (expected,)


@pytest.mark.parametrize("case", MERGED)
def test_groups_of_other_parents_are_no_mistake_of_this_one(case: str) -> None:
    family, parent, members, _merged = MERGED[case]
    content = {
        "name": "test",
        "description": "A test.",
        "base": {"model": "org/model", "licence": "mit"},
        "method": "model_free_ptq",
        "scheme": "NVFP4A16",
        "fused_groups": [own for _, _, _, own in MERGED.values()],
    }
    found = lint(
        make_plan(read_recipe(json.dumps(content).encode(), where=str(PATH)), _attention(family, parent, members))
    )
    assert [finding for finding in found if finding.rule.startswith("fused/")] == []


# Widths are those of Llama, 4096 and 14336, and of one more linear. A width -> the group size that the draft takes.
GROUPS = {4096: 128, 2112: 64, 704: 64, 32 * 33: 32}


@pytest.mark.parametrize("width", GROUPS)
@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "W8A16"])
def test_integers_are_drafted_with_the_largest_groups_that_divide_every_width(scheme: str, width: int) -> None:
    plan = drafted(source_with("model.layers.32.mlp.down_proj.weight", shape=(4096, width)), "a/b", scheme)
    preset = PRESETS[scheme]
    assert set(plan.schemes.values()) == {replace(preset, weights=replace(preset.weights, group_size=GROUPS[width]))}


# A width that no group of a scheme divides.
MISFITS = {"NVFP4A16": 2730, "MXFP4": 2736, "W4A16": 2736}


@pytest.mark.parametrize("scheme", MISFITS)
def test_a_linear_whose_width_takes_no_groups_is_kept_and_the_draft_says_why(scheme: str) -> None:
    width = MISFITS[scheme]
    source = source_with("model.layers.0.mlp.narrow_proj.weight", shape=(64, width))
    draft = draft_recipe(source, model="org/model", licence="mit", path=PATH, scheme=scheme)
    assert f"# {width} columns are no multiple of" in draft.text
    plan = make_plan(read_recipe(draft.text.encode(), where=str(PATH)), source)
    assert len(plan.schemes) == 32 * 7
    assert "model.layers.0.mlp.narrow_proj" not in plan.schemes


@pytest.mark.parametrize(
    "names", [["mlp.experts.0.down_proj"], [f"mlp.wide_{number}" for number in range(40)]], ids=["experts", "the bulk"]
)
def test_a_scheme_that_fits_no_experts_or_not_the_bulk_is_refused(names: list[str]) -> None:
    source = source_with(*(f"model.layers.0.{name}.weight" for name in names), shape=(65536, 2730))
    with pytest.raises(RecipeError, match="group size 16 does not divide width 2730"):
        draft_recipe(source, model="org/model", licence="mit", path=PATH, scheme="NVFP4A16")


def test_groups_that_differ_from_the_preset_are_explained() -> None:
    draft = draft_recipe(reference_lock(GEMMA), model=GEMMA, licence="apache-2.0", path=PATH, scheme="W4A16")
    assert "# W4A16 but for its groups: 128 does not divide 704, 2112.\n" in draft.text


# where a draft is written -> its first line
SCHEMA_LINES = {
    ROOT / "recipes/org/model/draft.yaml": "# yaml-language-server: $schema=../../recipe.schema.json",
    ROOT / "recipes/mine/draft.yaml": "# yaml-language-server: $schema=../recipe.schema.json",
    ROOT / "builds/nr/draft.yaml": "# yaml-language-server: $schema=../../recipes/recipe.schema.json",
    ROOT.parent
    / "draft.yaml": f"# FP8_DYNAMIC for {GEMMA}, drafted by build.py --new-recipe from the model's headers:",
}


@pytest.mark.parametrize("path", SCHEMA_LINES, ids=lambda path: path.relative_to(ROOT.parent).as_posix())
def test_first_line_leads_from_the_draft_to_its_schema_within_the_project(path: Path) -> None:
    draft = draft_recipe(reference_lock(GEMMA), model=GEMMA, licence="apache-2.0", path=path)
    assert draft.text.splitlines()[0] == SCHEMA_LINES[path]


def test_findings_name_the_file_that_is_written() -> None:
    source = families.checkpoint("meta-llama/Llama-3.1-8B-Instruct")
    draft = draft_recipe(source, model="a/b", licence="mit", path=PATH)
    line = draft.text.splitlines().index("base:") + 1
    assert [finding.where for finding in draft.findings] == [f"{PATH}:{line}"]


@pytest.mark.parametrize("repository", families.LOCKED)
def test_derived_lock_is_what_the_dimensions_make(repository: str) -> None:
    assert lock_path(repository).read_text() == families.derived_lock(repository)


@pytest.mark.parametrize("repository", families.LOCKED)
def test_model_with_a_derived_lock_can_be_drafted_and_planned_without_a_network(
    repository: str, call_build: Command, tmp_path: Path
) -> None:
    lock, path = lock_path(repository), tmp_path / "draft.yaml"
    drafted = call_build("--new-recipe", repository, "--model", lock, "--licence", "mit", "--output", path)
    assert drafted.code == 0, drafted.err
    for recipe in (path, f"{repository}/fp8-dynamic"):
        planned = call_build(recipe, "--plan", "--model", lock)
        assert planned.code == 0, planned.out


def test_draft_pins_the_commit_that_was_looked_at() -> None:
    source = reference_lock(GEMMA)
    assert drafted(source, GEMMA).loaded.recipe.base.revision == source.origin.revision


def test_module_of_unknown_role_is_kept_and_said_to_be_unknown() -> None:
    draft = draft_recipe(source_with("model.layers.0.gizmo.weight"), model="a/b", licence="mit", path=PATH)
    assert "not known here" in draft.text
    assert "re:.*gizmo.*" in draft.text


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.#x: [&a",
        "model.layers.0.'\"\\",
        "model.layers.0.a\nb",
        "model.layers.0.{{ x }}",
        "~",
        "null",
        ".",
    ],
)
def test_names_of_a_stranger_stay_names(name: str) -> None:
    source = source_with(f"{name}.weight")
    assert name not in drafted(source, "a/b").schemes


def test_model_in_which_nothing_is_known_is_refused() -> None:
    source = replace(reference_lock(GEMMA), structure={"encoder.block.q.weight": Tensor("BF16", (64, 64))})
    with pytest.raises(RecipeError, match="no recipe can be drafted"):
        draft_recipe(source, model="a/b", licence="mit", path=PATH)


# --- the command

LOCK = ROOT / "references" / f"{GEMMA}.yaml"


def test_command_writes_what_it_prints_and_it_plans(call_build: Command, tmp_path: Path) -> None:
    path = tmp_path / "new" / "recipe.yaml"
    drafted = call_build("--new-recipe", GEMMA, "--model", LOCK, "--licence", "apache-2.0", "--output", path)
    assert drafted.code == 0
    assert drafted.out == path.read_text()
    planned = call_build(path, "--plan", "--model", LOCK)
    assert planned.code == 0, planned.out


def test_new_recipe_as_a_command_drafts_the_same_and_lists_only_its_own_options(
    call_build: Command, tmp_path: Path
) -> None:
    named = (GEMMA, "--model", LOCK, "--licence", "apache-2.0", "--output")
    alone = call_main(new_recipe, (*named, tmp_path / "alone.yaml"))
    assert (alone.code, alone.out) == (0, call_build("--new-recipe", *named, tmp_path / "build.yaml").out)
    assert not {"--plan", "--engine", "--memory"} & {*call_main(new_recipe, ["--help"]).out.split()}


def test_licence_is_that_of_the_card_beside_the_model(call_build: Command, tmp_path: Path, mini: Path) -> None:
    path = tmp_path / "recipe.yaml"
    assert call_build("--new-recipe", "org/mini", "--model", mini, "--output", path).code == 0
    assert load_recipe(str(path)).recipe.base.licence == "apache-2.0"


REFUSED = {
    "calibrated": (("--new-recipe", "org/mini", "--model", str(LOCK), "--scheme", "NVFP4"), "invalid choice: 'NVFP4'"),
    "no hub id": (("--new-recipe", "gemma"), "gemma: is no hub id"),
    "a recipe as well": (("fp8-dynamic", "--new-recipe", "org/mini"), "names a recipe, and asks for a new one"),
    "neither": ((), "names no recipe"),
    "no licence": (("--new-recipe", "org/mini", "--model", str(LOCK)), "declares no licence"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_draft_is_refused_in_one_sentence(case: str, call_build: Command, tmp_path: Path) -> None:
    arguments, sentence = REFUSED[case]
    outcome = call_build(*arguments, *(("--output", tmp_path / "r.yaml") if arguments else ()))
    assert (outcome.code, outcome.out) == (2, "")
    assert sentence in outcome.err
    assert not (tmp_path / "r.yaml").exists()


def test_recipe_that_is_there_is_not_written_over(call_build: Command, tmp_path: Path, mini: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("mine")
    outcome = call_build("--new-recipe", "org/mini", "--model", mini, "--output", path)
    assert outcome.code == 2
    assert path.read_text() == "mine"


def test_resolved_recipe_is_printed(call_build: Command) -> None:
    outcome = call_build("w4a16-g64", "--resolved")
    assert outcome.code == 0
    assert read_recipe(outcome.out.encode(), where="").recipe.name == "w4a16-g64"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.linear_attn.conv1d.weight", (64, 1, 4)),
        ("model.layers.0.mamba.conv1d.weight", (64, 1, 4)),
        ("model.layers.0.block_sparse_moe.input_linear.weight", (8, 256, 64)),
        ("model.layers.0.mlp.conv.weight", (8, 4, 3, 3)),
    ],
)
def test_what_is_no_matrix_is_kept_and_said_to_be_none(name: str, shape: tuple[int, ...]) -> None:
    source = source_with(name, shape=shape)
    draft = draft_recipe(source, model="org/model", licence="apache-2.0", path=PATH)
    assert "Not a matrix" in draft.text
    plan = drafted(source, "org/model")
    assert name.removesuffix(".weight") not in plan.schemes
    assert [finding for finding in lint(plan) if finding.severity is Severity.ERROR] == []


@pytest.mark.parametrize("name", ["resampler.ln_kv.weight", "encoder.LayerNorm.weight", "h.0.ln_1.weight"])
def test_a_norm_of_any_name_is_kept_and_the_draft_ends(name: str) -> None:
    plan = drafted(source_with(name), "org/model")
    assert name.removesuffix(".weight") not in plan.schemes


@pytest.mark.parametrize("commit", ["1" * 40, "0" * 40, "12e" + "3" * 37, "4d7ae4984b7db7de8f8457170b3f1a419ee76d52"])
def test_commit_is_read_back_as_the_text_that_it_is(commit: str) -> None:
    source = replace(source_with(), origin=Origin(repository=GEMMA, revision=commit))
    text = draft_recipe(source, model=GEMMA, licence="apache-2.0", path=PATH, scheme="FP8_DYNAMIC").text
    assert read_recipe(text.encode(), where=str(PATH)).recipe.base.revision == commit
