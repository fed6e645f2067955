"""The audit on the miniature: honest builds pass with the verdict that they deserve, and what is altered is named."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.alterations import EVERYWHERE, FLOATS, Codes, code_array, put_codes
from tests.checkpoints import (
    RawTensor,
    Tensors,
    copy_checkpoint,
    edit_config,
    edit_tensors,
    read_header,
    read_shard,
    read_tensors,
    write_header,
    write_shard,
    write_tensors,
)
from tests.conftest import FP8_DYNAMIC, Command, Once, run_script
from weighbridge import api
from weighbridge.auditing import Audit, Sample, audit, conclusion, method_of, sections
from weighbridge.auditing.judge import Verdict
from weighbridge.checkpoint.model import open_directory
from weighbridge.checks import expectation
from weighbridge.machine.resources import Resources
from weighbridge.planning import find_merged_groups
from weighbridge.progress import Progress
from weighbridge.recipe import LoadedRecipe, load_recipe
from weighbridge.report import Grid

DATA_FREE = (
    *("fp8-dynamic", "fp8-block", "w4a16", "nvfp4a16", "mxfp4", "w4a16-signed", "nvfp4a16-4o6"),
    *("w4a16-experts-fp8", "nvfp4a16-experts-fp8"),
)
CAMPAIGN_SEED = 20261121
EXPERTS = "model.language_model.layers.2.experts"


@pytest.fixture(scope="session")
def built(once: Once, mini: Path) -> Callable[[str], Path]:
    """The miniature's build by a recipe of the catalogue, or by the text of one; made once."""

    def build(recipe: str, *options: str) -> Path:
        def make(directory: Path) -> None:
            named = recipe
            if "\n" in recipe:
                named = str(directory / "recipe.yaml")
                Path(named).write_text(recipe)
            output = directory / "build"
            outcome = run_script(
                "build.py", named, "--model", "mini", "--output", output, "--reference", "none", *options
            )
            assert outcome.code == 0, outcome.err + outcome.out

        name = recipe.splitlines()[0].removeprefix("name: ")
        return once(f"audit-{name}", make) / "build"

    return build


def look(checkpoint: Path, base: Path, *, loaded: LoadedRecipe | None = None, sample: Sample | None = None) -> Audit:
    """Audit two directories."""
    opened = open_directory(checkpoint)
    return audit(
        opened,
        open_directory(base),
        method=method_of(opened, loaded),
        groups=find_merged_groups(opened.schemes, opened.family),
        sample=sample,
        resources=Resources(devices=("cpu",), workers=2, digests=False),
        progress=Progress(shown=False),
    )


def verdicts(found: Audit) -> dict[Verdict, int]:
    """How many tensors got each verdict."""
    return {verdict: count for verdict in Verdict if (count := sum(item.verdict is verdict for item in found.judged))}


def diverging(found: Audit) -> set[str]:
    """Names of what does not follow from the base."""
    return {item.name for item in found.diverging}


def altered(build: Path, target: Path, change: Callable[[Tensors], object]) -> Path:
    """A copy of a build with other tensors."""
    copy_checkpoint(build, target)
    edit_tensors(target, change)
    return target


def test_report_shows_the_error_of_each_layer_by_role(mini_build: Path, mini: Path) -> None:
    quantized = next(item for item in sections(look(mini_build, mini)) if item.id == "quantized-weights")
    (grid,) = quantized.figures
    assert isinstance(grid, Grid)
    assert list(grid.rows) == sorted(grid.rows, key=int)
    assert len(grid.rows) > 1


@pytest.mark.parametrize("recipe", DATA_FREE)
def test_data_free_build_is_exact_throughout(built: Callable[[str], Path], mini: Path, recipe: str) -> None:
    found = look(built(recipe), mini, loaded=load_recipe(recipe))
    assert verdicts(found) == {Verdict.IDENTICAL: 111, Verdict.EXACT: 185}
    assert conclusion(found) == "derives exactly from the base"


