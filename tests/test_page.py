"""The page of a report: what it draws is in proportion, what it folds is complete, and nothing in it is executed."""

from __future__ import annotations

import math
from collections import Counter
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.report import Area, Areas, Chain, Finding, Grid, Link, Report, Section, Severity, Table
from weighbridge.report.page import SHADES, as_html, heat, shares, size
from weighbridge.report.tree import IN_SIGHT, Fold, fold
from weighbridge.report.treemap import HEIGHT, KEPT_KINDS, QUANTIZED_KINDS, WIDTH, Box, draw, why

AREAS = st.lists(
    st.builds(
        Area,
        group=st.sampled_from(["attention", "experts", "vision"]),
        part=st.sampled_from(["", "layer 0", "layer 1"]),
        kind=st.text("abc", min_size=1, max_size=2),
        size=st.integers(0, 10**12),
        kept=st.booleans(),
    ),
    max_size=40,
)
NAMES = st.lists(st.sampled_from(["model", "layers", "0", "1", "mlp", "weight"]), min_size=1, max_size=6).map(".".join)


def report_with(*findings: Finding, **parts: object) -> Report:
    section = Section("structure", "a section", "a summary", findings=findings, **parts)  # type: ignore[arg-type]
    return Report("validate", "builds/x", "builds/x holds", (section,))


def error(where: str, message: str = "is so") -> Finding:
    return Finding("a/rule", Severity.ERROR, where, message)


def boxes(areas: list[Area]) -> list[Box]:
    return list(draw(Areas("bytes", tuple(areas))).boxes)


@given(areas=AREAS)
def test_boxes_stay_inside_the_picture(areas: list[Area]) -> None:
    for box in boxes(areas):
        assert -1e-3 <= box.x <= box.x + box.width <= WIDTH + 1e-3
        assert -1e-3 <= box.y <= box.y + box.height <= HEIGHT + 1e-3


@given(areas=AREAS)
def test_groups_are_as_large_as_their_bytes(areas: list[Area]) -> None:
    total = sum(area.size for area in areas)
    sizes: Counter[str] = Counter()
    for area in areas:
        sizes[area.group] += area.size
    for box in boxes(areas):
        if box.area is None:
            share = box.width * box.height / (WIDTH * HEIGHT)
            assert math.isclose(share, sizes[box.name] / total, rel_tol=1e-6, abs_tol=1e-9)


@given(sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=40))
def test_parts_are_as_large_as_their_bytes(sizes: list[int]) -> None:
    _, *parts = boxes([Area("experts", f"layer {number}", "F8", count) for number, count in enumerate(sizes)])
    room = sum(box.width * box.height for box in parts)
    for box in parts:
        assert math.isclose(box.width * box.height / room, box.size / sum(sizes), rel_tol=1e-6)


@given(sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=40))
def test_parts_are_read_in_their_order(sizes: list[int]) -> None:
    _, *parts = boxes([Area("experts", f"layer {number}", "F8", count) for number, count in enumerate(sizes)])
    assert [box.name for box in parts] == [f"layer {number}" for number in range(len(sizes))]
    assert [(box.y, box.x) for box in parts] == sorted((box.y, box.x) for box in parts)


@given(areas=AREAS)
def test_legend_accounts_for_every_byte(areas: list[Area]) -> None:
    drawing = draw(Areas("bytes", tuple(areas)))
    assert sum(kind.size for kind in drawing.kinds) == sum(area.size for area in areas)


@given(areas=AREAS)
def test_what_is_kept_and_what_is_quantized_never_look_alike(areas: list[Area]) -> None:
    for kind in draw(Areas("bytes", tuple(areas))).kinds:
        assert (QUANTIZED_KINDS <= kind.number < QUANTIZED_KINDS + KEPT_KINDS) == kind.kept


@given(areas=AREAS)
def test_picture_in_figures_accounts_for_every_byte(areas: list[Area]) -> None:
    assert sum(int(row[-1]) for row in shares(Areas("bytes", tuple(areas))).rows) == sum(area.size for area in areas)


