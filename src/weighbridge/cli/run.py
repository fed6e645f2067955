"""What every command does alike: read its arguments, print a report, turn errors into one sentence, choose the exit
code."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import NoReturn

from weighbridge.cli.log import add_log_options, holds_a_key, logged, without_secrets
from weighbridge.errors import Argument, WeighbridgeError, first_line, printable
from weighbridge.machine.cache import write_atomically
from weighbridge.machine.resources import parse_size
from weighbridge.progress.shown import NOW, SILENT, Said, shown_as
from weighbridge.report import PRESENTERS, Report
from weighbridge.report.present import verdict_of
from weighbridge.report.terminal import tinted
from weighbridge.version import __version__

HOLDS, WANTING, COULD_NOT = 0, 1, 2
SCRIPTS = {"build": "build.py", "validate": "validate.py"}

log = logging.getLogger(__name__)


def command(
    parser: Callable[[], Parser], body: Callable[[argparse.Namespace], int], arguments: Sequence[str] | None = None
) -> int:
    """A command from its arguments to its exit code; each module binds its own parser and body as its ``main``."""
    options = parsed(parser(), arguments)
    return run(lambda: body(options), options)


def run(work: Callable[[], int], options: argparse.Namespace | None = None) -> int:
    """Run a command; what it raises on purpose becomes one sentence on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
    if not sys.stderr.isatty():
        os.environ.setdefault(SILENT, "1")  # upstream's bars too
    os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")  # with it, it writes escape codes at exit
    started = time.monotonic()
    with ExitStack() as stack:
        try:
            if options is not None:
                stack.enter_context(shown_as(options.progress or ("none" if options.quiet else "auto")))
                stack.enter_context(logged(options))
            code = work()
        except BaseException as error:
            log.error("stopped", exc_info=True)
            code = _explain(error, options)
        log.info("exit code %d after %.1f s", code, time.monotonic() - started)
    return code


def _explain(error: BaseException, options: argparse.Namespace | None) -> int:
    """Say in one sentence what stopped a command; raise it again, if nobody foresaw it."""
    match error:
        case WeighbridgeError():
            sentence = error.sentence(partial(_option, options))
        case BrokenPipeError():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return COULD_NOT
        case OSError():
            where = f"{printable(str(error.filename)[:200])}: " if error.filename else ""
            sentence = f"{where}{error.strerror or error}"
        case ModuleNotFoundError() if str(error.name).partition(".")[0] != "weighbridge":
            sentence = f"needs the package {error.name}, which is not installed; pip install 'weighbridge[build]'"
        case KeyboardInterrupt():
            sentence = "; ".join(("interrupted", *map(str, error.args)))
        case Exception() if NOW.events is not None:
            traceback.print_exception(error)
            _complain(f"{type(error).__name__}: {first_line(error)}; this is a mistake of this program")
            sys.exit(1)  # as Python ends by itself, which would write past the events
        case _:
            raise error
    _complain(sentence)
    return COULD_NOT


_CALLED: Mapping[str, str] = {"source": "model", "references": "reference", "signed_by": "key"}
"""Arguments of `weighbridge.api` -> what their options are called, where they are not called alike."""


def _option(options: argparse.Namespace | None, argument: str) -> str:
    """What a command calls an argument of a function; in backquotes as it is, where it has no option for it."""
    spelled: Mapping[str, str] = {} if options is None else options.spelled
    return spelled.get(argument) or spelled.get(_CALLED.get(argument, ""), Argument(argument))


