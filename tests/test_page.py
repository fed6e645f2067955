"""The page of a report: what it draws is in proportion, what it folds is complete, and nothing in it is executed."""

from __future__ import annotations

import math
from collections import Counter
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.report import Area, Areas, Finding, Grid, Report, Section, Severity
from weighbridge.report.page import HEIGHT, KINDS, WIDTH, Fold, as_html, draw, fold, shades, size

AREAS = st.lists(
    st.builds(
        Area,
        group=st.sampled_from(["attention", "experts", "vision"]),
        part=st.sampled_from(["", "layer 0", "layer 1"]),
        kind=st.text("abc", min_size=1, max_size=2),
        size=st.integers(0, 10**12),
    ),
    max_size=40,
)
NAMES = st.lists(st.sampled_from(["model", "layers", "0", "1", "mlp", "weight"]), min_size=1, max_size=6).map(".".join)


def report_with(*findings: Finding, **parts: object) -> Report:
    section = Section("a section", "a summary", findings=findings, **parts)  # type: ignore[arg-type]
    return Report("validate", "builds/x", "builds/x holds", (section,))


def error(where: str, message: str = "is so") -> Finding:
    return Finding("a/rule", Severity.ERROR, where, message)


@given(areas=AREAS)
def test_boxes_stay_inside_the_picture(areas: list[Area]) -> None:
    for box in draw(Areas("bytes", tuple(areas))).boxes:
        assert -1e-3 <= box.x <= box.x + box.width <= WIDTH + 1e-3
        assert -1e-3 <= box.y <= box.y + box.height <= HEIGHT + 1e-3


@given(areas=AREAS)
def test_groups_are_as_large_as_their_bytes(areas: list[Area]) -> None:
    total = sum(area.size for area in areas)
    sizes: Counter[str] = Counter()
    for area in areas:
        sizes[area.group] += area.size
    for box in draw(Areas("bytes", tuple(areas))).boxes:
        if box.kind is None:
            share = box.width * box.height / (WIDTH * HEIGHT)
            assert math.isclose(share, sizes[box.tells.partition(":")[0]] / total, rel_tol=1e-6, abs_tol=1e-9)


@given(areas=AREAS)
def test_legend_accounts_for_every_byte(areas: list[Area]) -> None:
    drawing = draw(Areas("bytes", tuple(areas)))
    assert sum(count for _, count in drawing.legend) == sum(area.size for area in areas)
    assert all(box.kind is None or 0 <= box.kind < KINDS for box in drawing.boxes)


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


@given(values=st.lists(st.lists(st.none() | st.floats(), min_size=3, max_size=3), min_size=1, max_size=5))
def test_shades_lie_between_nothing_and_all(values: list[list[float | None]]) -> None:
    rows = tuple(str(number) for number in range(len(values)))
    grid = Grid("SNR dB", "layer", rows, ("a", "b", "c"), tuple(map(tuple, values)))
    assert all(0 <= shade <= 1 for row in shades(grid) for shade in row)


@pytest.mark.parametrize(("worst", "expected"), [("lowest", [[1.0, 0.0]]), ("highest", [[0.0, 1.0]])])
def test_worst_figure_is_the_darkest(worst: str, expected: list[list[float]]) -> None:
    grid = Grid("t", "layer", ("0",), ("a", "b"), ((1.0, 2.0),), worst=worst)  # type: ignore[arg-type]
    assert shades(grid) == expected


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


@pytest.mark.parametrize("text", STRANGERS)
def test_what_a_stranger_calls_things_is_shown_and_not_run(text: str) -> None:
    finding = Finding(text, Severity.ERROR, text, text, explained=text, remedy=text)
    figures = (Areas(text, (Area(text, text, text, 5),)), Grid(text, text, (text,), (text,), ((1.0,),)))
    section = Section(text, text, findings=(finding,), facts={text: text}, figures=figures)
    seen = _Seen()
    seen.feed(as_html(Report(text, text, text, (section,))))
    assert not seen.tags.keys() & {"script", "img", "iframe", "object", "embed", "base", "form"}
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert {value for name, value in seen.attributes if name in ("href", "src")} <= {"#part-1", "data:,"}


def test_page_asks_for_nothing_else() -> None:
    page = as_html(report_with())
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page


def test_digest_can_be_copied_as_a_whole() -> None:
    page = as_html(report_with(facts={"root digest": "0" * 64, "tensors": 5, "recipe": "fp8-dynamic"}))
    assert page.count('class="digest"') == 1


def test_wide_grid_is_drawn_and_its_figures_stand_beneath() -> None:
    columns = tuple(f"expert {number}" for number in range(128))
    grid = Grid("tokens", "layer", ("0", "1"), columns, ((1.0,) * 128, (2.0,) * 128))
    seen = _Seen()
    seen.feed(as_html(report_with(figures=(grid,))))
    assert (seen.tags["rect"], seen.tags["td"], seen.tags["svg"]) == (256, 256, 1)
