"""Our own dequantized forward: bit by bit what compressed-tensors computes, and nothing of a checkpoint dropped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints import RawTensor, Tensors, copy_checkpoint, edit_config, edit_tensors
from tests.conftest import ROOT, Once, run_script
from tests.test_oneshot import made
from tests.toy_models import write_llama, write_mixtral, write_qwen3_moe
from weighbridge.checkpoint.model import open_directory
from weighbridge.engines.oneshot.load import load_model
from weighbridge.engines.quiet import quieted
from weighbridge.errors import StructureError
from weighbridge.extras.quality.activations import Activations, check_known, fake_quantized
from weighbridge.extras.quality.forward import Forward, open_forward, open_partly_restored
from weighbridge.extras.quality.weights import activations_of, read_weight, weights_of
from weighbridge.formats.schemes import PRESETS, QuantizationArgs, args_to_config
from weighbridge.work.reading import reader_of

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = """\
name: dense
description: a recipe for a small dense model
base: {{model: meta-llama/Llama-3.1-8B-Instruct, licence: llama3.1}}
method: model_free_ptq
{scheme}
ignore: [lm_head, "re:.*embed.*"]
"""
TOKENS = np.random.default_rng(0).integers(3, 250, (1, 48))
EXPERT = "model.language_model.layers.2.experts.5"


def log_probabilities(model: Any) -> Any:
    """What a model of transformers says of `TOKENS`."""
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=torch.from_numpy(TOKENS)).logits.float(), -1).numpy()


def forward(directory: Path, **options: Any) -> Forward:
    return open_forward(open_directory(directory), **options)


# --- the same numbers as others


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("write", [write_llama, write_qwen3_moe, write_mixtral])
def test_unquantized_model_is_transformers_own(write: Callable[[Path], None], dtype: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write(tmp_path)
    upstream = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=getattr(torch, dtype), attn_implementation="sdpa", experts_implementation="eager"
    )
    assert np.array_equal(forward(tmp_path, dtype=dtype).log_probabilities(TOKENS), log_probabilities(upstream))


W4 = "{{num_bits: 4, type: int, symmetric: {}, strategy: group, group_size: 32}}"
DENSE = {
    **{name: f"scheme: {name}" for name in ("FP8_DYNAMIC", "W8A8", "NVFP4A16", "MXFP4")},
    "W4A16": f"config_groups: {{group_0: {{weights: {W4.format('true')}}}}}",
    "W4A16_ASYM": f"config_groups: {{group_0: {{weights: {W4.format('false')}}}}}",
}


OPTIONS = {"W4A16_ASYM": ("--engine", "upstream")}


@pytest.mark.parametrize("scheme", DENSE)
def test_dense_build_is_what_compressed_tensors_runs_in_plain_transformers(scheme: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = tmp_path / "source"
    source.mkdir()
    write_llama(source)
    build = tmp_path / "build"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(scheme=DENSE[scheme]))
    outcome = run_script("build.py", recipe, "--model", source, "--output", build, *OPTIONS.get(scheme, ()))
    assert outcome.code == 0, outcome.err + outcome.out
    with quieted():
        upstream = AutoModelForCausalLM.from_pretrained(build, dtype=torch.bfloat16)
    assert np.array_equal(forward(build, dtype="bfloat16").log_probabilities(TOKENS), log_probabilities(upstream))


def in_llm_compressor(build: Path, source: Path, patch: pytest.MonkeyPatch) -> Any:
    """A build of Gemma 4 in llm-compressor's own experts, its weights dequantized and inputs quantized by upstream."""
    from compressed_tensors.entrypoints.convert import CompressedTensorsDequantizer
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config
    from compressed_tensors.quantization.lifecycle import forward as lifecycle
    from safetensors.torch import load_file

    scales = lifecycle.compute_dynamic_scales_and_zp

    def by_row(value: Any, **others: Any) -> Any:
        """Upstream takes one scale for all rows of an expert's inputs, which have no axis of their own for a batch."""
        return (
            tuple(part[0] for part in scales(value=value[None], **others))
            if value.ndim == 2
            else scales(value, **others)
        )

    patch.setattr(lifecycle, "compute_dynamic_scales_and_zp", by_row)
    with quieted():
        model = load_model(source, device=None, where="source")
        declared = json.loads((build / "config.json").read_text())["quantization_config"]
        apply_quantization_config(model, QuantizationConfig.model_validate(declared))
    tensors = {name: tensor for shard in build.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    dequantizer = CompressedTensorsDequantizer(str(build))
    for name, module in model.named_modules():
        if getattr(module, "quantization_scheme", None) is not None:
            own = {key: tensor for key, tensor in tensors.items() if key.rpartition(".")[0] == name}
            module.weight.data = dequantizer.process(dict(own))[f"{name}.weight"]
            for key, tensor in own.items():
                if key.rpartition(".")[2].startswith("input_"):
                    getattr(module, key.rpartition(".")[2]).data = tensor
            module.quantization_status = QuantizationStatus.COMPRESSED
    return model


def test_experts_are_what_llm_compressors_own_give(
    mini: Path, mini_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = log_probabilities(in_llm_compressor(mini_build, mini, monkeypatch))
    assert np.array_equal(forward(mini_build, dtype="bfloat16").log_probabilities(TOKENS), upstream)


@pytest.mark.campaign
@pytest.mark.parametrize("recipe", ["nvfp4a16", "w4a16", "mxfp4", "nvfp4", "w4a16-gptq"])
def test_experts_of_every_scheme_are_what_llm_compressors_own_give(
    recipe: str, once: Once, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = made(once, recipe) / "build"
    upstream = log_probabilities(in_llm_compressor(build, mini, monkeypatch))
    assert np.array_equal(forward(build, dtype="bfloat16").log_probabilities(TOKENS), upstream)


@pytest.mark.campaign
def test_quantized_kv_cache_is_noted_and_changes_nothing(once: Once, mini_build: Path) -> None:
    cached = forward(made(once, "fp8-dynamic-kv8") / "build")
    assert any("KV cache" in note for note in cached.notes)
    assert np.array_equal(cached.log_probabilities(TOKENS), forward(mini_build).log_probabilities(TOKENS))


CONVERSION = """\
name: other-format
description: another format, or experts otherwise, and nothing else changed
base: {{model: org/name, licence: apache-2.0}}
method: convert
format: {form}
convert: {{experts: {experts}}}
"""


def converted(build: Path, scratch: Path, *, form: str, experts: str) -> Path:
    """A build stored otherwise."""
    recipe = scratch / "recipe.yaml"
    recipe.write_text(CONVERSION.format(form=form, experts=experts))
    output = scratch / "converted"
    outcome = run_script("build.py", recipe, "--model", build, "--output", output, "--reference", "none")
    assert outcome.code == 0, outcome.err + outcome.out
    return output


@pytest.mark.campaign
def test_modelopts_format_means_what_compressed_tensors_does(once: Once, tmp_path: Path) -> None:
    """Up to reciprocals: a global scale and its reciprocal's reciprocal differ by one unit in the last place."""
    build = made(once, "nvfp4") / "build"
    other_format = converted(build, tmp_path, form="modelopt", experts="as-stored")
    sides = open_directory(build), open_directory(other_format)
    one, other = (weights_of(checkpoint, reader_of(checkpoint)) for checkpoint in sides)
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert np.allclose(read_weight(weight), read_weight(other[name]), rtol=2.0**-21, atol=0)
        inputs = activations_of(weight), activations_of(other[name])
        if inputs[0] is not None or inputs[1] is not None:
            scales = [how.scale if how is not None else None for how in inputs]
            assert scales[1] == pytest.approx(scales[0], rel=2.0**-22)


INPUTS = {
    **{name: scheme.input_activations for name, scheme in PRESETS.items() if scheme.input_activations is not None},
    "FP8 per tensor, dynamic": QuantizationArgs(8, "float", "tensor", dynamic=True),
}


@pytest.mark.parametrize("name", INPUTS)
@given(
    seed=st.integers(0, 1 << 32),
    exponent=st.integers(-20, 20),
    scale=st.floats(2.0**-10, 2.0**10, width=32),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_inputs_are_quantized_as_compressed_tensors_does(
    name: str, seed: int, exponent: int, scale: float, dtype: torch.dtype
) -> None:
    from compressed_tensors.quantization import QuantizationArgs as UpstreamArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    args = INPUTS[name]
    values = (torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent).to(dtype)
    values[0, 0] = 0
    how = Activations(args, None if args.dynamic is True else scale)
    upstream = UpstreamArgs.model_validate(args_to_config(args))
    shared = torch.tensor([scale]) if args.dynamic == "local" else None
    if args.dynamic is False:
        scales, zeros = torch.tensor([scale]).to(dtype), None
    else:
        scales, zeros = compute_dynamic_scales_and_zp(values, upstream, torch.nn.Module(), global_scale=shared)
    expected = fake_quantize(values, scales, zeros, upstream, global_scale=shared)
    assert torch.equal(fake_quantized(values, how), expected.to(dtype))


@pytest.mark.parametrize(
    "args",
    [
        QuantizationArgs(4, "int", "group", group_size=32, dynamic=True),
        QuantizationArgs(8, "float", "channel", dynamic=True),
        QuantizationArgs(8, "int", "token", symmetric=False, dynamic=True),
    ],
    ids=str,
)
def test_inputs_of_an_unknown_kind_are_refused(args: QuantizationArgs) -> None:
    with pytest.raises(StructureError, match="are not known here"):
        check_known(args, where="a")


def test_last_group_may_be_a_part_of_one() -> None:
    how = Activations(PRESETS["FP8_BLOCK"].input_activations or pytest.fail("no inputs"))
    values = torch.randn(3, 192, generator=torch.Generator().manual_seed(0))
    parts = [fake_quantized(values[:, :128], how), fake_quantized(values[:, 128:], how)]
    assert torch.equal(fake_quantized(values, how), torch.cat(parts, 1))


# --- experts one by one or fused, and weights restored


def split(tensors: Tensors) -> None:
    """Store experts one by one, as transformers' fused tensors have them."""
    for name in [name for name, tensor in tensors.items() if len(tensor.shape) == 3 and ".experts." in name]:
        whole = tensors.pop(name)
        experts, rows, columns = whole.shape
        prefix, local = name.rsplit(".", 1)
        members = ("gate_proj", "up_proj") if local == "gate_up_proj" else ("down_proj",)
        size = len(whole.data) // experts // len(members)
        for part in range(experts * len(members)):
            expert, member = divmod(part, len(members))
            data = whole.data[part * size : (part + 1) * size]
            own = RawTensor(whole.dtype, (rows // len(members), columns), data)
            tensors[f"{prefix}.{expert}.{members[member]}.weight"] = own


def test_experts_may_be_stored_one_by_one_or_fused(mini: Path, tmp_path: Path) -> None:
    one_by_one = copy_checkpoint(mini, tmp_path / "split")
    edit_tensors(one_by_one, split)
    texts = forward(mini).log_probabilities(TOKENS), forward(one_by_one).log_probabilities(TOKENS)
    assert np.array_equal(*texts)


def test_quantized_experts_may_be_fused_too(mini_build: Path, tmp_path: Path) -> None:
    fused = converted(mini_build, tmp_path, form="compressed-tensors", experts="fused")
    assert any(len(tensor.shape) == 3 for tensor in open_directory(fused).structure.values())
    assert np.array_equal(forward(fused).log_probabilities(TOKENS), forward(mini_build).log_probabilities(TOKENS))


def test_restoring_every_module_gives_the_source(mini: Path, mini_build: Path) -> None:
    restored = open_partly_restored(open_directory(mini_build), open_directory(mini), lambda _: True)
    assert np.array_equal(restored.log_probabilities(TOKENS), forward(mini).log_probabilities(TOKENS))
    assert restored.bits_a_weight == 16


def test_several_texts_are_those_texts_one_by_one(mini: Path) -> None:
    model = forward(mini)
    both = np.concatenate([TOKENS, TOKENS[:, ::-1]])
    together = model.log_probabilities(both)
    assert together.shape == (2, TOKENS.shape[1], model.vocabulary)
    assert together.dtype == np.float32
    for row, found in zip(both, together, strict=True):
        assert np.allclose(model.log_probabilities(row), found, atol=1e-3)


# --- nothing is dropped


def without(*names: str) -> Callable[[Tensors], object]:
    return lambda tensors: [tensors.pop(name) for name in names]


def added(name: str, like: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensors[like]})


def with_nan_scale(name: str) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        scale = tensors[name]
        tensors[name] = RawTensor(scale.dtype, scale.shape, b"\xc0\x7f" + scale.data[2:])

    return change


LAYER = "model.language_model.layers.2"
DAMAGE: Mapping[str, tuple[Callable[[Tensors], object], str]] = {
    "an expert's weight is missing": (
        without(f"{EXPERT}.up_proj.weight"),
        "up_proj.weight its scales are there, but no weight",
    ),
    "an expert's scale is missing": (without(f"{EXPERT}.up_proj.weight_scale"), "weight_scale"),
    "a whole expert is missing": (
        without(
            *(
                f"{EXPERT}.{part}_proj.{local}"
                for part in ("gate", "up", "down")
                for local in ("weight", "weight_scale")
            )
        ),
        f"lacks {EXPERT.replace('language_model.', '')}",
    ),
    "a scale of attention is missing": (without(f"{LAYER}.self_attn.q_proj.weight_scale"), "weight_scale"),
    "a buffer is missing": (without(f"{LAYER}.layer_scalar"), r"lacks model\.layers\.2\.layer_scalar"),
    "a norm is missing": (without(f"{LAYER}.pre_feedforward_layernorm_2.weight"), "lacks .*layernorm_2"),
    "an expert too many": (
        lambda tensors: [
            tensors.update({f"{LAYER}.experts.8.{part}_proj.{local}": tensors[f"{EXPERT}.{part}_proj.{local}"]})
            for part in ("gate", "up", "down")
            for local in ("weight", "weight_scale")
        ],
        "experts.8.* has no place",
    ),
    "a tensor that nothing knows": (added(f"{LAYER}.surprise", f"{LAYER}.layer_scalar"), "surprise .* has no place"),
    "a scale that is NaN": (with_nan_scale(f"{EXPERT}.up_proj.weight_scale"), "up_proj.weight holds NaN"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_an_error_that_names_it(damage: str, mini_build: Path, tmp_path: Path) -> None:
    change, named = DAMAGE[damage]
    damaged = copy_checkpoint(mini_build, tmp_path / "damaged")
    edit_tensors(damaged, change)
    with pytest.raises(StructureError, match=named):
        forward(damaged)


def test_stored_head_that_the_config_ties_is_noted(mini_build: Path, tmp_path: Path) -> None:
    stored = copy_checkpoint(mini_build, tmp_path / "stored")
    edit_tensors(stored, added("lm_head.weight", "model.language_model.embed_tokens.weight"))
    assert any("stored head" in note for note in forward(stored).notes)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config: config.update(model_type="nothing"), "no text model"),
        (lambda config: config["text_config"].update(num_hidden_layers=10**9), "says 1000000000 layers"),
        (lambda config: config["text_config"].update(num_hidden_layers=7), "transformers makes no text model"),
        (lambda config: config["text_config"].update(hidden_size=512), "its config asks for"),
        (lambda config: config["quantization_config"].update(quant_method="hqq"), "quantized by hqq"),
    ],
    ids=["architecture", "a billion layers", "a layer too many", "another width", "another method"],
)
def test_config_that_cannot_be_is_an_error(
    change: Callable[[dict[str, Any]], object], named: str, mini_build: Path, tmp_path: Path
) -> None:
    damaged = copy_checkpoint(mini_build, tmp_path / "damaged")
    edit_config(damaged, change)
    with pytest.raises(StructureError, match=named):
        forward(damaged)


def test_config_whose_model_cannot_be_run_is_an_error(mini_build: Path, tmp_path: Path) -> None:
    damaged = copy_checkpoint(mini_build, tmp_path / "damaged")
    edit_config(damaged, lambda config: config["text_config"].update(top_k_experts=99))
    with pytest.raises(StructureError, match="cannot run the model of its config"):
        forward(damaged).log_probabilities([5, 6])


def test_token_that_there_is_not_is_refused(mini_build: Path) -> None:
    with pytest.raises(StructureError, match="asked for the token 512"):
        forward(mini_build).log_probabilities([5, 512])


def test_limits_of_recipes_are_read_without_numpy_or_torch() -> None:
    script = "import sys, weighbridge.recipe.quality; print(sorted({'numpy', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
