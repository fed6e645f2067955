"""Reports as SARIF 2.1.0, which code hosts show beside the lines of a recipe.

Definition: https://docs.oasis-open.org/sarif/sarif/v2.1.0/. A finding is a result; an explained one is suppressed with
its reason. What is about tensors and not about a line is shown at the file that was judged, since code hosts show only
what lies somewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from weighbridge.report.findings import Finding, Report, Section
from weighbridge.version import __version__

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"

RECIPE = "recipe"
"""The fact or head under which a section or a report says from which file its recipe was read."""

_PLACE = re.compile(r"(?P<file>.+?\.ya?ml):(?P<line>[1-9][0-9]{0,8})(?: (?P<part>.+))?")
"""A place in a document, as `Document.place` writes it, and what is there."""


def as_sarif(report: Report) -> str:
    """The report as one SARIF run."""
    rules = list(dict.fromkeys(finding.rule for finding in report.findings()))
    run = {
        "tool": {"driver": {"name": "Weighbridge", "version": __version__, "rules": [_rule(rule) for rule in rules]}},
        "invocations": [{"executionSuccessful": True}],
        "results": list(_results(report, rules)),
        "columnKind": "unicodeCodePoints",
        "properties": {
            "command": report.command,
            "subject": report.subject,
            "holds": report.holds,
            "verdict": report.verdict,
        },
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _rule(rule: str) -> dict[str, Any]:
    return {
        "id": rule,
        "shortDescription": {"text": rule},
        "help": {"text": f"'weighbridge explain {rule}' says what it watches for, where it is a rule of lint."},
    }


def _results(report: Report, rules: list[str]) -> Iterator[dict[str, Any]]:
    for section in report.sections:
        for finding in section.findings:
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            result: dict[str, Any] = {
                "ruleId": finding.rule,
                "ruleIndex": rules.index(finding.rule),
                "level": str(finding.severity),
                "message": {"text": f"{finding.where}: {finding.message}{remedy}"},
                "locations": [_location(finding, section, report)],
                "occurrenceCount": max(finding.count, 1),
                "properties": {"section": section.title},
            }
            if finding.explained:
                result["suppressions"] = [{"kind": "external", "justification": finding.explained}]
            yield result


def _location(finding: Finding, section: Section, report: Report) -> dict[str, Any]:
    """The line of a file where there is one, or else the file that was judged; and the part of a model."""
    place = _PLACE.fullmatch(finding.where)
    file = place["file"] if place else str(section.facts.get(RECIPE, "") or report.head.get(RECIPE, ""))
    physical: dict[str, Any] = {"artifactLocation": {"uri": quote(file or report.subject, safe="/~@+=,")}}
    if place:
        physical["region"] = {"startLine": int(place["line"])}
    location: dict[str, Any] = {"physicalLocation": physical}
    part = place["part"] if place else finding.where
    if part:
        location["logicalLocations"] = [{"fullyQualifiedName": part}]
    return location
