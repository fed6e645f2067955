"""Reports for code hosts (SARIF) and build servers (JUnit's XML), read back by readers that are not ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from junitparser import JUnitXml
from sarif_pydantic import Sarif

from tests.conftest import call_main, run_script
from tests.planning import ROOT
from weighbridge.cli import lint
from weighbridge.report import PRESENTERS, Finding, Report, Section, Severity

RECIPE = """\
name: tried
description: a recipe whose second pattern matches nothing
base: {model: weighbridge/gemma-4-mini, licence: apache-2.0}
method: model_free_ptq
scheme: FP8_DYNAMIC
ignore:
  - lm_head
  - re:.*embed.*
  - re:.*router
  - re:.*vision_tower.*
  - re:.*norm.*
  - re:.*nothing_of_this_name.*
"""
OF_XSD = {
    "testsuites": {"name", "time", "tests", "failures", "errors"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "id", "time"},
    "testcase": {"name", "classname", "time"},
    "failure": {"type", "message"},
    "skipped": {"type", "message"},
    "system-out": set[str](),
}
"""What Jenkins' junit-10.xsd lets an element have, of what is written here."""

texts = st.text(max_size=40)
findings = st.builds(
    Finding,
    rule=st.sampled_from(["diff/dtype", "account/unjudged"]),
    severity=st.sampled_from(list(Severity)),
    where=st.one_of(texts, st.just("recipes/a b.yaml:12 lm_head"), st.just("recipes/x.yaml:7"), st.just("x.yaml:0")),
    message=texts,
    count=st.integers(0, 10**6),
    explained=texts,
    remedy=texts,
)
sections = st.builds(
    Section,
    id=st.sampled_from(["structure", "against-plan"]),
    title=texts,
    summary=texts,
    findings=st.lists(findings, max_size=4).map(tuple),
    judges=st.booleans(),
    failed=st.booleans(),
)
reports = st.builds(
    Report,
    command=st.sampled_from(["plan", "validate", "gate"]),
    subject=texts,
    verdict=texts,
    sections=st.lists(sections, max_size=4).map(tuple),
)


@given(reports)
def test_any_report_is_sarif_with_each_finding_in_its_place(report: Report) -> None:
    read = Sarif.model_validate_json(PRESENTERS["sarif"](report))
    (run,) = read.runs
    expected = list(report.findings())
    assert [result.rule_id for result in run.results or []] == [finding.rule for finding in expected]
    raw: dict[str, Any] = json.loads(PRESENTERS["sarif"](report))["runs"][0]
    for result, finding in zip(raw["results"], expected, strict=True):
        assert result["level"] == finding.severity
        assert bool(result.get("suppressions")) == bool(finding.explained)
        assert raw["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == finding.rule
        (location,) = result["locations"]
        assert " " not in location["physicalLocation"]["artifactLocation"]["uri"]


@given(reports)
def test_any_report_is_junit_that_counts_what_failed(report: Report) -> None:
    content = PRESENTERS["junit"](report)
    read = JUnitXml.fromstring(content.encode())
    cases = [case for suite in read for case in suite]
    failed = [case for case in cases if any(type(result).__name__ == "Failure" for result in case.result)]
    assert (read.tests, read.failures) == (len(cases), len(failed))
    assert bool(failed) == (not report.holds)
    for element in ElementTree.fromstring(content).iter():
        assert set(element.keys()) <= OF_XSD[element.tag]


def test_finding_about_a_line_of_a_recipe_is_shown_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(RECIPE)
    outcome = call_main(lint.main, ["mine.yaml", "--model", "mini", "--format", "sarif"])
    results = json.loads(outcome.out)["runs"][0]["results"]
    (unused,) = [result for result in results if result["ruleId"] == "ignore/matches-nothing"]
    assert unused["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "mine.yaml"},
        "region": {"startLine": 12},
    }
    assert {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in results} == {
        "mine.yaml"
    }


@pytest.mark.parametrize(("suffix", "reader"), [(".sarif", Sarif.model_validate_json), (".xml", JUnitXml.fromstring)])
def test_a_report_s_file_is_of_the_form_that_its_name_says(suffix: str, reader: Any, tmp_path: Path) -> None:
    path = tmp_path / f"report{suffix}"
    arguments = ("fp8-dynamic", "--plan", "--model", "mini", "--report", path)
    assert run_script("build.py", *arguments).code == 0
    reader(path.read_bytes() if suffix == ".sarif" else path.read_text().encode())


def test_formats_are_offered_by_every_command_that_judges() -> None:
    for name in ("build", "validate", "lint", "gate", "diff", "reproduce", "serve_check", "evaluate", "publish"):
        text = (ROOT / "src" / "weighbridge" / "cli" / f"{name}.py").read_text()
        assert "add_report_options(parser" in text, name
