"""Recipes that extend another: what they say replaces, what they do not say stays, and all of it can be located."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.errors import RecipeError
from weighbridge.recipe import load_recipe, read_recipe
from weighbridge.recipe.catalogue import RECIPES

PARENT = """\
# A header.
name: parent
description: what it is
base:
  model: org/model
  licence: mit
method: model_free_ptq
# Why this scheme.
scheme: FP8_DYNAMIC
ignore:
  # Why the head.
  - lm_head
  - re:.*router
"""
KEYS = ("description", "base", "method", "scheme", "ignore")


def write(directory: Path, **recipes: str) -> Path:
    for name, text in recipes.items():
        (directory / f"{name}.yaml").write_text(text)
    return directory / f"{name}.yaml"


def test_key_that_is_said_replaces_and_the_rest_stays(tmp_path: Path) -> None:
    path = write(tmp_path, parent=PARENT, child="name: child\nextends: parent.yaml\nscheme: FP8_BLOCK\n")
    recipe = load_recipe(str(path)).recipe
    assert (recipe.name, recipe.scheme, recipe.ignored) == ("child", "FP8_BLOCK", ("lm_head", "re:.*router"))


def test_list_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = write(tmp_path, parent=PARENT, child="name: child\nextends: parent.yaml\nignore: [lm_head]\n")
    assert load_recipe(str(path)).recipe.ignored == ("lm_head",)


CHANGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "add": ("add:\n    - re:.*embed.*\n", ("lm_head", "re:.*router", "re:.*embed.*")),
    "remove": ("remove:\n    - lm_head\n", ("re:.*router",)),
    "both": ("remove: [re:.*router]\n  add:\n    # Why.\n    - a\n    - b\n", ("lm_head", "a", "b")),
    "an entry with a reason of its own": (
        "add:\n    - pattern: re:.*vision.*\n      allow: serve/x because our servers keep it so\n",
        ("lm_head", "re:.*router", "re:.*vision.*"),
    ),
    "both, the other way round": ("add:\n    - a\n  # Why not.\n  remove:\n    - lm_head\n", ("re:.*router", "a")),
    "before a comment of what follows": ("add:\n    - a\n# note\n\n", ("lm_head", "re:.*router", "a")),
    "before an empty line": ("add:\n    - a\n\n    - b\n\n\n", ("lm_head", "re:.*router", "a", "b")),
    "nothing is left": ("remove:\n    - lm_head\n    - re:.*router\n", ()),
    "all": ("remove:\n    - lm_head\n    - re:.*router\n  add:\n    - a\n", ("a",)),
}


@pytest.mark.parametrize(("changes", "ignored"), CHANGES.values(), ids=CHANGES)
def test_list_is_changed_where_it_is_said_how(changes: str, ignored: tuple[str, ...], tmp_path: Path) -> None:
    child = f"name: child\nextends: parent.yaml\nignore:\n  {changes}scheme: FP8_BLOCK\n"
    loaded = load_recipe(str(write(tmp_path, parent=PARENT, child=child)))
    assert (loaded.recipe.ignored, loaded.recipe.scheme) == (ignored, "FP8_BLOCK")
    assert read_recipe(loaded.raw, where="").recipe == loaded.recipe


def test_changed_list_keeps_comments_and_lines(tmp_path: Path) -> None:
    child = "name: child\nextends: parent.yaml\nignore:\n  add:\n      # Ours.\n      - ours\n  remove: [re:.*router]\n"
    loaded = load_recipe(str(write(tmp_path, parent=PARENT, child=child)))
    text = loaded.raw.decode()
    assert "ignore:\n  # Why the head.\n  - lm_head\n  # Ours.\n  - ours\n" in text
    assert loaded.location("ignore", 0).endswith("parent.yaml:12")
    assert loaded.location("ignore", 1).endswith("child.yaml:6")


@pytest.mark.parametrize("end", ["", "\n", "  # Nothing follows.\n", "\n# Nothing follows.\n\n"])
@pytest.mark.parametrize("after", ["", "fused_groups: []\n"])
def test_what_ends_an_extended_list_is_no_reason_of_what_is_added(end: str, after: str, tmp_path: Path) -> None:
    child = "name: child\nextends: parent.yaml\nignore:\n  add:\n    - ours\n"
    text = load_recipe(str(write(tmp_path, parent=PARENT + end + after, child=child))).raw.decode()
    assert text.endswith(f"  - re:.*router\n  - ours\n{after}")


MAPPINGS = """\
ignore:
  - pattern: lm_head
    allow: ignore/tied because our servers keep it so

  # Why the router.
  - allow: ignore/redundant because our servers keep it so
    pattern: re:.*router
