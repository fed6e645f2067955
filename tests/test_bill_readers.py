"""The bill of materials as two tools score it that are not ours: aisbom, and cdxgen's cdx-validate."""

from __future__ import annotations

import json
import shutil
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_script
from weighbridge.evidence.signing import make_key_pair

pytestmark = pytest.mark.campaign

AISBOM, CDXGEN = "aisbom-cli==1.7.0", "@cyclonedx/cdxgen@12.8.4"
RECIPE = "extends: fp8-dynamic\nname: mine\nmanufacturer: {name: Example, contact: security@example.org}\n"


@pytest.fixture(scope="module")
def bill(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bill of a build that is signed, by a recipe that says who answers for it."""
    place = tmp_path_factory.mktemp("bill")
    make_key_pair(place / "key.pem", place / "key.pub.pem", curve="P-256")
    (place / "mine.yaml").write_text(RECIPE)
    target = ("--output", place / "build", "--sign", place / "key.pem")
    outcome = run_script("build.py", place / "mine.yaml", "--model", "mini", *target)
    assert outcome.code == 0, outcome.err
    return place / "build" / "evidence" / "bom.cdx.json"


def test_aisbom_finds_the_model_and_grades_the_bill_b(bill: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    subprocess.run([binaries / "python", "-m", "pip", "install", "--quiet", AISBOM], check=True)
    done = subprocess.run(
        [binaries / "aisbom", "score", bill, "--json"],
        env={"AISBOM_OFFLINE": "1", "PATH": str(binaries), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["models"], found["grade"]) == (1, "B"), found


@pytest.mark.skipif(shutil.which("npm") is None, reason="cdxgen is installed with npm")
def test_cdx_validate_finds_nine_tenths_of_scvs_and_cra_and_nothing_high(bill: Path, tmp_path: Path) -> None:
    install = ["npm", "install", "--prefix", str(tmp_path), "--no-audit", "--no-fund", "--ignore-scripts", CDXGEN]
    subprocess.run(install, capture_output=True, check=True)
    done = subprocess.run(
        [tmp_path / "node_modules/.bin/cdx-validate", "-i", bill, "--no-include-manual", "-r", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)
    assert {score["id"]: score["scorePct"] >= 90 for score in found["benchmarks"]} == {
        **dict.fromkeys(("scvs", "scvs-l1", "scvs-l2", "scvs-l3", "cra"), True)
    }
    assert [finding for finding in found["findings"] if finding["severity"] in ("high", "critical")] == []
