"""What a check of the evidence came to."""

from __future__ import annotations

from dataclasses import dataclass

from weighbridge.report import Finding, Severity


@dataclass(frozen=True)
class Checked:
    """What a check came to.

    Attributes:
        summary: what was held against what, in a clause.
        findings: what is wrong.
        words: what rests on the builder's word all the same.
        judges: whether anything was held against anything; of what is not there nothing was.
    """

    summary: str
    findings: tuple[Finding, ...] = ()
    words: tuple[str, ...] = ()
    judges: bool = True


def wrong(rule: str, where: str, message: str, *, remedy: str = "", count: int = 1) -> Finding:
    """A finding that fails."""
    return Finding(rule, Severity.ERROR, where, message, count=count, remedy=remedy)
