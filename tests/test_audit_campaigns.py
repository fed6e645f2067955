"""Campaigns: hundreds of seeded alterations, none of which may be missed; honest builds, none of which may fail."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from tests.alterations import EVERYWHERE, FLOATS, Alteration, Altered, code_array, coded, put_codes
from tests.checkpoints import RawTensor, Tensors, read_tensors, write_tensors
from tests.conftest import Command, Once, run_script
from tests.test_audit import OBSERVED, altered, built, diverging, look, observed  # noqa: F401 (fixtures)
from weighbridge.auditing import Audit, conclusion, sections
from weighbridge.base.source import open_model
from weighbridge.recipe import load_recipe
from weighbridge.samples.trained.text import write_calibration

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


@pytest.fixture(scope="session")
def trained_gptq(once: Once) -> Path:
    """The trained miniature's build by GPTQ, calibrated with text that it was not trained on."""

    def build(directory: Path) -> None:
        write_calibration(directory / "calibration.jsonl")
        options = ("--model", "trained-mini", "--calibration", directory / "calibration.jsonl", "--reference", "none")
        outcome = run_script("build.py", "w4a16-gptq", *options, "--output", directory / "build")
        assert outcome.code == 0, outcome.err + outcome.out

    return once("trained-gptq", build) / "build"


def floats(tensor: RawTensor) -> npt.NDArray[np.float32]:
    """The values of a tensor of BF16."""
    assert tensor.dtype == "BF16"
    bits = np.frombuffer(tensor.data, np.uint16).astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32).reshape(tensor.shape)


def rounded_at_will(share: float, base: Path) -> Callable[[Tensors], object]:
    """So many codes of attention and dense mlp are that above or that below the base's weight, as somebody likes.

    Columns that are nearest throughout are left so: that there is none would show at once.
    """
    weights, random = read_tensors(base), np.random.default_rng(SEED)

    def alter(tensors: Tensors) -> None:
        for module in coded(tensors):
            if f"{module}.weight" not in weights:
                continue  # an expert
            codes = code_array(tensors, module).astype(np.int64) - 8
            scale = floats(tensors[f"{module}.weight_scale"])
            places = floats(weights[f"{module}.weight"]) / scale.repeat(codes.shape[1] // scale.shape[1], 1)
            liked = np.clip(np.floor(places) + (random.random(codes.shape) < 0.5), -8, 7)
            chosen = np.where(random.random(codes.shape) < share, liked, codes)
            settled = (np.abs(codes - places) <= 0.5 + 2.0**-8 * np.abs(places)).all(0)
            chosen[:, settled] = codes[:, settled]
            put_codes(tensors, module, (chosen + 8).astype(np.uint8))

    return alter


def bits_by_role(found: Audit) -> dict[str, float]:
    """What the report says of each role, and how many bits a weight nothing explains in it."""
    quantized = next(item for item in sections(found) if item.id == "quantized-weights")
    (table,) = quantized.tables
    column = table.columns.index("unexplained bits a weight")
    return {str(row[0]): float(str(row[column])) for row in table.rows}


@pytest.mark.campaign
def test_rounding_at_will_shows_in_a_compensated_build_of_trained_weights(trained_gptq: Path, tmp_path: Path) -> None:
    """Honest: within the limits, and so many bits. At will: refused, and more bits of the roles that were altered."""
    base = open_model("trained-mini").directory
    assert base is not None
    recipe = load_recipe("w4a16-gptq")
    honest = look(trained_gptq, base, loaded=recipe)
    assert not honest.diverging
    held = {"honest": bits_by_role(honest)}
    for share in (1, 0.5, 0.25):
        copy = altered(trained_gptq, tmp_path / str(share), rounded_at_will(share, base))
        found = look(copy, base, loaded=recipe)
        held[f"{share}"] = bits_by_role(found)
        assert found.diverging, held
    print(held, file=sys.stderr)  # noqa: T201
    for role in ("attention", "mlp"):
        assert held["0.25"][role] > held["honest"][role], held
