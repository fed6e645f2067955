"""Progress: what is going on, how far, how long yet. On a terminal a bar, in a pipe a line a minute, or events."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from weighbridge.progress.shown import NOW, SILENT, Step

EVERY = 60.0
"""Seconds between two lines where there is no terminal: no minute without a word."""
WIDEST = 80
LONGEST_TITLE = 34
"""Characters of a title beside which figures and a bar still fit."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A stage that is over: what it did, to how many bytes, and how many seconds it took."""

    title: str
    total_bytes: int
    seconds: float


@dataclass
class _Running:
    """A stage that is going on.

    Attributes:
        percent: of it that programs know of.
    """

    title: str
    total: int
    done: int = 0
    percent: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None where nothing is done, or nobody knows how much it is."""
        if not self.total or not self.done:
            return None
        return self.seconds * max(self.total - self.done, 0) / self.done

    def step(self, event: Literal["begin", "advance", "end"]) -> Step:
        left = self.seconds_left
        return Step(
            event,
            self.title,
            self.done,
            self.total or None,
            "bytes",
            round(min(self.done / self.total, 1), 4) if self.total else None,
            None if left is None else round(left),
        )


class Progress:
    """A bar on standard error for the stage that is running, if that is a terminal; or what `shown_as` says.

    Args:
        shown: whether there is a bar, and nothing else; None for what the process shows.
        every: where there is none, seconds between two lines on standard error that say how far; None for never.
        told: is called with a stage's title, and how many of how many bytes are done, whenever that changes.

    Attributes:
        stages: what is over.
    """

    def __init__(
        self,
        *,
        shown: bool | None = None,
        every: float | None = EVERY,
        told: Callable[[str, int, int], object] | None = None,
    ) -> None:
        if every is not None and not every > 0:
            raise ValueError(f"every is {every!r}: take a number of seconds above zero, or None")
        self.told = told
        self.every = every if shown is None and NOW.way != "none" else None
        bars = NOW.way == "auto" and sys.stderr.isatty() and not os.environ.get(SILENT)
        self.shown = bars if shown is None else shown
        self.stages: list[Stage] = []
        self._events = NOW.events if shown is None else None
        self._bar: Any = None
        self._running: _Running | None = None

    @contextmanager
    def stage(self, title: str, total_bytes: int) -> Iterator[None]:
        """Show a bar with `title` until the block ends; `advance` moves it."""
        from tqdm import tqdm

        outer = self._bar, self._running
        self._bar = tqdm(
            total=total_bytes,
            desc=title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 1]}…",
            unit="B",
            unit_scale=True,
            disable=not self.shown,
            leave=False,
            miniters=1,  # else a large step would hide the small ones that follow
            ncols=min(WIDEST, shutil.get_terminal_size().columns),
        )
        if total_bytes:
            log.info("%s: %s begun", title, _size(total_bytes))
        self._running = running = _Running(title, total_bytes)
        self._tell(running, "begin")
        over = threading.Event()
        speaker = threading.Thread(target=self._say, args=(running, over), daemon=True)
        if self.every is not None and not self.shown:
            speaker.start()
        try:
            yield
        finally:
            over.set()
            if speaker.ident is not None:
                speaker.join()  # nothing is said of a stage that is over
            seconds = running.seconds
            self.stages.append(Stage(title, total_bytes, seconds))
            self._bar.close()
            self._bar, self._running = outer
            self._tell(running, "end")
            if sys.exc_info()[0]:
                log.info("%s: stopped after %.1f s", title, seconds)
            elif total_bytes:
                rate = _size(total_bytes / max(seconds, 1e-3))
                log.info("%s: %s in %.1f s, %s/s", title, _size(total_bytes), seconds, rate)

    def advance(self, done_bytes: int) -> None:
        """Say that so many more bytes are done."""
        running = self._running
        if running is None:
            return
        self._bar.update(done_bytes)
        running.done += done_bytes
        if self.told is not None:
            self.told(running.title, running.done, running.total)
        if running.total and (percent := 100 * running.done // running.total) > running.percent:
            running.percent = percent
            self._tell(running, "advance")

    def _tell(self, running: _Running, event: Literal["begin", "advance", "end"]) -> None:
        if self._events is not None:
            self._events.tell(running.step(event))

    def _say(self, running: _Running, over: threading.Event) -> None:
        """Say how far a stage is, again and again until it is over."""
        while not over.wait(self.every):
            if self._events is not None:
                self._tell(running, "advance")
                continue
            far = f"{_size(running.done)} of {_size(running.total)}, " if running.total else ""
            left = running.seconds_left
            yet = "" if left is None else f", about {_time(left)} left"
            sys.stderr.write(f"{running.title}: {far}{_time(running.seconds)} so far{yet}\n")
            sys.stderr.flush()


def _time(seconds: float) -> str:
    """Seconds as a person reads them."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _size(count: float) -> str:
    """Bytes as the bar writes them."""
    from tqdm import tqdm

    return str(tqdm.format_sizeof(count, "B"))
