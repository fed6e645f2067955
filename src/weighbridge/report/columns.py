"""A table in as many columns of characters as a terminal has; every name stays whole, so that it can be copied."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

GAP = "  "
BENEATH = 1.5
"""What a line counts, where the figures of a row stand beneath its name."""
Row = Sequence[str]


def lay_out(columns: Row, rows: Sequence[Row], width: int) -> list[str]:
    """Lines of a table, none wider than `width`, except where a single word is.

    What fits stands as it is. Otherwise the words of headers go one under the other; columns that do not fit all the
    same follow in a table of their own, behind the first columns again, which tell the rows apart; or the figures of a
    row stand beneath its name. Of these ways the one with the fewest lines is taken; those of the last, which are the
    hardest to read, count more.
    """
    table = [columns, *rows]
    ways: list[tuple[float, list[str]]] = []
    for sizes in _sizes(table):
        if _wide(sizes) <= width:
            lines = _drawn(table, sizes)
            ways.append((len(lines), lines))
            break  # more lines in the headers make the table no shorter
        ways += [(len(lines), lines) for lines in _side_by_side(table, sizes, width)]
        lines = _beneath(table, sizes, width)
        ways.append((BENEATH * len(lines), lines))
    return min(ways, key=lambda way: way[0])[1]


def wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """Lines of a text, broken at spaces alone."""
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def longest_word(texts: Iterable[str]) -> int:
    """Length of the longest word in some texts; 0 where there is none."""
    return max((len(word) for text in texts for word in text.split()), default=0)


def _sizes(table: Sequence[Row]) -> Iterator[list[int]]:
    """Widths of the columns: with headers of one line, of two, and so on until all their words are apart."""
    columns = list(zip(*table, strict=True))
    for lines in range(1, max(2, *(len(name.split()) + 1 for name, *_ in columns))):
        yield [max(_narrowest(name, lines), *map(len, cells), 0) for name, *cells in columns]


def _narrowest(text: str, lines: int) -> int:
    """The least width in which a text takes no more than so many lines."""
    return next(w for w in range(longest_word([text]), len(text) + 1) if len(wrapped(text, w or 1)) <= lines)


def _side_by_side(table: Sequence[Row], sizes: Sequence[int], width: int) -> Iterator[list[str]]:
    """The table in parts, each behind the columns that tell the rows apart; no way if these leave too little room."""
    keys = _telling(table[1:])
    room = width - _wide([*sizes[:keys], 0])
    if keys == len(sizes) or room < max(1, longest_word(cell for row in table for cell in row[keys:])):
        return
    lines: list[str] = []
    for begin, end in _spans(sizes, keys, room):
        part = [[*row[:keys], *row[begin:end]] for row in table]
        lines += ["", *_drawn(part, [*sizes[:keys], *(min(size, room) for size in sizes[begin:end])])]
    yield lines[1:]


def _beneath(table: Sequence[Row], sizes: Sequence[int], width: int) -> list[str]:
    """Each row's name in a line of its own, and its figures beneath."""
    keys = _telling(table[1:])
    room = width - len(GAP)
    spans = list(_spans(sizes, keys, room))
    drawn = [
        _lines_by_row([row[begin:end] for row in table], [min(size, room) for size in sizes[begin:end]], left=0)
        for begin, end in spans
    ]
    lines = []
    for number, row in enumerate(table):
        lines += wrapped(GAP.join(row[:keys]), width)
        lines += [f"{GAP}{line}" for part in drawn for line in part[number]]
    return lines


def _drawn(table: Sequence[Row], sizes: Sequence[int]) -> list[str]:
    return [line for row in _lines_by_row(table, sizes, left=1) for line in row]


def _lines_by_row(table: Sequence[Row], sizes: Sequence[int], *, left: int) -> list[list[str]]:
    """The lines of each row: words at the left in the first `left` columns and in those with text of several lines."""
    cells = [
        [wrapped(cell, size) if len(cell) > size else [cell] for cell, size in zip(row, sizes, strict=True)]
        for row in table
    ]
    prose = [index < left or any(len(row[index]) > 1 for row in cells[1:]) for index in range(len(sizes))]
    found = []
    for number, row in enumerate(cells):
        height = max(map(len, row), default=0)
        # A header stands on its figures; text of several lines hangs from the row's first.
        filled = [
            [""] * (height - len(cell)) + cell if number == 0 else cell + [""] * (height - len(cell)) for cell in row
        ]
        found.append(
            [
                GAP.join(
                    cell.ljust(size) if at_left else cell.rjust(size)
                    for cell, size, at_left in zip(line, sizes, prose, strict=True)
                ).rstrip()
                for line in zip(*filled, strict=True)
            ]
        )
    return found


def _telling(rows: Sequence[Row]) -> int:
    """How many of the first columns it takes to tell the rows apart; one, where even all do not."""
    if not rows:
        return 1
    counts = range(1, max(2, len(rows[0])))
    return next((count for count in counts if len({tuple(row[:count]) for row in rows}) == len(rows)), 1)


def _spans(sizes: Sequence[int], first: int, room: int) -> Iterator[tuple[int, int]]:
    """Columns from `first` on, begin and end, as many at a time as fit."""
    begin = first
    for end in range(first + 1, len(sizes) + 1):
        if end == len(sizes) or _wide([min(size, room) for size in sizes[begin : end + 1]]) > room:
            yield begin, end
            begin = end


def _wide(sizes: Sequence[int]) -> int:
    return sum(sizes) + len(GAP) * (len(sizes) - 1)
