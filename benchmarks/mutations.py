"""Which small mistakes in the code the tests would not notice.

    python -m benchmarks.mutations [--count 200] [--seed N] [--packages audit,evidence,structure,diff,plan,account]

Makes one mutant of the code after the other (`benchmarks.mutants`) and runs the tests that are nearest to it, the
fastest first: a test that fails kills it. What survives is tried once more against more files, and only then counts as
survived. Every number of a limit in audit/ is always among the mutants, twice and half of it; the others are drawn at
random from a seed, from each package its share. Results are appended to a file (--results), so that a campaign that was
interrupted goes on where it was if it is given the seed that it printed; those of another version of a file do not
count. A test file is expected to take as long as it did when it last passed, so that a second campaign chooses better.

Neither mutmut 3.8 nor Cosmic Ray 8.7 can do it here: mutmut mutates the bodies of functions alone, which leaves out
every limit that a module states, and calls them through a dispatcher that numba cannot compile; Cosmic Ray runs one
and the same command for all mutants of a session, where this needs the tests of each, and has no change of a limit to
its double and no removed branch.

Each worker has a copy of the checkout under the temporary directory, with an environment of its own: a .pth file there
names first the copy's src, then the packages of the environment that runs this, whose own .pth files (the editable
installation among them) are not read from such a line. So subprocesses, too, import the mutant. A written file gets a
time of its own in whole seconds, since .pyc files are held against nothing finer; numba's cache, which knows a file by
its digest, is one that nobody else has, and a fresh one for mutants of what numba compiles. A test that kills is run
again without the change, unless all of its file passed before; a file with one that fails then is not used, and listed.
"""

from __future__ import annotations

import argparse
import ast
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.mutants import LIMIT, Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "src/weighbridge"
PACKAGES = ("audit", "evidence", "structure", "diff", "plan", "account")
ALL_LIMITS = ("audit",)
"""Packages of which every limit is mutated."""

PYTEST = "-m pytest -x -p no:cacheprovider --no-header --tb=line -rfE --hypothesis-seed=0"
PYTEST_PASSED, PYTEST_FAILED, PYTEST_INTERRUPTED, PYTEST_USAGE, PYTEST_EMPTY = 0, 1, 2, 4, 5
KILLED, BROKEN, SURVIVED, TIMED_OUT = "killed", "killed at import", "survived", "timed out"
SLACK, LEAST_SECONDS, UNKNOWN_SECONDS = 4, 120, 900
"""A run of tests may take so many times what it is expected to, but at least so many seconds; and so many where one of
its files has not passed yet, so that nobody knows how long it takes."""
SHARED_CACHE = "numba"
GUESSED_BYTES_A_SECOND = 1000
"""How long a test file is expected to take that has not passed yet."""


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


# --- which tests


@cache
def _imports(path: str) -> frozenset[str]:
    """The files of the repository that a file imports, and where those that it imports from a package come from."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found.update(file for name in node.names if (file := _file_of(name.name)) is not None)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            for name in node.names:
                found.update(_origins(node.module, name.name))
    return frozenset(found - {path})


def _origins(module: str, name: str) -> Iterator[str]:
    """The file that ``from module import name`` takes `name` from, through a package's own imports."""
    whole, file = _file_of(f"{module}.{name}"), _file_of(module)
    if whole is not None:
        yield whole
    elif file is not None:
        yield file
        if file.endswith("__init__.py"):
            for node in ast.parse((ROOT / file).read_text()).body:
                if isinstance(node, ast.ImportFrom) and any(name in (one.name, one.asname) for one in node.names):
                    yield from _origins(node.module or "", name)


def _file_of(module: str) -> str | None:
    parts = module.split(".")
    head = {"weighbridge": "src/weighbridge", "tests": "tests"}.get(parts[0])
    stem = "/".join([head or parts[0], *parts[1:]])
    paths = (f"{stem}.py", f"{stem}/__init__.py") if head or len(parts) == 1 else ()
    return next((path for path in paths if (ROOT / path).is_file()), None)


