"""Progress where there is no terminal: a line from time to time, and what a program is told."""

from __future__ import annotations

import re
import time

import pytest

from weighbridge.progress import Progress
from weighbridge.progress.shown import shown_as


def until(capsys: pytest.CaptureFixture[str], lines: int) -> list[str]:
    """What is said, once it is so many lines."""
    said = ""
    while said.count("\n") < lines:
        time.sleep(0.01)
        said += capsys.readouterr().err
    return said.splitlines()


def test_stage_says_how_far_it_is_and_how_long_yet(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(every=0.05)
    with progress.stage("quantizing", 4_000_000):
        progress.advance(1_000_000)
        first, *_ = until(capsys, 1)
    assert re.fullmatch(r"quantizing: 1\.00MB of 4\.00MB, \d+ s so far, about \d+ s left", first)


def test_stage_of_which_nobody_knows_the_end_says_how_long_it_took_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(every=0.05).stage("calibrating with 512 samples", 0):
        first, *_ = until(capsys, 1)
    assert re.fullmatch(r"calibrating with 512 samples: \d+ s so far", first)


def test_nothing_is_said_of_a_stage_that_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(every=0.05).stage("quantizing", 10):
        until(capsys, 1)
    time.sleep(0.2)
    capsys.readouterr()
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("shown", [False, True])
def test_who_says_whether_there_is_a_bar_gets_no_lines(shown: bool) -> None:
    assert Progress(shown=shown).every is None


def test_who_wants_none_gets_no_lines() -> None:
    with shown_as("none"):
        assert Progress().every is None
    assert Progress().every is not None


def test_program_is_told_each_step() -> None:
    told: list[tuple[str, int, int]] = []
    progress = Progress(shown=False, told=lambda *step: told.append(step))
    with progress.stage("hashing", 10):
        progress.advance(4)
        progress.advance(6)
    assert told == [("hashing", 4, 10), ("hashing", 10, 10)]


def test_stage_within_a_stage_ends_alone() -> None:
    progress = Progress(shown=False)
    with progress.stage("all", 10):
        with progress.stage("a part", 4):
            progress.advance(4)
        progress.advance(10)
    assert [stage.title for stage in progress.stages] == ["a part", "all"]
