"""Weights that come out the same on every platform: hashes of a tensor's name and of the positions in it.

Only integer operations and exact scalings by powers of two are used, no library's random generator and no
transcendental function, so nothing depends on a version or on a processor.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

# A sum of four uniform 13-bit integers is close to normal; its standard deviation is about 4,730, or 2**12.2.
_FIELDS = range(0, 52, 13)
_FIELD = (1 << 13) - 1


def bf16(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
    """The BF16 bit patterns of the tensor of this name, in the shape given.

    Matrices and stacks of matrices are drawn around zero, with rows of different scales and rare outliers, both of
    whole rows and of single elements, as trained weights have them; vectors lie close to one, as norms and scales do.
    """
    if len(shape) == 1:
        return _rounded(_narrow(name, shape[0])).reshape(shape)
    return _rounded(_spread(name, math.prod(shape[:-1]), shape[-1])).reshape(shape)


def _spread(name: str, rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Values around zero, F32 [rows, columns]; the standard deviation of a common row is about 0.035."""
    bits = _hashes(name, rows * columns).reshape(rows, columns)
    # The twelve bits that no field uses make one element in 1024 larger, by a factor of 8 or of 16.
    rare = bits >> np.uint64(52)
    shift = np.where(rare & np.uint64(1023) == 0, np.uint64(3) + (rare >> np.uint64(11)), np.uint64(0))
    # A row's scale is between 8 and 23 sixteenths, and four times that in one row of 64.
    row_bits = _hashes(f"{name} rows", rows)
    scale = (8 + _integers(row_bits & np.uint64(15))) << np.where(row_bits >> np.uint64(58) == 0, 2, 0)
    values = (_normal(bits) * scale[:, None]) << _integers(shift)
    # At most 21 significant bits: exact in F32, and so is the scaling.
    return values.astype(np.float32) * np.float32(2.0 ** -_halvings(name))


def _halvings(name: str) -> int:
    if name.endswith("router.proj.weight"):
        return 16  # logits spread by about one: experts are chosen with some confidence, not by rounding errors
    return 20 if name.endswith("embed_tokens.weight") else 21


def _narrow(name: str, count: int) -> npt.NDArray[np.float32]:
    """Values in a quarter around a centre, F32 [count]: one, or what the few vectors of another kind need."""
    if name.endswith("std_bias"):
        centre, halvings = 0, 16
    elif name.endswith("k_norm.weight"):
        # Attention is not scaled by the head's size: keys of full length would have each token see one other.
        centre, halvings = 1 << 16, 18
    else:
        centre, halvings = 1 << 16, 16
    return (centre + _normal(_hashes(name, count))).astype(np.float32) * np.float32(2.0**-halvings)


def _normal(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
    """Integers in -16382 to 16382, close to normal, from 52 of each element's bits; same shape."""
    total = np.full(bits.shape, -2 * _FIELD, dtype=np.int32)
    for offset in _FIELDS:
        total += _integers(bits >> np.uint64(offset) & np.uint64(_FIELD))
    return total


def _hashes(label: str, count: int) -> npt.NDArray[np.uint64]:
    """The first `count` outputs of the splitmix64 generator that `label` seeds, uint64 [count]."""
    seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "little")
    state = np.arange(1, count + 1, dtype=np.uint64)
    state *= np.uint64(0x9E3779B97F4A7C15)
    state += np.uint64(seed)
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state


def _rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The BF16 bit patterns nearest to these finite F32 values, ties to even; same shape."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def _integers(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
    return values.astype(np.int32)
