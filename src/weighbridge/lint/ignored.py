"""Lint of the patterns themselves: what they match, and what they were meant to match."""

from __future__ import annotations

import re
from collections.abc import Iterator

from weighbridge.lint.rules import Raised
from weighbridge.patterns import REGEX_PREFIX, PatternError, compile_pattern, pattern_list
from weighbridge.plan import Plan
from weighbridge.quantization import LINEAR

_REGEX_LIKE = re.compile(r"[*+?^$|\\()\[\]]|\.\*")


def check(plan: Plan) -> Iterator[Raised]:
    """Entries of the ignore list and of targets that match nothing, or nothing of their own."""
    modules = plan.modules
    entries = plan.loaded.recipe.ignored
    patterns = pattern_list(entries)
    matched: list[set[str]] = [set() for _ in entries]
    for module in modules:
        for index in patterns.matches(module):
            matched[index].add(module)
    for index, entry in enumerate(entries):
        where = f"{plan.loaded.location('ignore', index)} {entry}"
        if not matched[index]:
            yield _unmatched(entry, index, where, plan)
            continue
        others = [(other, names) for other, names in zip(entries, matched, strict=True) if other != entry]
        cover = next((other for other, names in others if matched[index] <= names), None)
        twin = cover is not None and matched[entries.index(cover)] == matched[index]
        if cover is not None and not (twin and entries.index(cover) > index):
            yield Raised(
                "ignore/redundant",
                where,
                f"all that it matches is matched by {cover}",
                "take one of the two out",
                entry=index,
            )
    yield from _targets(plan, modules)


def _unmatched(entry: str, index: int, where: str, plan: Plan) -> Raised:
    modules = plan.modules
    if entry in plan.tied_modules:
        return Raised(
            "ignore/tied",
            where,
            "is tied to the embedding by config.json and not stored; kept for servers",
            entry=index,
        )
    if not entry.startswith(REGEX_PREFIX) and _REGEX_LIKE.search(entry):
        suggestion = _suggest(entry, modules)
        return Raised(
            "ignore/lacks-re", where, "looks like a regular expression, but without re: it is a plain name",
            f"did you mean {suggestion}?", entry=index,
        )  # fmt: skip
    found = _search(entry, modules)
    if found is not None:
        expression = entry.removeprefix(REGEX_PREFIX) if entry.startswith(REGEX_PREFIX) else re.escape(entry)
        end = "" if entry.startswith(REGEX_PREFIX) and not found.endswith(expression) else "$"
        return Raised(
            "ignore/anchored", where,
            f"matches nothing, because names are matched from their start; {found} contains it",
            f"did you mean {REGEX_PREFIX}.*{expression.removeprefix('.*').removeprefix('^').removesuffix('$')}{end}?",
            entry=index,
        )  # fmt: skip
    return Raised(
        "ignore/matches-nothing", where, "matches no module of the source", "correct it, or take it out", entry=index
    )


def _search(entry: str, modules: tuple[str, ...]) -> str | None:
    """A module in which the entry's expression occurs anywhere; the shortest, as the plainest example."""
    expression = (
        entry.removeprefix(REGEX_PREFIX).removeprefix("^") if entry.startswith(REGEX_PREFIX) else re.escape(entry)
    )
    try:
        regex = compile_pattern(f"{REGEX_PREFIX}.*(?:{expression})")
    except PatternError:
        return None
    return min((module for module in modules if regex.match(module) is not None), key=len, default=None)


def _suggest(entry: str, modules: tuple[str, ...]) -> str:
    """The expression that a glob or a forgotten prefix was meant to be."""
    glob = re.sub(r"(?<!\.)\*", ".*", re.sub(r"\.(?![*+?])", r"\\.", entry)) if "*" in entry else entry
    for candidate in (f"{REGEX_PREFIX}{entry}", f"{REGEX_PREFIX}{glob}", f"{REGEX_PREFIX}.*{glob}"):
        try:
            regex = compile_pattern(candidate)
        except PatternError:
            continue
        if any(regex.match(module) is not None for module in modules):
            return candidate
    return f"{REGEX_PREFIX}{entry}"


def _targets(plan: Plan, modules: tuple[str, ...]) -> Iterator[Raised]:
    for name, group in (plan.loaded.recipe.config_groups or {}).items():
        for index, target in enumerate(group.targets):
            if target != LINEAR and not any(pattern_list((target,)).matches(module) for module in modules):
                where = f"{plan.loaded.location('config_groups', name, 'targets', index)} {target}"
                yield Raised(
                    "targets/matches-nothing", where, "targets no module of the source", "correct it, or take it out"
                )
