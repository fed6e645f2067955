"""Completion, by a real bash with argcomplete's own function registered."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment
from weighbridge.__main__ import COMMANDS
from weighbridge.recipe.catalogue import recipe_names

BIN = Path(sys.executable).parent
HEAVY = {"torch", "transformers", "huggingface_hub", "jinja2"}
ASK = """
eval "$(activate-global-python-argcomplete --dest=-)"
COMP_LINE="$1" COMP_POINT=${#1} COMP_TYPE=9 COMPREPLY=()
read -ra COMP_WORDS <<< "$1"
_python_argcomplete_global "${COMP_WORDS[0]}" 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


def complete(line: str, directory: Path = ROOT) -> list[str]:
    """What bash offers for the last word of a command line."""
    search = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", line],
        cwd=directory,
        env=environment(search),
        capture_output=True,
        text=True,
        check=True,
    )
    return [word.rstrip() for word in done.stdout.splitlines() if word.strip()]


# what is typed -> what must be offered
OFFERED: Mapping[str, set[str]] = {
    "weighbridge ": set(COMMANDS),
    "weighbridge serve-": {"serve-env", "serve-check"},
    "weighbridge plan fp8-d": {"fp8-dynamic", "fp8-dynamic-norouter", "fp8-dynamic-kv8"},
    "weighbridge build fp8-dynamic --model m": {"mini"},
    "weighbridge build fp8-dynamic --model t": {"trained-mini", "tests/"},
    "weighbridge new-recipe --scheme FP8_": {"FP8_DYNAMIC", "FP8_BLOCK"},
    "weighbridge validate builds/x --recipe w4a16-": {"w4a16-g64", "w4a16-gptq", "w4a16-awq"},
    "weighbridge validate builds/x --source sm": {"smollm2"},
    "weighbridge validate references/google/gemma-4-26B-A4B-it.": {"references/google/gemma-4-26B-A4B-it.yaml"},
    "weighbridge validate builds/x --reference no": {"none"},
    "weighbridge evaluate builds/x --format ": {"text", "json", "markdown", "html"},
    "python build.py fp8-d": {"fp8-dynamic", "fp8-dynamic-norouter", "fp8-dynamic-kv8"},
    "python build.py fp8-dynamic --log": {"--log-file"},
    "python validate.py builds/x --ev": {"--evidence"},
}


@pytest.mark.parametrize("line", OFFERED)
def test_shell_offers_what_may_come_next(line: str) -> None:
    offered = set(complete(line))
    assert offered >= OFFERED[line]
    assert all(word.startswith(line.rpartition(" ")[2]) or word.startswith("-") for word in offered)


def test_recipes_are_offered_by_their_whole_names_wherever_one_is(tmp_path: Path) -> None:
    of_llama = {name for name in recipe_names() if name.startswith("meta-llama/")}
    assert set(complete("weighbridge plan meta-llama/", tmp_path)) == of_llama != set()


def test_files_are_offered_beside_names(tmp_path: Path) -> None:
    (tmp_path / "fp8-mine.yaml").touch()
    assert {"fp8-mine.yaml", "fp8-dynamic"} <= set(complete("weighbridge plan fp8-", tmp_path))


@pytest.mark.parametrize("command", COMMANDS)
def test_completion_waits_for_nothing_heavy(command: str) -> None:
    line = f"weighbridge {command} --"
    script = (
        "import sys, os; os._exit = sys.exit\n"
        "try:\n import weighbridge.__main__ as m; m.main()\n"
        f"finally:\n sys.stderr.write(' '.join({HEAVY} & set(sys.modules)))"
    )
    asked = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": "/dev/null",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(asked), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
