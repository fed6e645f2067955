"""What every command does alike: print a report, turn errors into one sentence, choose the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from weighbridge.cache import write_atomically
from weighbridge.errors import WeighbridgeError
from weighbridge.report import Report

HOLDS, WANTING, COULD_NOT = 0, 1, 2


def run(command: Callable[[], int]) -> int:
    """Run a command; what it raises on purpose becomes one sentence on standard error and exit code 2."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # upstream's bars too; read when tqdm is first imported
    try:
        return command()
    except WeighbridgeError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("error: interrupted; nothing was left half-made, give the same command again", file=sys.stderr)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return COULD_NOT


def check_report_path(report: Path | None) -> None:
    """Refuse a report file that could not be written, before the work that it reports is done.

    Raises:
        WeighbridgeError: its directory is not there, or it is a directory.
    """
    if report is not None and (report.is_dir() or not report.absolute().parent.is_dir()):
        raise WeighbridgeError(
            "the report cannot be written there", where=str(report), remedy="name a file in a directory"
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
