"""The one root of every error that this package raises on purpose.

Each says what is wrong, where, and what to do. The commands turn them into one sentence on standard error and exit
code 2 ("could not judge or build"); nothing below this root is ever caught and dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self


class Argument(str):
    """An argument of a function as an error names it, in backquotes: a command says its own option in its place."""

    name: str

    def __new__(cls, name: str) -> Self:
        argument = super().__new__(cls, f"`{name}`")
        argument.name = name
        return argument


class Clause(str):
    """Text that names arguments. These parts of it alone are arguments, whatever else stands in backquotes."""

    parts: tuple[str, ...]

    def __new__(cls, *parts: str) -> Self:
        clause = super().__new__(cls, "".join(parts))
        clause.parts = tuple(inner for part in parts for inner in (part.parts if isinstance(part, Clause) else (part,)))
        return clause

    def spelled(self, called: Callable[[str], str]) -> str:
        """The text, with what each argument is called elsewhere."""
        return "".join(called(part.name) if isinstance(part, Argument) else part for part in self.parts)


class WeighbridgeError(Exception):
    """Something could not be read, judged or built.

    Args:
        what: what is wrong, as a clause without a full stop.
        where: the file, tensor, option or line it concerns.
        remedy: what the reader can do about it, as a clause without a full stop.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        super().__init__(what, where, remedy)

    def __str__(self) -> str:
        return self.sentence(Argument)

    def sentence(self, called: Callable[[str], str]) -> str:
        """What is wrong, where, and what to do, in one line.

        Args:
            called: what an argument is called where this is read.
        """
        spelled = (Clause(part).spelled(called) for part in (self.where, self.what, self.remedy))
        where, what, remedy = (clipped(printable(part)) for part in spelled)
        sentence = f"{where}: {what}" if where else what
        return f"{sentence}; {remedy}" if remedy else sentence


def printable(text: str) -> str:
    """One line that a terminal shows as it is: what a stranger named with control characters is shown escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def clipped(text: str, *, limit: int = 240) -> str:
    """A text of at most `limit` characters: of a longer one, as a stranger may write it, its beginning and its end."""
    return text if len(text) <= limit else f"{text[: limit - 61]}…{text[-60:]}"


def first_line(error: BaseException) -> str:
    """What a library's error says in its first line, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class RecipeError(WeighbridgeError):
    """A recipe that cannot be read: YAML, schema, or a pattern that does not compile."""


class StructureError(WeighbridgeError):
    """A checkpoint, header, index or structure lock that is malformed, hostile or not there."""


class HubError(WeighbridgeError):
    """The hub could not be reached, or did not give what was asked of it."""


class DatasetError(WeighbridgeError):
    """A calibration data set that cannot be read, is not what the recipe says, or holds too little."""


class BuildError(WeighbridgeError):
    """A build that cannot start or cannot finish: source, target, space, engine."""


class PolicyError(WeighbridgeError):
    """A policy that cannot be read: YAML, schema, or what it names."""


class EvidenceError(WeighbridgeError):
    """Evidence that cannot be made or checked: a key, Sigstore, a checkpoint that has none."""
