"""Units: entries that recipes share stand in their place with reasons and lines, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_catalogue import table
from weighbridge.errors import RecipeError
from weighbridge.recipe import load_recipe, read_recipe
from weighbridge.recipe.catalogue import RECIPES, find_recipe, recipe_names, unit_names

HEAD = """\
name: mine
description: what it is
base: {model: org/model, licence: mit}
method: model_free_ptq
scheme: FP8_DYNAMIC
"""
UNIT = """\
# What it is for.
ignore:
  # Why a.
  - a
  # Why b: in
  # two lines.
  - pattern: re:.*b
    allow: serve/x because our servers keep it so
"""


def write(directory: Path, recipe: str, **units: str) -> Path:
    for name, text in units.items():
        (directory / f"{name}.yaml").write_text(text)
    path = directory / "recipe.yaml"
    path.write_text(HEAD + recipe)
    return path


def test_entries_of_a_unit_stand_in_its_place_with_their_reasons_and_lines(tmp_path: Path) -> None:
    recipe = "ignore:\n    # Ours.\n    - first\n    # Theirs.\n    - use: unit.yaml  # both\n    - last\n# Not tied.\n"
    loaded = load_recipe(str(write(tmp_path, recipe, unit=UNIT)))
    assert loaded.recipe.ignored == ("first", "a", "re:.*b", "last")
    assert loaded.raw.decode() == HEAD + (
        "ignore:\n    # Ours.\n    - first\n    # Theirs.\n    # Why a.\n    - a\n    # Why b: in\n    # two lines.\n"
        "    - pattern: re:.*b\n      allow: serve/x because our servers keep it so\n    - last\n# Not tied.\n"
    )
    places = [loaded.location("ignore", index).rpartition("/")[2] for index in range(4)]
    assert places == ["recipe.yaml:8", "unit.yaml:4", "unit.yaml:7", "recipe.yaml:11"]
    assert loaded.location("base").endswith("recipe.yaml:3")


@pytest.mark.parametrize(
    "end", ["", "\n", "  # Nothing follows.\n", "# Nothing follows.\n", "\n# Nothing follows.\n\n"]
)
@pytest.mark.parametrize(
    "recipe",
    [
        "ignore:\n  - use: unit.yaml\n  - last\n",
        "ignore:\n  - use: unit.yaml\n  - use: other.yaml\n",
        "ignore:\n  - use: unit.yaml\n# Not tied.\nfused_groups: []\n",
    ],
)
def test_what_ends_a_unit_is_no_reason_of_what_follows_its_use(recipe: str, end: str, tmp_path: Path) -> None:
    other = "ignore:\n  - other\n"
    ended = load_recipe(str(write(tmp_path, recipe, unit=UNIT + end, other=other + end))).raw
    assert ended == load_recipe(str(write(tmp_path, recipe, unit=UNIT, other=other))).raw


def test_unit_of_the_catalogue_is_used_from_anywhere(tmp_path: Path) -> None:
    loaded = load_recipe(str(write(tmp_path, "ignore:\n- use: head-and-embedding\n")))
    assert loaded.recipe.ignored == ("lm_head", "re:.*embed_tokens$")
    assert loaded.location("ignore", 1).endswith("recipes/units/head-and-embedding.yaml:7")


@pytest.mark.parametrize(
    ("child", "ignored"),
    [
        ("scheme: FP8_BLOCK\n", ("x", "a", "re:.*b")),
        ("ignore:\n  - use: tied-head\n", ("lm_head",)),
        ("ignore:\n  add:\n    - use: tied-head\n    - y\n", ("x", "a", "re:.*b", "lm_head", "y")),
        ("ignore:\n  remove:\n    - a\n", ("x", "re:.*b")),
        ("ignore:\n  add:\n    - use: tied-head\n  remove: [x, re:.*b]\n", ("a", "lm_head")),
    ],
)
def test_units_and_what_is_extended_go_together(child: str, ignored: tuple[str, ...], tmp_path: Path) -> None:
    write(tmp_path, "ignore:\n  - x\n  - use: unit.yaml\n", unit=UNIT)
    (tmp_path / "child.yaml").write_text(f"name: child\nextends: recipe.yaml\n{child}")
    loaded = load_recipe(str(tmp_path / "child.yaml"))
    assert loaded.recipe.ignored == ignored
    assert read_recipe(loaded.raw, where="").recipe == loaded.recipe


# what the recipe says, what unit.yaml holds, what the sentence says: the place, what, and what to do
REFUSED = {
    "no such unit": ("- use: tied-heads", UNIT, "recipe.yaml:8: there is no unit tied-heads; did you mean tied-head?"),
    "nothing like it": ("- use: xyz", UNIT, "recipe.yaml:8: there is no unit xyz; there are drafter-joint, "),
    "a way out of the units": ("- use: ../google/x", UNIT, "there is no unit ../google/x"),
    "no such file": ("- use: other.yaml", UNIT, "recipe.yaml:8: the unit other.yaml cannot be read (No such file"),
    "twice": ("- use: unit.yaml\n  - use: unit.yaml", UNIT, "recipe.yaml:9: the unit unit.yaml is used twice"),
    "an entry of the recipe's own": (
        "- use: unit.yaml\n  - a",
        UNIT,
        "recipe.yaml:8: a of the unit unit.yaml stands on line 9 already",
    ),
    "an entry with an allowance": (
        "- use: unit.yaml\n  - pattern: re:.*b",
        UNIT,
        "re:.*b of the unit unit.yaml stands",
    ),
    "an entry of another unit": (
        "- use: tied-head\n  - use: unit.yaml",
        "ignore:\n  - lm_head\n",
        "recipe.yaml:9: lm_head of the unit unit.yaml is in the unit tied-head already",
    ),
    "an entry twice in the unit": ("- use: unit.yaml", "ignore:\n  - a\n  - a\n", "a of the unit unit.yaml is in the"),
    "two names": ("- use: [tied-head, unit.yaml]", UNIT, "recipe.yaml:8: use stands alone, with the name or file"),
    "something beside the name": ("- use: unit.yaml\n    allow: a/b because it is so", UNIT, "use stands alone"),
    "in one line": ("- {use: unit.yaml}", UNIT, "recipe.yaml:8: use must stand on a line of its own; write '- use: "),
    "no list": ("- use: unit.yaml", "ignore: a\n", "unit.yaml:1: a unit holds ignore, a list of entries"),
    "an empty list": ("- use: unit.yaml", "ignore: []\n", "unit.yaml:1: a unit holds ignore, a list of entries"),
    "a list in one line": ("- use: unit.yaml", "ignore: [a, b]\n", "unit.yaml:1: each entry of ignore must stand on"),
    "more than a list": (
        "- use: unit.yaml",
        f"{UNIT}scheme: FP8\n",
        "unit.yaml:9: a unit holds ignore and nothing else",
    ),
    "a recipe": ("- use: unit.yaml", HEAD, "unit.yaml:1: a unit holds ignore and nothing else, and this one has name"),
    "a unit of units": ("- use: unit.yaml", "ignore:\n  - use: x\n", "unit.yaml:2: a unit uses no other unit"),
    "no YAML": ("- use: unit.yaml", "ignore: {", "unit.yaml:2: is not YAML"),
    "a wrong entry": ("- use: unit.yaml", "ignore:\n  - re:(\n", "unit.yaml:2: ignore.0"),
}


@pytest.mark.parametrize(("items", "unit", "sentence"), REFUSED.values(), ids=REFUSED)
def test_unit_that_cannot_be_used_is_refused_with_its_place(
    items: str, unit: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(str(write(tmp_path, f"ignore:\n  # why\n  {items}\n", unit=unit)))
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    "spelt", ["- use: unit.yaml", "-  use: unit.yaml", "-   use:   unit.yaml  # why", "- use : unit.yaml"]
)
def test_unit_is_used_on_a_line_of_its_own_however_it_is_spaced(spelt: str, tmp_path: Path) -> None:
    loaded = load_recipe(str(write(tmp_path, f"ignore:\n  - first\n  {spelt}\n  - last\n", unit=UNIT)))
    assert loaded.recipe.ignored == ("first", "a", "re:.*b", "last")


def test_list_in_one_line_uses_no_unit(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml:6: use must stand on a line of its own"):
        load_recipe(str(write(tmp_path, "ignore: [{use: tied-head}]\n")))


def test_recipe_of_a_stranger_uses_nothing() -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'ignore\.0.*use'"):
        read_recipe(f"{HEAD}ignore:\n  - use: tied-head\n".encode(), where="evidence/recipe.yaml")


NAMES = st.lists(st.sampled_from(["a", "b", "c", "d", "re:.*e"]), unique=True, min_size=1)
SPACE = st.sampled_from(["", "\n", "  # why\n", "# why\n", "\n# why\n\n"])


@given(names=NAMES, first=st.integers(0, 4), many=st.integers(1, 5), spaces=st.lists(SPACE, min_size=9, max_size=9))
def test_list_with_a_unit_is_the_list_that_says_its_entries(
    names: list[str], first: int, many: int, spaces: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = min(first, len(names) - 1)
    shared = names[first : first + many]
    unit = "".join(f"{space}    - {name}\n" for name, space in zip(shared, spaces, strict=False))
    items = [*names[:first], "use: unit.yaml", *names[first + many :]]
    recipe = "".join(f"{space}  - {item}\n" for item, space in zip(items, reversed(spaces), strict=False))
    path = write(
        tmp_path_factory.mktemp("recipes"), f"ignore:\n{recipe}{spaces[4]}", unit=f"ignore:\n{unit}{spaces[5]}"
    )
    loaded = load_recipe(str(path))
    assert loaded.recipe.ignored == tuple(names)
    for index, name in enumerate(names):
        file, _, line = loaded.location("ignore", index).rpartition(":")
        assert (path.parent / Path(file).name).read_text().splitlines()[int(line) - 1].strip() == f"- {name}"


# --- those of the catalogue

TIED, OWN = ("lm_head",), ("lm_head", "re:.*embed_tokens$")
GEMMA = ("lm_head", "re:.*embed.*", "re:.*router", "re:.*vision_tower.*")
IGNORED = {
    "google/gemma-4-26B-A4B-it/fp8-block": (*GEMMA, "re:.*norm.*"),
    "google/gemma-4-26B-A4B-it/fp8-dynamic": (*GEMMA, "re:.*norm.*"),
    "google/gemma-4-26B-A4B-it/fp8-dynamic-kv8": GEMMA,
    "google/gemma-4-26B-A4B-it/fp8-dynamic-norouter": (
        *("lm_head", r"re:.*router\.proj$", "re:.*norm.*", "re:.*embed.*", "re:.*vision_tower.*"),
    ),
    "google/gemma-4-26B-A4B-it/mxfp4": (*GEMMA, "re:.*norm.*"),
    "google/gemma-4-26B-A4B-it/nvfp4": GEMMA,
    "google/gemma-4-26B-A4B-it/nvfp4-experts-modelopt": (
        *(*GEMMA, "re:.*self_attn.*", r"re:.*layers\.[0-9]+\.mlp\..*"),
    ),
    "google/gemma-4-26B-A4B-it/nvfp4-full-modelopt": GEMMA,
    "google/gemma-4-26B-A4B-it/nvfp4a16": (*GEMMA, "re:.*norm.*"),
    "google/gemma-4-26B-A4B-it/nvfp4a16-4o6": (*GEMMA, "re:.*norm.*"),
    "google/gemma-4-26B-A4B-it/w4a16": (*GEMMA, "re:.*norm.*"),
    "google/gemma-4-26B-A4B-it/w4a16-signed": (*GEMMA, "re:.*norm.*"),
    "google/gemma-4-26B-A4B-it/w4a16-awq": GEMMA,
    "google/gemma-4-26B-A4B-it/w4a16-g64": (*GEMMA, "re:.*norm.*"),
    "google/gemma-4-26B-A4B-it/w4a16-gptq": GEMMA,
    "google/gemma-4-26B-A4B-it-qat-q4_0-unquantized/qat-nvfp4-full-modelopt": GEMMA,
    "google/gemma-4-31B-it/fp8-dynamic": ("lm_head", "re:.*embed.*", "re:.*vision_tower.*"),
    "google/gemma-4-12B-it/fp8-dynamic": ("lm_head", "re:.*embed.*"),
    "google/gemma-4-E4B-it/fp8-dynamic": (
        *("lm_head", "re:.*embed.*", r"re:.*\.per_layer_(input_gate|projection|model_projection)$"),
        *("re:.*vision_tower.*", "re:.*audio_tower.*"),
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct/fp8-dynamic": OWN,
    "HuggingFaceTB/SmolLM2-135M-Instruct/nvfp4": TIED,
    "HuggingFaceTB/SmolLM2-135M-Instruct/nvfp4a16": OWN,
    "HuggingFaceTB/SmolLM2-135M-Instruct/w4a16": OWN,
    "HuggingFaceTB/SmolLM2-135M-Instruct/w4a16-gptq": TIED,
    "meta-llama/Llama-3.1-8B-Instruct/fp8-dynamic": OWN,
    "Qwen/Qwen3-30B-A3B/fp8-dynamic": (*OWN, r"re:.*mlp\.gate$"),
    "mistralai/Mixtral-8x7B-Instruct-v0.1/fp8-dynamic": (*OWN, r"re:.*block_sparse_moe\.gate$"),
    "deepseek-ai/DeepSeek-V2-Lite/fp8-dynamic": (*OWN, r"re:.*mlp\.gate$"),
}
"""What recipes kept before there were units, and keep with them."""


@pytest.mark.parametrize("name", IGNORED)
def test_recipe_keeps_what_it_kept_without_units(name: str) -> None:
    assert load_recipe(name).recipe.ignored == IGNORED[name]


def test_table_lists_exactly_the_units_on_disk() -> None:
    listed = {name for name, (link, *_) in table(RECIPES / "README.md").items() if link.startswith("units/")}
    assert sorted(listed) == unit_names()
    assert not {name for name in recipe_names() if name.startswith("units/")}


@pytest.mark.parametrize("name", unit_names())
def test_unit_of_the_catalogue_is_used_by_two_recipes_or_more(name: str) -> None:
    assert sum(f"- use: {name}\n" in find_recipe(recipe).read_text() for recipe in recipe_names()) >= 2


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_of_the_catalogue_stands_for_itself_when_it_is_resolved(name: str) -> None:
    loaded = load_recipe(name)
    assert read_recipe(loaded.raw, where="").recipe == loaded.recipe
