"""Which small mistakes in the code the tests would not notice.

    python -m benchmarks.mutations [--count 200] [--seed N] [--packages auditing,evidence]

Runs all tests once under coverage, to learn which of them reach which lines (`benchmarks.reach`; kept in --reach). Then
makes one mutant of the code after the other (`benchmarks.mutants`) and runs tests that reach it, the fastest of each
function first: a test that fails kills it. First they are given what the run without a change built (checkpoints that
many tests share); what survives is tried against more of them, which at last build everything themselves, and only
then counts as survived. Every number of a limit in audit/ is always among the mutants, twice and half of it; the others
are drawn at random from a seed, from each package its share. Results are appended to a file (--results), so that a
campaign that was interrupted goes on where it was if it is given the seed that it printed; those of another version of
a file do not count.

Neither mutmut 3.8 nor Cosmic Ray 8.7 can do it here: mutmut mutates the bodies of functions alone, which leaves out
every limit that a module states, and calls them through a dispatcher that numba cannot compile; Cosmic Ray runs one
and the same command for all mutants of a session, where this needs the tests of each, and has no change of a limit to
its double and no removed branch.

Each worker has a copy of the checkout under the temporary directory, with an environment of its own: a .pth file there
names first the copy's src, then the packages of the environment that runs this, whose own .pth files (the editable
installation among them) are not read from such a line. So subprocesses, too, import the mutant. A written file gets a
time of its own in whole seconds, since .pyc files are held against nothing finer; numba's cache, which knows a file by
its digest, is one that nobody else has. A test that kills is run again without the change, once for all mutants; one
that fails then, too, is not used, and listed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import queue
import random
import re
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.mutants import LIMIT, Mutant, mutants_of
from benchmarks.reach import DATA, REPORT, Reach

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "src/weighbridge"
PACKAGES = ("auditing", "evidence", "checkpoint", "checks", "planning", "account")
ALL_LIMITS = ("auditing",)
"""Packages of which every limit is mutated."""

PYTEST = "-m pytest -p no:cacheprovider --no-header --tb=line -rfE --hypothesis-seed=0"
COVERAGE = "--cov --cov-config=.coveragerc --cov-context=test --cov-report="
COVERAGE_SETTINGS = "[run]\nsource = src/weighbridge\nrelative_files = true\nconcurrency = thread\n"
PYTEST_PASSED, PYTEST_FAILED, PYTEST_INTERRUPTED, PYTEST_USAGE, PYTEST_EMPTY = 0, 1, 2, 4, 5
KILLED, BROKEN, SURVIVED, TIMED_OUT = "killed", "killed at import", "survived", "timed out"
FAST = 0.1
"""Seconds of a test that is tried whatever else its function tests."""
SLACK, LEAST_SECONDS = 4, 120
"""A run of tests may take so many seconds, and so many times what it took under coverage."""
MADE_BEFORE = "WEIGHBRIDGE_TESTS_MADE"
"""The variable that tells tests where an earlier run has made what they make once."""
DIGESTS = "digests.json"
"""What files were when tests were run under coverage."""
SHARED_CACHE, MUTANTS_CACHE = "numba", "numba-mutant"


# --- which mutants


def files_of(package: str) -> list[str]:
    """The Python files of a package, or the module of that name."""
    if (ROOT / SOURCE / f"{package}.py").is_file():
        return [f"{SOURCE}/{package}.py"]
    found = sorted((ROOT / SOURCE / package).rglob("*.py"))
    if not found:
        raise SystemExit(f"error: {SOURCE} has no package or module '{package}'")
    return [path.relative_to(ROOT).as_posix() for path in found]


def choose(packages: Sequence[str], count: int, seed: int) -> list[tuple[str, Mutant]]:
    """The mutants to try with their packages, in an order that makes a fair sample of its beginning.

    They are all limits where all of them are, and `count` places at random, with one mutant of each; a package has a
    share by the square root of its places, so that a small one is not left out.
    """
    chooser = random.Random(seed)
    chosen, places = [], {}
    for package in packages:
        here: dict[tuple[str, int, int], list[Mutant]] = defaultdict(list)
        for mutant in (mutant for path in files_of(package) for mutant in mutants_of(ROOT, path)):
            if mutant.kind == LIMIT and package in ALL_LIMITS:
                chosen.append((package, mutant))
            else:
                here[mutant.path, mutant.begin, mutant.end].append(mutant)
        places[package] = list(here.values())
    total = sum(math.sqrt(len(here)) for here in places.values())
    for package, some in places.items():
        share = min(len(some), round(count * math.sqrt(len(some)) / total))
        chosen += [(package, chooser.choice(place)) for place in chooser.sample(some, share)]
    chooser.shuffle(chosen)
    return chosen


# --- where


class Copy:
    """A copy of the checkout, with an environment that imports it, in which one mutant at a time is made."""

    def __init__(self, place: Path) -> None:
        self.place, self.root = place, place / "w"
        self.stamp = int(time.time())
        self.process: subprocess.Popen[bytes] | None = None
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)
        self._make_environment(self.root / ".venv")

    def _make_environment(self, home: Path) -> None:
        venv.create(home, symlinks=True)
        (packages,) = home.glob("lib/python*/site-packages")
        (packages / "copy.pth").write_text("\n".join([str(self.root / "src"), *site.getsitepackages()]) + "\n")
        self.python = home / "bin" / "python"
        for script in Path(sys.executable).parent.iterdir():
            ours = home / "bin" / script.name
            if script.is_file() and not ours.exists():
                content = script.read_bytes().replace(sys.prefix.encode(), bytes(home))
                ours.write_bytes(content)
                ours.chmod(script.stat().st_mode)

    def write(self, path: str, content: bytes) -> None:
        """Write a file of the copy, with a time in whole seconds that no version of it has had."""
        self.stamp += 2
        (self.root / path).write_bytes(content)
        os.utime(self.root / path, (self.stamp, self.stamp))

    def test_mutant(self, mutant: Mutant, tests: Sequence[str], seconds: float, made: Path | None) -> Run:
        """Run tests on a mutant, with a cache of its own for what numba compiles of it.

        Args:
            made: what tests build once, as the code makes it without a change; None lets the mutant make it.
        """
        original = (self.root / mutant.path).read_bytes()
        compiled = SHARED_CACHE
        if b"import numba" in original:  # what others compiled is the same, and is taken along
            compiled = MUTANTS_CACHE
            shutil.copytree(self.place / SHARED_CACHE, self.place / MUTANTS_CACHE, dirs_exist_ok=True)
        self.write(mutant.path, mutant.applied(original))
        try:
            return self.test(tests, seconds, compiled, made)
        finally:
            self.write(mutant.path, original)
            shutil.rmtree(self.place / MUTANTS_CACHE, ignore_errors=True)

    def test(self, tests: Sequence[str], seconds: float, compiled: str = SHARED_CACHE, made: Path | None = None) -> Run:
        """Run tests, up to the first that fails, for so long at most; `compiled` is the name of numba's cache."""
        listed = self.place / "tests"
        listed.write_text("\n".join(tests))
        options = (*PYTEST.split(), "-x", f"--basetemp={self.place / 't'}", f"@{listed}")
        return self._run(options, seconds, compiled, made)

    def reach(self, directory: Path, processes: int) -> None:
        """Run all tests under coverage, and leave its data and pytest's report in a directory."""
        (self.root / ".coveragerc").write_text(COVERAGE_SETTINGS)
        directory.mkdir(parents=True, exist_ok=True)
        written = f"--basetemp={directory / 't'}", f"--junitxml={self.place / REPORT}"
        run = self._run((*PYTEST.split(), *COVERAGE.split(), f"-n{processes}", *written), None, SHARED_CACHE)
        if run.code not in (PYTEST_PASSED, PYTEST_FAILED):
            raise RuntimeError(f"pytest ended with {run.code}:\n{run.output}")
        shutil.copy(self.root / ".coverage", directory / DATA)
        shutil.copy(self.place / REPORT, directory / REPORT)
        (directory / DIGESTS).write_text(json.dumps(digests(ROOT), indent=1))

    def _run(self, options: Sequence[str], seconds: float | None, compiled: str, made: Path | None = None) -> Run:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(self.place / compiled), "PYTHONDONTWRITEBYTECODE": "1"}
        if made is not None:
            environment[MADE_BEFORE] = str(made)
        (self.place / compiled).mkdir(exist_ok=True)
        with (self.place / "output").open("w+") as output:
            self.process = subprocess.Popen(
                [str(self.python), *options],
                cwd=self.root, env=environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
            try:
                code: int | None = self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                self.end()
            output.seek(0)
            return Run(code, output.read())

    def end(self) -> None:
        """End what runs, with all that it started and left running."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass(frozen=True)
class Run:
    """What came of running tests.

    Attributes:
        code: pytest's exit code; None where it took too long.
        output: what it wrote.
    """

    code: int | None
    output: str

    def verdict(self) -> tuple[str, str]:
        """What became of the mutant, and the test that failed.

        Raises:
            RuntimeError: pytest ended as it should not.
        """
        failed = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", self.output, re.MULTILINE)
        by = failed[1] if failed else ""
        if self.code is None:
            return TIMED_OUT, ""
        if self.code in (PYTEST_PASSED, PYTEST_EMPTY):
            return SURVIVED, ""
        if self.code == PYTEST_FAILED and by:
            return KILLED, by
        if self.code in (PYTEST_INTERRUPTED, PYTEST_USAGE) and "Error" in self.output:
            return BROKEN, by or self.output.strip().splitlines()[-1][:120]
        raise RuntimeError(f"pytest ended with {self.code}:\n{self.output}")


# --- what came of it


@dataclass(frozen=True)
class Result:
    """What became of a mutant.

    Attributes:
        key: of the mutant.
        package: its package.
        change: the mutant in words.
        verdict: one of `KILLED`, `BROKEN`, `SURVIVED`, `TIMED_OUT`.
        by: the test that failed first.
        tests: how many tests were run at most.
        seconds: what that took.
    """

    key: str
    package: str
    change: str
    verdict: str
    by: str
    tests: int
    seconds: float


@dataclass(frozen=True)
class Unmutated:
    """Whether a test passes in a copy without any change; one that does not says nothing of mutants."""

    test: str
    passes: bool


Entry = Result | Unmutated


class Record:
    """The file of results, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        self.results: dict[str, Result] = {}
        self.passes: dict[str, bool] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = json.loads(line)
            self._take(Result(**entry) if "key" in entry else Unmutated(**entry))

    def keep(self, entry: Entry) -> None:
        """Write an entry down."""
        with self.lock, self.path.open("a") as file:
            file.write(json.dumps(asdict(entry)) + "\n")
        self._take(entry)

    def _take(self, entry: Entry) -> None:
        if isinstance(entry, Result):
            self.results[entry.key] = entry
        else:
            self.passes[entry.test] = entry.passes


class Campaign:
    """Tries mutants, each in a copy that nobody else uses at the time."""

    def __init__(
        self, record: Record, reach: Reach, made: Path, copies: Sequence[Copy], budgets: Sequence[float]
    ) -> None:
        self.record, self.reach, self.made, self.budgets = record, reach, made, budgets
        self.all_copies = copies
        self.copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for copy in copies:
            self.copies.put(copy)

    def stop(self) -> None:
        """End all tests that run."""
        for copy in self.all_copies:
            copy.end()

    def try_one(self, package: str, mutant: Mutant) -> Result:
        """The verdict of a mutant, which is written down."""
        copy = self.copies.get()
        try:
            began = time.monotonic()
            verdict, by, count = self._tried(copy, mutant)
        finally:
            self.copies.put(copy)
        result = Result(mutant.key, package, str(mutant), verdict, by, count, round(time.monotonic() - began, 1))
        self.record.keep(result)
        return result

    def _tried(self, copy: Copy, mutant: Mutant) -> tuple[str, str, int]:
        """The verdict, the test that failed first, and how many were run."""
        reaching = self.reach.tests(mutant.path, mutant.line, mutant.line + mutant.old.count("\n"))
        done = set[str]()
        for attempt, budget in enumerate(self.budgets, 1):
            made = self.made if attempt < len(self.budgets) else None
            while tests := self._affordable([test for test in reaching if test not in done], budget):
                expected = sum(map(self.reach.seconds.__getitem__, tests))
                verdict, by = copy.test_mutant(mutant, tests, LEAST_SECONDS + SLACK * expected, made).verdict()
                if verdict != KILLED or self._passes_unmutated(copy, by, made):
                    break
            done.update(tests)
            if tests and verdict != SURVIVED:
                return verdict, by, len(done)
        return SURVIVED, "", len(done)

    def _passes_unmutated(self, copy: Copy, test: str, made: Path | None) -> bool:
        """Whether a test that killed a mutant passes without one."""
        if test not in self.record.passes:
            limit = LEAST_SECONDS + SLACK * self.reach.seconds.get(test, 0)
            self.record.keep(Unmutated(test, copy.test([test], limit, made=made).code == PYTEST_PASSED))
        return self.record.passes[test]

    def _affordable(self, tests: Sequence[str], budget: float) -> list[str]:
        """Tests that fill the time that there is: those that take next to none (limits are tested on both sides, a case
        each) up to half of it, then the fastest of each function, then further ones."""
        seconds, functions = self.reach.seconds, dict[str, str]()
        for test in tests:
            functions.setdefault(test.partition("[")[0], test)
        fast = [test for test in tests if seconds[test] <= FAST]
        while sum(map(seconds.__getitem__, fast)) > budget / 2:
            fast.pop()
        chosen = list[str]()
        for test in dict.fromkeys((*fast, *functions.values(), *tests)):
            if self.record.passes.get(test, True) and budget > 0:
                chosen.append(test)
                budget -= seconds[test]
        return chosen


# --- what is said


def table(results: Sequence[Result], packages: Sequence[str]) -> str:
    """The counts by package, then every mutant that no test noticed, as Markdown."""
    verdicts = (KILLED, BROKEN, SURVIVED, TIMED_OUT)
    lines = [f"| package | mutants | {' | '.join(verdicts)} |", "|---" * (2 + len(verdicts)) + "|"]
    for package in (*packages, "all"):
        counted = Counter(result.verdict for result in results if package in ("all", result.package))
        cells = (package, counted.total(), *(counted[verdict] for verdict in verdicts))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    seconds = sum(result.seconds for result in results) / max(1, len(results))
    lines += ["", f"{seconds:.0f} seconds a mutant.", ""]
    for result in results:
        if result.verdict in (SURVIVED, TIMED_OUT):
            lines.append(f"- {result.verdict}: {result.change} ({result.tests} tests)")
    return "\n".join(lines) + "\n"


def digests(root: Path) -> dict[str, str]:
    """The SHA-256 of each file of the package and of its tests."""
    files = sorted(file for folder in (root / SOURCE, root / "tests") for file in folder.rglob("*.py"))
    return {file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="mutants beside the limits of audit/ (default: 200)")
    parser.add_argument("--seed", type=int, help="of the choice (default: a new one; it is printed)")
    parser.add_argument("--packages", default=",".join(PACKAGES), help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="mutants at a time (default: 2)")
    parser.add_argument("--results", type=Path, default=Path("mutations.jsonl"), help="default: %(default)s")
    parser.add_argument("--only", default="", help="an expression; of the chosen mutants those whose line matches")
    parser.add_argument("--reach", type=Path, default=Path("mutations-reach"), help="default: %(default)s")
    help_of_seconds = "of tests in each attempt at a mutant (default: 20 60 120)"
    parser.add_argument("--seconds", type=float, nargs="+", default=[20, 60, 120], metavar="S", help=help_of_seconds)
    parser.add_argument("--list", action="store_true", help="name the mutants, and run nothing")
    options = parser.parse_args()
    packages = options.packages.split(",")
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    say(f"seed {seed}")
    chosen = [item for item in choose(packages, options.count, seed) if re.search(options.only, str(item[1]))]
    if options.list:
        say("\n".join(str(mutant) for _, mutant in chosen))
        return
    record = Record(options.results)
    left = [(package, mutant) for package, mutant in chosen if mutant.key not in record.results]
    say(f"{len(chosen)} mutants, {len(left)} of them left to try")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    try:
        run(record, left, reach=options.reach.resolve(), workers=options.workers, budgets=options.seconds)
    finally:
        done = [record.results[mutant.key] for _, mutant in chosen if mutant.key in record.results]
        say("\n" + table(done, packages))
        unfit = sorted(test for test, passes in record.passes.items() if not passes)
        if unfit:
            say(f"Not used, since they fail without a change: {' '.join(unfit)}")


def run(
    record: Record, left: Sequence[tuple[str, Mutant]], *, reach: Path, workers: int, budgets: Sequence[float]
) -> None:
    """Try mutants, and say what becomes of each."""
    if not left:
        return
    with tempfile.TemporaryDirectory(prefix="mutations-") as place, ThreadPoolExecutor(workers) as pool:
        copies = [Copy(Path(place) / str(number)) for number in range(workers)]
        if not (reach / DIGESTS).exists():
            say("running all tests under coverage")
            copies[0].reach(reach, workers)
        elif changed := digests(ROOT).items() - json.loads((reach / DIGESTS).read_text()).items():
            raise SystemExit(f"error: {min(changed)[0]} has changed since what tests reach was written to {reach}")
        reached = Reach.read(ROOT, reach / DATA, reach / REPORT)
        campaign = Campaign(record, reached, (reach / "t" / "shared").resolve(), copies, budgets)

        def try_one(item: tuple[str, Mutant]) -> None:
            result = campaign.try_one(*item)
            say(f"{result.verdict} ({result.seconds:.0f} s): {result.change} {result.by}")

        try:
            for _ in pool.map(try_one, left):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            campaign.stop()
            raise


if __name__ == "__main__":
    main()
