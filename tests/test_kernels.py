"""The kernels write, bit for bit, what llm-compressor's own data-free path writes on a CPU.

The oracle is ``ModelFreePtqConverter`` itself, given one module and asked for its tensors.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from llmcompressor.entrypoints.model_free.converter import ModelFreePtqConverter

from tests.kernel_agreement import KINDS, OBSERVED, SCHEMES, disagreements, hard_weight
from weighbridge.formats.schemes import PRESETS, QuantizationArgs, Scheme, SchemeMismatch, stored_tensors, to_config
from weighbridge.formats.tensors import Tensor
from weighbridge.numbers import (
    Kernels,
    NonFiniteWeight,
    RangeTooLarge,
    SchemeNotCovered,
    encoding_of,
    load_kernels,
    ranges,
)
from weighbridge.numbers.compiled import CompiledKernels
from weighbridge.numbers.portable import PortableKernels

Array = np.ndarray[Any, Any]

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
KERNELS: dict[str, Kernels] = {"compiled": CompiledKernels(), "portable": PortableKernels("cpu")}
WEIGHT_SCHEMES = {scheme.weights: name for name, scheme in SCHEMES.items()}
"""One scheme for each way to quantize weights: what a scheme says of activations does not count."""
GATE, UP = "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"

every_implementation = pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS.keys())
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_scheme = pytest.mark.parametrize("name", WEIGHT_SCHEMES.values())


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """These weights are small: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def upstream(weights: dict[str, Array], dtype: str, scheme: Scheme) -> dict[str, dict[str, bytes]]:
    """What upstream writes for modules of these names: the bytes of each tensor, by local name."""
    config = QuantizationConfig.model_validate(
        {"config_groups": {"group_0": to_config(scheme) | {"targets": ["Linear"]}}}
    )
    tensors = {
        f"{module}.weight": torch.from_numpy(weight.copy()).view(DTYPES[dtype]) for module, weight in weights.items()
    }
    written = ModelFreePtqConverter(config).process(tensors)
    return {
        module: {
            name.removeprefix(f"{module}."): bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
            for name, tensor in written.items()
            if name.startswith(module) and not name.endswith(("input_scale", "input_global_scale", "weight_shape"))
        }
        for module in weights
    }


def quantized(
    kernels: Kernels, weight: Array, dtype: str, scheme: Scheme, amax: float | None = None
) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in kernels.quantize(weight, dtype, scheme, amax=amax).items()}


def by_all(weight: Array, dtype: str, scheme: Scheme) -> dict[str, dict[str, bytes]]:
    return {title: quantized(kernels, weight, dtype, scheme) for title, kernels in KERNELS.items()}


def observed(preset: str, observer: str, **arguments: Any) -> Scheme:
    weights = replace(PRESETS[preset].weights, observer=observer, observer_kwargs=arguments)
    return replace(PRESETS[preset], weights=weights)


def signed_by_definition(weight: Array, dtype: str, scheme: Scheme) -> dict[str, bytes]:
    """What docs/explanation/formats.md defines, group by group and step by step, by torch's own arithmetic."""
    args, target = scheme.weights, DTYPES[dtype]
    smallest = -(2 ** (args.num_bits - 1))
    search = encoding_of(scheme).search
    values = torch.from_numpy(weight.copy()).view(target)
    scales, codes = [], []
    for group in values.reshape(-1, args.group_size or 0):
        extreme = group.max() if group.max() > -group.min() else group.min()
        ranges = [extreme] if search is None else [extreme * search.expand * p for p in map(search.share, range(36))]
        best = None
        for reach in ranges:
            scale = reach / smallest
            scale = torch.full_like(scale, torch.finfo(target).eps) if scale == 0 else scale
            code = (group / scale).clamp(smallest, -smallest - 1).round()
            norm = 2.4 if search is None else search.norm
            error = ((code * scale).to(target) - group).abs().pow(norm).unsqueeze(0).sum(dim=(0, -1))
            if best is None or error < best[0]:
                best = (error, scale, code)
        assert best is not None
        scales.append(best[1])
        codes.append(best[2])
    offset = torch.stack(codes).reshape(weight.shape).to(torch.int64) - smallest
    each = 32 // args.num_bits
    words = (offset.reshape(len(weight), -1, each) << torch.arange(0, 32, args.num_bits)).sum(-1)
    return {
        "weight_packed": words.numpy().astype(np.uint32).tobytes(),
        "weight_scale": bytes(torch.stack(scales).view(torch.uint8).numpy()),
    }