def _complain(sentence: str) -> None:
    if NOW.events is not None:
        NOW.events.tell(Said("error", sentence))
        return
    print(tinted(f"error: {sentence}", sys.stderr), file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """Arguments of a command: wrong ones are one sentence too.

    Args:
        command: its name, as in ``weighbridge COMMAND``.
        epilog: examples and exit codes, laid out by hand; ``%(prog)s`` is how this process was called.
    """

    def __init__(self, command: str, *, description: str, epilog: str) -> None:
        prog = f"weighbridge {sys.argv[1]}" if _by_console() and sys.argv[1:] else program(command)
        super().__init__(prog=prog, description=description, epilog=epilog, formatter_class=_Help)

    def error(self, message: str) -> NoReturn:
        remedy = self._meant(message) or f"'{self.prog} --help' lists what there is"
        _complain(f"{printable(message)}; {remedy}")
        sys.exit(COULD_NOT)

    def _meant(self, message: str) -> str:
        """The question whether an option was meant that there is; empty where none is alike."""
        known = [option for action in self._actions for option in action.option_strings]
        wrong = re.findall(r"(?<![\w-])--[\w-]+", message.partition("unrecognized arguments:")[2])
        close = [match for option in wrong for match in get_close_matches(option, known, n=1, cutoff=0.75)]
        return f"did you mean {close[0]}?" if close else ""


class _Help(argparse.HelpFormatter):
    """Text of several lines stays as it was laid out, and the usage names what must be given."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],  # noqa: ARG002  (argparse's own)
        prefix: str | None = None,
    ) -> None:
        options = argparse.Action([], "options", metavar="[OPTION...]")
        needed = [action for action in actions if action.required or not action.option_strings]
        super().add_usage(usage, [options, *needed], (), prefix)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def parsed(parser: Parser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """A command's arguments, with those that every command has; where a shell asks for completions, these instead."""
    add_log_options(parser)
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    with shown_as("json" if _asks_for_events(arguments) else "auto"):
        options = parser.parse_args(arguments)
    options.spelled = {item.dest: max(item.option_strings, key=len) for item in parser._actions if item.option_strings}
    unsaid = argparse.Namespace(**dict.fromkeys(options.spelled))  # what is there already gets no default
    said = vars(parser.parse_args(arguments, unsaid))
    options.given = {name for name in options.spelled if said[name] is not None}
    return options


def _asks_for_events(arguments: Sequence[str] | None) -> bool:
    """Whether a program reads what is wrong with the arguments themselves."""
    alone = argparse.ArgumentParser(add_help=False)
    alone.add_argument("--progress", nargs="?")
    known, _ = alone.parse_known_args(arguments)
    return bool(known.progress == "json")


def refuse(options: argparse.Namespace, *names: str, without: str = "", beside: str = "") -> None:
    """Refuse options that would be passed over in silence.

    Args:
        names: of the options, as attributes.
        without: the option that they belong to, and that is not given; or
        beside: the one that is, and leaves them nothing to do.

    Raises:
        WeighbridgeError: one of them is given.
    """
    passed = [f"--{name.replace('_', '-')}" for name in names if name in options.given]
    if passed:
        why, remedy = (f"without {without}", f"add {without}") if without else (f"beside {beside}", "leave one out")
        what = f"{' and '.join(passed)} {'has' if len(passed) == 1 else 'have'} no effect {why}"
        raise WeighbridgeError(what, where="the command", remedy=remedy)


def program(command: str) -> str:
    """What a command is called: ``weighbridge COMMAND``, or by its script where this process runs one."""
    if command in SCRIPTS and Path(sys.argv[0]).name in SCRIPTS.values():
        return f"python {SCRIPTS[command]}"
    return f"weighbridge {command}"


def _by_console() -> bool:
    called = Path(sys.argv[0])
    return called.name == "weighbridge" or called.parts[-2:] == ("weighbridge", "__main__.py")


def size(text: str) -> int:
    """An option that is a size such as ``5GB`` or ``2GiB``."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive_size(text: str) -> int:
    """An option that is a size, and not of nothing."""
    found = size(text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be more than nothing, not {text!r}")
    return found


def positive(text: str) -> int:
    """An option that is a whole number of at least one."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, a whole number, not {text!r}")
    return int(text)


def not_negative(text: str) -> int:
    """An option that is a whole number of at least zero."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, not {text!r}")
    return int(text)


def add_report_options(parser: argparse.ArgumentParser, *further: str) -> None:
    """How a command's report is written, and where it is kept; `further` are formats of this command alone."""
    parser.add_argument(
        "--format", choices=(*PRESENTERS, *further), default="text", help="how the report is written (default: text)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the report to this file")


def add_follow_option(parser: argparse.ArgumentParser) -> None:
    """Into which directories the links of a checkpoint's directory may lead."""
    parser.add_argument(
        "--follow-links",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="follow links out of a checkpoint's directory where they lead into DIR: shards on another disk, say (can "
        "be given again)",
    )


def add_work_options(parser: argparse.ArgumentParser, *, pieces: str, memory: str) -> None:
    """How much is worked on at a time; `pieces` and `memory` say of what."""
    workers = f"{pieces} worked on at a time (default: one a core)"
    parser.add_argument("--workers", type=positive, metavar="N", help=workers)
    most = f"{memory} (default: 2GiB)"
    parser.add_argument("--memory", type=size, metavar="SIZE", help=most)


