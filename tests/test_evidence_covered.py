"""Every file of a checkpoint's directory is covered by a digest, or named in the report of its evidence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import copy_checkpoint
from weighbridge.evidence.signing import open_verifier
from weighbridge.evidence.verify import verify
from weighbridge.progress import Progress
from weighbridge.report import Report, Severity

THEIR_OWN = (
    *(
        ".git/config",
        ".git/hooks/post-checkout",
        ".git/objects/ab/cd",
        ".git/objects/pack/a.pack",
        ".git/lfs/objects/a",
    ),
    *(".git/a b", ".git/.git/x", ".gitattributes", ".cache/huggingface/download/config.json.metadata"),
)
"""What git and the hub's client keep in a copy that they made: no digest covers it, and it is no fault."""
NOBODYS = (
    *(".gitignore", ".github/workflows/a.yml", ".gitattributes/x", ".git2/config", ".GIT/config", "more/.git/config"),
    *(".gitmodules", ".cache/a", ".cache/huggingface2/a", ".huggingface/a", ".hidden", "evidence2/a"),
    *("evidence/.git/config", "evidence/.gitattributes", "evidence/added/a.json", "evidence/a/b", "modeling.py"),
)
"""What has no business there."""


def checked(build: Path, key: Path) -> Report:
    return verify(build, verifier=open_verifier(key), progress=Progress(shown=False))


def put(build: Path, name: str) -> None:
    (build / name).parent.mkdir(parents=True, exist_ok=True)
    (build / name).write_text("x")


@pytest.fixture
def build(signed_builds: Path, tmp_path: Path) -> Path:
    return copy_checkpoint(signed_builds / "build", tmp_path / "build")


def test_each_file_that_no_digest_covers_is_named(build: Path, signed_builds: Path) -> None:
    for name in THEIR_OWN:
        put(build, name)
    report = checked(build, signed_builds / "key.pub.pem")
    assert {finding.where for finding in report.findings() if finding.rule == "evidence/uncovered"} == set(THEIR_OWN)
    assert report.holds
    words = str(report.sections[-1].facts["the files"])
    assert [name for name in THEIR_OWN if f"what {name} holds" not in words] == []


@pytest.mark.parametrize("name", NOBODYS)
def test_file_that_has_no_business_there_is_refused_by_name(name: str, build: Path, signed_builds: Path) -> None:
    put(build, name)
    report = checked(build, signed_builds / "key.pub.pem")
    errors = [finding for finding in report.findings() if finding.severity is Severity.ERROR]
    assert [finding for finding in errors if name in finding.where or name in finding.message] != []


def test_link_in_the_place_of_what_git_keeps_is_refused(build: Path, signed_builds: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (build / ".git").symlink_to(tmp_path / "elsewhere")
    report = checked(build, signed_builds / "key.pub.pem")
    assert ("evidence/link", ".git") in {(finding.rule, finding.where) for finding in report.findings()}
