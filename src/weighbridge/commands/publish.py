"""``make publish``: upload a checkpoint to the hub after its evidence was checked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from weighbridge.commands.run import Parser, add_report_options, check_writable, hand_over, parsed, run
from weighbridge.evidence.publish import publish
from weighbridge.evidence.signing import open_verifier
from weighbridge.progress import Progress

EPILOG = """\
HF_TOKEN must be allowed to write there.

examples:
  %(prog)s builds/x my-org/mini-FP8
  %(prog)s builds/x my-org/mini-FP8 --key key.pub.pem --private

exit codes: 0 uploaded; 1 its evidence does not hold, nothing was uploaded;
2 could not judge or upload
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    options = parsed(_parser(), arguments)
    return run(lambda: _publish(options), options)


def _parser() -> Parser:
    parser = Parser(
        "publish", description="Upload a checkpoint to the hub after its evidence was checked.", epilog=EPILOG
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a build on disk, with its evidence/")
    parser.add_argument("repository", metavar="ORG/NAME", help="where it goes; made if it is not there")
    parser.add_argument("--key", type=Path, metavar="PUB.pem", help="the key that must have signed it")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is made")
    add_report_options(parser)
    return parser


def _publish(options: argparse.Namespace) -> int:
    check_writable(options.report)
    verifier = open_verifier(options.key) if options.key else None
    report = publish(
        options.checkpoint, options.repository, private=options.private, verifier=verifier, progress=Progress()
    )
    return hand_over(report, options)


if __name__ == "__main__":
    sys.exit(main())
