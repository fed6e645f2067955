"""Rows of a matrix that a file holds transposed, or one row of several linears after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Columns(NamedTuple):
    """Columns of a stored matrix that are the rows of a weight.

    Attributes:
        first: the first of them.
        step: from one to the next.
        width: elements of a row of the stored matrix.
    """

    first: int
    step: int
    width: int

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

    rows, inner = shape
    run = ((rows - 1) * columns.step + 1) * element
    stored = memoryview(bytearray(inner * run))
    for row in range(inner):
        begin = (row * columns.width + columns.first) * element
        read(offset + begin, stored[row * run : (row + 1) * run])
    kind = np.dtype(f"<u{element}")
    wanted = np.frombuffer(stored, kind).reshape(inner, -1)[:, :: columns.step]
    np.frombuffer(target, kind).reshape(rows, inner)[:] = wanted.T
