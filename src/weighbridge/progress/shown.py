"""How this process shows progress: bars and lines for people, or events for programs, one JSON object a line."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal, TextIO

SILENT = "TQDM_DISABLE"
"""The variable that also silences upstream's bars; read when tqdm is first imported."""

Way = Literal["auto", "plain", "json", "none"]


@dataclass(frozen=True)
class Step:
    """A stage begins, goes on or ends; one that stops before its end has done less than its total.

    Attributes:
        event: which of the three.
        stage: what is being done.
        done: how much of it is done.
        total: how much it is; null where nobody knows beforehand.
        unit: of done and total.
        share: done of total, from 0 to 1; null where nobody knows the total.
        seconds_left: about how long yet, at the rate so far; null where nobody can know.
    """

    event: Literal["begin", "advance", "end"]
    stage: str
    done: int
    total: int | None
    unit: Literal["bytes"]
    share: float | None
    seconds_left: int | None


@dataclass(frozen=True)
class Said:
    """A sentence for a person.

    Attributes:
        event: an error is what stopped the command (exit code 2); anything else is a message.
        text: the sentence.
    """

    event: Literal["message", "error"]
    text: str


Event = Step | Said


class Events:
    """Where events go. Who no longer reads them does not stop the work."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._lock = threading.Lock()

    def tell(self, event: Event) -> None:
        """Write an event on a line of its own."""
        with self._lock:
            try:
                self.stream.write(json.dumps(asdict(event)) + "\n")
                self.stream.flush()
            except OSError:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)


class _Messages(io.TextIOBase):
    """Standard error while there are events: each line that anybody writes becomes one."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._begun = ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            *whole, self._begun = (self._begun + text).split("\n")
        for line in filter(str.strip, whole):
            self._events.tell(Said("message", line))
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._events.stream.fileno()

    def end(self) -> None:
        """Tell the line that nobody ended."""
        if self._begun:
            self.write("\n")


class Shown:
    """How progress is shown at the moment.

    Attributes:
        events: where events go; None where there are none.
    """

    way: Way = "auto"
    events: Events | None = None


NOW = Shown()


@contextmanager
def shown_as(way: Way) -> Iterator[None]:
    """Show progress in one way, while the block runs. Upstream's bars are shown with our own alone."""
    before, silent, stream = (NOW.way, NOW.events), os.environ.get(SILENT), sys.stderr
    NOW.way, NOW.events = way, Events(stream) if way == "json" else None
    messages = None if NOW.events is None else _Messages(NOW.events)
    if messages is not None:
        sys.stderr = messages
    if way != "auto":
        os.environ[SILENT] = "1"
    try:
        yield
    finally:
        if messages is not None:
            messages.end()
        sys.stderr = stream
        NOW.way, NOW.events = before
        if silent is None:
            os.environ.pop(SILENT, None)
        else:
            os.environ[SILENT] = silent
