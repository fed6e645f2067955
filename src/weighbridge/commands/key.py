"""``make key``: a key pair for trying out signatures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from weighbridge.commands.run import HOLDS, Parser, run
from weighbridge.evidence.signing import make_key_pair

CURVES = ("P-256", "P-384", "P-521")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    parser = Parser(prog="make key", description=main.__doc__)
    parser.add_argument("key", type=Path, nargs="?", default=Path("key.pem"), help="where the private half goes")
    parser.add_argument("--curve", choices=CURVES, default="P-256", help="default: P-256")
    return run(lambda: _make(parser.parse_args(arguments)))


def _make(options: argparse.Namespace) -> int:
    public = options.key.with_suffix(".pub.pem")
    make_key_pair(options.key, public, curve=options.curve)
    sys.stdout.write(f"{options.key}: the private half, for --sign; keep it to yourself, and not for real releases\n")
    sys.stdout.write(f"{public}: the public half, for --key\n")
    return HOLDS


if __name__ == "__main__":
    sys.exit(main())
