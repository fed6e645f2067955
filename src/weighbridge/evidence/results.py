"""What judged a checkpoint and how it came out: test results, read off a report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weighbridge.errors import StructureError
from weighbridge.evidence.statements import Outcome, Resource, TestResult, TestResultStatement
from weighbridge.report import SectionId

NO_TESTS: frozenset[SectionId] = frozenset({"source", "build", "source-served", "answers-compared"})
"""Sections that describe and judge nothing: who the source is, how the run went, and what else was measured beside."""


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
        found = [(section["id"], section["title"], section["summary"]) for section in report["sections"]]
        severities = [{str(finding["severity"]) for finding in section["findings"]} for section in report["sections"]]
    except (KeyError, TypeError):
        raise StructureError("is no report", where=where) from None
    if not all(isinstance(text, str) for texts in found for text in texts):
        raise StructureError("is no report", where=where)
    return tuple(
        Result(title, _outcome(severe), summary)
        for (id, title, summary), severe in zip(found, severities, strict=True)
        if id not in NO_TESTS
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
