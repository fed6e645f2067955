"""What every implementation of the kernels does, and how it refuses."""

from __future__ import annotations

from math import inf
from typing import Protocol

from weighbridge.formats.schemes import Scheme
from weighbridge.numbers.encoding import SOURCES, Array


class UnusableWeight(ValueError):
    """A weight of which no scale can be made."""


class NonFiniteWeight(UnusableWeight):
    """The weight holds NaN or infinity."""

    def __str__(self) -> str:
        return "the weight holds NaN or infinity"


class RangeTooLarge(UnusableWeight):
    """The range that scales are made of is infinite in the weight's dtype.

    Attributes:
        expand: what an observer multiplies the values' own range by before it searches.
    """

    def __init__(self, expand: float, dtype: str) -> None:
        self.expand, self.dtype = expand, dtype

    def __str__(self) -> str:
        return f"{self.expand:g} times the range of the weight's values is infinite in {self.dtype}"


class Kernels(Protocol):
    """Quantizes weights slice by slice, to the bytes that ``model_free_ptq`` writes on a CPU.

    A weight comes as a C-contiguous array of raw elements, [rows, columns]: BF16 as uint16 bit patterns, F16 as
    float16, F32 as float32. It may be read-only, unaligned, and some rows of a larger one; in a scheme of blocks it
    begins at a multiple of the block height.
    """

    def amax(self, weight: Array, dtype: str) -> float:
        """The largest absolute value, exactly.

        Raises:
            NonFiniteWeight: there is none.
            ValueError: the array is not what `dtype` says.
        """
        ...

    def largest(self, weight: Array, dtype: str, scheme: Scheme, *, steps: int | None = None) -> float:
        """What `quantize` wants to know of each part of a weight as `amax`, the largest counts.

        It is `amax`, or where ranges are searched for, the end of the widest that was found.

        Args:
            steps: as in `quantize`.

        Raises:
            as `quantize`.
        """
        ...

    def improving(self, weight: Array, dtype: str, scheme: Scheme) -> int:
        """Which steps of a search lessen the error of any tile, a bit for each, the first step lowest.

        Those of all parts of a weight, put together, say how many steps are tried (``Search.reached``).

        Raises:
            as `quantize`.
        """
        ...

    def quantize(
        self, weight: Array, dtype: str, scheme: Scheme, *, amax: float | None = None, steps: int | None = None
    ) -> dict[str, Array]:
        """Codes and scales of `weight`.

        Args:
            weight: all of a weight, or some of its rows.
            dtype: ``BF16``, ``F16`` or ``F32``.
            scheme: only what it says of weights counts.
            amax: the largest absolute value of the whole weight, or of all the weights that share its global scale;
                without it, of `weight` itself. Only per-tensor scales and NVFP4 look at it
                (``encoding_of(scheme).needs_amax``). See `largest`.
            steps: how many ranges are tried where they are searched for; without it, as `improving` says of `weight`.

        Returns:
            Local name -> array whose bytes are those that are stored, by the names and of the shapes of
            ``schemes.stored_tensors``. FP8 and E8M0 come as uint8, BF16 as uint16 bit patterns. What is not of these
            rows is left to the caller: ``weight_shape`` and the tensors of activations. ``weight_scale`` of a
            per-tensor scheme and ``weight_global_scale`` are the same in every slice.

        Raises:
            UnusableWeight: the weight holds NaN or infinity, or its range becomes infinite.
            SchemeNotCovered: see ``encoding_of``.
            SchemeMismatch: the scheme cannot be applied to a weight of this shape.
            ValueError: the array is not what `dtype` says, or `amax` is negative or not finite.
        """
        ...


def checked(weight: Array, dtype: str, amax: float | None = None) -> Array:
    """`weight` as it was given.

    Raises:
        ValueError: it is not a C-contiguous [rows, columns] array of raw elements of `dtype` with at least one element,
            or `amax` is not the absolute value of any.
    """
    if amax is not None and not 0 <= amax < inf:
        raise ValueError(f"the largest absolute value of the weights cannot be {amax}")
    if dtype not in SOURCES:
        raise ValueError(f"weights of dtype {dtype} are not quantized, only those of {', '.join(SOURCES)}")
    expected = SOURCES[dtype].array
    if weight.ndim != 2 or weight.dtype != expected or not weight.flags.c_contiguous or not weight.size:
        raise ValueError(
            f"{dtype} weights come as C-contiguous [rows, columns] of {expected}, "
            f"not {list(weight.shape)} of {weight.dtype}"
        )
    return weight
