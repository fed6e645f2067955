"""Which arithmetic a scheme has: how its scales follow from the base's values, and to what its quotients are rounded.

What one scale for a whole tensor, or for a fused group, must be is known only when all rows of the base have been seen.
So tiles are held against the scale that is stored for the whole, and whether that is the right one is judged at the
end: one pass over the base suffices.

Source: ``calculate_qparams``, ``generate_gparam`` and the compressors of compressed-tensors 0.19.0, as they run on a
CPU for ``model_free_ptq``; ``NVFP4QTensor`` and ``FP8QTensor`` of modelopt 0.47.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weighbridge.auditing.grid import Floats, Grid
from weighbridge.auditing.rounding import (
    BETWEEN,
    BF16,
    E2M1,
    F16,
    F32,
    FLOAT,
    MODELOPT,
    POWER_OF_TWO,
    SIGNED,
    UNDER_GLOBAL,
    WHOLE,
    Rule,
)
from weighbridge.formats import modelopt
from weighbridge.formats.observers import is_signed
from weighbridge.formats.schemes import Scheme


@dataclass(frozen=True, slots=True)
class Precision:
    """A dtype of weights, as arithmetic has it.

    Attributes:
        number: what the loops call it.
        epsilon: distance from 1 to the next larger value.
        tiny: the smallest normal value.
        of_zeros: the power of two that is the scale of a tile of zeros. It would be 2^-127, which F16 lacks.
    """

    number: int
    epsilon: np.float32
    tiny: np.float32
    of_zeros: np.float32


PRECISIONS: Mapping[str, Precision] = {
    "BF16": Precision(BF16, np.float32(2.0**-7), np.float32(2.0**-126), np.float32(2.0**-127)),
    "F16": Precision(F16, np.float32(2.0**-10), np.float32(2.0**-14), np.float32(1)),
    "F32": Precision(F32, np.float32(2.0**-23), np.float32(2.0**-126), np.float32(2.0**-127)),
}


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A way in which rows may have been rounded.

    Attributes:
        rule: how the scale of a tile follows from its values.
        in_float32: quotients were rounded to the grid as they are, not first to the dtype of the weights.
    """

    rule: Rule
    in_float32: bool

    def divisors(self, scales: Floats) -> Floats:
        """What weights were divided by, of the scales that are stored."""
        with np.errstate(all="ignore"):
            if self.rule.kind == UNDER_GLOBAL:
                return scales / self.rule.shared
            return scales * self.rule.shared if self.rule.kind == MODELOPT else scales


def arithmetics_of(
    grid: Grid, scheme: Scheme, form: str, dtype: str, whole: np.float32 | None
) -> tuple[Arithmetic, ...]:
    """The ways in which weights may have been rounded by a scheme; that of the format's own tool first.

    NVFP4 is rounded by two tools in two ways, and converted from the format of one to that of the other without new
    numbers, so that either may be found in either format.

    Args:
        form: ``compressed-tensors`` or ``modelopt``.
        dtype: of the weights: ``BF16``, ``F16`` or ``F32``.
        whole: the stored scale of the whole tensor; None in schemes without one.
    """
    args = scheme.weights
    if args.strategy != "tensor_group":
        return (Arithmetic(_rule(_kind(scheme), grid, dtype, np.float32(1)), False),)
    assert whole is not None
    if form == modelopt.METHOD:
        behind = _global_scale_behind(whole, dtype)
        found = [Arithmetic(_rule(MODELOPT, grid, dtype, whole), True)]
        return (*found, *([] if behind is None else [Arithmetic(_rule(UNDER_GLOBAL, grid, dtype, behind), True)]))
    return (
        Arithmetic(_rule(UNDER_GLOBAL, grid, dtype, whole), True),
        Arithmetic(_rule(MODELOPT, grid, dtype, reciprocal(whole)), True),
    )


