"""What a command says of itself: every one has help with an example that it takes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MINI_LOCK, ROOT, Command, call_main, environment, run_script
from weighbridge.__main__ import COMMANDS
from weighbridge.cli.run import Parser, parsed

SCRIPTS = ("build", "validate")

# how a command is called -> what stands before its arguments
CALLS = {
    **{f"weighbridge {name}": ["weighbridge", name] for name in COMMANDS},
    **{f"python {name}.py": [f"{name}.py"] for name in SCRIPTS},
}


def module_of(call: str) -> Any:
    name = call.split()[1]
    return import_module(f"weighbridge.cli.{COMMANDS[name.removesuffix('.py')][0]}")


@pytest.fixture
def parser(call: str, monkeypatch: pytest.MonkeyPatch) -> Parser:
    monkeypatch.setattr(sys, "argv", CALLS[call])
    found: Parser = module_of(call)._parser()
    return found


@pytest.fixture
def shown(parser: Parser, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        parsed(parser, ["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def examples(text: str) -> list[list[str]]:
    """The words of each example in a help text; a backslash continues a line."""
    found = re.search(r"^examples:\n((?:  .*\n)+)", text, re.MULTILINE)
    assert found is not None
    return [shlex.split(line) for line in found[1].replace("\\\n", "").splitlines()]


@pytest.mark.parametrize("call", CALLS)
def test_help_fits_eighty_columns(call: str, shown: str) -> None:
    assert [line for line in shown.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("call", CALLS)
def test_help_names_the_command_as_it_was_called(call: str, shown: str) -> None:
    assert " ".join(shown.split()).startswith(f"usage: {call} ")


@pytest.mark.parametrize("call", CALLS)
def test_help_says_what_the_exit_codes_mean(call: str, shown: str) -> None:
    assert re.search(r"^exit codes: 0 ", shown, re.MULTILINE)


@pytest.mark.parametrize("call", CALLS)
def test_every_example_is_one_that_the_command_takes(call: str, shown: str, parser: Parser) -> None:
    of_first = COMMANDS[call.split()[1]][1] if call.startswith("weighbridge") else ()
    for words in examples(shown):
        assert words[: len(call.split())] == call.split()
        parser.parse_args([*of_first, *words[len(call.split()) :]])


@pytest.mark.parametrize("call", CALLS)
def test_every_argument_is_explained(call: str, parser: Parser) -> None:
    assert [action.dest for action in parser._actions if not action.help] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_says_how_it_is_called(script: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / f"{script}.py", "--wat"], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 2
    assert done.stderr.endswith(f"; 'python {script}.py --help' lists what there is\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_runs_as_a_module_too(script: str) -> None:
    command = [sys.executable, "-m", f"weighbridge.cli.{script}", "--wat"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 2 and done.stderr.startswith("error: ")


def test_no_example_of_the_overview_is_one_that_a_command_would_refuse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from weighbridge import __main__ as entry

    monkeypatch.setattr(sys, "argv", ["weighbridge"])
    assert entry.command() == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for _, command, *arguments in examples(text):
        monkeypatch.setattr(sys, "argv", ["weighbridge", command])
        parser: Parser = module_of(f"weighbridge {command}")._parser()
        parser.parse_args([*COMMANDS[command][1], *arguments])


PASSED_OVER = {
    "a draft's scheme in a build": ("build", "fp8-dynamic --model mini --scheme W4A16", "--scheme"),
    "a draft that is planned": ("build", "--new-recipe org/name --plan", "--plan"),
    "a plan that is audited": ("build", "fp8-dynamic --plan --model mini --audit", "--audit"),
    "a plan with a place": ("build", "fp8-dynamic --plan --model mini --output x --force", "--output and --force"),
    "a plan on a device": ("build", "fp8-dynamic --plan --model mini --device cpu", "--device"),
    "a plan by workers": (
        "build",
        "fp8-dynamic --plan --model mini --workers 1 --memory 1GB",
        "--workers and --memory",
    ),
    "a plan in shards": ("build", "fp8-dynamic --plan --model mini --shard-size 1GB", "--shard-size"),
    "a draft by workers": ("build", "--new-recipe org/name --workers 1", "--workers"),
    "a plan with what a build has by itself": (
        "build",
        "fp8-dynamic --plan --model mini --memory 2GiB --shard-size 5GB",
        "--memory and --shard-size",
    ),
    "a seed that is none": ("validate", "x --evidence --sample 5 --seed 7", "--sample and --seed"),
    "a card's cache without a card": ("build", "fp8-dynamic --plan --model mini --kv-dtype fp8", "--kv-dtype"),
    "a card of a build": ("build", "fp8-dynamic --model mini --gpu 24GB", "--gpu"),
    "a cluster that nobody asked for": ("build", "fp8-dynamic --model mini --ray 1.2.3.4:1", "--ray"),
    "a sample of nothing": ("validate", "x --sample 10", "--sample"),
    "a sample of evidence": ("validate", "x --evidence --sample 5", "--sample"),
    "a comparison beside evidence": ("validate", "x --evidence --compare y", "--compare"),
}
"""Command, arguments, and the options in them that would be passed over."""


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ("--modle mini", "did you mean --model?"),
        ("--ouput x", "did you mean --output?"),
        ("--wat", "'python build.py --help' lists what there is"),
    ],
)
def test_misspelt_option_is_asked_about(arguments: str, remedy: str) -> None:
    done = run_script("build.py", "fp8-dynamic", *arguments.split())
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.endswith(f"; {remedy}\n")


@pytest.mark.parametrize("case", PASSED_OVER)
def test_option_that_has_no_effect_is_refused(
    case: str, call_build: Command, call_validate: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, arguments, named = PASSED_OVER[case]
    monkeypatch.chdir(tmp_path)
    outcome = (call_build if command == "build" else call_validate)(*arguments.split())
    assert outcome.code == 2
    assert re.search(rf"{named} (has|have) no effect", outcome.err)
    assert list(tmp_path.iterdir()) == []


def test_only_our_own_words_are_told_as_options(
    call_build: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a stranger calls things, or another library says, stays as it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "`output`").mkdir()
    (tmp_path / "`output`" / "config.json").touch()
    outcome = call_build("fp8-dynamic", "--model", "mini", "--output", "`output`")
    said = "`output`: the output is not empty; name another as --output, or replace it (--force) once the new build is "
    assert (outcome.code, outcome.err) == (2, f"error: {said}whole\n")


@pytest.mark.parametrize("option", ["--report", "--log-file"])
def test_file_that_would_become_part_of_the_build_is_refused(option: str, call_build: Command, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    outcome = call_build("fp8-dynamic", "--model", "mini", "--output", tmp_path / "x", option, tmp_path / "x/file")
    assert (outcome.code, f"{option} {tmp_path}/x/file: would become part" in outcome.err) == (2, True)


@pytest.mark.parametrize(
    ("target", "needed"),
    [
        ("audit", "CHECKPOINT= SOURCE="),
        ("serve-check", "CHECKPOINT="),
        ("publish", "CHECKPOINT= REPO="),
        ("bench-serve", "ENDPOINT="),
    ],
)
def test_target_says_which_variables_it_needs(target: str, needed: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, f"make {target} needs {needed};" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "begins"),
    [
        (("--report", "plan.json"), "{"),
        (("--report", "plan.html"), "<!DOCTYPE html>"),
        (("--format", "text", "--report", "plan.json"), "recipe: "),
        (("--format=text", "--report", "plan.html"), "recipe: "),
        (("--report", "plan.txt", "--format", "json"), "{"),
        (("--report", "plan"), "recipe: "),
    ],
)
def test_report_is_kept_in_the_form_that_is_asked_for_or_else_in_that_of_its_name(
    arguments: tuple[str, ...], begins: str, call_build: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call_build("fp8-dynamic", "--plan", "--model", "mini", *arguments).code == 0
    (kept,) = tmp_path.iterdir()
    assert kept.read_text().startswith(begins)


@pytest.mark.parametrize(
    ("command", "works"),
    [
        (("validate", MINI_LOCK), "weighbridge.api.validate_sides"),
        (("build", "fp8-dynamic", "--plan", "--model", "mini"), "weighbridge.api.lint"),
    ],
)
def test_command_that_begins_anew_says_no_more_than_that_it_was_interrupted(
    command: tuple[str, ...], works: str, call_build: Command, call_validate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(works, interrupt)
    outcome = (call_build if command[0] == "build" else call_validate)(*command[1:])
    assert (outcome.code, outcome.err) == (2, "error: interrupted\n")


def test_page_that_is_kept_is_not_printed(call_build: Command, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    outcome = call_build("fp8-dynamic", "--plan", "--model", "mini", "--format", "html", "--report", page)
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert outcome.out.startswith("PASS  ")


@pytest.mark.parametrize(("wrong", "option"), [("audit", "--source BASE"), ("evidence", "--evidence")])
def test_what_is_an_option_of_validate_is_no_command_and_says_so(
    wrong: str, option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from weighbridge import __main__ as entry

    monkeypatch.setattr(sys, "argv", ["weighbridge", wrong])
    assert entry.command() == 2
    assert f"'weighbridge validate CHECKPOINT {option}'" in capsys.readouterr().err


def test_diff_with_a_recipe_asks_for_the_option_that_takes_one() -> None:
    from weighbridge.cli import diff

    outcome = call_main(diff.main, ["mini", "fp8-dynamic"])
    assert outcome.code == 2
    assert "fp8-dynamic: is a recipe, not a checkpoint; add --recipe" in outcome.err


def test_misspelt_model_that_is_made_here_is_asked_after(call_build: Command) -> None:
    outcome = call_build("fp8-dynamic", "--plan", "--model", "smollm")
    assert outcome.code == 2
    assert outcome.err == "error: smollm: no such directory or file; did you mean smollm2?\n"