def test_why_names_the_rule_what_it_decided_and_the_recipes_words() -> None:
    areas = (
        Area("experts", "layer 0", "F8", 70, by="scheme (x.yaml:3)"),
        Area("vision", "layer 0", "kept BF16", 10, True, "ignore re:.*embed.* (x.yaml:9)"),
        Area("embeddings", "", "kept BF16", 20, True, "ignore re:.*embed.* (x.yaml:9)"),
    )
    first, second = why(Areas("bytes", areas, {"ignore re:.*embed.* (x.yaml:9)": "looked up, not multiplied"}))
    assert (first.by, first.kind.name, first.groups, first.size, first.reason) == (
        *("scheme (x.yaml:3)", "F8", ("experts",), 70, ""),
    )
    assert (second.groups, second.size, second.reason) == (("embeddings", "vision"), 30, "looked up, not multiplied")


def test_why_is_silent_where_nobody_knows() -> None:
    assert why(Areas("bytes", (Area("experts", "", "F8", 70),))) == ()


def leaves(folds: list[Fold]) -> list[Finding]:
    return [item for node in folds for item in (*node.findings, *leaves(list(node.below.values())))]


@given(names=st.lists(NAMES, max_size=20))
def test_folding_loses_no_finding(names: list[str]) -> None:
    findings = [error(name) for name in names]
    assert sorted(item.where for item in leaves(fold(findings))) == sorted(names)


def test_parts_of_names_that_do_not_branch_stand_together() -> None:
    (node,) = fold([error("model.layers.0.mlp.up_proj.weight"), error("model.layers.0.mlp.down_proj.weight")])
    assert (node.name, list(node.below)) == ("model.layers.0.mlp", ["up_proj", "down_proj"])
    assert [child.name for child in node.below.values()] == ["up_proj.weight", "down_proj.weight"]


def test_file_and_line_are_not_taken_apart() -> None:
    (node,) = fold([error("recipes/google/gemma-4-26B-A4B-it/fp8-dynamic.yaml:15")])
    assert node.name == "recipes/google/gemma-4-26B-A4B-it/fp8-dynamic.yaml:15"


def unfolded(folds: list[Fold]) -> list[Finding]:
    """Findings in sight."""
    opened = [node for node in folds if node.open]
    return [item for node in opened for item in (*node.findings, *unfolded(list(node.below.values())))]


@given(names=st.lists(NAMES, min_size=1, max_size=20), notes=st.lists(NAMES, max_size=20))
def test_an_error_is_in_sight_and_what_holds_none_is_folded(names: list[str], notes: list[str]) -> None:
    prefixed = [Finding("a/note", Severity.NOTE, f"other.{name}", "is so") for name in notes]
    seen = unfolded(fold([*prefixed, *map(error, names)]))
    assert seen
    assert {item.severity for item in seen} == {Severity.ERROR}


def test_few_errors_are_all_in_sight() -> None:
    names = [f"model.layers.{number}.mlp.weight" for number in range(IN_SIGHT // 3)]
    assert len(unfolded(fold([error(name) for name in names]))) == len(names)


def test_many_errors_are_folded_beneath_what_they_have_in_common() -> None:
    names = [f"model.layers.{layer}.{part}.weight" for layer in range(30) for part in ("mlp", "attention", "norm")]
    assert len(unfolded(fold([error(name) for name in names]))) == 1


def grid(*values: float | None, worst: str = "lowest") -> Grid:
    columns = tuple(map(str, range(len(values))))
    return Grid("t", "layer", ("0",), columns, (values,), worst=worst)  # type: ignore[arg-type]


@given(values=st.lists(st.none() | st.floats(), min_size=1, max_size=9))
def test_colours_of_figures_lie_between_none_and_the_worst(values: list[float | None]) -> None:
    (row,) = heat(grid(*values)).rows
    assert all(0 <= step <= SHADES for _, step in row)


@pytest.mark.parametrize(
    ("values", "worst", "steps"),
    [
        ((1.5, 2.5), "lowest", [SHADES, 0]),
        ((1.5, 2.5), "highest", [0, SHADES]),
        ((4096.0, 4096.0), "lowest", [0, 0]),
        ((1.5, None, 2.5), "lowest", [SHADES, 0, 0]),
        ((0.0, 10.0, 10_000.0, 10_010.0), "lowest", [SHADES, 7, 0, 0]),
    ],
)
def test_worst_figure_is_the_darkest(values: tuple[float | None, ...], worst: str, steps: list[int]) -> None:
    (row,) = heat(grid(*values, worst=worst)).rows
    assert [step for _, step in row] == steps


@pytest.mark.parametrize(
    ("values", "written"),
    [((4096.0, 12.0), ["4,096", "12"]), ((31.0, 28.255), ["31.00", "28.25"]), ((1.5, None), ["1.50", "none"])],
)
def test_counts_are_written_whole_and_measures_with_two_digits(
    values: tuple[float | None, ...], written: list[str]
) -> None:
    (row,) = heat(grid(*values)).rows
    assert [text for text, _ in row] == written


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (24_542_000_000, "24.5 GB"), (3e15, "3,000 TB")]
)
def test_bytes_are_told_in_three_digits(count: float, text: str) -> None:
    assert size(count) == text


