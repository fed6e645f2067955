"""One report: text for people, JSON for programs, Markdown for records, a page to look at; golden files show each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Command
from tests.planning import REAL, ROOT
from weighbridge.report import PRESENTERS, Area, Areas, Finding, Grid, Report, Section, Severity, Table
from weighbridge.report.columns import lay_out

GOLDEN = Path(__file__).parent / "golden"
FILES = {
    **{"text": "report.txt", "json": "report.json", "markdown": "report.md", "html": "report.html"},
    **{"sarif": "report.sarif", "junit": "report.xml"},
}

HOLDING = Section(
    id="structure",
    title="the checkpoint itself",
    summary="24,198 tensors, 27,161,975,452 bytes, 11,725 modules quantized; headers, index and config agree",
    facts={"revision": "4d7ae49", "tensors": 24198},
    tables=(
        Table(
            ("role", "scheme", "modules", "bits a weight"),
            (("attention", "float8 per channel", 115, 8.0057), ("total", "", 11725, 8.4203)),
        ),
    ),
    figures=(
        Areas(
            "bytes of the checkpoint, by role and layer",
            (
                Area("attention", "layer 0", "float8 per channel", 37_500_000, by="scheme (fp8.yaml:5)"),
                Area("attention", "layer 1", "float8 per channel", 12_500_000, by="scheme (fp8.yaml:5)"),
                Area("embeddings", "", "kept BF16", 50_000_000, kept=True, by="ignore re:.*embed.* (fp8.yaml:9)"),
            ),
            {"ignore re:.*embed.* (fp8.yaml:9)": "Embeddings are looked up, not multiplied."},
        ),
        Grid("SNR dB", "layer", ("0", "1"), ("attention", "experts"), ((31.5, None), (28.25, 33.0))),
    ),
)
FAILING = Section(
    id="against-reference",
    title="against RedHatAI/gemma-4-26B-A4B-it-FP8-dynamic@ed35d7a (derived)",
    summary="3,840 unexplained differences, 1 explained difference",
    findings=(
        Finding(
            "diff/only-in-reference",
            Severity.ERROR,
            "model.language_model.layers.{0-29}.experts.{0-127}.gate_proj.weight_scale",
            "missing; the reference has it as BF16 [704, 1]",
            count=3840,
            remedy="build with llm-compressor 0.13 or newer, which stores every expert under its own name and with its "
            "own scales, as servers expect them",
        ),
        Finding("diff/config", Severity.WARNING, "config.json:rope_theta", "is 1000000.0 | the reference has 10000.0"),
        Finding(
            "diff/only-in-reference",
            Severity.NOTE,
            "lm_head.weight",
            "missing; the reference has it as BF16 [262144, 2816]",
            explained="The reference was made with oneshot, which stored the output head although it is tied.",
        ),
    ),
)
TELLING = Section("source", "the source mini", "its identity is unproven: nothing says what it should be", judges=False)
REPORT = Report(
    "validate",
    "builds/mini-fp8-dynamic",
    "builds/mini-fp8-dynamic does not hold; against the reference: 3,840 unexplained differences",
    (HOLDING, TELLING, FAILING),
)


@pytest.fixture(autouse=True)
def terminal_of_a_hundred_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.parametrize("format", PRESENTERS)
def test_report_looks_as_its_golden_file(format: str) -> None:
    assert PRESENTERS[format](REPORT) == (GOLDEN / FILES[format]).read_text()


@pytest.mark.parametrize("format", PRESENTERS)
def test_presenting_twice_gives_the_same(format: str) -> None:
    assert PRESENTERS[format](REPORT) == PRESENTERS[format](REPORT)


def test_report_fails_with_one_section_that_does_not_hold() -> None:
    assert (REPORT.holds, replace(REPORT, sections=(HOLDING,)).holds) == (False, True)


@pytest.mark.parametrize(("severity", "holds"), [("error", False), ("warning", True), ("note", True)])
def test_only_errors_fail_a_section(severity: str, holds: bool) -> None:
    section = Section(
        "structure", "a section", "a summary", findings=(Finding("a/rule", Severity(severity), "w", "is so"),)
    )
    assert section.holds is holds


def test_findings_of_a_report_are_those_of_its_sections_in_order() -> None:
    assert list(REPORT.findings()) == [*HOLDING.findings, *FAILING.findings]


def test_text_ends_with_the_verdict() -> None:
    held = PRESENTERS["text"](Report("validate", "here", "all is the same", (HOLDING,)))
    assert held.splitlines()[-1] == "PASS  all is the same"


@pytest.mark.parametrize(("columns", "widest"), [("20", 60), ("80", 80), ("500", 120)])
def test_text_wraps_to_the_terminal_within_reason(monkeypatch: pytest.MonkeyPatch, columns: str, widest: int) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    words = Section("structure", "a section", "word " * 100)
    lines = PRESENTERS["text"](Report("validate", "here", "word " * 100, (words,))).splitlines()
    assert widest - 10 < max(map(len, lines)) <= widest


def test_text_is_of_eighty_columns_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr("sys.__stdout__", None)
    words = Section("structure", "a section", "word " * 100)
    lines = PRESENTERS["text"](Report("validate", "here", "so", (words,))).splitlines()
    assert 70 < max(map(len, lines)) <= 80


NAME = "model.language_model.layers.{0-4,6-10,12-16,18-22,24-28}.self_attn.v_proj.weight_scale-of-a-long-name"


def test_text_never_breaks_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    finding = Finding("a/rule", Severity.ERROR, NAME, f"is not what {NAME} is", remedy=f"look at {NAME} instead")
    text = PRESENTERS["text"](
        Report("validate", "here", f"see {NAME}", (Section("structure", "a", "b", findings=(finding,)),))
    )
    assert text.count(NAME) == 4


# --- tables -----------------------------------------------------------------------------------------------------------

# what is shown: width, header, rows, lines
LAID_OUT: Mapping[str, tuple[int, tuple[str, ...], list[tuple[str, ...]], str]] = {
    "what fits stands as it is": (
        31,
        ("role", "modules", "bits a weight"),
        [("experts", "11,520", "8.01"), ("norms", "271", "16.00")],
        """\
