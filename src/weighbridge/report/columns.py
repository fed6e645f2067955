"""A table in as many columns of characters as a terminal has, with every name whole, so that it can be copied."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

GAP = "  "
DEEPER = "  "

Rows = Sequence[Sequence[str]]


def lay_out(columns: Sequence[str], rows: Rows, width: int) -> list[str]:
    """Lines of a table, none wider than `width`, except where a single word is.

    What fits stands as it is. Else the words of the headers are put one under the other; else the columns that do not
    fit follow in a table of their own, with the columns again that tell the rows apart; and beside a name that leaves
    no room for any figure, the figures stand in the line beneath it.
    """
    table = [columns, *rows]
    whole = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    if _wide(whole) <= width:
        return [_line(row, whole) for row in table]
    widths = [
        min(max(*map(len, column.split() or [""]), *map(len, cells)), width)
        for column, *cells in zip(*table, strict=True)
    ]
    keys = _telling(rows)
    beneath = _wide(widths[:keys]) + len(GAP) + min(widths[keys:], default=0) > width
    room = width - (len(DEEPER) if beneath else _wide(widths[:keys]) + len(GAP))
    lines: list[str] = []
    for begin, end in _spans(widths[keys:], room):
        part = slice(keys + begin, keys + end)
        sizes = [min(size, room) for size in widths[part]]
        lines += [""] if lines else []
        for row in table:
            head = row is columns
            cells = [*_cells(row[part], sizes, wrapped=head or len(sizes) == 1)]
            if beneath:
                lines += [*_fill(GAP.join(row[:keys]).rstrip(), width)]
                lines += [f"{DEEPER}{_line(line, [0, *sizes])[len(GAP):]}".rstrip() for line in cells]
            else:
                lines += _beside(row[:keys], cells, widths, keys, part)
    return lines
