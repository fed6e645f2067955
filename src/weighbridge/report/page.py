"""A report as one page of HTML that needs nothing else: no network, no script, no font; it prints, and fits a phone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from weighbridge.errors import printable
from weighbridge.report.findings import Areas, Chain, Finding, Grid, Report, Section, Severity, Table
from weighbridge.report.tree import fold
from weighbridge.report.treemap import HEIGHT, WIDTH, draw, why

if TYPE_CHECKING:
    from jinja2 import Template

WIDEST_TABLE = 16
"""Columns of a grid whose figures are written into its cells; those of a wider one are shown when pointed at."""
SHADES = 9
"""Steps of colour between a grid's best figure and its worst."""
NO_FIGURE = "none"


def as_html(report: Report) -> str:
    """The report as one self-contained page."""
    sections = tuple(enumerate(report.sections, 1))
    deciding = sorted(sections, key=lambda numbered: numbered[1].holds)
    return _template().render(report=report, sections=sections, deciding=deciding)


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("weighbridge.report", "."),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"severities": tuple(Severity)}
    environment.filters |= {
        "draw": draw,
        "figure": figure,
        "fold": fold,
        "heat": heat,
        "percent": lambda length, whole: f"{100 * length / whole:.3f}%",
        "ruled": ruled,
        "shares": shares,
        "size": size,
        "tally": lambda findings: Counter(finding.severity for finding in findings),
        "why": why,
    }
    environment.globals |= {"WIDTH": WIDTH, "HEIGHT": HEIGHT}
    environment.tests |= {
        "areas": lambda value: isinstance(value, Areas),
        "chain": lambda value: isinstance(value, Chain),
        "digest": is_digest,
        "long": has_more,
        "textual": is_textual,
        "wide": lambda grid: len(grid.columns) > WIDEST_TABLE,
    }
    return environment.get_template("page.html.j2")


def _printable(value: Any) -> Any:
    """What is shown: no character of a stranger's text may turn the direction of reading round, or be unseen."""
    return printable(value) if type(value) is str else value  # markup is of another type, and may have lines


def figure(value: str | float | None) -> str:
    """A figure as people read it; empty for none."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else value


def size(count: float) -> str:
    """Bytes in the largest unit (powers of 1000) of which there is one."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"


def is_digest(value: object) -> bool:
    """Whether a fact is something to copy and compare: 40 hex digits or more."""
    return isinstance(value, str) and len(value) >= 40 and set(value) <= set("0123456789abcdef")


def has_more(section: Section) -> bool:
    """Whether there is more to a section than its summary."""
    return bool(section.findings or section.facts or section.tables or section.figures)


def is_textual(column: int, table: Table) -> bool:
    """Whether a column holds words, which are read from the left, and not figures, which are compared by their end."""
    return any(isinstance(cell := row[column], str) and cell[:1].isalpha() for row in table.rows)


def ruled(findings: Sequence[Finding]) -> list[tuple[Severity, str, int]]:
    """How many tensors or modules each rule speaks of, the gravest first."""
    counts: Counter[tuple[Severity, str]] = Counter()
    for finding in findings:
        counts[finding.severity, finding.rule] += finding.count
    ordered = sorted(counts.items(), key=lambda item: (list(Severity).index(item[0][0]), -item[1]))
    return [(severity, rule, count) for (severity, rule), count in ordered]


def shares(areas: Areas) -> Table:
    """What a picture of areas shows, in figures: the bytes of each kind in each group."""
    found: dict[tuple[str, str], list[int]] = {}
    for area in areas.areas:
        found.setdefault((area.group, area.kind), []).append(area.size)
    rows = tuple((group, kind, len(sizes), sum(sizes)) for (group, kind), sizes in found.items())
    return Table(("of", "stored as", "parts", "bytes"), rows)


@dataclass(frozen=True)
class Heat:
    """A grid as it is shown.

    Attributes:
        lowest, highest: its figures, as they are written.
        rows: each figure as it is written, and its step of colour: 0 for the best (or none), `SHADES` the worst.
    """

    lowest: str
    highest: str
    rows: tuple[tuple[tuple[str, int], ...], ...]

    @property
    def even(self) -> bool:
        """All figures are the same, so that there is nothing to see."""
        return len({text for row in self.rows for text, _ in row}) == 1


def heat(grid: Grid) -> Heat:
    """Write a grid's figures, and choose their colours.

    Counts are coloured by their logarithm: none and ten are further apart than ten thousand and ten thousand ten.
    Where all figures are the same, none is worse than another.
    """
    known = [value for row in grid.values for value in row if value is not None and math.isfinite(value)] or [0.0]
    counted = all(value.is_integer() and value >= 0 for value in known)
    scale = math.log1p if counted else _small
    low, high = scale(min(known)), scale(max(known))

    def write(value: float) -> str:
        return f"{value:,.0f}" if counted else f"{value:,.2f}"

    def cell(value: float | None) -> tuple[str, int]:
        if value is None:
            return NO_FIGURE, 0
        if not math.isfinite(value) or low == high:
            return write(value), 0
        step = round(SHADES * (scale(value) - low) / (high - low))
        return write(value), SHADES - step if grid.worst == "lowest" else step

    rows = tuple(tuple(cell(value) for value in row) for row in grid.values)
    return Heat(write(min(known)), write(max(known)), rows)


def _small(value: float) -> float:
    """A part of a value that is so small that `SHADES` times the difference of any two of them is finite."""
    return value / (2 * SHADES + 2)
