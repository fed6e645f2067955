"""``make reference``: re-pin the structure locks of published checkpoints from the hub, by their headers alone."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from weighbridge.base.locks import REFERENCES
from weighbridge.checkpoint.hub import HubId, open_hub
from weighbridge.checkpoint.lock import open_lock, write_lock
from weighbridge.cli.run import HOLDS, Parser, command, keep
from weighbridge.samples import miniature

OURS = miniature.NAME.partition("/")[0]
EPILOG = """\
examples:
  %(prog)s
  %(prog)s references/RedHatAI/gemma-4-26B-A4B-it-NVFP4.yaml

exit codes: 0 written; 2 could not read the hub, or a lock
"""


def _parser() -> Parser:
    description = "Re-pin the structure locks of published checkpoints from the hub, by their headers alone."
    parser = Parser("reference", description=description, epilog=EPILOG)
    parser.add_argument(
        "lock", type=Path, nargs="*", metavar="LOCK", help="what to re-pin (default: all of published checkpoints)"
    )
    return parser


def _repin(options: argparse.Namespace) -> int:
    published = [path for path in sorted(REFERENCES.rglob("*.yaml")) if path.parent.name != OURS]
    for path in options.lock or published:
        written = open_lock(path)
        old = written.origin
        seen = open_hub(HubId(old.repository, old.revision or None))
        basis = "exact" if old.basis == "exact" and seen.structure == written.structure else "seen"
        note = "read from the headers on the hub"
        origin = replace(seen.origin, base=old.base, basis=basis, note=note)
        keep(path, write_lock(replace(seen, origin=origin)).encode())
        change = "as it was" if seen.structure == written.structure else "changed"
        sys.stdout.write(f"{path}: {len(seen.structure):,} tensors, {change}\n")
    return HOLDS


main = partial(command, _parser, _repin)

if __name__ == "__main__":
    sys.exit(main())
