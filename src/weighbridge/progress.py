"""Progress on a terminal: what is going on, how far, how fast and how long yet. Silent in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Progress:
    """A bar on standard error for the stage that is running, if standard error is a terminal."""

    def __init__(self, *, shown: bool | None = None) -> None:
        self.shown = sys.stderr.isatty() if shown is None else shown
        self._bar: Any = None

    @contextmanager
    def stage(self, title: str, total_bytes: int) -> Iterator[None]:
        """Show a bar with `title` until the block ends; `advance` moves it."""
        from tqdm import tqdm

        self._bar = tqdm(
            total=total_bytes, desc=title, unit="B", unit_scale=True, disable=not self.shown, leave=False, ncols=80
        )
        try:
            yield
        finally:
            self._bar.close()
            self._bar = None

    def advance(self, done_bytes: int) -> None:
        """Say that so many more bytes are done."""
        if self._bar is not None:
            self._bar.update(done_bytes)
