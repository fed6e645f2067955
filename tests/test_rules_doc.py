"""docs/reference/rules.md describes every rule, and its examples do what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.planning import ROOT
from tests.tiny import MADE, write_tiny
from weighbridge.checkpoint.opening import open_checkpoint
from weighbridge.cli import build
from weighbridge.linting import RULES, lint
from weighbridge.planning import make_plan
from weighbridge.recipe import load_recipe

DOCUMENT = (ROOT / "docs/reference/rules.md").read_text()
INTRODUCTION = "Allowing what a rule forbids"


class Section(NamedTuple):
    """A rule as the document has it.

    Attributes:
        severity, allowable: what its first line says.
        model: the lock that the example is planned against, or what is made on the spot for it (`MADE`).
        also: further errors and warnings that the example cannot avoid.
        example: the recipe.
    """

    severity: str
    allowable: bool
    model: str
    also: frozenset[str]
    example: str


def sections() -> dict[str, Section]:
    parts = re.split(r"^## (.+)$", DOCUMENT, flags=re.MULTILINE)[1:]
    return {title: _read(text) for title, text in zip(parts[::2], parts[1::2], strict=True) if title != INTRODUCTION}


def _read(text: str) -> Section:
    head = re.search(r"^\*\*(error|warning|note)\*\* · (can|cannot) be allowed$", text, flags=re.MULTILINE)
    model = re.search(r"^<!-- model: (\S+) -->$", text, flags=re.MULTILINE)
    also = re.search(r"^<!-- also: (.+) -->$", text, flags=re.MULTILINE)
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert head is not None
    assert model is not None
    others = frozenset(also[1].split(", ")) if also else frozenset()
    return Section(head[1], head[2] == "can", model[1], others, example)


SECTIONS = sections()


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The example of the rule that a test is about, as a file."""
    path = tmp_path / "example.yaml"
    path.write_text(SECTIONS[request.getfixturevalue("rule")].example)
    return path


@pytest.fixture
def model(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What the example is planned for: a lock of the repository, or a directory."""
    name = SECTIONS[request.getfixturevalue("rule")].model
    if name not in MADE:
        return str(ROOT / name)
    directory = write_tiny(tmp_path / "model")
    MADE[name](directory)
    return str(directory)


def test_every_rule_has_a_section_and_every_section_a_rule_in_their_order() -> None:
    assert list(SECTIONS) == list(RULES)


@pytest.mark.parametrize("rule", SECTIONS)
def test_section_says_how_the_rule_weighs_and_whether_it_can_be_allowed(rule: str) -> None:
    section = SECTIONS[rule]
    assert (section.severity, section.allowable) == (RULES[rule].severity, RULES[rule].allowable)


@pytest.mark.parametrize("rule", SECTIONS)
def test_example_raises_its_rule_with_that_severity_and_no_other_unannounced(
    rule: str, example: Path, model: str
) -> None:
    section = SECTIONS[rule]
    found = lint(make_plan(load_recipe(str(example)), open_checkpoint(model)))
    assert {finding.severity for finding in found if finding.rule == rule} == {section.severity}
    others = {finding.rule for finding in found if finding.severity != "note"} - {rule}
    assert others == section.also


@pytest.mark.parametrize("rule", SECTIONS)
def test_example_fails_exactly_if_its_findings_include_an_error(
    rule: str, example: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = build.main([str(example), "--plan", "--model", model, "--reference", "none", "--format", "json"])
    report = json.loads(capsys.readouterr().out)
    (section,) = (section for section in report["sections"] if section["id"] == "plan")
    severities = {finding["rule"]: finding["severity"] for finding in section["findings"]}
    assert severities[rule] == RULES[rule].severity
    assert code == (1 if "error" in severities.values() else 0)
    assert report["holds"] == (code == 0)


@pytest.mark.parametrize("rule", [rule for rule in SECTIONS if RULES[rule].severity != "note"])
def test_finding_of_an_example_says_where_it_is_and_what_to_do(rule: str, example: Path, model: str) -> None:
    found = lint(make_plan(load_recipe(str(example)), open_checkpoint(model)))
    assert all(finding.where and finding.message and finding.remedy for finding in found if finding.rule == rule)


@pytest.mark.parametrize("rule", [rule for rule in SECTIONS if RULES[rule].allowable and not rule.startswith("allow/")])
def test_what_can_be_allowed_is_allowed_by_a_line_of_the_recipe(rule: str, example: Path, model: str) -> None:
    content = example.read_text()
    reason = "a test wants to see it"
    example.write_text(f"{content}allow:\n  - {rule} because {reason}\n")
    found = lint(make_plan(load_recipe(str(example)), open_checkpoint(model)))
    allowed = [finding for finding in found if finding.rule == rule]
    assert {(finding.severity, finding.explained) for finding in allowed} == {("note", f"allowed because {reason}")}
