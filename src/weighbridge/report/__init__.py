"""Reports: one tree of findings, and its presenters."""

from weighbridge.report.findings import Area, Areas, Finding, Grid, Report, Section, Severity, Table
from weighbridge.report.present import PRESENTERS

__all__ = ["PRESENTERS", "Area", "Areas", "Finding", "Grid", "Report", "Section", "Severity", "Table"]