"""


@pytest.mark.parametrize(
    ("changes", "ignored"),
    [
        ("add:\n  - a\n", ("lm_head", "re:.*router", "a")),
        ("remove: [lm_head]\n", ("re:.*router",)),
        ("remove: [re:.*router]\n  add:\n        - a\n", ("lm_head", "a")),
    ],
)
def test_entries_that_are_mappings_are_entries_too(changes: str, ignored: tuple[str, ...], tmp_path: Path) -> None:
    parent = PARENT.partition("ignore:")[0] + MAPPINGS
    child = f"name: child\nextends: parent.yaml\nignore:\n  {changes}"
    assert load_recipe(str(write(tmp_path, parent=parent, child=child))).recipe.ignored == ignored


ENTRIES = st.lists(st.sampled_from(["a", "b", "c", "re:.*d"]), unique=True, min_size=1)
SPACE = st.sampled_from(["", "\n", "  # why\n", "# why\n", "\n# why\n\n"])


@given(
    theirs=ENTRIES,
    added=ENTRIES,
    removed=ENTRIES,
    spaces=st.lists(SPACE, min_size=8, max_size=8),
    indent=st.integers(2, 6),
)
def test_what_comes_of_a_change_is_the_list_without_and_with(
    theirs: list[str],
    added: list[str],
    removed: list[str],
    spaces: list[str],
    indent: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    removed = [name for name in removed if name in theirs]
    added = [name for name in added if name not in theirs or name in removed]
    if not added and not removed:
        return
    items = "".join(f"{space}  - {name}\n" for name, space in zip(theirs, spaces, strict=False))
    parent = PARENT.partition("ignore:")[0] + f"ignore:\n{items}{spaces[-1]}"
    child = "name: child\nextends: parent.yaml\nignore:\n"
    if added:
        child += "  add:\n" + "".join(
            f"{space}{' ' * indent}- {name}\n" for name, space in zip(added, reversed(spaces), strict=False)
        )
    if removed:
        child += f"  remove: [{', '.join(removed)}]\n"
    path = write(tmp_path_factory.mktemp("recipes"), parent=parent, child=f"{child}{spaces[0]}scheme: FP8_BLOCK\n")
    expected = [name for name in theirs if name not in removed] + added
    assert load_recipe(str(path)).recipe.ignored == tuple(expected)


def test_lists_are_changed_over_several_recipes(tmp_path: Path) -> None:
    middle = "name: middle\nextends: parent.yaml\nignore:\n  add:\n    - middle\n"
    child = "name: child\nextends: middle.yaml\nignore:\n  remove:\n    - lm_head\n  add:\n    - child\n"
    loaded = load_recipe(str(write(tmp_path, parent=PARENT, middle=middle, child=child)))
    assert loaded.recipe.ignored == ("re:.*router", "middle", "child")
    assert loaded.location("ignore", 1).endswith("middle.yaml:5")


WRONG_CHANGES = {
    "an entry that is not there": ("ignore:\n  remove:\n    - lm_heads\n", "did you mean lm_head?"),
    "an entry that is there": ("ignore:\n  add:\n    - lm_head\n", "already"),
    "a list that is not there": ("allow:\n  add:\n    - a because b\n", "has no allow to change"),
    "what is no list": ("base:\n  add:\n    - a\n", "base is no list"),
    "a unit that is taken away": (
        "ignore:\n  remove:\n    - use: tied-head\n",
        "ignore.remove names a unit, and units are removed by their entries",
    ),
    "what is no entry": ("ignore:\n  remove:\n    - pattern: lm_head\n", "ignore.remove is a list of entries"),
    "neither": ("ignore:\n  remov:\n    - lm_head\n", "did you mean remove?"),
    "entries in one line": ("ignore:\n  add: [a, b]\n", "an entry a line"),
}


@pytest.mark.parametrize(("changes", "sentence"), WRONG_CHANGES.values(), ids=WRONG_CHANGES)
def test_change_that_cannot_be_made_is_refused(changes: str, sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path, parent=PARENT, child=f"name: child\nextends: parent.yaml\n{changes}")
    with pytest.raises(RecipeError) as refused:
        load_recipe(str(path))
    assert sentence in str(refused.value)
    assert "child.yaml:3" in str(refused.value)


def test_key_is_taken_back_by_saying_nothing(tmp_path: Path) -> None:
    groups = "config_groups: {g: {scheme: FP8_BLOCK}}\n"
    path = write(tmp_path, parent=PARENT, child=f"name: child\nextends: parent.yaml\nscheme:\n{groups}")
    assert load_recipe(str(path)).recipe.scheme is None


def test_resolved_recipe_stands_for_itself(tmp_path: Path) -> None:
    path = write(tmp_path, parent=PARENT, child="name: child\nextends: parent.yaml\nscheme: FP8_BLOCK\n")
    loaded = load_recipe(str(path))
    assert read_recipe(loaded.raw, where="").recipe == loaded.recipe


def test_comments_come_along_with_their_keys(tmp_path: Path) -> None:
    path = write(tmp_path, parent=PARENT, child="name: child\nextends: parent.yaml\n# Another reason.\nscheme: MXFP4\n")
    text = load_recipe(str(path)).raw.decode()
    assert "# Why the head." in text
    assert "# Another reason.\nscheme: MXFP4" in text
    assert "# Why this scheme." not in text


@pytest.mark.parametrize(
    ("path", "place"), [(("ignore", 1), "parent.yaml:13"), (("scheme",), "child.yaml:3"), (("name",), "child.yaml:1")]
)
def test_place_is_that_of_the_file_that_says_it(path: tuple[str | int, ...], place: str, tmp_path: Path) -> None:
    child = write(tmp_path, parent=PARENT, child="name: child\nextends: parent.yaml\nscheme: FP8_BLOCK\n")
    assert load_recipe(str(child)).location(*path).endswith(place)


def test_mistake_is_located_in_the_file_that_makes_it(tmp_path: Path) -> None:
    parent = PARENT.replace("licence: mit", "license: mit")
    path = write(tmp_path, parent=parent, child="name: child\nextends: parent.yaml\n")
    with pytest.raises(RecipeError, match=r"parent\.yaml:6: unknown key 'base\.license'"):
        load_recipe(str(path))


def test_chain_of_recipes_is_followed(tmp_path: Path) -> None:
    middle = "name: middle\nextends: parent.yaml\nscheme: FP8_BLOCK\n"
    path = write(tmp_path, parent=PARENT, middle=middle, child="name: child\nextends: middle.yaml\nignore: []\n")
    recipe = load_recipe(str(path)).recipe
    assert (recipe.scheme, recipe.ignored) == ("FP8_BLOCK", ())


def test_chain_of_recipes_ends_somewhere(tmp_path: Path) -> None:
    recipes = {f"r{number}": f"name: r\nextends: r{number - 1}.yaml\n" for number in range(1, 10)}
    path = write(tmp_path, r0=PARENT, **recipes)
    assert load_recipe(str(tmp_path / "r8.yaml")).recipe.ignored == ("lm_head", "re:.*router")
    with pytest.raises(RecipeError, match=r"r1\.yaml:2: is recipe 9 of those that extend one another, and 8 may; say "):
        load_recipe(str(path))


def test_recipe_of_the_catalogue_is_extended_by_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, child="name: child\nextends: google/gemma-4-26B-A4B-it/fp8-dynamic\n")
    assert load_recipe(str(path)).recipe.ignored == load_recipe("fp8-dynamic").recipe.ignored


REFUSED = {
    "itself": ("extends: child.yaml\n", "in turn"),
    "nothing": ("extends: other.yaml\n", r"other\.yaml cannot be read"),
    "an unknown name": ("extends: fp8-dynamik\n", "no recipe of this name"),
    "a list": ("extends: [parent.yaml]\n", "must be the name or file"),
    "two of the same": ("extends: parent.yaml\nextends: parent.yaml\n", "stands twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_extending_is_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    text, reason = REFUSED[case]
    path = write(tmp_path, parent=PARENT, child=f"name: child\n{text}")
    with pytest.raises(RecipeError, match=reason):
        load_recipe(str(path))


def test_recipe_in_braces_is_not_extended(tmp_path: Path) -> None:
    path = write(tmp_path, parent="{name: parent}\n", child="name: child\nextends: parent.yaml\n")
    with pytest.raises(RecipeError, match="beginning of a line"):
        load_recipe(str(path))


def test_recipe_of_a_stranger_extends_nothing() -> None:
    with pytest.raises(RecipeError, match="unknown key 'extends'"):
        read_recipe(f"{PARENT}extends: /etc/hosts\n".encode(), where="evidence/recipe.yaml")


def test_recipe_that_extends_nothing_keeps_its_bytes() -> None:
    path = RECIPES / "google/gemma-4-26B-A4B-it/fp8-dynamic.yaml"
    assert load_recipe(str(path)).raw == path.read_bytes()


@given(said=st.sets(st.sampled_from(KEYS)))
def test_extending_is_the_union_of_keys_in_which_the_extending_one_wins(
    said: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("recipes")
    other = PARENT.replace("FP8_DYNAMIC", "FP8_BLOCK").replace("org/model", "org/other").replace("router", "gate")
    whole = read_recipe(other.replace("what it is", "another").encode(), where="").recipe
    (directory / "parent.yaml").write_text(PARENT)
    blocks = other.replace("what it is", "another").split("\n")
    starts = {key: next(i for i, line in enumerate(blocks) if line.startswith(f"{key}:")) for key in KEYS}
    ends = {
        key: next((i for i in range(starts[key] + 1, len(blocks)) if blocks[i][:1] not in (" ", "")), len(blocks))
        for key in KEYS
    }
    child = ["name: parent", "extends: parent.yaml"] + [
        line for key in KEYS if key in said for line in blocks[starts[key] : ends[key]]
    ]
    (directory / "child.yaml").write_text("\n".join(child) + "\n")
    merged = load_recipe(str(directory / "child.yaml")).recipe
    parent = read_recipe(PARENT.encode(), where="").recipe
    for key in KEYS:
        assert getattr(merged, key) == getattr(whole if key in said else parent, key)
