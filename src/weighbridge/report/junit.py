"""Reports as JUnit XML, by which build servers count what passed and what failed.

A section is a suite: what failed in it are its failed cases, and where nothing did, it is one case that passed. What
only tells and judges nothing is a skipped case. There is no published standard; the shape is that of Jenkins' reader.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from weighbridge.errors import printable
from weighbridge.report.findings import Finding, Report, Section, Severity


def as_junit(report: Report) -> str:
    """The report as XML."""
    suites = Element("testsuites", name=_text(f"weighbridge {report.command} {report.subject}"))
    counts = dict.fromkeys(("tests", "failures"), 0)
    for number, section in enumerate(report.sections):
        cases = list(_cases(section))
        own = {
            "tests": len(cases),
            "failures": sum(case.find("failure") is not None for case in cases),
            "skipped": sum(case.find("skipped") is not None for case in cases),
        }
        numbers = {name: str(count) for name, count in own.items()}
        suite = SubElement(
            suites, "testsuite", {"name": _text(section.title), "id": str(number), "errors": "0", **numbers}
        )
        suite.extend(cases)
        counts = {name: counts[name] + own[name] for name in counts}
    for name, count in counts.items():
        suites.set(name, str(count))
    suites.set("errors", "0")
    indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(suites, encoding="unicode")}\n'


def _cases(section: Section) -> Iterator[Element]:
    failed = [finding for finding in section.findings if finding.severity is Severity.ERROR]
    for finding in failed:
        case = _case(section, f"{finding.rule} {finding.where}")
        SubElement(case, "failure", message=_text(finding.message), type=_text(finding.rule)).text = _said(finding)
        yield case
    if failed:
        return
    case = _case(section, section.summary)
    if not section.holds:
        SubElement(case, "failure", message=_text(section.summary), type=section.id)
    elif not section.judges:
        SubElement(case, "skipped", message="judges nothing")
    if section.findings:
        SubElement(case, "system-out").text = "\n".join(map(_said, section.findings))
    yield case


def _case(section: Section, name: str) -> Element:
    return Element("testcase", name=_text(name), classname=_text(section.id))


def _said(finding: Finding) -> str:
    explained = f"; explained: {finding.explained}" if finding.explained else ""
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    return _text(f"{finding.severity} {finding.rule}: {finding.where} {finding.message}{explained}{remedy}")


def _text(text: str) -> str:
    """What XML can hold, whatever a stranger calls things: all else is written as an escape."""
    return printable(text)
