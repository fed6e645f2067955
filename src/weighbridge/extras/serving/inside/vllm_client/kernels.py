"""Reference arithmetic in place of vLLM's kernels: where it has none for a machine, or where all is to be exact.

Codes are made floats by their scales and multiplied in float32. What vLLM creates, names and loads stays as it is:
replaced are the choice of a kernel, what repacks weights for it, and the kernel's own arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST_E4M3, LARGEST_E2M1 = 448.0, 6.0

Quantize = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ExpertWeights:
    """One expert as its kernel would see it: float32 weights, and what is done to the inputs of each."""

    gate_up: torch.Tensor
    down: torch.Tensor
    quantize_gate_up: Quantize
    quantize_down: Quantize


def replace_kernels(*, exact: bool) -> list[str]:
    """Put reference arithmetic in place of kernels; the list that is given fills with a sentence for each that is used.

    Args:
        exact: replace those of all quantized linears and experts, and leave inputs unquantized; otherwise only those
            that vLLM has not got on a CPU (quantized experts, NVFP4), with inputs quantized as the scheme says.
    """
    from vllm.platforms import current_platform

    if not (exact or current_platform.is_cpu()):
        return []
    schemes = "vllm.model_executor.layers.quantization.compressed_tensors"
    moe = f"{schemes}.compressed_tensors_moe.compressed_tensors_moe"
    modelopt = "vllm.model_executor.layers.quantization.modelopt"
    oracle = "vllm.model_executor.layers.fused_moe.oracle"
    fp8 = import_module(f"{oracle}.fp8").Fp8MoeBackend.NONE
    nvfp4 = import_module(f"{oracle}.nvfp4").NvFp4MoeBackend.EMULATION
    wna16 = import_module(f"{oracle}.int_wna16").WNA16MoEBackend.EMULATION
    used: list[str] = []

    def experts(module: str, method: str, select: str, backend: Any, weights: Callable[[Any, Any, int], Any]) -> None:
        owner = import_module(module)
        setattr(owner, select, lambda *_, **__: (backend, None))
        _take_over(getattr(owner, method), weights, used, exact=exact)

    for kind in (
        (f"{moe}_w8a8_fp8", "CompressedTensorsW8A8Fp8MoEMethod", "select_fp8_moe_backend", fp8, fp8_expert),
        (f"{moe}_w4a4_nvfp4", "CompressedTensorsW4A4Nvfp4MoEMethod", "select_nvfp4_moe_backend", nvfp4, nvfp4_expert),
        (f"{moe}_wna16", "CompressedTensorsWNA16MoEMethod", "select_wna16_moe_backend", wna16, integer_expert),
        (modelopt, "ModelOptNvFp4FusedMoE", "select_nvfp4_moe_backend", nvfp4, modelopt_expert),
    ):
        experts(*kind)
    choice = "init_nvfp4_linear_kernel"
    for module in (f"{schemes}.schemes.compressed_tensors_w4a4_nvfp4", modelopt):
        setattr(import_module(module), choice, lambda use_a16=False: Nvfp4Linear(use_a16 or exact, used))
    if exact:
        floats = import_module(f"{schemes}.schemes.compressed_tensors_w8a8_fp8").CompressedTensorsW8A8Fp8
        _take_over_linears(floats, fp8_linear, used)
        integers = import_module(f"{schemes}.schemes.compressed_tensors_wNa16").CompressedTensorsWNA16
        _take_over_linears(integers, integer_linear, used)
    return used


def _take_over_linears(scheme: Any, weight: Callable[[Any, Any], torch.Tensor], used: list[str]) -> None:
    """Have a scheme of linears compute by reference, from the tensors just as they were loaded."""

    def process(self: Any, _: Any) -> None:
        _note(used, f"{type(self).__name__}: linears are dequantized and multiplied in float32")

    def apply_weights(self: Any, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        out = (x.float() @ weight(self, layer).T).to(x.dtype)
        return out if bias is None else out + bias

    scheme.process_weights_after_loading = process
    scheme.apply_weights = apply_weights


def _note(used: list[str], sentence: str) -> None:
    if sentence not in used:
        used.append(sentence)


def _take_over(method: Any, weights: Callable[[Any, Any, int], ExpertWeights], used: list[str], *, exact: bool) -> None:
    """Have a quantization method of experts compute by reference, from the tensors just as they were loaded."""

    def process(self: Any, _: Any) -> None:
        _note(used, f"{type(self).__name__}: experts are dequantized and multiplied in float32")

    def apply(
        self: Any, layer: Any, x: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, *_: Any, **__: Any
    ) -> torch.Tensor:
        mixed = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in topk_ids.unique().tolist():  # type: ignore[no-untyped-call]
            rows, slots = (topk_ids == expert).nonzero(as_tuple=True)
            own = weights(self, layer, expert)
            quantize_gate_up, quantize_down = (
                (_as_it_is, _as_it_is) if exact else (own.quantize_gate_up, own.quantize_down)
            )
            inner = (quantize_gate_up(x[rows].float()) @ own.gate_up.T).to(x.dtype)
            inner = activated(inner, layer.activation)
            outer = (quantize_down(inner.float()) @ own.down.T).to(x.dtype)
            mixed.index_add_(0, rows, outer.float() * topk_weights[rows, slots].float()[:, None])
        return mixed.to(x.dtype)

    method.process_weights_after_loading = process
    method.apply = apply
    method.is_monolithic = property(lambda _: False)
    method.get_fused_moe_quant_config = lambda *_: None


def activated(inner: torch.Tensor, activation: Any) -> torch.Tensor:
    """The gated activation of a layer's experts.

    Args:
        inner: [tokens, 2 x width]; gates first.
    """
    gate, up = inner.chunk(2, dim=-1)
    kind = str(getattr(activation, "value", activation))
    if kind == "silu":
        return torch.nn.functional.silu(gate) * up
    if kind in ("gelu", "gelu_tanh"):
        return torch.nn.functional.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none") * up
    raise NotImplementedError(f"experts with the activation {kind} have no reference here")


class Nvfp4Linear:
    """An NVFP4 linear: codes times block scales times the global scale, with or without quantized inputs."""

    def __init__(self, use_a16: bool, used: list[str]) -> None:
        self._use_a16 = use_a16
        self._used = used

    def process_weights_after_loading(self, _: Any) -> None:
        inputs = "as they are" if self._use_a16 else "quantized"
        _note(self._used, f"NVFP4 linears, inputs {inputs}: weights are dequantized and multiplied in float32")

    def input_quant_key(self) -> None:
        """No fused quantization of inputs before this kernel."""

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        weight = nvfp4_values(layer.weight, layer.weight_scale, float(layer.weight_global_scale))
        inputs = x.float()
        if not self._use_a16:
            inputs = quantized_nvfp4(inputs, float(layer.input_global_scale_inv))
        out = (inputs @ weight.T).to(x.dtype)
        return out if bias is None else out + bias


def fp8_linear(scheme: Any, layer: Any) -> torch.Tensor:
    """Weights of a linear in E4M3, with a scale per row, per block, or for each of the linears merged into it."""
    scale = layer.weight_scale
    if scale.dim() < 2 and scale.numel() == len(layer.logical_widths):
        widths = torch.tensor(layer.logical_widths, device=scale.device)
        scale = scale.reshape(-1).repeat_interleave(widths)[:, None]
    weight: torch.Tensor = layer.weight
    return weight.float() * spread(scale, weight, scheme.weight_block_size)


def integer_linear(scheme: Any, layer: Any) -> torch.Tensor:
    """Weights of a linear in packed symmetric integers with a scale per group."""
    if not scheme.symmetric:
        raise NotImplementedError("linears with zero points have no reference here")
    return integer_values(layer.weight_packed, layer.weight_scale, scheme.num_bits)


def fp8_expert(method: Any, layer: Any, expert: int) -> ExpertWeights:
    """E4M3 with a scale per row, block or tensor; inputs per token, or per tensor with a stored scale."""
    static = bool(method.static_input_scales)
    block = method.weight_block_size

    def quantize(stored: str) -> Quantize:
        if static:
            scale = getattr(layer, stored)[expert].float().max()
            return lambda x: (x / scale).clamp(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn).float() * scale
        return lambda x: quantized_e4m3(x, group=block[1] if block else x.shape[-1])

    return ExpertWeights(
        layer.w13_weight[expert].float() * spread(layer.w13_weight_scale[expert], layer.w13_weight[expert], block),
        layer.w2_weight[expert].float() * spread(layer.w2_weight_scale[expert], layer.w2_weight[expert], block),
        quantize("w13_input_scale"),
        quantize("w2_input_scale"),
    )


def nvfp4_expert(method: Any, layer: Any, expert: int) -> ExpertWeights:
    """compressed-tensors' NVFP4: global scales are what values were multiplied by."""
    gate_up = torch.cat(
        [
            nvfp4_values(codes, scales, 1 / float(shared))
            for codes, scales, shared in zip(
                layer.w13_weight_packed[expert].chunk(2),
                layer.w13_weight_scale[expert].chunk(2),
                # vLLM takes gate's for both; that the two are one is held against the checkpoint (serve/split-group)
                layer.w13_weight_global_scale[expert][:1].expand(2),
                strict=True,
            )
        ]
    )
    down = nvfp4_values(
        layer.w2_weight_packed[expert], layer.w2_weight_scale[expert], 1 / float(layer.w2_weight_global_scale[expert])
    )
    if method.use_a16:
        return ExpertWeights(gate_up, down, _as_it_is, _as_it_is)
    shared_in = float(layer.w13_input_global_scale[expert].min())
    shared_inner = float(layer.w2_input_global_scale[expert])
    return ExpertWeights(
        gate_up, down, lambda x: quantized_nvfp4(x, shared_in), lambda x: quantized_nvfp4(x, shared_inner)
    )


