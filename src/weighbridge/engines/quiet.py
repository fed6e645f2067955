"""Upstream libraries log for developers; a build says what it does in its own words."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LEVEL = "ERROR"
KEPT = "INFO"
"""What of upstream's messages goes into a log file."""

upstream = logging.getLogger("weighbridge.upstream")


@contextmanager
def quieted() -> Iterator[None]:
    """Let errors of upstream through to standard error, and nothing below; the log file, if there is one, gets more.

    Import upstream inside the block.
    """
    for variable in ("LLM_COMPRESSOR_LOG_LEVEL", "COMPRESSED_TENSORS_LOG_LEVEL"):
        os.environ.setdefault(variable, LEVEL)  # read at import, which logs already
    import llmcompressor  # noqa: F401  (its import adds handlers of its own, which are to go)
    from loguru import logger
    from transformers.utils import logging as transformers

    logger.remove()
    handlers = [logger.add(sys.stderr, level=LEVEL, format="{message}")]
    transformers.set_verbosity_error()
    if upstream.isEnabledFor(logging.DEBUG):
        handlers.append(logger.add(_keep, level=KEPT))
        own = logging.getLogger("transformers")
        for handler in own.handlers:
            handler.setLevel(LEVEL)
        own.setLevel(KEPT)
        own.propagate = True
    bars = transformers.is_progress_bar_enabled()
    transformers.disable_progress_bar()
    try:
        yield
    finally:
        for number in handlers:
            logger.remove(number)
        if bars:
            transformers.enable_progress_bar()


def _keep(message: Any) -> None:
    record = message.record
    upstream.log(record["level"].no, "%s: %s", record["name"], record["message"])
