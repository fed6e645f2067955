"""Reading headers, planning, linting and diffing never wait for torch: only what computes with weights imports it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import weighbridge

PACKAGE = Path(weighbridge.__file__).parent
HEAVY = frozenset({"torch", "llmcompressor", "compressed_tensors", "transformers", "accelerate"})
"""torch, and what imports it."""

ALLOWED = ("engines", "audit", "trained", "quality", "serving")
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
COMMANDS = sorted(path.stem for path in (PACKAGE / "commands").glob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Names of all modules that a file imports, also inside functions and by name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name | ast.Attribute)
            and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr) in {"import_module", "__import__"}
        ):
            yield from (str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith(ALLOWED)])
def test_only_what_computes_with_weights_imports_torch(module: str) -> None:
    heavy = {
        name for name in imported(MODULES[module]) if name.partition(".")[0] in HEAVY or name == "safetensors.torch"
    }
    assert heavy == set()


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


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("commands")])
def test_nothing_but_commands_knows_of_commands(module: str) -> None:
    assert [name for name in imported(MODULES[module]) if name.startswith("weighbridge.commands")] == []
