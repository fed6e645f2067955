"""Progress: on a terminal a bar, in a pipe a line a minute: what is going on, how far, how long yet."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SILENT = "TQDM_DISABLE"
"""The variable that also silences upstream's bars; read when tqdm is first imported."""
EVERY = 60.0
"""Seconds between two lines where there is no terminal: no minute without a word."""
QUIET = "quiet"
"""Its value where a person wants no lines either."""
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


class Progress:
    """A bar on standard error for the stage that is running, if that is a terminal and `SILENT` is not set.

    Args:
        shown: whether there is a bar; None for where it makes sense.
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
        self.every = every if shown is None and os.environ.get(SILENT) != QUIET else None
        self._at = ("", 0, 0)
        self.shown = sys.stderr.isatty() and not os.environ.get(SILENT) if shown is None else shown
        self.stages: list[Stage] = []
        self._bar: Any = None

    @contextmanager
    def stage(self, title: str, total_bytes: int) -> Iterator[None]:
        """Show a bar with `title` until the block ends; `advance` moves it."""
        from tqdm import tqdm

        outer = self._bar, self._at
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
        self._at = (title, 0, total_bytes)
        started = time.monotonic()
        over = threading.Event()
        if self.every is not None and not self.shown:
            threading.Thread(target=self._say, args=(started, over), daemon=True).start()
        try:
            yield
        finally:
            over.set()
            seconds = time.monotonic() - started
            self.stages.append(Stage(title, total_bytes, seconds))
            self._bar.close()
            self._bar, self._at = outer
            if sys.exc_info()[0]:
                log.info("%s: stopped after %.1f s", title, seconds)
            elif total_bytes:
                rate = _size(total_bytes / max(seconds, 1e-3))
                log.info("%s: %s in %.1f s, %s/s", title, _size(total_bytes), seconds, rate)

    def advance(self, done_bytes: int) -> None:
        """Say that so many more bytes are done."""
        if self._bar is not None:
            self._bar.update(done_bytes)
            title, done, total = self._at
            self._at = (title, done + done_bytes, total)
            if self.told is not None:
                self.told(*self._at)

    def _say(self, started: float, over: threading.Event) -> None:
        """Say how far the stage is, again and again until it is over."""
        while not over.wait(self.every):
            title, done, total = self._at
            seconds = time.monotonic() - started
            far = f"{_size(done)} of {_size(total)}, " if total else ""
            left = f", about {_time(seconds * (total - done) / done)} left" if total and done else ""
            sys.stderr.write(f"{title}: {far}{_time(seconds)} so far{left}\n")
            sys.stderr.flush()


def _time(seconds: float) -> str:
    """Seconds as a person reads them."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _size(count: float) -> str:
    """Bytes as the bar writes them."""
    from tqdm import tqdm

    return str(tqdm.format_sizeof(count, "B"))
