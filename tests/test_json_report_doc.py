"""The published JSON Schema of a report is that of its types, and real reports keep to it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator

from tests.checkpoints import copy_checkpoint
from tests.conftest import ROOT, Command, Outcome
from weighbridge.cli.schema import PLACES, schema_text
from weighbridge.report.section_ids import SectionId

IDS = get_args(SectionId)
SOURCE = ROOT / "src/weighbridge"
SCHEMA = PLACES["report"]
DOCUMENT = (ROOT / "docs/reference/json-report.md").read_text()


def strict(part: Any) -> Any:
    """A schema that refuses keys it does not name."""
    if isinstance(part, list):
        return [strict(item) for item in part]
    if not isinstance(part, dict):
        return part
    closed = {"additionalProperties": False} if "properties" in part else {}
    return {**{key: strict(value) for key, value in part.items()}, **closed}


def keeps_to_it(report: Any) -> None:
    Draft202012Validator(strict(json.loads(SCHEMA.read_text()))).validate(report)


def standard(text: str) -> Any:
    """JSON without what Python alone reads: no NaN, no Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_published_schema_is_that_of_the_types() -> None:
    assert SCHEMA.read_text() == schema_text("report"), "weighbridge schema report writes it anew"


def test_schema_is_one() -> None:
    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))


def test_report_of_a_plan_with_a_card_keeps_to_it(call_build: Command) -> None:
    keeps_to_it(standard(call_build("nvfp4", "--plan", "--model", "mini", "--gpu", "24GB", "--format", "json").out))


def test_reports_in_the_evidence_of_a_build_keep_to_it(mini_build: Path) -> None:
    keeps_to_it(standard((mini_build / "evidence/report.json").read_text()))


@pytest.mark.parametrize(
    "arguments",
    [(), ("--recipe", "fp8-dynamic"), ("--recipe", "w4a16"), ("--source", "mini"), ("--evidence",)],
    ids=["alone", "as it is", "as it is not", "audit", "evidence"],
)
def test_report_of_a_validation_keeps_to_it(
    arguments: tuple[str, ...], mini_build: Path, call_validate: Command
) -> None:
    outcome: Outcome = call_validate(mini_build, *arguments, "--format", "json")
    report = standard(outcome.out)
    keeps_to_it(report)
    assert report["holds"] == (outcome.code == 0)


def test_report_of_a_comparison_keeps_to_it(mini_build: Path, call_validate: Command, tmp_path: Path) -> None:
    other = copy_checkpoint(mini_build, tmp_path / "other")
    keeps_to_it(standard(call_validate(mini_build, "--compare", other, "--format", "json").out))


def test_example_of_the_page_keeps_to_it() -> None:
    (example,) = re.findall(r"^```json\n(.*?)^```$", DOCUMENT, flags=re.M | re.S)
    keeps_to_it(json.loads(example))


def ids_given(call: ast.Call) -> Iterator[str]:
    """The id that a call gives to a section: what makes one has it first, what passes it on has it by its name."""
    named = [keyword.value for keyword in call.keywords if keyword.arg == "id"]
    first = call.args[:1] if isinstance(call.func, ast.Name) and call.func.id in ("Section", "Check") else []
    yield from (str(value.value) for value in (*named, *first) if isinstance(value, ast.Constant))


def test_every_id_that_a_section_is_given_is_in_the_table_and_the_reverse() -> None:
    calls = (
        node
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    )
    assert {id for call in calls for id in ids_given(call)} == set(IDS)


def test_ids_are_in_kebab_case_and_each_is_another() -> None:
    assert [id for id in IDS if not re.fullmatch(r"[a-z]+(-[a-z]+)*", id)] == []
    assert len(set(IDS)) == len(IDS)


def test_page_says_of_every_id_what_it_is_in_the_order_of_the_table() -> None:
    assert re.findall(r"^\| `([a-z-]+)` \| \S.* \|$", DOCUMENT, flags=re.M) == list(IDS)