def modelopt_expert(_: Any, layer: Any, expert: int) -> ExpertWeights:
    """modelopt's NVFP4: global scales are what codes are multiplied by."""
    gate_up = nvfp4_values(
        layer.w13_weight[expert], layer.w13_weight_scale[expert], float(layer.w13_weight_scale_2[expert].flatten()[0])
    )
    down = nvfp4_values(
        layer.w2_weight[expert], layer.w2_weight_scale[expert], float(layer.w2_weight_scale_2[expert].flatten()[0])
    )
    shared_in = 1 / float(layer.w13_input_scale[expert].max())
    shared_inner = 1 / float(layer.w2_input_scale[expert].max())
    return ExpertWeights(
        gate_up, down, lambda x: quantized_nvfp4(x, shared_in), lambda x: quantized_nvfp4(x, shared_inner)
    )


def integer_expert(method: Any, layer: Any, expert: int) -> ExpertWeights:
    """Packed symmetric integers with a scale per group."""
    if not method.symmetric:
        raise NotImplementedError("experts with zero points have no reference here")
    bits = method.num_bits
    return ExpertWeights(
        integer_values(layer.w13_weight_packed[expert], layer.w13_weight_scale[expert], bits),
        integer_values(layer.w2_weight_packed[expert], layer.w2_weight_scale[expert], bits),
        _as_it_is,
        _as_it_is,
    )