def applicable(scheme: Scheme, columns: int) -> bool:
    return scheme.weights.group_size is None or columns % scheme.weights.group_size == 0


def values_of(weight: Array, dtype: str) -> Array:
    return torch.from_numpy(weight.copy()).view(DTYPES[dtype]).float().numpy()


def within_upstreams_reach(weight: Array, dtype: str, scheme: Scheme) -> Array:
    """Zeros for what upstream's microscaling schemes overflow on, and zero points and wider ranges; there are tests."""
    encoding = encoding_of(scheme)
    if encoding.scale == "E8M0":
        limit = 1.75 * (2.0**15 if dtype == "F16" else 2.0**127)
    elif encoding.zero_points or encoding.search is not None:
        limit = 65504 / 2.02 if dtype == "F16" else 2.0**126
    else:
        return weight
    if encoding.search is not None:
        limit /= 1.01 * encoding.search.expand  # what is multiplied is rounded, upwards too
    return np.where(np.abs(values_of(weight, dtype)) >= limit, np.zeros_like(weight), weight)


HARD = [
    (name, kind, columns)
    for name in WEIGHT_SCHEMES.values()
    for kind in KINDS
    for columns in (
        (128, 192, 320, 704, 2112) if kind == "outliers" else (192,) if applicable(SCHEMES[name], 192) else (128,)
    )
    if applicable(SCHEMES[name], columns)
]


@every_dtype
@pytest.mark.parametrize(("name", "kind", "columns"), HARD)
def test_a_hard_weight_becomes_what_upstream_makes_of_it(name: str, kind: str, columns: int, dtype: str) -> None:
    scheme = SCHEMES[name]
    rows = 130 if scheme.weights.strategy == "block" else 30
    weight = within_upstreams_reach(hard_weight(kind, dtype, rows, columns), dtype, scheme)
    assert by_all(weight, dtype, scheme) == dict.fromkeys(KERNELS, upstream({GATE: weight}, dtype, scheme)[GATE])


def every_kind(dtype: str, scheme: Scheme, rows: int, columns: int) -> Array:
    """A weight with rows of every kind, of those that upstream does not overflow on."""
    parts = [hard_weight(kind, dtype, rows, columns) for kind in KINDS]
    return within_upstreams_reach(np.concatenate(parts), dtype, scheme)


UPSTREAMS = {name: scheme for name, scheme in OBSERVED.items() if not encoding_of(scheme).signed}


@every_dtype
@pytest.mark.parametrize("name", UPSTREAMS)
def test_ranges_are_searched_for_as_upstream_does(name: str, dtype: str) -> None:
    scheme = UPSTREAMS[name]
    weight = every_kind(dtype, scheme, 12, 128)
    assert by_all(weight, dtype, scheme) == dict.fromkeys(KERNELS, upstream({GATE: weight}, dtype, scheme)[GATE])


@pytest.mark.parametrize("columns", [1, 7, 15, 17, 31, 130, 704, 2816, 5120])
@pytest.mark.parametrize("name", ["FP8_DYNAMIC, mse", "W8A8_ASYM, stopping"])
def test_errors_of_rows_of_any_width_are_added_as_upstream_does(name: str, columns: int) -> None:
    scheme, weight = OBSERVED[name], hard_weight("outliers", "BF16", 8, columns)
    assert by_all(weight, "BF16", scheme) == dict.fromkeys(KERNELS, upstream({GATE: weight}, "BF16", scheme)[GATE])


@every_implementation
@pytest.mark.parametrize("name", ["NVFP4A16, expanded", "NVFP4A16, stopping"])
def test_members_of_a_fused_group_share_the_scale_of_the_widest_range_that_was_found(
    kernels: Kernels, name: str
) -> None:
    scheme, dtype = OBSERVED[name], "BF16"
    weights = {GATE: hard_weight("normal", dtype, 16, 64), UP: hard_weight("outliers", dtype, 16, 64)}
    amax = max(kernels.largest(weight, dtype, scheme) for weight in weights.values())
    ours = {module: quantized(kernels, weight, dtype, scheme, amax) for module, weight in weights.items()}
    assert ours == upstream(weights, dtype, scheme)


