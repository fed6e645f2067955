"""Upstream libraries log for developers; a build says what it does in its own words."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LEVEL = "ERROR"


@contextmanager
def quieted() -> Iterator[None]:
    """Let errors of upstream through to standard error, and nothing below. Import upstream inside the block."""
    for variable in ("LLM_COMPRESSOR_LOG_LEVEL", "COMPRESSED_TENSORS_LOG_LEVEL"):
        os.environ.setdefault(variable, LEVEL)  # read at import, which logs already
    import llmcompressor  # noqa: F401  (its import adds handlers of its own, which are to go)
    from loguru import logger
    from transformers.utils import logging

    logger.remove()
    handler = logger.add(sys.stderr, level=LEVEL, format="{message}")
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logger.remove(handler)
