"""Lint of the ignore list: what its entries match, and what they were meant to match."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from weighbridge.linting import suggest
from weighbridge.linting.rules import Raised
from weighbridge.planning import Plan
from weighbridge.text.patterns import REGEX_PREFIX, pattern_list

_REGEX_LIKE = re.compile(r"[*+?^$|\\()\[\]]")
# A number that stands in an expression as itself: not in a class, a count or an escape, and with nothing after it that
# could be meant to go on with the number.
_LITERAL_NUMBER = re.compile(r"(\\.|\[[^\]]*\]|\{[^}]*\})|([0-9]+)(?=[.)|]|$)")


def check(plan: Plan) -> Iterator[Raised]:
    """Entries that match nothing, nothing of their own, or more than they seem to."""
    entries = plan.loaded.recipe.ignored
    names = (*plan.modules, *sorted(plan.tied_modules))
    matched = _matched(entries, names)
    for index, entry in enumerate(entries):
        where = f"{plan.loaded.location('ignore', index)} {entry}"
        own = matched[index]
        cover = next((entries[other] for other in range(len(entries)) if _covers(other, index, matched)), None)
        if not own:
            yield _unmatched(entry, index, where, plan)
        elif cover is not None:
            yield Raised(
                "ignore/redundant",
                where,
                f"all that it matches is matched by {cover}",
                "take one of the two out",
                entry=index,
            )
        elif own <= plan.tied_modules:
            yield Raised(
                "ignore/tied",
                where,
                "matches only what config.json ties to the embedding and the source does not store; it is declared "
                "unquantized for servers",
                entry=index,
            )
        else:
            yield from open_number(entry, where, names, entry_index=index)


def open_number(entry: str, where: str, names: Sequence[str], *, entry_index: int | None = None) -> Iterator[Raised]:
    """An expression in which a number stands open at its end, where that makes it match longer numbers too."""
    if not entry.startswith(REGEX_PREFIX):
        return
    closed = _LITERAL_NUMBER.sub(lambda found: found[1] or rf"{found[2]}\b", entry)
    if closed == entry:
        return
    meant, matched = set(suggest.matching(closed, names)), suggest.matching(entry, names)
    surplus = next((name for name in matched if name not in meant), None)
    if meant and surplus is not None:
        yield Raised(
            "pattern/open-number",
            where,
            f"matches {len(matched):,} modules, among them {surplus}: nothing ends its number",
            f"did you mean {closed}?",
            entry=entry_index,
        )


def _matched(entries: tuple[str, ...], names: Sequence[str]) -> list[frozenset[str]]:
    patterns = pattern_list(entries)
    found: list[list[str]] = [[] for _ in entries]
    for name in names:
        for index in patterns.matches(name):
            found[index].append(name)
    return [frozenset(matched) for matched in found]


def _covers(other: int, index: int, matched: Sequence[frozenset[str]]) -> bool:
    """Whether an entry makes another redundant; of two that match the same, the later one is."""
    own, wider = matched[index], matched[other]
    return other != index and own <= wider and (own != wider or other < index)


def _unmatched(entry: str, index: int, where: str, plan: Plan) -> Raised:
    names = (*plan.modules, *plan.tied_modules)
    if not entry.startswith(REGEX_PREFIX) and _REGEX_LIKE.search(entry):
        meant = suggest.with_prefix(entry, names)
        return Raised(
            "ignore/lacks-re",
            where,
            "is taken as a plain name, because it does not begin with re:",
            f"did you mean {meant}?" if meant else f"write {REGEX_PREFIX} first, and check what it should match",
            entry=index,
        )
    found = suggest.unanchored(entry, names)
    if found is not None:
        meant, example = found
        how = "names are matched from their start" if entry.startswith(REGEX_PREFIX) else "a plain name is a whole name"
        return Raised(
            "ignore/anchored",
            where,
            f"matches nothing, because {how}; {example} contains it",
            f"did you mean {meant}?",
            entry=index,
        )
    return Raised(
        "ignore/matches-nothing", where, "matches no module of the source", suggest.remedy(entry, plan), entry=index
    )
