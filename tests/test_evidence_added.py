"""Results that come after a build: added to its evidence, bound to it, signed like it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2

from tests.checkpoints import copy_checkpoint, rewrite
from tests.evidence import EVIDENCE, edit_document, flip, lines_of, payload_of, write_lines
from weighbridge.errors import EvidenceError
from weighbridge.evidence.added import add_result
from weighbridge.evidence.signing import KeySigner, open_verifier
from weighbridge.evidence.verify import verify
from weighbridge.progress import Progress
from weighbridge.report import Finding, Report, Section, Severity

ADDED = "added/added.jsonl"


def report_of(*findings: Finding, summary: str = "every parameter was filled") -> Report:
    loading = Section("loading", "loading in vLLM", summary, findings=findings)
    sections = (loading, Section("agreement-served", "answers", "as expected"))
    return Report("serve-check", "/somewhere/mini-fp8", "/somewhere/mini-fp8 serves", sections)


def add(checkpoint: Path, report: Report, *, name: str = "serving", key: Path | None = None) -> None:
    signer = None if key is None else KeySigner.open(key)
    add_result(checkpoint, name, report, names={}, signer=signer, progress=Progress())


def errors(checkpoint: Path, key: Path) -> list[tuple[str, str]]:
    """Rule and place of what is wrong with a checkpoint's evidence."""
    report = verify(checkpoint, verifier=open_verifier(key.with_suffix(".pub.pem")), progress=Progress())
    return [(finding.rule, finding.where) for finding in report.findings() if finding.severity is Severity.ERROR]


@pytest.fixture
def key(signed_builds: Path) -> Path:
    return signed_builds / "key.pem"


@pytest.fixture
def build(signed_builds: Path, tmp_path: Path) -> Path:
    return copy_checkpoint(signed_builds / "build", tmp_path / "build")


@pytest.fixture
def recorded(build: Path, key: Path) -> Path:
    add(build, report_of(), key=key)
    return build


def test_added_result_is_part_of_what_holds(recorded: Path, key: Path) -> None:
    report = verify(recorded, verifier=open_verifier(key.with_suffix(".pub.pem")), progress=Progress())
    assert errors(recorded, key) == []
    words = next(section.facts for section in report.sections if section.id == "builders-word")
    assert "serving" in str(words["the results"])


def test_added_statement_is_a_test_result_about_the_same_subject(recorded: Path) -> None:
    (line,) = lines_of(recorded, ADDED)
    statement = payload_of(line)
    message = json_format.ParseDict(statement, statement_pb2.Statement())
    assert message.predicate_type == "https://in-toto.io/attestation/test-result/v0.1"
    assert statement["subject"] == payload_of(lines_of(recorded)[0])["subject"]
    assert statement["predicate"]["passedTests"] == ["loading in vLLM", "answers"]


def test_what_was_measured_beside_is_no_test_whatever_it_is_called(build: Path, key: Path) -> None:
    report = report_of()
    add(build, replace(report, sections=(*report.sections, Section("source-served", "beside it", "so"))), key=key)
    (line,) = lines_of(build, ADDED)
    assert payload_of(line)["predicate"]["passedTests"] == ["loading in vLLM", "answers"]


def test_where_things_lay_is_not_told(recorded: Path) -> None:
    assert b"/somewhere" not in (recorded / EVIDENCE / "added/serving.json").read_bytes()
    assert b"/somewhere" not in (recorded / EVIDENCE / "added/serving.md").read_bytes()


def test_result_of_the_same_name_takes_the_place_of_the_earlier(recorded: Path, key: Path) -> None:
    add(recorded, report_of(summary="once more"), key=key)
    assert len(lines_of(recorded, ADDED)) == 1
    assert "once more" in (recorded / EVIDENCE / "added/serving.md").read_text()
    assert errors(recorded, key) == []


def test_results_of_several_names_stand_beside_each_other(recorded: Path, key: Path) -> None:
    add(recorded, report_of(), name="quality", key=key)
    assert len(lines_of(recorded, ADDED)) == 2
    assert errors(recorded, key) == []


def test_what_a_kill_left_of_a_result_does_not_stop_the_next(build: Path, key: Path) -> None:
    (build / EVIDENCE / "added").mkdir()
    (build / EVIDENCE / "added/serving.json").write_text("{")
    assert errors(build, key) != []
    add(build, report_of(), key=key)
    assert errors(build, key) == []


def test_result_of_an_unsigned_build_is_plain(mini_build: Path, tmp_path: Path) -> None:
    build = copy_checkpoint(mini_build, tmp_path / "build")
    add(build, report_of())
    assert json.loads(lines_of(build, ADDED)[0])["subject"]
    assert verify(build, progress=Progress()).holds


def _flip(name: str, at: float = 0.4) -> Callable[[Path, Path], None]:
    return lambda build, _: flip(build / EVIDENCE / name, at=at)


def _removed(name: str) -> Callable[[Path, Path], None]:
    return lambda build, _: (build / EVIDENCE / name).unlink()


def _doubled(build: Path, _: Path) -> None:
    write_lines(build, lines_of(build, ADDED) * 2, ADDED)


