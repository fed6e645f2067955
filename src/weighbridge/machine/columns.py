"""Rows of a matrix that a file holds transposed, or one row of several linears after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

BLOCK_BYTES = 1024 * 1024
"""What is read before it is put in order, unless a single run is larger."""
GAP_BYTES = 16 * 1024
"""What may lie between two runs that are read in one call: that much is copied while another call is made."""


class Columns(NamedTuple):
    """Columns of a stored matrix that are the rows of a weight.

    Attributes:
        first: the first of them.
        step: from one to the next.
        width: columns of the stored matrix.
        each: elements of a column that lie side by side: more than 1 where a "column" is all of a row, and the stored
            matrix is the one row of them.
    """

    first: int
    step: int
    width: int
    each: int = 1

    @property
    def left(self) -> int:
        """How many columns there are from the first on."""
        return len(range(self.first, self.width, self.step))

    def after(self, rows: int) -> Columns:
        """The columns that are left when so many rows of the weight are passed by."""
        return self._replace(first=self.first + rows * self.step)


def gather(
    read: Callable[[int, memoryview], object],
    columns: Columns,
    *,
    offset: int,
    shape: tuple[int, int],
    element: int,
    target: memoryview,
) -> None:
    """Fill `target` with rows of a weight that lie as columns of a stored matrix.

    Args:
        read: fills a buffer with the bytes of the file from an offset on.
        offset: where the stored matrix begins.
        shape: rows and columns of the weight that are wanted; the stored matrix has as many rows as it has columns.
        element: bytes of an element.
        target: as many bytes as the wanted rows have.
    """
    import numpy as np  # most checkpoints need none of this

    from weighbridge.machine.turning import turn

    size, rows, inner = element * columns.each, shape[0], shape[1] // columns.each
    run, line = ((rows - 1) * columns.step + 1) * size, columns.width * size
    together = line - run <= GAP_BYTES
    apart = line if together else run
    at_once = max(1, min(inner, BLOCK_BYTES // apart))
    stored = memoryview(bytearray(at_once * apart))
    kind = np.dtype(f"<u{size}" if size in (1, 2, 4, 8) else f"V{size}")
    wanted = np.frombuffer(target, kind).reshape(rows, inner)
    for begin in range(0, inner, at_once):
        count = min(at_once, inner - begin)
        first = offset + begin * line + columns.first * size
        if together:
            read(first, stored[: (count - 1) * line + run])
        else:
            for row in range(count):
                read(first + row * line, stored[row * run : (row + 1) * run])
        lying = np.ndarray((count, rows), kind, stored, strides=(apart, columns.step * size))
        turned = wanted[:, begin : begin + count]
        if columns.each == 1:
            turn(lying, turned)
        else:
            turned[:] = lying.T
