"""The one root of every error that this package raises on purpose.

Each says what is wrong, where, and what to do. The commands turn them into one sentence on standard error and exit
code 2 ("could not judge or build"); nothing below this root is ever caught and dropped.
"""

from __future__ import annotations


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
        where, what, remedy = (clipped(printable(part)) for part in (self.where, self.what, self.remedy))
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


class EvidenceError(WeighbridgeError):
    """Evidence that cannot be made or checked: a key, Sigstore, a checkpoint that has none."""
