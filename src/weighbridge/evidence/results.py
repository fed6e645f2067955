"""What judged a checkpoint and how it came out: test results, read off a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weighbridge.errors import StructureError
from weighbridge.evidence.statements import Outcome, Resource, TestResult, TestResultStatement

NO_TESTS = ("the build", "the source ")
"""Beginnings of the titles of sections that describe and judge nothing: how the run went, and who the source is."""


@dataclass(frozen=True)
class Result:
    """One test: what it held the checkpoint against, how it came out, and the sentence that it said."""

    name: str
    outcome: Outcome
    summary: str


def results_of(report: Mapping[str, Any], *, where: str) -> tuple[Result, ...]:
    """The results in a report as ``report.json`` has it.

    Raises:
        StructureError: no such report.
    """
    try:
        return tuple(
            Result(section["title"], _outcome(section["findings"]), section["summary"])
            for section in report["sections"]
            if not section["title"].startswith(NO_TESTS)
        )
    except (KeyError, TypeError, AttributeError):
        raise StructureError("is no report", where=where) from None


def _outcome(findings: Sequence[Mapping[str, Any]]) -> Outcome:
    severities = {finding["severity"] for finding in findings}
    return "FAILED" if "error" in severities else "WARNED" if "warning" in severities else "PASSED"


def result_statement(
    results: Sequence[Result], subject: Resource, configuration: Sequence[Resource]
) -> TestResultStatement:
    """Results as an in-toto test result; the whole is as good as its worst part."""
    named: dict[Outcome, list[str]] = {"PASSED": [], "WARNED": [], "FAILED": []}
    for result in results:
        named[result.outcome].append(result.name)
    worst: Outcome = "FAILED" if named["FAILED"] else "WARNED" if named["WARNED"] else "PASSED"
    return TestResultStatement(
        subject=[subject],
        predicate=TestResult(
            result=worst,
            configuration=list(configuration),
            passed_tests=named["PASSED"],
            warned_tests=named["WARNED"],
            failed_tests=named["FAILED"],
        ),
    )
