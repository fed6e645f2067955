"""What every command does alike: print a report, turn errors into one sentence, choose the exit code."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from weighbridge.cache import write_atomically
from weighbridge.errors import WeighbridgeError, printable
from weighbridge.report import PRESENTERS, Report
from weighbridge.resources import parse_size

HOLDS, WANTING, COULD_NOT = 0, 1, 2


def run(command: Callable[[], int]) -> int:
    """Run a command; what it raises on purpose becomes one sentence on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # upstream's bars too; read when tqdm is first imported
    try:
        return command()
    except WeighbridgeError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            where = f"{printable(str(error.filename)[:200])}: " if error.filename else ""
            print(f"error: {where}{error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("error: interrupted; nothing was left half-made, give the same command again", file=sys.stderr)
    return COULD_NOT


class Parser(argparse.ArgumentParser):
    """Wrong arguments are one sentence too."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {printable(message)}; '{self.prog} --help' lists what there is", file=sys.stderr)
        sys.exit(COULD_NOT)


def size(text: str) -> int:
    """An option that is a size such as ``5GB`` or ``2GiB``."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """An option that is a whole number of at least one."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, a whole number, not {text!r}")
    return int(text)


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """How a command's report is written, and where it is kept."""
    parser.add_argument("--format", choices=tuple(PRESENTERS), default="text", help="how the report is written")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the report to this file")


def check_writable(path: Path | None) -> None:
    """Refuse a file that could not be written, before the work that would go into it is done.

    Raises:
        WeighbridgeError: its directory is not there, it is a directory itself, or its name cannot be.
    """
    if path is None:
        return
    try:
        reason = "it is a directory" if path.is_dir() else "there is no such directory"
        if not path.is_dir() and path.absolute().parent.is_dir():
            return
    except OSError as error:
        reason = error.strerror or str(error)
    raise WeighbridgeError(
        f"cannot be written: {reason}", where=str(path), remedy="name a file in a directory that is there"
    )


def hand_over(report: Report, *, text: str, report_path: Path | None) -> int:
    """Print a report as `text` (and write it, if asked to), and give the exit code that the report means.

    Raises:
        WeighbridgeError: the report file cannot be written.
    """
    if report_path is not None:
        try:
            write_atomically(report_path, text.encode())
        except OSError as error:
            raise WeighbridgeError(
                f"the report cannot be written ({error.strerror})", where=str(report_path)
            ) from error
    sys.stdout.write(text)
    sys.stdout.flush()
    return HOLDS if report.holds else WANTING
