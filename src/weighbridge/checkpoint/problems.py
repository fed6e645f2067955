"""What is wrong with single tensors and modules, and the findings that say it of many at once."""

from __future__ import annotations

from collections.abc import Iterable

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
        Finding(rule, Severity.ERROR, str(pattern), message, count=len(pattern), remedy=remedy)
        for (rule, remedy), by_message in alike.items()
        for message, names in by_message.items()
        for pattern in compact(names)
    ]