class _Seen(HTMLParser):
    """What a browser would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs


STRANGERS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7*7 }}",
    "</style><script>",
    "javascript:x",
)


def report_of_a_stranger(text: str) -> Report:
    """A report every text of which is this one."""
    finding = Finding(text, Severity.ERROR, text, text, explained=text, remedy=text)
    figures = (
        Areas(text, (Area(text, text, text, 5, by=text),), {text: text}),
        Grid(text, text, (text,), (text, text), ((1.0, 2.0),)),
        Chain(text, (Link(text, text, {text: text}),)),
    )
    table = Table((text, text), ((text, text),))
    section = Section(
        "structure", text, text, findings=(finding,), facts={text: text}, tables=(table,), figures=figures
    )
    return Report(text, text, text, (section,))


@pytest.mark.parametrize("text", STRANGERS)
def test_what_a_stranger_calls_things_is_shown_and_not_run(text: str) -> None:
    seen = _Seen()
    seen.feed(as_html(report_of_a_stranger(text)))
    assert not seen.tags.keys() & {"script", "img", "iframe", "object", "embed", "base", "form"}
    assert seen.tags["style"] == 1
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert {value for name, value in seen.attributes if name in ("href", "src")} <= {"#part-1", "data:,"}
    assert not [value for name, value in seen.attributes if name == "style" and text in (value or "")]


def test_text_that_would_turn_the_direction_of_reading_is_shown_escaped() -> None:
    page = as_html(report_of_a_stranger("tensor\u202efdp.exe"))
    assert "\u202e" not in page
    assert "tensor\\u202efdp.exe" in page


def test_page_asks_for_nothing_else() -> None:
    page = as_html(report_with())
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page


def test_digest_can_be_copied_as_a_whole() -> None:
    page = as_html(report_with(facts={"root digest": "0" * 64, "tensors": 5, "recipe": "fp8-dynamic"}))
    assert page.count('class="whole"') == 1


def test_part_that_says_no_more_than_its_summary_is_not_said_twice() -> None:
    bare = Section("licence", "the licence", "apache-2.0, as declared")
    whole = Section("build", "the build", "made", facts={"pieces": 5})
    page = as_html(Report("build", "x", "x holds", (bare, whole)))
    assert (page.count("apache-2.0, as declared"), page.count("<section ")) == (1, 1)


def test_what_fails_stands_first_among_what_decides() -> None:
    sections = (Section("structure", "holds", "s"), Section("account", "fails", "s", findings=(error("x"),)))
    page = as_html(Report("build", "x", "x fails", sections))
    assert page.index('<li class="fails">') < page.index('<li class="holds">')


def test_part_that_judges_nothing_is_marked_neither_as_held_nor_as_failed() -> None:
    page = as_html(Report("audit", "x", "x", (Section("audit", "the audit", "does not derive", judges=False),)))
    assert '<li class="tells">' in page
    assert '<li class="holds">' not in page


def test_page_of_a_calibrated_real_model_stays_small() -> None:
    columns = tuple(f"expert {number}" for number in range(128))
    values = tuple(tuple(float(layer * expert) for expert in range(128)) for layer in range(30))
    tokens = Grid("tokens", "layer", tuple(map(str, range(30))), columns, values)
    assert len(as_html(report_with(figures=(tokens,)))) < 300_000
