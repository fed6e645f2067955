"""Evidence of a build that was audited, too, or that was killed while it wrote its evidence; written by hand here."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.checkpoints import copy_checkpoint
from tests.evidence import EVIDENCE, lines_of
from weighbridge.account import Base
from weighbridge.base.identity import digest_files, identify
from weighbridge.base.references import base_of_source, find_references
from weighbridge.base.source import open_source
from weighbridge.checkpoint.model import Origin, open_directory
from weighbridge.checks.expectation import values_of
from weighbridge.checks.validation import validate
from weighbridge.evidence import MAIN_REPORT, FinishedBuild, build_verdict, licence_section, write
from weighbridge.evidence.finished import called
from weighbridge.evidence.subject import hash_shards
from weighbridge.evidence.verify import verify
from weighbridge.evidence.write import source_digests
from weighbridge.planning import make_plan
from weighbridge.progress import Progress
from weighbridge.recipe import load_recipe
from weighbridge.report import Finding, Report, Section, Severity

AUDIT = Report(
    "audit",
    "the build",
    "derives from its base",
    (
        Section("quantized-weights", "its quantized weights", "185 modules: 185 exact"),
        Section(
            "kept-tensors",
            "its kept tensors",
            "one is odd",
            findings=(Finding("audit/odd", Severity.WARNING, "model.norm.weight", "is odd"),),
        ),
    ),
    metrics={"judged_exact_count": 1},
)


def test_source_is_stated_with_all_that_says_who_it_is(mini: Path) -> None:
    source = open_directory(mini)
    stated = source_digests(source, {}, progress=Progress())
    assert stated.keys() >= {*source.shards, "config.json", "model.safetensors.index.json", "tokenizer.json"}
    known = dict.fromkeys(source.shards, "0" * 64)
    assert source_digests(source, known, progress=Progress()) == {**stated, **known}


def test_source_is_called_by_its_hub_id_wherever_it_was_put(mini: Path) -> None:
    source = open_directory(mini)
    fetched = replace(source, origin=Origin(repository="org/name", revision="0" * 40))
    assert (called(fetched), called(source)) == ("org/name", mini.name)


@pytest.fixture
def unfinished(mini_build: Path, mini: Path, tmp_path: Path) -> Path:
    """A build as it is before evidence is written: shards, config, and what was carried over."""
    copy = copy_checkpoint(mini_build, tmp_path / "build")
    for path in (copy / EVIDENCE).iterdir():
        path.unlink()
    (copy / EVIDENCE).rmdir()
    (copy / "README.base.md").replace(copy / "README.md")
    return copy


def finished_in(directory: Path) -> FinishedBuild:
    """The finished of the build in a directory, with an audit beside its validation."""
    built = open_directory(directory)
    found = hash_shards(directory, built.shards, progress=Progress())
    shards, tensors = found.files, found.tensors
    source = open_source("mini")
    loaded = load_recipe("fp8-dynamic")
    plan = make_plan(loaded, source)
    digests = digest_files(source, [*source.shards, *source.files], progress=Progress())
    lock = base_of_source(source, preferred=loaded.recipe.base.model)
    identity = identify(source.shards, lock, digests)
    references = find_references(loaded, lock)
    context = [identity.section(source), *values_of(built, plan), licence_section(source, loaded.recipe)]
    base = Base(source, "mini", listed=True)
    report = validate(built, plan=plan, references=references, base=base, context=context)
    held = [section for section in report.sections if section.id == "against-reference"]
    verdict = build_verdict(built.label, len(built.structure), held, "mini", identity)
    return FinishedBuild(
        plan=plan,
        source=source,
        identity=identity,
        references=references,
        reports={MAIN_REPORT: replace(report, command="build", verdict=verdict), "audit": AUDIT},
        shard_digests=shards,
        tensor_digests=tensors,
        engine="streaming",
        device="cpu",
        shard_size=5_000_000_000,
        started=datetime.now(UTC),
    )


def test_audit_is_a_statement_of_its_own_and_stands_in_the_card(unfinished: Path) -> None:
    write(unfinished, finished_in(unfinished), progress=Progress())
    audit = json.loads(lines_of(unfinished, "statements.jsonl")[1])["predicate"]
    assert (audit["result"], audit["passedTests"], audit["warnedTests"]) == (
        "WARNED",
        ["its quantized weights"],
        ["its kept tensors"],
    )
    card = (unfinished / "README.md").read_text()
    assert "| audit | its quantized weights | passed | 185 modules: 185 exact |" in card
    assert "| audit | its kept tensors | passed with warnings | one is odd |" in card


def test_audited_build_holds_and_the_audit_is_said_to_be_taken_at_its_word(unfinished: Path) -> None:
    write(unfinished, finished_in(unfinished), progress=Progress())
    report = verify(unfinished, progress=Progress())
    assert report.holds
    assert "audit" in str(report.sections[-1].facts["the results"])


def test_what_a_killed_run_left_of_its_evidence_is_written_anew(unfinished: Path, mini: Path) -> None:
    write(unfinished, finished_in(unfinished), progress=Progress())
    (unfinished / EVIDENCE / "leftover.json").write_text("{}")
    (unfinished / "README.md").write_bytes((mini / "README.md").read_bytes())  # carried over again
    write(unfinished, finished_in(unfinished), progress=Progress())
    assert verify(unfinished, progress=Progress()).holds


def test_shards_are_not_hashed_again(unfinished: Path) -> None:
    finished = finished_in(unfinished)
    progress = Progress()
    write(unfinished, finished, progress=progress)
    weights = sum(path.stat().st_size for path in unfinished.glob("*.safetensors"))
    assert sum(stage.total_bytes for stage in progress.stages) < weights / 10
