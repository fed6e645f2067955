"""Recipes spell arguments out as strictly as compressed-tensors reads them; where we are stricter, a table says so."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.planning import recipe
from weighbridge.errors import RecipeError
from weighbridge.formats.observers import OBSERVERS
from weighbridge.formats.schemes import args_to_config
from weighbridge.recipe import load_recipe
from weighbridge.recipe.quantization_arguments import check_arguments

INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel"}

VALUES: Mapping[str, tuple[Any, ...]] = {
    "num_bits": (1, 2, 3, 4, 6, 8, 16, None, [8], "eight", {}),
    "type": ("int", "float", "INT", "Float", "bfloat", None, 8, ["int"]),
    "symmetric": (True, False, None, "perhaps", [True]),
    "group_size": (None, -2, -1, 0, 1, 16, 32, 128, "all", [32]),
    "strategy": (
        *(None, "tensor", "channel", "group", "block", "token", "tensor_group", "attn_head", "GROUP", "row", 8),
        ["group"],
    ),
    "block_structure": (None, [128, 128], [128], [0, 1], [1, 2, 3], "128x128", "128", "axb", 128, {"rows": 1}),
    "dynamic": (True, False, "local", "LOCAL", "global", None, [True]),
    "actorder": (None, False, True, "weight", "static", "WEIGHT", "group", "dynamic", "Group", "columns", [1]),
    "scale_dtype": (None, "torch.float8_e4m3fn", "uint8", "torch.bfloat16", "torch.bf16", "nonsense", 8, []),
    "zp_dtype": (None, "torch.int8", "torch.nonsense", 8),
    "observer": (None, "minmax", "memoryless_minmax", "mse", 7, ["mse"]),
    "observer_kwargs": ({}, None, [], "grid=1", 7),
    "numbits": (4,),
    "symetric": (False,),
    "scale": (1.0,),
}
"""Arguments, known and misspelt -> values, of the right types and of others."""

BASES: Mapping[str, dict[str, Any]] = {
    "nothing": {},
    "INT4": INT4,
    "INT4 asymmetric": INT4 | {"symmetric": False},
    "FP8": FP8,
    "FP8 blocks": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]},
    "NVFP4": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
    "tokens": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
}

# What compressed-tensors 0.19.0 takes and recipes may not say: base, argument, value, why not.
STRICTER: Mapping[str, tuple[dict[str, Any], str]] = {
    "bits as text": ({"num_bits": "8"}, "num_bits cannot be '8'"),
    "bits as a fraction": ({"num_bits": 8.0}, "num_bits cannot be '8.0'"),
    "bits as a truth": ({"num_bits": True}, "num_bits cannot be 'True'"),
    "no bits": ({"num_bits": 0}, "num_bits cannot be '0'"),
    "64 bits": ({"num_bits": 64}, "num_bits cannot be '64'"),
    "floats of six bits": ({"num_bits": 6, "type": "float", "zp_dtype": "torch.int8"}, "floats of 6 bits"),
    "symmetry as a number": ({"symmetric": 1}, "symmetric true or false"),
    "symmetry as text": ({"symmetric": "yes"}, "symmetric true or false"),
    "moment as a number": ({"strategy": "token", "dynamic": 1}, "dynamic must be"),
    "groups of millions": ({"strategy": "group", "group_size": 1 << 30}, "group_size cannot be"),
    "zero points in other words": ({"symmetric": False, "zp_dtype": "torch.int32"}, "of int8 are torch.int8"),
    "observer that there is not": ({"observer": "memoryles_mse"}, "did you mean 'memoryless_mse'?"),
    "argument that no observer takes": ({"observer": "mse", "observer_kwargs": {"maxshrnk": 0.1}}, "'maxshrink'?"),
    "argument of another observer": ({"observer_kwargs": {"grid": 10}}, "memoryless_minmax, the default, takes none"),
}  # fmt: skip


def upstream(raw: Mapping[str, Any]) -> Any | None:
    """The arguments as compressed-tensors reads them for a group's weights; None where it refuses them."""
    from compressed_tensors.quantization import QuantizationScheme

    try:
        return QuantizationScheme.model_validate({"targets": ["Linear"], "weights": dict(raw)}).weights
    except (ValueError, NotImplementedError, TypeError):
        return None


