"""``build.py --audit``: a build that is held against its source by the numbers before it is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checkpoints import without_evidence
from tests.conftest import Command, Once, call_main, keep_outcome, kept_outcome, run_script
from weighbridge.cli import reproduce


@pytest.fixture(scope="session")
def audited(once: Once, mini: Path) -> Path:
    """A directory with ``build``, an audited build of the miniature, and what making it answered."""

    def make(directory: Path) -> None:
        arguments = ("fp8-dynamic", "--model", "mini", "--audit", "--output", directory / "build", "--format", "json")
        outcome = run_script("build.py", *arguments)
        assert outcome.code == 0, outcome.err + outcome.out
        keep_outcome(directory, outcome)

    return once("audited", make)


def test_the_verdict_of_the_build_says_what_the_audit_found(audited: Path) -> None:
    report = kept_outcome(audited).report
    assert report["verdict"].endswith("it derives exactly from the base")
    assert "quantized-weights" in [section["id"] for section in report["sections"]]


def test_the_audit_is_evidence_and_a_statement_of_its_own(audited: Path) -> None:
    statements = [json.loads(line) for line in (audited / "build/evidence/statements.jsonl").read_text().splitlines()]
    passed = [statement["predicate"].get("passedTests", []) for statement in statements]
    assert any("its quantized weights" in tests for tests in passed)
    assert json.loads((audited / "build/evidence/audit.json").read_text())["holds"]


def test_the_evidence_of_an_audited_build_holds(audited: Path, call_validate: Command) -> None:
    assert call_validate(audited / "build", "--evidence", "--source", "mini").code == 0


def test_an_audited_build_is_reproduced_with_its_audit(audited: Path, tmp_path: Path) -> None:
    outcome = call_main(reproduce.main, (audited / "build", "--elsewhere", "--output", tmp_path / "again"))
    assert "rebuild/bytes" not in outcome.out, outcome.out
    assert without_evidence(tmp_path / "again") == without_evidence(audited / "build")


def test_the_weights_are_those_of_a_build_that_was_not_audited(audited: Path, mini_build: Path) -> None:
    one, other = without_evidence(audited / "build"), without_evidence(mini_build)
    assert {name for name in one | other if one.get(name) != other.get(name)} == {"README.md"}


def test_a_conversion_is_not_audited_against_codes(mini_build: Path, tmp_path: Path, call_build: Command) -> None:
    outcome = call_build("nvfp4-mlp-modelopt", "--model", mini_build, "--audit", "--output", tmp_path / "out")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "an audit needs the weights" in outcome.err