@every_implementation
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("name", OBSERVED)
def test_parts_of_a_searched_weight_give_the_parts_of_its_codes_and_scales(
    kernels: Kernels, name: str, dtype: str
) -> None:
    scheme = OBSERVED[name]
    encoding = encoding_of(scheme)
    weight = every_kind(dtype, scheme, 24, 128)
    unit = 8 if encoding.zero_points else encoding.height or 1
    edges = [0, unit * (130 // unit), len(weight)]
    parts = [weight[a:b] for a, b in pairwise(edges)]
    steps = None
    if encoding.search is not None:
        lessened = [kernels.improving(part, dtype, scheme) for part in parts]
        steps = encoding.search.reached(lessened[0] | lessened[1])
    amax = max(kernels.largest(part, dtype, scheme, steps=steps) for part in parts)
    made = [kernels.quantize(part, dtype, scheme, amax=amax, steps=steps) for part in parts]
    together = {
        tensor: made[0][tensor] if tensor == "weight_global_scale" else np.concatenate([one[tensor] for one in made])
        for tensor in made[0]
    }
    assert {tensor: array.tobytes() for tensor, array in together.items()} == quantized(kernels, weight, dtype, scheme)


@every_implementation
@pytest.mark.parametrize(("name", "expand"), [("W4A16, expanded", 1.8), ("W4A16_ASYM", 1)])
@pytest.mark.parametrize(("dtype", "largest"), [("BF16", 3.3e38), ("F16", 6.5e4), ("F32", 3.3e38)])
def test_a_range_that_becomes_infinite_is_refused(
    dtype: str, largest: float, name: str, expand: float, kernels: Kernels
) -> None:
    scheme = PRESETS["W4A16_ASYM"] if expand == 1 else observed("W4A16", "nvfp4_expanded_mse")
    ramp = torch.linspace(-1, 1, 128).mul(largest).to(DTYPES[dtype])
    weight = (ramp.view(torch.uint16) if dtype == "BF16" else ramp).numpy().reshape(1, 128)
    with pytest.raises(RangeTooLarge, match=f"{expand:g} times"):
        kernels.quantize(weight, dtype, scheme)


@every_implementation
@every_dtype
@pytest.mark.parametrize("name", [name for name, scheme in OBSERVED.items() if encoding_of(scheme).signed])
def test_signed_scales_are_those_of_the_definition(name: str, dtype: str, kernels: Kernels) -> None:
    scheme = OBSERVED[name]
    near = hard_weight("normal", dtype, 40, 128)
    for group in near.reshape(-1, 32):  # two values of both signs that are next to each other, or the same
        values = np.sort(np.abs(values_of(group, dtype)))[-2:]
        both = torch.tensor([values[1], -values[0] if group[0] & 1 else -values[1]] if dtype == "BF16" else [1, -1])
        raw = both.to(DTYPES[dtype])
        group[:2] = (raw.view(torch.uint16) if dtype == "BF16" else raw).numpy()
    weight = np.concatenate([every_kind(dtype, scheme, 3, 128), near])
    made = quantized(kernels, weight, dtype, scheme)
    assert made == signed_by_definition(weight, dtype, scheme)


@pytest.mark.parametrize("name", [name for name, scheme in OBSERVED.items() if encoding_of(scheme).search is not None])
def test_a_table_finds_what_trying_every_range_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = OBSERVED[name]
    encoding = encoding_of(scheme)
    assert encoding.search is not None
    kinds = ("normal", "outliers", "many magnitudes", "ties", "few on the grid", "few binades", "zero rows and blocks")
    parts = [hard_weight(kind, "BF16", 128, 256) for kind in kinds]
    weight = within_upstreams_reach(np.concatenate(parts), "BF16", scheme)
    steps, found = encoding.search.steps, []
    for fewest in (1, 1 << 40):
        monkeypatch.setattr(ranges, "FEWEST_TILES", fewest)
        made = CompiledKernels().quantize(weight, "BF16", scheme, steps=steps)
        widest = CompiledKernels().largest(weight, "BF16", scheme, steps=steps)
        found.append(({tensor: array.tobytes() for tensor, array in made.items()}, widest))
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("arrangement", ["ascending", "shuffled"])
@every_scheme
def test_every_16_bit_pattern_becomes_what_upstream_makes_of_it(name: str, arrangement: str, dtype: str) -> None:
    # 2 x 0x7F80 patterns of BF16 are finite, and 2 x 0x7C00 of F16: whole rows of 128 both ways.
    patterns = np.arange(1 << 16, dtype=np.uint16)
    finite = patterns[patterns & 0x7FFF < {"BF16": 0x7F80, "F16": 0x7C00}[dtype]]
    if arrangement == "shuffled":
        finite = np.random.default_rng(0).permutation(finite)
    scheme = SCHEMES[name]
    weight = finite.reshape(-1, 128).view(np.float16 if dtype == "F16" else np.uint16)
    weight = within_upstreams_reach(weight, dtype, scheme)
    assert by_all(weight, dtype, scheme) == dict.fromkeys(KERNELS, upstream({GATE: weight}, dtype, scheme)[GATE])


@every_implementation
@every_dtype
def test_nvfp4_weights_of_a_fused_group_share_the_global_scale_of_the_largest(kernels: Kernels, dtype: str) -> None:
    scheme = PRESETS["NVFP4A16"]
    weights = {GATE: hard_weight("normal", dtype, 16, 64), UP: hard_weight("outliers", dtype, 16, 64)}
    amax = max(kernels.amax(weight, dtype) for weight in weights.values())
    ours = {module: quantized(kernels, weight, dtype, scheme, amax) for module, weight in weights.items()}
    assert ours == upstream(weights, dtype, scheme)


@pytest.mark.parametrize(("name", "same"), [("NVFP4", "NVFP4A16"), ("MXFP4", "MXFP4A16"), ("MXFP8", "MXFP8A16")])
def test_what_a_scheme_says_of_activations_does_not_change_the_weights(name: str, same: str) -> None:
    weight = hard_weight("outliers", "BF16", 8, 64)
    assert by_all(weight, "BF16", SCHEMES[name]) == by_all(weight, "BF16", SCHEMES[same])


@every_implementation
@every_scheme
@every_dtype
def test_names_dtypes_and_shapes_are_those_that_the_plan_predicts(dtype: str, name: str, kernels: Kernels) -> None:
    scheme = SCHEMES[name]
    raw = {
        "F8_E4M3": "uint8",
        "U8": "uint8",
        "I8": "int8",
        "I32": "int32",
        "BF16": "uint16",
        "F16": "float16",
        "F32": "float32",
    }
    predicted = stored_tensors(scheme, Tensor(dtype, (130, 256)))
    assert {
        name: (str(array.dtype), array.shape)
        for name, array in kernels.quantize(hard_weight("normal", dtype, 130, 256), dtype, scheme).items()
    } == {
        name: (raw[tensor.dtype], tensor.shape)
        for name, tensor in predicted.items()
        if name.startswith("weight") and name != "weight_shape"
    }


@every_implementation
@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(WEIGHT_SCHEMES.values())),
    dtype=st.sampled_from(list(DTYPES)),
    kind=st.sampled_from(list(KINDS)),
    cuts=st.lists(st.integers(1, 299), max_size=3),
)
def test_slices_of_a_weight_give_the_slices_of_its_codes_and_scales(
    kernels: Kernels, name: str, dtype: str, kind: str, cuts: list[int]
) -> None:
    scheme = SCHEMES[name]
    unit = scheme.weights.unit  # rows of a block, or rows whose zero points share a word
    weight = hard_weight(kind, dtype, 300, 128)
    try:
        whole = quantized(kernels, weight, dtype, scheme)
    except RangeTooLarge:  # with zero points, from the lowest to the highest of the largest values
        reject()
    amax = kernels.amax(weight, dtype)
    edges = sorted({0, 300, *(cut - cut % unit for cut in cuts)})
    parts = [kernels.quantize(weight[a:b], dtype, scheme, amax=amax) for a, b in pairwise(edges)]
    shared = {"weight_global_scale"} | ({"weight_scale"} if scheme.weights.strategy == "tensor" else set())
    together = {
        tensor: parts[0][tensor] if tensor in shared else np.concatenate([part[tensor] for part in parts])
        for tensor in parts[0]
    }
    assert {tensor: array.tobytes() for tensor, array in together.items()} == whole


