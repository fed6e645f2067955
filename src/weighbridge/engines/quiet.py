"""Upstream libraries log for developers; a build says what it does in its own words."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quieted() -> Iterator[None]:
    """Let warnings of upstream through to standard error, and its progress bars only where that is a terminal."""
    from loguru import logger

    logger.remove()
    handler = logger.add(sys.stderr, level="ERROR", format="{message}")
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        logger.remove(handler)