def test_every_element_is_checked(mini_build: Path, mini: Path) -> None:
    found = look(mini_build, mini)
    parameters = sum(tensor.parameters for tensor in open_directory(mini).structure.values())
    assert found.checked == found.total == found.base_parameters == parameters


OBSERVED = """\
name: audit-observed
description: Scales of the smallest squared error.
base: {model: google/gemma-4-26B-A4B-it, licence: apache-2.0}
method: model_free_ptq
config_groups:
  group_0:
    weights:
      {num_bits: 4, type: int, strategy: group, group_size: 32, symmetric: SYMMETRIC, observer: memoryless_OBSERVER}
ignore: [lm_head, "re:.*embed.*", "re:.*router", "re:.*norm.*", "re:.*vision_tower.*"]
"""


@pytest.fixture(scope="session")
def observed(built: Callable[..., Path]) -> Path:
    """A build by llm-compressor whose scales another observer than min-max chose."""
    return built(OBSERVED.replace("SYMMETRIC", "true").replace("OBSERVER", "mse"), "--engine", "upstream")


def test_build_by_another_observer_is_exact_by_that(observed: Path, mini: Path, tmp_path: Path) -> None:
    found = look(observed, mini)
    assert verdicts(found) == {Verdict.IDENTICAL: 111, Verdict.EXACT: 185}
    assert conclusion(found) == "derives exactly from the base"
    (tmp_path / "recipe.yaml").write_text(OBSERVED.replace("SYMMETRIC", "true").replace("OBSERVER", "minmax"))
    asked = look(observed, mini, loaded=load_recipe(str(tmp_path / "recipe.yaml")))
    assert verdicts(asked) == {Verdict.IDENTICAL: 111, Verdict.NEAREST: 185}
    assert conclusion(asked) == "derives from the base, but is not bit-exact, which its recipe promises"


def test_asymmetric_build_is_exact(built: Callable[..., Path], mini: Path) -> None:
    recipe = OBSERVED.replace("observed", "asymmetric").replace("SYMMETRIC", "false").replace("OBSERVER", "minmax")
    found = look(built(recipe, "--engine", "upstream"), mini)
    assert verdicts(found) == {Verdict.IDENTICAL: 111, Verdict.EXACT: 185}


def test_scales_doubled_and_codes_halved_are_nearest_but_not_exact(
    mini_build: Path, mini: Path, tmp_path: Path
) -> None:
    module = f"{EXPERTS}.1.down_proj"

    def change(tensors: Tensors) -> None:
        put_codes(tensors, module, halved(code_array(tensors, module)))
        scale = tensors[f"{module}.weight_scale"]
        doubled = (np.frombuffer(scale.data, "<u2") + 0x80).astype("<u2")
        tensors[f"{module}.weight_scale"] = replace(scale, data=doubled.tobytes())

    copy = altered(mini_build, tmp_path / "copy", change)
    found = look(copy, mini)
    assert {item.name for item in found.judged if item.verdict is Verdict.NEAREST} == {module}
    assert diverging(found) == set()
    assert all(section.holds for section in sections(found))
    promised = look(copy, mini, loaded=load_recipe("fp8-dynamic"))
    wrong = [finding.where for section in sections(promised) if not section.holds for finding in section.findings]
    assert wrong == [module]


def halved(codes: Codes) -> Codes:
    """E4M3 codes of half the value: a binade less, and where that is subnormal the nearest, ties to even."""
    magnitude = (codes & 0x7F).astype(int)
    units = np.where(magnitude < 8, magnitude, 8 + (magnitude & 7))  # of 2^-9, below the second normal binade
    small = np.rint(units / 2).astype(int)
    return ((codes & 0x80) | np.where(magnitude >= 16, magnitude - 8, small)).astype(np.uint8)


KINDS = {**EVERYWHERE, **FLOATS}


@pytest.mark.parametrize("kind", KINDS)
def test_alteration_is_named(mini_build: Path, mini: Path, tmp_path: Path, kind: str) -> None:
    done = []
    copy = altered(mini_build, tmp_path / "copy", lambda t: done.append(KINDS[kind](np.random.default_rng(1), t)))
    found = look(copy, mini)
    assert diverging(found) == set(done[0].names), done[0].what
    assert conclusion(found) == "does not derive from the base"


