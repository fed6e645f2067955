"""More than a hundred builders who lie about their build, consistently and rightly signed.

Each is refused, or what nobody can know is said to be taken at their word.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dishonest import Lie, Workshop, errors, open_workshop
from tests.dishonest_table import LIES
from weighbridge.evidence.checks import CHECKS
from weighbridge.report import Report, Severity
from weighbridge.source import open_source

WORDS = "what rests on the word of whoever wrote it"
HONEST = Lie("nothing")


@pytest.fixture(scope="module")
def workshop(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("workshop"))


def words(report: Report) -> str:
    (section,) = [section for section in report.sections if section.title == WORDS]
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


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.rule], ids=lambda lie: lie.what)
def test_lie_is_refused(lie: Lie, workshop: Workshop, tmp_path: Path) -> None:
    found = errors(workshop.checked(workshop.forged(lie, tmp_path / "build")))
    assert [rule for rule in found if rule.startswith(lie.rule)] != [], found


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.word], ids=lambda lie: lie.what)
def test_what_nobody_can_know_is_told_as_the_builder_s_word(lie: Lie, workshop: Workshop, tmp_path: Path) -> None:
    report = workshop.checked(workshop.forged(lie, tmp_path / "build"))
    assert errors(report) == set(), report.verdict
    assert lie.word in words(report)
    assert not [
        title for title in CHECKS if any(part.title == title and lie.word in part.summary for part in report.sections)
    ]


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.seen], ids=lambda lie: lie.what)
def test_lie_is_refused_beside_the_source(lie: Lie, workshop: Workshop, tmp_path: Path) -> None:
    report = workshop.checked(workshop.forged(lie, tmp_path / "build"), open_source("mini"))
    assert [rule for rule in errors(report) if rule.startswith(lie.seen)] != []


@pytest.mark.campaign
@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.what)
def test_what_is_refused_alone_is_refused_beside_the_source_too(lie: Lie, workshop: Workshop, tmp_path: Path) -> None:
    report = workshop.checked(workshop.forged(lie, tmp_path / "build"), open_source("mini"))
    assert bool(errors(report)) == bool(lie.rule or lie.seen), report.verdict
