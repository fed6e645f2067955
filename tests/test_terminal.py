"""What stands on a terminal, and what does not get into a pipe: colour, bars, and how much is said."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MINI_BUILD_LOCK, ROOT, Command, environment
from tests.hub_server import serve
from weighbridge.cli.log import logged, without_secrets
from weighbridge.report import Finding, Report, Section, Severity
from weighbridge.report.present import as_text
from weighbridge.report.terminal import tinted

SGR = re.compile(r"\x1b\[[0-9;]*m")
BAR = re.compile(r"\d+%\|.*\| [\d.]+\w*/[\d.]+\w* \[\d\d:\d\d<\d\d:\d\d, +[\d.]+\w*B/s\]")
RECIPE = "fp8-dynamic"


def on_terminal(script: str, *arguments: str | Path, columns: int = 80, **variables: str) -> tuple[int, str]:
    """Run a script of the repository on a terminal of its own; gives the exit code and all that was written there."""
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    # Every step is shown, however short a time after the last.
    given = environment({"TERM": "xterm", "TQDM_MININTERVAL": "0", **variables})
    given = {name: value for name, value in given.items() if name != "NO_COLOR" or name in variables}
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=given, close_fds=True)
    os.close(terminal)
    written = b"".join(read_all(master))
    os.close(master)
    return process.wait(), written.decode().replace("\r\n", "\n")


def read_all(master: int) -> Iterator[bytes]:
    while True:
        try:
            block = os.read(master, 65536)
        except OSError:  # the last who had the terminal has closed it
            return
        if not block:
            return
        yield block


# --- colour -----------------------------------------------------------------------------------------------------------


def test_colour_changes_no_character_of_what_is_said(run_validate: Command) -> None:
    code, shown = on_terminal("validate.py", MINI_BUILD_LOCK, "--reference", MINI_BUILD_LOCK)
    piped = run_validate(MINI_BUILD_LOCK, "--reference", MINI_BUILD_LOCK, env={"COLUMNS": "80"})
    assert SGR.search(shown)
    assert (code, SGR.sub("", shown)) == (piped.code, piped.out)


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "TERM=dumb"])
def test_no_colour_where_none_is_wanted(variables: dict[str, Any]) -> None:
    assert "\x1b" not in on_terminal("validate.py", MINI_BUILD_LOCK, **variables)[1]
    assert "\x1b" not in on_terminal("validate.py", "nowhere", **variables)[1]


def test_an_empty_no_color_asks_for_nothing() -> None:
    assert "\x1b[32mPASS\x1b[0m" in on_terminal("validate.py", MINI_BUILD_LOCK, NO_COLOR="")[1]


def test_errors_are_tinted_on_standard_error() -> None:
    assert on_terminal("validate.py", "nowhere")[1].startswith("\x1b[31merror:\x1b[0m nowhere: ")


def test_report_file_has_no_colour(tmp_path: Path) -> None:
    on_terminal("validate.py", MINI_BUILD_LOCK, "--report", tmp_path / "report.txt")
    assert "PASS" in (tmp_path / "report.txt").read_text()
    assert "\x1b" not in (tmp_path / "report.txt").read_text()


class Terminal:
    """A stream that says that it is one."""

    def isatty(self) -> bool:
        return True


def test_marks_of_every_severity_are_tinted_and_a_strangers_escapes_are_not_let_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("COLUMNS", "80"), ("NO_COLOR", ""), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    findings = tuple(Finding("a/rule", severity, "\x1b[2Jw", "\x1b[31mso") for severity in Severity)
    text = as_text(Report("validate", "here", "\x1b]0;title\x07", (Section("structure", "a", "b", findings=findings),)))
    shown = tinted(text, Terminal())  # type: ignore[arg-type]
    assert SGR.sub("", shown) == text
    assert SGR.findall(shown) == [*["\x1b[31m", "\x1b[0m"] * 2, "\x1b[33m", "\x1b[0m", "\x1b[31m", "\x1b[0m"]
    assert "\x1b" not in text


# --- progress ---------------------------------------------------------------------------------------------------------


def shown_lines(written: str) -> list[str]:
    """What stood in a line of the terminal at some time."""
    return re.split(r"[\r\n]", SGR.sub("", written))


@pytest.fixture(scope="module")
def built_on_terminal(tmp_path_factory: pytest.TempPathFactory, mini: Path) -> str:
    """What a build of the miniature shows on a terminal of 80 columns."""
    output = tmp_path_factory.mktemp("terminal") / "build"
    code, written = on_terminal("build.py", RECIPE, "--model", "mini", "--output", output, "--audit", "--workers", "1")
    assert code == 0
    return written


def test_build_shows_how_far_how_fast_and_how_long_yet(built_on_terminal: str) -> None:
    assert [line for line in shown_lines(built_on_terminal) if line.startswith("quantizing:") and BAR.search(line)]


@pytest.mark.parametrize("stage", ["quantizing", "hashing the source", "auditing", "hashing"])
def test_each_stage_of_a_build_is_announced(stage: str, built_on_terminal: str) -> None:
    assert any(line.startswith(f"{stage}:   0%") for line in shown_lines(built_on_terminal))


def test_a_build_keeps_eighty_columns(built_on_terminal: str) -> None:
    lines = [line for line in shown_lines(built_on_terminal) if "/" not in line]  # names are not broken
    assert max(map(len, lines)) <= 80


def test_nothing_of_the_bars_is_left_when_a_build_is_done(built_on_terminal: str) -> None:
    assert not any("%|" in line for line in SGR.sub("", built_on_terminal).split("\n")[1:])


def test_a_finished_build_says_what_to_do_next(built_on_terminal: str) -> None:
    *_, last = SGR.sub("", built_on_terminal).splitlines()
    assert re.fullmatch(r"next: python validate\.py \S+/build --evidence", last)


def test_evidence_shows_that_it_is_hashed(mini_build: Path) -> None:
    _, written = on_terminal("validate.py", mini_build, "--evidence", "--source", "mini")
    for stage in ("hashing tensors", "hashing", "hashing the source"):
        assert f"\r{stage}:   0%|" in written


def test_download_shows_how_far_how_fast_and_how_long_yet(mini: Path, tmp_path: Path) -> None:
    with serve({"org/mini": mini}) as hub:
        variables: dict[str, Any] = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        _, written = on_terminal("build.py", RECIPE, "--model", "org/mini", "--output", tmp_path / "build", **variables)
    bars = [line for line in shown_lines(written) if line.startswith("downloading:")]
    assert bars[0].startswith("downloading:   0%|")
    assert bars[-1].startswith("downloading: 100%|")
    assert BAR.search(bars[-1])
    assert not any("safetensors:" in line for line in shown_lines(written)), "the client's own bars"


def test_a_narrow_terminal_gets_a_narrow_bar(mini_build: Path) -> None:
    _, written = on_terminal("validate.py", mini_build, "--evidence", columns=60)
    bars = [line for line in shown_lines(written) if "%|" in line]
    assert bars
    assert max(map(len, bars)) <= 60


def test_nothing_of_all_that_is_in_a_pipe(run_build: Command, tmp_path: Path) -> None:
    answer = run_build(RECIPE, "--model", "mini", "--output", tmp_path / "build", "--audit")
    assert (answer.code, answer.err) == (0, "")
    assert "\x1b" not in answer.out
    assert "next:" not in answer.out


# --- --quiet and --verbose --------------------------------------------------------------------------------------------


def test_quiet_says_the_verdict_alone(run_validate: Command) -> None:
    whole = run_validate(MINI_BUILD_LOCK)
    answer = run_validate(MINI_BUILD_LOCK, "--quiet")
    assert answer.out.startswith("PASS  ")
    assert whole.out.endswith(f"\n{answer.out}")
    assert (answer.code, answer.err) == (0, "")


def test_quiet_shows_no_bar_and_no_next_step_on_a_terminal(mini: Path, tmp_path: Path) -> None:
    code, written = on_terminal("build.py", RECIPE, "--model", "mini", "--output", tmp_path / "build", "--quiet")
    assert code == 0
    assert SGR.sub("", written).startswith("PASS  ")
    assert "next:" not in written


def test_quiet_leaves_other_forms_files_errors_and_exit_codes_as_they_are(
    run_validate: Command, tmp_path: Path
) -> None:
    whole = run_validate(MINI_BUILD_LOCK, "--format", "json").out
    assert run_validate(MINI_BUILD_LOCK, "--format", "json", "--quiet").out == whole
    wanting = run_validate(MINI_BUILD_LOCK, "--reference", ROOT / "references/weighbridge/gemma-4-mini.yaml", "--quiet")
    assert (wanting.code, wanting.out[:6]) == (1, "FAIL  ")
    assert run_validate("nowhere", "--quiet").err == run_validate("nowhere").err
    run_validate(MINI_BUILD_LOCK, "--quiet", "--report", tmp_path / "report.txt")
    assert (tmp_path / "report.txt").read_text().endswith(run_validate(MINI_BUILD_LOCK).out)


def test_verbose_says_on_standard_error_what_is_done(run_build: Command, tmp_path: Path) -> None:
    answer = run_build(RECIPE, "--model", "mini", "--output", tmp_path / "build", "--verbose", "--device", "cpu")
    said = [re.sub(r"^ +[\d.]+ s  ", "", line) for line in answer.err.splitlines()]
    for pattern in (
        rf"recipe .*{RECIPE}\.yaml",
        r"\d+ pieces, \d+ workers, on cpu",
        r"quantizing: [\d.]+MB begun",
        r"quantizing: [\d.]+MB in [\d.]+ s, [\d.]+\wB/s",
        r"the build is whole: .*/build",
        r"exit code 0 after [\d.]+ s",
    ):
        assert any(re.fullmatch(pattern, line) for line in said), pattern
    assert answer.out.startswith("base: mini\n")


def test_quiet_and_verbose_exclude_each_other(run_validate: Command) -> None:
    answer = run_validate(MINI_BUILD_LOCK, "--quiet", "--verbose")
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)


# --- --log-file -------------------------------------------------------------------------------------------------------

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ weighbridge[\w.]*: .+")


def test_log_file_has_the_command_line_the_stages_and_the_exit_code_with_times(
    run_build: Command, tmp_path: Path
) -> None:
    file = tmp_path / "log.txt"
    answer = run_build(RECIPE, "--model", "mini", "--output", tmp_path / "build", "--log-file", file)
    lines = file.read_text().splitlines()
    assert (answer.code, answer.err) == (0, "")
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    assert f"build.py {RECIPE} --model mini --output {tmp_path}/build --log-file {file}" in lines[0]
    assert any("quantizing: " in line for line in lines)
    assert re.search(r"exit code 0 after [\d.]+ s$", lines[-1])


def test_log_file_is_added_to(run_validate: Command, tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_text("what was there\n")
    run_validate(MINI_BUILD_LOCK, "--log-file", file)
    assert file.read_text().startswith("what was there\n2")


def test_log_file_has_where_an_error_arose_and_what_caused_it(run_validate: Command, tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    answer = run_validate(
        "org/name", "--log-file", file, env={"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "0"}
    )
    text = file.read_text()
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "  Traceback (most recent call last):" in text
    assert "The above exception was the direct cause of the following exception:" in text
    assert "weighbridge.errors.HubError: org/name: " in text


def test_log_has_no_token(run_validate: Command, tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    variables = {
        "HF_ENDPOINT": "http://someone:passphrase@127.0.0.1:1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_abcdefghijklmnop",
    }
    run_validate("org/hf_abcdefghijklmnop", "--log-file", file, env=variables)
    assert "Traceback" in file.read_text()
    assert not re.search("hf_abc|passphrase", file.read_text())


# what is written -> what becomes of it
SECRETS = {
    "a token hf_abcdefgh1234 of the hub": "a token hf_… of the hub",
    "https://me:word@host/path?signature=1 failed": "https://host/path?… failed",
    "the value of-HF_TOKEN here": "the value $HF_TOKEN here",
    "https://host/path is no secret": "https://host/path is no secret",
}


@pytest.mark.parametrize("text", SECRETS)
def test_what_gives_access_is_left_out(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-HF_TOKEN")
    assert without_secrets(text) == SECRETS[text]


def test_what_a_stranger_wrote_cannot_forge_a_line(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    options = argparse.Namespace(quiet=False, verbose=False, log_file=file)
    with logged(options):
        logging.getLogger("weighbridge.test").info("the file %s", "a\n2026-01-01 INFO weighbridge: all is well\x1b[2J")
    (line,) = [line for line in file.read_text().splitlines() if "weighbridge.test" in line]
    assert line.endswith(r"the file a\n2026-01-01 INFO weighbridge: all is well\x1b[2J")


@pytest.mark.parametrize("place", ["no/such/directory/log.txt", "."])
def test_log_file_that_cannot_be_written_is_refused_before_anything_is_done(
    place: str, run_build: Command, tmp_path: Path
) -> None:
    answer = run_build(RECIPE, "--model", "mini", "--output", tmp_path / "build", "--log-file", place, cwd=tmp_path)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert "name a file in a directory that exists" in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["given", "by default"])
def test_log_file_in_the_output_is_refused(where: str, run_build: Command, tmp_path: Path) -> None:
    output = tmp_path / "builds" / "mini-fp8-dynamic"
    output.mkdir(parents=True)
    given = ("--output", output) if where == "given" else ()
    answer = run_build(RECIPE, "--model", "mini", *given, "--log-file", output / "log.txt", cwd=tmp_path)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert "name a file outside of it" in answer.err


def test_nothing_of_the_log_is_in_a_build(run_build: Command, mini_build: Path, tmp_path: Path) -> None:
    answer = run_build(
        RECIPE, "--model", "mini", "--output", tmp_path / "build", "--log-file", tmp_path / "log.txt", "--verbose"
    )
    assert answer.code == 0
    assert digests(tmp_path / "build") == digests(mini_build)
    for file in (tmp_path / "build").rglob("*"):
        assert file.is_dir() or b"log.txt" not in file.read_bytes()


def digests(build: Path) -> dict[str, str]:
    """Names of all files, and SHA-256 of those that hold no times."""
    timeless = {path for path in build.iterdir() if path.is_file()} | {build / "evidence" / "tensors.sha256"}
    return {
        path.relative_to(build).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path in timeless else ""
        for path in build.rglob("*")
        if path.is_file()
    }


def test_upstreams_messages_are_in_the_log_file_and_nowhere_else(run_build: Command, tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    options = ("--engine", "upstream", "--format", "json", "--memory", "4GiB")
    answer = run_build(RECIPE, "--model", "mini", "--output", tmp_path / "build", "--log-file", file, *options)
    assert (answer.code, answer.err) == (0, "")
    assert "INFO weighbridge.upstream: llmcompressor." in file.read_text()
    assert json.loads(answer.out)["holds"]