role     modules  bits a weight
experts   11,520           8.01
norms        271          16.00""",
    ),
    "words of headers go one under the other": (
        26,
        ("role", "modules", "bits a weight"),
        [("experts", "11,520", "8.01"), ("norms", "271", "16.00")],
        """\
                  bits a
role     modules  weight
experts   11,520    8.01
norms        271   16.00""",
    ),
    "what does not fit follows behind the same first column": (
        26,
        ("role", "scheme", "parameters"),
        [("experts", "float8, static", "22,837"), ("norms", "kept BF16", "612")],
        """\
role             scheme
experts  float8, static
norms         kept BF16

role     parameters
experts      22,837
norms           612""",
    ),
    "as many first columns as tell the rows apart are repeated": (
        24,
        ("layer", "role", "codes %", "scales %"),
        [("0", "norms", "0.1", "0.2"), ("0", "router", "0.3", "0.4")],
        """\
layer    role  codes %
0       norms      0.1
0      router      0.3

layer    role  scales %
0       norms       0.2
0      router       0.4""",
    ),
    "figures stand beneath a name that leaves no room": (
        30,
        ("tensors", "count", "bytes"),
        [("layers.{0-29}.experts.down_proj", "30", "1,024")],
        """\
tensors
  count  bytes
layers.{0-29}.experts.down_proj
     30  1,024""",
    ),
    "sentences in cells are wrapped": (
        30,
        ("parameter", "because"),
        [("cos_cache", "it is computed when the model is made"), ("bias", "there is none")],
        """\
parameter  because
cos_cache  it is computed when
           the model is made
