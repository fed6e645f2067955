"""What an account is made of: what was judged, in which state, and by what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from weighbridge.report import Finding


class Kind(StrEnum):
    """What a checkpoint consists of."""

    FILE = "file"
    KEY = "key"
    TENSOR = "tensor"


class State(StrEnum):
    """What is known of a file, a key or a tensor. What was held and found wanting is held all the same."""

    HELD = "held"
    SAME = "the base's"
    FOLLOWS = "follows from the scheme"
    HARMLESS = "harmless"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class Judged:
    """Some files, keys or tensors that are in one state for one reason.

    Attributes:
        by: what they were held against; or why they are harmless, or not judged.
        names: of the files, ``file:key.key`` of the keys, names of the tensors.
    """

    kind: Kind
    state: State
    by: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Account:
    """Everything in a checkpoint, each thing once.

    Attributes:
        judged: what is in which state, and why.
        findings: what was held and does not hold.
    """

    judged: tuple[Judged, ...]
    findings: tuple[Finding, ...] = ()

    def of(self, *states: State) -> Iterator[Judged]:
        """What is in one of these states."""
        return (item for item in self.judged if item.state in states)


@dataclass(frozen=True)
class Verdict:
    """What became of one file or key.

    Attributes:
        findings: what does not hold of it.
    """

    kind: Kind
    name: str
    state: State
    by: str
    findings: tuple[Finding, ...] = ()


def account_of(verdicts: Iterable[Verdict]) -> Account:
    """Verdicts as an account: what is in one state for one reason stands together."""
    grouped: dict[tuple[Kind, State, str], list[str]] = {}
    findings: list[Finding] = []
    for verdict in verdicts:
        grouped.setdefault((verdict.kind, verdict.state, verdict.by), []).append(verdict.name)
        findings += verdict.findings
    judged = (Judged(kind, state, by, tuple(names)) for (kind, state, by), names in grouped.items())
    return Account(tuple(judged), tuple(findings))
