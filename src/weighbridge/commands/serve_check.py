"""``make serve-check``: load a checkpoint with vLLM's own loader, generate, and compare log-probabilities with ours."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from weighbridge.cache import cache_directory
from weighbridge.commands.record import add_record_options, check_record, record
from weighbridge.commands.run import Parser, add_report_options, check_writable, hand_over, positive, run
from weighbridge.evidence.account import called
from weighbridge.progress import Progress
from weighbridge.report import PRESENTERS
from weighbridge.serving.check import ServingCheck, check, token_windows
from weighbridge.serving.environment import find_python
from weighbridge.source import fetch, open_model

EPILOG = """\
vLLM lives in an environment of its own: 'make serve-env' makes one for CPUs in .venv-vllm; --serving-python names
another. docs/explanation/serving.md says what is compared and where the bounds come from.
exit codes: 0 it serves and the server computes what it means; 1 it does not; 2 could not judge
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    parser = Parser(
        prog="make serve-check",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a directory, or a hub id")
    parser.add_argument("--source", metavar="BASE", help="its base, to be scored in the same server")
    parser.add_argument("--text", type=Path, metavar="FILE", help="what to score (default: Python's own library)")
    parser.add_argument("--windows", type=positive, default=16, metavar="N", help="stretches of it (default: 16)")
    parser.add_argument("--length", type=positive, default=128, metavar="TOKENS", help="of each (default: 128)")
    parser.add_argument("--serving-python", type=Path, metavar="PATH", help="the Python of an environment with vLLM")
    parser.add_argument("--log", type=Path, metavar="FILE", help="where the server's own log goes")
    add_report_options(parser)
    add_record_options(parser)
    options = parser.parse_args(arguments)
    if options.length < 2:
        parser.error("argument --length: a text of one token has nothing to score")
    return run(lambda: _check(options))


def _check(options: argparse.Namespace) -> int:
    check_writable(options.report)
    check_writable(options.log)
    check_record(options, Path(options.checkpoint))
    python = find_python(options.serving_python)
    checkpoint = fetch(open_model(options.checkpoint))
    request = ServingCheck(
        checkpoint=checkpoint,
        source=fetch(open_model(options.source)) if options.source is not None else None,
        python=python,
        token_ids=token_windows(checkpoint, _text(options.text), windows=options.windows, length=options.length),
        log=options.log if options.log is not None else cache_directory("serving") / "vllm.log",
    )
    report = check(request, progress=Progress())
    source = request.source
    names = {} if source is None else {str(source.directory): called(source), options.source: called(source)}
    record(options, Path(options.checkpoint), "serving", report, names={**names, str(request.log): request.log.name})
    return hand_over(report, text=PRESENTERS[options.format](report), report_path=options.report)


def _text(file: Path | None) -> str:
    if file is not None:
        return file.read_text(encoding="utf-8", errors="replace")
    from weighbridge.trained.text import held_out_text

    return held_out_text()


if __name__ == "__main__":
    sys.exit(main())