bias       there is none""",
    ),
}


@pytest.mark.parametrize(("width", "columns", "rows", "shown"), LAID_OUT.values(), ids=LAID_OUT)
def test_table_is_laid_out_in_its_width(
    width: int, columns: tuple[str, ...], rows: list[tuple[str, ...]], shown: str
) -> None:
    assert "\n".join(lay_out(columns, rows, width)) == shown


def tables(longest: int) -> st.SearchStrategy[list[list[str]]]:
    """Tables as lists of rows, the first the header, with words of up to so many characters."""
    word = st.text("aB7,.{}-", min_size=1, max_size=longest)
    cell = st.lists(word, max_size=3).map(" ".join)
    return st.integers(1, 8).flatmap(
        lambda count: st.lists(st.lists(cell, min_size=count, max_size=count), min_size=1, max_size=6)
    )


@given(tables(longest=18), st.integers(40, 120))
def test_no_line_of_a_table_is_wider_than_asked_for(table: list[list[str]], width: int) -> None:
    assert max(map(len, lay_out(table[0], table[1:], width)), default=0) <= width


@given(tables(longest=90), st.integers(40, 120))
def test_only_a_word_that_is_wider_by_itself_makes_a_line_wider(table: list[list[str]], width: int) -> None:
    assert [line for line in lay_out(table[0], table[1:], width) if len(line) > width and len(line.split()) > 1] == []


@given(tables(longest=90), st.integers(40, 120))
def test_no_word_of_a_table_is_lost_or_broken(table: list[list[str]], width: int) -> None:
    shown = Counter(word for line in lay_out(table[0], table[1:], width) for word in line.split())
    assert Counter(word for row in table for cell in row for word in cell.split()) - shown == Counter()


def assert_narrow(text: str) -> None:
    assert [line for line in text.splitlines() if len(line) > 80 and len(line.split()) > 1] == []


@pytest.mark.parametrize("recipe", ["fp8-dynamic", "nvfp4", "w4a16"])
def test_plans_of_the_real_model_fit_eighty_columns(
    recipe: str, call_build: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = call_build(recipe, "--plan", "--model", ROOT / REAL, "--gpu", "24GB", "--kv-dtype", "fp8").out
    assert "bits a weight" in text
    assert_narrow(text)


@pytest.mark.parametrize(
    "options", [("--source", "mini", "--recipe", "fp8-dynamic"), ("--evidence", "--source", "mini"), ("--gpu", "8GB")]
)
def test_reports_of_the_miniature_fit_eighty_columns(
    options: tuple[str, ...], call_validate: Command, mini_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = call_validate(mini_build, *options).out
    assert text.count("\n") > 5
    assert_narrow(text)


# --- other forms ------------------------------------------------------------------------------------------------------


def test_json_says_its_version_and_whether_each_section_holds() -> None:
    content = json.loads(PRESENTERS["json"](REPORT))
    assert content["schema_version"] == 1
    assert [section["holds"] for section in content["sections"]] == [True, True, False]


def test_json_holds_every_fact_of_a_finding() -> None:
    finding = json.loads(PRESENTERS["json"](REPORT))["sections"][2]["findings"][0]
    assert finding == {
        "rule": "diff/only-in-reference",
        "severity": "error",
        "where": "model.language_model.layers.{0-29}.experts.{0-127}.gate_proj.weight_scale",
        "message": "missing; the reference has it as BF16 [704, 1]",
        "count": 3840,
        "explained": "",
        "remedy": FAILING.findings[0].remedy,
    }


@pytest.mark.parametrize("format", PRESENTERS)
def test_what_a_stranger_wrote_cannot_steer_the_terminal(format: str) -> None:
    hostile = "a\x1b[2J\r\x07\x9b"
    section = Section(
        "structure", "a", "b", findings=(Finding("a/rule", Severity.ERROR, hostile, f"declares {hostile}"),)
    )
    text = PRESENTERS[format](Report("validate", hostile, f"{hostile} does not hold", (section,)))
    assert [character for character in text if not (character.isprintable() or character == "\n")] == []


def markdown_rows(text: str) -> list[list[str]]:
    """The cells of all rows of all tables, where ``|`` stands between cells unless a backslash escapes it."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.replace("\0", "|").strip() for cell in row.replace("\\|", "\0").split("|")[1:-1]] for row in rows]


# where, message
TROUBLESOME: Mapping[str, tuple[str, str]] = {
    "a bar": ("a|b", "is a|b"),
    "a line break": ("a", "is\nbroken"),
    "a heading": ("# a", "is\n# broken"),
}


@pytest.mark.parametrize(("where", "message"), TROUBLESOME.values(), ids=TROUBLESOME)
def test_markdown_keeps_each_finding_in_one_row(where: str, message: str) -> None:
    section = Section("structure", "a", "b", findings=(Finding("a/rule", Severity.ERROR, where, message),))
    rows = markdown_rows(PRESENTERS["markdown"](Report("validate", "here", "so", (section,))))
    assert [len(row) for row in rows] == [6, 6, 6]
    assert rows[2][2].strip("`") == where
