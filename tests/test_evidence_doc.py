"""docs/reference/evidence.md names every rule of the evidence, and no other."""

from __future__ import annotations

import re

from tests.conftest import ROOT

DOCUMENT = (ROOT / "docs/reference/evidence.md").read_text()
RULE = r"(?:evidence|rebuild|publish|licence)/[a-z]+(?:-[a-z]+)*"


def test_document_names_every_rule_and_no_other() -> None:
    package = ROOT / "src" / "weighbridge"
    sources = [*(package / "evidence").glob("*.py"), package / "building" / "reproduce.py"]
    raised = {rule for path in sources for rule in re.findall(rf'"({RULE})"', path.read_text())}
    assert set(re.findall(rf"`({RULE})`", DOCUMENT)) == raised
