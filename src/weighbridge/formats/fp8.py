"""The ``fp8`` method of DeepSeek, Qwen, MiniMax and Mistral: what its codes are of. Nothing is written in it here."""

from __future__ import annotations

from collections.abc import Mapping

from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import Tensor

METHOD = "fp8"
SCALES = ("weight_scale_inv", "weight_scale")
"""Local names of the scales of a weight, of which a module has one."""


def weight_of(scheme: Scheme, stored: Mapping[str, Tensor]) -> Tensor | None:
    """The weight ([out, in], BF16) that was quantized to give `stored`; None if nothing that is read here was.

    Codes are E4M3, under a scale for each block or one for the whole; the E2M1 experts of DeepSeek V4 are not read.
    """
    codes = stored.get("weight")
    if codes is None or codes.dtype != "F8_E4M3" or len(codes.shape) != 2:
        return None
    if scheme.weights.num_bits != 8 or not any(local in stored for local in SCALES):
        return None
    return Tensor("BF16", codes.shape)
