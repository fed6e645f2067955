"""More than a hundred builders who lie about their build, consistently and rightly signed.

Each is refused, or what nobody can know is said to be taken at their word.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.dishonest import Lie, forge
from tests.dishonest_table import LIES
from weighbridge.build import BuildRequest, build
from weighbridge.evidence import FinishedBuild, Signer
from weighbridge.evidence.checks import CHECKS
from weighbridge.evidence.signing import make_key_pair, open_verifier
from weighbridge.evidence.verify import verify
from weighbridge.progress import Progress
from weighbridge.recipe import load_recipe
from weighbridge.report import Report, Severity
from weighbridge.source import open_source
from weighbridge.structure.checkpoint import Checkpoint

WORDS = "what rests on the word of whoever wrote it"
HONEST = Lie("nothing")


@dataclass(frozen=True)
class Workshop:
    """Where liars work: a build that is finished but for its evidence, what it says of itself, and a right key."""

    unfinished: Path
    finished: FinishedBuild
    key: Path

    def judged(self, lie: Lie, target: Path, source: Checkpoint | None = None) -> Report:
        """What the checker says of the build of a liar."""
        forge(lie, self.finished, self.unfinished, target, self.key)
        public = open_verifier(self.key.with_suffix(".pub.pem"))
        return verify(target, verifier=public, source=source, progress=Progress(shown=False))


@pytest.fixture(scope="module")
def workshop(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    place = tmp_path_factory.mktemp("workshop")
    make_key_pair(place / "key.pem", place / "key.pub.pem", curve="P-256")
    kept: list[FinishedBuild] = []

    def keep(directory: Path, finished: FinishedBuild, *, signer: Signer | None, progress: Progress) -> None:
        shutil.copytree(directory, place / "unfinished")
        kept.append(finished)

    request = BuildRequest(loaded=load_recipe("fp8-dynamic"), source=open_source("mini"), output=place / "mini-fp8")
    with patch("weighbridge.evidence.write", keep):  # stops right before the evidence of a real build
        assert build(request, progress=Progress(shown=False)).holds
    return Workshop(place / "unfinished", kept[0], place / "key.pem")


def errors(report: Report) -> set[str]:
    return {finding.rule for finding in report.findings() if finding.severity is Severity.ERROR}


def words(report: Report) -> str:
    (section,) = [section for section in report.sections if section.title == WORDS]
    return " | ".join(map(str, section.facts.values()))


def test_there_are_a_hundred_lies_and_each_is_another() -> None:
    assert len({lie.what for lie in LIES}) == len(LIES) >= 100
    assert [lie.what for lie in LIES if bool(lie.rule) == bool(lie.word)] == []


@pytest.mark.parametrize("source", [None, "mini"], ids=["alone", "beside its source"])
def test_honest_builder_is_believed(source: str | None, workshop: Workshop, tmp_path: Path) -> None:
    given = None if source is None else open_source(source)
    report = workshop.judged(HONEST, tmp_path / "build", given)
    assert errors(report) == set()
    assert not [finding for finding in report.findings() if finding.severity is Severity.WARNING]


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.rule], ids=lambda lie: lie.what)
def test_lie_is_refused(lie: Lie, workshop: Workshop, tmp_path: Path) -> None:
    found = errors(workshop.judged(lie, tmp_path / "build"))
    assert [rule for rule in found if rule.startswith(lie.rule)] != [], found


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.word], ids=lambda lie: lie.what)
def test_what_nobody_can_know_is_told_as_the_builder_s_word(lie: Lie, workshop: Workshop, tmp_path: Path) -> None:
    report = workshop.judged(lie, tmp_path / "build")
    assert errors(report) == set(), report.verdict
    assert lie.word in words(report)
    assert not [title for title in CHECKS if any(part.title == title and lie.word in part.summary for part in report.sections)]


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.seen], ids=lambda lie: lie.what)
def test_lie_is_refused_beside_the_source(lie: Lie, workshop: Workshop, tmp_path: Path) -> None:
    report = workshop.judged(lie, tmp_path / "build", open_source("mini"))
    assert [rule for rule in errors(report) if rule.startswith(lie.seen)] != []


