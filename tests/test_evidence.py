"""What a build leaves beside its checkpoint: which files, in which published formats, and that they say what is so."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

from tests.checkpoints import copy_checkpoint
from tests.conftest import ROOT, Command
from tests.evidence import EVIDENCE, lines_of, payload_of
from weighbridge.base.model_card import card_metadata
from weighbridge.evidence.environment import installed
from weighbridge.evidence.signing import is_signed_by
from weighbridge.recipe import load_recipe

PLAIN = {
    *(
        "README.md",
        "bom.cdx.json",
        "dossier.html",
        "dossier.json",
        "files.sha256",
        "source.yaml",
        "log.jsonl",
        "recipe.yaml",
        "report.html",
        "report.json",
        "report.md",
    ),
    *("statements.jsonl", "tensors.sha256"),
}
SIGNED = PLAIN - {"statements.jsonl"} | {"claims.jsonl", "model.sig", "evidence.sig"}
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def build(signed_builds: Path) -> Path:
    return signed_builds / "build"


@pytest.fixture(scope="module")
def statements(build: Path) -> list[dict[str, Any]]:
    return [payload_of(line) for line in lines_of(build)]


@pytest.fixture(scope="module")
def provenance(statements: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [item for item in statements if item["predicateType"] == "https://slsa.dev/provenance/v1"]
    return found


@pytest.fixture(scope="module")
def dependencies(provenance: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in provenance["predicate"]["buildDefinition"]["resolvedDependencies"]}


@pytest.fixture(scope="module")
def bom(build: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((build / EVIDENCE / "bom.cdx.json").read_bytes())
    return content


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_unsigned_build_holds_plain_statements(mini_build: Path) -> None:
    assert {path.name for path in (mini_build / EVIDENCE).iterdir()} == PLAIN


def test_signed_build_holds_envelopes_and_a_model_signature(build: Path) -> None:
    assert {path.name for path in (build / EVIDENCE).iterdir()} == SIGNED


def test_recipe_is_carried_byte_for_byte(build: Path) -> None:
    assert (build / EVIDENCE / "recipe.yaml").read_bytes() == load_recipe("fp8-dynamic").raw


def test_source_card_is_kept_under_another_name(build: Path, mini: Path) -> None:
    assert (build / "README.base.md").read_bytes() == (mini / "README.md").read_bytes()


def test_every_statement_parses_as_the_published_message(statements: list[dict[str, Any]]) -> None:
    for content in statements:
        message = json_format.ParseDict(content, statement_pb2.Statement())
        Statement.copy_from_pb(message).validate()


def test_provenance_parses_as_the_published_predicate(provenance: dict[str, Any]) -> None:
    message = json_format.ParseDict(provenance["predicate"], provenance_pb2.Provenance())
    assert message.build_definition.build_type == "urn:weighbridge:build:v1"
    assert message.run_details.metadata.finished_on.seconds >= message.run_details.metadata.started_on.seconds > 0


def test_validation_parses_as_the_published_test_result(statements: list[dict[str, Any]]) -> None:
    (content,) = [item for item in statements if item["predicateType"].endswith("/test-result/v0.1")]
    message = json_format.ParseDict(content["predicate"], test_result_pb2.TestResult())
    assert message.result == "PASSED"
    assert "against the recipe's plan" in message.passed_tests


def test_every_statement_is_about_the_same_subject(statements: list[dict[str, Any]]) -> None:
    assert len({json.dumps(content["subject"], sort_keys=True) for content in statements}) == 1


def test_provenance_names_every_file_of_the_source_by_digest(
    dependencies: dict[str, dict[str, Any]], mini: Path
) -> None:
    stated = {name.removeprefix("source/"): item for name, item in dependencies.items() if name.startswith("source/")}
    assert {name: item["digest"]["sha256"] for name, item in stated.items()} == {
        path.name: sha256(path) for path in mini.iterdir()
    }


def test_provenance_says_whether_the_base_is_proven(dependencies: dict[str, dict[str, Any]]) -> None:
    base = dependencies["base model"]
    assert base["annotations"]["identity"]["proven"] is True
    assert base["digest"] == {"gitCommit": "65c4c61b745416d0550b6de908d159b7091ab1ab"}


def test_provenance_names_every_installed_package_by_what_it_installed(
    dependencies: dict[str, dict[str, Any]],
) -> None:
    stated = {
        name: (item["uri"], item["annotations"]["content"])
        for name, item in dependencies.items()
        if item.get("uri", "").startswith("pkg:pypi/") and name != "weighbridge"
    }
    assert stated == {found.name: (found.purl, found.content) for found in installed()}


def test_provenance_binds_every_other_file_of_the_evidence(build: Path, provenance: dict[str, Any]) -> None:
    bound = {item["name"]: item["digest"]["sha256"] for item in provenance["predicate"]["runDetails"]["byproducts"]}
    there = {f"evidence/{name}" for name in SIGNED - {"claims.jsonl", "evidence.sig"}}
    assert {name: digest for name, digest in bound.items() if name.startswith("evidence/")} == {
        name: sha256(build / name) for name in there
    }


def test_bill_of_materials_is_valid_by_the_strict_validator(build: Path) -> None:
    content = (build / EVIDENCE / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(content) is None


def test_bill_of_materials_names_the_base_by_commit(bom: dict[str, Any]) -> None:
    (ancestor,) = bom["components"][0]["pedigree"]["ancestors"]
    assert ancestor["purl"] == "pkg:huggingface/weighbridge/gemma-4-mini@65c4c61b745416d0550b6de908d159b7091ab1ab"


def test_bill_of_materials_has_a_model_with_hashes_licence_card_and_formulation(bom: dict[str, Any]) -> None:
    model, *libraries = bom["components"]
    assert model["type"] == "machine-learning-model"
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert model["modelCard"]["modelParameters"]["modelArchitecture"] == "Gemma4ForConditionalGeneration"
    assert bom["formulation"][0]["workflows"][0]["taskTypes"] == ["build", "test"]
    assert [library["name"] for library in libraries] == ["compressed-tensors", "safetensors"]
    assert all(library["hashes"] and library["licenses"] for library in libraries)


def test_bill_of_materials_lists_the_packages_of_the_provenance(
    bom: dict[str, Any], dependencies: dict[str, dict[str, Any]]
) -> None:
    packages = {item["uri"] for item in dependencies.values() if item.get("uri", "").startswith("pkg:pypi/")}
    assert {item["purl"] for item in bom["formulation"][0]["components"]} == packages


def test_bill_of_materials_is_signed_by_the_key_of_the_statements_and_by_nobody_where_there_is_none(
    build: Path, bom: dict[str, Any], mini_build: Path
) -> None:
    keyid = json.loads(lines_of(build)[0])["signatures"][0]["keyid"]
    assert is_signed_by(keyid, bom) and not is_signed_by(keyid, {**bom, "version": 2})
    assert not is_signed_by("0" * 64, bom)
    assert "signature" not in json.loads((mini_build / EVIDENCE / "bom.cdx.json").read_bytes())


def test_card_has_the_metadata_that_the_hub_reads(build: Path) -> None:
    metadata = card_metadata((build / "README.md").read_bytes(), where="README.md")
    assert metadata == {
        "base_model": "weighbridge/gemma-4-mini",
        "base_model_relation": "quantized",
        "license": "apache-2.0",
        "tags": ["compressed-tensors", "float-quantized", "weighbridge"],
    }


def test_card_holds_the_recipe_in_full(build: Path) -> None:
    assert (build / EVIDENCE / "recipe.yaml").read_text().rstrip() in (build / "README.md").read_text()


def test_checkpoint_itself_holds_no_time_and_no_place(build: Path, provenance: dict[str, Any]) -> None:
    times = provenance["predicate"]["runDetails"]["metadata"]
    texts = [path.read_text() for path in build.glob("*") if path.suffix in (".md", ".json", ".jinja")]
    unwanted = {str(build.parent), times["finishedOn"][:10], times["finishedOn"][:4] + "-"}
    assert not any(word in text for word in unwanted for text in texts)


def test_two_builds_differ_in_their_evidence_alone(signed_builds: Path) -> None:
    builds = [signed_builds / "build", signed_builds / "older"]
    one, other = ({path.name: sha256(path) for path in build.iterdir() if path.is_file()} for build in builds)
    assert one == other


@pytest.mark.parametrize("number", range(3))
def test_command_of_the_guide_accepts_the_signed_build(
    number: int, build: Path, signed_builds: Path, tmp_path: Path
) -> None:
    done = run_guide(copy_checkpoint(build, tmp_path / "copy"), number, key=signed_builds / "key.pub.pem")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("number", range(3))
def test_command_of_the_guide_finds_an_altered_build(
    number: int, build: Path, signed_builds: Path, tmp_path: Path
) -> None:
    copy = copy_checkpoint(build, tmp_path / "copy")
    for name in ("config.json", "evidence/claims.jsonl"):
        content = (copy / name).read_bytes()
        (copy / name).unlink()
        (copy / name).write_bytes(content.replace(b"A", b"B", 200))
    done = run_guide(copy, number, key=signed_builds / "key.pub.pem")
    assert done.returncode != 0 or "Verified OK" not in done.stdout


@pytest.mark.parametrize("number", range(3))
def test_command_of_the_guide_accepts_the_unsigned_build(number: int, mini_build: Path, tmp_path: Path) -> None:
    done = run_guide(copy_checkpoint(mini_build, tmp_path / "copy"), number, key=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def run_guide(checkpoint: Path, number: int, *, key: Path) -> subprocess.CompletedProcess[str]:
    """Run one of the three commands of evidence/README.md as it stands there."""
    commands = SHELL.findall((checkpoint / EVIDENCE / "README.md").read_text())
    assert len(commands) == 3
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"KEY": str(key), "PATH": path}
    command = ["bash", "-e", "-o", "pipefail", "-c", commands[number]]
    return subprocess.run(command, cwd=checkpoint, env=environment, capture_output=True, text=True, check=False)


def test_guide_names_every_file_beside_it(build: Path, mini_build: Path) -> None:
    for checkpoint, names in ((build, SIGNED), (mini_build, PLAIN)):
        guide = (checkpoint / EVIDENCE / "README.md").read_text()
        assert [name for name in names - {"README.md"} if f"`{name}`" not in guide] == []


def test_unsigned_build_says_so(mini_build: Path, call_validate: Command) -> None:
    outcome = call_validate(mini_build, "--evidence")
    assert outcome.code == 0
    assert "evidence/unsigned" in outcome.out


def test_verification_says_what_rests_on_the_word_of_the_signer(mini_build: Path, call_validate: Command) -> None:
    report = call_validate(mini_build, "--evidence", "--format", "json").report
    words = report["sections"][-1]["facts"]
    assert "no --source was given" in words["the source"]
    assert "that the build was made from these bytes" in words["the source"]
    assert "which packages" in words["the provenance"]


def test_source_that_was_read_is_recognized(mini_build: Path, mini: Path, call_validate: Command) -> None:
    assert call_validate(mini_build, "--evidence", "--source", mini).code == 0


def test_source_that_was_not_read_is_named(
    mini_build: Path, mini: Path, tmp_path: Path, call_validate: Command
) -> None:
    other = copy_checkpoint(mini, tmp_path / "base")
    (other / "chat_template.jinja").unlink()
    (other / "chat_template.jinja").write_text("other")
    outcome = call_validate(mini_build, "--evidence", "--source", other, "--format", "json")
    findings = [finding for section in outcome.report["sections"] for finding in section["findings"]]
    assert outcome.code == 1
    assert ("evidence/source", "chat_template.jinja") in {(item["rule"], item["where"]) for item in findings}


def test_signed_build_without_a_key_is_accepted_with_a_warning(build: Path, call_validate: Command) -> None:
    outcome = call_validate(build, "--evidence")
    assert outcome.code == 0
    assert "evidence/signature-unchecked" in outcome.out


def test_key_for_an_unsigned_build_is_a_failure(mini_build: Path, signed_builds: Path, call_validate: Command) -> None:
    outcome = call_validate(mini_build, "--evidence", "--key", signed_builds / "key.pub.pem")
    assert outcome.code == 1
    assert "evidence/unsigned" in outcome.out


def test_what_is_no_directory_cannot_be_judged(call_validate: Command, tmp_path: Path) -> None:
    outcome = call_validate(tmp_path / "nothing", "--evidence")
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")


@pytest.mark.parametrize("option", ["--key", "--identity", "--issuer"])
def test_options_of_the_evidence_mean_nothing_without_it(option: str, mini_build: Path, call_validate: Command) -> None:
    outcome = call_validate(mini_build, option, "x")
    assert outcome.code == 2
    assert "--evidence" in outcome.err


def test_evidence_does_not_say_where_it_was_built(build: Path) -> None:
    texts = [path.read_text() for path in (build / EVIDENCE).iterdir()]
    texts += [json.dumps(payload_of(line)) for line in lines_of(build)]
    assert [text for text in texts if str(build.parent) in text or str(ROOT) in text] == []
