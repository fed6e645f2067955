"""Sources that are published quantized: decoded and quantized anew piece by piece, with the bytes of two steps.

The two steps are upstream's converters, which make a BF16 checkpoint, and a build from that. Where upstream has none,
the publisher's formula is written down in tests/published.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import weighbridge as wb
from tests import test_streaming as streaming
from tests.checkpoints import copy_checkpoint, edit_config, read_tensors
from tests.conftest import Command, Once
from tests.published import (
    LAYER,
    WAYS,
    Tensors,
    integers,
    write,
    write_floats,
    write_gpt_oss,
    write_gpt_oss_floats,
    write_large,
)
from weighbridge.auditing import decoding as audit_decoding
from weighbridge.errors import WeighbridgeError
from weighbridge.formats.codecs import Codec
from weighbridge.numbers import decoding

RECIPE = """\
name: again
description: A source that is published quantized, in another scheme.
base: {{model: org/published, revision: "{zeros}", licence: apache-2.0}}
method: {method}
{body}
"""
SCHEMES = ("FP8_DYNAMIC", "FP8_BLOCK", "W4A16", "NVFP4A16", "MXFP4")
BLOCKS = "fp8 blocks"
DERIVES = "derives exactly from the base, which its publisher had quantized"


def write_recipe(path: Path, scheme: str, *, ignore: tuple[str, ...] = ("re:.*mlp.gate$",)) -> Path:
    kept = ["lm_head", "re:.*embed.*", "re:.*norm.*", *ignore]
    groups = "fused_groups: [[q_proj, k_proj, v_proj], [gate_proj, up_proj], [w1, w3]]\n" if "NVFP4" in scheme else ""
    body = f"scheme: {scheme}\nignore: {kept}\n{groups}"
    path.write_text(RECIPE.format(zeros="0" * 40, method="model_free_ptq", body=body))
    return path


def write_conversion(path: Path, changes: str) -> Path:
    path.write_text(RECIPE.format(zeros="0" * 40, method="convert", body=f"convert: {changes}"))
    return path


@pytest.fixture
def published(once: Once) -> Callable[[str], tuple[Path, Path]]:
    """A source by the way in which it is stored, and the floats that upstream makes of it."""

    def made(way: str) -> tuple[Path, Path]:
        def make(directory: Path) -> None:
            write_floats(WAYS[way], write(WAYS[way], directory / "source"), directory / "floats")

        directory = once(f"published-{way.replace(' ', '-').replace(',', '')}", make)
        return directory / "source", directory / "floats"

    return made


# --- the same bytes as by two steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("way", WAYS)
def test_a_build_is_what_upstreams_floats_give_and_derives_exactly(
    way: str, scheme: str, published: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    source, floats = published(way)
    recipe = write_recipe(tmp_path / "recipe.yaml", scheme)
    report = wb.build(recipe, source, tmp_path / "build", audit=True, references=["none"])
    assert report.holds, report.verdict
    assert DERIVES in report.verdict
    assert wb.build(recipe, floats, tmp_path / "of-floats", references=["none"]).holds
    assert read_tensors(tmp_path / "build") == read_tensors(tmp_path / "of-floats")


@pytest.mark.parametrize("way", WAYS)
def test_a_conversion_makes_upstreams_floats_of_everything(
    way: str, published: Callable[[str], tuple[Path, Path]], tmp_path: Path, call_validate: Command
) -> None:
    source, floats = published(way)
    recipe = write_conversion(tmp_path / "recipe.yaml", "{dequantize: ['re:.*']}")
    report = wb.build(recipe, source, tmp_path / "build", references=["none"])
    assert report.holds, report.verdict
    assert read_tensors(tmp_path / "build") == read_tensors(floats)
    assert wb.open_checkpoint(tmp_path / "build").declaration is None
    outcome = call_validate(tmp_path / "build", "--source", source)
    assert outcome.code == 0, outcome.out + outcome.err


# --- gpt-oss: all experts of a layer in one tensor --------------------------------------------------------------------


def write_gpt_oss_recipe(path: Path, scheme: str) -> Path:
    return write_recipe(path, scheme, ignore=("re:.*router", "re:.*self_attn.*"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_experts_of_gpt_oss_are_what_transformers_decodes(scheme: str, tmp_path: Path, call_validate: Command) -> None:
    source = write_gpt_oss(tmp_path / "source")
    floats = write_gpt_oss_floats(source, tmp_path / "floats")
    recipe = write_gpt_oss_recipe(tmp_path / "recipe.yaml", scheme)
    report = wb.build(recipe, source, tmp_path / "build", audit=True, references=["none"])
    assert report.holds, report.verdict
    assert DERIVES in report.verdict
    assert wb.build(recipe, floats, tmp_path / "of-floats", audit=True, references=["none"]).holds
    assert read_tensors(tmp_path / "build") == read_tensors(tmp_path / "of-floats")
    outcome = call_validate(tmp_path / "build", "--evidence", "--source", source)
    assert outcome.code == 0, outcome.out + outcome.err


def test_experts_that_no_server_loads_are_warned_of(tmp_path: Path) -> None:
    source = write_gpt_oss(tmp_path / "source")
    report = wb.lint(
        wb.plan(write_gpt_oss_recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC"), source), references=["none"]
    )
    (said,) = [item for item in report.findings() if item.rule == "serve/experts-passed-over"]
    assert (said.severity, "passes over these names without a word" in said.message) == ("warning", True)


@pytest.mark.parametrize("convert", [False, True], ids=["kept", "made floats"])
def test_experts_of_gpt_oss_are_not_made_floats(convert: bool, tmp_path: Path) -> None:
    source = write_gpt_oss(tmp_path / "source")
    recipe = write_recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC", ignore=("re:.*experts.*",))
    if convert:
        recipe = write_conversion(tmp_path / "recipe.yaml", "{dequantize: ['re:.*']}")
    with pytest.raises(WeighbridgeError, match="from one transposed tensor alone"):
        wb.plan(recipe, source)


# --- the same bytes, however they are cut, and however often a build is killed ----------------------------------------


@pytest.mark.parametrize("way", ["awq", "gptq in activation order", "int4 with F16 scales and zero points", BLOCKS])
def test_bytes_do_not_depend_on_where_pieces_are_cut(
    way: str, published: Callable[[str], tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = published(way)
    recipe = write_recipe(tmp_path / "recipe.yaml", "NVFP4A16")
    assert wb.build(recipe, source, tmp_path / "whole", references=["none"]).holds
    monkeypatch.setattr("weighbridge.work.pieces.PIECE_BYTES", 8192)
    monkeypatch.setattr("weighbridge.machine.columns.BLOCK_BYTES", 512)
    monkeypatch.setattr("weighbridge.machine.columns.GAP_BYTES", 100)
    report = wb.build(recipe, source, tmp_path / "cut", audit=True, references=["none"])
    assert report.holds, report.verdict
    assert read_tensors(tmp_path / "cut") == read_tensors(tmp_path / "whole")


@pytest.mark.parametrize("height", [256, 1 << 20, 100])
def test_a_block_may_be_higher_than_a_piece(height: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a build nor an audit holds more at once because a publisher's config says so."""
    source = write(WAYS[BLOCKS], tmp_path / "source")
    _declare(source, weight_block_size=[height, 128])

    def taller(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("_scale_inv")]:
            rows, columns = tensors[name.removesuffix("_scale_inv")].shape
            tensors[name] = torch.rand(-(-rows // height), columns // 128) + 0.5

    damage(source, taller)
    recipe = write_recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC")
    assert wb.build(recipe, source, tmp_path / "whole", references=["none"]).holds
    monkeypatch.setattr("weighbridge.work.pieces.PIECE_BYTES", 8192)
    at_once: list[int] = []
    built, audited = decoding.decoded, audit_decoding._values

    def build(codec: Codec, stored: Any, first: int, count: int, shape: tuple[int, int]) -> Any:
        at_once.append(2 * count * shape[1])
        return built(codec, stored, first, count, shape)

    def audit(codec: Codec, codes: Any, rows: int, columns: int) -> Any:
        at_once.append(2 * rows * columns)
        return audited(codec, codes, rows, columns)

    monkeypatch.setattr(decoding, "decoded", build)
    monkeypatch.setattr(audit_decoding, "_values", audit)
    report = wb.build(recipe, source, tmp_path / "cut", audit=True, references=["none"])
    assert report.holds, report.verdict
    assert read_tensors(tmp_path / "cut") == read_tensors(tmp_path / "whole")
    assert max(at_once) <= 8192


def test_a_build_that_is_killed_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source = write_large(tmp_path / "source", experts=10)
    recipe = tmp_path / "recipe.yaml"
    groups = "fused_groups: [[gate_proj, up_proj]]"
    body = f"scheme: NVFP4A16\nignore: ['re:.*norm.*']\n{groups}"
    recipe.write_text(RECIPE.format(zeros="0" * 40, method="model_free_ptq", body=body))
    streaming.build(recipe, source, tmp_path / "whole", "--shard-size", "20MB")
    undisturbed = streaming.digests(tmp_path / "whole")
    streaming.kill_campaign(source, recipe, undisturbed, tmp_path, kills=2, seed=18)


# --- what is said of it, and checked by others ------------------------------------------------------------------------


@pytest.fixture
def built(once: Once) -> Path:
    """Directory with ``source``, ``recipe.yaml``, ``build``: experts in blocks of FP8 made NVFP4, attention floats."""

    def make(directory: Path) -> None:
        write(WAYS[BLOCKS], directory / "source")
        recipe = write_recipe(directory / "recipe.yaml", "NVFP4A16", ignore=("re:.*mlp.gate$", "re:.*self_attn.*"))
        report = wb.build(recipe, directory / "source", directory / "build", references=["none"])
        assert report.holds, report.verdict

    return once("source-codecs-built", make)


def test_the_plan_says_that_weights_are_rounded_twice(built: Path) -> None:
    plan = wb.plan(built / "recipe.yaml", built / "source")
    assert {part.action for part in plan.parts} == {"keep", "requantize", "dequantize"}
    (said,) = [item for item in wb.lint(plan, references=["none"]).findings() if item.rule == "source/quantized"]
    assert "is quantized already (fp8: float8 per block 128x128): 6 modules are rounded a second time" in said.message


def test_what_a_recipe_keeps_of_a_quantized_source_is_the_floats_that_upstream_makes(
    built: Path, published: Callable[[str], tuple[Path, Path]]
) -> None:
    made, floats = read_tensors(built / "build"), read_tensors(published(BLOCKS)[1])
    kept = [name for name in made if ".self_attn." in name]
    assert len(kept) == 4
    assert {name: made[name] for name in kept} == {name: floats[name] for name in kept}


def test_evidence_of_such_a_build_holds_and_it_is_built_again_with_the_same_bytes(
    built: Path, call_validate: Command
) -> None:
    outcome = call_validate(built / "build", "--evidence", "--source", built / "source")
    assert outcome.code == 0, outcome.out + outcome.err
    report, _ = wb.reproduce(built / "build", source=built / "source", references=["none"], elsewhere=True)
    assert report.holds, report.verdict


@pytest.mark.parametrize(("way", "tensor"), [(BLOCKS, "weight"), ("awq", "qweight"), ("gptq", "qweight")])
def test_a_change_of_one_code_of_the_source_is_seen_by_the_audit(
    way: str, tensor: str, published: Callable[[str], tuple[Path, Path]], tmp_path: Path, call_validate: Command
) -> None:
    source, _ = published(way)
    recipe = write_recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC")
    assert wb.build(recipe, source, tmp_path / "build", references=["none"]).holds
    module = f"{LAYER}.mlp.experts.1.down_proj"
    other = copy_checkpoint(source, tmp_path / "other")
    damage(other, lambda tensors: _flip(tensors[f"{module}.{tensor}"]))
    assert call_validate(tmp_path / "build", "--source", source, "--recipe", recipe).code == 0
    judged = call_validate(tmp_path / "build", "--source", other, "--recipe", recipe)
    assert judged.code == 1
    assert module in judged.out


def _flip(codes: torch.Tensor) -> None:
    codes.view(torch.uint8).reshape(-1)[5000] ^= 0x10


LOSSLESS: dict[str, tuple[str, str, int]] = {
    "MXFP4 in NVFP4, where exponents fit": ("compressed-tensors mxfp4 of narrow range", "NVFP4A16", 10),
    "MXFP4 in MXFP4": ("compressed-tensors mxfp4", "MXFP4", 10),
    "FP8 in INT4": (BLOCKS, "W4A16", 0),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_the_audit_counts_what_lost_nothing(
    name: str, published: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    way, scheme, count = LOSSLESS[name]
    report = wb.build(
        write_recipe(tmp_path / "recipe.yaml", scheme),
        published(way)[0],
        tmp_path / "build",
        audit=True,
        references=["none"],
    )
    facts = next(section.facts for section in report.sections if section.id == "audit")
    assert facts["lossless"] == f"{count} of 10 modules stand for the very values that the base's codes do"


def test_what_does_not_go_along_is_named(
    published: Callable[[str], tuple[Path, Path]], tmp_path: Path, call_validate: Command
) -> None:
    way = "modelopt fp8 with a KV cache"
    source, _ = published(way)
    recipe = write_recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC")
    plan = wb.plan(recipe, source)
    assert set(plan.dropped) == set(WAYS[way].dropped)
    notes = [item for item in wb.lint(plan, references=["none"]).findings() if item.rule == "source/dropped"]
    assert sum(item.count for item in notes) == len(plan.dropped)
    assert {"activations" in item.message or "KV cache" in item.message for item in notes} == {True}


# --- what is refused --------------------------------------------------------------------------------------------------

Q_PROJ = f"{LAYER}.self_attn.q_proj"


def damage(source: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})


def _set(local: str, value: float, *at: int) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensor = tensors[f"{Q_PROJ}.{local}"]
        tensor[at] = value

    return change


MEANINGLESS = "where only finite and positive values have a meaning"
DAMAGES: dict[str, tuple[str, Callable[[Tensors], object], str]] = {
    "a scale that is NaN": (BLOCKS, _set("weight_scale_inv", float("nan"), 0, 1), f"the scale is nan, {MEANINGLESS}"),
    "a scale that is zero": (BLOCKS, _set("weight_scale_inv", 0.0, 0), f"the scale is 0.0, {MEANINGLESS}"),
    "a scale that is negative": (BLOCKS, _set("weight_scale_inv", -1.0, 1, 0), f"the scale is -1.0, {MEANINGLESS}"),
    "a scale that is infinite": (
        "int4 of Kimi",
        _set("weight_scale", float("inf"), 3),
        f"the scale is inf, {MEANINGLESS}",
    ),
    "a code that is NaN": (
        BLOCKS,
        lambda tensors: tensors[f"{Q_PROJ}.weight"].view(torch.uint8)[3, 5].fill_(0xFF),
        "stand for NaN",
    ),
    "a global scale that is zero": ("compressed-tensors nvfp4", _set("weight_global_scale", 0.0, 0), MEANINGLESS),
    "an exponent that is NaN": ("compressed-tensors mxfp4", _set("weight_scale", 255, 1, 2), "the scale is nan"),
    "columns in groups that are not there": (
        "gptq in activation order",
        _set("g_idx", 9, 7),
        "names groups beyond the 2",
    ),
    "codes that are said to be of another shape": (
        "int4 of Kimi",
        _set("weight_shape", 250, 1),
        "weight_shape: says [256, 250], and the codes are those of [256, 256]",
    ),
    "a zero point of symmetric codes": (
        "gptq, symmetric",
        _set("qzeros", 0x77777767, 1, 3),
        "qzeros: holds zero points beside the middle of the codes",
    ),
    "scales of another shape": (
        BLOCKS,
        lambda tensors: tensors.update({f"{Q_PROJ}.weight_scale_inv": torch.ones(3, 2)}),
        "which is not [2, 2]",
    ),
    **{
        f"codes that are no matrix, {way}": (
            way,
            lambda tensors: tensors.update({f"{Q_PROJ}.weight": tensors[f"{Q_PROJ}.weight"].reshape(-1)[0].clone()}),
            "and no matrix",
        )
        for way in (BLOCKS, "compressed-tensors fp8 rows", "modelopt fp8")
    },
    "zero points that lie the other way round": (
        "int4 with F16 scales and zero points",
        lambda tensors: tensors.update(
            {f"{Q_PROJ}.weight_zero_point": tensors[f"{Q_PROJ}.weight_zero_point"].T.contiguous()}
        ),
        "weight_zero_point is",
    ),
    "no scales": (BLOCKS, lambda tensors: tensors.pop(f"{Q_PROJ}.weight_scale_inv"), "it has no weight_scale"),
    "codes that nothing declares": (
        BLOCKS,
        lambda tensors: tensors.update(
            {"model.extra.weight": tensors[f"{Q_PROJ}.weight"].reshape(1, 256, 256).clone()}
        ),
        "model.extra.weight",
    ),
    "scales of a KV cache that nothing declares": (
        BLOCKS,
        lambda tensors: tensors.update({f"{LAYER}.self_attn.k_scale": torch.ones(1)}),
        "contradicts itself",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_source_is_refused_in_one_sentence(
    name: str, published: Callable[[str], tuple[Path, Path]], tmp_path: Path, call_build: Command
) -> None:
    way, change, sentence = DAMAGES[name]
    source = copy_checkpoint(published(way)[0], tmp_path / "damaged")
    damage(source, change)
    recipe = write_recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC")
    refused = call_build(recipe, "--model", source, "--output", tmp_path / "build")
    assert refused.code == 2
    assert sentence in refused.err
    assert len(refused.err.splitlines()) == 1
    assert not (tmp_path / "build").exists()


def test_a_scale_of_zero_may_stand_over_zeros(published: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    source = copy_checkpoint(published(BLOCKS)[0], tmp_path / "silent")

    def silence(tensors: Tensors) -> None:
        tensors[f"{Q_PROJ}.weight"].view(torch.uint8)[:128, :128] = 0x80
        tensors[f"{Q_PROJ}.weight_scale_inv"][0, 0] = 0

    damage(source, silence)
    recipe = write_recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC")
    report = wb.build(recipe, source, tmp_path / "build", audit=True, references=["none"])
    assert report.holds, report.verdict


def _declare(directory: Path, **changes: object) -> None:
    edit_config(directory, lambda config: config["quantization_config"].update(changes))


REFUSED: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...], str]] = {
    "a method that is not read": (
        BLOCKS,
        lambda source: _declare(source, quant_method="hqq"),
        (),
        "is already quantized, and cannot be the source of another build",
    ),
    "llm-compressor's own engine": (BLOCKS, lambda source: None, ("--engine", "upstream"), "starts from floats"),
    "GPTQ of 2 bits": ("gptq", lambda source: _declare(source, bits=2), (), "codes of 2 bits"),
    "four bits that are declared eight": (
        "int4 of Kimi",
        lambda source: _declare(source, config_groups=integers(16, bits=8)["config_groups"]),
        (),
        "weight_shape: says [256, 384], and the codes are those of [256, 192]",
    ),
    "GPTQ whose sym is not so": (
        "gptq",
        lambda source: _declare(source, sym=True),
        (),
        "beside the middle of the codes",
    ),
    "AWQ whose zero_point is not so": (
        "awq",
        lambda source: _declare(source, zero_point=False),
        (),
        "qzeros: holds zero points beside the middle of the codes",
    ),
    "columns in groups that nothing declares": (
        "gptq in activation order",
        lambda source: _declare(source, desc_act=False),
        (),
        "g_idx: groups columns that do not lie side by side",
    ),
    "GPTQ without desc_act": (
        "gptq",
        lambda source: _declare(source, desc_act=None),
        (),
        "group_size, sym and desc_act",
    ),
    "a desc_act that is no truth value": (
        "gptq",
        lambda source: _declare(source, desc_act="false"),
        (),
        "desc_act cannot be false",
    ),
    "GPTQ in two formats": (
        "gptq",
        lambda source: _declare(source, format="gptq_v2", checkpoint_format="gptq"),
        (),
        "whose format is not its checkpoint_format",
    ),
    "GPTQ whose format servers do not look for": (
        "gptq",
        lambda source: _declare(source, format="gptq_v2"),
        (),
        "whose format is not its checkpoint_format",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_decoded_is_refused_in_one_sentence(
    name: str, published: Callable[[str], tuple[Path, Path]], tmp_path: Path, call_build: Command
) -> None:
    way, change, options, sentence = REFUSED[name]
    source = copy_checkpoint(published(way)[0], tmp_path / "changed")
    change(source)
    recipe = write_recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC")
    refused = call_build(recipe, "--model", source, "--output", tmp_path / "build", *options)
    assert refused.code == 2
    assert sentence in refused.err
    assert len(refused.err.splitlines()) == 1
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize("way", [BLOCKS, "awq", "gptq", "compressed-tensors nvfp4"])
def test_one_element_of_a_copy_of_floats_that_is_another_is_found_where_it_lies(
    way: str, published: Callable[[str], tuple[Path, Path]], tmp_path: Path, call_validate: Command
) -> None:
    source, floats = published(way)
    copy = copy_checkpoint(floats, tmp_path / "copy")
    whole = call_validate(copy, "--source", source, "--format", "json")
    assert whole.report["metrics"]["elements_checked_count"] == sum(
        tensor.numel() for tensor in load_file(copy / "model.safetensors").values()
    )
    damage(copy, lambda tensors: tensors[f"{Q_PROJ}.weight"].view(torch.int16)[200, 77].add_(1))
    judged = call_validate(copy, "--source", source)
    assert judged.code == 1, judged.err
    assert f"{Q_PROJ}.weight" in judged.out
    assert "1 of 65,536" in " ".join(judged.out.split())


CONTRADICTIONS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "zero points": ("gptq", lambda source: _declare(source, sym=True), "qzeros: holds zero points beside the middle"),
    "zero points of AWQ": ("awq", lambda source: _declare(source, zero_point=False), "qzeros: holds zero points"),
    "order": (
        "gptq in activation order",
        lambda source: _declare(source, desc_act=False),
        "g_idx: groups columns that do not lie side by side",
    ),
    "zero points the other way round": (
        "int4 with F16 scales and zero points",
        lambda source: damage(
            source,
            lambda tensors: tensors.update(
                {f"{Q_PROJ}.weight_zero_point": tensors[f"{Q_PROJ}.weight_zero_point"].T.contiguous()}
            ),
        ),
        "weight_zero_point is",
    ),
    "shape": (
        "int4 of Kimi",
        lambda source: damage(source, _set("weight_shape", 250, 1)),
        "weight_shape: says another shape",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_an_audit_does_not_take_one_side_of_a_source_that_contradicts_itself(
    name: str, published: Callable[[str], tuple[Path, Path]], tmp_path: Path, call_validate: Command
) -> None:
    way, change, sentence = CONTRADICTIONS[name]
    source = copy_checkpoint(published(way)[0], tmp_path / "changed")
    recipe = write_recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC")
    assert wb.build(recipe, source, tmp_path / "build", references=["none"]).holds
    change(source)
    judged = call_validate(tmp_path / "build", "--source", source)
    assert judged.code == 2
    assert sentence in judged.err
    assert len(judged.err.splitlines()) == 1


def test_codes_that_lie_in_one_tensor_with_others_are_not_calibrated(tmp_path: Path) -> None:
    write_gpt_oss(tmp_path / "source")
    recipe = write_recipe(tmp_path / "recipe.yaml", "FP8_DYNAMIC")
    recipe.write_text(recipe.read_text().replace("model_free_ptq", "oneshot"))
    with pytest.raises(WeighbridgeError, match="codes that calibration cannot read as a module's own"):
        wb.plan(recipe, tmp_path / "source")


def test_codes_of_a_method_that_is_not_written_do_not_stay(
    published: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    recipe = write_conversion(tmp_path / "recipe.yaml", "{dequantize: ['re:.*self_attn.*']}")
    with pytest.raises(WeighbridgeError, match="is stored by the method fp8"):
        wb.plan(recipe, published(BLOCKS)[0])