@st.composite
def raw_weights(draw: st.DrawFn, columns: int) -> tuple[str, Array]:
    """A dtype and a weight of any finite bit patterns."""
    dtype = draw(st.sampled_from(list(DTYPES)))
    unsigned = np.uint32 if dtype == "F32" else np.uint16
    infinity = unsigned({"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}[dtype])
    bits = draw(arrays(unsigned, (draw(st.integers(1, 3)), columns)))
    finite = np.where(bits & infinity == infinity, bits ^ infinity, bits)
    return dtype, finite.view(hard_weight("zeros", dtype, 1, 1).dtype)


@settings(max_examples=150, deadline=None)
@given(
    raw=raw_weights(128),
    name=st.sampled_from(list(WEIGHT_SCHEMES.values())),
    amax=st.none() | st.floats(2**-14, 60000, width=16),
)
def test_all_kernels_agree_on_any_finite_weight_and_any_amax(
    raw: tuple[str, Array], name: str, amax: float | None
) -> None:
    dtype, weight = raw
    compiled, portable = (quantized(kernels, weight, dtype, SCHEMES[name], amax) for kernels in KERNELS.values())
    assert compiled == portable


@every_implementation
@settings(max_examples=60, deadline=None)
@given(raw=raw_weights(5))
def test_amax_is_the_largest_absolute_value_exactly(kernels: Kernels, raw: tuple[str, Array]) -> None:
    dtype, weight = raw
    assert kernels.amax(weight, dtype) == float(np.abs(values_of(weight, dtype)).max())


@every_implementation
@every_scheme
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@every_dtype
def test_nan_and_infinity_are_refused(dtype: str, value: float, name: str, kernels: Kernels) -> None:
    weight = hard_weight("normal", dtype, 130, 128)
    bad = torch.tensor([value], dtype=DTYPES[dtype])
    weight[129, 127] = bad.view(torch.uint16).numpy()[0] if dtype == "BF16" else bad.numpy()[0]
    with pytest.raises(NonFiniteWeight):
        kernels.quantize(weight, dtype, SCHEMES[name], amax=1.0)
    with pytest.raises(NonFiniteWeight):
        kernels.amax(weight, dtype)


@every_implementation
@pytest.mark.parametrize("name", ["MXFP4A16", "MXFP8A16"])
@pytest.mark.parametrize(("dtype", "largest"), [("BF16", 3.3e38), ("F16", 6.5e4), ("F32", 3.3e38)])
def test_microscaling_keeps_the_largest_values_that_upstream_turns_to_zero(
    dtype: str, largest: float, name: str, kernels: Kernels
) -> None:
    # From 7/4 of the last power of two, upstream's scale overflows to infinity: it divides by that and stores 1.
    ramp = torch.linspace(-1, 1, 32).mul(largest).to(DTYPES[dtype])
    weight = (ramp.view(torch.uint16) if dtype == "BF16" else ramp).numpy().reshape(1, 32)
    written = upstream({GATE: weight}, dtype, SCHEMES[name])[GATE]
    codes = kernels.quantize(weight, dtype, SCHEMES[name])
    assert written["weight_scale"] == b"\x7f"
    assert set(written["weight" if name == "MXFP8A16" else "weight_packed"]) <= {0x00, 0x80}
    if name == "MXFP8A16":
        exponent = int(codes["weight_scale"].item()) - 127
        restored = torch.from_numpy(codes["weight"]).view(torch.float8_e4m3fn).double() * 2.0**exponent
        assert torch.allclose(restored, ramp.double(), rtol=2**-3, atol=largest * 2**-12)


@every_implementation
@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        (observed("W4A16", "imatrix_mse"), "looks at activations"),
        (observed("W4A16", "mes"), "no observer 'mes'"),
        (observed("W4A16", "mse", gird=1), "no argument 'gird'"),
        (observed("W4A16", "mse", grid="many"), "grid is a number"),
        (observed("W4A16", "mse", grid=1e5), "steps at most"),
        (observed("W4A16", "mse", expand=0.5), "from 1 to 16"),
        (observed("FP8", "mse"), "one scale for a whole weight"),
        (observed("NVFP4A16", "signed_minmax"), "for integers without zero points"),
        (observed("W4A16_ASYM", "signed_mse"), "for integers without zero points"),
        (Scheme(QuantizationArgs(8, "int", "tensor", symmetric=False)), "one scale for a whole weight"),
        (Scheme(QuantizationArgs(3, "int", "channel")), "int3"),
        (Scheme(QuantizationArgs(16, "float", "channel")), "float16"),
        (Scheme(QuantizationArgs(8, "int", "block", block_structure=(128, 128))), "per block"),
        (Scheme(QuantizationArgs(4, "float", "group", group_size=32)), "dtype None"),
        (Scheme(QuantizationArgs(4, "float", "tensor_group", group_size=32)), "group 32"),
    ],
)
def test_a_scheme_that_is_not_covered_is_refused(kernels: Kernels, scheme: Scheme, reason: str) -> None:
    with pytest.raises(SchemeNotCovered, match=reason):
        kernels.quantize(hard_weight("normal", "BF16", 2, 128), "BF16", scheme)


