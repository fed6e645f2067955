"""What a pattern that matches nothing was meant to be. Nothing is suggested that would match nothing either."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from weighbridge.checkpoint.modules import FUSED_EXPERTS
from weighbridge.formats.declaration import LINEAR
from weighbridge.planning import Plan
from weighbridge.text.patterns import REGEX_PREFIX, PatternError, pattern_list

_MISSPELT_PREFIX = re.compile(r"^(?:regexp?|re)\s*:\s*", re.IGNORECASE)
_PARAMETER = re.compile(r"\\?\.(?:weight|bias)(\$?)$")
_BEGINNING = re.compile(r"^\^?(?:(?:model|language_model)\\?\.)+")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{3,}")


def matching(entry: str, names: Iterable[str]) -> list[str]:
    """The names that an entry matches; none where it is no entry that a recipe may have."""
    try:
        patterns = pattern_list((entry,))
    except PatternError:
        return []
    return [name for name in names if patterns.matches(name)]


def expression_of(entry: str) -> str:
    """An entry as a regular expression, without its anchors."""
    if not entry.startswith(REGEX_PREFIX):
        return re.escape(entry)
    return entry.removeprefix(REGEX_PREFIX).removeprefix("^").removesuffix("$")


def with_prefix(entry: str, names: Iterable[str]) -> str | None:
    """The ``re:`` entry that a glob, or an expression whose ``re:`` was forgotten or misspelt, was meant to be."""
    names = tuple(names)
    core = _MISSPELT_PREFIX.sub("", entry)
    glob = re.sub(r"(?<!\.)\*", ".*", re.sub(r"\.(?![*+?])", r"\\.", core)) if "*" in core else core
    candidates = (f"{REGEX_PREFIX}{core}", f"{REGEX_PREFIX}{glob}", f"{REGEX_PREFIX}.*{glob}")
    return next((candidate for candidate in candidates if matching(candidate, names)), None)


def unanchored(entry: str, names: Iterable[str]) -> tuple[str, str] | None:
    """An entry that would match if names were not matched from their start, and the shortest name that it would match.

    The end is anchored only where that makes no difference: what was meant to be kept is kept either way.
    """
    names = tuple(names)
    open_end = f"{REGEX_PREFIX}.*{expression_of(entry)}"
    found = matching(open_end, names)
    if not found:
        return None
    closed = f"{open_end}$"
    return (closed if matching(closed, names) == found else open_end), min(found, key=len)


def remedy(entry: str, plan: Plan) -> str:
    """What to do about an entry that matches nothing, as far as its text tells."""
    if entry == LINEAR:
        return "Linear is a class and belongs into targets; ignore takes names of modules"
    names = (*plan.modules, *plan.tied_modules)
    expression = expression_of(entry)
    anywhere = f"{REGEX_PREFIX}.*{expression.removeprefix('.*')}"
    module = _without_parameter(entry, names)
    if module:
        return f"patterns name modules, not tensors: did you mean {module}?"
    fused = (name for name in plan.source.structure if name.endswith(tuple(FUSED_EXPERTS)))
    split = matching(anywhere, fused)
    if split:
        example = next(part.module for part in plan.parts if part.source == split[0])
        return f"fused experts are split before names are matched, into modules such as {example}"
    for merged, members in plan.source.family.merged.items():
        spelt = anywhere.replace(merged, f"({'|'.join(members)})")
        if merged in expression and matching(spelt, names):
            return f"{merged} is what servers call {', '.join(members)}: did you mean {spelt}?"
    elsewhere = f"{REGEX_PREFIX}.*{_BEGINNING.sub('', expression)}"
    if elsewhere != anywhere:
        meant = next((meant for meant in (f"{elsewhere}$", elsewhere) if matching(meant, names)), None)
        if meant:
            return f"names begin otherwise here: did you mean {meant}?"
    return _spelling(entry, names) or "correct it, or take it out"


def _without_parameter(entry: str, names: Iterable[str]) -> str | None:
    """The entry that names the module of the tensor that `entry` names."""
    names = tuple(names)
    shorter = _PARAMETER.sub(r"\1", entry)
    if shorter == entry:
        return None
    if matching(shorter, names):
        return shorter
    found = unanchored(shorter, names)
    return found[0] if found else None


def _spelling(entry: str, names: Iterable[str]) -> str:
    parts = {part for name in names for part in name.split(".")}
    known = "\n".join(parts)
    for word in _WORD.findall(entry.removeprefix(REGEX_PREFIX)):
        close = [] if word in known else get_close_matches(word, parts, n=1, cutoff=0.75)
        if close:
            return f"{word} occurs in no name: did you mean {close[0]}?"
    return ""
