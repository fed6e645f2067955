"""Kernels made of torch operations, for any device that torch has.

Every operation here gives one result on every device: it is exact (comparisons, bit patterns, products with powers of
two), or a single correctly rounded one between float32 tensors on that device, or a cast, or looked up in a table that
the CPU made. A number in place of a tensor would not do: CUDA divides by a number by multiplying with its reciprocal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from weighbridge.formats.observers import Search
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
from weighbridge.numbers.interface import NonFiniteWeight, RangeTooLarge, checked
from weighbridge.numbers.powers import powers, table_of_powers

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True, slots=True)
class _Scales:
    """Scales of tiles, each [tiles down, tiles across].

    Attributes:
        stored: float32, or uint8 codes.
        divisors: float32, what values are divided by.
        zeros: float32, zero points; None where there are none.
    """

    stored: torch.Tensor
    divisors: torch.Tensor
    zeros: torch.Tensor | None = None


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

    def largest(self, weight: Array, dtype: str, scheme: Scheme, *, steps: int | None = None) -> float:
        """See `Kernels`."""
        encoding = encoding_of(scheme)
        if encoding.search is None:
            return self.amax(weight, dtype)
        tiles = self._tiles(self._finite(checked(weight, dtype), dtype).float(), encoding)
        low, high = self._range(tiles, encoding, dtype, steps)
        return float(torch.maximum(-low, high).amax().item())

    def improving(self, weight: Array, dtype: str, scheme: Scheme) -> int:
        """See `Kernels`."""
        encoding = encoding_of(scheme)
        if encoding.search is None:
            return 0
        tiles = self._tiles(self._finite(checked(weight, dtype), dtype).float(), encoding)
        return self._searched(tiles, encoding, encoding.search, dtype, encoding.search.steps)[2]

    def quantize(
        self, weight: Array, dtype: str, scheme: Scheme, *, amax: float | None = None, steps: int | None = None
    ) -> dict[str, Array]:
        """See `Kernels`."""
        rows, columns = checked(weight, dtype, amax).shape
        encoding = encoding_of(scheme)
        stored_tensors(scheme, Tensor(dtype, (rows, columns)))
        values = self._finite(weight, dtype).float()
        tiles = self._tiles(values, encoding)
        low, high = self._range(tiles, encoding, dtype, steps)
        if encoding.needs_amax and amax is None:
            amax = float(torch.maximum(-low, high).amax().item())
        shared = global_scale(amax, dtype) if amax is not None and encoding.scale == "E4M3" else None
        if encoding.height is None:
            assert amax is not None
            low, high = -self._number(amax).reshape(1, 1), self._number(amax).reshape(1, 1)

        scales = self._scales(low, high, encoding, dtype)
        if shared is not None:
            scales = self._under(shared, low, high, encoding, dtype)
        codes = self._codes(self._places(tiles, scales, None if shared is not None else dtype), encoding)
        down, height, across, width = tiles.shape
        codes = codes.reshape(down * height, across * width)[:rows, :columns]

        stored = (scales.stored[0] if encoding.height is None else scales.stored).cpu().numpy()
        return named(
            encoding,
            _in_rows(codes, encoding).cpu().numpy(),
            stored_scales(stored, dtype) if encoding.scale == "float" else stored,
            None if scales.zeros is None else scales.zeros.to(torch.int8).cpu().numpy(),
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

    def _tiles(self, values: torch.Tensor, encoding: Encoding) -> torch.Tensor:
        """Values as [tiles down, height, tiles across, width], with zeros where the last ones are not full."""
        rows, columns = values.shape
        height, width = encoding.height or rows, encoding.width or columns
        padding = (0, -columns % width, 0, -rows % height)
        padded = torch.nn.functional.pad(values, padding) if any(padding) else values
        return padded.reshape(padded.shape[0] // height, height, padded.shape[1] // width, width)

    # --- ranges

    def ranges(
        self, weight: Array, dtype: str, encoding: Encoding, search: Search, steps: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], int]:
        """What `_searched` finds, for kernels that lack the power function of float32."""
        tiles = self._tiles(self._finite(weight, dtype).float(), encoding)
        low, high, improving = self._searched(tiles, encoding, search, dtype, steps)
        return low.cpu().numpy(), high.cpu().numpy(), improving

    def _range(
        self, tiles: torch.Tensor, encoding: Encoding, dtype: str, steps: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the codes of each tile should span, zero included: float32 [tiles down, tiles across], twice."""
        search = encoding.search
        if search is None:
            return tiles.amin(dim=(1, 3)).clamp(max=0), tiles.amax(dim=(1, 3)).clamp(min=0)
        if steps is None:
            steps = search.reached(self._searched(tiles, encoding, search, dtype, search.steps)[2])
        return self._searched(tiles, encoding, search, dtype, steps)[:2]

    def _searched(
        self, tiles: torch.Tensor, encoding: Encoding, search: Search, dtype: str, steps: int
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """The range of the least error for each tile, and the steps that lessened the error of any, a bit for each."""
        target = _DTYPES[dtype]
        expand = self._number(search.expand)
        low, high = tiles.amin(dim=(1, 3)).clamp(max=0), tiles.amax(dim=(1, 3)).clamp(min=0)
        if encoding.signed:  # once rounded, both ends might be as far from zero
            positive = high > -low
            low, high = torch.where(positive, self._number(0), low), torch.where(positive, high, self._number(0))
        low, high = (low * expand).to(target).float(), (high * expand).to(target).float()
        if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
            raise RangeTooLarge(search.expand, dtype)
        least = torch.full_like(low, float(torch.finfo(target).max))
        best_low, best_high, improving = low, high, 0
        for step in range(steps):
            share = self._number(search.share(step))
            own_low, own_high = (low * share).to(target).float(), (high * share).to(target).float()
            errors = self._errors(tiles, self._scales(own_low, own_high, encoding, dtype), encoding, search, dtype)
            better = errors < least
            least = torch.where(better, errors, least)
            best_low, best_high = torch.where(better, own_low, best_low), torch.where(better, own_high, best_high)
            improving |= int(bool(better.any())) << step
        return best_low, best_high, improving

    def _errors(
        self, tiles: torch.Tensor, scales: _Scales, encoding: Encoding, search: Search, dtype: str
    ) -> torch.Tensor:
        """The sum of |error|^norm of each tile, with every operation rounded to the dtype, as torch adds on a CPU."""
        target = _DTYPES[dtype]
        places = self._nearest(self._places(tiles, scales, dtype), encoding)
        if scales.zeros is not None:
            places = (places - scales.zeros[:, None, :, None]).to(target).float()
        again = (places * scales.divisors[:, None, :, None]).to(target).float()
        errors = (again - tiles).to(target).abs()
        errors = errors.transpose(1, 2).reshape(tiles.shape[0], tiles.shape[2], -1)
        if dtype == "F32":
            raised = torch.from_numpy(powers(errors.cpu().numpy(), search.norm)).to(self.device)
        else:
            table = torch.from_numpy(table_of_powers(dtype, search.norm)).to(self.device)
            raised = table[errors.view(torch.int16).to(torch.int32)]
        return _added(raised, 8 if dtype == "F32" else 16).to(target).float()

    # --- scales and codes

    def _scales(self, low: torch.Tensor, high: torch.Tensor, encoding: Encoding, dtype: str) -> _Scales:
        """Scales for these ranges, whatever is shared by the whole weight."""
        if encoding.scale == "E8M0":
            return self._powers_of_two(torch.maximum(-low, high), encoding, dtype)
        target, zeros = _DTYPES[dtype], None
        half_range = self._number(HALF_RANGE[encoding.element])
        if encoding.zero_points:
            bits = INTEGER_BITS[encoding.element]
            bottom, top = self._number(-(1 << (bits - 1))), self._number((1 << (bits - 1)) - 1)
            span = (high - low).to(target).float()
            scales = (span / self._number((1 << bits) - 1).to(target).float()).to(target).float()
            if not bool(torch.isfinite(scales).all()):
                raise RangeTooLarge(1, dtype)
            zeros = (bottom - (low / scales).to(target).float()).to(target).float()
            # For a tile of zeros the quotient is no number.
            zeros = torch.minimum(torch.maximum(zeros, bottom), top).nan_to_num(nan=0.0).round()
        elif encoding.signed:
            extremes = torch.where(high > -low, high, low)
            scales = (extremes / self._number(-(1 << (INTEGER_BITS[encoding.element] - 1)))).to(target).float()
        else:
            scales = (torch.maximum(-low, high) / half_range).to(target).float()
        scales = torch.where(scales == 0, self._number(SOURCES[dtype].epsilon), scales)
        return _Scales(scales, scales, zeros)

    def _under(
        self, shared: np.float32, low: torch.Tensor, high: torch.Tensor, encoding: Encoding, dtype: str
    ) -> _Scales:
        """Scales as E4M3 under a global one; zero becomes 1/8."""
        scales = (torch.maximum(-low, high) / self._number(HALF_RANGE[encoding.element])).to(_DTYPES[dtype]).float()
        under = (self._number(shared) * scales).clamp(max=448).to(torch.float8_e4m3fn).float()
        under = torch.where(under == 0, self._number(0.125), under)
        return _Scales(under.to(torch.float8_e4m3fn).view(torch.uint8), under / self._number(shared))

    def _powers_of_two(self, largest: torch.Tensor, encoding: Encoding, dtype: str) -> _Scales:
        source = SOURCES[dtype]
        tiny = self._number(source.tiny)
        rounded_up = torch.where((largest >= tiny * 0.75) & (largest < tiny), tiny, largest)
        exponents = (rounded_up.view(torch.int32) + (1 << 21)) >> 23
        exponents = (exponents - LARGEST_EXPONENT[encoding.element]).clamp(min=0)
        exponents = torch.where(rounded_up < tiny, source.zero_exponent, exponents).to(torch.int32)
        # An exponent of zero stands for 2^-127, which float32 has as a subnormal.
        scales = torch.where(exponents == 0, 1 << 22, exponents << 23).to(torch.int32).view(torch.float32)
        return _Scales(exponents.to(torch.uint8), scales)

    def _places(self, tiles: torch.Tensor, scales: _Scales, dtype: str | None) -> torch.Tensor:
        """Where values lie on the grid, each operation rounded to a dtype, if there is one."""
        quotients = tiles / scales.divisors[:, None, :, None]
        if dtype is not None:
            quotients = quotients.to(_DTYPES[dtype]).float()
        if scales.zeros is None:
            return quotients
        assert dtype is not None
        return (quotients + scales.zeros[:, None, :, None]).to(_DTYPES[dtype]).float()

    def _nearest(self, places: torch.Tensor, encoding: Encoding) -> torch.Tensor:
        """The values that the codes of these places stand for."""
        if encoding.element == "E4M3":
            return places.clamp(-448, 448).to(torch.float8_e4m3fn).float()
        if encoding.element == "E2M1":
            codes = self._codes(places, encoding).to(torch.int32)
            magnitudes = torch.tensor(_E2M1, dtype=torch.float32, device=self.device)[codes & 7]
            return torch.where(codes >= 8, -magnitudes, magnitudes)
        half = 1 << (INTEGER_BITS[encoding.element] - 1)
        return places.clamp(-half, half - 1).round()

    def _codes(self, places: torch.Tensor, encoding: Encoding) -> torch.Tensor:
        """One code a byte; packed integers with their offset."""
        if encoding.element == "E4M3":
            return places.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
        if encoding.element == "E2M1":
            magnitudes = places.abs()
            codes = (places < 0).to(torch.uint8) << 3
            # Midpoints between E2M1 values; each belongs to the neighbour whose code is even.
            for midpoint in (0.25, 1.25, 2.5, 5.0):
                codes += magnitudes > midpoint
            for midpoint in (0.75, 1.75, 3.5):
                codes += magnitudes >= midpoint
            return codes
        half = 1 << (INTEGER_BITS[encoding.element] - 1)
        codes = self._nearest(places, encoding).to(torch.int32) + (half if encoding.packed else 0)
        return (codes & 0xFF).to(torch.uint8)


def _added(terms: torch.Tensor, elements: int) -> torch.Tensor:
    """The sums of float32 [..., terms] over the last axis, added in the order in which torch does on a CPU.

    Eight lanes side by side, four vectors at a time; in longer sums a lane is emptied into the next level's after so
    many. Source: ``vectorized_inner_sum``, ``scalar_inner_sum`` and ``multi_row_sum`` of torch 2.13 (SumKernel.cpp), as
    compiled for AVX2, which machines with AVX-512 run too.

    Args:
        elements: that one vector of torch's takes: 8 of F32, 16 of the others.
    """
    count = terms.shape[-1]
    vectors = count // elements
    if vectors:
        lanes = terms[..., : vectors * elements].reshape(*terms.shape[:-1], vectors, elements // 8, 8)
        by_lane = lanes[..., 0, :] if elements == 8 else lanes[..., 0, :] + lanes[..., 1, :]
    else:
        by_lane = terms.unsqueeze(-1)
    sums = _by_fours(by_lane)
    rest = terms[..., vectors * elements :] if vectors else terms[..., :0]
    total = torch.zeros_like(terms[..., 0])
    for part in (*rest.unbind(-1), *sums.unbind(-1)):
        total = total + part
    return total


def _by_fours(vectors: torch.Tensor) -> torch.Tensor:
    """[..., vectors, lanes] -> [..., lanes]."""
    count = vectors.shape[-2] // 4
    power = max(4, (max(count, 1) - 1).bit_length() // 4)
    fours = vectors[..., : 4 * count, :].reshape(*vectors.shape[:-2], count, 4, vectors.shape[-1])
    zero = vectors.new_zeros((*vectors.shape[:-2], 4, vectors.shape[-1]))
    levels = [zero] * 4
    for index in range(count):
        levels[0] = levels[0] + fours[..., index, :, :]
        done = index + 1
        if done % (1 << power) == 0:
            for level in range(1, 4):
                levels[level] = levels[level] + levels[level - 1]
                levels[level - 1] = zero
                if done & ((1 << power) - 1) << (level * power):
                    break
    sums = levels[0] + levels[1] + levels[2] + levels[3]
    first = sums[..., 0, :]
    for index in range(4 * count, vectors.shape[-2]):
        first = first + vectors[..., index, :]
    for lane in range(1, 4):
        first = first + sums[..., lane, :]
    return first


def _in_rows(codes: torch.Tensor, encoding: Encoding) -> torch.Tensor:
    """Codes as bytes in the order in which they are stored, uint8 [rows, bytes]."""
    width = encoding.row_bytes(codes.shape[1]) * (2 if encoding.nibbles else 1)
    padded = torch.nn.functional.pad(codes, (0, width - codes.shape[1]))
    if not encoding.nibbles:
        return padded.contiguous()
    return padded[:, 0::2] | (padded[:, 1::2] << 4)
