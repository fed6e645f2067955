"""Expressions with lookarounds, matched without backtracking.

RE2 has no lookarounds, and Python's ``re`` can be made to run for years. Only whether an expression matches counts
here, not which way it went. So a match can be computed on whole sets of positions: what an expression reaches from a
set, and from where it reaches one. A lookahead holds where its expression reaches anything, a lookbehind where it is
reached from anything. Sets are bits of an integer; Python's own parser says what an expression means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from importlib import import_module
from typing import Any, NamedTuple

_SRE: Any = import_module("re._parser")
_CODES: Any = import_module("re._constants")

ALLOWANCE = 30_000_000
"""Steps that the expressions of one list may take altogether, for all names: half a minute or less. An expression as
people write them takes some twenty a name; no list of them comes near, and what does is no honest one."""


class NotCovered(ValueError):
    """An expression that cannot be matched on sets of positions, or not in the steps that it is allowed."""


class Steps:
    """What the expressions of one list have taken, and what they may."""

    def __init__(self) -> None:
        self.left = ALLOWANCE

    def take(self) -> None:
        """Count one step.

        Raises:
            NotCovered: none is left.
        """
        self.left -= 1
        if self.left < 0:
            raise NotCovered("it takes more steps than any honest one")


class _Text:
    """A name, with the positions at which each of its characters stands."""

    def __init__(self, text: str, steps: Steps) -> None:
        self.text = text
        self.take = steps.take
        self.every = (1 << len(text) + 1) - 1
        self.at: dict[str, int] = {}
        for position, character in enumerate(text):
            self.at[character] = self.at.get(character, 0) | 1 << position
        self._known: dict[object, int] = {}

    def having(self, holds: Callable[[str], bool]) -> int:
        """Positions of the characters for which `holds`."""
        self.take()
        if holds not in self._known:
            self._known[holds] = sum(mask for character, mask in self.at.items() if holds(character))
        return self._known[holds]

    def begins(self, word: str) -> int:
        """Positions at which `word` begins."""
        self.take()
        if word not in self._known:
            found, position = 0, self.text.find(word)
            while position >= 0:
                found |= 1 << position
                position = self.text.find(word, position + 1)
            self._known[word] = found
        return self._known[word]

    @cached_property
    def words(self) -> int:
        """Positions of characters that ``\\w`` matches."""
        return sum(mask for character, mask in self.at.items() if re.match(r"\w", character))

    @cached_property
    def lines(self) -> int:
        """Positions right behind a line's end."""
        return self.at.get("\n", 0) << 1


Step = Callable[[_Text, int], int]


class _Node(NamedTuple):
    """What a part of an expression reaches from a set of positions, and from where it reaches one."""

    ahead: Step
    back: Step
    characters: _Characters | None = None


class Expression:
    """An expression as ``re.match`` reads it, matched in steps that are counted.

    Raises:
        NotCovered: it has a back-reference, a condition, an atomic group or a possessive repetition.
        re.error: it does not compile.
    """

    def __init__(self, expression: str) -> None:
        tree = _SRE.parse(expression)
        self._root = _sequence(tree, tree.state.flags)

    def matches(self, name: str, steps: Steps) -> bool:
        """Whether the expression matches from the start of `name`.

        Raises:
            NotCovered: it takes more steps than are left.
        """
        return self._root.ahead(_Text(name, steps), 1) != 0


@lru_cache(maxsize=1024)
def expression(text: str) -> Expression:
    """The expression, compiled once."""
    return Expression(text)


def _sequence(items: Sequence[Any], flags: int) -> _Node:
    nodes: list[_Node] = []
    word = ""
    for code, argument in items:
        if code is _CODES.LITERAL and not flags & re.IGNORECASE:
            word += chr(argument)
            continue
        nodes += [_word(word)] if word else []
        word = ""
        nodes.append(_node(code, argument, flags))
    nodes += [_word(word)] if word else []
    if len(nodes) == 1:
        return nodes[0]
    return _Node(_one_by_one([node.ahead for node in nodes]), _one_by_one([node.back for node in reversed(nodes)]))


