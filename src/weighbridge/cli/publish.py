"""``make publish``: upload a checkpoint to the hub after its evidence was checked."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from weighbridge.cli.run import Parser, add_report_options, check_writable, command, hand_over
from weighbridge.errors import WeighbridgeError
from weighbridge.evidence.publish import Offer, listed, offer_of, upload
from weighbridge.evidence.signing import open_verifier
from weighbridge.progress import Progress

EPILOG = """\
HF_TOKEN must be allowed to write there. What would go is listed first, and
goes once somebody has agreed: at a terminal, or by --yes.

examples:
  %(prog)s builds/x my-org/mini-FP8
  %(prog)s builds/x my-org/mini-FP8 --key key.pub.pem --public --yes

exit codes: 0 uploaded; 1 its evidence does not hold, nothing was uploaded;
2 could not judge or upload, or nobody agreed
"""


def _parser() -> Parser:
    parser = Parser(
        "publish", description="Upload a checkpoint to the hub after its evidence was checked.", epilog=EPILOG
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a build on disk, with its evidence/")
    parser.add_argument("repository", metavar="ORG/NAME", help="where it goes; made if it is not there, and private")
    parser.add_argument("--key", type=Path, metavar="PUB.pem", help="the key that must have signed it")
    parser.add_argument("--public", action="store_true", help="let anybody see it there")
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="NAME",
        help="publish this file too, which no model needs (a pattern as in 'original/*.json'; can be given again)",
    )
    parser.add_argument("--yes", action="store_true", help="upload what is listed without asking")
    add_report_options(parser)
    return parser


def _publish(options: argparse.Namespace) -> int:
    check_writable(options.report)
    verifier = open_verifier(options.key) if options.key else None
    offer = offer_of(
        options.checkpoint,
        options.repository,
        public=options.public,
        named=options.include,
        verifier=verifier,
        progress=Progress(),
    )
    if offer.checked.holds:
        sys.stderr.write(f"{listed(offer)}\n")
        if not options.yes:
            _ask(offer)
    return hand_over(upload(offer), options)


def _ask(offer: Offer) -> None:
    """Ask whoever sits before the terminal.

    Raises:
        WeighbridgeError: nobody does, or they do not agree.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        what = "nobody has agreed to upload what is listed, and there is no terminal to ask at"
        raise WeighbridgeError(
            what, where=offer.repository, remedy="add --yes (make: YES=1) once you have read the list"
        )
    sys.stderr.write(f"upload it, {offer.who_sees_it}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise WeighbridgeError("nothing was uploaded, as you said", where=offer.repository)


main = partial(command, _parser, _publish)

if __name__ == "__main__":
    sys.exit(main())
