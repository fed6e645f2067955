"""Reports: one tree of findings, and its presenters."""

from weighbridge.report.findings import Finding, Report, Section, Severity, Table
from weighbridge.report.present import PRESENTERS

__all__ = ["PRESENTERS", "Finding", "Report", "Section", "Severity", "Table"]