def _one_by_one(steps: Sequence[Step]) -> Step:
    def all_of_them(text: _Text, positions: int) -> int:
        text.take()
        for step in steps:
            if not positions:
                return 0
            positions = step(text, positions)
        return positions

    return all_of_them


def _node(code: Any, argument: Any, flags: int) -> _Node:
    maker = _MAKERS.get(code)
    if maker is None:
        raise NotCovered(f"it uses {str(code).lower().replace('_', ' ')}")
    return maker(argument, flags)


def _word(word: str) -> _Node:
    """Characters one after the other."""
    if len(word) == 1:
        return _character(word.__eq__)
    size = len(word)
    return _Node(
        lambda text, positions: (positions & text.begins(word)) << size,
        lambda text, positions: positions >> size & text.begins(word),
    )


class _Characters(NamedTuple):
    """One character of a set: of those for which `holds`."""

    holds: Callable[[str], bool]

    def ahead(self, text: _Text, positions: int) -> int:
        return (positions & text.having(self.holds)) << 1

    def back(self, text: _Text, positions: int) -> int:
        return positions >> 1 & text.having(self.holds)

    def run_ahead(self, text: _Text, positions: int) -> int:
        """What any number of such characters reaches, by runs of one, two, four, eight of them."""
        run, size = text.having(self.holds), 1
        while size <= len(text.text):
            positions |= (positions & run) << size
            run, size = run & run >> size, size * 2
        return positions

    def run_back(self, text: _Text, positions: int) -> int:
        """From where any number of such characters reaches `positions`."""
        run, size = text.having(self.holds), 1
        while size <= len(text.text):
            positions |= positions >> size & run
            run, size = run & run >> size, size * 2
        return positions


def _character(holds: Callable[[str], bool]) -> _Node:
    one = _Characters(holds)
    return _Node(one.ahead, one.back, one)


def _not_literal(argument: int, flags: int) -> _Node:
    equal = _equal(argument, flags)
    return _character(lambda character: not equal(character))


def _equal(code: int, flags: int) -> Callable[[str], bool]:
    pattern = re.compile(re.escape(chr(code)), flags & (re.IGNORECASE | re.ASCII))
    return lambda character: pattern.match(character) is not None


def _any(_argument: None, flags: int) -> _Node:
    return _character((lambda _: True) if flags & re.DOTALL else (lambda character: character != "\n"))


def _set(argument: Sequence[tuple[Any, Any]], flags: int) -> _Node:
    negated = bool(argument) and argument[0][0] is _CODES.NEGATE
    members = argument[1:] if negated else argument
    tests = [_member(code, value, flags) for code, value in members]
    return _character(lambda character: any(test(character) for test in tests) is not negated)


def _member(code: Any, value: Any, flags: int) -> Callable[[str], bool]:
    if code is _CODES.LITERAL:
        return _equal(value, flags)
    if code is _CODES.RANGE:
        low, high = (re.escape(chr(bound)) for bound in value)
        pattern = re.compile(f"[{low}-{high}]", flags & (re.IGNORECASE | re.ASCII))
    elif code is _CODES.CATEGORY and value in _CATEGORIES:
        pattern = re.compile(_CATEGORIES[value], flags & re.ASCII)
    else:
        raise NotCovered("it uses an unusual set of characters")
    return lambda character: pattern.match(character) is not None


_CATEGORIES: Mapping[Any, str] = {
    _CODES.CATEGORY_DIGIT: r"\d",
    _CODES.CATEGORY_NOT_DIGIT: r"\D",
    _CODES.CATEGORY_SPACE: r"\s",
    _CODES.CATEGORY_NOT_SPACE: r"\S",
    _CODES.CATEGORY_WORD: r"\w",
    _CODES.CATEGORY_NOT_WORD: r"\W",
}


def _where(place: Callable[[_Text], int]) -> _Node:
    """What reaches nothing further, and holds at certain positions."""

    def stay(text: _Text, positions: int) -> int:
        text.take()
        return positions & place(text)

    return _Node(stay, stay)


