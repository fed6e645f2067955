"""Two builds of one base side by side: the same numbers in any format, or where they part."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.alterations import one_element
from tests.audit_rows import SCHEMES, Memory, quantized
from tests.checkpoints import Tensors
from tests.conftest import Command, Outcome
from tests.kernel_agreement import hard_weight
from tests.test_audit import altered
from weighbridge.formats.tensors import Tensor
from weighbridge.work.regions import Region

compare: Any = importlib.import_module("weighbridge.auditing.compare")

ALL_THE_SAME = "296 of 296 weights have the same codes and scales"


@pytest.fixture(scope="module")
def nvfp4_in_both_formats(tmp_path_factory: pytest.TempPathFactory, run_build: Command) -> tuple[Path, Path]:
    """One calibrated build of the miniature, and its conversion to modelopt's format."""
    directory = tmp_path_factory.mktemp("formats")
    for recipe in ("nvfp4", "nvfp4-full-modelopt"):
        outcome = run_build(recipe, "--model", "mini", "--output", directory / recipe, env={"OMP_NUM_THREADS": "1"})
        assert outcome.code == 0, outcome.err + outcome.out
    return directory / "nvfp4", directory / "nvfp4-full-modelopt"


def beside(outcome: Outcome) -> dict[str, Any]:
    """The section of the comparison."""
    found: dict[str, Any] = next(section for section in outcome.report["sections"] if section["id"] == "against-build")
    return found


@pytest.mark.parametrize(("units", "parts"), [(0, 0), (2, 0), (3, 4)])
def test_scales_may_differ_by_what_a_reciprocal_rounds(units: int, parts: int) -> None:
    """By two units in the last place of a scale of 1, which are 2^-22 of it."""
    one = quantized(np.full((1, 4), 448, np.float32), "F32", SCHEMES["FP8_DYNAMIC"])
    scale = one.arrays["weight_scale"]
    assert scale.tolist() == [[1.0]]
    other = {**one.arrays, "weight_scale": (scale.view(np.uint32) + np.uint32(units)).view(np.float32)}
    side = compare._Side(Tensor("F32", (1, 4)), pair=one.pair)
    found = compare._parting((Memory(other), Memory(one.arrays)), compare._Shared("module.weight", (side, side)))
    assert (found.codes, found.scales) == (0, parts)


def test_a_quantized_weight_is_held_against_one_that_is_kept() -> None:
    module = quantized(hard_weight("normal", "BF16", 16, 64), "BF16", SCHEMES["FP8_DYNAMIC"])
    shape = Tensor("BF16", (16, 64))
    sides = compare._Side(shape, region=Region("base", 0, shape)), compare._Side(shape, pair=module.pair)
    readers = Memory({"base": module.weight}), Memory(module.arrays)
    found, audited = compare._parting(readers, compare._Shared("module.weight", sides)), module.measured()
    assert (found.signal, found.noise) == pytest.approx((audited.signal, audited.noise), rel=1e-5)


def test_a_build_is_the_same_as_itself(mini_build: Path, call_validate: Command) -> None:
    outcome = call_validate(mini_build, "--compare", mini_build, "--format", "json")
    assert outcome.code == 0, outcome.out
    assert beside(outcome)["summary"] == ALL_THE_SAME


def test_the_same_numbers_in_another_format_are_the_same(
    nvfp4_in_both_formats: tuple[Path, Path], call_validate: Command
) -> None:
    outcome = call_validate(nvfp4_in_both_formats[0], "--compare", nvfp4_in_both_formats[1], "--format", "json")
    assert outcome.code == 0, outcome.out
    assert beside(outcome)["summary"] == ALL_THE_SAME


def test_where_two_builds_part_is_named(mini_build: Path, tmp_path: Path, call_validate: Command) -> None:
    done = []

    def change(tensors: Tensors) -> None:
        done.append(one_element(np.random.default_rng(2), tensors))

    copy = altered(mini_build, tmp_path / "copy", change)
    outcome = call_validate(mini_build, "--compare", copy, "--format", "json")
    assert outcome.code == 1
    findings = [item for section in outcome.report["sections"] for item in section["findings"]]
    findings = [item for item in findings if item["severity"] == "error"]
    (module,) = done[0].names
    assert [(item["rule"], item["where"], item["message"]) for item in findings] == [
        ("compare/parts", f"{module}.weight", "has other codes under the same scales")
    ]


def test_builds_of_other_schemes_part_by_layer_and_role(
    mini_build: Path, call_build: Command, call_validate: Command, tmp_path: Path
) -> None:
    built = call_build("w4a16", "--model", "mini", "--output", tmp_path / "other")
    assert built.code == 0, built.err
    outcome = call_validate(mini_build, "--compare", tmp_path / "other", "--format", "json")
    assert outcome.code == 1
    section = beside(outcome)
    assert section["summary"] == "111 of 296 weights have the same codes and scales"
    by_role = {(row[0], row[1]): row[2:] for row in section["tables"][0]["rows"]}
    assert by_role["3", "experts"][:2] == [24, 24]
    assert by_role["3", "norms"][:2] == [9, 0]
    assert 15 < float(by_role["3", "experts"][4]) < 25  # four bits are that far from eight


def test_a_lock_has_nothing_to_compare(mini_build: Path, call_validate: Command) -> None:
    outcome = call_validate(mini_build, "--compare", "references/weighbridge/gemma-4-mini-FP8-dynamic.yaml")
    assert outcome.code == 2
    assert "no weights to compare" in outcome.err
