"""Who imports whom: the contracts of pyproject.toml, and what they cannot see: when a module is imported."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import weighbridge
from tests.planning import ROOT

PACKAGE = Path(weighbridge.__file__).parent
HEAVY = frozenset({"torch", "llmcompressor", "compressed_tensors", "transformers", "accelerate"})
"""torch, and what imports it."""

ALLOWED = ("engines", "auditing", "samples/trained", "extras")
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")
COMMANDS = sorted(path.stem for path in (PACKAGE / "cli").glob("*.py"))


def test_rooms_are_built_one_upon_the_other_and_few_import_torch() -> None:
    done = subprocess.run([LINT_IMPORTS, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_drawing_of_the_rooms_is_what_import_linter_holds() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    drawing = re.findall(r"^    ([\w| ]+)$", page.partition("`make check`")[2], re.MULTILINE)
    assert drawing == contracts[0]["layers"]
    rooms = {room for line in drawing for room in line.split(" | ")} - {"__main__", "errors", "progress", "version"}
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == rooms
    files = re.findall(r"`((?:\w+/)+[\w.]*)`", page.split("## Where a change goes")[1])
    assert [name for name in files if not (PACKAGE / name).exists()] == []


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith((*ALLOWED, "cli"))])
def test_engines_are_imported_only_when_they_are_needed(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {ast.unparse(node) for node in at_import}
    assert {name for name in names if "weighbridge.engines" in name or "weighbridge.auditing" in name} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_imported_without_torch(command: str) -> None:
    module = "weighbridge.cli" if command == "__init__" else f"weighbridge.cli.{command}"
    script = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert HEAVY & set(json.loads(done.stdout)) == set()
