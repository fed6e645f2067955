"""Round-to-nearest again: the bytes that a scheme gives for rows of the base, under the stored scale of the whole.

What one scale for a whole tensor, or for a fused group, must be is known only when all of its rows have been seen. So
rows are rounded under the scale that is stored, and whether that is the right one is judged at the end: one pass over
the base suffices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from weighbridge.audit.grid import Array, float_values
from weighbridge.engines.kernels import Kernels, SchemeNotCovered, encoding_of
from weighbridge.engines.kernels.encoding import HALF_RANGE, SOURCES, global_scale, rounded
from weighbridge.engines.rewriting import reciprocal
from weighbridge.formats import modelopt
from weighbridge.formats.schemes import Scheme, to_config

Expected = Mapping[str, Array]
"""Local name -> array whose bytes are what would be stored for these rows."""


def predictions(
    kernels: Kernels,
    loops: Any,
    weight: Array,
    dtype: str,
    scheme: Scheme,
    form: str,
    shared: np.float32 | None,
) -> Iterator[Expected]:
    """What round-to-nearest by min-max stores for rows of a weight; none where it cannot give the scale of the whole.

    NVFP4 is rounded by two tools in two ways, and converted from the format of one to that of the other without new
    numbers: the arithmetic of the format's own tool comes first, then the other's.

    Args:
        loops: `weighbridge.audit.compiled`, or what takes its place.
        weight: raw elements of `dtype`, [rows, columns].
        form: ``compressed-tensors`` or ``modelopt``.
        shared: the stored scale of the whole tensor: NVFP4's global scale, or the one of a per-tensor scheme; None in
            other schemes.
    """
    if not scheme.weights.symmetric:
        if scheme.weights.strategy in ("channel", "group"):
            yield _with_zero_points(weight, dtype, scheme)
        return
    if form == modelopt.METHOD and scheme.weights.num_bits == 8:
        assert shared is not None
        yield {"weight": _modelopt_fp8(weight, dtype, shared)}
        return
    if scheme.weights.strategy != "tensor_group":
        yield from _by_kernels(kernels, weight, dtype, scheme, shared)
        return
    assert shared is not None
    if form == modelopt.METHOD:
        yield _by_modelopt(loops, weight, dtype, shared)
        for arrays in _by_kernels(kernels, weight, dtype, scheme, _global_scale_behind(shared, dtype)):
            yield {"weight": arrays["weight_packed"], "weight_scale": arrays["weight_scale"]}
    else:
        yield from _by_kernels(kernels, weight, dtype, scheme, shared)
        arrays = _by_modelopt(loops, weight, dtype, _reciprocal(shared))
        yield {"weight_packed": arrays["weight"], "weight_scale": arrays["weight_scale"]}


def _by_kernels(
    kernels: Kernels, weight: Array, dtype: str, scheme: Scheme, shared: np.float32 | None
) -> Iterator[Expected]:
    scheme = _by_min_max(scheme)
    try:
        encoding = encoding_of(scheme)
    except SchemeNotCovered:
        return
    if not encoding.needs_amax:
        yield kernels.quantize(weight, dtype, scheme)
        return
    amax = None if shared is None else _amax_of(shared, dtype, scheme)
    if amax is not None:
        yield kernels.quantize(weight, dtype, scheme, amax=amax)


def _global_scale_behind(shared: np.float32, dtype: str) -> np.float32 | None:
    """compressed-tensors' global scale that was converted to this ``weight_scale_2``."""
    with np.errstate(all="ignore"):
        candidates = _neighbours(rounded(np.float32(1) / shared, dtype), dtype)
    usable = (scale for scale in candidates if np.isfinite(scale) and scale > 0)
    return next((scale for scale in usable if _reciprocal(scale) == shared), None)


def min_max(
    kernels: Kernels, weight: Array, dtype: str, scheme: Scheme, whole: np.float32 | None
) -> tuple[Expected, np.float32 | None] | None:
    """Round-to-nearest by min-max as compressed-tensors stores it, whatever is stored; None where it is not known.

    Args:
        whole: the stored scale of a per-tensor scheme, which rows alone cannot give; of NVFP4 theirs is taken.

    Returns:
        Local name -> array, and the scale of the whole.
    """
    if not scheme.weights.symmetric:
        grouped = scheme.weights.strategy in ("channel", "group")
        return (_with_zero_points(weight, dtype, scheme), None) if grouped else None
    plain = _by_min_max(scheme)
    try:
        encoding = encoding_of(plain)
    except SchemeNotCovered:
        return None
    if encoding.height is None:
        amax = None if whole is None else _amax_of(whole, dtype, plain)
        return None if amax is None else (kernels.quantize(weight, dtype, plain, amax=amax), whole)
    arrays = kernels.quantize(weight, dtype, plain)
    shared = arrays.get("weight_global_scale")
    return arrays, None if shared is None else np.float32(shared[0])


