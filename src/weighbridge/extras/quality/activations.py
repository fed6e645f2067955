"""Input activations as a server quantizes them, and made floats again: the arithmetic without the kernels.

Source: ``compute_dynamic_scales_and_zp`` and ``fake_quantize`` of compressed-tensors 0.19.0, which a test holds this
against bit by bit. One thing is otherwise: a scale per token is one for each row also of a matrix, as servers do it,
where compressed-tensors takes one for all rows if a batch has no axis of its own (as the inputs of experts).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from weighbridge.errors import StructureError
from weighbridge.formats.schemes import QuantizationArgs
from weighbridge.numbers.encoding import LARGEST_EXPONENT

_GROUPED = ("group", "tensor_group")
_E4M3_EPSILON = 0.125
"""What compressed-tensors puts for an E4M3 scale of zero."""


@dataclass(frozen=True)
class Activations:
    """How the inputs of a module are quantized.

    Attributes:
        args: the scheme's own arguments.
        scale: the calibrated scale of a static scheme; the global scale, which block scales are multiplied by, of a
            locally dynamic one; None where all scales are taken as values arrive.
    """

    args: QuantizationArgs
    scale: float | None = None


def check_known(args: QuantizationArgs, *, where: str) -> None:
    """Refuse activations that `fake_quantized` has no arithmetic for.

    Raises:
        StructureError: with what is not known.
    """
    static = args.dynamic is False and args.strategy == "tensor"
    if (args.type, args.num_bits) == ("float", 4):
        known = (args.strategy == "tensor_group" and args.dynamic == "local") or (_is_mx(args) and args.dynamic is True)
    elif (args.type, args.num_bits) == ("float", 8):
        known = static or (args.dynamic is True and args.strategy in ("token", "tensor", "group"))
    else:
        known = args.type == "int" and 2 <= args.num_bits <= 8 and args.dynamic is True and args.strategy == "token"
    if not (known and args.symmetric):
        raise StructureError(f"its input activations ({args}) are not known here", where=where)


def fake_quantized(values: torch.Tensor, how: Activations) -> torch.Tensor:
    """What is left of inputs once they are quantized.

    Args:
        values: [..., width]; float32 or bfloat16, in which scales and quotients are computed too.

    Returns:
        As `values` in shape and dtype.
    """
    args = how.args
    width = values.shape[-1]
    if args.strategy in _GROUPED and args.group_size:
        # The last group may be a part of one: zeros change nothing of its largest value.
        whole = pad(values, (0, -width % args.group_size))
        grouped = whole.reshape(*values.shape[:-1], -1, args.group_size)
    else:
        grouped = values
    scale = _scale(grouped, how)
    kept = _rounded(grouped / scale, args).to(scale.dtype) * scale
    return kept.reshape(*values.shape[:-1], -1)[..., :width].to(values.dtype)


def _scale(values: torch.Tensor, how: Activations) -> torch.Tensor:
    args = how.args
    if args.dynamic is False:
        return torch.tensor(how.scale, dtype=values.dtype, device=values.device)
    magnitudes = values.abs()
    largest = magnitudes.amax() if args.strategy == "tensor" else magnitudes.amax(-1, keepdim=True)
    if _is_mx(args):
        return _power_of_two(largest, args)
    scale = largest / _half_range(args)
    if args.strategy == "tensor_group":
        shared = torch.tensor([how.scale], dtype=torch.float32, device=values.device)
        local = (shared * scale).clamp(max=448).to(torch.float8_e4m3fn).to(torch.float32)
        return torch.where(local == 0, _E4M3_EPSILON, local) / shared
    return torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)


def _power_of_two(largest: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    """MX scales: the largest value, rounded up to a power of two from 1.75 times the lower on, less the codes' own."""
    mantissa, exponent = torch.frexp(largest.float())
    own = LARGEST_EXPONENT["E2M1" if args.num_bits == 4 else "E4M3"]
    power = exponent - 1 + (mantissa >= 0.875).int() - own
    return torch.ldexp(torch.ones_like(mantissa), power.clamp(-126, 127)).to(largest.dtype)


def _rounded(places: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    """Places on the grid to the nearest codes, ties to even."""
    if args.type == "int":
        half = 2 ** (args.num_bits - 1)
        return places.clamp(-half, half - 1).round()
    if args.num_bits == 8:
        return places.clamp(-448, 448).to(torch.float8_e4m3fn).to(places.dtype)
    places = places.clamp(-6, 6)
    step = torch.where(places.abs() < 2, 0.5, torch.where(places.abs() < 4, 1.0, 2.0)).to(places.dtype)
    return (places / step).round() * step


def _half_range(args: QuantizationArgs) -> float:
    if args.type == "int":
        return float(2**args.num_bits - 1) / 2
    return 448.0 if args.num_bits == 8 else 6.0


def _is_mx(args: QuantizationArgs) -> bool:
    return args.group_size == 32 and args.scale_dtype == "torch.uint8"
