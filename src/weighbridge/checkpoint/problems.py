"""What is wrong with single tensors and modules, and the findings that say it of many at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weighbridge.report import Finding, Severity
from weighbridge.text.names import compact

Problem = tuple[str, str, str, str]
"""Rule, module or tensor, message, remedy."""


def findings_of(problems: Iterable[Problem]) -> list[Finding]:
    """One error for all names that a pattern stands for and of which the same is wrong."""
    alike: dict[tuple[str, str], dict[str, list[str]]] = {}
    for rule, name, message, remedy in problems:
        alike.setdefault((rule, remedy), {}).setdefault(message, []).append(name)
    return [
        finding
        for (rule, remedy), by_message in alike.items()
        for message, names in by_message.items()
        for finding in said_of(names, rule, message, remedy)
    ]


def said_of(
    names: Iterable[str],
    rule: str,
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
