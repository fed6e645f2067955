"""``make sensitivity``: what each role costs, and bits against divergence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import call_main
from weighbridge.checkpoint.model import open_directory
from weighbridge.cli import sensitivity as command
from weighbridge.errors import StructureError
from weighbridge.extras.quality.metrics import gathered
from weighbridge.extras.quality.sensitivity import Choice, pareto_section, quantized_roles, roles_section
from weighbridge.extras.quality.text import open_text
from weighbridge.families import Role

pytestmark = pytest.mark.usefixtures("one_thread")


def choice(name: str, bits: float, kl: float) -> Choice:
    random = np.random.default_rng(1)
    rows = [(kl + 1e-5 * random.standard_normal(), 1.0, 3.0, 3.0, 0.5, 0.5) for _ in range(10)]
    return Choice(name, bits, gathered(rows))


def test_roles_are_those_of_the_text_part(mini_build: Path) -> None:
    assert quantized_roles(open_directory(mini_build)) == [Role.ATTENTION, Role.MLP, Role.EXPERTS]


def test_checkpoint_that_quantizes_nothing_has_no_role_to_leave_out(mini: Path) -> None:
    with pytest.raises(StructureError, match="quantizes nothing"):
        quantized_roles(open_directory(mini))


def test_front_holds_what_nothing_beats_in_both() -> None:
    found = [choice("a", 4, 0.3), choice("b", 5, 0.1), choice("c", 6, 0.2), choice("d", 8, 0.01), choice("e", 4, 0.4)]
    section = pareto_section(found)
    assert {row[0]: row[-1] for row in section.tables[0].rows} == {"a": "yes", "e": "", "b": "yes", "c": "", "d": "yes"}


def test_roles_are_listed_by_what_a_bit_saves() -> None:
    own = [choice("as built", 4, 0.3), choice("small", 4.1, 0.2), choice("large", 10, 0.05)]
    section = roles_section(own)
    assert [row[0] for row in section.tables[0].rows] == ["small", "large"]
    assert section.tables[0].rows[0][1:3] == ("+0.100", "0.10000 [0.10000, 0.10000]")


def test_command_measures_every_role_and_other_builds(mini_build: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(open_text("english").content[:20_000])
    arguments = (mini_build, "--beside", mini_build, "--source", "mini", "--text", text, "--windows", "2")
    outcome = call_main(command.main, (*arguments, "--memory", "64GiB", "--format", "json"))
    assert outcome.code == 0, outcome.err
    _, errors, roles, front = outcome.report["sections"]
    assert errors["id"] == "quantized-weights"
    assert {row[0] for row in roles["tables"][0]["rows"]} == {
        *("attention unquantized", "dense mlp unquantized", "experts unquantized"),
    }
    assert len(front["tables"][0]["rows"]) == 5
