"""Which tests reach which lines of the code, and how long each takes: from one run of all tests under coverage.

Read from what ``pytest --cov --cov-context=test --junitxml`` writes. Two kinds of lines say nothing of their own: those
that run when a module is imported, and those that numba compiles, which nothing can trace. For them the tests stand
that reach what names them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from coverage import CoverageData

DATA, REPORT = "coverage", "report.xml"
"""What a run leaves."""

_PHASE = re.compile(r"\|(setup|run|teardown)$")


@dataclass(frozen=True, eq=False)
class Reach:
    """What tests reach.

    Attributes:
        root: of the checkout that was run.
        data: coverage's; contexts are ids of tests.
        seconds: id of each test that passed -> how long it took, with what it shares and was the first to ask for.
    """

    root: Path
    data: CoverageData
    seconds: Mapping[str, float]

    @classmethod
    def read(cls, root: Path, data: Path, report: Path) -> Reach:
        """Read what a run left: coverage's data, combined, and pytest's report."""
        covered = CoverageData(str(data))
        covered.read()
        return cls(root, covered, dict(_passed(report)))

    def tests(self, path: str, first: int, last: int) -> list[str]:
        """Tests that reach lines of a file, or else those that reach what names them; the fastest first."""
        found = self._reaching(path, range(first, last + 1)) or self._naming(path, first)
        return sorted(found, key=lambda test: (self.seconds[test], test))

    def _reaching(self, path: str, lines: Iterable[int]) -> frozenset[str]:
        here = self._lines(path)
        return frozenset[str]().union(*(here.get(line, frozenset()) for line in lines))

    @cache  # noqa: B019 (there is one for a process)
    def _lines(self, path: str) -> dict[int, frozenset[str]]:
        contexts = self.data.contexts_by_lineno(path).items()
        return {
            line: frozenset({_PHASE.sub("", test) for test in tests} & self.seconds.keys()) for line, tests in contexts
        }

    def _naming(self, path: str, line: int) -> frozenset[str]:
        """Tests that reach a line with the name of what stands at a line of a module; and all of test files that import
        the module."""
        source = (self.root / path).read_text()
        importing = re.compile(rf"^\s*(from|import) .*\b{Path(path).stem}\b", re.MULTILINE)
        importers = [file for file in self._files() if importing.search((self.root / file).read_text())]
        found = {test for test in self.seconds if test.partition("::")[0] in importers}
        names, tried = {_name_at(source, line)}, set[str | None]()
        while names:  # what numba compiles is called by what numba compiles
            tried |= names
            above = set[str | None]()
            for name in names - {None}:
                for file in (path, *importers):
                    text = (self.root / file).read_text()
                    lines = list(_lines_with(str(name), text))
                    found |= self._reaching(file, lines)
                    above |= {_name_at(text, line) for line in lines} if file == path else set()
            names = above - tried
        return frozenset(found)

    @cache  # noqa: B019 (there is one for a process)
    def _files(self) -> frozenset[str]:
        tests = {test.partition("::")[0] for test in self.seconds}
        return frozenset(tests | {file for file in self.data.measured_files() if (self.root / file).is_file()})


def _passed(report: Path) -> Iterator[tuple[str, float]]:
    """The id of each test that passed, and its seconds."""
    for case in ElementTree.parse(report).iter("testcase"):
        if not {"failure", "error", "skipped"} & {part.tag for part in case}:
            yield case.attrib["classname"].replace(".", "/") + ".py::" + case.attrib["name"], float(case.attrib["time"])


def _name_at(source: str, line: int) -> str | None:
    """What the statement of a module around a line defines."""
    for statement in ast.parse(source).body:
        if statement.lineno <= line <= (statement.end_lineno or 0):
            target = (
                statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", statement)
            )
            return getattr(target, "id", getattr(target, "name", None))
    return None


def _lines_with(name: str, source: str) -> Iterator[int]:
    whole = re.compile(rf"\b{re.escape(name)}\b")
    return (number for number, line in enumerate(source.splitlines(), 1) if whole.search(line))
