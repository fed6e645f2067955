"""A mutant is one small change of the code; what cannot matter is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.mutants import LIMIT, mutants_of

# code -> what it becomes, in the order of the file
CHANGED: dict[str, tuple[str, list[str]]] = {
    "a boundary and an opposite": ("a < b", ["(a <= b)", "(a >= b)"]),
    "an opposite alone": ("a is b", ["(a is not b)"]),
    "each comparison of a chain": ("a < b == c", ["(a <= b == c)", "(a >= b == c)", "(a < b != c)"]),
    "arithmetic": ("a + b", ["(a - b)"]),
    "and": ("a and b", ["(a or b)"]),
    "not": ("not a", ["(a)"]),
    "a number": ("f(3)", ["f(4)", "f(2)", "f(6)", "f(12)"]),
    "one, whose double is one more": ("f(1)", ["f(2)", "f(0)", "f(4)"]),
    "a boolean": ("f(True)", ["f(False)"]),
    "an element of a set": ("x = {'a', 'b'}", ["x = ({'b'})", "x = ({'a'})"]),
    "a row of a table, and no column": ("x = (('a', 'b'), ('c', 'd'))", ["x = ((('c', 'd'),))", "x = ((('a', 'b'),))"]),
    "a branch": ("if a: b", ["if False: b"]),
    "a choice": ("a if b else c", ["a if True else c", "a if False else c"]),
    "a filter": ("[a for a in b if c]", ["[a for a in b if True]"]),
    "an error": ("if a: raise ValueError(f'{1}', 2)", ["if False: raise ValueError(f'{1}', 2)", "if a: pass"]),
    "a limit": ("MOST = 2**8", ["MOST = ((2 ** 8) * 2)", "MOST = ((2 ** 8) // 2)"]),
    "a small limit": ("_LEAST: float = 1 / 8", ["_LEAST: float = ((1 / 8) * 2)", "_LEAST: float = ((1 / 8) / 2)"]),
    "what stands after letters of several bytes": ("f('é') < b", ["(f('é') <= b)", "(f('é') >= b)"]),
}  # fmt: skip
LEFT_ALONE = [
    '"""A docstring with 1 < 2."""',
    "def f(a: tuple[int, 'x'] | None) -> int | None: ...",
    "@d(frozen=True)\nclass C: ...",
    "assert a < b",
    "zip(a, b, strict=True)",
    "__all__ = ('a', 'b')",
    "Finding('rule/id', 3)",
    "'is' if a else f'are {b}'",
    "if a < b: what += ', by its digest'",
    "import typing\nif TYPE_CHECKING: import a",
]


@pytest.mark.parametrize(("code", "expected"), CHANGED.values(), ids=CHANGED)
def test_code_becomes_this_and_nothing_else(code: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(code)
    found = mutants_of(tmp_path, "m.py")
    if found[0].kind == LIMIT:  # whose numbers are numbers, too
        found = [mutant for mutant in found if mutant.kind == LIMIT]
    assert [mutant.applied(code.encode()).decode() for mutant in found] == expected


@pytest.mark.parametrize("code", LEFT_ALONE)
def test_what_cannot_matter_is_left_alone(code: str, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(code)
    assert mutants_of(tmp_path, "m.py") == []
