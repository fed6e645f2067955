"""The catalogue: recipes on disk, the table that lists them, the references they name, and names that are misspelt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.planning import REAL, ROOT, source
from tests.reference_locks import reference_lock
from weighbridge.base import references
from weighbridge.base.locks import REFERENCES, lock_path, source_locks
from weighbridge.checkpoint.lock import ReadLock, expand_lock
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.errors import RecipeError, StructureError
from weighbridge.formats.tensors import payload_bytes
from weighbridge.linting import lint
from weighbridge.planning import Plan, make_plan
from weighbridge.planning.conversion_base import locked_base
from weighbridge.recipe import load_recipe
from weighbridge.recipe.catalogue import RECIPES, find_recipe, recipe_names

LOCKS = sorted(path.relative_to(REFERENCES).with_suffix("").as_posix() for path in REFERENCES.rglob("*.yaml"))


def table(readme: Path) -> dict[str, list[str]]:
    """The rows of a README whose first column links a file: name -> the link's target and the other columns."""
    rows = re.findall(r"^\| \[([^\]]+)\]\(([^)]+)\) \| (.+) \|$", readme.read_text(), re.MULTILINE)
    assert len({name for name, _, _ in rows}) == len(rows), "a name stands twice"
    return {name: [link, *columns.split(" | ")] for name, link, columns in rows}


CATALOGUE = {name: row for name, row in table(RECIPES / "README.md").items() if not row[0].startswith("units/")}


def test_table_lists_exactly_the_recipes_on_disk() -> None:
    assert sorted(CATALOGUE) == recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_table_says_what_the_recipe_says(name: str) -> None:
    recipe = load_recipe(name).recipe
    link, base, method, scheme = CATALOGUE[name][:4]
    assert (link, base, method) == (f"{name}.yaml", recipe.base.model, recipe.method)
    assert recipe.scheme in (scheme.split(",")[0], None)


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_is_called_as_its_file(name: str) -> None:
    loaded = load_recipe(name)
    assert loaded.recipe.name == name.rpartition("/")[2]
    assert name.startswith(f"{loaded.recipe.base.model}/")


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_quantizes_something_and_keeps_something(name: str) -> None:
    recipe = load_recipe(name).recipe
    if recipe.convert is not None:  # what it does not dequantize stays quantized
        assert recipe.convert.dequantize
        return
    assert all(group.targets for group in recipe.groups)
    assert recipe.groups
    assert recipe.ignored


@pytest.mark.parametrize("name", recipe_names())
def test_each_entry_of_an_ignore_list_follows_a_comment_with_its_reason(name: str) -> None:
    loaded = load_recipe(name)
    lines = loaded.raw.decode().splitlines()
    for index in range(len(loaded.recipe.ignore)):
        above = lines[loaded.document.line(("ignore", index)) - 2]
        assert above.lstrip().startswith("# ")


@pytest.mark.parametrize("name", recipe_names())
def test_references_of_a_recipe_exist(name: str) -> None:
    for entry in load_recipe(name).recipe.references:
        assert reference_lock(entry.lock).origin.repository == entry.lock


@pytest.mark.parametrize("name", recipe_names())
def test_base_of_a_recipe_is_pinned_to_the_commit_of_its_lock(name: str) -> None:
    base = load_recipe(name).recipe.base
    if lock_path(base.model).is_file():  # the commits of other models are not known here, and lint warns of it
        assert reference_lock(base.model).origin.revision == (base.revision or "")


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_is_found_by_its_name_and_by_its_path(name: str) -> None:
    path = RECIPES / f"{name}.yaml"
    assert find_recipe(name) == path
    assert find_recipe(str(path)) == path


def test_recipe_is_found_by_a_short_name_that_only_it_has() -> None:
    assert find_recipe("fp8-dynamic-norouter") == RECIPES / "google/gemma-4-26B-A4B-it/fp8-dynamic-norouter.yaml"


# what was asked for, what the sentence says
UNKNOWN = {
    "misspelt": ("fp8-dynamc", "no recipe of this name; did you mean "),
    "misspelt in full": (
        "google/gemma-4-26B-A4B-it/fp8dynamic-norouter",
        "did you mean google/gemma-4-26B-A4B-it/fp8-dynamic-norouter?",
    ),
    "nothing like it": ("q4_k_m", "no recipe of this name; the catalogue is recipes/README.md"),
    "absent file": ("fp8-dynamic-norouter.yaml", "no such recipe file; did you mean google/gemma-4-26B-A4B-it/"),
    "absent directory": ("elsewhere/tried.yaml", "elsewhere/tried.yaml: no such recipe file"),
    "directory": (".", "is a directory, not a recipe"),
    "empty": ("", "is a directory, not a recipe"),
    "too long for any file": ("a" * 5000, "no recipe of this name"),
}


