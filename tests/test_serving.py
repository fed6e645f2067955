"""The serving check, without a server: its judgement of what vLLM really answered, recorded in tests/data/serving.

The answers are made by ``python -m tests.serving_answers``, which asks vLLM; tests/test_serving_campaigns.py asks anew.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT, Once, call_main, run_script
from tests.damage import DAMAGES, damaged
from tests.serving_answers import HONEST, recorded
from weighbridge.checkpoint.model import Checkpoint, open_directory
from weighbridge.cli import serve_check
from weighbridge.extras.serving.agreement import DOUBT, agreement, largest_share
from weighbridge.extras.serving.answer import Answer, Request, ServingError, read_answer
from weighbridge.extras.serving.check import loading_section, token_windows
from weighbridge.extras.serving.client import ask
from weighbridge.extras.serving.environment import find_python
from weighbridge.extras.serving.loaded import harmless_parameters, loading_findings, missing_keys
from weighbridge.report import Severity


@pytest.fixture(scope="session")
def builds(once: Once, mini_build: Path) -> Path:
    """A directory with builds of the miniature by recipe."""

    def make(directory: Path) -> None:
        (directory / "fp8-dynamic").symlink_to(mini_build)
        for recipe in HONEST[1:]:
            outcome = run_script("build.py", recipe, "--model", "mini", "--output", directory / recipe)
            assert outcome.code == 0, outcome.err + outcome.out

    return once("serving-builds", make)


def errors(checkpoint: Checkpoint, answer: Answer) -> dict[str, set[str]]:
    """Rule -> where, of everything that fails."""
    found: dict[str, set[str]] = {}
    for finding in loading_findings(checkpoint, answer, towers=True):
        if finding.severity is Severity.ERROR:
            found.setdefault(finding.rule, set()).add(finding.where)
    return found


@pytest.mark.parametrize("recipe", HONEST)
def test_an_honest_build_loads_whole_and_nothing_of_it_is_left_aside(recipe: str, builds: Path) -> None:
    section = loading_section(open_directory(builds / recipe), recorded(recipe))
    assert section.holds
    assert section.facts["tensors used"] == section.facts["tensors of the checkpoint"]


@pytest.mark.parametrize("recipe", HONEST)
def test_what_may_stay_unfilled_is_told_with_its_reason(recipe: str, builds: Path) -> None:
    (table,) = loading_section(open_directory(builds / recipe), recorded(recipe)).tables
    unfilled = recorded(recipe).unfilled
    assert sum(int(row[1]) for row in table.rows) == len(unfilled)
    assert all(row[2] for row in table.rows)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_caught_and_named(name: str, builds: Path, tmp_path: Path) -> None:
    damage = DAMAGES[name]
    checkpoint = open_directory(damaged(builds / damage.recipe, tmp_path / name, damage))
    assert damage.where in errors(checkpoint, recorded(name))[damage.rule]


@pytest.mark.parametrize("name", [name for name in DAMAGES if name != "quantized-router"])
def test_damage_is_all_that_is_said_of_a_damaged_build(name: str, builds: Path, tmp_path: Path) -> None:
    damage = DAMAGES[name]
    checkpoint = open_directory(damaged(builds / damage.recipe, tmp_path / name, damage))
    assert errors(checkpoint, recorded(name)).keys() == {damage.rule}


@pytest.mark.parametrize("name", [name for name in DAMAGES if name != "quantized-router"])
def test_vllm_itself_says_nothing_against_damaged_builds(name: str) -> None:
    """The reason for all this; should it change, docs/explanation/serving.md is to say so."""
    assert recorded(name).refused == ""


def test_nothing_is_generated_from_a_checkpoint_with_a_hole() -> None:
    assert recorded("fp8-dynamic").generated
    assert not recorded("missing-expert-weight").generated


def test_keys_are_named_after_those_of_other_experts_and_other_layers() -> None:
    answer = Answer(
        parameters={f"layers.{layer}.experts.w2": ("float", (4, 2, 2)) for layer in (0, 1)},
        keys={"layers.0.experts.0.down.weight": ("float", (2, 2))},
        writes=(("layers.0.experts.0.down.weight", "layers.0.experts.w2", ((0, 1), (0, 2), (0, 2))),),
    )
    named = missing_keys(answer, "layers.1.experts.w2", ((2, 4), (0, 2), (0, 2)))
    assert named == {"layers.1.experts.2.down.weight", "layers.1.experts.3.down.weight"}


def test_a_hole_like_nothing_else_is_told_by_parameter_and_place(builds: Path) -> None:
    answer = Answer(parameters={"odd": ("float32", (4, 2))}, unfilled={"odd": (((1, 2), (0, 2)),)})
    (finding,) = loading_findings(open_directory(builds / "fp8-dynamic"), answer, towers=True)
    assert (finding.rule, finding.where) == ("serve/unfilled", "odd")
    assert "[1:2, 0:2]" in finding.message


def test_writes_that_no_key_explains_are_no_judgement(builds: Path) -> None:
    answer = recorded("fp8-dynamic").model_copy(update={"homeless_writes": 1})
    assert "serve/not-watched" in errors(open_directory(builds / "fp8-dynamic"), answer)


def test_global_scales_of_inputs_must_be_there_where_inputs_are_quantized(builds: Path) -> None:
    parameter = "language_model.model.layers.0.experts.routed_experts.w2_input_global_scale"

    def allowed(recipe: str) -> bool:
        patterns = harmless_parameters(open_directory(builds / recipe))
        return any(re.fullmatch(each.pattern, parameter) for each in patterns)

    assert (allowed("nvfp4a16"), allowed("nvfp4a16-experts-fp8"), allowed("fp8-dynamic")) == (True, True, False)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"refused": 1}', b'{"other": ""}', b'{"keys": {"a": ["x"]}}'])
def test_an_answer_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(ServingError, match="is no answer of the client"):
        read_answer(raw, where="here")


def test_a_client_that_dies_is_told_with_its_log(tmp_path: Path) -> None:
    request = Request("nowhere", False, [[1, 2]], 8, [], False, 1, 1)
    with pytest.raises(ServingError, match=r"without an answer \(exit code 1\)") as caught:
        ask(request, python=Path(sys.executable), log=tmp_path / "log")  # this Python has no vLLM
    assert caught.value.where == str(tmp_path / "log")
    assert "No module named 'vllm'" in (tmp_path / "log").read_text()


def test_an_environment_that_is_not_there_is_told_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="there is no Python"):
        find_python(tmp_path / "python")
    outcome = call_main(serve_check.main, [tmp_path, "--serving-python", tmp_path / "python"])
    assert outcome.code == 2
    assert "--serving-python" in outcome.err


def test_every_finding_is_explained_in_the_docs() -> None:
    code = "".join(path.read_text() for path in (ROOT / "src/weighbridge/extras/serving").glob("*.py"))
    raised = set(re.findall(r'"(serve/[a-z-]+)"', code))
    assert raised == set(re.findall(r"`(serve/[a-z-]+)`", (ROOT / "docs/explanation/serving.md").read_text()))


def test_the_client_imports_nothing_of_this_project() -> None:
    inside = ROOT / "src/weighbridge/extras/serving/inside"
    assert not [path for path in inside.rglob("*.py") if "import weighbridge" in path.read_text()]
    assert not [path for path in inside.rglob("*.py") if "from weighbridge" in path.read_text()]


def test_windows_are_of_the_length_asked_for_and_spread_over_the_text(mini: Path) -> None:
    found = token_windows(open_directory(mini), "def f(x):\n    return x\n" * 200, windows=3, length=32)
    assert [len(tokens) for tokens in found] == [32, 32, 32]


def test_a_text_that_is_too_short_is_refused(mini: Path) -> None:
    with pytest.raises(ServingError, match="3 windows of"):
        token_windows(open_directory(mini), "x", windows=3, length=32)


def test_one_unit_in_the_last_place_of_what_is_handed_over_is_no_difference() -> None:
    exact = np.linspace(-8, -4, 1000)
    assert agreement(exact + np.spacing(np.float32(8)), exact, exact + 1e-9).holds


noises = st.integers(min_value=0, max_value=2**32 - 1).map(np.random.default_rng)


@given(noises)
def test_a_server_that_rounds_as_we_do_in_another_order_agrees(random: np.random.Generator) -> None:
    exact = random.normal(-3, 1, 1000)
    heavy = random.standard_t(3, (2, 1000)) * 0.05  # routing flips make noise heavy-tailed
    assert agreement(exact + heavy[0], exact, exact + heavy[1]).holds


@given(noises)
def test_a_server_that_reads_a_fifth_of_the_tokens_wrong_does_not(random: np.random.Generator) -> None:
    exact = random.normal(-3, 1, 1000)
    noise = random.normal(0, 0.05, (2, 1000))
    noise[0, ::5] -= 0.5
    assert not agreement(exact + noise[0], exact, exact + noise[1]).holds


@given(noises)
def test_a_server_that_is_worse_by_thrice_the_noise_everywhere_does_not(random: np.random.Generator) -> None:
    exact = random.normal(-3, 1, 1000)
    noise = random.normal(0, 0.05, (2, 1000))
    assert not agreement(exact + noise[0] - 0.15, exact, exact + noise[1]).holds


def test_log_probabilities_that_are_not_numbers_do_not_agree() -> None:
    exact = np.linspace(-3, -1, 100)
    served = exact.copy()
    served[3] = np.nan
    assert not agreement(served, exact, exact + 0.01).holds


@given(st.floats(0.001, 0.999), st.integers(10, 100_000))
def test_the_largest_share_lies_above_the_chance_and_falls_with_the_count(chance: float, count: int) -> None:
    assert chance <= largest_share(chance, 10 * count) <= largest_share(chance, count) <= 1


@pytest.mark.parametrize(("chance", "count"), [(0.02, 500), (0.2, 100), (0.5, 50)])
def test_the_largest_share_is_exceeded_with_less_than_the_chance_it_promises(chance: float, count: int) -> None:
    from math import comb

    first = int(largest_share(chance, count) * count) + 1
    tail = sum(comb(count, hits) * chance**hits * (1 - chance) ** (count - hits) for hits in range(first, count + 1))
    assert tail <= DOUBT
