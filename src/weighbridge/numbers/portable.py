"""Kernels made of torch operations, for any device that torch has.

Every operation here gives one result on every device: it is exact (comparisons, bit patterns, products with powers of
two), or a single correctly rounded one between float32 tensors on that device, or a cast. A number in place of a tensor
would not do: CUDA divides by a number by multiplying with its reciprocal.
"""

from __future__ import annotations

import numpy as np
import torch

from weighbridge.formats.schemes import Scheme, stored_tensors
from weighbridge.formats.tensors import Tensor
from weighbridge.numbers.encoding import (
    HALF_RANGE,
    INTEGER_BITS,
    LARGEST_EXPONENT,
    SOURCES,
    Array,
    Encoding,
    encoding_of,
    global_scale,
    named,
    stored_scales,
)
from weighbridge.numbers.interface import NonFiniteWeight, checked

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class PortableKernels:
    """`Kernels` on `device`, such as ``cpu`` or ``cuda:0``. Holds several float32 copies of a slice while it works.

    On CUDA this is not what upstream writes there: its Triton kernel leaves out the rounding of the quotient to the
    weight's dtype, which changes some codes of BF16 weights. These kernels give the CPU's codes everywhere.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def amax(self, weight: Array, dtype: str) -> float:
        """See `Kernels`."""
        return float(self._finite(checked(weight, dtype), dtype).abs().amax().item())

    def quantize(self, weight: Array, dtype: str, scheme: Scheme, *, amax: float | None = None) -> dict[str, Array]:
        """See `Kernels`."""
        rows, columns = checked(weight, dtype, amax).shape
        encoding = encoding_of(scheme)
        stored_tensors(scheme, Tensor(dtype, (rows, columns)))
        values = self._finite(weight, dtype).float()
        if encoding.needs_amax and amax is None:
            amax = float(values.abs().amax().item())
        shared = global_scale(amax, dtype) if amax is not None and encoding.scale == "E4M3" else None

        height, width = encoding.height or rows, encoding.width or columns
        padding = (0, -columns % width, 0, -rows % height)
        padded = torch.nn.functional.pad(values, padding) if any(padding) else values
        tiles = padded.reshape(padded.shape[0] // height, height, padded.shape[1] // width, width)
        largest = tiles.abs().amax(dim=(1, 3))
        if encoding.height is None:
            assert amax is not None
            largest = self._number(amax).reshape(1, 1)

        stored, divisors = self._scales(largest, encoding, dtype, shared)
        quotients = tiles / divisors[:, None, :, None]
        if shared is None:
            quotients = quotients.to(_DTYPES[dtype]).float()
        codes = self._codes(quotients, encoding).reshape(padded.shape)[:rows, :columns]

        scales = stored.cpu().numpy()
        return named(
            encoding,
            _in_rows(codes, encoding).cpu().numpy(),
            stored_scales(scales, dtype) if encoding.scale == "float" else scales,
            shared,
        )

    def _finite(self, weight: Array, dtype: str) -> torch.Tensor:
        """`weight` on the device, as a tensor of its dtype."""
        owned = weight if weight.flags.writeable and weight.flags.aligned else weight.copy()
        tensor = torch.from_numpy(owned).view(_DTYPES[dtype]).to(self.device)
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteWeight
        return tensor

    def _number(self, value: float | np.float32) -> torch.Tensor:
        return torch.tensor(float(value), dtype=torch.float32, device=self.device)

    def _scales(
        self, largest: torch.Tensor, encoding: Encoding, dtype: str, shared: np.float32 | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is stored (float32, or uint8 codes), and the float32 to divide by, each [tiles down, tiles across]."""
        source = SOURCES[dtype]
        if encoding.scale == "E8M0":
            return self._powers_of_two(largest, encoding, dtype)
        scales = (largest / self._number(HALF_RANGE[encoding.element])).to(_DTYPES[dtype]).float()
        if shared is None:
            scales = torch.where(scales == 0, self._number(source.epsilon), scales)
            return scales[0] if encoding.height is None else scales, scales
        under = (self._number(shared) * scales).clamp(max=448).to(torch.float8_e4m3fn).float()
        under = torch.where(under == 0, self._number(0.125), under)
        return under.to(torch.float8_e4m3fn).view(torch.uint8), under / self._number(shared)

    def _powers_of_two(
        self, largest: torch.Tensor, encoding: Encoding, dtype: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        source = SOURCES[dtype]
        tiny = self._number(source.tiny)
        rounded_up = torch.where((largest >= tiny * 0.75) & (largest < tiny), tiny, largest)
        exponents = (rounded_up.view(torch.int32) + (1 << 21)) >> 23
        exponents = (exponents - LARGEST_EXPONENT[encoding.element]).clamp(min=0)
        exponents = torch.where(rounded_up < tiny, source.zero_exponent, exponents).to(torch.int32)
        # An exponent of zero stands for 2^-127, which float32 has as a subnormal.
        scales = torch.where(exponents == 0, 1 << 22, exponents << 23).to(torch.int32).view(torch.float32)
        return exponents.to(torch.uint8), scales

    def _codes(self, quotients: torch.Tensor, encoding: Encoding) -> torch.Tensor:
        """One code a byte; packed integers with their offset."""
        if encoding.element == "E4M3":
            return quotients.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
        if encoding.element == "E2M1":
            magnitudes = quotients.abs()
            codes = (quotients < 0).to(torch.uint8) << 3
            # Midpoints between E2M1 values; each belongs to the neighbour whose code is even.
            for midpoint in (0.25, 1.25, 2.5, 5.0):
                codes += magnitudes > midpoint
            for midpoint in (0.75, 1.75, 3.5):
                codes += magnitudes >= midpoint
            return codes
        half = 1 << (INTEGER_BITS[encoding.element] - 1)
        codes = quotients.clamp(-half, half - 1).round().to(torch.int32) + (half if encoding.packed else 0)
        return (codes & 0xFF).to(torch.uint8)


def _in_rows(codes: torch.Tensor, encoding: Encoding) -> torch.Tensor:
    """Codes as bytes in the order in which they are stored, uint8 [rows, bytes]."""
    width = encoding.row_bytes(codes.shape[1]) * (2 if encoding.nibbles else 1)
    padded = torch.nn.functional.pad(codes, (0, width - codes.shape[1]))
    if not encoding.nibbles:
        return padded.contiguous()
    return padded[:, 0::2] | (padded[:, 1::2] << 4)