@every_implementation
@pytest.mark.parametrize(("name", "columns"), [("W4A16", 704), ("NVFP4A16", 24), ("MXFP8A16", 16)])
def test_groups_that_do_not_divide_the_width_are_refused(kernels: Kernels, name: str, columns: int) -> None:
    with pytest.raises(SchemeMismatch, match="does not divide"):
        kernels.quantize(hard_weight("normal", "BF16", 2, columns), "BF16", PRESETS[name])


@every_implementation
@pytest.mark.parametrize(
    ("weight", "dtype"),
    [
        (np.zeros((2, 128), np.uint16), "F8_E4M3"),
        (np.zeros((2, 128), np.float32), "BF16"),
        (np.zeros((2, 128), np.int16), "BF16"),
        (np.zeros((2, 128), np.uint16), "F16"),
        (np.zeros((2, 128), ">f4"), "F32"),
        (np.zeros(128, np.uint16), "BF16"),
        (np.zeros((2, 2, 128), np.uint16), "BF16"),
        (np.zeros((0, 128), np.uint16), "BF16"),
        (np.zeros((128, 128), np.uint16).T, "BF16"),
        (np.zeros((2, 256), np.uint16)[:, :128], "BF16"),
    ],
    ids=[
        "dtype",
        "floats",
        "signed",
        "pattern of F16",
        "byte order",
        "1-D",
        "3-D",
        "empty",
        "transposed",
        "columns cut",
    ],
)
def test_an_array_that_is_not_what_its_dtype_says_is_refused(kernels: Kernels, weight: Array, dtype: str) -> None:
    with pytest.raises(ValueError, match="weights"):
        kernels.quantize(weight, dtype, PRESETS["FP8_DYNAMIC"])


