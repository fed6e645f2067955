"""Drafted recipes: they lint clean on models of several families, and decide as the recipes written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests import families
from tests.conftest import ROOT, Command
from weighbridge.catalogue import reference_lock
from weighbridge.drafting import draft_recipe
from weighbridge.errors import RecipeError
from weighbridge.formats.tensors import Tensor
from weighbridge.lint import lint
from weighbridge.plan import Plan, make_plan
from weighbridge.recipe import load_recipe, read_recipe
from weighbridge.report import Severity
from weighbridge.structure.checkpoint import Checkpoint

GEMMA = "google/gemma-4-26B-A4B-it"
WRITTEN = sorted(families.FAMILIES)


def drafted(source: Checkpoint, model: str, scheme: str = "FP8_DYNAMIC") -> Plan:
    draft = draft_recipe(source, model=model, licence="apache-2.0", scheme=scheme)
    return make_plan(read_recipe(draft.text.encode(), where="draft"), source)


def source_with(*names: str) -> Checkpoint:
    """The structure of Llama and some more tensors."""
    source = families.checkpoint("meta-llama/Llama-3.1-8B-Instruct")
    return replace(source, structure={**source.structure, **{name: Tensor("BF16", (64, 64)) for name in names}})


@pytest.mark.parametrize("repository", WRITTEN)
def test_draft_decides_as_the_recipe_written_by_hand(repository: str) -> None:
    source = families.checkpoint(repository)
    by_hand = make_plan(load_recipe(f"{repository}/fp8-dynamic"), source)
    assert drafted(source, repository).schemes == by_hand.schemes


@pytest.mark.parametrize("repository", WRITTEN)
def test_draft_lints_clean_but_for_a_revision_that_nobody_knows(repository: str) -> None:
    findings = lint(drafted(families.checkpoint(repository), repository))
    assert {item.rule for item in findings if item.severity is not Severity.NOTE} <= {"base/unpinned"}


@pytest.mark.parametrize("scheme", ["FP8_BLOCK", "NVFP4A16", "MXFP4"])
def test_draft_is_written_for_other_schemes_that_need_no_data(scheme: str) -> None:
    plan = drafted(reference_lock(GEMMA), GEMMA, scheme)
    assert plan.loaded.recipe.name == scheme.lower().replace("_", "-")
    assert len(plan.schemes) == 11_725


def test_draft_pins_the_commit_that_was_looked_at() -> None:
    source = reference_lock(GEMMA)
    assert drafted(source, GEMMA).loaded.recipe.base.revision == source.origin.revision


def test_module_of_unknown_role_is_kept_and_said_to_be_unknown() -> None:
    draft = draft_recipe(source_with("model.layers.0.gizmo.weight"), model="a/b", licence="mit")
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


def test_scheme_that_does_not_fit_is_refused_with_the_reason() -> None:
    with pytest.raises(RecipeError, match="704"):
        draft_recipe(reference_lock(GEMMA), model=GEMMA, licence="apache-2.0", scheme="W4A16")


def test_model_in_which_nothing_is_known_is_refused() -> None:
    source = replace(reference_lock(GEMMA), structure={"encoder.block.q.weight": Tensor("BF16", (64, 64))})
    with pytest.raises(RecipeError, match="no recipe can be drafted"):
        draft_recipe(source, model="a/b", licence="mit")


# --- the command

LOCK = ROOT / "references" / f"{GEMMA}.yaml"


def test_command_writes_what_it_prints_and_it_plans(call_build: Command, tmp_path: Path) -> None:
    path = tmp_path / "new" / "recipe.yaml"
    drafted = call_build("--new-recipe", GEMMA, "--model", LOCK, "--licence", "apache-2.0", "--output", path)
    assert drafted.code == 0
    assert drafted.out == path.read_text()
    planned = call_build(path, "--plan", "--model", LOCK)
    assert planned.code == 0, planned.out


def test_licence_is_that_of_the_card_beside_the_model(call_build: Command, tmp_path: Path, mini: Path) -> None:
    path = tmp_path / "recipe.yaml"
    assert call_build("--new-recipe", "org/mini", "--model", mini, "--output", path).code == 0
    assert load_recipe(str(path)).recipe.base.licence == "apache-2.0"


REFUSED = {
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
