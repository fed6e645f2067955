"""docs/reference/evidence.md names every rule of the evidence, and no other; its commands do what they promise."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCUMENT = (ROOT / "docs/reference/evidence.md").read_text()
RULE = r"(?:evidence|rebuild|publish|licence)/[a-z]+(?:-[a-z]+)*"
COMMANDS = [line.strip() for line in re.findall(r"^    (\S.*)$", DOCUMENT, flags=re.MULTILINE)]
UPLOADS = "make publish CHECKPOINT=builds/signed REPO=org/name KEY=key.pub.pem"


def test_document_names_every_rule_and_no_other() -> None:
    package = ROOT / "src" / "weighbridge"
    sources = [*(package / "evidence").glob("*.py"), package / "rebuild.py"]
    raised = {rule for path in sources for rule in re.findall(rf'"({RULE})"', path.read_text())}
    assert set(re.findall(rf"`({RULE})`", DOCUMENT)) == raised


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which keys and builds get into nobody's way: links to everything but builds/."""
    directory = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name not in ("builds", ".git") and path.suffix != ".pem":
            (directory / path.name).symlink_to(path)
    return directory


def test_commands_of_the_document_do_what_they_promise(workplace: Path) -> None:
    environment = os.environ | {"PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    assert UPLOADS in COMMANDS
    for command in COMMANDS:
        if command != UPLOADS:
            arguments = shlex.split(command)
            done = subprocess.run(
                arguments, cwd=workplace, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, command + done.stdout + done.stderr