@every_implementation
@pytest.mark.parametrize("amax", [-1.0, np.nan, np.inf])
def test_an_amax_that_no_weight_can_have_is_refused(kernels: Kernels, amax: float) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        kernels.quantize(hard_weight("normal", "BF16", 2, 128), "BF16", PRESETS["FP8"], amax=amax)


@every_implementation
@pytest.mark.parametrize("name", ["W8A8", "W4A16 per channel", "W8A16 per channel", "FP8_DYNAMIC", "FP8_BLOCK"])
@pytest.mark.parametrize("columns", [1, 3, 131])
def test_any_width_will_do_where_no_group_divides_it(kernels: Kernels, name: str, columns: int) -> None:
    channel = {
        "W4A16 per channel": Scheme(QuantizationArgs(4, "int", "channel")),
        "W8A16 per channel": Scheme(QuantizationArgs(8, "int", "channel")),
    }
    scheme = channel.get(name) or PRESETS[name]
    weight = hard_weight("outliers", "BF16", 5, columns)
    assert quantized(kernels, weight, "BF16", scheme) == upstream({GATE: weight}, "BF16", scheme)[GATE]


@every_implementation
@every_dtype
def test_a_read_only_and_unaligned_weight_is_as_good_as_another(kernels: Kernels, dtype: str) -> None:
    weight = hard_weight("outliers", dtype, 4, 128)
    mapped = np.frombuffer(b"-" + weight.tobytes(), weight.dtype, offset=1).reshape(weight.shape)
    scheme = PRESETS["NVFP4A16"]
    assert quantized(kernels, mapped, dtype, scheme) == quantized(kernels, weight, dtype, scheme)


