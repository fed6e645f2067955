"""Campaigns: hundreds of seeded alterations, none of which may be missed; honest builds, none of which may fail."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.alterations import EVERYWHERE, FLOATS, Alteration, Altered
from tests.checkpoints import RawTensor, Tensors, write_tensors
from tests.conftest import Command
from tests.test_audit import OBSERVED, altered, built, diverging, look, observed  # noqa: F401 (fixtures)
from weighbridge.auditing import conclusion
from weighbridge.recipe import load_recipe

SEED = 20261121
DATA_FREE = ("fp8-dynamic", "fp8-block", "w4a16", "nvfp4a16", "mxfp4", "w4a16-signed", "nvfp4a16-4o6")
ALTERATIONS, HONEST = 500, 200
SHARE_OF_ALTERATIONS, SHARE_OF_HONEST = 12, 6


def kinds(build: str) -> Mapping[str, Alteration]:
    """The alterations that a build of this recipe can have."""
    return {**EVERYWHERE, **(FLOATS if build.startswith("fp8") else {})}


def alter_and_look(build: Path, recipe: str, number: int, mini: Path, target: Path) -> tuple[str, Altered, set[str]]:
    """One alteration of a build, by its number: its kind, what was done, and what the audit found."""
    random = np.random.default_rng([SEED, number])
    kind = list(kinds(recipe))[int(random.integers(len(kinds(recipe))))]
    done: list[Altered] = []
    copy = altered(build, target, lambda tensors: done.append(kinds(recipe)[kind](random, tensors)))
    return kind, done[0], diverging(look(copy, mini))


def campaign(builds: Mapping[str, Path], numbers: range, mini: Path, directory: Path) -> list[str]:
    """What was missed, or wrongly blamed, in alterations of these numbers."""
    wrong = []
    for number in numbers:
        recipe = list(builds)[number % len(builds)]
        kind, done, found = alter_and_look(builds[recipe], recipe, number, mini, directory / str(number))
        if found != done.names:
            wrong.append(f"seed {SEED}, number {number}, {recipe}, {kind}: {done.what}; found {sorted(found)[:4]}")
    return wrong


@pytest.fixture
def builds(built: Callable[..., Path], observed: Path) -> dict[str, Path]:  # noqa: F811
    """Exact builds of five schemes, and one whose scales another observer chose."""
    return {**{recipe: built(recipe) for recipe in DATA_FREE}, "observed": observed}


def test_a_share_of_the_alterations_is_named(builds: dict[str, Path], mini: Path, tmp_path: Path) -> None:
    print(f"seed {SEED}", file=sys.stderr)  # noqa: T201
    assert campaign(builds, range(SHARE_OF_ALTERATIONS), mini, tmp_path) == []


@pytest.mark.campaign
@pytest.mark.parametrize("part", range(5))
def test_no_alteration_is_missed(part: int, builds: dict[str, Path], mini: Path, tmp_path: Path) -> None:
    each = ALTERATIONS // 5
    assert campaign(builds, range(part * each, (part + 1) * each), mini, tmp_path) == []


# --- honest builds


def random_source(random: np.random.Generator, directory: Path) -> Path:
    """A checkpoint of some linears and norms of any size, with weights of any distribution."""
    directory.mkdir()
    dtype = str(random.choice(["BF16", "F16", "F32"], p=[0.8, 0.1, 0.1]))
    tensors: Tensors = {}
    for number in range(int(random.integers(1, 4))):
        rows, columns = int(random.integers(1, 300)), 32 * int(random.integers(1, 20))
        for member in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            tensors[f"model.layers.{number}.{member}.weight"] = weights(random, dtype, (rows, columns))
        tensors[f"model.layers.{number}.input_layernorm.weight"] = weights(random, dtype, (columns,))
    write_tensors(directory, tensors, shards=int(random.integers(1, 3)))
    (directory / "config.json").write_text('{"model_type": "any"}')
    return directory


def weights(random: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> RawTensor:
    """Weights of a random distribution: scale, outliers, zeros, values that all lie on a coarse grid."""
    values = random.standard_normal(shape) * 2.0 ** random.integers(-9, 3)
    match int(random.integers(5)):
        case 0:
            values[random.random(shape) < 0.01] *= 100
        case 1:
            values[random.random(shape) < 0.5] = 0
        case 2:
            values = np.round(values * 64) / 64
        case 3:
            values = np.full(shape, values.flat[0])
    if dtype == "BF16":
        data = (values.astype("<f4").view("<u4") >> np.uint32(16)).astype("<u2").tobytes()
    else:
        data = values.astype("<f2" if dtype == "F16" else "<f4").tobytes()
    return RawTensor(dtype, shape, data)


def random_recipe(random: np.random.Generator, path: Path) -> Path:
    """A data-free recipe of any scheme."""
    group = {"num_bits": int(random.choice([4, 8])), "type": "int", "strategy": "group", "symmetric": True}
    presets = ("FP8_DYNAMIC", "FP8_BLOCK", "W8A8", "NVFP4A16", "MXFP4", "MXFP8A16")
    schemes: list[dict[str, object]] = [
        *(dict[str, object](scheme=name) for name in presets),
        {"config_groups": {"group_0": {"weights": {**group, "group_size": int(random.choice([8, 16, 32]))}}}},
        {"config_groups": {"group_0": {"weights": {**group, "strategy": "channel", "group_size": None}}}},
    ]
    ignored = [["re:.*norm.*"], ["re:.*norm.*", "re:.*down_proj"], ["re:.*norm.*", "re:.*mlp.*"]]
    content = {
        "name": "random",
        "description": "Any scheme.",
        "base": {"model": "weighbridge/any", "revision": "0" * 40, "licence": "apache-2.0"},
        "method": "model_free_ptq",
        "ignore": ignored[int(random.integers(len(ignored)))],
        **schemes[int(random.integers(len(schemes)))],
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def alarms(numbers: range, call_build: Command, directory: Path) -> list[str]:
    """Honest builds of random recipes and sizes that the audit did not call exact."""
    wrong = []
    for number in numbers:
        random = np.random.default_rng([SEED, number])
        place = directory / str(number)
        place.mkdir()
        source, recipe = random_source(random, place / "source"), random_recipe(random, place / "recipe.yaml")
        outcome = call_build(recipe, "--model", source, "--output", place / "build")
        assert outcome.code == 0, f"number {number}: {outcome.err}{outcome.out}"
        found = look(place / "build", source, loaded=load_recipe(str(recipe)))
        if conclusion(found) != "derives exactly from the base":
            wrong.append(f"seed {SEED}, number {number}: {conclusion(found)}, {found.diverging[:2]}")
    return wrong


def test_a_share_of_honest_builds_is_exact(call_build: Command, tmp_path: Path) -> None:
    assert alarms(range(SHARE_OF_HONEST), call_build, tmp_path) == []


@pytest.mark.campaign
@pytest.mark.parametrize("part", range(4))
def test_no_honest_build_is_blamed(part: int, call_build: Command, tmp_path: Path) -> None:
    each = HONEST // 4
    assert alarms(range(part * each, (part + 1) * each), call_build, tmp_path) == []
