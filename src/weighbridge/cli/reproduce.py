"""``make reproduce``: build a checkpoint again from its own evidence, and compare the bytes."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from weighbridge import api
from weighbridge.base.source import MADE
from weighbridge.cli.complete import complete
from weighbridge.cli.run import Parser, add_report_options, add_work_options, check_writable, command, hand_over, keep
from weighbridge.errors import EvidenceError
from weighbridge.evidence.signing import open_signer
from weighbridge.machine.resources import Resources

EPILOG = """\
examples:
  %(prog)s builds/x --model mini
  %(prog)s builds/x --model mini --statement it.json --sign key.pem

exit codes: 0 the same bytes (or, with a warning, the same tensors in other
files); 1 it differs, or what it would be made from does; 2 could not build
"""


def _parser() -> Parser:
    description = "Build a checkpoint again from its own evidence, and compare the bytes."
    parser = Parser("reproduce", description=description, epilog=EPILOG)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a build on disk, with its evidence/")
    model = parser.add_argument(
        "--model", metavar="BASE", help="where the base is (default: on the hub, where the evidence says)"
    )
    complete(model, lambda: MADE)
    parser.add_argument(
        "--calibration", metavar="FILE", help="the file that it was calibrated with, if build.py was given one"
    )
    parser.add_argument(
        "--text", metavar="FILE", help="the file that its answers were measured on, if its recipe named one"
    )
    parser.add_argument(
        "--reference",
        metavar="REF",
        action="append",
        help="what to compare the build with, in place of the references that its evidence names (can be given again)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="keep the new build in this directory (default: it is deleted after the comparison)",
    )
    add_work_options(parser, pieces="pieces (groups of tensors)", memory="memory that the build may take")
    parser.add_argument(
        "--elsewhere", action="store_true", help="build even if the environment differs, to see whether the bytes do"
    )
    parser.add_argument("--statement", type=Path, metavar="FILE", help="write the verdict as an in-toto statement")
    parser.add_argument("--sign", metavar="KEY.pem|sigstore", help="sign that statement")
    add_report_options(parser)
    return parser


def _reproduce(options: argparse.Namespace) -> int:
    check_writable(options.report)
    check_writable(options.statement)
    if not options.checkpoint.is_dir():
        remedy = "name a build on disk, with its evidence/"
        raise EvidenceError("is no directory", where=str(options.checkpoint), remedy=remedy)
    signer = open_signer(options.sign) if options.sign else None
    report, statement = api.reproduce(
        options.checkpoint,
        source=options.model,
        calibration=options.calibration,
        text=options.text,
        references=options.reference or None,
        output=options.output,
        elsewhere=options.elsewhere,
        resources=Resources(workers=options.workers, memory=options.memory),
    )
    if options.statement is not None:
        line = statement if signer is None else signer.sign_statement(statement)
        keep(options.statement, line + b"\n")
    return hand_over(report, options)


main = partial(command, _parser, _reproduce)

if __name__ == "__main__":
    sys.exit(main())
