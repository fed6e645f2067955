"""How vLLM 0.32.0 rounds weights while it loads them: a second implementation, read off its source.

Each takes a weight [rows, columns] in BF16 as float32 and gives scales and codes. Of ``vllm/model_executor/layers/
quantization``: ``online/fp8.py`` for rows, ``per_block_cast_to_fp8`` of ``vllm/utils/deep_gemm.py`` for blocks,
``_mxfp8_e4m3_quantize_torch`` of ``utils/mxfp8_utils.py`` and ``_compute_quant_and_scale`` of ``utils/mxfp4_utils.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
LARGEST = np.float32(448)


def by_row(weight: Floats) -> tuple[Floats, Codes]:
    scale = np.abs(weight).max(axis=1, keepdims=True) / LARGEST
    scale = np.maximum(scale, np.float32(1) / (LARGEST * np.float32(512)))
    return scale, _e4m3(np.clip(weight / scale, -LARGEST, LARGEST))


def by_block(weight: Floats) -> tuple[Floats, Codes]:
    rows, columns = weight.shape
    padded = np.zeros((-(-rows // 128) * 128, -(-columns // 128) * 128), np.float32)
    padded[:rows, :columns] = weight
    blocks = padded.reshape(padded.shape[0] // 128, 128, padded.shape[1] // 128, 128)
    scale = np.maximum(np.abs(blocks).max(axis=(1, 3), keepdims=True), np.float32(1e-4)) / LARGEST
    codes = _e4m3((blocks * (np.float32(1) / scale)).reshape(padded.shape))
    return scale[:, 0, :, 0], codes[:rows, :columns]


def mxfp8(weight: Floats) -> tuple[Codes, Codes]:
    groups = weight.reshape(len(weight), -1, 32)
    largest = np.maximum(np.abs(groups).max(axis=2), np.finfo(np.float32).tiny)
    exponent = np.clip(np.ceil(np.log2(largest / LARGEST)) + 127, 0, 254)
    return exponent.astype(np.uint8), _e4m3((groups / np.exp2(exponent - 127)[..., None]).reshape(weight.shape))


def mxfp4(weight: Floats) -> tuple[Codes, Codes]:
    groups = weight.reshape(len(weight), -1, 32)
    bits = (np.abs(groups).max(axis=2).view(np.uint32) + np.uint32(0x200000)) & np.uint32(0x7F800000)
    largest = bits.view(np.float32)
    largest = largest + np.where(largest == 0, np.float32(2.0**-126), np.float32(0))
    exponent = np.clip(np.floor(np.log2(largest)) - 2, -127, 127)
    codes = _e2m1(groups * np.exp2(-exponent)[..., None])
    return (exponent + 127).astype(np.uint8), codes.reshape(weight.shape)


def _e4m3(values: Floats) -> Codes:
    return torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def _e2m1(values: Floats) -> Codes:
    """The nearest of what four bits hold, of two as near that whose code is even, 6 beyond; zeros keep their sign."""
    distances = np.abs(np.abs(values)[..., None] - np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32))
    even_first = [0, 2, 4, 6, 1, 3, 5, 7]
    nearest: Codes = np.array(even_first, np.uint8)[distances[..., even_first].argmin(axis=-1)]
    nearest[np.signbit(values)] |= 8
    return nearest


ROUNDS: Mapping[str, Callable[[Floats], tuple[npt.NDArray[np.generic], Codes]]] = {
    "fp8_per_channel": by_row,
    "fp8_per_block": by_block,
    "mxfp8": mxfp8,
    "mxfp4": mxfp4,
}
"""By vLLM's name."""
