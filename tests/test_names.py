"""A pattern stands for exactly the names it was written for, and a hostile one is refused before it is expanded."""

from __future__ import annotations

import tracemalloc
from itertools import chain, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import names
from weighbridge.base.locks import REFERENCES
from weighbridge.checkpoint.lock import open_lock, tensor_lines
from weighbridge.errors import StructureError
from weighbridge.text.names import MAX_NAMES, NamePattern, compact, parse_pattern, split_name

LOCKS = sorted(path.relative_to(REFERENCES).as_posix() for path in REFERENCES.rglob("*.yaml"))


def layers(*numbers: int) -> list[str]:
    return [f"layers.{number}.w" for number in numbers]


# names, the patterns that stand for them
COMPACTED: dict[str, tuple[list[str], list[str]]] = {
    "none": ([], []),
    "one name": (["lm_head.weight"], ["lm_head.weight"]),
    "one number": (layers(7), ["layers.7.w"]),
    "a range": (layers(2, 0, 1), ["layers.{0-2}.w"]),
    "two numbers": (layers(0, 1), ["layers.{0-1}.w"]),
    "holes": (layers(0, 1, 2, 5, 7, 8), ["layers.{0-2,5,7-8}.w"]),
    "a name twice": (layers(3, 3), ["layers.3.w"]),
    "numeric suffixes stay": (
        ["layers.0.norm_1.weight", "layers.0.norm_2.weight"],
        ["layers.0.norm_1.weight", "layers.0.norm_2.weight"],
    ),
    "leading zeros stay": (["a.00.w", "a.01.w"], ["a.00.w", "a.01.w"]),
    "numbers at the ends": (["0.w.1", "1.w.1"], ["{0-1}.w.1"]),
    "neighbouring numbers": (["a.0.1", "a.0.2", "a.1.1", "a.1.2"], ["a.{0-1}.{1-2}"]),
    "a product": (
        [f"l.{layer}.e.{expert}.w" for layer, expert in product(range(3), range(4))],
        ["l.{0-2}.e.{0-3}.w"],
    ),
    "a product with a corner missing": (
        [f"l.{layer}.e.{expert}.w" for layer, expert in product(range(3), range(4)) if (layer, expert) != (2, 3)],
        ["l.{0-1}.e.{0-3}.w", "l.2.e.{0-2}.w"],
    ),
    "templates are sorted": (["b.0", "a.1", "a.0"], ["a.{0-1}", "b.0"]),
}


@pytest.mark.parametrize(("listed", "patterns"), COMPACTED.values(), ids=COMPACTED)
def test_names_are_written_as_few_patterns(listed: list[str], patterns: list[str]) -> None:
    assert [str(pattern) for pattern in compact(listed)] == patterns


@given(st.lists(names(), max_size=40))
@settings(deadline=None)
def test_patterns_stand_for_each_name_once_and_for_no_other(listed: list[str]) -> None:
    assert sorted(chain.from_iterable(compact(listed))) == sorted(set(listed))


@given(st.lists(names(), max_size=40))
@settings(deadline=None)
def test_pattern_reads_back_from_its_text(listed: list[str]) -> None:
    for pattern in compact(listed):
        assert parse_pattern(str(pattern), where="here") == pattern


INDICES = st.sets(st.integers(0, 30), min_size=1, max_size=8).map(lambda numbers: tuple(sorted(numbers)))
PATTERNS = st.lists(INDICES, max_size=3).map(
    lambda indices: NamePattern(".".join(["a", *("{}" for _ in indices), "w"]), tuple(indices))
)


@given(PATTERNS)
@settings(deadline=None)
def test_any_pattern_reads_back_from_its_text(pattern: NamePattern) -> None:
    assert parse_pattern(str(pattern), where="here") == pattern


@given(PATTERNS)
@settings(deadline=None)
def test_pattern_counts_the_names_that_it_gives(pattern: NamePattern) -> None:
    assert len(pattern) == len(set(pattern))


@given(PATTERNS, PATTERNS, names())
@settings(deadline=None)
def test_name_is_in_a_pattern_exactly_if_the_pattern_gives_it(
    pattern: NamePattern, other: NamePattern, name: str
) -> None:
    given_names = set(pattern)
    for candidate in [*pattern, *other, name]:
        assert (candidate in pattern) == (candidate in given_names)


@pytest.mark.parametrize("name", ["layers.{}.w", "layers.{0-2}.w", "layers.w", 7, None])
def test_what_is_no_name_with_a_number_there_is_in_no_pattern(name: object) -> None:
    assert name not in parse_pattern("layers.{0-2}.w", where="here")


# No tensor is called so, but keys of a stranger's config.json may be.
@pytest.mark.parametrize("name", ["a{b}", "a.{}.0", "{0-4}", "{", "}", "{{}}"])
def test_name_with_braces_stands_for_itself(name: str) -> None:
    (pattern,) = compact([name])
    assert (list(pattern), str(pattern), len(pattern)) == ([name], name, 1)


def test_numbers_of_eight_digits_are_no_indices() -> None:
    assert split_name("a.1234567.b.12345678") == ("a.{}.b.12345678", (1234567,))


def test_name_of_five_hundred_numbers_is_written_and_read() -> None:
    pattern = ".".join(["{0-1}", *["7"] * 500])
    (compacted,) = compact(parse_pattern(pattern, where="here"))
    assert str(compacted) == pattern


REFUSED = {
    "open": "a.{0-1.w",
    "closed": "a.0-1}.w",
    "nested": "a.{{0-1}}.w",
    "empty": "a.{}.w",
    "within a part": "a.x{0-1}.w",
    "words": "a.{q,k}_proj.w",
    "descending range": "a.{4-0}.w",
    "descending list": "a.{3,1}.w",
    "same number twice": "a.{1,1}.w",
    "overlapping ranges": "a.{0-4,4-6}.w",
    "leading zero": "a.{00-04}.w",
    "negative": "a.{-1-4}.w",
    "open range": "a.{0-}.w",
    "eight digits": "a.{0-99999999}.w",
    "five thousand digits": "a.{0-" + "9" * 5000 + "}.w",
    "spaces": "a.{0 - 4}.w",
    "too many numbers": "a.{0-4000000}.w",
    "too many names": "a.{0-1999}.{0-2000}.w",
}


@pytest.mark.parametrize("pattern", REFUSED.values(), ids=REFUSED)
def test_pattern_that_is_none_is_refused_in_one_sentence(pattern: str) -> None:
    with pytest.raises(StructureError) as caught:
        parse_pattern(pattern, where="lock.yaml:3")
    message = str(caught.value)
    assert message.startswith("lock.yaml:3: ")
    assert len(message) < 300


def test_absurd_product_is_refused_before_it_is_expanded() -> None:
    hostile = ".".join([f"{{0-{MAX_NAMES - 1}}}"] * 3)
    tracemalloc.start()
    try:
        with pytest.raises(StructureError, match="stands for more than"):
            parse_pattern(hostile, where="here")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # bytes; the numbers of one brace alone would take 150 MB


@pytest.mark.parametrize("lock", LOCKS)
def test_real_structures_take_one_line_for_each_kind_of_tensor(lock: str) -> None:
    structure = open_lock(REFERENCES / lock).structure
    kinds = {(split_name(name)[0], tensor) for name, tensor in structure.items()}
    assert len(tensor_lines(structure)) == len(kinds)
