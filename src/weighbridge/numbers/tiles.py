"""The value of each tile of a row, for each of its columns.

numba's cache notices no change of this file: whoever makes one touches the files that use it.
"""

from __future__ import annotations

from typing import Any

from weighbridge.machine.compiling import jit


@jit
def is_narrow(width: Any, columns: Any) -> Any:
    """Whether tiles are too narrow for a loop over each: LLVM's vector loops take 64 elements at a time."""
    return 1 < width <= 64 and width & (width - 1) == 0 and columns % width == 0


@jit
def spread(values: Any, width: Any, scratch: Any, columns: Any) -> None:
    """Fill `columns` with the value of each column's tile; tiles lie side by side.

    Args:
        values: of each tile.
        width: columns of a tile.
        scratch: room for as many values as `columns` has.
    """
    if is_narrow(width, columns.shape[0]):
        _spread_narrow(values, scratch, columns)
    else:
        for tile in range(values.shape[0]):
            columns[tile * width : (tile + 1) * width] = values[tile]


@jit
def _spread_narrow(values: Any, scratch: Any, columns: Any) -> None:
    begin, size = 0, values.shape[0]
    while 2 * size < columns.shape[0]:
        doubled = scratch[begin : begin + 2 * size]
        _twice(values, doubled)
        begin, size, values = begin + 2 * size, 2 * size, doubled
    _twice(values, columns)


@jit
def _twice(values: Any, doubled: Any) -> None:
    for position in range(values.shape[0]):
        doubled[2 * position] = values[position]
        doubled[2 * position + 1] = values[position]
