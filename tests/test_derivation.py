"""The statement of a derivation: what the documented predicate is, what is written with an audited build, and lies."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2

from tests.dishonest import WRITER, Lie, Workshop, errors, open_workshop
from tests.evidence import lines_of, payload_of
from tests.planning import ROOT
from weighbridge.errors import StructureError
from weighbridge.evidence.derivation import RELATIONS, relation_of
from weighbridge.evidence.statements import Relation, read_statement

PAGE = (ROOT / "docs/reference/derivation-predicate.md").read_text()
SCHEMA = json.loads((ROOT / "src/weighbridge/evidence/derivation.schema.json").read_text())


@pytest.fixture(scope="module")
def workshop(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("workshop"), audited=True)


def documented() -> dict[str, Any]:
    found = re.search(r'^```json title="derivation.json"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


def stated(build: Path) -> dict[str, Any]:
    (found,) = [line for line in map(payload_of, lines_of(build)) if "derivation" in line["predicateType"]]
    return found


def test_example_of_the_page_is_a_statement() -> None:
    jsonschema.validate(documented(), SCHEMA)
    json_format.ParseDict(documented(), statement_pb2.Statement())
    read_statement(json.dumps(documented()).encode(), where="")


def test_page_has_every_field() -> None:
    fields = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert fields == list(SCHEMA["$defs"]["Derivation"]["properties"])


def test_audited_build_states_what_the_page_shows(workshop: Workshop, tmp_path: Path) -> None:
    found, shown = stated(workshop.forged(Lie("nothing"), tmp_path / "build")), documented()
    for statement in (found, shown):
        statement["predicate"]["report"]["digest"] = {}
    assert found == shown


def test_build_that_was_not_audited_states_nothing(signed_builds: Path) -> None:
    kinds = [payload_of(line)["predicateType"] for line in lines_of(signed_builds / "build")]
    assert [kind for kind in kinds if "derivation" in kind] == []


@pytest.mark.parametrize(
    ("verdicts", "relation"),
    [
        ({"identical": 1}, "exact"),
        ({"exact": 2, "recomputed": 1}, "exact"),
        ({"exact": 2, "nearest": 1}, "nearest"),
        ({"compensated": 1}, "compensated"),
        ({"paired": 1, "identical": 3}, "compensated"),
        ({}, None),
        ({"diverges": 1, "exact": 10}, None),
        ({"wonderful": 1}, None),
    ],
    ids=str,
)
def test_relation_is_that_of_the_worst_verdict(verdicts: dict[str, int], relation: Relation | None) -> None:
    if relation is not None:
        assert relation_of(verdicts) == relation
        return
    with pytest.raises(StructureError):
        relation_of(verdicts)


def test_each_relation_takes_what_a_closer_one_does() -> None:
    kinds = list(RELATIONS.values())
    assert all(closer < wider for closer, wider in pairwise(kinds))


LIES: list[tuple[tuple[str, ...], Any]] = [
    (("relation",), "nearest"),
    (("verdicts",), {"exact": 296}),
    (("elements",), {"checked": 1, "total": 1}),
    (("base", "uri"), "https://huggingface.co/google/gemma-4-26B-A4B-it"),
    (("recipe", "digest"), {"sha256": "0" * 64}),
    (("report", "digest"), {"sha256": "0" * 64}),
    (("judgedBy", "version"), {"weighbridge": "99"}),
]


@pytest.mark.parametrize(("path", "value"), LIES, ids=lambda part: ".".join(part) if isinstance(part, tuple) else "")
def test_a_signer_who_states_another_derivation_is_refused(
    path: tuple[str, ...], value: Any, workshop: Workshop, tmp_path: Path
) -> None:
    def lying(original: Any) -> Any:
        def lied(*given: Any, **named: Any) -> Any:
            statement = original(*given, **named)
            content = statement.model_dump(mode="json", by_alias=True, exclude_none=True)
            part = content["predicate"]
            for key in path[:-1]:
                part = part[key]
            part[path[-1]] = value
            return type(statement).model_validate(content)

        return lied

    lie = Lie("another derivation", wraps={f"{WRITER}.derivation_statement": lying})
    assert "evidence/results" in errors(workshop.checked(workshop.forged(lie, tmp_path / "build")))
