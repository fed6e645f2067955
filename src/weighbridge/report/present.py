"""Presenters of the findings tree: text for people, JSON for programs, Markdown for records, a page to look at, SARIF
for code hosts, JUnit's XML for build servers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from weighbridge.errors import printable
from weighbridge.report.columns import lay_out, longest_word, wrapped
from weighbridge.report.findings import Areas, Finding, Grid, Report, Section, Severity, Table
from weighbridge.report.junit import as_junit
from weighbridge.report.page import as_html, figure
from weighbridge.report.sarif import as_sarif
from weighbridge.report.treemap import why

WIDEST_GRID = 12
WIDTH, LEAST_WIDTH, MOST_WIDTH = 80, 60, 120
"""Columns of a report where there is no terminal; the least that it takes; and the most that its sentences take."""
MARKS = {"error": "x", "warning": "!", "note": "-"}


def as_json(report: Report) -> str:
    """The report as JSON; see `Report.to_dict`."""
    return json.dumps(report.to_dict(), indent=2) + "\n"


def as_text(report: Report) -> str:
    """The report for a terminal: the verdict last, where the eye is."""
    report = _printable(report)
    width = max(LEAST_WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    lines = [f"{label}: {text}" for label, text in report.head.items()]
    lines += [line for section in report.sections for line in _text_section(section, width)]
    return "\n".join(lines) + ("\n" if lines else "") + verdict_of(report)


def verdict_of(report: Report) -> str:
    """The end of the report for a terminal: whether it holds, and why, in one sentence."""
    report = _printable(report)
    width = max(LEAST_WIDTH, min(shutil.get_terminal_size((WIDTH, 24)).columns, MOST_WIDTH))
    return "\n".join(wrapped(report.verdict, width, f"{report.word}  ", "      ")) + "\n"


def as_markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    report = _printable(report)
    lines = [f"# {report.command}: {report.subject}", "", f"**{report.word}**: {report.verdict}"]
    lines += ["", *(f"- {label}: {text}" for label, text in report.head.items())] if report.head else []
    for section in report.sections:
        lines += ["", f"## {section.title}", "", section.summary]
        lines += [f"- {label}: {value}" for label, value in section.facts.items()]
        for table in _tables(section):
            lines += ["", _row(table.columns), _row(["---"] * len(table.columns))]
            lines += [_row([figure(cell) for cell in row]) for row in table.rows]
        if section.findings:
            lines += [
                "",
                _row(("severity", "rule", "where", "count", "what", "explained or remedy")),
                _row(["---"] * 6),
            ]
            lines += [_markdown_finding(finding) for finding in section.findings]
    return "\n".join(lines) + "\n"


PRESENTERS: Mapping[str, Callable[[Report], str]] = {
    "text": as_text,
    "json": as_json,
    "markdown": as_markdown,
    "html": as_html,
    "sarif": as_sarif,
    "junit": as_junit,
}


def _tables(section: Section) -> Iterator[Table]:
    """Tables, what decided about areas, and grids that are narrow enough to be read as such."""
    yield from section.tables
    for shown in section.figures:
        if isinstance(shown, Areas) and (decided := why(shown)):
            yield Table(("what decided", "bytes"), tuple((because.by, because.size) for because in decided))
        if isinstance(shown, Grid) and len(shown.columns) <= WIDEST_GRID:
            rows = zip(shown.rows, shown.values, strict=True)
            cells = ((row, *("" if value is None else f"{value:.2f}" for value in values)) for row, values in rows)
            yield Table((f"{shown.corner}: {shown.title}", *shown.columns), tuple(cells))


def _printable(value: Any) -> Any:
    """What holds text, with every character escaped that could steer a terminal or break a row: strangers wrote it."""
    if isinstance(value, str) and not isinstance(value, Severity):
        return printable(value)
    if isinstance(value, tuple):
        return tuple(map(_printable, value))
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{part.name: _printable(getattr(value, part.name)) for part in fields(value)})
    return value


def _text_section(section: Section, width: int) -> list[str]:
    state = ("ok" if section.judges else "- ") if section.holds else "x "
    sentence = min(width, MOST_WIDTH)
    lines = wrapped(f"{section.title}: {section.summary}", sentence, f"{state}  ", "    ")
    label_width = max(map(len, section.facts), default=0)
    for label, value in section.facts.items():
        lines += _text_fact(f"    {label:<{label_width}}  ", figure(value), sentence)
    for number, table in enumerate(_tables(section)):
        rows = [[figure(cell) for cell in row] for row in table.rows]
        lines += [""] if number else []
        lines += [f"    {line}".rstrip() for line in lay_out(table.columns, rows, width - 4)]
    for finding in section.findings:
        lines += _text_finding(finding, sentence)
    return lines


def _text_fact(label: str, value: str, width: int) -> list[str]:
    if len(label) + longest_word([value]) > width:  # a digest, say
        return [label.rstrip(), *wrapped(value, width, "      ", "      ")]
    return wrapped(value, width, label, " " * len(label)) or [label.rstrip()]


def _text_finding(finding: Finding, width: int) -> list[str]:
    count = f" ({finding.count:,})" if finding.count > 1 else ""
    lines = [f"    {MARKS[finding.severity]} {finding.severity} {finding.rule}"]
    for text in (
        f"{finding.where}{count}",
        finding.message,
        f"explained: {finding.explained}" if finding.explained else "",
        f"do: {finding.remedy}" if finding.remedy else "",
    ):
        lines += wrapped(text, width, "      ", "      ")
    return lines


def _markdown_finding(finding: Finding) -> str:
    what = (finding.severity, f"`{finding.rule}`", f"`{finding.where}`", figure(finding.count))
    return _row((*what, finding.message, finding.explained or finding.remedy))


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
