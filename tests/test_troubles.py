"""What cannot be judged or built gives one clear sentence, exit code 2, and leaves everything as it was."""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checkpoints import (
    CONFIG,
    INDEX,
    RawTensor,
    contents,
    copy_checkpoint,
    edit_config,
    edit_json,
    files_below,
    read_header,
    read_shard,
    read_tensors,
    rewrite,
    shards_of,
    without_evidence,
    write_header,
    write_shard,
)
from tests.conftest import (
    FP8_DYNAMIC,
    MINI_BUILD_LOCK,
    MINI_LOCK,
    ROOT,
    Command,
    Once,
    Outcome,
    environment,
    keep_outcome,
    kept_outcome,
    run_script,
)

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
EMBEDDING = "model.language_model.embed_tokens.weight"
GEMMA = "google/gemma-4-26B-A4B-it"

IGNORE = ["lm_head", "re:.*embed.*", "re:.*router", "re:.*vision_tower.*", "re:.*norm.*"]
"""The ignore list on the card of SilentEight's build, which was made with ``model_free_ptq``."""


def sentence_of(outcome: Outcome) -> str:
    """The one sentence of a command that could not judge or build."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory for outputs."""
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


# A checkpoint that cannot be read, in whatever part it plays.


def cut(path: Path, size: int) -> None:
    rewrite(path, path.read_bytes()[:size])


def grow(path: Path) -> None:
    rewrite(path, path.read_bytes() + bytes(8))


def edit_header(shard: Path, change: Callable[[dict[str, Any]], object]) -> None:
    entries, data = read_header(shard)
    change(entries)
    write_header(shard, json.dumps(entries).encode(), data)


def edit_index(directory: Path, change: Callable[[dict[str, str]], object]) -> None:
    edit_json(directory / INDEX, lambda index: change(index["weight_map"]))


def point_index_at(directory: Path, shard: str) -> None:
    """Have the index name a shard that lies elsewhere, and is there."""
    shutil.copy(directory / SECOND, directory.parent / "outside.safetensors")
    edit_index(directory, lambda index: index.update({name: shard for name, held in index.items() if held == SECOND}))


def key_twice(shard: Path) -> None:
    entries, data = read_header(shard)
    text = json.dumps(entries)
    write_header(shard, f'{text[:-1]}, "{EMBEDDING}": {json.dumps(entries[EMBEDDING])}}}'.encode(), data)


def tensor_in_both_shards(directory: Path) -> None:
    tensors = read_shard(directory / SECOND)
    tensors[EMBEDDING] = read_shard(directory / FIRST)[EMBEDDING]
    write_shard(directory / SECOND, tensors)


def unindexed_tensor(directory: Path) -> None:
    write_shard(directory / SECOND, {**read_shard(directory / SECOND), "unindexed": RawTensor("BF16", (1,), bytes(2))})


def named(tensor: str) -> Callable[[Path], None]:
    """Have a checkpoint hold one tensor of this name."""

    def name(directory: Path) -> None:
        (directory / INDEX).unlink()
        (directory / SECOND).unlink()
        write_shard(directory / FIRST, {tensor: RawTensor("BF16", (1,), bytes(2))})

    return name


def without_tensors(directory: Path) -> None:
    named("any")(directory)
    write_header(directory / FIRST, b"{}", b"")


def only_pickles(directory: Path) -> None:
    for path in [*shards_of(directory), directory / INDEX]:
        path.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def only_documents(directory: Path) -> None:
    for path in [*shards_of(directory), directory / INDEX]:
        path.unlink()