def check_writable(path: Path | None) -> None:
    """Refuse a file that could not be written, before the work that would go into it is done.

    Raises:
        WeighbridgeError: its directory is not there or takes no files, it is a directory itself or holds a key or the
            like, or its name leads nowhere.
    """
    if path is None:
        return
    remedy = "name a file in a directory that exists"
    try:
        target = _behind_links(path)
        reason = "it is a directory" if path.is_dir() else "there is no such directory"
        if path.is_file() and holds_a_key(path):
            reason, remedy = "it holds a key, which would be lost", "name another file, or move this one away"
        elif not path.is_dir() and path.absolute().parent.is_dir():
            remedy = "name a file in another directory"
            if _is_replaced(target):
                tempfile.TemporaryFile(dir=target.parent).close()  # rights do not tell of what is no disk, or read-only
            return
    except OSError as error:
        reason = error.strerror or str(error)
    raise WeighbridgeError(f"cannot be written: {reason}", where=str(path), remedy=remedy)


def keep(path: Path, content: bytes) -> None:
    """Write a file that a command was asked for.

    A link is followed. A device, a pipe or a stream of this process (``/dev/stdout``, whatever it leads to) is written
    to, not replaced.

    Raises:
        OSError: it cannot be written.
    """
    target = _behind_links(path)
    if _is_stream(target):
        sys.stdout.flush()
        with os.fdopen(os.dup(int(target.name)), "wb") as stream:
            stream.write(content)
    elif not _is_replaced(target):
        with target.open("wb") as there:
            there.write(content)
    else:
        write_atomically(target, content)


def _behind_links(path: Path) -> Path:
    """Where links lead; a stream of this process is an end, though the system shows it as a link to a file.

    Raises:
        OSError: links lead to one another.
    """
    if path.is_symlink():
        with suppress(FileNotFoundError):
            path.stat()
    target = Path(os.path.realpath(path.parent)) / path.name
    while target.is_symlink() and not _is_stream(target):
        following = target.parent / target.readlink()
        target = Path(os.path.realpath(following.parent)) / following.name
    return target


def _is_replaced(target: Path) -> bool:
    """Whether a file takes its place: it is none of the streams of this process, no device and no pipe."""
    return not _is_stream(target) and (target.is_file() or not target.exists())


def _is_stream(path: Path) -> bool:
    return str(path.parent) in (f"/proc/{os.getpid()}/fd", "/dev/fd") and path.name.isdecimal()


_FORMS = {
    **{".html": "html", ".json": "json", ".md": "markdown", ".txt": "text"},
    **{".sarif": "sarif", ".xml": "junit"},
}
"""Suffix of a report's file -> the form that it is written in, where none is asked for."""


def filed(report: Report) -> Report:
    """A report with what it is filed by: the command that made it, when, and by which version. What is filed stays
    so."""
    if "command" in report.head:
        return report
    program = "weighbridge" if _by_console() else Path(sys.argv[0]).name
    called = without_secrets(shlex.join([program, *sys.argv[1:]]))
    made = {"made by": f"weighbridge {__version__}", "at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "command": called}
    return replace(report, head={**report.head, **made})


def hand_over(report: Report, options: argparse.Namespace, *, text: str | None = None) -> int:
    """Print a report in the form that was asked for (and write it, if asked to), and give the exit code that it means.

    What is written is `filed`; what is printed has the head that the report has.

    Args:
        text: what is printed in place of the report.

    Raises:
        WeighbridgeError: the report file cannot be written.
    """
    whole = None
    if text is None:
        whole = report
        text = PRESENTERS[options.format](report)
    if options.report is not None:
        try:
            form = options.format if "format" in options.given else _FORMS.get(options.report.suffix, options.format)
            kept = text if whole is None else PRESENTERS[form](filed(whole))
            keep(options.report, kept.encode())
        except OSError as error:
            raise WeighbridgeError(
                f"the report cannot be written ({error.strerror})", where=str(options.report)
            ) from error
        log.info("report written to %s", options.report)
    if options.format == "text":
        text = tinted(verdict_of(report) if options.quiet else text, sys.stdout)
    elif options.format == "html" and options.report is not None:  # nobody reads a page's source
        text = tinted(verdict_of(report), sys.stdout)
    sys.stdout.write(text)
    sys.stdout.flush()
    return HOLDS if report.holds else WANTING


def suggest(options: argparse.Namespace, step: str) -> None:
    """Name the next step to somebody who sits before a terminal."""
    if sys.stderr.isatty() and not options.quiet:
        sys.stderr.write(f"next: {step}\n")
