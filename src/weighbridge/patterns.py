"""Names of modules against llm-compressor's patterns.

An entry is a plain name that must be equal, or ``re:`` and a regular expression that must match from the start of the
name (not to its end): compressed-tensors' ``match_name``. Python's own ``re`` can be made to run for years by a
stranger's pattern, so matching is done by RE2, in time linear in the name; what RE2 cannot express (lookarounds,
back-references) is refused by name rather than guessed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import re2

from weighbridge.errors import WeighbridgeError

REGEX_PREFIX = "re:"
MAX_PATTERN_LENGTH = 512
MAX_EXPRESSIONS = 1024

_NO_LOWER_BOUND = re.compile(r"(?<!\\)\{,\d+\}")
_POSIX_CLASS = re.compile(r"\[:\^?\w+:\]")


class PatternError(WeighbridgeError):
    """A pattern that does not compile, or that cannot be matched in linear time."""


class PatternList:
    """Entries of an ignore or target list, compiled together; see `pattern_list`.

    Most names match none of the expressions, so one combined expression is tried first.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self.entries = tuple(entries)
        self._exact: dict[str, list[int]] = {}
        self._regexes: list[tuple[int, Any]] = []
        for index, entry in enumerate(self.entries):
            if entry.startswith(REGEX_PREFIX):
                self._regexes.append((index, compile_pattern(entry)))
            else:
                self._exact.setdefault(entry, []).append(index)
            if len(self._regexes) > MAX_EXPRESSIONS:
                raise PatternError(f"more than {MAX_EXPRESSIONS} expressions stand in one list")
        expressions = (entry.removeprefix(REGEX_PREFIX) for entry in self.entries if entry.startswith(REGEX_PREFIX))
        self._any = _compile_any(expressions)
        self._matched: dict[str, list[int]] = {}

    def matches(self, name: str) -> list[int]:
        """Indices of all entries that match a module name, ascending."""
        found = self._matched.get(name)
        if found is None:
            found = self._exact.get(name, [])
            if self._any is None or self._any.match(name) is not None:
                found = sorted(found + [index for index, regex in self._regexes if regex.match(name) is not None])
            self._matched[name] = found
        return found

    def has(self, name: str) -> bool:
        """Whether any entry matches a module name; of many expressions none is tried by itself."""
        if self._any is None:
            return bool(self.matches(name))
        return name in self._exact or self._any.match(name) is not None

    def first(self, name: str) -> int | None:
        """Index of the first entry that matches a module name."""
        found = self.matches(name)
        return found[0] if found else None


@lru_cache(maxsize=64)
def pattern_list(entries: tuple[str, ...]) -> PatternList:
    """The compiled list of these entries, which remembers what it has matched.

    Raises:
        PatternError: an expression does not compile, or RE2 cannot express it.
    """
    return PatternList(entries)


def compile_pattern(entry: str) -> Any:
    """Compile the expression of a ``re:`` entry.

    Raises:
        PatternError: it does not compile, or RE2 cannot express it.
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
        raise _explain(entry, problem) from None
    refusal = _python_problem(expression)  # llm-compressor and vLLM match with Python's own, which must take it too
    if refusal:
        raise PatternError(f"the pattern {entry[:80]!r} does not compile in Python ({refusal})")
    return compiled


def check_pattern(entry: str) -> None:
    """Check that an entry can be matched; a plain name always can.

    Raises:
        PatternError: its expression does not compile, or RE2 cannot express it.
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
    if any(construct in expression for construct in ("(?=", "(?!", "(?<=", "(?<!")):
        return PatternError(
            f"the pattern {entry!r} uses a lookaround, which cannot be matched in linear time",
            remedy="list what is meant instead of excluding what is not",
        )
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