def emptied(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


def linked(directory: Path, name: str, target: str) -> None:
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(target)


def shard_elsewhere(directory: Path) -> None:
    (directory / SECOND).rename(directory.parent / SECOND)
    linked(directory, SECOND, f"../{SECOND}")


def with_config(text: str) -> Callable[[Path], None]:
    """Add text (a comma, a key and a value) at the end of config.json."""

    def add(directory: Path) -> None:
        old = (directory / CONFIG).read_text().rstrip()
        rewrite(directory / CONFIG, f"{old[:-1]}{text}}}".encode())

    return add


def with_scheme(**scheme: Any) -> Callable[[Path], None]:
    config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": scheme}}
    return lambda directory: edit_config(directory, lambda whole: whole.update(quantization_config=config))


Damage = tuple[Callable[[Path], object], tuple[str, ...]]
"""What is done to a copy of the miniature, and words that the sentence must have."""

DAMAGES: dict[str, Damage] = {
    "missing directory": (shutil.rmtree, ("no such directory",)),
    "empty directory": (emptied, ("holds no safetensors file",)),
    "directory without weights": (only_documents, ("holds no safetensors file",)),
    "pickled weights only": (only_pickles, ("pickled", "pytorch_model.bin")),
    "truncated shard": (lambda model: cut(model / SECOND, 100_000), (SECOND, "cut off")),
    "shard truncated by one byte": (
        lambda model: cut(model / FIRST, (model / FIRST).stat().st_size - 1),
        (FIRST, "cut off"),
    ),
    "shard truncated within its header": (lambda model: cut(model / FIRST, 1000), (FIRST, "cut off", "header")),
    "shard of five bytes": (lambda model: cut(model / FIRST, 5), (FIRST, "too short")),
    "empty shard": (lambda model: rewrite(model / FIRST, b""), (FIRST, "too short")),
    "grown shard": (lambda model: grow(model / SECOND), (SECOND, "belong to no tensor")),
    "shard that is a page of HTML": (
        lambda model: rewrite(model / FIRST, b"<!doctype html>" * 100),
        (FIRST, "no safetensors file"),
    ),
    "Git LFS pointer in place of a shard": (
        lambda model: rewrite(model / FIRST, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"),
        (FIRST, "Git LFS pointer", "git lfs pull"),
    ),
    "header that is not JSON": (lambda model: write_header(model / FIRST, b"{tensors}", b""), (FIRST, "not JSON")),
    "header that is a list": (lambda model: write_header(model / FIRST, b"[1, 2]", b""), (FIRST, "JSON object")),
    "header with a name twice": (lambda model: key_twice(model / FIRST), (FIRST, EMBEDDING, "twice")),
    "header with an unknown dtype": (
        lambda model: edit_header(model / FIRST, lambda header: header[EMBEDDING].update(dtype="F7")),
        (FIRST, EMBEDDING, "F7"),
    ),
    "header with a shape that does not fit its bytes": (
        lambda model: edit_header(model / FIRST, lambda header: header[EMBEDDING].update(shape=[512, 257])),
        (FIRST, EMBEDDING, "[512, 257]"),
    ),
    "header with tensors that overlap": (
        lambda model: edit_header(
            model / FIRST,
            lambda header: header[EMBEDDING].update(data_offsets=[0, 512 * 256 * 2]),
        ),
        (FIRST, "overlaps"),
    ),
    "tensor name with a line break": (named("a\nb"), ("characters",)),
    "tensor name that a pattern could be taken for": (named("a.{}.{0-3}.{x}"), ("a.{}.{0-3}.{x}",)),
    "no tensor at all": (without_tensors, ("no tensor",)),
    "two shards and no index": (lambda model: (model / INDEX).unlink(), ("2 safetensors files", INDEX)),
    "index that is not JSON": (lambda model: rewrite(model / INDEX, b"weight_map"), (INDEX, "not JSON")),
    "index without a weight_map": (lambda model: rewrite(model / INDEX, b"{}"), (INDEX, "weight_map")),
    "index that names an absent shard": (lambda model: (model / SECOND).unlink(), (SECOND, "not there", "again")),
    "index that names an absent tensor": (
        lambda model: edit_index(model, lambda index: index.update(absent=FIRST)),
        ("'absent'", FIRST),
    ),
    "index that names a shard above the directory": (
        lambda model: point_index_at(model, "../outside.safetensors"),
        ("../outside.safetensors", INDEX),
    ),
    "index that names a shard by an absolute path": (
        lambda model: point_index_at(model, str(model.parent / "outside.safetensors")),
        (INDEX, "no plain name"),
    ),
    "index that does not name a tensor of a shard": (unindexed_tensor, ("'unindexed'", SECOND)),
    "index that puts a tensor into the wrong shard": (
        lambda model: edit_index(model, lambda index: index.update({EMBEDDING: SECOND})),
        (EMBEDDING, FIRST, SECOND),
    ),
    "tensor in two shards": (tensor_in_both_shards, (EMBEDDING,)),
    "shard that links out of the directory": (shard_elsewhere, (SECOND, "leaves the directory")),
    "document that links out of the directory": (
        lambda model: linked(model, "README.md", "/etc/hosts"),
        ("README.md", "leaves the directory"),
    ),
    "link to nothing": (lambda model: linked(model, "README.md", "nothing"), ("README.md", "No such file")),
    "link to nothing whose name has a line break": (lambda model: linked(model, "a\nb", "nothing"), ("No such file",)),
    "link to itself": (lambda model: linked(model, "README.md", "README.md"), ("README.md", "links to itself")),
    "pipe among the files": (lambda model: os.mkfifo(model / "pipe"), ("pipe", "no regular file")),
    "no config.json": (lambda model: (model / CONFIG).unlink(), ("holds no config.json",)),
    "Mistral's own config beside weights of the other form": (
        lambda model: (model / CONFIG).rename(model / "params.json"),
        ("has params.json, no config.json", "wholly in one form"),
    ),
    "config.json that is not JSON": (lambda model: rewrite(model / CONFIG, b"{'a': 1}"), (CONFIG, "not JSON")),
    "config.json that is not UTF-8": (lambda model: rewrite(model / CONFIG, b'{"a": "\xe4"}'), (CONFIG, "UTF-8")),
    "config.json that is a list": (lambda model: rewrite(model / CONFIG, b"[]"), (CONFIG, "JSON object")),
    "config.json with a key twice": (with_config(', "dtype": "float16"'), (CONFIG, "'dtype'", "twice")),
    "config.json with a number in another base": (with_config(', "x": 0x10'), (CONFIG, "JSON")),
    "config.json with a number beyond all bounds": (with_config(', "x": 1e999'), (CONFIG,)),
    "config.json with half a character": (with_config(r', "x": "\ud800"'), (CONFIG,)),
    "config.json nested too deeply": (with_config(f', "x": {"[" * 100_000}{"]" * 100_000}'), (CONFIG, "deep")),
    "quantization config with impossible bits": (
        with_scheme(targets=["Linear"], weights={"num_bits": 99}),
        (CONFIG, "num_bits", "99"),
    ),
    "quantization config with an unknown strategy": (
        with_scheme(targets=["Linear"], weights={"strategy": "rainbow"}),
        (CONFIG, "rainbow"),
    ),
    "quantization config with a target that does not compile": (
        with_scheme(targets=["re:("], weights={"num_bits": 8}),
        (CONFIG, "re:("),
    ),
    "quantization config with a target that refers back": (
        with_scheme(targets=[r"re:(router)\1"], weights={"num_bits": 8}),
        (CONFIG, r"re:(router)\\1", "linear time"),
    ),
    "quantization config whose ignore list is text": (
        lambda model: edit_config(
            model,
            lambda config: config.update(quantization_config={"quant_method": "compressed-tensors", "ignore": "x"}),
        ),
        (CONFIG, "ignore"),
    ),
}

Arguments = Callable[[Path, Path], Sequence[str | Path]]
USES: dict[str, tuple[str, Arguments]] = {
    "model of a build": ("build", lambda model, out: ("fp8-dynamic", "--model", model, "--output", out)),
    "checkpoint": ("validate", lambda model, _: (model,)),
    "reference": ("validate", lambda model, _: (MINI_LOCK, "--reference", model)),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_checkpoint_that_cannot_be_read(
    mini: Path,
    tmp_path: Path,
    place: Path,
    call_build: Command,
    call_validate: Command,
    without_torch: None,
    damage: str,
    use: str,
) -> None:
    model = copy_checkpoint(mini, tmp_path / "model")
    do, words = DAMAGES[damage]
    do(model)
    command, arguments = USES[use]
    outcome = (call_build if command == "build" else call_validate)(*arguments(model, place / "out"))
    sentence = sentence_of(outcome)
    assert sentence.startswith(str(model))
    assert [word for word in words if word not in sentence] == []
    assert contents(place) == {}


# A recipe that cannot be read.


def in_place_of(old: str, new: str) -> Callable[[str], str]:
    def put(text: str) -> str:
        assert text.count(old) == 1
        return text.replace(old, new)

    return put


SCHEME = "scheme: FP8_DYNAMIC"
ROUTER = "- re:.*router\n"
RECIPES: dict[str, tuple[Callable[[str], str], str, tuple[str, ...]]] = {
    # What is done to the text, what stands on the line that must be named, and words of the sentence.
    "key twice": (lambda text: f"{text}\nname: again\n", "name: again", ("'name'", "twice")),
    "nested key twice": (
        in_place_of("  licence: apache-2.0", "  licence: mit\n  licence: apache-2.0"),
        "licence: apache",
        ("'licence'", "twice"),
    ),
    "misspelt key": (in_place_of(SCHEME, "scheem: FP8_DYNAMIC"), "scheem", ("'scheem'", "did you mean 'scheme'")),
    "misspelt nested key": (
        in_place_of("  licence:", "  license:"),
        "license",
        ("license", "did you mean 'licence'"),
    ),
    "key of nothing known": (in_place_of(SCHEME, f"{SCHEME}\nzzz: 1"), "zzz", ("'zzz'",)),
    "missing key": (in_place_of("method: model_free_ptq\n", ""), "name: fp8-dynamic", ("'method'", "missing")),
    "number in place of text": (in_place_of("name: fp8-dynamic", "name: 8"), "name: 8", ("name", "text")),
    "text in place of a list": (
        in_place_of("ignore:", "ignore: all\nfused_groups:"),
        "ignore: all",
        ("ignore", "list"),
    ),
    "number in a list of text": (in_place_of("- lm_head\n", "- 8\n"), "- 8", ("ignore",)),
    "unknown method": (
        in_place_of("method: model_free_ptq", "method: magic"),
        "method: magic",
        ("method", "'magic' is none of model_free_ptq, oneshot, convert"),
    ),
    "unknown scheme": (in_place_of(SCHEME, "scheme: FP9"), "scheme: FP9", ("'FP9'", "FP8_DYNAMIC")),
    "scheme and config groups": (
        in_place_of(SCHEME, f"{SCHEME}\nconfig_groups: {{a: {{scheme: FP8_DYNAMIC}}}}"),
        "name: fp8-dynamic",
        ("scheme", "config_groups"),
    ),
    "unknown scheme in a config group": (
        in_place_of(SCHEME, "config_groups: {a: {scheme: FP9}}"),
        "config_groups",
        ("'FP9'", "FP8_DYNAMIC"),
    ),
    "impossible weights in a config group": (
        in_place_of(SCHEME, "config_groups: {a: {weights: {num_bits: 99}}}"),
        "config_groups",
        ("num_bits", "99"),
    ),
    "revision that is no commit": (
        in_place_of("  revision: 4d7ae49", "  revision: main # "),
        "revision:",
        ("revision",),
    ),
    "pattern that does not compile": (
        in_place_of(ROUTER, '- "re:*.router"\n'),
        "*.router",
        ("re:*.router", "re:.*.router"),
    ),
    "pattern with an open bracket": (in_place_of(ROUTER, "- re:(router\n"), "(router", ("re:(router", "compile")),
    "pattern that refers back": (in_place_of(ROUTER, "- re:(a)\\1\n"), "(a)", ("linear time",)),
    "pattern twice": (in_place_of(ROUTER, f"{ROUTER}  {ROUTER}"), "ignore:", ("re:.*router", "twice")),
    "explained pattern with empty braces": (
        in_place_of("tensors: lm_head.weight", "tensors: 'lm_head.{}.weight'"),
        "lm_head.{}.weight",
        ("lm_head.{}.weight",),
    ),
    "explained pattern that descends": (
        in_place_of("tensors: lm_head.weight", "tensors: 'layers.{3-1}.weight'"),
        "{3-1}",
        ("{3-1}", "ascend"),
    ),
    "explained pattern without end": (
        in_place_of("tensors: lm_head.weight", "tensors: 'a.{0-9999999}.{0-9999999}'"),
        "{0-9999999}",
        ("more than",),
    ),
    "unknown kind of difference": (
        in_place_of("difference: only-in-reference", "difference: missing"),
        "difference: missing",
        ("only-in-reference",),
    ),
    "difference without a reason": (
        lambda text: text[: text.index("        why:")],
        "- difference",
        ("why", "missing"),
    ),
    "anchor": (in_place_of("name: fp8", "name: &n fp8"), "&n", ("anchors",)),
    "alias": (in_place_of(SCHEME, "scheme: *n"), "*n", ("aliases",)),
    "tag": (in_place_of(SCHEME, "scheme: !!python/name:os.system FP8"), "!!python", ("tags",)),
    "tab": (in_place_of("  - lm_head\n", "\t- lm_head\n"), "\t- lm_head", ("YAML",)),
    "open bracket": (in_place_of(SCHEME, "scheme: [FP8"), "method", ("YAML",)),
    "nesting without end": (in_place_of(SCHEME, f"scheme: {'[' * 1000}"), "scheme: [", ("deep",)),
}


@pytest.mark.parametrize("command", ["build", "validate"])
@pytest.mark.parametrize("trouble", RECIPES)
def test_recipe_that_cannot_be_read_names_file_and_line(
    tmp_path: Path,
    place: Path,
    call_build: Command,
    call_validate: Command,
    without_torch: None,
    trouble: str,
    command: str,
) -> None:
    change, marker, words = RECIPES[trouble]
    text = change(FP8_DYNAMIC.read_text())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    line = next(number for number, line in enumerate(text.splitlines(), 1) if marker in line)
    if command == "build":
        outcome = call_build(recipe, "--model", "mini", "--output", place / "out")
    else:
        outcome = call_validate(MINI_BUILD_LOCK, "--recipe", recipe)
    sentence = sentence_of(outcome)
    if trouble != "open bracket":  # which YAML notices a line later
        assert sentence.startswith(f"{recipe}:{line}: ")
    assert [word for word in words if word not in sentence] == []
    assert contents(place) == {}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        pytest.param(b"", "is empty", id="nothing"),
        pytest.param(b"# a comment\n", "is empty", id="comments"),
        pytest.param(b"name: \xe4\n", "UTF-8", id="Latin-1"),
        pytest.param(b"\xff\xfen\0a\0", "UTF-8", id="UTF-16"),
        pytest.param(b"- name\n", "mapping", id="a list"),
        pytest.param(b"name\n", "mapping", id="text"),
        pytest.param(b"a: 1\n---\nb: 2\n", "YAML", id="two documents"),
        pytest.param(b"x: '" + b"x" * 9_000_000 + b"'\n", "more than", id="nine megabytes"),
    ],
)
def test_file_that_is_no_recipe(
    tmp_path: Path, place: Path, call_build: Command, without_torch: None, content: bytes, word: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(content)
    sentence = sentence_of(call_build(recipe, "--model", "mini", "--output", place / "out"))
    assert sentence.startswith(str(recipe))
    assert word in sentence


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("fp8-dynamc", ("did you mean", f"{GEMMA}/fp8-dynamic"), id="misspelt"),
        pytest.param(f"{GEMMA}/fp8-dynamc", ("did you mean", f"{GEMMA}/fp8-dynamic"), id="misspelt in full"),
        pytest.param("recipes/fp8-dynamc.yaml", ("did you mean", "fp8-dynamic"), id="misspelt path"),
        pytest.param("qwertz", ("recipes/README.md",), id="unlike any"),
        pytest.param("recipes", ("is a directory, not a recipe",), id="a directory"),
        pytest.param(".", ("is a directory, not a recipe",), id="this directory"),
        pytest.param("", ("no",), id="nothing"),
        pytest.param("x" * 5000, ("no recipe of this name",), id="too long for a file system"),
    ],
)
@pytest.mark.parametrize("command", ["build", "validate"])
def test_recipe_of_an_unknown_name(
    place: Path,
    call_build: Command,
    call_validate: Command,
    without_torch: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    words: tuple[str, ...],
    command: str,
) -> None:
    monkeypatch.chdir(ROOT)
    if command == "build":
        outcome = call_build(name, "--model", "mini", "--output", place / "out")
    else:
        outcome = call_validate(MINI_BUILD_LOCK, "--recipe", name)
    sentence = sentence_of(outcome)
    assert [word for word in words if word not in sentence] == []


