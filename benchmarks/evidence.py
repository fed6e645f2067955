"""What evidence costs of a build's time, beyond the hashes that the engine takes anyway.

    python -m benchmarks.evidence [--gigabytes 3] [--runs 3]

Prints a Markdown table. Each build is a process of its own; what is inside the two functions of the evidence is timed
there, with the libraries that they import.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks import source
from benchmarks.engine import ROOT, write_recipe

INSIDE = "--inside"


def main(arguments: Sequence[str]) -> int:
    """Print the table, or with ``--inside`` and the arguments of build.py the seconds of one build."""
    if arguments[:1] == [INSIDE]:
        return inside(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        compare(Path(scratch), int(options.gigabytes * 1e9), options.runs)
    return 0


def compare(scratch: Path, size: int, runs: int) -> None:
    """Print medians: the whole process, the evidence in it, and its share of the rest."""
    from weighbridge.evidence.signing import make_key_pair

    large, key = scratch / "source", scratch / "key.pem"
    large.mkdir()
    source.make(large, size)
    make_key_pair(key, scratch / "key.pub.pem", curve="P-256")
    recipe = write_recipe(scratch, "FP8_DYNAMIC")
    builds = {
        "the miniature": ["fp8-dynamic", "--model", "mini"],
        f"a source of {size / 1e9:g} GB": [str(recipe), "--model", str(large)],
    }
    sys.stdout.write(
        "| FP8_DYNAMIC of | signed | whole process, s | evidence, s | of the rest |\n|---|---|---|---|---|\n"
    )
    for name, build in builds.items():
        for signed in (False, True):
            output = ["--output", str(scratch / "output"), "--force", *(["--sign", str(key)] if signed else [])]
            whole, spent = zip(*(one([*build, *output]) for _ in range(runs)), strict=True)
            total, part = statistics.median(whole), statistics.median(spent)
            share = f"{part / (total - part):.1%}"
            sys.stdout.write(f"| {name} | {'yes' if signed else 'no'} | {total:.2f} | {part:.2f} | {share} |\n")


def one(build: Sequence[str]) -> tuple[float, float]:
    """Seconds of a whole process that builds, and of the evidence in it."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.evidence", INSIDE, *build]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return time.perf_counter() - started, float(done.stdout)


def inside(build: Sequence[str]) -> int:
    """Run build.py in this process and print the seconds that were spent on evidence."""
    from weighbridge import evidence
    from weighbridge.cli.build import main as run

    spent = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal spent
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spent += time.perf_counter() - started

        return call

    for name in ("write", "licence_section"):
        setattr(evidence, name, timed(getattr(evidence, name)))
    with redirect_stdout(io.StringIO()):
        code = run(build)
    sys.stdout.write(f"{spent}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
