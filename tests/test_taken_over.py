"""What a build takes over of its source: what a model needs, and what was named, under names that can be listed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints import contents, copy_checkpoint, edit_config, without_evidence
from tests.conftest import Command, Once, Outcome, environment, keep_outcome, kept_outcome, run_script
from weighbridge.checkpoint.file_names import check_file_names, fault_of
from weighbridge.checkpoint.needed import NEEDED, needed
from weighbridge.errors import StructureError
from weighbridge.evidence.subject import list_all, read_files, write_files

PRIVATE = {
    ".env": "HF_TOKEN=hf_secret",
    ".netrc": "machine huggingface.co password secret",
    "id_rsa": "-----BEGIN OPENSSH PRIVATE KEY-----",
    ".ssh/id_ed25519": "-----BEGIN OPENSSH PRIVATE KEY-----",
    ".aws/credentials": "aws_secret_access_key",
    "credentials.json": "{}",
    "secrets.yaml": "a: b",
    "license.key": "key",
    "LICENSE.pem": "key",
    "README.md.bak": "draft",
    "train.jsonl": "{}",
    "data/train.parquet": "PAR1",
    "notes.md": "what we think of them",
    "trainer_state.json": "{}",
    "training_args.json": "{}",
    "run.sh": "curl",
    "train.py": "token = 'secret'",
    "upload.py": "token = 'secret'",
    "Untitled.ipynb": "{}",
    "screenshot.png": "PNG",
    "wandb/config.json": "{}",
    "backup/tokenizer.json": "{}",
    "tokenizer.json~": "{}",
    ".tokenizer.json.swp": "vim",
    "model.safetensors.lock": "",
    "id_rsa.jinja": "no template",
    "README.private.md": "notes",
    "LICENSE_keys.txt": "no terms",
    "LICENSE_KEY": "no terms",
    "README_key.md": "no card",
    "README_dev.md": "no card",
    "README_aws.md": "no card",
    "core": "memory",
}
"""Files of a directory that somebody works in."""

TAKEN = {
    "added_tokens.json": "{}",
    "vocab.json": "{}",
    "merges.txt": "a b",
    "tokenizer.model": "sentencepiece",
    "tokenizer.model.v3": "sentencepiece",
    "tekken.json": "{}",
    "qwen.tiktoken": "tiktoken",
    "spiece.model": "sentencepiece",
    "preprocessor_config.json": "{}",
    "video_preprocessor_config.json": "{}",
    "additional_chat_templates/tools.jinja": "{{ messages }}",
    "modules.json": "[]",
    "1_Pooling/config.json": "{}",
    "sentence_bert_config.json": "{}",
    "configuration_mini.py": "pass",
    "modeling_mini.py": "pass",
    "LICENSE": "terms",
    "LICENSE.txt": "terms",
    "LICENSE-MODEL.md": "terms",
    "License_apache-2.0.txt": "terms",
    "NOTICE": "terms",
    "USE_POLICY.md": "terms",
    "LICENSE_GEMMA": "terms",
    "LICENSE-LLAMA3.1.md": "terms",
    "LICENSE-QWEN.txt": "terms",
    "LICENSE-3RD-PARTY.txt": "terms",
    "NOTICE_NVIDIA.txt": "terms",
    "README_zh.md": "card",
    "README_zh-CN.md": "card",
    "README-EN.md": "card",
    "own_code.py": "config.json names it",
}
"""Files that belong to a model."""


@pytest.fixture(scope="session")
def worked_in(once: Once, mini: Path) -> Path:
    """A directory with ``source``, a model where somebody works, and its ``build``."""

    def make(directory: Path) -> None:
        source = copy_checkpoint(mini, directory / "source")
        edit_config(source, lambda config: config.update(auto_map={"AutoModel": "own_code.Model"}))
        for name, content in (PRIVATE | TAKEN).items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text(content)
        command = ("build.py", "fp8-dynamic", "--model", source, "--output", directory / "build", "--format", "json")
        keep_outcome(directory, run_script(*command))

    return once("worked-in", make)


def test_nothing_is_taken_over_that_no_model_needs(worked_in: Path) -> None:
    assert without_evidence(worked_in / "build").keys() & PRIVATE.keys() == set()


def test_what_a_model_needs_is_taken_over_byte_for_byte(worked_in: Path) -> None:
    assert {name: content.encode() for name, content in TAKEN.items()}.items() <= contents(worked_in / "build").items()


def test_report_names_what_was_left_behind(worked_in: Path) -> None:
    sections = {section["id"]: section for section in kept_outcome(worked_in).report["sections"]}
    left = sections["left-behind"]
    assert left["summary"].startswith(f"{len(PRIVATE)} files of the source")
    assert [finding["severity"] for finding in left["findings"]] == ["note"] * len(left["findings"])
    assert {finding["where"] for finding in left["findings"][:-1]} <= PRIVATE.keys()


def test_evidence_says_nothing_of_what_was_left_behind(worked_in: Path) -> None:
    said = b"".join(contents(worked_in / "build" / "evidence").values())
    assert [name for name in (".netrc", "id_rsa", "train.jsonl", "Untitled.ipynb") if name.encode() in said] == []


def test_build_without_them_holds_against_the_directory_that_has_them(worked_in: Path, run_validate: Command) -> None:
    outcome = run_validate(worked_in / "build", "--source", worked_in / "source")
    assert (outcome.code, "account/added-file" in outcome.out) == (0, False), outcome.out


@pytest.mark.parametrize("name", PRIVATE)
def test_name_is_on_no_list(name: str) -> None:
    assert needed(name, {}) is None


@pytest.mark.parametrize("why", [why for _, why in NEEDED])
def test_every_entry_of_the_list_says_why(why: str) -> None:
    assert why


@pytest.mark.parametrize(
    "auto_map",
    ["x.Y", {"AutoModel": "../../etc/passwd.X"}, {"AutoModel": ".env"}, {"AutoModel": None}, {"AutoModel": ["a/b.X"]}],
    ids=str,
)
def test_config_cannot_name_what_is_no_code_beside_it(auto_map: object) -> None:
    names = ("../../etc/passwd.py", ".env", "a/b.py", ".py", "None.py", "x.py")
    assert [name for name in names if needed(name, {"auto_map": auto_map}) is not None] == []


# What is named.


def build_with(source: Path, output: Path, *named: str) -> Outcome:
    options = [option for name in named for option in ("--carry", name)]
    return run_script("build.py", "fp8-dynamic", "--model", source, "--output", output, *options)


def test_what_is_named_is_taken_over_and_can_be_built_again(mini: Path, tmp_path: Path) -> None:
    source = copy_checkpoint(mini, tmp_path / "source")
    (source / "original").mkdir()
    for name in ("original/a.json", "original/b.json", "original/c.txt", "train.jsonl"):
        (source / name).write_text("{}")
    outcome = build_with(source, tmp_path / "build", "original/*.json", "train.jsonl")
    assert outcome.code == 0, outcome
    taken = contents(tmp_path / "build").keys()
    assert {"original/a.json", "original/b.json", "train.jsonl"} <= taken
    assert "original/c.txt" not in taken
    again = reproduce(tmp_path / "build", source)
    assert again.code == 0, again


def reproduce(build: Path, source: Path) -> Outcome:
    command = [sys.executable, "-m", "weighbridge.cli.reproduce", str(build), "--model", str(source)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("plan", [(), ("--plan",)], ids=["build", "plan"])
@pytest.mark.parametrize(
    "name", ["nothing.txt", "*.nothing", "model-00001-of-00002.safetensors", "*.bin", ".gitattributes", "../mini"]
)
def test_name_of_nothing_that_could_be_taken_over_is_refused(
    name: str, plan: tuple[str, ...], mini: Path, tmp_path: Path, call_build: Command
) -> None:
    source = copy_checkpoint(mini, tmp_path / "source")
    for stray in ("pytorch_model.bin", ".gitattributes"):
        (source / stray).write_text("")
    to = () if plan else ("--output", tmp_path / "build")
    outcome = call_build("fp8-dynamic", "--model", source, "--carry", name, *to, *plan)
    assert outcome.code == 2, outcome
    assert f"holds no file {name!r} that a build could take over" in outcome.err
    assert not (tmp_path / "build").exists()


# Names that cannot be listed, and too many files: refused before a weight is read, by a plan as by a build.


def named(*names: str | bytes) -> Callable[[Path], None]:
    def add(source: Path) -> None:
        for name in names:
            path = source / os.fsdecode(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")

    return add


def many(count: int) -> Callable[[Path], None]:
    return named(*(f"data/{number:05}.txt" for number in range(count)))


ODD: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "not UTF-8": (named(b"\xff\xfe.txt"), "is not UTF-8"),
    "not UTF-8, of a tokenizer": (named(b"1_Pool\xe9/config.json"), "is not UTF-8"),
    "a line break": (named("a\nb.txt"), "line break"),
    "a line break in a folder": (named("a\nb/LICENSE"), "line break"),
    "a carriage return": (named("a\rb"), "line break"),
    "a line separator": (named("a\u2028b"), "line break"),
    "an escape": (named("\x1b[2J"), "not printable"),
    "a turn of writing": (named("a\u202etxt.exe"), "not printable"),
    "a delete": (named("a\x7f"), "not printable"),
    "a backslash": (named("a\\b"), "backslash"),
    "a blank before": (named(" a"), "blank"),
    "a blank after": (named("a "), "blank"),
    "a blank after a folder": (named("a /b"), "blank"),
    "two cases": (named("LICENSE", "license"), "one name where case does not count"),
    "two cases of a folder": (named("Docs/a", "docs/b"), "one name where case does not count"),
    "two compositions": (named("caf\u00e9", "cafe\u0301"), "one name where case does not count"),
    "config.json in another case": (named("Config.json"), "one name where case does not count"),
    "10,050 files": (many(10_050), "holds more than 10,000 files"),
}


@pytest.mark.parametrize("plan", [(), ("--plan",)], ids=["build", "plan"])
@pytest.mark.parametrize("case", ODD)
def test_source_with_a_name_that_cannot_be_listed_is_refused_before_a_weight_is_read(
    case: str, plan: tuple[str, ...], mini: Path, tmp_path: Path, call_build: Command, without_torch: None
) -> None:
    add, words = ODD[case]
    source = copy_checkpoint(mini, tmp_path / "source")
    add(source)
    to = () if plan else ("--output", tmp_path / "place" / "build")
    outcome = call_build("fp8-dynamic", "--model", source, *to, *plan)
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.count("\n") == 1
    assert words in outcome.err
    assert not (tmp_path / "place").exists()


def test_more_files_than_evidence_lists_are_refused_before_a_weight_is_read(
    mini: Path, tmp_path: Path, call_build: Command, without_torch: None
) -> None:
    source = copy_checkpoint(mini, tmp_path / "source")
    many(9_950)(source)
    outcome = call_build("fp8-dynamic", "--model", source, "--output", tmp_path / "build", "--carry", "data/*")
    assert outcome.code == 2, outcome
    assert "a checkpoint has 10,000 at most" in outcome.err


@pytest.mark.parametrize("name", ["data/.git/config", "sub/.cache/x.json"])
def test_file_that_the_hub_would_not_take_is_refused_where_it_is_named(
    name: str, mini: Path, tmp_path: Path, call_build: Command, without_torch: None
) -> None:
    source = copy_checkpoint(mini, tmp_path / "source")
    named(name)(source)
    outcome = call_build("fp8-dynamic", "--model", source, "--output", tmp_path / "build", "--carry", "*")
    assert outcome.code == 2, outcome
    assert "the hub takes nothing of a folder" in outcome.err


@pytest.mark.parametrize("name", ["readme.md", "Readme.base.md", "Evidence/x.json", "CONFIG.json"])
def test_file_that_differs_in_case_alone_from_what_a_build_writes_is_refused_where_it_is_named(
    name: str, mini: Path, tmp_path: Path, call_build: Command, without_torch: None
) -> None:
    source = copy_checkpoint(mini, tmp_path / "source")
    (source / "README.md").unlink()
    named(name)(source)
    outcome = call_build("fp8-dynamic", "--model", source, "--output", tmp_path / "build", "--carry", name)
    assert outcome.code == 2, outcome
    assert "one name where case does not count" in outcome.err


NAMES = [bytes_of for bytes_of in ODD if bytes_of != "10,050 files"]


@pytest.mark.parametrize("case", NAMES)
def test_reader_of_evidence_refuses_what_the_writer_refuses(case: str, tmp_path: Path) -> None:
    add, words = ODD[case]
    named("config.json")(tmp_path)
    add(tmp_path)
    with pytest.raises(StructureError, match=words):
        list_all(tmp_path)


@given(st.lists(st.text(max_size=12), min_size=1, max_size=6, unique=True))
def test_names_that_are_not_refused_are_read_back_as_they_were_written(names: list[str]) -> None:
    try:
        check_file_names(names, where="x")
    except StructureError:
        return
    files = dict.fromkeys(names, "0" * 64)
    assert read_files(write_files(files), where="x") == files


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "a/b/c", "caf\u00e9.txt", "\u6a21\u578b.md", "a b", "a'b", "x" * 255]
)
def test_ordinary_name_has_no_fault(name: str) -> None:
    assert fault_of(name) == ""


@pytest.mark.parametrize("name", ["", "/a", "a//b", "a/", "./a", "a/../b", "x" * 256, "/".join(["x" * 200] * 6)])
def test_name_that_no_directory_lists_has_a_fault_too(name: str) -> None:
    assert fault_of(name)