def _plain(build: Path, _: Path) -> None:
    payload = json.dumps(payload_of(lines_of(build, ADDED)[0]), ensure_ascii=False, separators=(",", ":"))
    write_lines(build, [payload.encode()], ADDED)


def _signed_by_another(build: Path, key: Path) -> None:
    payload = json.dumps(payload_of(lines_of(build, ADDED)[0]), ensure_ascii=False, separators=(",", ":"))
    write_lines(build, [KeySigner.open(key.with_name("other.pem")).sign_statement(payload.encode())], ADDED)


def _of_another_build(build: Path, key: Path) -> None:
    """The whole result of another build of the same signer."""
    other = copy_checkpoint(key.parent / "other", build.parent / "other")
    add(other, report_of(), key=key)
    _taken_over(build, other)


def _of_an_older_build(build: Path, key: Path) -> None:
    """That of a build of the same bytes: the same subject, but not the same provenance."""
    older = copy_checkpoint(key.parent / "older", build.parent / "older")
    add(older, report_of(), key=key)
    _taken_over(build, older)


def _taken_over(build: Path, other: Path) -> None:
    for name in (ADDED, "added/serving.json", "added/serving.md"):
        rewrite(build / EVIDENCE / name, (other / EVIDENCE / name).read_bytes())


def _better(build: Path, _: Path) -> None:
    edit_document(
        build / EVIDENCE / "added/serving.json", lambda report: report["sections"][0].update(summary="splendid")
    )


def _about_the_build_itself(build: Path, key: Path) -> None:
    """A statement that would bind the build's own report anew."""
    statement = payload_of(lines_of(build, ADDED)[0])
    for item in statement["predicate"]["configuration"]:
        item["name"] = item["name"].replace("serving", "report")
    payload = json.dumps(statement, ensure_ascii=False, separators=(",", ":")).encode()
    write_lines(build, [KeySigner.open(key).sign_statement(payload)], ADDED)


ALTERATIONS: dict[str, tuple[Callable[[Path, Path], None], tuple[str, str]]] = {
    "a bit of its report": (_flip("added/serving.json"), ("evidence/altered", "evidence/added/serving.json")),
    "a bit of its text": (_flip("added/serving.md"), ("evidence/altered", "evidence/added/serving.md")),
    "a bit of its statement": (_flip(ADDED, at=0.0), ("evidence/malformed", f"evidence/{ADDED}:1")),
    "its report removed": (_removed("added/serving.json"), ("evidence/missing", "evidence/added/serving.json")),
    "its statement removed": (_removed(ADDED), ("evidence/unbound", "evidence/added/serving.json")),
    "its statement twice": (_doubled, ("evidence/malformed", f"evidence/{ADDED}:2")),
    "its statement no longer signed": (_plain, ("evidence/malformed", f"evidence/{ADDED}:1")),
    "its statement signed by another": (_signed_by_another, ("evidence/signature", f"evidence/{ADDED}:1")),
    "that of another build": (_of_another_build, ("evidence/subject", f"evidence/{ADDED}:1")),
    "that of an older build of the same bytes": (_of_an_older_build, ("evidence/replayed", f"evidence/{ADDED}:1")),
    "a better word in its report": (_better, ("evidence/altered", "evidence/added/serving.json")),
    "a statement about the build's own report": (
        _about_the_build_itself,
        ("evidence/malformed", f"evidence/{ADDED}:1"),
    ),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_alteration_of_an_added_result_is_found(alteration: str, recorded: Path, key: Path) -> None:
    alter, expected = ALTERATIONS[alteration]
    alter(recorded, key)
    assert expected in errors(recorded, key)


def test_result_that_does_not_hold_is_not_recorded(build: Path, key: Path) -> None:
    finding = Finding("serve/unfilled", Severity.ERROR, "layers.0", "was never filled")
    with pytest.raises(EvidenceError, match="does not hold"):
        add(build, report_of(finding), key=key)
    assert not (build / EVIDENCE / ADDED).exists()


def test_nothing_is_added_to_evidence_that_does_not_hold(build: Path, key: Path) -> None:
    flip(build / "config.json", at=0.5)
    with pytest.raises(EvidenceError, match=r"evidence does not hold: config\.json"):
        add(build, report_of(), key=key)
    assert not (build / EVIDENCE / ADDED).exists()


def test_what_is_added_to_a_signed_build_must_be_signed(build: Path) -> None:
    with pytest.raises(EvidenceError, match="is signed, and what is added must be, too"):
        add(build, report_of())


def test_nothing_signed_is_added_to_an_unsigned_build(mini_build: Path, tmp_path: Path, key: Path) -> None:
    build = copy_checkpoint(mini_build, tmp_path / "unsigned")
    with pytest.raises(EvidenceError, match="is unsigned"):
        add(build, report_of(), key=key)


@pytest.mark.parametrize("name", ["report", "Serving", "../serving", ""])
def test_name_of_a_result_is_its_own(name: str, build: Path, key: Path) -> None:
    with pytest.raises(EvidenceError):
        add(build, report_of(), name=name, key=key)
    assert errors(build, key) == []