def ours(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        return args_to_config(check_arguments(raw))
    except ValueError:
        return None


CHANGES = [(key, value) for key, values in VALUES.items() for value in values]


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_arguments_are_taken_and_refused_as_compressed_tensors_does(base: dict[str, Any]) -> None:
    differing = []
    for (first, one), (second, other) in product(CHANGES, CHANGES[::3]):
        raw = {**base, first: one, second: other}
        theirs, mine = upstream(raw), ours(raw)
        if (theirs is None) != (mine is None) and not (mine is None and _is_zero_point(raw)):
            differing.append((raw, theirs, mine))
    assert differing == []


def _is_zero_point(raw: Mapping[str, Any]) -> bool:
    """Zero points of another dtype than the codes', or floats that only a dtype of zero points makes pass upstream."""
    return raw.get("zp_dtype") is not None


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_arguments_that_are_taken_say_what_compressed_tensors_writes(base: dict[str, Any]) -> None:
    seen = 0
    for key, value in CHANGES:
        raw = {**base, key: value}
        theirs, mine = upstream(raw), ours(raw)
        if theirs is None or mine is None:
            continue
        seen += 1
        written = theirs.model_dump(mode="json")
        grouped = written["strategy"] in ("group", "tensor_group")
        written["group_size"] = written["group_size"] if grouped else None
        mine["zp_dtype"] = written["zp_dtype"] if mine["zp_dtype"] is not None else None
        assert mine == written
    assert seen > 10


@pytest.mark.parametrize(("raw", "why"), STRICTER.values(), ids=STRICTER)
def test_recipes_are_stricter_where_the_table_says_so(raw: dict[str, Any], why: str) -> None:
    assert upstream({key: value for key, value in raw.items() if key != "observer_kwargs"}) is not None
    with pytest.raises(ValueError, match=re.escape(why)):
        check_arguments(raw)


def test_observers_are_those_of_llm_compressor_with_their_arguments() -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.observers import Observer

    theirs = {name: observer for name, observer in OBSERVERS.items() if not observer.signed}
    for name, observer in theirs.items():
        made = Observer.load_from_registry(name, base_name="weight", args=QuantizationArgs(**INT4))
        kinds = [kind for kind in type(made).__mro__ if kind.__module__.startswith("llmcompressor.observers")]
        read = {
            word for kind in kinds for word in re.findall(r"(?:kwargs|kw)\.get\(\s*\"(\w+)\"", inspect.getsource(kind))
        }
        assert observer.arguments == read, name
    assert {name.replace("-", "_") for name in Observer.registered_names()} == set(theirs)


# weights of a config group, or a modifier: the sentence, and the line of recipe.yaml that it names
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": (INT4 | {"numbits": 4}, "config_groups.all.weights: unknown key 'numbits'; did you mean 'num_bits'?"),
    "symmetry misspelt": (INT4 | {"symetric": False}, "unknown key 'symetric'; did you mean 'symmetric'?"),
    "order by group": (INT4 | {"actorder": "group"}, "actorder: group is no longer known to compressed-tensors 0.19"),
    "strategy misspelt": (INT4 | {"strategy": "groups"}, "did you mean 'group'?"),
    "observer misspelt": (INT4 | {"observer": "memoryless_mes"}, "did you mean 'memoryless_mse'?"),
    "argument of an observer": (
        INT4 | {"observer": "mse", "observer_kwargs": {"max_shrink": 1}}, "no 'max_shrink'; did you mean 'maxshrink'?",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("weights", "sentence"), REFUSED.values(), ids=REFUSED)
def test_arguments_are_refused_with_their_line(weights: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    content = recipe(scheme=None, config_groups={"all": {"targets": ["Linear"], "weights": weights}})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert sentence in str(caught.value)
    line = int(caught.value.where.rpartition(":")[2])
    lines = path.read_text().splitlines()
    blamed = lines[line - 1].strip()
    assert blamed.partition(":")[0] in ("weights", *weights)


def test_a_modifier_that_orders_by_group_is_refused(tmp_path: Path) -> None:
    groups = {"all": {"targets": ["Linear"], "weights": INT4}}
    content = recipe(
        scheme=None, config_groups=groups, method="oneshot", modifiers=[{"GPTQModifier": {"actorder": "group"}}]
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(RecipeError, match=r"GPTQModifier\.actorder: actorder: group is no longer known"):
        load_recipe(str(path))


# --- YAML as people write it ---

PLAIN = yaml.safe_dump(recipe(), sort_keys=False)
THEIRS = "default_stage:\n  default_modifiers:\n    QuantizationModifier: {targets: [Linear], scheme: FP8}\n"
WRITTEN: dict[str, bytes] = {
    "CRLF": PLAIN.replace("\n", "\r\n").encode(),
    "a byte order mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "both": b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").encode(),
}
UNREADABLE: dict[str, tuple[bytes | str, str]] = {
    "UTF-16": (PLAIN.encode("utf-16"), "is UTF-16 text; save it in the encoding UTF-8"),
    "Latin-1": (PLAIN.replace("test", "t\xe9st").encode("latin-1"), "is not UTF-8 text"),
    "tabs": (PLAIN.replace("- lm_head", "\t- lm_head"), "is indented with a tab; YAML indents with spaces"),
    "an anchor": (PLAIN.replace("ignore:", "ignore: &kept"), "anchors, aliases and tags are not read; write out"),
    "a merge key": (PLAIN + "calibration:\n  <<: *other\n", "anchors, aliases and tags are not read"),
    "a recipe of llm-compressor": (THEIRS, "is a recipe of llm-compressor itself (default_stage); draft one with"),
    "its modifiers alone": (THEIRS.partition("\n")[2], "is a recipe of llm-compressor itself (default_modifiers)"),
    "a modifier of it": ("GPTQModifier:\n  scheme: W4A16\n", "is a recipe of llm-compressor itself (GPTQModifier)"),
}


@pytest.mark.parametrize("raw", WRITTEN.values(), ids=WRITTEN)
def test_recipe_is_read_as_editors_write_it(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text(PLAIN)
    (tmp_path / "recipe.yaml").write_bytes(raw)
    (tmp_path / "child.yaml").write_bytes(b"extends: recipe.yaml\nname: child\n")
    assert load_recipe(str(tmp_path / "recipe.yaml")).recipe == load_recipe(str(tmp_path / "plain.yaml")).recipe
    child = load_recipe(str(tmp_path / "child.yaml")).recipe
    assert (child.name, child.ignored) == ("child", load_recipe(str(tmp_path / "plain.yaml")).recipe.ignored)


@pytest.mark.parametrize(("raw", "sentence"), UNREADABLE.values(), ids=UNREADABLE)
def test_recipe_that_cannot_be_read_gets_one_sentence(raw: bytes | str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert sentence in str(caught.value)