def _at(argument: Any, flags: int) -> _Node:
    many = bool(flags & re.MULTILINE)
    if argument is _CODES.AT_BEGINNING:
        return _where(lambda text: 1 | text.lines if many else 1)
    if argument is _CODES.AT_BEGINNING_STRING:
        return _where(lambda _: 1)
    if argument is _CODES.AT_END_STRING:
        return _where(lambda text: 1 << len(text.text))
    if argument is _CODES.AT_END:
        return _where(lambda text: _ends(text, many))
    if argument in (_CODES.AT_BOUNDARY, _CODES.AT_NON_BOUNDARY) and not flags & re.ASCII:
        inside = argument is _CODES.AT_NON_BOUNDARY
        return _where(lambda text: _boundaries(text, inside))
    raise NotCovered("it uses an unusual anchor")


def _ends(text: _Text, many: bool) -> int:
    size = len(text.text)
    found = 1 << size
    if text.text.endswith("\n"):
        found |= 1 << size - 1
    return found | text.at.get("\n", 0) if many else found


def _boundaries(text: _Text, inside: bool) -> int:
    if not text.text:  # Python finds neither in an empty text
        return 0
    edges = text.words ^ text.words << 1
    return text.every & ~edges if inside else edges


def _branch(argument: tuple[Any, Sequence[Any]], flags: int) -> _Node:
    nodes = [_sequence(items, flags) for items in argument[1]]
    return _Node(_together([node.ahead for node in nodes]), _together([node.back for node in nodes]))


def _together(steps: Sequence[Step]) -> Step:
    def any_of_them(text: _Text, positions: int) -> int:
        text.take()
        reached = 0
        for step in steps:
            reached |= step(text, positions)
        return reached

    return any_of_them


def _group(argument: tuple[Any, int, int, Sequence[Any]], flags: int) -> _Node:
    _, added, removed, items = argument
    return _sequence(items, (flags | added) & ~removed)


def _repeat(argument: tuple[int, Any, Sequence[Any]], flags: int) -> _Node:
    least, most, items = argument
    inner = _sequence(items, flags)
    bound = None if most is _CODES.MAXREPEAT else int(most)
    only = inner.characters
    if only is not None and bound is None and least <= 1:
        if least == 0:
            return _Node(only.run_ahead, only.run_back)
        return _Node(
            lambda text, positions: only.run_ahead(text, only.ahead(text, positions)),
            lambda text, positions: only.run_back(text, only.back(text, positions)),
        )
    return _Node(_repeated(inner.ahead, int(least), bound), _repeated(inner.back, int(least), bound))


def _repeated(step: Step, least: int, most: int | None) -> Step:
    def repeated(text: _Text, positions: int) -> int:
        for _ in range(least):
            text.take()
            before, positions = positions, step(text, positions)
            if positions == before:
                break
        reached = fresh = positions
        count = least
        while fresh and (most is None or count < most):
            text.take()
            fresh = step(text, fresh) & ~reached
            reached |= fresh
            count += 1
        return reached

    return repeated


def _assert_not(argument: tuple[int, Sequence[Any]], flags: int) -> _Node:
    asserted = _asserted(argument, flags)
    return _where(lambda text: text.every & ~asserted(text))


def _asserted(argument: tuple[int, Sequence[Any]], flags: int) -> Callable[[_Text], int]:
    """The positions where a lookahead (direction 1) or a lookbehind (-1) holds."""
    direction, items = argument
    node = _sequence(items, flags)
    step = node.back if direction > 0 else node.ahead
    return lambda text: step(text, text.every)


_MAKERS: Mapping[Any, Callable[[Any, int], _Node]] = {
    _CODES.LITERAL: lambda code, flags: _character(_equal(code, flags)),
    _CODES.NOT_LITERAL: _not_literal,
    _CODES.ANY: _any,
    _CODES.IN: _set,
    _CODES.AT: _at,
    _CODES.BRANCH: _branch,
    _CODES.SUBPATTERN: _group,
    _CODES.MAX_REPEAT: _repeat,
    _CODES.MIN_REPEAT: _repeat,
    _CODES.ASSERT: lambda argument, flags: _where(_asserted(argument, flags)),
    _CODES.ASSERT_NOT: _assert_not,
    _CODES.FAILURE: lambda _, __: _where(lambda _: 0),
}
