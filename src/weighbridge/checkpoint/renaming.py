"""What two structures call otherwise: rules that turn the names of one into those of the other.

A rule is one of three kinds: another prefix, one part of the name that is called otherwise, or the number of an expert
that stands behind its projection in place of before it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from weighbridge.text.names import split_name

_EXPERT_LAST = re.compile(r"(?P<experts>(?:.*\.)?experts)\.(?P<member>[A-Za-z_]\w*)\.(?P<number>\d+)(?P<rest>\..*)?")
_EXPERT_FIRST = re.compile(r"(?P<experts>(?:.*\.)?experts)\.(?P<number>\d+)\.(?P<member>[A-Za-z_]\w*)(?P<rest>\..*)?")
SAMPLE = 64
"""Names from which rules are guessed, and with which each is compared: structures have hundreds of thousands."""
MOST_RULES = 4


def usual_name(name: str) -> str:
    """A name with the number of its expert where loaders look for it: ``experts.0.gate_proj`` of ``gate_proj.0``."""
    match = _EXPERT_LAST.fullmatch(name)
    if match is None:
        return name
    return f"{match['experts']}.{match['number']}.{match['member']}{match['rest'] or ''}"


@dataclass(frozen=True)
class Renaming:
    """A rule and what it renames.

    Attributes:
        rule: what is called otherwise, in a clause.
        names: here -> there.
    """

    rule: str
    names: Mapping[str, str]


def find_renamings(here: Collection[str], there: Collection[str]) -> list[Renaming]:
    """Rules by which names of `here` become names of `there`, the one that renames most first.

    One name that is called otherwise is no rule: it is missing, and another is too much.

    Args:
        here: names that `there` does not have.
        there: names that `here` does not have.
    """
    left, wanted = list(here), set(there)
    found: list[Renaming] = []
    while left and wanted and len(found) < MOST_RULES:
        best = max(_candidates(left, wanted), key=lambda renaming: len(renaming.names), default=None)
        if best is None:
            break
        found.append(best)
        left = [name for name in left if name not in best.names]
        wanted.difference_update(best.names.values())
    return found


def _candidates(here: list[str], there: set[str]) -> Iterator[Renaming]:
    """The rules that hold of most names in a sample, each with all that it renames."""
    sample = random.Random(0).sample(here, min(SAMPLE, len(here)))  # noqa: S311 (the same names each time)
    alike: dict[tuple[tuple[int, ...], str], list[str]] = {}
    for name in there:
        alike.setdefault(_numbers_and_end(name), []).append(name)
    rules = dict.fromkeys(
        rule for name in sample for rule in _suggested(name, there, alike.get(_numbers_and_end(name), []))
    )
    hits = {rule: sum(_renames(rule, name, there) for name in sample) for rule in rules}
    likely = sorted((rule for rule in rules if hits[rule]), key=lambda rule: -hits[rule])
    for rule in likely[:MOST_RULES]:
        names = {name: _applied(rule, name) for name in here if _renames(rule, name, there)}
        if len(names) > 1 and len(set(names.values())) == len(names):
            yield Renaming(_said(rule), names)


def _renames(rule: tuple[str, ...], name: str, there: set[str]) -> bool:
    other = _applied(rule, name)
    return other != name and other in there


def _numbers_and_end(name: str) -> tuple[tuple[int, ...], str]:
    """What no rule changes: the numbers in a name, and its last part."""
    return split_name(name)[1], name.rpartition(".")[2]


def _suggested(name: str, there: set[str], alike: list[str]) -> Iterator[tuple[str, ...]]:
    """The rules that would turn a name into one of `there`; `alike` are those with the same numbers and end."""
    if _applied(("expert",), name) in there:
        yield ("expert",)
    parts = name.split(".")
    for other in alike[:SAMPLE]:
        theirs = other.split(".")
        if name.endswith(f".{other}"):
            yield ("prefix", name.removesuffix(other), "")
        elif other.endswith(f".{name}"):
            yield ("prefix", "", other.removesuffix(name))
        elif len(parts) == len(theirs):
            differing = [(own, its) for own, its in zip(parts, theirs, strict=True) if own != its]
            if len(differing) == 1:
                yield ("part", *differing[0])


def _applied(rule: tuple[str, ...], name: str) -> str:
    match rule:
        case ("prefix", old, new):
            return new + name.removeprefix(old) if name.startswith(old) else name
        case ("part", old, new):
            return ".".join(new if part == old else part for part in name.split("."))
        case _:
            usual = usual_name(name)
            if usual != name:
                return usual
            match = _EXPERT_FIRST.fullmatch(name)
            if match is None:
                return name
            return f"{match['experts']}.{match['member']}.{match['number']}{match['rest'] or ''}"


def _said(rule: tuple[str, ...]) -> str:
    match rule:
        case ("prefix", old, new):
            return f"begins with {old or 'nothing'} where the other begins with {new or 'nothing'}"
        case ("part", old, new):
            return f"says {old} where the other says {new}"
        case _:
            return "has the number of the expert on the other side of its projection"
