"""One tree of findings for everything that judges: plan, build, validate, audit. Presenters turn it into text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

from weighbridge.errors import clipped, printable
from weighbridge.report.section_ids import SectionId

JSON_VERSION = 1
COMPARISON = "diff"
"""The command whose reports only compare."""


class Severity(StrEnum):
    """How much a finding weighs: an error fails (exit 1); warnings and notes are printed and pass."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One thing to say.

    Attributes:
        rule: id of the rule, e.g. ``diff/only-in-reference``.
        severity: what it means for the verdict.
        where: the tensors, module, file or recipe line, as a name or a pattern of names.
        message: what is so, in a clause.
        count: how many tensors or modules `where` stands for.
        explained: the recipe's reason, where an entry explains it.
        remedy: what to do, in a clause.
    """

    rule: str
    severity: Severity
    where: str
    message: str
    count: int = 1
    explained: str = ""
    remedy: str = ""

    def __post_init__(self) -> None:
        _make_safe(self, "where", "message", "explained", "remedy")


def _make_safe(part: Finding | Section | Report, *texts: str) -> None:
    """Make texts safe to show and of bearable length, whatever a stranger's file calls things."""
    for text in texts:
        object.__setattr__(part, text, clipped(printable(getattr(part, text)), limit=1000))


@dataclass(frozen=True)
class Table:
    """Figures in rows; the first column names what the row is about."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]


@dataclass(frozen=True)
class Area:
    """A share of the bytes.

    Attributes:
        group: what they belong to; `part`: the part of it, empty where it has none.
        kind: what they are stored as; `kept`: whether that is what the source has, and not quantized.
        size: how many.
        by: what decided it, e.g. an entry of the recipe with its line; empty where nobody knows.
    """

    group: str
    part: str
    kind: str
    size: int
    kept: bool = False
    by: str = ""


@dataclass(frozen=True)
class Areas:
    """Bytes by group and part, to be seen at a glance.

    Attributes:
        title: what the bytes are of.
        areas: in an order that a reader knows, such as that of layers.
        reasons: why, in the recipe's own words, by what decided it (`Area.by`).
    """

    title: str
    areas: tuple[Area, ...]
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """Figures by two things.

    Attributes:
        title: what the figures are, with their unit.
        corner: what the rows are.
        rows: names of the rows; `columns`: those of the columns.
        values: a figure for each row and column; None where there is none.
        worst: whether the lowest or the highest figure is the one to look at.
    """

    title: str
    corner: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    worst: Literal["lowest", "highest"] = "lowest"


@dataclass(frozen=True)
class Link:
    """One link of a chain: what it is, its name, and what it can be told by (label -> digest or commit, in full)."""

    what: str
    name: str
    told_by: dict[str, str]


@dataclass(frozen=True)
class Chain:
    """What was made from what, first to last."""

    title: str
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Section:
    """A part of a report: what was held against what, and what was found.

    Attributes:
        id: what kind of section it is, for programs; titles and sentences are for people.
        title: e.g. ``against RedHatAI/gemma-4-26B-A4B-it-FP8-dynamic``.
        summary: one sentence.
        facts: what the section rests on (label -> value).
        figures: what is better seen than read.
        judges: whether something was held against something. What only tells is shown as neither held nor failed.
        failed: whether it failed by findings that stand in the sections behind it.
    """

    id: SectionId
    title: str
    summary: str
    findings: tuple[Finding, ...] = ()
    facts: dict[str, str | int] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    figures: tuple[Areas | Grid | Chain, ...] = ()
    judges: bool = True
    failed: bool = False

    def __post_init__(self) -> None:
        _make_safe(self, "title", "summary")

    @property
    def holds(self) -> bool:
        return not self.failed and not any(finding.severity is Severity.ERROR for finding in self.findings)


def first_error(sections: Iterable[Section]) -> str:
    """Where the first error is and what it is, and how many more there are; empty where there is none."""
    errors = [finding for section in sections for finding in section.findings if finding.severity is Severity.ERROR]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{errors[0].where} {errors[0].message}{more}" if errors else ""


def _plain(value: Any) -> Any:
    """A value as JSON has it: lists in the place of tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Report:
    """A verdict and what decides it.

    Attributes:
        command: what judged, e.g. ``validate``.
        subject: what was judged.
        verdict: one sentence.
        head: what it is filed by, as a label and a value: recipe, base, tool; and of what is kept, command and time.
        metrics: figures of what was judged, as numbers, with the unit in the name.
    """

    command: str
    subject: str
    verdict: str
    sections: tuple[Section, ...]
    head: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _make_safe(self, "subject", "verdict")
        object.__setattr__(
            self, "head", {label: clipped(printable(text), limit=4000) for label, text in self.head.items()}
        )

    @property
    def holds(self) -> bool:
        """No finding is an error; of a comparison: nothing differs."""
        if self.command == COMPARISON:
            return not any(self.findings())
        return all(section.holds for section in self.sections)

    @property
    def word(self) -> str:
        """The verdict in a word. What was only compared neither passes nor fails."""
        if self.command == COMPARISON:
            return "SAME" if self.holds else "DIFFERS"
        return "PASS" if self.holds else "FAIL"

    def findings(self) -> Iterator[Finding]:
        """All findings, in order."""
        for section in self.sections:
            yield from section.findings

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it; ``schema_version`` changes when a consumer would have to."""
        sections = [{**_plain(asdict(section)), "holds": section.holds} for section in self.sections]
        return {
            "schema_version": JSON_VERSION,
            "command": self.command,
            "subject": self.subject,
            "head": dict(self.head),
            "holds": self.holds,
            "verdict": self.verdict,
            "metrics": {**self._counts(), **self.metrics},
            "sections": sections,
        }

    def _counts(self) -> dict[str, int | float]:
        counted = Counter(finding.severity for finding in self.findings())
        return {f"{severity}s_count": counted[severity] for severity in Severity}

    def _repr_html_(self) -> str:
        """The report as a page, which a notebook shows in a frame of its own."""
        from html import escape

        from weighbridge.report.page import as_html

        return f'<iframe srcdoc="{escape(as_html(self))}" width="100%" height="640" style="border:0"></iframe>'
