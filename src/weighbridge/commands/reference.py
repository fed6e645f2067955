"""``make reference``: re-pin the structure locks of published checkpoints from the hub, by their headers alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from weighbridge import miniature
from weighbridge.cache import write_atomically
from weighbridge.catalogue import REFERENCES
from weighbridge.commands.run import Parser, run
from weighbridge.structure.hub import HubId, open_hub
from weighbridge.structure.lock import open_lock, write_lock

OURS = miniature.NAME.partition("/")[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    parser = Parser(prog="make reference", description=main.__doc__)
    parser.add_argument("lock", type=Path, nargs="*", help="locks to re-pin (default: all of published checkpoints)")
    options = parser.parse_args(arguments)
    published = [path for path in sorted(REFERENCES.rglob("*.yaml")) if path.parent.name != OURS]
    return run(lambda: _repin(options.lock or published))


def _repin(paths: Sequence[Path]) -> int:
    for path in paths:
        written = open_lock(path)
        old = written.origin
        seen = open_hub(HubId(old.repository, old.revision or None))
        basis = "exact" if old.basis == "exact" and seen.structure == written.structure else "seen"
        note = "read from the headers on the hub"
        origin = replace(seen.origin, base=old.base, basis=basis, note=note)
        write_atomically(path, write_lock(replace(seen, origin=origin)).encode())
        change = "as it was" if seen.structure == written.structure else "changed"
        sys.stdout.write(f"{path}: {len(seen.structure):,} tensors, {change}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
