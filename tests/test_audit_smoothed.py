"""Smoothed weights: with factors as AWQ chooses them, and with factors, codes and norms that nobody honest would."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.audit_rows import integers
from tests.checkpoints import RawTensor, Tensors, edit_tensors, write_tensors
from weighbridge.auditing import Audit, audit, conclusion, method
from weighbridge.auditing.arithmetic import narrowed
from weighbridge.auditing.method import Mapped, Method
from weighbridge.auditing.smoothing import OFFSET_NORMS
from weighbridge.checkpoint.model import open_directory
from weighbridge.formats.schemes import to_config
from weighbridge.machine.resources import Resources
from weighbridge.numbers import load_kernels
from weighbridge.progress import Progress

Array = np.ndarray[Any, Any]
SEED, MANY, SHARE = 20261127, 100, 6
LAYER = "model.layers.0"
WIDTH, INNER, GROUP = 128, 256, 32
AWQ = (
    Mapped("AWQModifier", "re:.*input_layernorm$", ("re:.*q_proj$", "re:.*k_proj$")),
    Mapped("AWQModifier", "re:.*up_proj$", ("re:.*down_proj$",)),
)


def test_mappings_are_read_as_modifiers_take_them() -> None:
    given = [
        {"smooth_layer": "re:.*norm$", "balance_layers": ["re:.*q_proj$", "re:.*k_proj$"]},
        [["re:.*q_proj$", "re:.*k_proj$"], "re:.*norm$"],
        ["re:.*up_proj$", "re:.*norm$"],
    ]
    both = Mapped("AWQModifier", "re:.*norm$", ("re:.*q_proj$", "re:.*k_proj$"))
    one = Mapped("AWQModifier", "re:.*norm$", ("re:.*up_proj$",))
    assert method._mapped("AWQModifier", given) == [both, both, one]


@dataclass
class Smoothing:
    """A layer, and by what its channels are smoothed.

    Attributes:
        weights: name -> the base's own, float32 that BF16 has.
        after_norm: factors of the channels behind the norm.
        after_up: factors of the channels between ``up_proj`` and ``down_proj``.
    """

    weights: dict[str, Array]
    after_norm: Array
    after_up: Array


def bf16(values: Array) -> Array:
    return narrowed(np.ascontiguousarray(values, np.float32), "BF16")


def factors(random: np.random.Generator, weight: Array) -> Array:
    """Factors as AWQ chooses them: of twenty mixtures of activations and weights, the one of the least loss."""
    sizes = np.exp(random.standard_normal(weight.shape[1]))
    inputs = random.standard_normal((256, weight.shape[1])) * sizes
    best, chosen = np.inf, np.ones(weight.shape[1], np.float32)
    for ratio in np.linspace(0, 1, 20):
        found = np.abs(inputs).mean(0) ** ratio / (np.abs(weight).mean(0) + 1e-4) ** (1 - ratio)
        scaled = bf16(found / np.sqrt(found.max() * found.min()))
        smoothed = weight * scaled
        scale = np.abs(smoothed).reshape(len(weight), -1, GROUP).max(2).repeat(GROUP, 1) / 7.5
        loss = float(((inputs @ (np.clip(np.rint(smoothed / scale), -8, 7) * scale / scaled - weight).T) ** 2).sum())
        if loss < best:
            best, chosen = loss, scaled
    return chosen


def layer(random: np.random.Generator) -> Smoothing:
    shapes = {"self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (64, WIDTH)}
    shapes |= {"mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER)}
    weights = {
        f"{LAYER}.{name}.weight": bf16(
            0.02 * random.standard_normal(shape) * np.exp(0.3 * random.standard_normal(shape))
        )
        for name, shape in shapes.items()
    }
    weights[f"{LAYER}.input_layernorm.weight"] = bf16(1 + 0.1 * random.standard_normal(WIDTH))
    both = np.concatenate([weights[f"{LAYER}.self_attn.{name}.weight"] for name in ("q_proj", "k_proj")])
    down = weights[f"{LAYER}.mlp.down_proj.weight"]
    return Smoothing(weights, factors(random, both), factors(random, down))


def raw(values: Array) -> RawTensor:
    bits = (np.ascontiguousarray(values, np.float32).view("<u4") >> np.uint32(16)).astype("<u2")
    return RawTensor("BF16", values.shape, bits.tobytes())


def written(given: Smoothing, directory: Path) -> tuple[Path, Path]:
    """The base, and the build that smoothing and rounding to nearest make of it."""
    base, build = directory / "base", directory / "build"
    base.mkdir()
    build.mkdir()
    write_tensors(base, {name: raw(values) for name, values in given.weights.items()})
    (base / "config.json").write_text('{"model_type": "any"}')
    norm = f"{LAYER}.input_layernorm.weight"
    tensors: Tensors = {norm: raw(bf16(given.weights[norm] / given.after_norm))}
    for name, values in given.weights.items():
        if name == norm:
            continue
        smoothed = values
        if "self_attn" in name:
            smoothed = bf16(values * given.after_norm)
        elif "up_proj" in name:
            smoothed = bf16(values / given.after_up[:, None])
        else:
            smoothed = bf16(values * given.after_up)
        tensors |= quantized(name.removesuffix(".weight"), smoothed)
    write_tensors(build, tensors)
    declared = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], **to_config(integers(4, group=GROUP))}},
        "ignore": [],
    }
    (build / "config.json").write_text(json.dumps({"model_type": "any", "quantization_config": declared}))
    return base, build


def quantized(module: str, weight: Array) -> Tensors:
    bits = (weight.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    arrays = load_kernels("cpu").quantize(bits, "BF16", integers(4, group=GROUP))
    packed, scale = arrays["weight_packed"], arrays["weight_scale"]
    return {
        f"{module}.weight_packed": RawTensor("I32", packed.shape, packed.tobytes()),
        f"{module}.weight_scale": RawTensor("BF16", scale.shape, scale.tobytes()),
        f"{module}.weight_shape": RawTensor("I64", (2,), np.array(weight.shape, "<i8").tobytes()),
    }


def look(base: Path, build: Path, mappings: tuple[Mapped, ...] = AWQ) -> Audit:
    return audit(
        open_directory(build),
        open_directory(base),
        method=Method("a recipe", smoothing=mappings),
        groups=(),
        sample=None,
        resources=Resources(workers=1, digests=False),
        progress=Progress(shown=False),
    )


def one_in_a_group(factor: float) -> Callable[[Smoothing, np.random.Generator], None]:
    """One channel of each group is multiplied by this, the others are left."""

    def change(given: Smoothing, random: np.random.Generator) -> None:
        chosen = random.integers(GROUP) + np.arange(0, WIDTH, GROUP)
        given.after_norm = np.ones(WIDTH, np.float32)
        given.after_norm[chosen] = factor

    return change


def spread(most: float) -> Callable[[Smoothing, np.random.Generator], None]:
    """Each channel is multiplied by any factor from 1 / `most` to `most`."""

    def change(given: Smoothing, random: np.random.Generator) -> None:
        given.after_norm = bf16(np.exp(random.uniform(-np.log(most), np.log(most), WIDTH)))

    return change


def between_layers(given: Smoothing, random: np.random.Generator) -> None:
    """One channel of each group between two linears is multiplied by 1,024."""
    given.after_up = np.ones(INNER, np.float32)
    given.after_up[random.integers(GROUP) + np.arange(0, INNER, GROUP)] = 1024


FACTORS = {
    "1,024 on one channel of a group": one_in_a_group(1024),
    "64 on one channel of a group": one_in_a_group(64),
    "16 on one channel of a group": one_in_a_group(16),
    "any from 1/8 to 8": spread(8),
    "any from 1/64 to 64": spread(64),
    "1,024 between two linears": between_layers,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", FACTORS)
def test_factors_beyond_what_awq_chooses_are_refused(kind: str, seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng([SEED, seed])
    given = layer(random)
    FACTORS[kind](given, random)
    found = look(*written(given, tmp_path))
    assert {judged.rule for judged in found.diverging} == {"audit/beyond-smoothing"}


# --- what smoothed layers have beside their weights


@dataclass(frozen=True)
class Beside:
    """A tensor beside smoothed weights: as the base has it, as smoothing leaves it, and left as it should not be.

    Attributes:
        model_type: of the base.
        mappings: what is smoothed.
    """

    name: str
    before: Array
    honest: Array
    wrong: Array
    model_type: str = "any"
    mappings: tuple[Mapped, ...] = AWQ


def bias(given: Smoothing, random: np.random.Generator) -> Beside:
    before = bf16(0.1 * random.standard_normal(INNER))
    return Beside(f"{LAYER}.mlp.up_proj.bias", before, bf16(before / given.after_up), before)


def bias_of_the_norm(given: Smoothing, random: np.random.Generator) -> Beside:
    before = bf16(0.1 * random.standard_normal(WIDTH))
    return Beside(f"{LAYER}.input_layernorm.bias", before, bf16(before / given.after_norm), before)


def router(given: Smoothing, random: np.random.Generator) -> Beside:
    before = bf16(0.1 * random.standard_normal((8, WIDTH)))
    both = Mapped("AWQModifier", "re:.*input_layernorm$", ("re:.*q_proj$", "re:.*k_proj$", "re:.*router$"))
    honest = bf16(before * given.after_norm)
    return Beside(f"{LAYER}.self_attn.router.weight", before, honest, before, mappings=(both, AWQ[1]))


def norm_of_one_more(given: Smoothing, random: np.random.Generator) -> Beside:
    before = bf16(0.1 * random.standard_normal(WIDTH))
    honest = bf16(bf16(bf16(1 + before) / given.after_norm) - 1)
    wrong = bf16(before / given.after_norm)
    return Beside(f"{LAYER}.input_layernorm.weight", before, honest, wrong, model_type="gemma3_text")


def norm_of_itself(given: Smoothing, random: np.random.Generator) -> Beside:
    before = given.weights[f"{LAYER}.input_layernorm.weight"]
    wrong = bf16(bf16(bf16(1 + before) / given.after_norm) - 1)
    return Beside(f"{LAYER}.input_layernorm.weight", before, bf16(before / given.after_norm), wrong, "gemma3n_text")


@pytest.mark.parametrize("honest", [True, False], ids=["honest", "wrong"])
@pytest.mark.parametrize("make", [bias, bias_of_the_norm, router, norm_of_one_more, norm_of_itself])
def test_what_lies_beside_smoothed_weights_is_smoothed_with_them(
    make: Callable[[Smoothing, np.random.Generator], Beside], honest: bool, tmp_path: Path
) -> None:
    random = np.random.default_rng(SEED)
    given = layer(random)
    beside = make(given, random)
    base, build = written(given, tmp_path)
    (base / "config.json").write_text(json.dumps({"model_type": beside.model_type}))
    edit_tensors(base, lambda tensors: tensors.update({beside.name: raw(beside.before)}))
    stored = raw(beside.honest if honest else beside.wrong)
    edit_tensors(build, lambda tensors: tensors.update({beside.name: stored}))
    said = conclusion(look(base, build, beside.mappings))
    assert said == (
        "derives from the base as smoothed, within stated limits" if honest else "does not derive from the base"
    )


def test_norms_that_multiply_by_one_more_are_those_of_transformers() -> None:
    """Its modules say so in one line: ``(1.0 + self.weight.float())``, or ``self.weight + 1.0``."""
    models = Path(pytest.importorskip("transformers").__file__).parent / "models"
    said = re.compile(r"1(\.0)? \+ self\.weight|self\.weight \+ 1")
    found = {file.parent.name for file in models.glob("*/modeling_*.py") if said.search(file.read_text())}
    assert found == set(OFFSET_NORMS)


def altered(tensors: Tensors, random: np.random.Generator) -> None:
    """Some rows of a smoothed weight hold other codes."""
    name = f"{LAYER}.self_attn.q_proj.weight_packed"
    data = bytearray(tensors[name].data)
    begin = int(random.integers(WIDTH)) * WIDTH // 2
    data[begin : begin + WIDTH // 2] = random.integers(0, 256, WIDTH // 2, dtype=np.uint8).tobytes()
    tensors[name] = RawTensor("I32", tensors[name].shape, bytes(data))


def judged_wrongly(numbers: range, directory: Path) -> list[str]:
    """Honest builds that are refused, and altered ones that are not."""
    wrong = []
    for number in numbers:
        random = np.random.default_rng([SEED, number])
        place = directory / str(number)
        place.mkdir()
        base, build = written(layer(random), place)
        found = look(base, build)
        if conclusion(found) != "derives from the base as smoothed, within stated limits":
            wrong.append(f"seed {SEED}, number {number}: honest, and {found.diverging[:2]}, {found.leftovers}")
        edit_tensors(build, lambda tensors, random=random: altered(tensors, random))  # type: ignore[misc]
        if {judged.name for judged in look(base, build).diverging} != {f"{LAYER}.self_attn.q_proj"}:
            wrong.append(f"seed {SEED}, number {number}: a row of q_proj altered, and not seen")
    return wrong


def test_a_share_of_smoothed_builds_is_judged_rightly(tmp_path: Path) -> None:
    assert judged_wrongly(range(SHARE), tmp_path) == []


@pytest.mark.campaign
@pytest.mark.parametrize("part", range(4))
def test_no_smoothed_build_is_judged_wrongly(part: int, tmp_path: Path) -> None:
    each = MANY // 4
    assert judged_wrongly(range(part * each, (part + 1) * each), tmp_path) == []
