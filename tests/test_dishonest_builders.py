"""More than a hundred builders who lie about their build, consistently and rightly signed.

Each is refused, or what nobody can know is said to be taken at their word.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from tests.dishonest import Lie, Workshop, errors, open_workshop
from tests.dishonest_table import LIES
from weighbridge.base.identity import sampled
from weighbridge.base.source import open_source
from weighbridge.checkpoint.model import EVIDENCE
from weighbridge.errors import StructureError
from weighbridge.evidence import statements
from weighbridge.evidence.case import MOST_BYTES, open_case
from weighbridge.evidence.checks import CHECKS
from weighbridge.evidence.signing import open_verifier
from weighbridge.evidence.source import check_source
from weighbridge.evidence.write import FILES, TENSORS
from weighbridge.progress import Progress
from weighbridge.report import Report, Severity

HONEST = Lie("nothing")


@pytest.fixture(scope="module")
def workshop(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("workshop"))


def words(report: Report) -> str:
    (section,) = [section for section in report.sections if section.id == "builders-word"]
    return " | ".join(map(str, section.facts.values()))


def test_there_are_a_hundred_lies_and_each_is_another() -> None:
    assert len({lie.what for lie in LIES}) == len(LIES) >= 100
    assert [lie.what for lie in LIES if bool(lie.rule) == bool(lie.word)] == []


@pytest.mark.parametrize("source", [None, "mini"], ids=["alone", "beside its source"])
def test_honest_builder_is_believed(source: str | None, workshop: Workshop, tmp_path: Path) -> None:
    given = None if source is None else open_source(source)
    report = workshop.checked(workshop.forged(HONEST, tmp_path / "build"), given)
    assert errors(report) == set()
    assert not [finding for finding in report.findings() if finding.severity is Severity.WARNING]


def test_alone_a_proven_base_is_taken_at_the_word_of_its_digests_and_beside_its_source_it_is_not(
    workshop: Workshop, tmp_path: Path
) -> None:
    build = workshop.forged(HONEST, tmp_path / "build")
    alone, beside = (words(workshop.checked(build, given)) for given in (None, open_source("mini")))
    assert "no --source was given to hash" in alone and "no --source was given to hash" not in beside
    assert "the sizes that evidence/source.yaml says" not in alone + beside


def test_files_of_a_proven_base_that_no_lock_has_digests_of_are_the_builder_s_word(
    workshop: Workshop, tmp_path: Path
) -> None:
    build = workshop.forged(HONEST, tmp_path / "build")
    case, _ = open_case(
        build, open_verifier(workshop.key.with_suffix(".pub.pem")), None, progress=Progress(shown=False)
    )
    lock, said = case.identity.lock, "that these files are the base's own: "
    assert lock is not None and f"{said}README.md {UNLISTED}" in check_source(case).words
    known = {name: fact for name, fact in lock.files.items() if name != "tokenizer.json"}
    known["config.json"] = replace(known["config.json"], sha256=None)
    case.identity = replace(case.identity, lock=replace(lock, files=known))
    assert f"{said}README.md, config.json, tokenizer.json {UNLISTED}" in check_source(case).words


ON_TRUST = "that the source has the tensors, the config.json and the sizes that evidence/source.yaml says"
HANDED = "what was read: the source that was given identity unproven"
UNLISTED = "(no lock has their digests)"


@pytest.mark.parametrize(
    ("proven", "source", "said"),
    [(True, False, {UNLISTED}), (True, True, set()), (False, False, {ON_TRUST}), (False, True, {HANDED})],
    ids=["proven, alone", "proven, beside its source", "unproven, alone", "unproven, beside its source"],
)
def test_what_rests_on_the_word_follows_from_what_is_proven_and_what_is_at_hand(
    proven: bool, source: bool, said: set[str], workshop: Workshop, tmp_path: Path
) -> None:
    build = workshop.forged(HONEST, tmp_path / "build")
    verifier = open_verifier(workshop.key.with_suffix(".pub.pem"))
    case, _ = open_case(build, verifier, open_source("mini") if source else None, progress=Progress(shown=False))
    if not proven:
        case.identity = sampled(case.identity.lock)
    found = " | ".join(check_source(case).words)
    assert {sentence for sentence in (ON_TRUST, HANDED, UNLISTED) if sentence in found} == said


@pytest.mark.parametrize(
    ("size", "lists", "others"), [(MOST_BYTES, True, True), (MOST_BYTES + 1, True, False)], ids=["largest", "larger"]
)
def test_lists_alone_may_be_larger_than_other_files(
    size: int, lists: bool, others: bool, workshop: Workshop, tmp_path: Path
) -> None:
    build = workshop.forged(HONEST, tmp_path / "build")
    case, _ = open_case(
        build, open_verifier(workshop.key.with_suffix(".pub.pem")), None, progress=Progress(shown=False)
    )
    for name, read in {FILES: lists, TENSORS: lists, "recipe.yaml": others, "report.json": others}.items():
        os.truncate(build / EVIDENCE / name, size)
        with nullcontext() if read else pytest.raises(StructureError, match="is larger than"):
            assert len(case.read(name)) == size


def test_provenance_binds_no_results(workshop: Workshop, tmp_path: Path) -> None:
    build = workshop.forged(HONEST, tmp_path / "build")
    case, _ = open_case(
        build, open_verifier(workshop.key.with_suffix(".pub.pem")), None, progress=Progress(shown=False)
    )
    assert [bool(claim.bound) for claim in case.claims] == [
        isinstance(claim.statement, statements.TestResultStatement) and bool(claim.statement.predicate.configuration)
        for claim in case.claims
    ]


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.rule], ids=lambda lie: lie.what)
def test_lie_is_refused(lie: Lie, workshop: Workshop, tmp_path: Path) -> None:
    found = errors(workshop.checked(workshop.forged(lie, tmp_path / "build")))
    assert [rule for rule in found if rule.startswith(lie.rule)] != [], found


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.word], ids=lambda lie: lie.what)
def test_what_nobody_can_know_is_told_as_the_builder_s_word(lie: Lie, workshop: Workshop, tmp_path: Path) -> None:
    report = workshop.checked(workshop.forged(lie, tmp_path / "build"))
    assert errors(report) == set(), report.verdict
    assert lie.word in words(report)
    checked = {check.id for check in CHECKS}
    assert not [part.id for part in report.sections if part.id in checked and lie.word in part.summary]


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.seen], ids=lambda lie: lie.what)
def test_lie_is_refused_beside_the_source(lie: Lie, workshop: Workshop, tmp_path: Path) -> None:
    report = workshop.checked(workshop.forged(lie, tmp_path / "build"), open_source("mini"))
    assert [rule for rule in errors(report) if rule.startswith(lie.seen)] != []


@pytest.mark.campaign
@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.what)
def test_what_is_refused_alone_is_refused_beside_the_source_too(lie: Lie, workshop: Workshop, tmp_path: Path) -> None:
    report = workshop.checked(workshop.forged(lie, tmp_path / "build"), open_source("mini"))
    assert bool(errors(report)) == bool(lie.rule or lie.seen), report.verdict