def own_rule(grid: Grid, scheme: Scheme, dtype: str) -> Rule:
    """How a tile's own values give a scale, whatever is stored for the whole tensor."""
    kind = FLOAT if scheme.weights.strategy in ("tensor", "tensor_group") else _kind(scheme)
    return _rule(kind, grid, dtype, np.float32(1))


def whole_scales(grid: Grid, form: str, scheme: Scheme, dtype: str, amaxes: Sequence[float]) -> list[np.float32]:
    """What the scale of a whole tensor may be, for each largest value that it may be made of; none if it has none."""
    if scheme.weights.strategy not in ("tensor", "tensor_group"):
        return []
    values = [np.float32(amax) for amax in amaxes]
    if scheme.weights.strategy == "tensor":
        # Of two tools, and converted from the format of one to that of the other as they are.
        theirs = [amax / np.float32(grid.half_range) for amax in values]
        rounded = [_rounded(scale, dtype) for scale in theirs]
        ours = [PRECISIONS[dtype].epsilon if scale == 0 else scale for scale in rounded]
        return [*theirs, *ours] if form == modelopt.METHOD else [*ours, *theirs]
    own = [_global_scale(amax, dtype) for amax in values]
    # On a GPU torch multiplies by the reciprocal of a number that it should divide by.
    other = [amax / np.float32(2688) for amax in values]
    other += [amax * (np.float32(1) / np.float32(2688)) for amax in values]
    if form == modelopt.METHOD:
        return [*other, *(reciprocal(scale) for scale in own)]
    return [*own, *(reciprocal(scale) for scale in other)]


def narrowed(values: Floats, dtype: str) -> Floats:
    """float32 values, each rounded to the nearest value of `dtype`, ties to even."""
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if dtype == "F32":
        return values
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)).view(
        np.float32
    )


def _rounded(value: np.float32, dtype: str) -> np.float32:
    return np.float32(narrowed(np.array([value], np.float32), dtype)[0])


def reciprocal(scale: np.float32) -> np.float32:
    """What a conversion stores for a global scale; of a scale that means nothing, something that means nothing."""
    with np.errstate(all="ignore"):
        return np.float32(np.float32(1) / scale)


def _kind(scheme: Scheme) -> int:
    args = scheme.weights
    if args.strategy == "tensor":
        return WHOLE
    if not args.symmetric:
        return BETWEEN
    if is_signed(args):
        return SIGNED
    return POWER_OF_TWO if args.scale_dtype == "torch.uint8" else FLOAT


def _rule(kind: int, grid: Grid, dtype: str, shared: np.float32) -> Rule:
    precision = PRECISIONS[dtype]
    return Rule(
        kind=kind,
        dtype=precision.number,
        half_range=np.float32(grid.half_range),
        bottom=grid.places.lowest,
        shared=shared,
        epsilon=precision.epsilon,
        tiny=precision.tiny,
        of_zeros=precision.of_zeros,
        largest_power=np.float32(4 if grid.kind == E2M1 else 256),
    )


def _global_scale(amax: np.float32, dtype: str) -> np.float32:
    """compressed-tensors' global scale: 448 x 6 / amax in two steps, each rounded to `dtype`; 1 where it overflows."""
    with np.errstate(all="ignore"):
        scale = _rounded(_rounded(np.float32(1) / amax, dtype) * np.float32(2688), dtype)
    return scale if np.isfinite(scale) else np.float32(1)


def _global_scale_behind(shared: np.float32, dtype: str) -> np.float32 | None:
    """compressed-tensors' global scale that was converted to this ``weight_scale_2``; None where there is none."""
    guess = _rounded(reciprocal(shared), dtype)
    with np.errstate(all="ignore"):
        unit = np.float32(abs(guess) * PRECISIONS[dtype].epsilon)
        around = [_rounded(np.float32(guess + np.float32(step) * unit), dtype) for step in (0, -0.5, 0.5, -1, 1, -2, 2)]
    usable = (scale for scale in around if np.isfinite(scale) and scale > 0)
    return next((scale for scale in usable if reciprocal(scale) == shared), None)
