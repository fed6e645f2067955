"""The dossier: every element says how it is known, and nothing that is not known has a value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_script
from tests.dishonest import Lie, Workshop, errors, open_workshop, output
from weighbridge.evidence.dossier import Known

CLUSTERS = ["metadata", "system level", "models", "datasets", "infrastructure", "security", "indicators"]
"""Of the G7's paper, in the order in which summaries name them here."""


@pytest.fixture(scope="module")
def workshop(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("workshop"), audited=True)


def elements(build: Path) -> list[dict[str, Any]]:
    content = json.loads((build / "evidence" / "dossier.json").read_bytes())
    found: list[dict[str, Any]] = content["elements"]
    return found


@pytest.fixture(scope="module")
def found(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return elements(workshop.forged(Lie("nothing"), tmp_path_factory.mktemp("honest") / "build"))


def test_every_cluster_is_there_in_order(found: list[dict[str, Any]]) -> None:
    assert list(dict.fromkeys(element["cluster"] for element in found)) == CLUSTERS


def test_what_is_not_known_has_no_value_and_what_is_has_one(found: list[dict[str, Any]]) -> None:
    assert {bool(element["value"]) == (element["known"] != Known.UNKNOWN) for element in found} == {True}


def test_values_are_those_of_the_build(found: list[dict[str, Any]], workshop: Workshop) -> None:
    said = {(element["cluster"], element["element"]): (element["value"], element["known"]) for element in found}
    assert said["models", "architecture"] == ("Gemma4ForConditionalGeneration", Known.CHECKED)
    assert said["models", "derivation"] == ("exact: every weight was compared with the base's", Known.SAID)
    assert said["models", "base model"][1] == Known.CHECKED
    assert said["datasets", "of the quantization"] == ("none: the recipe looks at no data", Known.CHECKED)
    assert said["system level", "producer"] == ("", Known.UNKNOWN)
    assert said["security", "compliance"] == ("", Known.UNKNOWN)


def test_who_answers_for_it_is_who_the_recipe_says(mini: Path, tmp_path: Path) -> None:
    recipe = "extends: fp8-dynamic\nname: mine\nmanufacturer: {name: Ex <b>ample, contact: security@example.org}\n"
    (tmp_path / "mine.yaml").write_text(recipe)
    outcome = run_script("build.py", tmp_path / "mine.yaml", "--model", "mini", "--output", tmp_path / "build")
    assert outcome.code == 0, outcome.err
    said = {(element["cluster"], element["element"]): element["value"] for element in elements(tmp_path / "build")}
    assert said["system level", "producer"] == "Ex <b>ample"
    assert said["security", "contact for vulnerabilities"] == "security@example.org"
    page = (tmp_path / "build" / "evidence" / "dossier.html").read_text()
    assert "Ex &lt;b&gt;ample" in page and "<b>" not in page


@pytest.mark.parametrize(
    "changed",
    [
        lambda raw: raw.replace(b"not known", b"checked against bytes"),
        lambda raw: raw.replace(b"Gemma4", b"Gemma5"),
        lambda raw: raw + b" ",
    ],
    ids=["known", "architecture", "a blank"],
)
@pytest.mark.parametrize("form", ["dossier_json", "dossier_html"])
def test_a_signer_who_writes_another_dossier_is_refused(
    form: str, changed: Any, workshop: Workshop, tmp_path: Path
) -> None:
    lie = Lie("another dossier", wraps=output(form, changed))
    assert "evidence/page" in errors(workshop.checked(workshop.forged(lie, tmp_path / "build")))