def test_layer_of_a_slightly_tuned_model_is_named(mini_build: Path, mini: Path, tmp_path: Path) -> None:
    tuned = _tuned(mini, tmp_path / "tuned")
    outcome = run_script(
        "build.py", FP8_DYNAMIC, "--model", tuned, "--output", tmp_path / "other", "--reference", "none"
    )
    assert outcome.code == 0, outcome.err + outcome.out
    other, prefix = read_tensors(tmp_path / "other"), "model.language_model.layers.3."
    layer = {name: tensor for name, tensor in other.items() if name.startswith(prefix)}
    found = look(altered(mini_build, tmp_path / "copy", lambda tensors: tensors.update(layer)), mini)
    names = {name.rpartition(".")[0] if name.endswith(("weight", "weight_scale")) else name for name in layer}
    quantized = {name for name in names if f"{name}.weight_scale" in layer}
    assert quantized <= diverging(found)
    assert all(name.startswith(prefix) for name in diverging(found))


def test_build_of_another_revision_does_not_derive(mini_build: Path, mini: Path, tmp_path: Path) -> None:
    found = look(mini_build, _tuned(mini, tmp_path / "tuned"))
    assert conclusion(found) == "does not derive from the base"
    assert len(diverging(found)) > 250


def _tuned(mini: Path, target: Path) -> Path:
    """The miniature with every weight changed by a thousandth of its size."""
    copy_checkpoint(mini, target)
    random = np.random.default_rng(3)
    for shard in sorted(target.glob("*.safetensors")):
        tensors = read_shard(shard)
        for name, tensor in tensors.items():
            bits = np.frombuffer(tensor.data, "<u2").astype(np.uint32) << np.uint32(16)
            values = bits.view(np.float32) * (1 + 1e-3 * random.standard_normal(len(bits), dtype=np.float32))
            rounded = (
                values.view(np.uint32) + np.uint32(0x7FFF) + ((values.view(np.uint32) >> np.uint32(16)) & np.uint32(1))
            )
            tensors[name] = replace(tensor, data=(rounded >> np.uint32(16)).astype("<u2").tobytes())
        write_shard(shard, tensors)
    return target


def test_missing_tensors_are_named(mini_build: Path, mini: Path, tmp_path: Path) -> None:
    name = "model.language_model.norm.weight"
    found = look(altered(mini_build, tmp_path / "copy", lambda tensors: tensors.pop(name)), mini)
    assert [(left.kind, left.names, left.excused) for left in found.leftovers] == [("dropped", (name,), False)]
    assert conclusion(found) == "does not derive from the base"
    assert next((section.id, section.holds) for section in sections(found)) == ("audit", False)


def test_surplus_tensor_is_named(mini_build: Path, mini: Path, tmp_path: Path) -> None:
    extra = RawTensor("BF16", (2,), bytes(4))
    found = look(altered(mini_build, tmp_path / "copy", lambda t: t.update({"model.extra.bias": extra})), mini)
    assert [(left.kind, left.names, left.excused) for left in found.leftovers] == [
        ("added", ("model.extra.bias",), False)
    ]


