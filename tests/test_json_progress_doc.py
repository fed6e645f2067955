"""``--progress json``: every line of standard error is an event of the published schema, whatever goes wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.conftest import ROOT, Command, Outcome, call_main, environment
from tests.test_json_report_doc import strict
from weighbridge.cli import schema, validate
from weighbridge.cli.run import command
from weighbridge.cli.schema import PLACES, schema_text
from weighbridge.progress import Progress
from weighbridge.progress.shown import NOW, shown_as

SCHEMA = PLACES["progress"]
DOCUMENT = (ROOT / "docs/reference/json-progress.md").read_text()
RECIPE = "fp8-dynamic"


def events(text: str) -> list[dict[str, Any]]:
    """What is told, each held against the schema."""
    found = [json.loads(line) for line in text.splitlines()]
    for event in found:
        Draft202012Validator(strict(json.loads(SCHEMA.read_text()))).validate(event)
    return found


def told(outcome: Outcome, kind: str) -> list[str]:
    return [event["text"] for event in events(outcome.err) if event["event"] == kind]


def test_published_schema_is_that_of_the_types() -> None:
    assert SCHEMA.read_text() == schema_text("progress"), "weighbridge schema progress writes it anew"


def test_schema_is_one() -> None:
    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))


def test_example_of_the_page_keeps_to_it() -> None:
    (example,) = re.findall(r"^```json\n(.*?)^```$", DOCUMENT, flags=re.M | re.S)
    assert {event["event"] for event in events(example)} == {"begin", "advance", "end", "message", "error"}


def test_each_stage_of_a_build_begins_advances_and_ends(run_build: Command, tmp_path: Path) -> None:
    output = tmp_path / "build"
    outcome = run_build(RECIPE, "--model", "mini", "--output", output, "--audit", "--progress", "json")
    assert (outcome.code, outcome.out.count("PASS  ")) == (0, 1)
    running: list[dict[str, Any]] = []
    stages = []
    for event in events(outcome.err):
        if event["event"] == "begin":
            assert (event["done"], event["share"], event["seconds_left"]) == (0, 0.0 if event["total"] else None, None)
            running.append(event)
            stages.append(event["stage"])
            continue
        assert (event["stage"], event["total"]) == (running[-1]["stage"], running[-1]["total"])
        assert event["done"] >= running[-1]["done"]
        running[-1] = event
        if event["event"] == "end":
            assert event["done"] == (event["total"] or 0)
            running.pop()
    assert running == []
    assert {"quantizing", "auditing", "hashing"} <= {*stages}


@pytest.mark.parametrize(
    "arguments",
    [("--source", "mini", "--sample", "50"), ("--evidence", "--source", "mini"), ("--recipe", RECIPE, "--verbose")],
    ids=["audit", "evidence", "verbose"],
)
def test_every_line_of_a_validation_is_an_event(
    arguments: tuple[str, ...], mini_build: Path, run_validate: Command
) -> None:
    outcome = run_validate(mini_build, *arguments, "--progress", "json")
    assert outcome.code == 0, outcome.err
    assert events(outcome.err)


def test_a_rebuild_and_an_evaluation_tell_theirs(mini_build: Path) -> None:
    for name, *arguments in (
        ("reproduce", mini_build, "--model", "mini"),
        ("evaluate", mini_build, "--source", "mini", "--windows", "2"),
    ):
        command = [sys.executable, "-m", f"weighbridge.cli.{name}", *map(str, arguments), "--progress", "json"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert {"begin", "end"} <= {event["event"] for event in events(done.stderr)}


ERRORS = {
    "wrong arguments": (("--modle", "x"), "unrecognized arguments: --modle x; did you mean --model?"),
    "an option that is none": (("--engine", "x"), "argument --engine: invalid choice: 'x'"),
    "an option without effect": (("--plan", "--audit"), "the command: --audit has no effect beside --plan"),
    "a source that is not there": (("--model", "./nowhere"), "nowhere"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.parametrize("spelled", [("--progress", "json"), ("--progress=json",)], ids=" ".join)
def test_error_is_an_event(case: str, spelled: tuple[str, ...], run_build: Command, tmp_path: Path) -> None:
    arguments, said = ERRORS[case]
    outcome = run_build(RECIPE, *arguments, *spelled, cwd=tmp_path)
    (sentence,) = told(outcome, "error")
    assert (outcome.code, outcome.out) == (2, "")
    assert said in sentence


def test_what_nobody_foresaw_is_told_with_where_it_arose(mini_build: Path) -> None:
    def broken(*_: object) -> int:
        raise ZeroDivisionError("a mistake")

    main = partial(command, validate._parser, broken)
    outcome = call_main(main, [mini_build, "--progress", "json"])
    assert (outcome.code, told(outcome, "error")) == (
        1,
        ["ZeroDivisionError: a mistake; this is a mistake of this program"],
    )
    assert any("in broken" in line for line in told(outcome, "message"))
    with pytest.raises(ZeroDivisionError):
        call_main(main, [mini_build])


def test_what_a_library_writes_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_as("json"):
        sys.stderr.write("half a ")
        print("line\n\n  and \x1b[2J another", file=sys.stderr)  # noqa: T201
        sys.stderr.write("no end")
    lines = events(capsys.readouterr().err)
    assert [line["text"] for line in lines] == ["half a line", "  and \x1b[2J another", "no end"]
    sys.stderr.write("as before")
    assert capsys.readouterr().err == "as before"


def test_a_stage_that_stops_ends_with_less_than_its_total(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_as("json"), pytest.raises(ValueError, match="stop"), Progress().stage("reading", 1000):
        raise ValueError("stop")
    *_, last = events(capsys.readouterr().err)
    assert (last["event"], last["done"], last["total"]) == ("end", 0, 1000)


def test_a_small_step_is_told_with_the_next_whole_percent_or_after_a_while(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_as("json"):
        progress = Progress()
        with progress.stage("reading", 10_000):
            for _ in range(10_000):
                progress.advance(1)
    found = events(capsys.readouterr().err)
    assert [event["done"] for event in found] == [0, *range(100, 10_001, 100), 10_000]


def test_who_no_longer_reads_does_not_stop_the_work(mini_build: Path) -> None:
    command = [sys.executable, str(ROOT / "validate.py"), str(mini_build), "--evidence", "--progress", "json"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None and process.stdout is not None
        process.stderr.close()
        assert b"PASS" in process.stdout.read()
    assert process.returncode == 0


# what is given -> how progress is shown
WAYS = {
    (): "auto",
    ("--quiet",): "none",
    ("--progress", "plain"): "plain",
    ("--quiet", "--progress", "json"): "json",
    ("--verbose", "--progress", "none"): "none",
}


@pytest.mark.parametrize("arguments", WAYS, ids=" ".join)
def test_quiet_shows_no_progress_unless_it_is_asked_for(arguments: tuple[str, ...]) -> None:
    ways: list[str] = []

    def noted(_: object) -> int:
        ways.append(NOW.way)
        return 0

    assert call_main(partial(command, schema._parser, noted), ["report", *arguments]).code == 0
    assert ways == [WAYS[arguments]]


def test_quiet_and_events_go_together(run_validate: Command, mini_build: Path) -> None:
    outcome = run_validate(mini_build, "--evidence", "--quiet", "--progress", "json")
    assert outcome.out.startswith("PASS  ")
    assert events(outcome.err)
