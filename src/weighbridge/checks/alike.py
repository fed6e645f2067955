"""Findings that say the same of many names at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weighbridge.report import Finding, Severity
from weighbridge.text.names import compact


def findings(
    rule: str,
    names: Iterable[str],
    message: str,
    remedy: str = "",
    *,
    severity: Severity = Severity.ERROR,
    explained: str = "",
) -> Iterator[Finding]:
    """One finding for each pattern that the names make."""
    for pattern in compact(names):
        where, count = str(pattern), len(pattern)
        yield Finding(rule, severity, where, message, count=count, explained=explained, remedy=remedy)