# A lock that cannot be read.

LOCK = """\
structure_lock: 1
repository: someone/something
base: someone/something
basis: seen
tensors:
  - a.weight F8_E4M3 [2, 2]
  - a.weight_scale BF16 [2, 1]
quantization:
  format: naive-quantized
  schemes:
    scheme_0: {weights: {num_bits: 8, type: float, strategy: channel}}
  modules:
    - a scheme_0
"""
SCALE = "- a.weight_scale BF16 [2, 1]"
LOCKS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    # What is replaced, by what, and words of the sentence.
    "no lock": ("structure_lock: 1", "lock: 1", ("no structure lock",)),
    "another version": ("structure_lock: 1", "structure_lock: 2", (":1:", "structure_lock")),
    "unknown key": ("basis: seen", "basis: seen\nnotes: x", (":5:", "'notes'", "did you mean 'note'")),
    "missing key": ("basis: seen\n", "", ("'basis'", "missing")),
    "unknown basis": ("basis: seen", "basis: believed", (":4:", "basis")),
    "tensor without a shape": (SCALE, "- a.weight_scale BF16", (":7:", "a.weight_scale BF16")),
    "tensor with an unknown dtype": (SCALE, "- a.weight_scale BF15 [2, 1]", (":7:", "BF15")),
    "tensor with a negative axis": (SCALE, "- a.weight_scale BF16 [2, -1]", (":7:", "[2, -1]")),
    "tensor with an axis beyond all bounds": (SCALE, f"- a.weight_scale BF16 [{'9' * 5000}]", (":7:",)),
    "tensor twice": (SCALE, "- a.weight BF16 [2, 1]", (":7:", "'a.weight'", "twice")),
    "tensor twice by patterns": (SCALE, "- b.{0-3} BF16 [1]\n  - b.{3-4} BF16 [1]", (":8:", "'b.3'", "twice")),
    "pattern that descends": (SCALE, "- b.{3-1} BF16 [1]", (":7:", "{3-1}", "ascend")),
    "pattern with empty braces": (SCALE, "- b.{}.c BF16 [1]", (":7:", "b.{}.c")),
    "pattern without a closing brace": (SCALE, "- b.{0-3.c BF16 [1]", (":7:", "b.{0-3.c")),
    "pattern that stands for too much": (SCALE, "- b.{0-9999999}.{0-9999999} BF16 [1]", (":7:", "more than")),
    "no tensor": (f"tensors:\n  - a.weight F8_E4M3 [2, 2]\n  {SCALE}", "tensors: []", ("no tensor",)),
    "module of an unknown scheme": ("- a scheme_0", "- a scheme_1", (":13:", "a scheme_1")),
    "module without a scheme": ("- a scheme_0", "- a", (":13:",)),
    "impossible scheme": ("num_bits: 8", "num_bits: 99", ("scheme_0", "num_bits")),
    "scheme that is a number": ("{weights: {num_bits: 8, type: float, strategy: channel}}", "8", (":11:", "scheme_0")),
    "digest of another length": (
        "quantization:",
        "files: {a: {sha256: abc}}\nquantization:",
        (":8:", "files.a.sha256"),
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("trouble", LOCKS)
def test_lock_that_cannot_be_read(
    tmp_path: Path,
    place: Path,
    call_build: Command,
    call_validate: Command,
    without_torch: None,
    trouble: str,
    use: str,
) -> None:
    old, new, words = LOCKS[trouble]
    lock = tmp_path / "some.lock"
    lock.write_text(in_place_of(old, new)(LOCK))
    command, arguments = USES[use]
    outcome = (call_build if command == "build" else call_validate)(*arguments(lock, place / "out"))
    sentence = sentence_of(outcome)
    assert sentence.startswith(str(lock))
    assert [word for word in words if word not in sentence] == []
    assert contents(place) == {}


def test_lock_that_the_others_differ_from_is_good(tmp_path: Path, call_validate: Command) -> None:
    lock = tmp_path / "some.lock"
    lock.write_text(LOCK)
    assert call_validate(lock).code == 0


# A command that asks for what cannot be.


@dataclass(frozen=True)
class Bench:
    """Where a trouble is set up.

    Attributes:
        mini: the miniature.
        build: a finished build of it.
        scratch: a directory for whatever the trouble needs.
        place: a directory that must afterwards be as it was before the command; outputs go here.
    """

    mini: Path
    build: Path
    scratch: Path
    place: Path

    @property
    def out(self) -> Path:
        return self.place / "out"

    def to(self, output: Path | str, *more: str | Path) -> Sequence[str | Path]:
        """A build of the miniature into `output`."""
        return ("fp8-dynamic", "--model", "mini", "--output", output, *more)

    def of(self, model: Path | str, *more: str | Path) -> Sequence[str | Path]:
        """A build of `model` into a directory that is not there yet."""
        return ("fp8-dynamic", "--model", model, "--output", self.out, *more)

    def file(self, path: Path, text: str = "precious") -> Path:
        """A file (and the directories above it) that is there before the command."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def linked(self) -> Path:
        """A link to nothing where the output should be."""
        self.out.symlink_to("nothing")
        return self.out

    def source(self) -> Path:
        """A copy of the miniature that must be there afterwards."""
        return copy_checkpoint(self.mini, self.place / "models" / "source")

    def quantized_by(self, method: object) -> Path:
        """A model whose config.json says that it is quantized."""
        model = copy_checkpoint(self.mini, self.scratch / "quantized")
        edit_config(model, lambda config: config.update(quantization_config={"quant_method": method}))
        return model


def quantized_without_saying(bench: Bench) -> Path:
    model = copy_checkpoint(bench.build, bench.scratch / "quantized")
    edit_config(model, lambda config: config.pop("quantization_config"))
    return model


Trouble = tuple[Callable[[Bench], Sequence[str | Path]], tuple[str, ...]]

BUILD_TROUBLES: dict[str, Trouble] = {
    "output that is not empty": (
        lambda bench: bench.to(bench.file(bench.out / "config.json").parent),
        ("not empty", "--force"),
    ),
    "output that is no checkpoint, forced": (
        lambda bench: bench.to(bench.file(bench.out / "photo.jpg").parent, "--force"),
        ("'photo.jpg'", "no checkpoint", "--output"),
    ),
    "output that is a file": (lambda bench: bench.to(bench.file(bench.out)), ("is a file", "--output")),
    "output that is a file, forced": (lambda bench: bench.to(bench.file(bench.out), "--force"), ("is a file",)),
    "output below a file": (lambda bench: bench.to(bench.file(bench.out) / "deep" / "deeper"), ("cannot be written",)),
    "output that links to nothing": (lambda bench: bench.to(bench.linked()), ("out",)),
    "output with a name too long": (lambda bench: bench.to(bench.place / ("x" * 300)), ("too long",)),
    "output that is the source": (
        lambda bench: ("fp8-dynamic", "--model", (source := bench.source()), "--output", source, "--force"),
        ("source",),
    ),
    "output around the source": (
        lambda bench: ("fp8-dynamic", "--model", bench.source(), "--output", bench.place / "models", "--force"),
        ("source",),
    ),
    "output within the source": (
        lambda bench: ("fp8-dynamic", "--model", (source := bench.source()), "--output", source / "out"),
        ("source",),
    ),
    "output within another checkpoint": (
        lambda bench: bench.to(copy_checkpoint(bench.build, bench.place / "build") / "sub"),
        ("lies in a checkpoint", "--output"),
    ),
    "report over a key": (
        lambda bench: bench.to(
            bench.out, "--report", bench.file(bench.place / "key.pem", "-----BEGIN PRIVATE KEY-----\n")
        ),
        ("key.pem", "holds a key"),
    ),
    "log into a key": (
        lambda bench: bench.to(
            bench.out, "--log-file", bench.file(bench.place / "key.pem", "-----BEGIN PRIVATE KEY-----\n")
        ),
        ("--log-file", "holds a key"),
    ),
    "shards without end": (
        lambda bench: bench.to(bench.out, "--shard-size", "9223373TB"),
        ("--shard-size", "more than any machine has"),
    ),
    "shards of no size": (
        lambda bench: bench.to(bench.out, "--shard-size", "0"),
        ("--shard-size", "more than nothing"),
    ),
    "model that is quantized by a tool that is not read": (
        lambda bench: bench.of(bench.quantized_by("hqq")),
        ("already quantized", "hqq"),
    ),
    "model that is quantized by who writes line breaks": (
        lambda bench: bench.of(bench.quantized_by("modelopt\nerror: all is well\x1b[0m")),
        ("quant_method cannot be",),
    ),
    "model that is quantized and does not say so": (
        lambda bench: bench.of(quantized_without_saying(bench)),
        ("F8_E4M3", "already quantized"),
    ),
    "model that is a lock": (
        lambda bench: bench.of(MINI_LOCK),
        ("structure lock, which holds no weights", "name a directory"),
    ),
    "model that is a lock, output in directories that are not there": (
        lambda bench: ("fp8-dynamic", "--model", MINI_LOCK, "--output", bench.place / "a" / "b" / "c"),
        ("structure lock",),
    ),
    "model that is a file": (lambda bench: bench.of(bench.file(bench.scratch / "x.txt")), ("x.txt",)),
    "model of an impossible name": (lambda bench: bench.of("a/b/c"), ("a/b/c", "no such directory")),
    "model with a name too long": (lambda bench: bench.of("x" * 5000), ("xxx",)),
    "model that is not named": (lambda bench: bench.of(""), ("--model",)),
    "reference that is not there": (
        lambda bench: bench.to(bench.out, "--reference", bench.scratch / "nothing.yaml"),
        ("nothing.yaml", "no such"),
    ),
    "reference that is a model's document": (
        lambda bench: bench.to(bench.out, "--reference", bench.mini / CONFIG),
        (CONFIG,),
    ),
    "report in a directory that is not there": (
        lambda bench: bench.to(bench.out, "--report", bench.place / "nowhere" / "report.json"),
        ("report.json", "cannot be written"),
    ),
    "report that is a directory": (
        lambda bench: bench.to(bench.out, "--report", bench.scratch),
        ("cannot be written",),
    ),
    "report with a name too long": (
        lambda bench: bench.to(bench.out, "--report", bench.place / ("x" * 300)),
        ("cannot be written",),
    ),
    "unknown option": (lambda bench: bench.to(bench.out, "--outptu", "x"), ("--outptu",)),
    "unknown format": (lambda bench: bench.to(bench.out, "--format", "xml"), ("xml", "json")),
    "no recipe": (lambda bench: ("--model", "mini", "--output", bench.out), ("recipe",)),
    "no workers": (lambda bench: bench.to(bench.out, "--workers", "0"), ("--workers", "at least 1")),
    "workers that are no number": (lambda bench: bench.to(bench.out, "--workers", "many"), ("--workers", "number")),
}

VALIDATE_TROUBLES: dict[str, Trouble] = {
    "checkpoint that is not named": (lambda _: (), ("CHECKPOINT",)),
    "checkpoint that is not there": (lambda bench: (bench.scratch / "nothing",), ("nothing", "no such directory")),
    "checkpoint that is a shard": (lambda bench: (bench.mini / FIRST,), (FIRST,)),
    "checkpoint with a name too long": (lambda _: ("x" * 5000,), ("xxx",)),
    "reference that is not there": (
        lambda bench: (MINI_LOCK, "--reference", bench.scratch / "nothing"),
        ("nothing", "no such directory"),
    ),
    "report in a directory that is not there": (
        lambda bench: (MINI_LOCK, "--report", bench.place / "nowhere" / "report.json"),
        ("report.json", "cannot be written"),
    ),
    "report among processes": (
        lambda _: (MINI_LOCK, "--report", f"/proc/{os.getpid()}/report.json"),
        ("report.json", "cannot be written", "another directory"),
    ),
    "report in a file system of the kernel": (
        lambda _: (MINI_LOCK, "--report", "/sys/report.json"),
        ("report.json", "cannot be written", "another directory"),
    ),
    "lock among processes": (
        lambda _: (MINI_LOCK, "--write-lock", f"/proc/{os.getpid()}/some.lock"),
        ("some.lock", "cannot be written", "another directory"),
    ),
    "lock in a directory that is not there": (
        lambda bench: (MINI_LOCK, "--write-lock", bench.place / "nowhere" / "some.lock"),
        ("some.lock", "cannot be written"),
    ),
    "recipe and a checkpoint of no base that is known": (
        lambda bench: (bench.file(bench.scratch / "some.lock", LOCK), "--recipe", "fp8-dynamic"),
        ("some.lock", "no base", "name the base"),
    ),
    "unknown format": (lambda _: (MINI_LOCK, "--format", "xml"), ("xml", "markdown")),
    "unknown option": (lambda _: (MINI_LOCK, "--recipes", "x"), ("--recipes",)),
    "no workers": (lambda bench: (bench.build, "--source", "mini", "--workers", "-1"), ("--workers", "at least 1")),
    "memory without end": (
        lambda bench: (bench.build, "--source", "mini", "--memory", f"{'9' * 400}GB"),
        ("--memory", "more than any machine has"),
    ),
    "memory that is no size": (lambda bench: (bench.build, "--source", "mini", "--memory", "lots"), ("lots", "2GiB")),
}


@pytest.fixture
def bench(mini: Path, mini_build: Path, tmp_path: Path, place: Path) -> Bench:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Bench(mini, mini_build, scratch, place)


@pytest.mark.parametrize("trouble", BUILD_TROUBLES)
def test_build_that_cannot_be_started(bench: Bench, call_build: Command, without_torch: None, trouble: str) -> None:
    set_up, words = BUILD_TROUBLES[trouble]
    arguments = set_up(bench)
    before = state(bench.place)
    sentence = sentence_of(call_build(*arguments))
    assert [word for word in words if word not in sentence] == []
    assert state(bench.place) == before


@pytest.mark.parametrize("trouble", VALIDATE_TROUBLES)
def test_validation_that_cannot_be_started(
    bench: Bench, call_validate: Command, without_torch: None, trouble: str
) -> None:
    set_up, words = VALIDATE_TROUBLES[trouble]
    arguments = set_up(bench)
    before = state(bench.place)
    sentence = sentence_of(call_validate(*arguments))
    assert [word for word in words if word not in sentence] == []
    assert state(bench.place) == before


def state(directory: Path) -> dict[str, bytes | str]:
    """Everything below a directory: files by their bytes, links and directories by what they are."""
    found: dict[str, bytes | str] = {}
    for path in directory.rglob("*"):
        kind = "link" if path.is_symlink() else "directory" if path.is_dir() else path.read_bytes()
        found[path.relative_to(directory).as_posix()] = kind
    return found


def test_cache_that_cannot_be_made(
    bench: Bench, call_build: Command, monkeypatch: pytest.MonkeyPatch, without_torch: None
) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_CACHE", str(bench.file(bench.scratch / "file") / "cache"))
    sentence = sentence_of(call_build(*bench.to(bench.out)))
    assert "WEIGHBRIDGE_CACHE" in sentence
    assert state(bench.place) == {}


def test_missing_package_is_one_sentence_that_says_how_to_get_it(bench: Bench) -> None:
    # -S leaves out site-packages, -E what a person may have set: as if nothing had been installed.
    for script in ("build.py", "validate.py"):
        command = [sys.executable, "-S", "-E", str(ROOT / script), "x"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "make env" in sentence_of(Outcome(done.returncode, done.stdout, done.stderr))


# No network.


@pytest.mark.parametrize("model", [(), ("--model", "someone/something"), ("--model", "someone/something@main")])
def test_build_of_a_model_on_the_hub_while_offline(
    bench: Bench, call_build: Command, without_torch: None, model: tuple[str, ...]
) -> None:
    sentence = sentence_of(call_build("fp8-dynamic", *model, "--output", bench.out))
    assert sentence.startswith(model[1] if model else GEMMA)
    assert "HF_HUB_OFFLINE" in sentence
    assert state(bench.place) == {}


@pytest.mark.parametrize("arguments", [("someone/something",), (str(MINI_LOCK), "--reference", "someone/something")])
def test_validation_of_what_is_on_the_hub_while_offline(
    call_validate: Command, without_torch: None, arguments: tuple[str, ...]
) -> None:
    sentence = sentence_of(call_validate(*arguments))
    assert sentence.startswith("someone/something")
    assert "HF_HUB_OFFLINE" in sentence


NOBODY_ANSWERS = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}


def test_build_without_a_network_says_what_to_do_instead(run_build: Command, place: Path) -> None:
    sentence = sentence_of(run_build("fp8-dynamic", "--output", place / "out", env=NOBODY_ANSWERS))
    assert sentence.startswith(GEMMA)
    assert "cannot be reached" in sentence
    assert "MODEL=path" in sentence
    assert "make demo" in sentence
    assert state(place) == {}


def test_validation_without_a_network_says_what_it_could_not_reach(run_validate: Command) -> None:
    sentence = sentence_of(run_validate("someone/something@main", env=NOBODY_ANSWERS))
    assert sentence.startswith("someone/something@main")
    assert "cannot be reached" in sentence


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("builds/exampel", ("did you mean builds/example?",)),
        ("builds/nosuch", ("HF_HUB_OFFLINE", "name a directory")),
        ("./builds/exampel", ("did you mean builds/example?",)),
    ],
)
@pytest.mark.parametrize("command", ["build", "validate"])
def test_directory_of_a_mistyped_name_is_not_taken_for_a_hub_id_without_a_word(
    place: Path,
    call_build: Command,
    call_validate: Command,
    without_torch: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    words: tuple[str, ...],
    command: str,
) -> None:
    (place / "builds" / "example").mkdir(parents=True)
    monkeypatch.chdir(place)
    outcome = call_build("fp8-dynamic", "--model", name) if command == "build" else call_validate(name)
    sentence = sentence_of(outcome)
    assert sentence.startswith(f"{name}: no such directory")
    assert [word for word in words if word not in sentence] == []


# Disks: a file system of its own, in a mount namespace that ends with the command.


def on_file_system(options: str, directory: Path, *command: str | Path) -> tuple[Outcome, list[str]]:
    """Run a command while a tmpfs with these mount options lies at `directory`; with what was in it afterwards."""
    tool = shutil.which("unshare")
    if tool is None:
        pytest.skip("unshare is not installed, so no small file system can be made")
    namespace = [tool, "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o {options} tmpfs '{directory}'"
    able = subprocess.run([*namespace, mount], capture_output=True, text=True, check=False)
    if able.returncode:
        pytest.skip(f"no small file system can be made here: {able.stderr.strip()}")
    listing = directory.with_name(f"{directory.name}.listing")
    script = f"""{mount} || exit 99; "$@"; code=$?; ls -A '{directory}' >'{listing}'; exit $code"""
    done = subprocess.run(
        [*namespace, script, "sh", *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    return Outcome(done.returncode, done.stdout, done.stderr), listing.read_text().splitlines()


def build_command(*arguments: str | Path) -> Sequence[str | Path]:
    return (sys.executable, ROOT / "build.py", "fp8-dynamic", "--model", "mini", *arguments)


def test_disk_that_is_too_small_is_found_before_weights_are_read(mini: Path, place: Path) -> None:
    outcome, left = on_file_system("size=2m", place, *build_command("--output", place / "out"))
    sentence = sentence_of(outcome)
    assert sentence.startswith(str(place / "out"))
    assert "bytes free" in sentence
    assert left == []


# The tensors are 10.7 MB.
@pytest.mark.parametrize("size", ["10600k", "12m"])
def test_disk_is_refused_at_once_or_is_large_enough(mini: Path, place: Path, size: str) -> None:
    outcome, left = on_file_system(f"size={size}", place, *build_command("--output", place / "out"))
    assert "bytes free" in outcome.err or (outcome.code, left) == (0, ["out"])


def test_output_on_a_file_system_that_is_read_only(mini: Path, place: Path) -> None:
    outcome, left = on_file_system("ro", place, *build_command("--output", place / "out"))
    assert "cannot be written" in sentence_of(outcome)
    assert left == []


def test_output_that_is_a_mount_point_is_refused_before_weights_are_read(mini: Path, place: Path) -> None:
    # A container's volume, say: nothing can be renamed into its place.
    out = place / "out"
    out.mkdir()
    outcome, left = on_file_system("size=64m", out, *build_command("--output", out))
    assert "mount" in sentence_of(outcome)
    assert (left, sorted(path.name for path in place.iterdir())) == ([], ["out", "out.listing"])


@pytest.mark.parametrize("options", ["ro", "size=64k"])
def test_cache_on_a_file_system_without_room(tmp_path: Path, place: Path, options: str) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    elsewhere = ("env", f"WEIGHBRIDGE_CACHE={cache}")
    outcome, left = on_file_system(options, cache, *elsewhere, *build_command("--output", place / "out"))
    assert str(cache) in sentence_of(outcome)
    assert (left, state(place)) == ([], {})


# What a forced build replaces, and when.


def scheme_that_cannot_be(directory: Path) -> Path:
    recipe = directory / "recipe.yaml"
    recipe.write_text(FP8_DYNAMIC.read_text().replace(SCHEME, "scheme: W4A16"))  # group 128, width 192
    return recipe


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(lambda bench: (scheme_that_cannot_be(bench.scratch), "--model", "mini"), id="plan"),
        pytest.param(lambda _: ("fp8-dynamic", "--model", "mini", "--reference", MINI_LOCK), id="reference"),
    ],
)
def test_forced_build_that_is_found_wanting_leaves_the_old_one(
    bench: Bench,
    call_build: Command,
    without_torch: None,
    arguments: Callable[[Bench], Sequence[str | Path]],
) -> None:
    bench.file(bench.out / "config.json")
    outcome = call_build(*arguments(bench), "--output", bench.out, "--force")
    assert (outcome.code, outcome.err) == (1, "")
    assert state(bench.place) == {"out": "directory", "out/config.json": b"precious"}


@pytest.fixture(scope="session", params=["streaming", "upstream"])
def late_failure(request: pytest.FixtureRequest, once: Once, mini: Path) -> Path:
    """A directory with ``out``, which a forced build did not replace because it could not write its first shard."""

    def make(directory: Path) -> None:
        (directory / "out").mkdir()
        (directory / "out" / "config.json").write_text("precious")
        outcome = run_script(
            "build.py",
            *("fp8-dynamic", "--model", "mini", "--output", directory / "out", "--force", "--engine", request.param),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000)),
        )
        keep_outcome(directory, outcome)

    return once(f"late-failure-{request.param}", make)


def test_forced_build_that_fails_while_writing_leaves_the_old_one(late_failure: Path) -> None:
    assert contents(late_failure / "out") == {"config.json": b"precious"}


def test_build_that_fails_while_writing_names_whatever_it_leaves_beside_the_output(late_failure: Path) -> None:
    beside = [path.name for path in late_failure.iterdir() if path.name not in ("out", "outcome.json")]
    assert [name for name in beside if name not in kept_outcome(late_failure).err] == []


def test_build_that_fails_while_writing_says_so(late_failure: Path) -> None:
    assert "File too large" in sentence_of(kept_outcome(late_failure))


def test_forced_build_of_a_source_with_nan_names_the_weight_and_leaves_the_old_one(
    bench: Bench, call_build: Command
) -> None:
    model = copy_checkpoint(bench.mini, bench.scratch / "model")
    name = "model.language_model.layers.0.mlp.gate_proj.weight"
    tensors = read_shard(model / FIRST)
    nan = b"\xff\x7f"  # BF16, little-endian
    tensors[name] = replace(tensors[name], data=nan + tensors[name].data[2:])
    write_shard(model / FIRST, tensors)
    bench.file(bench.out / "config.json")
    assert name in sentence_of(call_build(*bench.of(model, "--force")))
    assert state(bench.place) == {"out": "directory", "out/config.json": b"precious"}


@pytest.mark.parametrize("device", ["nonsense", "meta", "cpu:x"])
def test_device_that_is_none_is_named(bench: Bench, call_build: Command, device: str) -> None:
    sentence = sentence_of(call_build(*bench.to(bench.out, "--device", device)))
    assert "--device" in sentence
    assert device in sentence
    assert state(bench.place) == {}


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nobody.invalid:6379", "127.0.0.1:ninety"])
def test_ray_cluster_that_does_not_answer_is_named(bench: Bench, call_build: Command, address: str) -> None:
    sentence = sentence_of(call_build(*bench.to(bench.out, "--executor", "ray", "--ray", address)))
    assert f"--ray {address}" in sentence
    assert "ray start --head" in sentence


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")
def test_missing_ray_is_one_sentence_that_says_how_to_get_it(bench: Bench, call_build: Command) -> None:
    sentence = sentence_of(call_build(*bench.to(bench.out, "--executor", "ray")))
    assert "pip install" in sentence


# What a build is: the same bytes, those of model_free_ptq, and where they come from.


@pytest.fixture(scope="session")
def second_building(once: Once, mini: Path) -> Path:
    """A second build of the same inputs, in other surroundings, in place of something older."""

    def make(directory: Path) -> None:
        source = shutil.copytree(mini, directory / "elsewhere")
        for path in source.iterdir():
            os.utime(path, (0, 0))
        (directory / "build").mkdir()
        (directory / "build" / "config.json").write_text("{}")
        (directory / "build" / "stale").write_text("stale")
        outcome = run_script(
            "build.py",
            *("fp8-dynamic", "--model", "elsewhere", "--output", "build"),
            *("--force", "--workers", "2", "--format", "json"),
            env={"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
            cwd=directory,
        )
        assert outcome.code == 0, outcome
        keep_outcome(directory, outcome)

    return once("second-build", make)


def test_second_build_of_the_same_inputs_has_the_same_bytes(second_building: Path, mini_build: Path) -> None:
    assert without_evidence(second_building / "build") == without_evidence(mini_build)


def test_forced_build_that_holds_replaces_the_old_one(second_building: Path) -> None:
    assert kept_outcome(second_building).code == 0
    assert not (second_building / "build" / "stale").exists()
    assert sorted(path.name for path in second_building.iterdir()) == ["build", "elsewhere", "outcome.json"]


def test_built_tensors_are_bit_for_bit_those_of_model_free_ptq(mini: Path, mini_build: Path, tmp_path: Path) -> None:
    from llmcompressor import model_free_ptq

    model_free_ptq(
        model_stub=str(mini), save_directory=tmp_path / "upstream", scheme="FP8_DYNAMIC", ignore=IGNORE, device="cpu"
    )
    upstream, ours = read_tensors(tmp_path / "upstream"), read_tensors(mini_build)
    assert upstream.keys() == ours.keys()
    assert [name for name, tensor in upstream.items() if ours[name] != tensor] == []


def verdict_of(building: Path) -> str:
    verdict: str = kept_outcome(building).report["verdict"]
    return verdict


def test_source_of_the_lock_is_proven_by_its_digests(mini_building: Path) -> None:
    lock = yaml.safe_load(MINI_LOCK.read_text())
    assert f"is {lock['repository']}@{lock['revision'][:7]} by SHA-256" in verdict_of(mini_building)


def test_copy_of_the_source_elsewhere_is_proven_as_well(second_building: Path) -> None:
    assert "by SHA-256" in verdict_of(second_building)


STRAYS = ("consolidated.safetensors", "original/consolidated.00.pth", "pytorch_model.bin", "model.gguf")
CARRIED = {"original/params.json": b"{}\n", "added_tokens.json": b"{ }\r\n", "notes/config.json": b"[not JSON]"}
NAMED = ("--carry", "original/*.json", "--carry", "notes/config.json")
"""What has to be named, because no model needs it."""


@pytest.fixture(scope="session")
def altered_building(once: Once, mini: Path) -> Path:
    """A build, under the umask 027, of a miniature with one byte changed and more files than it had."""

    def make(directory: Path) -> None:
        source = shutil.copytree(mini, directory / "source")
        shard = bytearray((source / SECOND).read_bytes())
        shard[-2] ^= 1  # the lowest bit of the last element
        (source / SECOND).write_bytes(shard)
        for name in (*STRAYS, *CARRIED):
            (source / name).parent.mkdir(exist_ok=True)
            (source / name).write_bytes(CARRIED.get(name, b"no weights at all"))
        (source / "README.md").chmod(0o755)
        outcome = run_script(
            "build.py",
            *("fp8-dynamic", "--model", source, "--output", directory / "build", "--format", "json", *NAMED),
            umask=0o027,
        )
        assert outcome.code == 0, outcome
        keep_outcome(directory, outcome)

    return once("altered-build", make)


def test_source_with_one_byte_changed_is_unproven_and_the_file_is_named(altered_building: Path) -> None:
    verdict = verdict_of(altered_building)
    assert "identity unproven" in verdict
    assert SECOND in verdict
    assert "by SHA-256" not in verdict


def test_other_weight_files_are_not_carried(altered_building: Path) -> None:
    assert contents(altered_building / "build").keys() & set(STRAYS) == set()


def test_every_file_that_is_neither_weights_nor_config_is_carried_byte_for_byte(altered_building: Path) -> None:
    source, built = contents(altered_building / "source"), without_evidence(altered_building / "build")
    assert built.pop("README.md") != source["README.md"], "the build has a card of its own"
    built["README.md"] = built.pop("README.base.md")
    assert carried_of(built) == carried_of(source)
    assert CARRIED.items() <= built.items()


def carried_of(files: dict[str, bytes]) -> dict[str, bytes]:
    written = (*STRAYS, CONFIG, INDEX)
    return {name: data for name, data in files.items() if name not in written and not name.endswith(".safetensors")}


def test_config_keeps_what_the_source_says(altered_building: Path) -> None:
    source, built = (json.loads((altered_building / name / CONFIG).read_bytes()) for name in ("source", "build"))
    quantization = built.pop("quantization_config")
    assert list(built.items()) == list(source.items())
    assert quantization["quant_method"] == "compressed-tensors"


def test_modes_follow_the_umask(altered_building: Path) -> None:
    build = altered_building / "build"
    modes = {path.relative_to(build).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in files_below(build)}
    assert {name: oct(mode) for name, mode in modes.items() if mode != 0o640} == {}
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in (build, build / "original")} == {oct(0o750)}


def test_weights_say_that_they_are_torch_tensors(mini_build: Path) -> None:
    for shard in shards_of(mini_build):
        with shard.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        assert header["__metadata__"] == {"format": "pt"}


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        pytest.param(b"mod\xe8le", "utf-8", id="name of no encoding"),
        pytest.param("modèle".encode(), "ascii", id="ASCII"),
    ],
)
def test_report_is_printed_whatever_the_terminal_can_show(
    mini: Path, tmp_path: Path, run_validate: Command, name: bytes, encoding: str
) -> None:
    model = copy_checkpoint(mini, tmp_path / os.fsdecode(name))
    outcome = run_validate(model, env={"PYTHONIOENCODING": encoding})
    assert (outcome.code, outcome.err) == (0, "")
