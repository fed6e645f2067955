"""The part of the serving check that runs inside a server's environment, as far as it needs torch and no server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.extras.quality.activations import Activations, fake_quantized
from weighbridge.extras.serving.inside.vllm_client import kernels
from weighbridge.extras.serving.inside.vllm_client.loading import Watch, load_watched, stored_tensors
from weighbridge.formats.schemes import PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.uint8, torch.int32, torch.int64)


class Model(torch.nn.Module):
    """Experts as servers keep them, a buffer that is stored and one that is computed."""

    layer_scalar: torch.Tensor
    computed: torch.Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.experts = torch.nn.Parameter(torch.zeros(4, 6, 2).to(dtype), requires_grad=False)
        self.register_buffer("layer_scalar", torch.ones(1))
        self.register_buffer("computed", torch.ones(3), persistent=False)


def loading(model: Model, dropped: tuple[str, ...] = ()) -> tuple[Watch, Callable[[], None]]:
    """A loader of a checkpoint with one tensor for each half of each expert, less those that are dropped."""
    watch = Watch(stored_tensors(model))
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (4, 6, 2 * model.experts.element_size()), generator=generator, dtype=torch.uint8)

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        content = values.view(model.experts.dtype)
        for expert in range(4):
            yield f"experts.{expert}.gate", content[expert, :3]
            yield f"experts.{expert}.up", content[expert, 3:]
        yield "layer_scalar", torch.tensor([0.5])
        yield "extra", torch.tensor([0.5])

    def load() -> None:
        for name, tensor in watch.reading((name, tensor) for name, tensor in weights() if name not in dropped):
            if name == "layer_scalar":
                model.layer_scalar.copy_(tensor)
            elif name != "extra":
                _, expert, member = name.split(".")
                half = slice(0, 3) if member == "gate" else slice(3, 6)
                model.experts.data[int(expert)][half].copy_(tensor)

    return watch, load


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_model_that_is_filled_has_no_hole_whatever_bits_fill_it(dtype: torch.dtype) -> None:
    model = Model(dtype)
    watch, load = loading(model)
    assert load_watched(model, load, watch=watch) == {}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_hole_is_found_where_it_is(dtype: torch.dtype) -> None:
    model = Model(dtype)
    watch, load = loading(model, dropped=("experts.2.up",))
    assert load_watched(model, load, watch=watch) == {"experts": [[[2, 3], [3, 6], [0, 2]]]}


def test_a_buffer_that_is_missing_is_a_hole_and_one_that_is_computed_is_none() -> None:
    model = Model(torch.float32)
    watch, load = loading(model, dropped=("layer_scalar",))
    assert load_watched(model, load, watch=watch) == {"layer_scalar": [[[0, 1]]]}


def test_what_stays_unfilled_has_its_initial_value_again() -> None:
    model = Model(torch.float32)
    watch, load = loading(model, dropped=("layer_scalar",))
    load_watched(model, load, watch=watch)
    assert (model.layer_scalar.item(), model.computed.tolist()) == (1, [1, 1, 1])


def test_each_write_is_known_by_its_key_and_place() -> None:
    model = Model(torch.float32)
    watch, load = loading(model)
    load_watched(model, load, watch=watch)
    assert ("experts.1.up", "experts", [[1, 2], [3, 6], [0, 2]]) in watch.writes
    assert watch.homeless == 0


def test_a_key_that_is_read_and_not_used_is_known() -> None:
    model = Model(torch.float32)
    watch, load = loading(model)
    load_watched(model, load, watch=watch)
    assert set(watch.keys) - {key for key, _, _ in watch.writes} == {"extra"}


def test_a_loader_that_reads_ahead_is_known_by_writes_without_a_key() -> None:
    model = Model(torch.float32)
    watch = Watch(stored_tensors(model))

    def load() -> None:
        for _, tensor in list(watch.reading(iter([("layer_scalar", torch.tensor([0.5]))]))):
            model.layer_scalar.copy_(tensor)

    load_watched(model, load, watch=watch)
    assert watch.homeless == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_values_that_are_no_numbers_are_counted(dtype: torch.dtype) -> None:
    watch = Watch({})
    for _ in watch.reading(iter([("scale", torch.tensor([1.0, float("nan"), float("nan")]).to(dtype))])):
        pass
    assert watch.not_finite == {"scale": 2}


@given(st.integers(0, 2**32 - 1))
def test_nvfp4_codes_mean_what_compressed_tensors_means_by_them(seed: int) -> None:
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    packed = torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    scale = torch.tensor([[1.0, 2.0]] * 4).to(torch.float8_e4m3fn)
    codes = unpack_fp4_from_uint8(packed, 4, 32, torch.float32)
    expected = codes * scale.float().repeat_interleave(16, 1) * 0.25
    assert torch.equal(kernels.nvfp4_values(packed, scale, 0.25), expected)


@given(st.integers(0, 2**32 - 1))
def test_packed_integers_mean_what_compressed_tensors_means_by_them(seed: int) -> None:
    from compressed_tensors.compressors import pack_to_int32

    codes = torch.randint(-8, 8, (4, 64), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    scale = torch.tensor([[0.5, 0.25]] * 4)
    expected = codes.float() * scale.repeat_interleave(32, 1)
    assert torch.equal(kernels.integer_values(pack_to_int32(codes, 4), scale, 4), expected)


@pytest.mark.parametrize("shape", [(3, 64), (1, 32)])
def test_inputs_in_e4m3_are_quantized_as_our_own_forward_does_it(shape: tuple[int, int]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    args = PRESETS["FP8_DYNAMIC"].input_activations
    assert args is not None
    ours = fake_quantized(values, Activations(args))
    assert torch.equal(kernels.quantized_e4m3(values, group=shape[1]), ours)


def test_inputs_in_nvfp4_are_quantized_as_our_own_forward_does_it() -> None:
    values = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    args = PRESETS["NVFP4"].input_activations
    assert args is not None
    ours = fake_quantized(values, Activations(args, 600.0))
    assert torch.allclose(kernels.quantized_nvfp4(values, 600.0), ours, rtol=1e-6, atol=0)


def test_scales_of_rows_blocks_and_tensors_reach_the_weights_they_belong_to() -> None:
    weight = torch.ones(4, 6)
    rows = kernels.spread(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), weight, None)
    blocks = kernels.spread(torch.tensor([[1.0, 2.0]] * 2), weight, (3, 4))
    halves = kernels.spread(torch.tensor([1.0, 2.0]), weight, None)
    assert (weight * rows)[:, 0].tolist() == [1, 2, 3, 4]
    assert (weight * blocks)[0].tolist() == [1, 1, 1, 1, 2, 2]
    assert (weight * halves)[:, 0].tolist() == [1, 1, 2, 2]


def test_an_activation_without_a_reference_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="swigluoai"):
        kernels.activated(torch.ones(1, 4), "swigluoai")


def test_scales_of_merged_linears_reach_the_rows_of_each() -> None:
    layer = SimpleNamespace(weight=torch.ones(4, 2), weight_scale=torch.tensor([2.0, 3.0]), logical_widths=[1, 3])
    found = kernels.fp8_linear(SimpleNamespace(weight_block_size=None), layer)
    assert found[:, 0].tolist() == [2, 3, 3, 3]


@pytest.mark.parametrize(
    ("reference", "part"), [(kernels.integer_linear, ()), (kernels.integer_expert, (SimpleNamespace(), 0))]
)
def test_zero_points_are_refused_rather_than_ignored(
    reference: Callable[..., object], part: tuple[object, ...]
) -> None:
    with pytest.raises(NotImplementedError, match="zero points"):
        reference(SimpleNamespace(symmetric=False), *(part or (SimpleNamespace(),)))