@dataclass(frozen=True)
class Suite:
    """The test files, and what each of them imports."""

    imports: Mapping[str, frozenset[str]]

    @classmethod
    def read(cls) -> Suite:
        """Those of the checkout."""
        paths = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("test_*.py"))
        return cls({path: _imports(path) for path in paths})

    def near(self, path: str) -> list[str]:
        """Test files that are named for a module or for its package, or import it."""
        words = {Path(path).stem, *Path(path).relative_to(SOURCE).parts[:-1]}
        named = re.compile(rf"tests/test_({'|'.join(map(re.escape, words))})s?(_\w+)?\.py")
        return [test for test, imported in self.imports.items() if path in imported or named.fullmatch(test)]

    def far(self, path: str) -> tuple[list[str], list[str]]:
        """Further test files that import what imports a module, of the package or of what tests share; then those
        that import what imports that.

        All tests share conftest.py, which imports nearly everything, and so says nothing.
        """
        near, above = set(self.near(path)), _importers(path)
        one = [test for test, imported in self.imports.items() if test not in near and imported & above]
        higher = frozenset[str]().union(*map(_importers, above))
        two = [test for test, imported in self.imports.items() if test not in {*near, *one} and imported & higher]
        return one, two


@cache
def _importers(path: str) -> frozenset[str]:
    """Files of the package, the two scripts, and what tests share, that import one."""
    files = [*(ROOT / SOURCE).rglob("*.py"), *(ROOT / "tests").glob("*.py"), ROOT / "build.py", ROOT / "validate.py"]
    paths = (file.relative_to(ROOT).as_posix() for file in files if file.name != "conftest.py")
    return frozenset(file for file in paths if path in _imports(file))


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

    def test_mutant(self, mutant: Mutant, tests: Sequence[str], seconds: float) -> Run:
        """Run tests on a mutant, with a cache of its own for what numba compiles of it."""
        original = (self.root / mutant.path).read_bytes()
        fresh = "numba-mutant" if b"import numba" in original else SHARED_CACHE
        self.write(mutant.path, mutant.applied(original))
        try:
            return self.test(tests, seconds, fresh)
        finally:
            self.write(mutant.path, original)
            shutil.rmtree(self.place / "numba-mutant", ignore_errors=True)

    def test(self, tests: Sequence[str], seconds: float, compiled: str = SHARED_CACHE) -> Run:
        """Run tests for so long at most.

        Args:
            tests: files, or ids of tests.
            compiled: the name of numba's cache.
        """
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(self.place / compiled), "PYTHONDONTWRITEBYTECODE": "1"}
        report = self.place / "report.xml"
        report.unlink(missing_ok=True)
        options = (*PYTEST.split(), f"--basetemp={self.place / 't'}", f"--junitxml={report}")
        with (self.place / "output").open("w+") as output:
            self.process = subprocess.Popen(
                [str(self.python), *options, *tests],
                cwd=self.root, env=environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
            try:
                code: int | None = self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                self.end()
            output.seek(0)
            return Run(code, output.read(), _seconds_by_file(report))

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
        seconds: test file -> seconds of its tests, with what they share and are the first to ask for.
    """

    code: int | None
    output: str
    seconds: Mapping[str, float]

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


def _seconds_by_file(report: Path) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        found["/".join(case.attrib["classname"].split(".")[:2]) + ".py"] += float(case.attrib["time"])
    return found


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
        files: the test files that were run.
        seconds: what that took.
    """

    key: str
    package: str
    change: str
    verdict: str
    by: str
    files: list[str]
    seconds: float


@dataclass(frozen=True)
class Passed:
    """A test file that passed as a whole, and so does without a change; it took so many seconds."""

    file: str
    took: float


@dataclass(frozen=True)
class Unfit:
    """A test file with a test that fails in a copy without any change, so that it says nothing of mutants."""

    unfit: str
    test: str


Entry = Result | Passed | Unfit


class Record:
    """The file of results, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        self.results: dict[str, Result] = {}
        self.passed: dict[str, float] = {}
        self.unfit: set[str] = set()
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = json.loads(line)
            kind = next(kind for kind, name in ((Result, "key"), (Passed, "took"), (Unfit, "unfit")) if name in entry)
            self._take(kind(**entry))

    def keep(self, entry: Entry) -> None:
        """Write an entry down."""
        with self.lock, self.path.open("a") as file:
            file.write(json.dumps(asdict(entry)) + "\n")
        self._take(entry)

    def _take(self, entry: Entry) -> None:
        match entry:
            case Result():
                self.results[entry.key] = entry
            case Passed():
                self.passed[entry.file] = entry.took
            case Unfit():
                self.unfit.add(entry.unfit)


class Campaign:
    """Tries mutants, each in a copy that nobody else uses at the time."""

    def __init__(self, record: Record, copies: Sequence[Copy], near_seconds: float, far_seconds: float) -> None:
        self.record, self.suite = record, Suite.read()
        self.near_seconds, self.far_seconds = near_seconds, far_seconds
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
            began, run = time.monotonic(), list[str]()
            verdict, by = self._near_and_far(copy, mutant, run)
        finally:
            self.copies.put(copy)
        result = Result(mutant.key, package, str(mutant), verdict, by, run, round(time.monotonic() - began, 1))
        self.record.keep(result)
        return result

    def _near_and_far(self, copy: Copy, mutant: Mutant, run: list[str]) -> tuple[str, str]:
        """The verdict of the tests that are nearest, and of the wider ones if it survives; `run` gets their files."""
        sets = (((self.suite.near(mutant.path),), self.near_seconds), (self.suite.far(mutant.path), self.far_seconds))
        for candidates, budget in sets:
            while files := self._affordable(candidates, budget):
                verdict, by = self._tested(copy, mutant, files)
                if verdict != KILLED or self._passes_unmutated(copy, by):
                    break
            run += files
            if files and verdict != SURVIVED:
                return verdict, by
        return SURVIVED, ""

    def _tested(self, copy: Copy, mutant: Mutant, files: Sequence[str]) -> tuple[str, str]:
        least = LEAST_SECONDS if self.record.passed.keys() >= set(files) else UNKNOWN_SECONDS
        limit = max(least, SLACK * sum(map(self._expected, files)))
        done = copy.test_mutant(mutant, files, limit)
        verdict, by = done.verdict()
        for file, seconds in done.seconds.items():
            if not by.startswith(file) and file not in self.record.passed:
                self.record.keep(Passed(file, round(seconds, 1)))
        return verdict, by

    def _passes_unmutated(self, copy: Copy, test: str) -> bool:
        """Whether a test that killed a mutant passes without one."""
        file = test.partition("::")[0]
        if file in self.record.passed:
            return True
        if copy.test([test], LEAST_SECONDS + SLACK * self._expected(file)).code == PYTEST_PASSED:
            return True
        self.record.keep(Unfit(file, test))
        return False

    def _affordable(self, candidates: Iterable[Sequence[str]], budget: float) -> list[str]:
        """Test files, the fastest of each group first, until they fill the time that there is."""
        chosen: list[str] = []
        for group in candidates:
            for file in sorted(group, key=self._expected):
                if file not in self.record.unfit and budget > 0:
                    chosen.append(file)
                    budget -= self._expected(file)
        return chosen

    def _expected(self, file: str) -> float:
        """Seconds that a test file takes; a guess from its length where it has not passed yet."""
        return self.record.passed.get(file, (ROOT / file).stat().st_size / GUESSED_BYTES_A_SECOND)


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
            lines += [f"- {result.verdict}: {result.change}", f"  ({_names(result.files)})"]
    return "\n".join(lines) + "\n"


def _names(files: Iterable[str]) -> str:
    return " ".join(Path(file).stem.removeprefix("test_") for file in files)


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
    parser.add_argument("--workers", type=int, default=1, help="mutants at a time (default: 1)")
    parser.add_argument("--results", type=Path, default=Path("mutations.jsonl"), help="default: %(default)s")
    parser.add_argument("--only", default="", help="an expression; of the chosen mutants those whose line matches")
    parser.add_argument(
        "--near", type=float, default=120, metavar="S", help="seconds for the nearest tests (default: 120)"
    )
    parser.add_argument("--far", type=float, default=180, metavar="S", help="seconds for the wider ones (default: 180)")
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
        run(record, left, workers=options.workers, near_seconds=options.near, far_seconds=options.far)
    finally:
        done = [record.results[mutant.key] for _, mutant in chosen if mutant.key in record.results]
        say("\n" + table(done, packages))
        if record.unfit:
            say(f"Not used, since a test of theirs fails without a change: {_names(sorted(record.unfit))}")


def run(
    record: Record, left: Sequence[tuple[str, Mutant]], *, workers: int, near_seconds: float, far_seconds: float
) -> None:
    """Try mutants, and say what becomes of each."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as place, ThreadPoolExecutor(workers) as pool:
        copies = [Copy(Path(place) / str(number)) for number in range(workers if left else 0)]
        campaign = Campaign(record, copies, near_seconds, far_seconds)

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
