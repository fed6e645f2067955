"""The account as a part of a report: one line where all is held, a table where something is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from weighbridge.account.model import Account, Judged, Kind, State
from weighbridge.report import Finding, Section, Severity
from weighbridge.text.names import compact

TITLE = "the account"
_UNCOUNTED = f"{State.HARMLESS}, not counted above"
MOST_NAMED = 3
"""Names that are shown of what is alike; of more than so many the rest is counted."""
MOST_KEYS_NAMED = 10
"""Keys that a failure names; of more than so many the rest is counted."""


def account_section(account: Account, base: str, further: Iterable[Finding] = ()) -> Section:
    """The account in a report: one line and what is harmless, or where something is not judged all of it.

    Args:
        base: which base the checkpoint is held against, and how that was found.
        further: findings beside the account's own: those of `unjudged`, where it is to be closed.
    """
    open_to_doubt = any(True for _ in account.of(State.NOT_JUDGED))
    shown = account.judged if open_to_doubt else tuple(account.of(State.HARMLESS))
    findings = (*account.findings, *further)
    wrong = sum(finding.severity is Severity.ERROR for finding in account.findings)
    return Section("account", TITLE, _summary(account, wrong), findings=findings, facts={"base": base, **_facts(shown)})


def _facts(items: Iterable[Judged]) -> dict[str, str | int]:
    """By state and kind: how many, by what, and which."""
    said: dict[tuple[State, Kind], list[Judged]] = {}
    for item in items:
        said.setdefault((item.state, item.kind), []).append(item)
    return {
        f"{_UNCOUNTED if state is State.HARMLESS else state}: {_counted(alike)}": "; ".join(
            f"{_names(item)} ({item.by})" for item in alike
        )
        for (state, _), alike in sorted(said.items(), key=lambda row: list(State).index(row[0][0]))
    }


def unjudged(account: Account) -> list[Finding]:
    """What is not judged, as failures: something was given that all of the checkpoint was to be held against."""
    return list(map(_not_judged, account.of(State.NOT_JUDGED)))


def _summary(account: Account, wrong: int) -> str:
    """What is harmless does not count: a build is judged before its card and its evidence are written."""
    everything = _counted(item for item in account.judged if item.state is not State.HARMLESS)
    left = list(account.of(State.NOT_JUDGED))
    said = [f"{everything}, {f'of which {State.NOT_JUDGED}: {_counted(left)}' if left else 'all of them judged'}"]
    if wrong:
        said.append(f"{wrong} {'is' if wrong == 1 else 'are'} not as {'it' if wrong == 1 else 'they'} must be")
    return "; ".join(said)


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
        _keys(item.names) if item.kind is Kind.KEY else _names(item),
        f"{'is' if len(item.names) == 1 else 'are'} not judged: {item.by}",
        count=len(item.names),
        remedy="name the base itself, to compare with it, or take out what does not belong there",
    )


def _names(item: Judged) -> str:
    if item.kind is Kind.FILE:
        return ", ".join(_by_folder(item.names))
    names: Sequence[str] = item.names
    if item.kind is Kind.TENSOR:
        names = [str(pattern) for pattern in compact(item.names)]
    elif item.state is not State.HARMLESS:
        return "; ".join(_by_part(item.names))
    most = len(names) if item.state is State.HARMLESS else MOST_NAMED  # what passes for no more than its name is named
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _keys(names: Sequence[str]) -> str:
    """Keys by the file that they stand in, each by its whole name: ``config.json: text_config.a, text_config.b``."""
    files: dict[str, list[str]] = {}
    for name in names[:MOST_KEYS_NAMED]:
        file, _, path = name.partition(":")
        files.setdefault(file, []).append(path)
    named = "; ".join(f"{file}: {', '.join(paths)}" for file, paths in files.items())
    more = len(names) - MOST_KEYS_NAMED
    return f"{named}, and {more:,} more" if more > 0 else named


def _by_folder(names: Sequence[str]) -> list[str]:
    """Names of files; several in one folder are counted."""
    folders = Counter(name.partition("/")[0] for name in names if name.partition("/")[2])
    alone = [name for name in names if folders[name.partition("/")[0]] < 2]
    return alone + [f"{count} files in {folder}/" for folder, count in folders.items() if count > 1]


def _by_part(names: Sequence[str]) -> list[str]:
    """Keys by the file that they stand in; several below one key are counted: ``text_config (45)``."""
    parts: dict[str, Counter[str]] = {}
    for name in names:
        file, _, path = name.partition(":")
        parts.setdefault(file, Counter())[path.partition(".")[0]] += 1
    return [
        f"{file}: {', '.join(part if count == 1 else f'{part} ({count})' for part, count in found.items())}"
        for file, found in parts.items()
    ]
