"""What a command says of its work: ``--quiet``, ``--progress``, ``--verbose`` and ``--log-file``.

The last two go by Python's ``logging``. Every module logs under its own name, below ``weighbridge``. Nothing of it gets
into a checkpoint or its evidence.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import get_args

from weighbridge.errors import WeighbridgeError, printable
from weighbridge.progress.shown import Way
from weighbridge.version import __version__

ROOT = "weighbridge"
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY")
"""Variables whose values are left out, wherever they turn up."""
SHORTEST_SECRET = 8

log = logging.getLogger(__name__)
logging.getLogger(ROOT).addHandler(logging.NullHandler())  # without any, Python prints what is grave by itself

_TOKEN = re.compile(r"\bhf_\w{8,}")
_URL = re.compile(r"(?P<scheme>\w+://)(?:[^\s/@]+@)?(?P<place>[^\s?'\"]+)(?P<query>\?[^\s'\"]*)?")


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """How much a command says while it works."""
    options = parser.add_argument_group("messages")
    amount = options.add_mutually_exclusive_group()
    amount.add_argument(
        "--quiet",
        action="store_true",
        help="print only the verdict of a report in text, and no progress unless --progress asks for it; errors are "
        "still printed",
    )
    amount.add_argument(
        "--verbose", action="store_true", help="say on standard error what is being done, and how long each stage took"
    )
    options.add_argument(
        "--progress",
        choices=get_args(Way),
        help="how progress is shown on standard error: auto (default), a bar on a terminal, a line a minute elsewhere; "
        "plain, a line a minute everywhere; json, one JSON object a line, with errors and messages, for programs; none",
    )
    options.add_argument(
        "--log-file",
        type=Path,
        metavar="FILE",
        help="append to this file, with times (UTC): what --verbose says, what libraries log, and the traceback of an "
        "error",
    )


@contextmanager
def logged(options: argparse.Namespace) -> Iterator[None]:
    """Let the log go where the options say, while the block runs.

    Raises:
        WeighbridgeError: the log file cannot be written, or lies in a checkpoint.
    """
    logger = logging.getLogger(ROOT)
    before = logger.level
    with ExitStack() as stack:
        stack.callback(logger.setLevel, before)
        if options.verbose:
            _attach(_Console(), logging.INFO, logger, stack)
        if options.log_file is not None:
            _attach(_opened(options), logging.DEBUG, logging.getLogger(), stack)
            logger.setLevel(logging.DEBUG)
            log.info("weighbridge %s: %s", __version__, shlex.join(sys.argv))
            log.debug("in %s, with Python %s", Path.cwd(), sys.version.split()[0])
        yield


def _attach(handler: logging.Handler, level: int, logger: logging.Logger, stack: ExitStack) -> None:
    handler.setLevel(level)
    logger.addHandler(handler)
    logging.getLogger(ROOT).setLevel(level)
    stack.callback(handler.close)
    stack.callback(logger.removeHandler, handler)


def _opened(options: argparse.Namespace) -> logging.Handler:
    path: Path = options.log_file
    for name in ("output", "checkpoint"):
        if (directory := getattr(options, name, None)) is not None:
            check_outside(Path(directory), log_file=path)
    try:
        if path.is_file() and holds_a_key(path):
            what = "holds a key, and a log would spoil it"
            raise WeighbridgeError(what, where=f"--log-file {path}", remedy="name another file")
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise WeighbridgeError(
            f"cannot be written ({error.strerror})",
            where=f"--log-file {path}",
            remedy="name a file in a directory that exists",
        ) from error
    handler.setFormatter(_Lines())
    return handler


def holds_a_key(path: Path) -> bool:
    """Whether a file is a key, a certificate or a signature in PEM; other tools put text before it.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return re.search(rb"^-----BEGIN [A-Z0-9 ]+-----", file.read(4096), re.MULTILINE) is not None


def check_outside(checkpoint: Path, **files: Path | None) -> None:
    """Refuse a file in a checkpoint's directory, where evidence lists every file and a build replaces all.

    Args:
        files: what is to be written, by its option's name.

    Raises:
        WeighbridgeError: one of them lies there.
    """
    for option, path in files.items():
        if path is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(checkpoint)):
            what = "would become part of the checkpoint"
            remedy = "name a file outside of it"
            raise WeighbridgeError(what, where=f"--{option.replace('_', '-')} {path}", remedy=remedy)


class _Lines(logging.Formatter):
    """One line for each message, whatever a stranger calls things; beneath it, indented, where an error arose."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's own name)
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: logging._SysExcInfoType) -> str:  # noqa: N802  (likewise)
        return "\n".join(f"  {printable(line)}" for line in super().formatException(ei).splitlines())

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class _Console(logging.StreamHandler):  # type: ignore[type-arg]
    """Standard error, where a bar steps aside, and where errors stand already, each in its sentence."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.addFilter(lambda record: record.levelno < logging.ERROR)

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.relativeCreated / 1000:8.1f} s  {without_secrets(printable(record.getMessage()))}"

    def emit(self, record: logging.LogRecord) -> None:
        with ExitStack() as stack:
            if "tqdm" in sys.modules:
                stack.enter_context(sys.modules["tqdm"].tqdm.external_write_mode(file=sys.stderr))
            super().emit(record)


def without_secrets(text: str) -> str:
    """A text without tokens of the hub, what gives access in addresses, and values of `SECRETS`."""
    for name in SECRETS:
        if len(value := os.environ.get(name, "")) >= SHORTEST_SECRET:
            text = text.replace(value, f"${name}")
    text = _URL.sub(lambda url: f"{url['scheme']}{url['place']}{'?…' if url['query'] else ''}", text)
    return _TOKEN.sub("hf_…", text)
