"""The audit beside the floor: reading both checkpoints once and hashing them, in interleaved pairs on one machine.

    python -m benchmarks.audit [--size 6GB] [--pairs 3] [--scheme FP8_DYNAMIC]

Each run is a process of its own. The floor reads and hashes (SHA-256) the base and the build, on two threads; the audit
reads both, hashes the base, rounds it again, compares, and measures. What counts is the ratio of medians, and the
audit's peak memory.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import source
from benchmarks.engine import LAYERS, ROOT, SCHEMES, Run, measure
from benchmarks.headers import machine, mebibytes, write
from weighbridge.machine.resources import parse_size

BLOCK = 1024 * 1024
RECIPE = """\
name: bench
description: A benchmark.
base: {{model: weighbridge/bench, licence: apache-2.0}}
method: model_free_ptq
{scheme}
ignore: ["re:.*router", "re:.*norm.*"]
"""


def hash_file(path: Path) -> None:
    """Read a file once and hash it."""
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])


def floor(paths: Sequence[Path]) -> None:
    """Read and hash files, one thread for each; what a child process of the benchmark does."""
    threads = [threading.Thread(target=hash_file, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=parse_size("6GB"), help="bytes of the base (default: 6GB)")
    parser.add_argument("--pairs", type=int, default=3, help="interleaved pairs (default: 3)")
    parser.add_argument("--scheme", choices=tuple(SCHEMES), default="FP8_DYNAMIC")
    parser.add_argument("--floor", nargs="+", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.floor:
        floor(options.floor)
        return
    with tempfile.TemporaryDirectory() as scratch:
        base, build = Path(scratch) / "base", Path(scratch) / "build"
        base.mkdir()
        source.make(base, options.size, LAYERS.get(options.scheme, source.EVERY_KIND))
        recipe = Path(scratch) / "recipe.yaml"
        recipe.write_text(RECIPE.format(scheme=SCHEMES[options.scheme]))
        command = [sys.executable, str(ROOT / "build.py"), str(recipe), "--model", str(base), "--output", str(build)]
        subprocess.run(command, check=True, capture_output=True)
        os.sync()  # or writing what was just made would go on beside the first runs
        report(options, base, build, Path(scratch))


def report(options: argparse.Namespace, base: Path, build: Path, scratch: Path) -> None:
    """Measure in turns, and print a table."""
    shards = [*base.glob("*.safetensors"), *build.glob("*.safetensors")]
    commands = {
        "floor": [sys.executable, "-m", "benchmarks.audit", "--floor", *map(str, shards)],
        "audit": [sys.executable, str(ROOT / "validate.py"), str(build), "--source", str(base)],
    }
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    total = sum(path.stat().st_size for path in shards)
    sys.stdout.write(f"{machine()}, {options.scheme}, {total:,} bytes in both, {time.strftime('%Y-%m-%d')}\n\n")
    for _ in range(options.pairs):
        for name, command in commands.items():
            runs[name].append(measure(command, scratch / "none"))
    write("", "wall, s (median)", "GB/s", "peak resident, MiB")
    write(*["---"] * 4)
    for name, measured in runs.items():
        wall = statistics.median(run.wall for run in measured)
        write(name, f"{wall:.2f}", f"{total / wall / 1e9:.2f}", mebibytes(max(run.resident for run in measured)))
    ratio = statistics.median(run.wall for run in runs["audit"]) / statistics.median(run.wall for run in runs["floor"])
    write("audit / floor", f"{ratio:.2f}", "", "")


if __name__ == "__main__":
    main()