def whole_scales(form: str, scheme: Scheme, dtype: str, amaxes: Sequence[float]) -> list[np.float32]:
    """What the scale of a whole tensor must be, for each largest value that it may be made of; none if it has none."""
    if scheme.weights.strategy not in ("tensor", "tensor_group"):
        return []
    if form == modelopt.METHOD and scheme.weights.num_bits == 8:
        return [np.float32(amax) / np.float32(448) for amax in amaxes]
    if scheme.weights.strategy == "tensor_group":
        own = [global_scale(amax, dtype) if amax > 0 else np.float32(1) for amax in amaxes]
        # On a GPU torch multiplies by the reciprocal of a number that it should divide by.
        other = [np.float32(amax) / np.float32(2688) for amax in amaxes]
        other += [np.float32(amax) * (np.float32(1) / np.float32(2688)) for amax in amaxes]
        if form == modelopt.METHOD:
            return [*other, *(_reciprocal(scale) for scale in own)]
        with np.errstate(divide="ignore"):
            return [*own, *(np.float32(1) / scale for scale in other)]
    return [_tensor_scale(amax, dtype, scheme) for amax in amaxes]


def _tensor_scale(amax: float, dtype: str, scheme: Scheme) -> np.float32:
    """The scale of a per-tensor scheme: amax over half of the range, in the weight's dtype, never zero."""
    half_range = np.float32(HALF_RANGE[encoding_of(scheme).element])
    scale = rounded(np.float32(amax) / half_range, dtype)
    return np.float32(SOURCES[dtype].epsilon) if scale == 0 else scale


def _amax_of(shared: np.float32, dtype: str, scheme: Scheme) -> float | None:
    """A value of `dtype` that gives this scale of a whole tensor."""
    if not (np.isfinite(shared) and shared > 0):
        return None
    grows = scheme.weights.strategy != "tensor_group"
    with np.errstate(all="ignore"):
        guess = shared * np.float32(HALF_RANGE[encoding_of(scheme).element]) if grows else np.float32(2688) / shared
        if not np.isfinite(guess):
            return None
        around = _neighbours(rounded(np.float32(guess), dtype), dtype)
        usable = [float(amax) for amax in around if math.isfinite(amax) and amax > 0]
        return next((amax for amax in usable if whole_scales("", scheme, dtype, [amax])[0] == shared), None)


def _neighbours(value: np.float32, dtype: str) -> list[np.float32]:
    """`value` and the values of `dtype` next to it, nearest first."""
    unit = np.float32(abs(value) * np.float32(SOURCES[dtype].epsilon))
    return [rounded(np.float32(value + np.float32(step) * unit), dtype) for step in (0, -0.5, 0.5, -1, 1, -2, 2)]


@lru_cache(maxsize=64)
def _by_min_max(scheme: Scheme) -> Scheme:
    """The scheme with scales of the largest value, whatever observer chose them: that is what exact means."""
    return replace(scheme, weights=replace(scheme.weights, observer=None))


def _reciprocal(scale: np.float32) -> np.float32:
    """What a conversion stores for a global scale; of a scale that means nothing, something that means nothing."""
    with np.errstate(all="ignore"):
        return np.float32(reciprocal(float(scale)))


def _by_modelopt(loops: Any, weight: Array, dtype: str, shared: np.float32) -> Expected:
    """modelopt 0.47.0's NVFP4 (``NVFP4QTensor.quantize``), in float32 throughout."""
    rows, columns = weight.shape
    scales = np.empty((rows, columns // modelopt.GROUP_SIZE), np.uint8)
    codes = np.empty((rows, columns // 2), np.uint8)
    is_bf16 = dtype == "BF16"
    with np.errstate(all="ignore"):
        weights = weight if is_bf16 else np.ascontiguousarray(weight, np.float32)
        loops.modelopt_nvfp4(weights, is_bf16, shared, scales, codes)
    return {"weight": codes, "weight_scale": scales}


def _modelopt_fp8(weight: Array, dtype: str, shared: np.float32) -> Array:
    """modelopt 0.47.0's FP8 (``FP8QTensor.quantize``): quotients in the weight's dtype, as its scale has no axis."""
    import torch

    with np.errstate(all="ignore"):
        quotients = torch.from_numpy(float_values(weight, dtype) / shared).to(getattr(torch, _TORCH[dtype])).float()
    codes: Array = quotients.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    return codes


def _with_zero_points(weight: Array, dtype: str, scheme: Scheme) -> Expected:
    """Asymmetric integers, by compressed-tensors' own functions."""
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization import QuantizationArgs as UpstreamArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    args = scheme.weights
    upstream: Any = UpstreamArgs.model_validate(to_config(scheme)["weights"])
    values = torch.from_numpy(float_values(weight, dtype)).to(getattr(torch, _TORCH[dtype]))
    groups = values.reshape(values.shape[0], -1, args.group_size or values.shape[1])
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), upstream)
    codes = quantize(x=values, scale=scale, zero_point=zero, args=upstream, dtype=torch.int8)
    found = {"weight_scale": _raw(scale)}
    if scheme.format == "pack-quantized":
        found["weight_packed"] = pack_to_int32(codes, args.num_bits).numpy()
        found["weight_zero_point"] = (
            pack_to_int32(zero.to(torch.int8), args.num_bits, packed_dim=0).contiguous().numpy()
        )
    else:
        found["weight"] = codes.numpy()
        found["weight_zero_point"] = zero.to(torch.int8).numpy()
    return found


def _raw(tensor: Any) -> Array:
    """A tensor's elements as numpy has them; BF16 as bit patterns."""
    import torch

    array: Array = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


_TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
