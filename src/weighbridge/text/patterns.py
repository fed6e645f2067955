"""Names of modules against llm-compressor's patterns.

An entry is a plain name that must be equal, or ``re:`` and a regular expression that must match from the start of the
name (not to its end): compressed-tensors' ``match_name``. Python's own ``re`` can be made to run for years by a
stranger's pattern, so matching is done by RE2, in time linear in the name. Lookarounds, which RE2 lacks, are matched by
`weighbridge.text.lookarounds` in a bounded number of steps; what neither can express (back-references, say) is refused
by name rather than guessed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import re2

from weighbridge.errors import WeighbridgeError
from weighbridge.text import lookarounds

REGEX_PREFIX = "re:"
MAX_PATTERN_LENGTH = 512
MAX_EXPRESSIONS = 1024
LOOKAROUNDS = ("(?=", "(?!", "(?<=", "(?<!")

_NO_LOWER_BOUND = re.compile(r"(?<!\\)\{,\d+\}")
_POSIX_CLASS = re.compile(r"\[:\^?\w+:\]")


class PatternError(WeighbridgeError):
    """A pattern that does not compile, or that cannot be matched in a bounded time."""


class PatternList:
    """Entries of an ignore or target list, compiled together; see `pattern_list`.

    Most names match none of the expressions, so one combined expression is tried first.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self.entries = tuple(entries)
        self._exact: dict[str, list[int]] = {}
        self._regexes: list[tuple[int, Any]] = []
        self._looking: list[tuple[int, lookarounds.Expression]] = []
        self._steps = lookarounds.Steps()
        for index, entry in enumerate(self.entries):
            if not entry.startswith(REGEX_PREFIX):
                self._exact.setdefault(entry, []).append(index)
                continue
            compiled = compile_pattern(entry)
            if isinstance(compiled, lookarounds.Expression):
                self._looking.append((index, compiled))
            else:
                self._regexes.append((index, compiled))
            if len(self._regexes) + len(self._looking) > MAX_EXPRESSIONS:
                raise PatternError(f"more than {MAX_EXPRESSIONS} expressions stand in one list")
        self._any = _compile_any(self.entries[index].removeprefix(REGEX_PREFIX) for index, _ in self._regexes)
        self._matched: dict[str, list[int]] = {}

    def matches(self, name: str) -> list[int]:
        """Indices of all entries that match a module name, ascending.

        Raises:
            PatternError: expressions with lookarounds take more steps than any honest ones would.
        """
        found = self._matched.get(name)
        if found is None:
            found = self._exact.get(name, [])
            if self._any is None or self._any.match(name) is not None:
                found = found + [index for index, regex in self._regexes if regex.match(name) is not None]
            found = found + [index for index, looking in self._looking if self._looks(index, looking, name)]
            self._matched[name] = found = sorted(found)
        return found

    def has(self, name: str) -> bool:
        """Whether any entry matches a module name; of many expressions none is tried by itself.

        Raises:
            PatternError: as `matches`.
        """
        if self._any is None or self._looking:
            return bool(self.matches(name))
        return name in self._exact or self._any.match(name) is not None

    def first(self, name: str) -> int | None:
        """Index of the first entry that matches a module name."""
        found = self.matches(name)
        return found[0] if found else None

    def _looks(self, index: int, expression: lookarounds.Expression, name: str) -> bool:
        try:
            return expression.matches(name, self._steps)
        except lookarounds.NotCovered as reason:
            what = f"the pattern {self.entries[index][:80]!r} cannot be matched in a bounded time ({reason})"
            raise PatternError(what, remedy="nest fewer repetitions in it") from None


@lru_cache(maxsize=64)
def pattern_list(entries: tuple[str, ...]) -> PatternList:
    """The compiled list of these entries, which remembers what it has matched.

    Raises:
        PatternError: an expression does not compile, or cannot be matched in a bounded time.
    """
    return PatternList(entries)


def compile_pattern(entry: str) -> Any:
    """Compile the expression of a ``re:`` entry: for RE2, or where it has lookarounds as a `lookarounds.Expression`.

    Raises:
        PatternError: it does not compile, or cannot be matched in a bounded time.
    """
    expression = entry.removeprefix(REGEX_PREFIX)
    if len(expression) > MAX_PATTERN_LENGTH:
        raise PatternError(f"the pattern {expression[:40]!r}... is {len(expression):,} characters long")
    if not expression.isascii():
        raise PatternError(f"the pattern {entry[:80]!r} has characters that no module name has")
    if _POSIX_CLASS.search(expression):  # to Python a set of other characters
        raise PatternError(f"the pattern {entry[:80]!r} uses a class of POSIX", remedy="write [a-z] for [[:lower:]]")
    if _NO_LOWER_BOUND.search(expression):  # to RE2 plain text
        raise PatternError(f"the pattern {entry[:80]!r} repeats without a lower bound", remedy="write {0,n} for {,n}")
    try:
        compiled = re2.compile(expression, _options())
    except re2.error as problem:
        if not any(construct in expression for construct in LOOKAROUNDS) or _python_problem(expression):
            raise _explain(entry, problem) from None
        return _with_lookarounds(entry)
    refusal = _python_problem(expression)  # llm-compressor and vLLM match with Python's own, which must take it too
    if refusal:
        raise PatternError(f"the pattern {entry[:80]!r} does not compile in Python ({refusal})")
    return compiled


def _with_lookarounds(entry: str) -> lookarounds.Expression:
    try:
        return lookarounds.expression(entry.removeprefix(REGEX_PREFIX))
    except (lookarounds.NotCovered, RecursionError) as problem:
        reason = str(problem) if isinstance(problem, lookarounds.NotCovered) else "it is nested too deeply"
        raise PatternError(f"the pattern {entry[:80]!r} cannot be matched in a bounded time ({reason})") from None


def check_pattern(entry: str) -> None:
    """Check that an entry can be matched; a plain name always can.

    Raises:
        PatternError: its expression does not compile, or cannot be matched in a bounded time.
    """
    if entry.startswith(REGEX_PREFIX):
        compile_pattern(entry)


def _compile_any(expressions: Iterable[str]) -> Any | None:
    """One expression that matches what any of them does; None where they do not fit together."""
    try:
        return re2.compile("|".join(f"(?:{expression})" for expression in expressions) or r"\b\B", _options())
    except re2.error:
        return None


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    return options


def _explain(entry: str, problem: Exception) -> PatternError:
    expression = entry.removeprefix(REGEX_PREFIX)
    detail = problem.args[0] if problem.args else problem
    detail = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else detail
    python_problem = _python_problem(expression)
    if python_problem:
        return PatternError(f"the pattern {entry!r} does not compile ({python_problem})", remedy=_remedy(expression))
    return PatternError(f"the pattern {entry!r} cannot be matched in linear time ({detail})")


def _python_problem(expression: str) -> str:
    """Why Python's ``re`` does not take an expression, or would read it otherwise tomorrow; empty where it does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            re.compile(expression)
    except (re.error, ValueError, OverflowError, RecursionError, Warning) as problem:
        return str(problem)
    return ""


def _remedy(expression: str) -> str:
    if expression.startswith("*"):
        return f"did you mean 're:.{expression}'?"
    return "check brackets and backslashes"
