"""The closed forms of every scheme are what compressed-tensors 0.19.0 really writes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.errors import StructureError
from weighbridge.formats.compressed_tensors import read_scheme
from weighbridge.formats.schemes import (
    PRESETS,
    QuantizationArgs,
    Scheme,
    SchemeMismatch,
    scale_shape,
    stored_tensors,
    to_config,
    weight_of,
)
from weighbridge.formats.tensors import Tensor

Stored = dict[str, Tensor]
Writer = Callable[..., Stored]

TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
DTYPES = {
    "torch.bfloat16": "BF16",
    "torch.float16": "F16",
    "torch.float32": "F32",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.uint8": "U8",
    "torch.int8": "I8",
    "torch.int32": "I32",
    "torch.int64": "I64",
}


@pytest.fixture(scope="module")
def written() -> Writer:
    """What compressed-tensors and llm-compressor store for a random weight; ValueError where they refuse it.

    Activations that need calibration get scales of one: here only names, dtypes and shapes count.
    """
    import torch
    from compressed_tensors.compressors import compress_module
    from llmcompressor.entrypoints.model_free.lifecycle import (
        calibrate_weight,
        initialize_quantized_linear,
        validate_weight_for_quantization,
    )

    def write(scheme: Any, weight: Tensor, *, device: str = "cpu") -> Stored:
        values = torch.empty(weight.shape, dtype=getattr(torch, TORCH_NAMES[weight.dtype]), device=device).normal_()
        validate_weight_for_quantization(values, scheme, "weight")
        module = initialize_quantized_linear(values, scheme, device)
        if device == "cpu":
            calibrate_weight(module)
            for name, parameter in module.named_parameters():
                if name.startswith(("input_", "output_")):
                    parameter.data = torch.ones_like(parameter.data)
        compress_module(module)
        return {
            name: Tensor(DTYPES[str(value.dtype)], tuple(value.shape)) for name, value in module.state_dict().items()
        }

    return write


def upstream_preset(name: str) -> Any:
    from compressed_tensors.quantization import preset_name_to_scheme

    return preset_name_to_scheme(name, ["Linear"])


def upstream_scheme(config: dict[str, Any]) -> Any:
    from compressed_tensors.quantization import QuantizationScheme

    with warnings.catch_warnings(action="ignore"):
        return QuantizationScheme.model_validate({**config, "targets": ["Linear"]})


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_that_of_compressed_tensors(name: str) -> None:
    dumped = upstream_preset(name).model_dump(mode="json")
    read = read_scheme(dumped, where="preset")
    assert read == PRESETS[name]
    # Neither counts in a comparison of effects, and both are written into config.json.
    assert (read.weights.scale_dtype, read.weights.observer) == (
        PRESETS[name].weights.scale_dtype,
        PRESETS[name].weights.observer,
    )


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_written_into_a_config_as_compressed_tensors_writes_it(name: str) -> None:
    ours = upstream_scheme(to_config(PRESETS[name])).model_dump(mode="json")
    assert ours == upstream_preset(name).model_dump(mode="json") | {"format": PRESETS[name].format}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_reads_back_from_its_config(name: str) -> None:
    assert read_scheme(to_config(PRESETS[name]), where="preset") == PRESETS[name]


# Widths and heights as models have them: multiples of 128, of 64, of 32, of 8, of nothing, and a single row.
SHAPES = ((64, 64), (256, 384), (704, 256), (256, 704), (130, 96), (72, 136), (33, 257), (1, 128))
WEIGHTS = [Tensor(dtype, shape) for dtype in TORCH_NAMES for shape in SHAPES]


def predicted(scheme: Scheme, weight: Tensor) -> Stored | None:
    """The closed form; None where it refuses."""
    try:
        return stored_tensors(scheme, weight)
    except SchemeMismatch:
        return None


def really(write: Writer, config: dict[str, Any], weight: Tensor) -> Stored | None:
    """What is really written; None where upstream refuses."""
    try:
        return write(upstream_scheme(config), weight)
    except (ValueError, NotImplementedError, RuntimeError, AssertionError):
        return None


@pytest.mark.parametrize("name", PRESETS)
def test_preset_stores_what_compressed_tensors_writes(name: str, written: Writer) -> None:
    ours = {str(weight): predicted(PRESETS[name], weight) for weight in WEIGHTS}
    config = upstream_preset(name).model_dump()
    theirs = {str(weight): really(written, config, weight) for weight in WEIGHTS}
    assert ours == theirs
    assert any(ours.values())


# compressed-tensors leaves the zero point of W4A16_ASYM unpacked on the meta device, unlike what it writes.
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "W4A16_ASYM"])
@pytest.mark.parametrize("shape", [(2816, 8192), (704, 2816), (2112, 2816), (262144, 2816)])
def test_preset_stores_what_compressed_tensors_writes_on_the_meta_device(
    name: str, shape: tuple[int, int], written: Writer
) -> None:
    weight = Tensor("BF16", shape)
    assert stored_tensors(PRESETS[name], weight) == written(upstream_preset(name), weight, device="meta")


def weights(num_bits: int, kind: str, **other: Any) -> dict[str, Any]:
    return {"num_bits": num_bits, "type": kind, **other}


TOKENS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
FP8_TOKENS = TOKENS | {"type": "float"}

# Schemes that a recipe may spell out, beyond the presets.
SPELLED_OUT: dict[str, dict[str, Any]] = {
    "W4 group 16": {"weights": weights(4, "int", group_size=16)},
    "W4 group 32": {"weights": weights(4, "int", group_size=32)},
    "W4 group 32 asymmetric": {"weights": weights(4, "int", group_size=32, symmetric=False)},
    "W4 group 64": {"weights": weights(4, "int", group_size=64)},
    "W4 channel": {"weights": weights(4, "int", strategy="channel")},
    "W4 channel asymmetric": {"weights": weights(4, "int", strategy="channel", symmetric=False)},
    "W4 channel by group size": {"weights": weights(4, "int", group_size=-1)},
    "W8 channel": {"weights": weights(8, "int", strategy="channel")},
    "W8 tensor": {"weights": weights(8, "int")},
    "W3 group 32": {"weights": weights(3, "int", group_size=32)},
    "W5 group 32 asymmetric": {"weights": weights(5, "int", group_size=32, symmetric=False)},
    "W2 channel": {"weights": weights(2, "int", strategy="channel")},
    "W4A8 integers": {"weights": weights(4, "int", group_size=32), "input_activations": TOKENS},
    "W4A8 floats": {"weights": weights(4, "int", group_size=32), "input_activations": FP8_TOKENS},
    "W8A8 asymmetric weights": {
        "weights": weights(8, "int", strategy="channel", symmetric=False),
        "input_activations": TOKENS,
    },
    "W8A8 static": {
        "weights": weights(8, "int", strategy="channel"),
        "input_activations": {"num_bits": 8, "type": "int", "strategy": "tensor"},
    },
    "W8A8 static asymmetric": {
        "weights": weights(8, "int", strategy="channel"),
        "input_activations": {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": False},
    },
    "FP8 tensor, dynamic": {"weights": weights(8, "float", strategy="tensor"), "input_activations": FP8_TOKENS},
    "FP8 weights alone": {"weights": weights(8, "float", strategy="channel")},
    "FP8 group 32": {"weights": weights(8, "float", group_size=32)},
    "FP8 block 64x32": {"weights": weights(8, "float", strategy="block", block_structure=[64, 32])},
    "NVFP4 without a global scale": {"weights": weights(4, "float", group_size=16)},
}


@pytest.mark.parametrize("config", SPELLED_OUT.values(), ids=SPELLED_OUT)
def test_spelled_out_scheme_stores_what_compressed_tensors_writes(config: dict[str, Any], written: Writer) -> None:
    scheme = read_scheme(config, where="group")
    bf16 = [Tensor("BF16", shape) for shape in SHAPES]
    ours = {str(weight): predicted(scheme, weight) for weight in bf16}
    theirs = {str(weight): really(written, config, weight) for weight in bf16}
    assert ours == theirs
    assert any(ours.values())


# Rare, and each with a rule of its own in compressed-tensors.
RARE: dict[str, dict[str, Any]] = {
    "zero points of floats": {"weights": weights(8, "float", strategy="channel", symmetric=False)},
    "zero point of a packed tensor": {"weights": weights(4, "int", strategy="tensor", symmetric=False)},
    "zero points of packed blocks": {
        "weights": weights(4, "int", strategy="block", block_structure=[16, 16], symmetric=False)
    },
    "integers under a global scale": {"weights": weights(4, "int", strategy="tensor_group", group_size=16)},
    "FP8 under a global scale": {"weights": weights(8, "float", strategy="tensor_group", group_size=16)},
}


@pytest.mark.parametrize("config", RARE.values(), ids=RARE)
def test_rare_scheme_stores_what_compressed_tensors_writes_or_is_refused(
    config: dict[str, Any], written: Writer
) -> None:
    weight = Tensor("BF16", (64, 96))
    ours = predicted(read_scheme(config, where="group"), weight)
    assert ours in (None, written(upstream_scheme(config), weight))


# compressed-tensors can neither infer a format for these nor write them.
IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "FP4 group 64": {"weights": weights(4, "float", group_size=64)},
    "FP4 channel": {"weights": weights(4, "float", strategy="channel")},
    "FP4 asymmetric": {"weights": weights(4, "float", strategy="tensor_group", group_size=16, symmetric=False)},
    "FP6": {"weights": weights(6, "float", strategy="channel")},
    "weights per token": {"weights": weights(8, "int", strategy="token", dynamic=True)},
}


@pytest.mark.parametrize("config", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_scheme_that_compressed_tensors_cannot_write_is_refused(config: dict[str, Any], written: Writer) -> None:
    weight = Tensor("BF16", (64, 128))
    assert really(written, config, weight) is None
    with pytest.raises((SchemeMismatch, StructureError)):
        stored_tensors(read_scheme(config, where="group"), weight)


# scheme, weight, why not
MISMATCHES: dict[str, tuple[str, Tensor, str]] = {
    "group 128, experts": ("W4A16", Tensor("BF16", (2816, 704)), "group size 128 does not divide width 704"),
    "group 128, dense mlp": ("W8A16", Tensor("BF16", (2816, 2112)), "group size 128 does not divide width 2112"),
    "NVFP4": ("NVFP4", Tensor("BF16", (72, 136)), "group size 16 does not divide width 136"),
    "MXFP4": ("MXFP4", Tensor("BF16", (8, 48)), "group size 32 does not divide width 48"),
    "a norm": ("FP8_DYNAMIC", Tensor("BF16", (2816,)), "a weight must have two axes, this one is BF16 [2816]"),
    "a scalar": ("FP8_DYNAMIC", Tensor("F32", ()), "a weight must have two axes, this one is F32 []"),
    "a convolution": ("FP8_BLOCK", Tensor("BF16", (8, 3, 16, 16)), "a weight must have two axes"),
}


@pytest.mark.parametrize(("name", "weight", "reason"), MISMATCHES.values(), ids=MISMATCHES)
def test_scheme_that_does_not_fit_a_weight_says_why(name: str, weight: Tensor, reason: str) -> None:
    with pytest.raises(SchemeMismatch) as caught:
        stored_tensors(PRESETS[name], weight)
    assert reason in str(caught.value)


def test_blocks_may_be_ragged() -> None:
    stored = stored_tensors(PRESETS["FP8_BLOCK"], Tensor("BF16", (704, 2112)))
    assert stored == {"weight": Tensor("F8_E4M3", (704, 2112)), "weight_scale": Tensor("BF16", (6, 17))}


@pytest.mark.parametrize(
    ("strategy", "shape"),
    [("tensor", (1,)), ("channel", (64, 1)), ("group", (64, 4)), ("tensor_group", (64, 4)), ("block", (4, 3))],
)
def test_scales_have_the_shape_of_their_strategy(strategy: str, shape: tuple[int, ...]) -> None:
    args = QuantizationArgs(8, "float", strategy, group_size=24, block_structure=(16, 32))
    assert scale_shape(args, 64, 96) == shape


@pytest.mark.parametrize("name", PRESETS)
def test_format_of_a_preset_is_that_which_compressed_tensors_infers(name: str) -> None:
    from compressed_tensors.compressors.format import infer_module_format
    from torch.nn import Linear

    assert PRESETS[name].format == infer_module_format(Linear, upstream_preset(name)).value


@pytest.mark.parametrize("config", SPELLED_OUT.values(), ids=SPELLED_OUT)
def test_format_of_a_spelled_out_scheme_is_that_which_compressed_tensors_infers(config: dict[str, Any]) -> None:
    from compressed_tensors.compressors.format import infer_module_format
    from torch.nn import Linear

    ours = read_scheme(config, where="group").format
    assert ours == infer_module_format(Linear, upstream_scheme(config)).value


def test_only_static_and_locally_dynamic_activations_need_calibration() -> None:
    assert {name for name, scheme in PRESETS.items() if scheme.needs_calibration} == {"FP8", "NVFP4"}


SCHEMES = {
    **PRESETS,
    **{name: read_scheme(config, where="group") for name, config in SPELLED_OUT.items()},
}
ROWS = st.integers(1, 300)
WIDTHS = st.integers(1, 24).map(lambda times: 32 * times)


@given(name=st.sampled_from(list(SCHEMES)), rows=ROWS, width=WIDTHS)
@settings(deadline=None)
def test_weight_is_recovered_from_what_is_stored_for_it(name: str, rows: int, width: int) -> None:
    scheme = SCHEMES[name]
    try:
        stored = stored_tensors(scheme, Tensor("BF16", (rows, width)))
    except SchemeMismatch:
        return
    assert weight_of(scheme, stored) == Tensor("BF16", (rows, width))


@given(name=st.sampled_from(list(SCHEMES)), rows=ROWS, width=st.integers(1, 300), dtype=st.sampled_from(["F16", "F32"]))
@settings(deadline=None)
def test_recovered_weight_would_be_stored_as_what_it_was_recovered_from(
    name: str, rows: int, width: int, dtype: str
) -> None:
    scheme = SCHEMES[name]
    try:
        stored = stored_tensors(scheme, Tensor(dtype, (rows, width)))
    except SchemeMismatch:
        return
    weight = weight_of(scheme, stored)
    assert weight is not None
    assert stored_tensors(scheme, weight) == stored


@pytest.mark.parametrize(
    "stored",
    [{}, {"weight_scale": Tensor("BF16", (4, 1))}, {"weight_packed": Tensor("I32", (4,))}],
    ids=["nothing", "scales alone", "codes of one axis"],
)
def test_no_weight_is_recovered_from_what_nothing_is_stored_as(stored: Stored) -> None:
    assert weight_of(PRESETS["W4A16"], stored) is None


@given(st.sampled_from(list(SCHEMES.values())), st.sampled_from([None, "torch.uint8", "torch.float8_e4m3fn"]))
@settings(deadline=None)
def test_schemes_that_are_equal_store_the_same(scheme: Scheme, scale_dtype: str | None) -> None:
    config = to_config(scheme)
    other = read_scheme({**config, "weights": {**config["weights"], "scale_dtype": scale_dtype}}, where="group")
    if other == scheme:
        weight = Tensor("BF16", (128, 384))
        assert (other.format, stored_tensors(other, weight)) == (scheme.format, stored_tensors(scheme, weight))


# scheme, how it is called in a report
TEXTS = {
    "FP8_DYNAMIC": "weights float8 per channel; input activations float8 per token, dynamic",
    "FP8_BLOCK": "weights float8 per block 128x128; input activations float8 per group 128, dynamic",
    "W4A16_ASYM": "weights int4 asymmetric per group 128",
    "NVFP4": "weights float4 per group 16 under a global scale; "
    "input activations float4 per group 16 under a global scale, locally dynamic",
}


@pytest.mark.parametrize(("name", "text"), TEXTS.items())
def test_scheme_is_called_by_what_it_does(name: str, text: str) -> None:
    assert str(PRESETS[name]) == text
