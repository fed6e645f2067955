"""``make reproduce``: a build is made again from its evidence and compared; what differs is the reason."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2

from tests.checkpoints import copy_checkpoint, rewrite
from tests.conftest import ROOT, Command, Outcome, call_main, environment
from tests.evidence import edit_claim, list_anew
from tests.hub_server import serve
from weighbridge.cli import reproduce
from weighbridge.evidence.environment import installed, repository

FAKE = "tqdm"
"""A package that every environment has, and that builds do not depend on for their numbers."""


def call_reproduce(*arguments: str | Path) -> Outcome:
    return call_main(reproduce.main, (*arguments, "--memory", "64GiB"))  # this process holds torch and much else


@pytest.fixture
def build(signed_builds: Path, tmp_path: Path) -> Path:
    """A copy of the signed build that says it was made at the commit of now: somebody may commit while tests run."""
    copy = copy_checkpoint(signed_builds / "build", tmp_path / "build")
    here = repository()
    assert here is not None
    edit_claim(copy, 1, lambda statement: name_commit(statement, here.commit), key=signed_builds / "key.pem")
    return copy


def name_commit(statement: Any, commit: str) -> None:
    """Let a provenance statement say that it is of this commit of the repository."""
    for item in statement["predicate"]["buildDefinition"]["resolvedDependencies"]:
        if item["name"] == "weighbridge":
            item["digest"] = {"gitCommit": commit}


def reasons(outcome: Outcome) -> set[tuple[str, str]]:
    """Rule and place of every finding that failed."""
    sections = outcome.report["sections"]
    return {
        (finding["rule"], finding["where"])
        for section in sections
        for finding in section["findings"]
        if finding["severity"] == "error"
    }


def test_build_is_reproduced_byte_for_byte(build: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    outcome = call_reproduce(build, "--output", again)
    assert outcome.code == 0, outcome.err + outcome.out
    assert "byte for byte" in outcome.out
    assert checkpoint_bytes(again) == checkpoint_bytes(build)


def test_verdict_is_a_statement_about_the_checkpoint(build: Path, tmp_path: Path) -> None:
    outcome = call_reproduce(build, "--statement", tmp_path / "verdict.json")
    content = json.loads((tmp_path / "verdict.json").read_bytes())
    message = json_format.ParseDict(content, statement_pb2.Statement())
    original = json.loads((build / "evidence/bom.cdx.json").read_bytes())["metadata"]["component"]
    assert outcome.code == 0
    assert message.subject[0].digest["sha256"] == original["version"]
    assert "same bytes" in content["predicate"]["passedTests"]


@pytest.mark.parametrize(
    ("option", "value", "told"), [("--workers", "-1", "at least 1"), ("--memory", "lots", "no size such as 5GB")]
)
def test_option_that_is_no_number_is_refused(
    option: str, value: str, told: str, build: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        reproduce.main([str(build), option, value])
    assert refused.value.code == 2
    assert told in capsys.readouterr().err


def test_nothing_is_left_behind_where_no_output_was_named(build: Path, tmp_path: Path) -> None:
    assert call_reproduce(build).code == 0
    assert list(tmp_path.iterdir()) == [build]


def test_other_sharding_is_the_same_by_content(build: Path, tmp_path: Path, call_build: Command) -> None:
    """The evidence says one size of shards, the files have another: container and index differ, tensors do not."""
    other = tmp_path / "other"
    assert call_build("fp8-dynamic", "--model", "mini", "--output", other, "--shard-size", "4MB").code == 0
    (build / "model.safetensors").unlink()
    for path in other.glob("model*"):
        os.link(path, build / path.name)
    outcome = call_reproduce(build, "--format", "json")
    assert outcome.code == 0, outcome.out
    findings = [item for section in outcome.report["sections"] for item in section["findings"]]
    assert {item["where"] for item in findings if item["rule"] == "rebuild/container"} == {
        *(path.name for path in other.glob("model*")),
        "model.safetensors",
    }


def test_one_altered_byte_of_the_checkpoint_is_named_with_its_tensor(build: Path) -> None:
    content = bytearray((build / "model.safetensors").read_bytes())
    content[-1] ^= 1
    rewrite(build / "model.safetensors", bytes(content))
    outcome = call_reproduce(build, "--format", "json")
    assert outcome.code == 1
    rules = reasons(outcome)
    assert ("rebuild/bytes", "model.safetensors") in rules
    assert len([where for rule, where in rules if rule == "rebuild/tensor"]) == 1


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "tokenizer.json", "config.json"])
def test_one_other_byte_of_the_source_is_the_reason(name: str, build: Path, mini: Path, tmp_path: Path) -> None:
    source = copy_checkpoint(mini, tmp_path / "source")
    content = (source / name).read_bytes()
    rewrite(source / name, content[:-1] + bytes([content[-1] ^ 1]) if name.endswith("s") else content + b"\n")
    outcome = call_reproduce(build, "--model", source, "--format", "json")
    assert outcome.code == 1
    assert reasons(outcome) == {("rebuild/source", name)}


def another_package(directory: Path, *, version: str, record: str) -> Path:
    """A directory for the front of the path with a distribution of the same name as one that is installed."""
    about = directory / f"{FAKE}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {FAKE}\nVersion: {version}\n")
    (about / "RECORD").write_text(record)
    return directory


@pytest.mark.parametrize("version", ["0.0.1", ""], ids=["another version", "other files of the same version"])
def test_one_other_package_is_the_reason(
    version: str, build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = next(found for found in installed() if found.name == FAKE)
    front = another_package(
        tmp_path / "front", version=version or here.version, record=f"{FAKE}/__init__.py,sha256=x,1\n"
    )
    monkeypatch.syspath_prepend(front)
    outcome = call_reproduce(build, "--format", "json")
    assert outcome.code == 1
    assert reasons(outcome) == {("rebuild/environment", FAKE)}


def test_other_environment_can_be_tried_and_is_named(
    build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(another_package(tmp_path / "front", version="0.0.1", record=""))
    outcome = call_reproduce(build, "--elsewhere", "--format", "json")
    assert outcome.code == 0
    findings = [item for section in outcome.report["sections"] for item in section["findings"]]
    assert ("rebuild/environment", FAKE, "warning") in {
        (item["rule"], item["where"], item["severity"]) for item in findings
    }


def test_another_commit_is_the_reason(build: Path, signed_builds: Path) -> None:
    edit_claim(build, 1, lambda statement: name_commit(statement, "0" * 40), key=signed_builds / "key.pem")
    outcome = call_reproduce(build, "--format", "json")
    assert outcome.code == 1
    assert reasons(outcome) == {("rebuild/environment", "weighbridge")}


def test_checkpoint_without_evidence_cannot_be_followed(mini: Path) -> None:
    outcome = call_reproduce(mini)
    assert outcome.code == 2
    assert "holds no statements" in outcome.err


def test_forged_list_of_files_does_not_help(build: Path) -> None:
    rewrite(build / "chat_template.jinja", b"altered")
    list_anew(build)
    outcome = call_reproduce(build, "--format", "json")
    assert outcome.code == 1
    assert ("rebuild/bytes", "chat_template.jinja") in reasons(outcome)


def test_source_is_found_on_the_hub_at_its_commit_or_by_its_digests_in_a_directory(mini: Path, tmp_path: Path) -> None:
    source = copy_checkpoint(mini, tmp_path / "source")
    (source / ".gitattributes").write_text("*.safetensors filter=lfs\n")  # as the hub has it in every repository
    with serve({"org/gemma-4-mini": source}) as hub:
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        added = {**variables, "NO_PROXY": "127.0.0.1,localhost"}
        commit = hub.commit_of("org/gemma-4-mini")
        build = tmp_path / "build"
        arguments = ["build.py", "fp8-dynamic", "--model", "org/gemma-4-mini", "--output", str(build)]
        done = run_here(arguments, added)
        assert done.returncode == 0, done.stderr
        hub.publish("org/gemma-4-mini", mini)  # the branch moves on
        again = ["-m", "weighbridge.cli.reproduce", str(build)]
        done = run_here(again, {**added, "HF_HOME": str(tmp_path / "new")})
    assert done.returncode == 0, done.stdout + done.stderr
    done = run_here([*again, "--model", str(source)], {})
    assert done.returncode == 0, done.stdout + done.stderr
    bom = json.loads((build / "evidence/bom.cdx.json").read_bytes())
    (ancestor,) = bom["components"][0]["pedigree"]["ancestors"]
    assert ancestor["purl"].startswith("pkg:huggingface/weighbridge/gemma-4-mini@"), "proven, wherever it was fetched"
    how = json.loads((build / "evidence/statements.jsonl").read_bytes().splitlines()[-1])
    asked = how["predicate"]["buildDefinition"]["externalParameters"]
    assert (asked["model"], asked["revision"]) == ("org/gemma-4-mini", commit)


def run_here(arguments: Sequence[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python in this repository."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(variables), capture_output=True, text=True, check=False)


def test_two_clones_in_two_places_and_climates_make_the_same_bytes_and_each_reproduces_the_other(
    tmp_path: Path,
) -> None:
    places = [tmp_path / "one", tmp_path / "another" / "place with spaces"]
    climates: list[dict[str, str]] = [
        {"LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "1"},
        {"LC_ALL": "C.UTF-8", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "4242", "COLUMNS": "60"},
    ]
    for place, climate, umask in zip(places, climates, (0o022, 0o077), strict=True):
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(place)], check=True)
        arguments = ["build.py", "fp8-dynamic", "--model", "mini", "--output", "builds/it"]
        done = run_clone(
            place, arguments, {**climate, "WEIGHBRIDGE_CACHE": str(tmp_path / f"cache of {place.name}")}, umask=umask
        )
        assert done.returncode == 0, done.stderr
    assert checkpoint_bytes(places[0] / "builds/it") == checkpoint_bytes(places[1] / "builds/it")
    arguments = ["-m", "weighbridge.cli.reproduce", str(places[0] / "builds/it")]
    done = run_clone(
        places[1], arguments, {**climates[1], "WEIGHBRIDGE_CACHE": str(tmp_path / "cache of both")}, umask=0o077
    )
    assert done.returncode == 0, done.stdout + done.stderr


def run_clone(
    place: Path, arguments: Sequence[str], variables: dict[str, str], *, umask: int
) -> subprocess.CompletedProcess[str]:
    """Run Python in a clone, with the clone's own package before the installed one."""
    added = {**variables, "PYTHONPATH": str(place / "src")}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=place, env=environment(added), capture_output=True, text=True, check=False, umask=umask
    )


def checkpoint_bytes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file of a build but its evidence."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and "evidence" not in path.relative_to(directory).parts
    }
