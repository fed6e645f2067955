"""``make key``: a key pair for trying out signatures."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from weighbridge.cli.run import HOLDS, Parser, check_writable, command
from weighbridge.evidence.signing import make_key_pair

CURVES = ("P-256", "P-384", "P-521")
EPILOG = """\
examples:
  %(prog)s
  %(prog)s release.pem --curve P-384

exit codes: 0 made; 2 could not make it, or a file of this name is there
"""


def _parser() -> Parser:
    description = "Make a pair of keys for trying out signatures: KEY.pem and, for those who check, KEY.pub.pem."
    parser = Parser("key", description=description, epilog=EPILOG)
    parser.add_argument(
        "key",
        type=Path,
        nargs="?",
        default=Path("key.pem"),
        metavar="KEY.pem",
        help="where the private half goes (default: key.pem)",
    )
    parser.add_argument("--curve", choices=CURVES, default="P-256", help="the NIST curve (default: P-256)")
    return parser


def _make(options: argparse.Namespace) -> int:
    check_writable(options.key)
    public = options.key.with_suffix(".pub.pem")
    make_key_pair(options.key, public, curve=options.curve)
    sys.stdout.write(f"{options.key}: the private half, for --sign; keep it to yourself, and not for real releases\n")
    sys.stdout.write(f"{public}: the public half, for --key\n")
    return HOLDS


main = partial(command, _parser, _make)

if __name__ == "__main__":
    sys.exit(main())
