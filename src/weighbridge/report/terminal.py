"""Colour on a terminal. It tints words and marks that say the same without it, and nothing else."""

from __future__ import annotations

import os
import re
from typing import TextIO

RED, YELLOW, GREEN, RESET = "\x1b[31m", "\x1b[33m", "\x1b[32m", "\x1b[0m"

_TINTED = re.compile(
    r"^(?:(?P<green>(?:ok|PASS)(?=  ))"
    r"|(?P<red>(?:x |FAIL)(?=  )|    x error(?= )|error:)"
    r"|(?P<yellow>    ! warning(?= )|warning:))",
    re.MULTILINE,
)
_COLOURS = {"green": GREEN, "red": RED, "yellow": YELLOW}


def takes_colour(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours, and nobody asked for none (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def tinted(text: str, stream: TextIO) -> str:
    """A report's text, or an error's sentence, as a stream is to show it."""
    if not takes_colour(stream):
        return text
    return _TINTED.sub(lambda match: f"{_COLOURS[str(match.lastgroup)]}{match[0]}{RESET}", text)
