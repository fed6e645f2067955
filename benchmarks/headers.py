"""What judging from headers alone costs: the hostile corpus case by case, and the two commands on the real model.

    python -m benchmarks.headers [--runs 5] [--seed 3]

Prints Markdown tables. Whole processes are timed from their start to their end, Python's own start included, by the
wall clock (to 5 ms), with the files in the page cache; their memory is the most that they were seen to hold.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import hostile
from tests.hostile import HostileCase, answer, empty_directory

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "fp8-dynamic"
SOURCE = "references/google/gemma-4-26B-A4B-it.yaml"
REFERENCE = "references/RedHatAI/gemma-4-26B-A4B-it-FP8-dynamic.yaml"
SLOWEST = 10
POLL_SECONDS = 0.005
COMMAND_LIMIT, CASE_LIMIT = 1.5, 1.0
"""Seconds that the project promises: for each of the two commands, and for each hostile case."""


@dataclass(frozen=True)
class Run:
    """One process: its exit code, the seconds that it took, and the most bytes that it held."""

    code: int
    seconds: float
    resident: int


def run(arguments: Sequence[str], *, directory: Path = ROOT, output: Path | None = None) -> Run:
    """Run a script of the repository with this Python, offline; what it prints goes to `output`, or nowhere."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    resident = 0
    with (output or Path(os.devnull)).open("wb") as file:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=file, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            resident = max(resident, peak_resident(process.pid))
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started
    return Run(process.returncode, seconds, resident)


def peak_resident(pid: int) -> int:
    """The most bytes that a running process has held so far; 0 where the kernel does not say (elsewhere than Linux).

    What wait4 tells of a child that has ended counts this process's own memory too.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def time_case(case: HostileCase) -> tuple[float, int]:
    """Seconds that a case takes in this process, and its exit code."""
    with empty_directory() as place:
        case.write(place)
        started = time.perf_counter()
        code = answer(case, place).code
        return time.perf_counter() - started, code


def run_case(case: HostileCase, runs: int) -> Run:
    """The fastest of several processes that judge a case, with the most memory that any of them held."""
    with empty_directory() as place:
        case.write(place)
        done = [run([f"{case.command}.py", *case.arguments], directory=place) for _ in range(runs)]
    return Run(done[0].code, min(one.seconds for one in done), max(one.resident for one in done))


def commands(runs: int) -> None:
    """Time the plan of the real model, and the validation of one real lock against another."""
    plan = ["build.py", RECIPE, "--plan", "--model", SOURCE]
    with empty_directory() as place:
        predicted = place / "predicted.yaml"
        run([*plan, "--format", "lock"], output=predicted)
        rows = {
            f"`{' '.join(plan)}`": plan,
            f"`validate.py {REFERENCE} --reference PLANNED`": ["validate.py", REFERENCE, "--reference", str(predicted)],
        }
        write("whole process", "exit code", f"best of {runs}, s", "median, s", "allowed, s", "peak resident, MiB")
        write(*["---"] * 6)
        for name, command in rows.items():
            done = [run(command) for _ in range(runs)]
            seconds = [one.seconds for one in done]
            best, median = f"{min(seconds):.2f}", f"{statistics.median(seconds):.2f}"
            write(
                name, str(done[0].code), best, median, str(COMMAND_LIMIT), mebibytes(max(one.resident for one in done))
            )


def corpus(seed: int, runs: int) -> None:
    """Time every hostile case in this process, and the slowest as processes of their own."""
    for case in hostile.good():
        time_case(case)  # imports what is imported late
    cases = list(hostile.cases(seed))
    timed = [(*time_case(case), case) for case in cases]
    timed.sort(key=lambda one: one[0], reverse=True)
    seconds = [one[0] for one in timed]
    refused = sum(code == 2 for _, code, _ in timed)
    sys.stdout.write(
        f"\n{len(cases):,} hostile cases (seed {seed}), {refused:,} refused with exit code 2: slowest "
        f"{seconds[0]:.2f} s of {CASE_LIMIT} s allowed, median {statistics.median(seconds) * 1000:.1f} ms, "
        f"all {sum(seconds):.0f} s, in one process.\n\n"
    )
    write("slowest cases", "in one process, s", f"as a process of its own (best of {runs}), s", "peak resident, MiB")
    write(*["---"] * 4)
    for within, _, case in timed[:SLOWEST]:
        whole = run_case(case, runs)
        write(f"{case.command} `{case.name}`", f"{within:.2f}", f"{whole.seconds:.2f}", mebibytes(whole.resident))
    plain = run_case(hostile.good()[0], runs)
    write("none: a good checkpoint", "", f"{plain.seconds:.2f}", mebibytes(plain.resident))


def mebibytes(count: int) -> str:
    """A number of bytes as whole MiB."""
    return f"{count / 2**20:,.0f}"


def write(*cells: str) -> None:
    """Print one row of a Markdown table."""
    sys.stdout.write("| " + " | ".join(cells) + " |\n")
    sys.stdout.flush()


def machine() -> str:
    """The machine in a line: processor, cores that this process may use, Python."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{models[0] if models else platform.machine()}, {cores} cores, Python {platform.python_version()}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="processes of which the best counts (default: 5)")
    parser.add_argument("--seed", type=int, default=hostile.SEED, help=f"seed of the corpus (default: {hostile.SEED})")
    options = parser.parse_args()
    sys.stdout.write(f"{machine()}\n\n")
    commands(options.runs)
    corpus(options.seed, options.runs)


if __name__ == "__main__":
    main()
