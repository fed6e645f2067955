"""What the codes of each tile should span: the range of its own values, or the one that a search finds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weighbridge.formats.observers import Search
from weighbridge.numbers import elements, searching
from weighbridge.numbers.encoding import Array, Encoding
from weighbridge.numbers.interface import NonFiniteWeight, RangeTooLarge
from weighbridge.numbers.powers import table_of_powers
from weighbridge.numbers.scaling import NON_FINITE, kind_of, numbers_of
from weighbridge.numbers.tabulated import FEWEST_TILES, amax_patterns, powers_of, search_by_table, shares_of

_BIT_PATTERNS = {"BF16": np.uint16, "F16": np.int16, "F32": np.uint32}
ELEMENTS = {"E4M3": elements.E4M3, "E2M1": elements.E2M1, "INT4": elements.INTEGER, "INT8": elements.INTEGER}
"""What the loops call an element."""

_FLOATS_AT_ONCE = 1 << 18
"""Elements of F32 whose search is left to the portable kernels at once."""


def elements_of(weight: Array, dtype: str) -> Array:
    """`weight` as the integers that tell the compiled functions its dtype. Always read-only: they are compiled once."""
    bits = weight.view(_BIT_PATTERNS[dtype])
    bits.flags.writeable = False
    return bits


def own_ranges(weight: Array, dtype: str, encoding: Encoding) -> npt.NDArray[np.float32]:
    """The ends of the values of each tile, zero included: float32 [2, tiles down, across].

    Raises:
        UnusableWeight: a value is NaN or infinite, or a range is.
    """
    height, width, ranges = _laid_out(weight, encoding)
    _check(
        searching.own(elements_of(weight, dtype), height, width, encoding.zero_points, NON_FINITE[dtype], ranges),
        dtype,
        1,
    )
    return ranges


def found_ranges(
    weight: Array, dtype: str, encoding: Encoding, search: Search, steps: int | None
) -> npt.NDArray[np.float32]:
    """The ends of the range of the least error of each tile: float32 [2, tiles down, across].

    Args:
        steps: how many are tried; without it, as the search of `weight` itself says.

    Raises:
        UnusableWeight: a value is NaN or infinite, or a range is.
    """
    steps = _tried(weight, dtype, encoding, search, steps)
    found = _by_table(weight, encoding, search, steps, widest_alone=False) if dtype == "BF16" else None
    return _found(weight, dtype, encoding, search, steps, patience=0)[0] if found is None else found


def improving(weight: Array, dtype: str, encoding: Encoding, search: Search) -> int:
    """The steps that lessen the error of any tile, a bit for each; once those that are found settle how many steps are
    tried, there may be more.

    Raises:
        UnusableWeight: a value is NaN or infinite, or a range is.
    """
    return _found(weight, dtype, encoding, search, search.steps, patience=max(1, int(-(-search.patience // 1))))[1]


def widest(weight: Array, dtype: str, encoding: Encoding, search: Search, steps: int | None) -> float:
    """The largest end of all ranges of the least error.

    Raises:
        UnusableWeight: a value is NaN or infinite, or a range is.
    """
    tried = _tried(weight, dtype, encoding, search, steps)
    found = _by_table(weight, encoding, search, tried, widest_alone=True) if dtype == "BF16" else None
    return float(np.abs(found_ranges(weight, dtype, encoding, search, tried) if found is None else found).max())


def _tried(weight: Array, dtype: str, encoding: Encoding, search: Search, steps: int | None) -> int:
    """How many steps are tried; where nobody says so, as the search of `weight` itself does."""
    if steps is not None or not search.may_stop:
        return search.steps if steps is None else steps
    return search.reached(improving(weight, dtype, encoding, search))


def _found(
    weight: Array, dtype: str, encoding: Encoding, search: Search, steps: int, *, patience: int
) -> tuple[npt.NDArray[np.float32], int]:
    height, width, ranges = _laid_out(weight, encoding)
    if dtype == "F32":
        return _by_torch(weight, encoding, search, steps, height, ranges)
    lessened = np.zeros(steps, np.uint8)
    done = searching.search(
        elements_of(weight, dtype),
        ELEMENTS[encoding.element],
        kind_of(encoding),
        height,
        width,
        numbers_of(encoding, dtype, None, None),
        np.float32(search.expand),
        shares_of(search)[:steps],
        patience,
        table_of_powers(dtype, search.norm),
        dtype == "BF16",
        lessened,
        ranges,
    )
    _check(done, dtype, search.expand)
    return ranges, sum(1 << int(step) for step in np.flatnonzero(lessened))


def _by_table(
    weight: Array, encoding: Encoding, search: Search, steps: int, *, widest_alone: bool
) -> npt.NDArray[np.float32] | None:
    """What `_found` finds for BF16, in less time; None where there is no table, or too little to look up in it."""
    height, width, ranges = _laid_out(weight, encoding)
    if ranges[0].size < FEWEST_TILES or not steps:
        return None
    numbers, kind = numbers_of(encoding, "BF16", None, None), kind_of(encoding)
    powers = powers_of(encoding, search, kind, ELEMENTS[encoding.element], numbers, height * width)
    if powers is None:
        return None
    bits, patterns = elements_of(weight, "BF16"), np.empty(ranges[0].shape, np.uint16)
    amax_patterns(bits, height, width, patterns)
    if widest_alone:
        ranges[:] = 0
    # By fraction, so that what is looked up stays near; for the widest from the largest value down, of which few can be
    # the widest once the first was found.
    order = np.argsort((0x7FFF - patterns if widest_alone else patterns & 127).reshape(-1), kind="stable")
    done = search_by_table(
        bits,
        ELEMENTS[encoding.element],
        kind,
        height,
        width,
        numbers,
        np.float32(search.expand),
        shares_of(search)[:steps],
        float(search.norm),
        table_of_powers("BF16", search.norm),
        powers,
        np.empty(powers.padded, np.int32 if powers.slack else np.float32),
        patterns,
        order,
        widest_alone,
        ranges,
    )
    _check(done, "BF16", search.expand)
    return ranges


def _by_torch(
    weight: Array, encoding: Encoding, search: Search, steps: int, height: int, ranges: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], int]:
    from weighbridge.numbers.portable import PortableKernels  # torch, which the other dtypes do without

    kernels, found = PortableKernels("cpu"), 0
    each = max(1, _FLOATS_AT_ONCE // (height * weight.shape[1]))
    for down in range(0, ranges.shape[1], each):
        part = slice(down, down + each)
        rows = weight[down * height : (down + each) * height]
        ranges[0, part], ranges[1, part], lessened = kernels.ranges(rows, "F32", encoding, search, steps)
        found |= lessened
    return ranges, found


def _laid_out(weight: Array, encoding: Encoding) -> tuple[int, int, npt.NDArray[np.float32]]:
    rows, columns = weight.shape
    assert encoding.height is not None  # one scale for a whole weight is not searched for
    height, width = encoding.height, encoding.width or columns
    return height, width, np.empty((2, -(-rows // height), -(-columns // width)), np.float32)


def _check(what: int, dtype: str, expand: float) -> None:
    if what == searching.NOT_FINITE:
        raise NonFiniteWeight
    if what == searching.TOO_LARGE:
        raise RangeTooLarge(expand, dtype)
