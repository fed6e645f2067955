"""``make evaluate``: how much worse builds answer than their source, on text."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from weighbridge.base.source import MADE, fetch, open_model
from weighbridge.checkpoint.opening import open_checkpoint
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
from weighbridge.errors import EvidenceError
from weighbridge.evidence.finished import called
from weighbridge.progress import Progress
from weighbridge.recipe.quality import DEFAULT_WINDOWS
from weighbridge.report import Report

EPILOG = """\
KL divergence and agreement of next-token distributions, and perplexity, each
with a 95 %% interval; of several builds a table side by side, with the paired
difference of those of equal bits. The text is a file, code (the default:
sources of Python's standard library that trained-mini has not seen) or english
(the manual that Python's help prints).

examples:
  %(prog)s builds/x --source mini
  %(prog)s builds/x builds/y --source mini
  %(prog)s builds/x --source mini --text english --record

exit codes: 0 measured; 2 could not measure
"""


def _parser() -> Parser:
    parser = Parser("evaluate", description="Measure how much worse builds answer than their source.", epilog=EPILOG)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="builds: directories or hub ids")
    add_options(parser)
    add_record_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of everything that measures answers."""
    source = parser.add_argument("--source", required=True, metavar="BASE", help="what they were built from")
    complete(source, lambda: MADE)
    add_follow_option(parser)
    parser.add_argument(
        "--text", metavar="FILE", help="the text to answer on: a UTF-8 file, code or english (default: code)"
    )
    parser.add_argument(
        "--windows",
        type=positive,
        default=DEFAULT_WINDOWS,
        metavar="N",
        help=f"how many stretches of the text are used (default: {DEFAULT_WINDOWS})",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of the computation (default: float32)",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), or an accelerator such as cuda:0")
    add_report_options(parser)


def _evaluate(options: argparse.Namespace) -> int:
    from weighbridge.engines.devices import resolve_devices
    from weighbridge.extras.quality import assess

    check_writable(options.report)
    resolve_devices((options.device,))
    if options.record and len(options.checkpoints) > 1:
        what = "records the result of one build in its evidence"
        raise EvidenceError(what, where="--record", remedy="evaluate the others by themselves")
    check_record(options, Path(options.checkpoints[0]))
    builds = [open_checkpoint(name, follow=options.follow_links) for name in options.checkpoints]
    progress = Progress()
    source = fetch(open_model(options.source, follow=options.follow_links), progress)
    assess.check_source(source, builds)
    windows = assess.windows_of(source, options.text, count=options.windows)
    found = assess.evaluate(builds, source, windows, dtype=options.dtype, device=options.device, progress=progress)
    sections = [assess.text_section(windows, options.dtype), *(assess.section_of(item, source) for item in found)]
    if len(found) > 1:
        sections.append(assess.comparison(found, source))
    verdict = "; ".join(
        f"{item.build.label}: {section.summary}" for item, section in zip(found, sections[1:], strict=False)
    )
    report = Report("evaluate", ", ".join(options.checkpoints), verdict, tuple(sections))
    names = {str(source.directory): called(source), options.source: called(source)}
    record(options, Path(options.checkpoints[0]), "quality", report, names=names)
    return hand_over(report, options)


main = partial(command, _parser, _evaluate)

if __name__ == "__main__":
    sys.exit(main())