def test_both_sides_are_related_and_planned_once(
    mini_build: Path, mini: Path, call_validate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    for module, name in ((expectation, "make_plan"), (api, "check_related")):
        whole = getattr(module, name)

        def counted(*sides: object, name: str = name, whole: Callable[..., object] = whole) -> object:
            made.append(name)
            return whole(*sides)

        monkeypatch.setattr(module, name, counted)
    outcome = call_validate(mini_build, "--source", mini, "--recipe", "fp8-dynamic")
    assert outcome.code == 0, outcome.err + outcome.out
    assert sorted(made) == ["check_related", "make_plan"]


def test_tied_head_that_equals_the_embedding_is_excused(mini_build: Path, mini: Path, tmp_path: Path) -> None:
    embedding = "model.language_model.embed_tokens.weight"
    found = look(altered(mini_build, tmp_path / "copy", lambda t: t.update({"lm_head.weight": t[embedding]})), mini)
    assert [(left.names, left.excused) for left in found.leftovers] == [(("lm_head.weight",), True)]
    assert conclusion(found) == "derives exactly from the base"


@pytest.mark.parametrize(
    ("at_top", "in_text", "excused"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_head_that_is_left_out_is_excused_where_the_base_ties_it(
    at_top: bool, in_text: bool, excused: bool, mini_build: Path, mini: Path, tmp_path: Path
) -> None:
    embedding = "model.language_model.embed_tokens.weight"
    base = altered(mini, tmp_path / "base", lambda tensors: tensors.update({"lm_head.weight": tensors[embedding]}))

    def say(config: dict[str, Any]) -> None:
        config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"] = at_top, in_text

    edit_config(base, say)
    found = look(mini_build, base)
    assert [(left.kind, left.names, left.excused) for left in found.leftovers] == [
        ("dropped", ("lm_head.weight",), excused)
    ]


def test_experts_that_old_tools_left_unquantized_are_named(mini_build: Path, mini: Path, tmp_path: Path) -> None:
    """llm-compressor 0.11 and 0.12 split fused experts, and wrote them in BF16 without ``.weight`` (fact 8)."""
    base = read_tensors(mini)

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".experts." in name]:
            del tensors[name]
        for name, tensor in base.items():
            layer, found, member = name.rpartition(".experts.")
            if not found:
                continue
            experts, rows, columns = tensor.shape
            parts = ("gate_proj", "up_proj") if member == "gate_up_proj" else (member,)
            each = rows // len(parts) * columns * 2
            for index in range(experts * len(parts)):
                local = f"{layer}.experts.{index // len(parts)}.{parts[index % len(parts)]}"
                shape = (rows // len(parts), columns)
                tensors[local] = RawTensor("BF16", shape, tensor.data[index * each : (index + 1) * each])

    found = look(altered(mini_build, tmp_path / "copy", change), mini)
    wrong = [finding for section in sections(found) for finding in section.findings if not section.holds]
    assert {(finding.rule, finding.where, finding.count) for finding in wrong} == {
        ("audit/left-unquantized", f"model.language_model.layers.{{0-5}}.experts.{{0-7}}.{member}_proj", 48)
        for member in ("gate", "up", "down")
    }


def test_fused_experts_are_audited_as_they_lie(
    built: Callable[..., Path], mini_build: Path, mini: Path, tmp_path: Path
) -> None:
    fused = _fused(mini_build, tmp_path / "fused")
    assert verdicts(look(fused, mini)) == {Verdict.IDENTICAL: 111, Verdict.EXACT: 185}


def test_one_code_of_a_fused_expert_is_named(mini_build: Path, mini: Path, tmp_path: Path) -> None:
    fused = _fused(mini_build, tmp_path / "fused")

    def change(tensors: Tensors) -> None:
        name = f"{EXPERTS}.gate_up_proj"
        _, rows, columns = tensors[name].shape
        data = bytearray(tensors[name].data)
        data[(3 * rows + rows // 2 + 5) * columns + 7] ^= 0x81
        tensors[name] = replace(tensors[name], data=bytes(data))

    edit_tensors(fused, change)
    found = look(fused, mini)
    assert diverging(found) == {f"{EXPERTS}.3.up_proj"}
    assert "row 5, column 7" in found.diverging[0].detail


def _fused(build: Path, target: Path) -> Path:
    """A build with the experts of a layer in one tensor, as LargitData's has them."""
    tensors = read_tensors(build)
    shutil.copytree(build, target)
    layers = sorted({name.partition(".experts.")[0] for name in tensors if ".experts." in name})
    for layer in layers:
        for fused, members in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))):
            for local, suffix in (("weight", ""), ("weight_scale", ".weight_scale")):
                parts = [
                    tensors.pop(f"{layer}.experts.{expert}.{member}.{local}")
                    for expert in range(8)
                    for member in members
                ]
                rows, columns = parts[0].shape
                shape = (8, rows * len(members), columns)
                data = b"".join(part.data for part in parts)
                tensors[f"{layer}.experts.{fused}{suffix}"] = RawTensor(parts[0].dtype, shape, data)
    write_tensors(target, tensors)
    return target


def test_source_that_is_not_finite_is_refused_by_name(mini_build: Path, mini: Path, tmp_path: Path) -> None:
    base = copy_checkpoint(mini, tmp_path / "base")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    shard = next(path for path in sorted(base.glob("*.safetensors")) if name in read_shard(path))
    tensors = read_shard(shard)
    tensors[name] = replace(tensors[name], data=struct.pack("<H", 0x7FC0) + tensors[name].data[2:])
    write_shard(shard, tensors)
    (judged,) = look(mini_build, base).diverging
    assert (judged.name, judged.rule) == (name.removesuffix(".weight"), "audit/source-not-finite")


def test_global_scale_that_is_not_the_groups_is_not_exact(
    built: Callable[..., Path], mini: Path, tmp_path: Path
) -> None:
    module = "model.language_model.layers.1.self_attn.o_proj"

    def change(tensors: Tensors) -> None:
        scale = tensors[f"{module}.weight_global_scale"]
        (value,) = struct.unpack("<f", scale.data)
        tensors[f"{module}.weight_global_scale"] = replace(scale, data=struct.pack("<f", value * 1.5))

    found = look(altered(built("nvfp4a16"), tmp_path / "copy", change), mini)
    assert diverging(found) == {module}


def test_wrong_shape_of_packed_weights_is_named(built: Callable[..., Path], mini: Path, tmp_path: Path) -> None:
    module = f"{EXPERTS}.2.up_proj"

    def change(tensors: Tensors) -> None:
        name = f"{module}.weight_shape"
        rows, columns = struct.unpack("<2q", tensors[name].data)
        tensors[name] = replace(tensors[name], data=struct.pack("<2q", columns, rows))

    (judged,) = look(altered(built("w4a16"), tmp_path / "copy", change), mini).diverging
    assert (judged.name, judged.rule) == (module, "audit/weight-shape")


def hostile_pattern(copy: Path) -> None:
    edit_config(copy, lambda config: config["quantization_config"].update(ignore=["re:(?=(a))\\1"]))


def absurd_shape(copy: Path) -> None:
    header, data = read_header(copy / "model.safetensors")
    name = next(iter(header))
    header[name]["shape"] = [1 << 40, 1 << 40]
    write_header(copy / "model.safetensors", json.dumps(header).encode(), data)


def overlapping_ranges(copy: Path) -> None:
    header, data = read_header(copy / "model.safetensors")
    one, other = list(header)[:2]
    header[other] = header[one]
    write_header(copy / "model.safetensors", json.dumps(header).encode(), data)


@pytest.mark.parametrize("damage", [hostile_pattern, absurd_shape, overlapping_ranges])
def test_hostile_checkpoint_is_refused_before_any_number(
    damage: Callable[[Path], None],
    call_validate: Command,
    mini_build: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def computed(*_: object) -> None:
        raise AssertionError("a number was computed")

    monkeypatch.setattr("weighbridge.auditing.work.examine", computed)
    copy = copy_checkpoint(mini_build, tmp_path / "copy")
    damage(copy)
    outcome = call_validate(copy, "--source", "mini")
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1


def test_report_of_the_command_names_what_decides(call_validate: Command, mini_build: Path, mini: Path) -> None:
    outcome = call_validate(mini_build, "--source", "mini", "--recipe", "fp8-dynamic", "--format", "json")
    assert outcome.code == 0, outcome.err
    said = {section["id"]: section["summary"] for section in outcome.report["sections"]}
    assert said["audit"] == "derives exactly from the base: 111 identical, 185 exact"
    assert said["source"].endswith("by SHA-256")


def test_altered_build_fails_the_command(call_validate: Command, mini_build: Path, tmp_path: Path) -> None:
    copy = altered(mini_build, tmp_path / "copy", lambda t: EVERYWHERE["one element"](np.random.default_rng(5), t))
    outcome = call_validate(copy, "--source", "mini")
    assert outcome.code == 1
    assert "audit/not-nearest" in outcome.out


WEIGHT = re.compile(r"the first is at row (\d+), column (\d+) \(base (\S+), scale (\S+): code (\S+), stored (\S+)\)$")


@pytest.mark.parametrize("recipe", DATA_FREE)
def test_altered_code_is_told_with_the_bases_value_the_expected_code_and_the_stored_one(
    recipe: str, built: Callable[[str], Path], mini: Path, tmp_path: Path
) -> None:
    module = "model.language_model.layers.0.self_attn.q_proj"

    def change(tensors: Tensors) -> None:
        name = next(name for name in (f"{module}.weight_packed", f"{module}.weight") if name in tensors)
        data = bytearray(tensors[name].data)
        data[len(data) // 2] ^= 2  # of the first code in it
        tensors[name] = replace(tensors[name], data=bytes(data))

    (judged,) = look(altered(built(recipe), tmp_path / "copy", change), mini).diverging
    told = WEIGHT.search(judged.detail)
    assert judged.name == module and told is not None, judged.detail
    row, column = map(int, told.group(1, 2))
    value, scale, expected, found = map(float, told.group(3, 4, 5, 6))
    weight = read_tensors(mini)[f"{module}.weight"]
    bits = np.frombuffer(weight.data, "<u2").reshape(weight.shape)[row, column]
    assert value == pytest.approx(float((np.uint32(bits) << 16).view(np.float32)), rel=1e-5)
    assert abs(value / scale - expected) < abs(value / scale - found)


def test_altered_kept_element_is_told_with_both_values(mini_build: Path, mini: Path, tmp_path: Path) -> None:
    name = "model.language_model.norm.weight"

    def change(tensors: Tensors) -> None:
        values = np.frombuffer(tensors[name].data, "<u2").copy()
        values[7] = 0x4040  # 3 in BF16
        tensors[name] = replace(tensors[name], data=values.tobytes())

    (judged,) = look(altered(mini_build, tmp_path / "copy", change), mini).diverging
    bits = np.frombuffer(read_tensors(mini)[name].data, "<u2")[7]
    value = float((np.uint32(bits) << 16).view(np.float32))
    assert judged.detail.endswith(f"the first is element 7 (base {value:.6g}, stored 3)")


def test_structure_lock_has_nothing_to_audit(call_validate: Command) -> None:
    outcome = call_validate("references/weighbridge/gemma-4-mini-FP8-dynamic.yaml", "--source", "mini")
    assert outcome.code == 2
    assert "holds no weights to audit" in outcome.err


WRONG_SCALES = {
    "zero": 0.0,
    "NaN": float("nan"),
    "infinite": float("inf"),
    "negative": -1.0,
    "subnormal": 1e-40,
    "huge": 3e38,
}


@pytest.mark.parametrize("recipe", ["fp8-dynamic", "w4a16", "nvfp4a16", "nvfp4-full-modelopt"])
@pytest.mark.parametrize("value", WRONG_SCALES)
@pytest.mark.filterwarnings("error")
def test_scale_that_means_nothing_is_named(
    built: Callable[..., Path], mini: Path, tmp_path: Path, recipe: str, value: str
) -> None:
    module = f"{EXPERTS}.6.gate_proj"

    def change(tensors: Tensors) -> None:
        local = next(
            local
            for local in ("weight_scale_2", "weight_global_scale", "weight_scale")
            if f"{module}.{local}" in tensors
        )
        scale = tensors[f"{module}.{local}"]
        raw = struct.pack("<f", WRONG_SCALES[value])
        raw = raw[2:] if scale.dtype == "BF16" else raw
        tensors[f"{module}.{local}"] = replace(scale, data=raw + scale.data[len(raw) :])

    found = look(altered(built(recipe), tmp_path / "copy", change), mini)
    assert diverging(found) == {module}
