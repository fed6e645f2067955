"""Who imports whom: the contracts of pyproject.toml, and what they cannot see: when a module is imported."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import weighbridge
from tests.planning import ROOT

PACKAGE = Path(weighbridge.__file__).parent
HEAVY = frozenset({"torch", "llmcompressor", "compressed_tensors", "transformers", "accelerate"})
"""torch, and what imports it."""

ALLOWED = ("engines", "audit", "trained", "quality", "serving")
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")
COMMANDS = sorted(path.stem for path in (PACKAGE / "commands").glob("*.py"))


def test_rooms_are_built_one_upon_the_other_and_few_import_torch() -> None:
    done = subprocess.run([LINT_IMPORTS, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith((*ALLOWED, "commands"))])
def test_engines_are_imported_only_when_they_are_needed(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {ast.unparse(node) for node in at_import}
    assert {name for name in names if "weighbridge.engines" in name or "weighbridge.audit" in name} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_imported_without_torch(command: str) -> None:
    module = "weighbridge.commands" if command == "__init__" else f"weighbridge.commands.{command}"
    script = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert HEAVY & set(json.loads(done.stdout)) == set()
