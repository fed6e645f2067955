"""Reports: one tree of findings, and its presenters."""

from weighbridge.report.findings import (
    Area,
    Areas,
    Chain,
    Finding,
    Grid,
    Link,
    Report,
    Section,
    Severity,
    Table,
    first_error,
)
from weighbridge.report.present import PRESENTERS
from weighbridge.report.reading import read_report
from weighbridge.report.section_ids import SectionId

__all__ = [
    "PRESENTERS",
    "Area",
    "Areas",
    "Chain",
    "Finding",
    "Grid",
    "Link",
    "Report",
    "Section",
    "SectionId",
    "Severity",
    "Table",
    "first_error",
    "read_report",
]
