"""fnmatch's wildcards as ``re:`` patterns of the same effect, in the syntax that RE2 shares with Python."""

from __future__ import annotations

import re


def is_wildcard(entry: str) -> bool:
    """Whether fnmatch takes more of an entry than its own text."""
    return any(character in entry for character in "*?[")


def pattern_of(entry: str) -> str:
    """The ``re:`` pattern that matches a whole name exactly where ``fnmatch.fnmatchcase(name, entry)`` does."""
    parts, position = [], 0
    while position < len(entry):
        character = entry[position]
        position += 1
        if character == "[":
            end = _end_of_set(entry, position)
            parts.append(r"\[" if end is None else _set(entry[position:end]))
            position = position if end is None else end + 1
        else:
            parts.append({"*": ".*", "?": "."}.get(character) or re.escape(character))
    return f"re:{''.join(parts)}$"


def _end_of_set(entry: str, begin: int) -> int | None:
    """Where the bracket closes that opened before `begin`; one right after it, or after ``!``, belongs to the set."""
    first = begin + 1 if entry[begin : begin + 1] == "!" else begin
    end = entry.find("]", first + 1)
    return None if end < 0 else end


def _set(content: str) -> str:
    """A set of fnmatch as one of re; a range whose end is before its beginning is empty, as in fnmatch."""
    negated, members = content.startswith("!"), content.removeprefix("!")
    found, position = [], 0
    while position < len(members):
        if members[position + 1 : position + 2] == "-" and position + 2 < len(members):
            low, high = members[position], members[position + 2]
            if low <= high:
                found.append(f"{_escaped(low)}-{_escaped(high)}")
            position += 3
        else:
            found.append(_escaped(members[position]))
            position += 1
    if not found:
        return "." if negated else r"[^\s\S]"
    return f"[{'^' if negated else ''}{''.join(found)}]"


def _escaped(character: str) -> str:
    return character if character.isalnum() or character == "_" else f"\\{character}"
