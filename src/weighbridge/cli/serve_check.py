"""``make serve-check``: load a checkpoint with vLLM's own loader, generate, and compare log-probabilities with ours."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from weighbridge.base.source import MADE, fetch, open_model
from weighbridge.cli.complete import complete
from weighbridge.cli.record import add_record_options, check_record, record
from weighbridge.cli.run import (
    Parser,
    add_follow_option,
    add_report_options,
    check_writable,
    command,
    hand_over,
    positive,
)
from weighbridge.errors import WeighbridgeError
from weighbridge.evidence.finished import called
from weighbridge.extras.serving.check import ServingCheck, check, token_windows
from weighbridge.extras.serving.environment import find_python
from weighbridge.machine.cache import cache_directory
from weighbridge.progress import Progress

EPILOG = """\
vLLM lives in an environment of its own: 'make serve-env' makes one for CPUs in
.venv-vllm; --serving-python names another. docs/explanation/serving.md says
what is compared and where the bounds come from.

examples:
  %(prog)s builds/x
  %(prog)s builds/x --source mini --record
  %(prog)s builds/x --serving-python /opt/vllm-cpu/bin/python

exit codes: 0 it serves and the server computes what it means; 1 it does not;
2 could not judge
"""


def _parser() -> Parser:
    description = (
        "Load a checkpoint with vLLM's own loader, generate with it, and compare its log-probabilities with those of "
        "our own forward."
    )
    parser = Parser("serve-check", description=description, epilog=EPILOG)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a directory, or a hub id")
    source = parser.add_argument("--source", metavar="BASE", help="its base, to be scored in the same server")
    complete(source, lambda: MADE)
    add_follow_option(parser)
    parser.add_argument("--text", type=Path, metavar="FILE", help="the text to score (default: Python's own library)")
    parser.add_argument(
        "--windows", type=positive, default=16, metavar="N", help="how many stretches of the text (default: 16)"
    )
    parser.add_argument(
        "--length", type=_several, default=128, metavar="TOKENS", help="length of a stretch (default: 128)"
    )
    parser.add_argument("--serving-python", type=Path, metavar="PATH", help="the Python of an environment with vLLM")
    parser.add_argument("--log", type=Path, metavar="FILE", help="where the server's own log goes")
    add_report_options(parser)
    add_record_options(parser)
    return parser


def _several(text: str) -> int:
    """A whole number of at least two."""
    if (number := positive(text)) < 2:
        raise argparse.ArgumentTypeError("a text of one token has nothing to score")
    return number


def _check(options: argparse.Namespace) -> int:
    check_writable(options.report)
    check_writable(options.log)
    check_record(options, Path(options.checkpoint))
    python = find_python(options.serving_python)
    progress = Progress()
    checkpoint = fetch(open_model(options.checkpoint, follow=options.follow_links), progress)
    source = None
    if options.source is not None:
        source = fetch(open_model(options.source, follow=options.follow_links), progress)
    request = ServingCheck(
        checkpoint=checkpoint,
        source=source,
        python=python,
        token_ids=token_windows(checkpoint, _text(options.text), windows=options.windows, length=options.length),
        log=options.log if options.log is not None else cache_directory("serving") / "vllm.log",
    )
    report = check(request, progress=progress)
    names = {} if source is None else {str(source.directory): called(source), options.source: called(source)}
    record(options, Path(options.checkpoint), "serving", report, names={**names, str(request.log): request.log.name})
    return hand_over(report, options)


def _text(file: Path | None) -> str:
    if file is not None:
        try:
            return file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            what = f"the text cannot be read ({error.strerror})"
            raise WeighbridgeError(what, where=str(file), remedy="name a file with --text") from error
    from weighbridge.samples.trained.text import held_out_text

    return held_out_text()


main = partial(command, _parser, _check)

if __name__ == "__main__":
    sys.exit(main())
