"""The account as a part of a report: one line where all is held, a table where something is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from weighbridge.account.model import Account, Judged, Kind, State
from weighbridge.report import Finding, Section, Severity, Table
from weighbridge.structure.names import compact

TITLE = "the account"
COLUMNS = ("what", "state", "by", "count", "which")
MOST_NAMED = 3
"""Names that a row shows; of more than so many the rest is counted."""


def account_section(account: Account, further: Iterable[Finding] = ()) -> Section:
    """The account in a report.

    Args:
        further: findings beside the account's own: those of `unjudged`, where it is to be closed.
    """
    harmless = [f"{_names(item)} ({item.by})" for item in account.of(State.HARMLESS)]
    facts: dict[str, str | int] = {"harmless": "; ".join(harmless)} if harmless else {}
    open_rows = list(account.of(State.NOT_JUDGED))
    tables = (Table(COLUMNS, tuple(map(_row, account.judged))),) if open_rows else ()
    return Section(TITLE, _summary(account), findings=(*account.findings, *further), facts=facts, tables=tables)


def unjudged(account: Account) -> list[Finding]:
    """What is not judged, as failures: something was given that all of the checkpoint was to be held against."""
    return list(map(_not_judged, account.of(State.NOT_JUDGED)))


def _summary(account: Account) -> str:
    """What is harmless does not count: a build is judged before its card and its evidence are written."""
    everything = _counted(item for item in account.judged if item.state is not State.HARMLESS)
    left = list(account.of(State.NOT_JUDGED))
    if not left:
        return f"{everything}: each is held"
    reasons = "; ".join(dict.fromkeys(item.by for item in left))
    return f"{everything}; of these not judged: {_counted(left)} ({reasons})"


def _counted(items: Iterable[Judged]) -> str:
    counts = dict.fromkeys(Kind, 0)
    for item in items:
        counts[item.kind] += len(item.names)
    said = [f"{count:,} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items() if count]
    return ", ".join(said) or "nothing"


def _not_judged(item: Judged) -> Finding:
    return Finding(
        "account/not-judged",
        Severity.ERROR,
        _names(item),
        f"{'is' if len(item.names) == 1 else 'are'} not judged: {item.by}",
        count=len(item.names),
        remedy="give the base itself to compare with, or take out what does not belong there",
    )


def _row(item: Judged) -> tuple[str | int | float, ...]:
    return str(item.kind), str(item.state), item.by, len(item.names), _names(item)


def _names(item: Judged) -> str:
    names: Sequence[str] = item.names
    if item.kind is Kind.TENSOR:
        names = [str(pattern) for pattern in compact(item.names)]
    elif item.kind is Kind.FILE:
        names = _by_folder(item.names)
    more = f", and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _by_folder(names: Sequence[str]) -> list[str]:
    """Names of files; several in one folder are counted."""
    folders = Counter(name.partition("/")[0] for name in names if name.partition("/")[2])
    alone = [name for name in names if folders[name.partition("/")[0]] < 2]
    return alone + [f"{count} files in {folder}/" for folder, count in folders.items() if count > 1]