def integer_values(packed: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Weights of packed integers.

    Args:
        packed: int32 [rows, columns x bits / 32], the lowest bits first; codes are stored plus half their range.
        scale: [rows, groups].
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    codes = (packed[..., None] >> shifts & (2**bits - 1)).flatten(-2) - 2 ** (bits - 1)
    grouped: torch.Tensor = codes.reshape(*scale.shape, -1).float() * scale.float()[..., None]
    return grouped.flatten(-2)


def nvfp4_values(packed: torch.Tensor, scale: torch.Tensor, shared: float) -> torch.Tensor:
    """Weights of NVFP4 codes.

    Args:
        packed: uint8 [rows, columns / 2], the lower nibble first.
        scale: E4M3 [rows, columns / 16].
        shared: what codes and block scales are multiplied by.
    """
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).long()
    values = torch.tensor([*E2M1, *(-value for value in E2M1)], device=packed.device)[nibbles]
    grouped = values.reshape(*scale.shape, -1) * (scale.float() * shared)[..., None]
    return grouped.flatten(-2)


def quantized_e4m3(x: torch.Tensor, *, group: int) -> torch.Tensor:
    """Inputs in E4M3 with a scale for each `group` values of a token, and made floats again."""
    grouped = x.reshape(*x.shape[:-1], -1, group)
    scale = grouped.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST_E4M3
    codes = (grouped / scale).clamp(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn)
    return (codes.float() * scale).reshape(x.shape)


def quantized_nvfp4(x: torch.Tensor, shared: float) -> torch.Tensor:
    """Inputs in NVFP4 and made floats again.

    Args:
        shared: the global scale that block scales are multiplied by.
    """
    grouped = x.reshape(*x.shape[:-1], -1, 16)
    local = (grouped.abs().amax(-1, keepdim=True) / LARGEST_E2M1 * shared).clamp(max=LARGEST_E4M3)
    scale = local.to(torch.float8_e4m3fn).float() / shared
    places = torch.where(scale == 0, torch.zeros_like(grouped), grouped / scale).clamp(-LARGEST_E2M1, LARGEST_E2M1)
    step = torch.where(places.abs() < 2, 0.5, torch.where(places.abs() < 4, 1.0, 2.0))
    return ((places / step).round() * step * scale).reshape(x.shape)


def spread(scale: torch.Tensor, weight: torch.Tensor, block: Any) -> torch.Tensor:
    """Scales per row, per block or per tensor (one for each half of the rows) as a factor for each weight."""
    scale = scale.float()
    if scale.dim() < 2:
        flat = scale.reshape(-1)
        return flat.repeat_interleave(weight.shape[0] // flat.numel())[:, None]
    if block:
        scale = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        return scale[: weight.shape[0], : weight.shape[1]]
    return scale


def _as_it_is(x: torch.Tensor) -> torch.Tensor:
    return x
