"""What judged a checkpoint and how it came out: test results, read off a report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
        found = [(section["title"], section["summary"], section["findings"]) for section in report["sections"]]
        severities = [{str(finding["severity"]) for finding in findings} for _, _, findings in found]
    except (KeyError, TypeError):
        raise StructureError("is no report", where=where) from None
    if not all(isinstance(text, str) for title, summary, _ in found for text in (title, summary)):
        raise StructureError("is no report", where=where)
    return tuple(
        Result(title, _outcome(severe), summary)
        for (title, summary, _), severe in zip(found, severities, strict=True)
        if not title.startswith(NO_TESTS)
    )


def _outcome(severities: Collection[str]) -> Outcome:
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
