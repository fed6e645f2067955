"""Progress on a terminal: what is going on, how far, how fast and how long yet. Silent in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """A stage that is over: what it did, to how many bytes, and how many seconds it took."""

    title: str
    total_bytes: int
    seconds: float


class Progress:
    """A bar on standard error for the stage that is running, if standard error is a terminal; `stages` is its log."""

    def __init__(self, *, shown: bool | None = None) -> None:
        self.shown = sys.stderr.isatty() if shown is None else shown
        self.stages: list[Stage] = []
        self._bar: Any = None

    @contextmanager
    def stage(self, title: str, total_bytes: int) -> Iterator[None]:
        """Show a bar with `title` until the block ends; `advance` moves it."""
        from tqdm import tqdm

        self._bar = tqdm(
            total=total_bytes, desc=title, unit="B", unit_scale=True, disable=not self.shown, leave=False, ncols=80
        )
        started = time.monotonic()
        try:
            yield
        finally:
            self.stages.append(Stage(title, total_bytes, time.monotonic() - started))
            self._bar.close()
            self._bar = None

    def advance(self, done_bytes: int) -> None:
        """Say that so many more bytes are done."""
        if self._bar is not None:
            self._bar.update(done_bytes)
