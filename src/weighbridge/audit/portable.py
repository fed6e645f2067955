"""The loops of `compiled`, made of torch operations: for other devices, for want of numba, and to hold that against.

Signatures and results are those of `compiled`, sums in another order. Written from the definitions, not from it: codes
are looked up in tables of what they stand for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from weighbridge.audit.grid import E2M1, E2M1_VALUES, E4M3, e4m3_values

_DTYPES = {0: torch.bfloat16, 1: torch.float16}


class PortableLoops:
    """The loops on `device`; holds several float32 copies of a strip."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def measure(
        self,
        weights: Any,
        is_bf16: bool,
        codes: Any,
        kind: int,
        nibbles: bool,
        add: int,
        mask: int,
        half: int,
        divisors: Any,
        zeros: Any,
        height: int,
        width: int,
        low: float,
        high: float,
        noise_of_row: Any,
    ) -> tuple[float, float, int, int, int, float]:
        """See `compiled.measure`."""
        weight = self._weights(weights, is_bf16)
        own = self._unpacked(codes, nibbles, weight.shape[1])
        scale = self._spread(divisors, height, width, weight.shape)
        zero = self._spread(zeros, height, width, weight.shape)
        value = self._values(own, kind, add, mask, half) - zero
        quotient = weight / scale
        difference = (weight - value * scale).double()
        noise_of_row[:] = difference.square().sum(1).cpu().numpy()
        place = quotient + zero
        steps = ((quotient - value).abs() / _gaps(kind, value)).nan_to_num(nan=torch.inf)
        nan_codes = int(((own & 0x7F) == 0x7F).sum()) if kind == E4M3 else 0
        return (
            float(weight.double().square().sum()),
            float(difference.square().sum()),
            int(((place > high) | (place < low)).sum()),
            int(((value == 0) & (weight != 0)).sum()),
            nan_codes,
            float(steps.max()),
        )

    def not_nearest(
        self,
        weights: Any,
        is_bf16: bool,
        dtype: int,
        codes: Any,
        kind: int,
        nibbles: bool,
        add: int,
        mask: int,
        half: int,
        divisors: Any,
        zeros: Any,
        height: int,
        width: int,
        slack: float,
        columns_hit: Any,
    ) -> tuple[int, int]:
        """See `compiled.not_nearest`."""
        weight = self._weights(weights, is_bf16)
        own = self._unpacked(codes, nibbles, weight.shape[1])
        scale = self._spread(divisors, height, width, weight.shape)
        zero = self._spread(zeros, height, width, weight.shape)
        value = self._values(own, kind, add, mask, half)
        quotient = weight / scale
        grid = self._grid(kind, half)
        at = torch.searchsorted(grid, value)
        bad = torch.isnan(value)
        at = at.clamp(max=len(grid) - 1)
        ends = torch.tensor([torch.inf], device=self.device)
        upper = torch.cat([(grid[1:] + grid[:-1]) / 2, ends])[at]
        lower = torch.cat([-ends, (grid[1:] + grid[:-1]) / 2])[at]
        place = quotient + zero
        spare = quotient.abs() * float(slack)
        near = (place >= lower - spare) & (place <= upper + spare)
        kept = _DTYPES.get(dtype, torch.float32)
        narrow = (quotient.to(kept).float() + zero).to(kept).float()
        wrong = bad | ~(near | ((narrow >= lower) & (narrow <= upper)))
        columns_hit |= wrong.any(0).cpu().numpy().astype(np.uint8)
        found = wrong.flatten().nonzero()
        return len(found), int(found[0]) if len(found) else -1

    def squared_steps(
        self,
        codes: Any,
        columns: int,
        kind: int,
        nibbles: bool,
        add: int,
        mask: int,
        half: int,
        divisors: Any,
        zeros: Any,
        height: int,
        width: int,
        sum_of_row: Any,
    ) -> None:
        """See `compiled.squared_steps`."""
        own = self._unpacked(codes, nibbles, columns)
        shape = torch.Size((own.shape[0], columns))
        scale = self._spread(divisors, height, width, shape)
        value = self._values(own, kind, add, mask, half) - self._spread(zeros, height, width, shape)
        sum_of_row[:] = (scale * _gaps(kind, value)).double().square().sum(1).cpu().numpy()

    def modelopt_nvfp4(self, weights: Any, is_bf16: bool, shared: np.float32, scales: Any, codes: Any) -> None:
        """See `compiled.modelopt_nvfp4`."""
        values = self._weights(weights, is_bf16)
        rows, columns = values.shape
        blocks = values.reshape(rows, columns // 16, 16)
        whole = torch.tensor(float(shared), dtype=torch.float32, device=self.device)
        six = torch.tensor(6.0, dtype=torch.float32, device=self.device)
        scale = blocks.abs().amax(2) / (six * whole)
        scale = torch.where(scale == 0, torch.ones_like(scale), scale).clamp(2.0**-9, 448)
        stored = scale.to(torch.float8_e4m3fn)
        quotients = (blocks / (stored.float() * whole)[:, :, None]).reshape(rows, columns)
        magnitudes = quotients.abs()
        own = (quotients < 0).to(torch.uint8) << 3
        # Midpoints between E2M1 values; each belongs to the neighbour whose code is even.
        for midpoint in (0.25, 1.25, 2.5, 5.0):
            own += magnitudes > midpoint
        for midpoint in (0.75, 1.75, 3.5):
            own += magnitudes >= midpoint
        scales[:] = stored.view(torch.uint8).cpu().numpy()
        codes[:] = (own[:, 0::2] | (own[:, 1::2] << 4)).cpu().numpy()

    def _weights(self, weights: Any, is_bf16: bool) -> torch.Tensor:
        values = (weights.astype(np.uint32) << np.uint32(16)).view(np.float32) if is_bf16 else weights
        return torch.from_numpy(np.array(values)).to(self.device)

    def _unpacked(self, codes: Any, nibbles: bool, columns: int) -> torch.Tensor:
        own = torch.from_numpy(np.array(codes)).to(self.device)
        if nibbles:
            own = torch.stack([own & 15, own >> 4], -1).reshape(own.shape[0], -1)
        return own[:, :columns]

    def _spread(self, tiles: Any, height: int, width: int, shape: torch.Size) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(tiles)).to(self.device)
        return tensor.repeat_interleave(height, 0).repeat_interleave(width, 1)[: shape[0], : shape[1]]

    def _values(self, own: torch.Tensor, kind: int, add: int, mask: int, half: int) -> torch.Tensor:
        if kind == E4M3:
            return torch.from_numpy(e4m3_values(np.arange(256, dtype=np.uint8))).to(self.device)[own.long()]
        if kind == E2M1:
            return torch.from_numpy(E2M1_VALUES).to(self.device)[own.long()]
        return (((own.int() + int(add)) & int(mask)) - int(half)).float()

    def _grid(self, kind: int, half: int) -> torch.Tensor:
        if kind == E4M3:
            values = e4m3_values(np.arange(0x7F, dtype=np.uint8))
        elif kind == E2M1:
            values = E2M1_VALUES[:8]
        else:
            return torch.arange(-half, half, dtype=torch.float32, device=self.device)
        both = np.concatenate([-values[:0:-1], values])
        return torch.from_numpy(both).to(self.device)


def _gaps(kind: int, value: torch.Tensor) -> torch.Tensor:
    """The distance from each value's magnitude to the next larger one of its binade."""
    if kind not in (E4M3, E2M1):
        return torch.ones_like(value)
    fraction, smallest = (8, 2.0**-6) if kind == E4M3 else (2, 1.0)
    magnitude = value.abs().clamp(min=smallest).nan_to_num(nan=480.0)
    return torch.exp2(torch.floor(torch.log2(magnitude))) / fraction