@pytest.mark.parametrize(("name", "sentence"), UNKNOWN.values(), ids=UNKNOWN)
def test_recipe_that_is_not_there_is_refused_with_a_suggestion(name: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe(name)
    assert sentence in str(caught.value)


def test_short_name_of_several_recipes_is_refused_with_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in ("one", "two"):
        (tmp_path / model).mkdir()
        (tmp_path / model / "fp8.yaml").touch()
    monkeypatch.setattr("weighbridge.recipe.catalogue.RECIPES", tmp_path)
    with pytest.raises(RecipeError, match="is the name of several recipes; name one of one/fp8, two/fp8"):
        find_recipe("fp8")


def test_table_of_references_lists_exactly_the_locks_on_disk_with_how_they_are_known() -> None:
    listed = {name: columns[:2] for name, columns in table(REFERENCES / "README.md").items()}
    # What oneshot makes of the miniature stands there in one row for all recipes.
    singly = [name for name in LOCKS if not name.startswith("weighbridge/gemma-4-mini-")]
    assert listed == {name: [f"{name}.yaml", reference_lock(name).origin.basis] for name in singly}


def test_reference_that_is_not_there_is_refused() -> None:
    with pytest.raises(StructureError, match="org/absent: references/ holds no lock of this name"):
        reference_lock("org/absent")


def test_locks_of_sources_are_those_that_are_their_own_base() -> None:
    assert {lock.origin.repository for lock in source_locks()} == {
        name for name in LOCKS if reference_lock(name).origin.base == name
    }


def test_the_base_of_a_source_is_found_by_expanding_its_own_lock_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # A lock of a large model stands for a hundred thousand tensors: every audit would pay for all of them.
    expanded: list[str] = []

    def expand(read: ReadLock) -> Checkpoint:
        expanded.append(read.origin.repository)
        return expand_lock(read)

    monkeypatch.setattr(references, "expand_lock", expand)
    found = references.base_of_source(reference_lock("openai/gpt-oss-120b"), preferred="org/unknown")
    assert found is not None
    assert expanded == ["openai/gpt-oss-120b"]


def shown_in_the_readme() -> dict[str, list[str]]:
    """Short name of a recipe -> the other columns of its row in the README's table."""
    rows = re.findall(
        r"^\| (`[a-z0-9-]+`(?:, `[a-z0-9-]+`)*) \| (.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    return {name: columns.split(" | ") for names, columns in rows for name in re.findall(r"`([^`]+)`", names)}


SHOWN = shown_in_the_readme()


@pytest.fixture(scope="module", params=SHOWN)
def shown(request: pytest.FixtureRequest) -> tuple[list[str], Plan]:
    """A row of the README's table, and what its recipe makes of the real model."""
    loaded = load_recipe(request.param)
    base = source(REAL)
    start = locked_base(loaded, base) if loaded.recipe.method == "convert" else base
    assert start is not None
    return SHOWN[request.param], make_plan(loaded, start)


def test_readme_shows_every_recipe_of_the_26b() -> None:
    of_the_model = [name for name in recipe_names() if "gemma-4-26B-A4B-it" in name]
    assert sorted(SHOWN) == sorted(name.rpartition("/")[2] for name in of_the_model)


def test_readme_shows_the_size_of_the_plan(shown: tuple[list[str], Plan]) -> None:
    (_, _, size, bits, _), plan = shown
    total = payload_bytes(plan.predicted.structure)
    parameters = sum(part.weight.parameters for part in plan.parts)
    assert (size, bits) == (f"{total / 1e9:.1f} GB", f"{total * 8 / parameters:.2f}")


GENERATIONS = {"every GPU from SM 8.0": "Ampere", "SM 8.9": "Ada", "natively from SM 10.0": "Blackwell"}


def test_readme_shows_the_newest_of_the_gpus_that_lint_names(shown: tuple[list[str], Plan]) -> None:
    (_, gpus, _, _, _), plan = shown
    said = [finding.message for finding in lint(plan) if finding.rule == "serve/gpu"]
    named = [generation for words, generation in GENERATIONS.items() for message in said if words in message]
    assert len(named) == len(said) > 0
    assert gpus.startswith(named[-1])