@every_implementation
def test_the_weight_itself_is_left_as_it_was(kernels: Kernels) -> None:
    weight = hard_weight("outliers", "BF16", 4, 128)
    before = weight.copy()
    kernels.quantize(weight, "BF16", PRESETS["W4A16"])
    weight[0, 0] = before[0, 0]  # still writable
    assert np.array_equal(weight, before)


@every_implementation
def test_threads_do_not_disturb_each_other(kernels: Kernels) -> None:
    weight, scheme = hard_weight("outliers", "BF16", 256, 704), SCHEMES["W4A16 in groups of 32"]
    alone = [quantized(kernels, weight[row : row + 8], "BF16", scheme) for row in range(0, 256, 8)]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda row: quantized(kernels, weight[row : row + 8], "BF16", scheme), range(0, 256, 8))
        assert list(together) == alone


@pytest.mark.parametrize(
    ("device", "kind"), [("cpu", CompiledKernels), ("meta", PortableKernels), ("cuda:0", PortableKernels)]
)
def test_compiled_kernels_are_for_the_cpu_and_portable_ones_for_other_devices(device: str, kind: type) -> None:
    assert type(load_kernels(device)) is kind


def test_compiled_kernels_work_where_nothing_can_be_cached() -> None:
    program = (
        "import numpy; from weighbridge.numbers import load_kernels; "
        "assert load_kernels('cpu').amax(numpy.ones((1, 1), numpy.float32), 'F32') == 1"
    )
    nowhere = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    subprocess.run([sys.executable, "-c", program], env=nowhere, check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_agrees_with_the_cpu() -> None:
    assert disagreements(PortableKernels("cuda"), PortableKernels("cpu")) == []


@pytest.mark.campaign
@every_scheme
@pytest.mark.parametrize("exponent", [1, 2, 9, 100, 120, 127, 140, 253])
def test_every_quotient_of_bf16_values_becomes_what_upstream_makes_of_it(name: str, exponent: int) -> None:
    """Each of the 128 largest values of a binade, over all values that are not larger, of both signs."""
    scheme = SCHEMES[name]
    encoding = encoding_of(scheme)
    group = encoding.width or 4096
    for amax in range(exponent << 7, (exponent + 1) << 7):
        below = np.arange(max(0, amax - (24 << 7)), amax + 1, dtype=np.uint16)
        values = np.random.default_rng(amax).permutation(np.concatenate([below, below | 0x8000]))
        weight = np.resize(values, (-(-values.size // (group - 1)), group - 1))
        weight = np.concatenate([np.full((weight.shape[0], 1), amax, np.uint16), weight], axis=1)
        if encoding.scale == "E4M3":  # under a global scale of eight times as much
            weight[0] = min(amax + (3 << 7), 0x7F7F)
        assert by_all(weight, "BF16", scheme) == dict.fromkeys(KERNELS, upstream({GATE: weight}, "BF16", scheme)[GATE])


@pytest.mark.campaign
@every_scheme
@pytest.mark.parametrize("kind", KINDS)
@every_dtype
def test_a_million_hard_elements_become_what_upstream_makes_of_them(dtype: str, kind: str, name: str) -> None:
    scheme = SCHEMES[name]
    weight = within_upstreams_reach(hard_weight(kind, dtype, 1400, 768), dtype, scheme)
    assert by_all(weight, dtype, scheme) == dict.fromkeys(KERNELS, upstream({GATE: weight}, dtype, scheme)[GATE])
