"""Upstream libraries log for developers; a build says what it does in its own words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quieted() -> Iterator[None]:
    """Let errors of upstream through to standard error; warnings and information stay its own."""
    import llmcompressor  # noqa: F401  (its import adds a handler of its own, which is to go)
    from loguru import logger
    from transformers.utils import logging

    logger.remove()
    handler = logger.add(sys.stderr, level="ERROR", format="{message}")
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logger.remove(handler)
