"""The pictures of number formats: ``python -m docs.pictures.draw`` writes them beside this file.

The values of codes are those that the audit reads them as. A picture has a ground of its own, and so is legible on
light pages and on dark ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from weighbridge.auditing.grid import Rows, grid_of, values_of
from weighbridge.formats.schemes import PRESETS

HERE = Path(__file__).parent
WIDTH = 760
SIGN, EXPONENT, FRACTION, WHOLE = "#c2410c", "#2563eb", "#15803d", "#7c3aed"
INK, GROUND = "#333333", "#fafafa"

LAYOUTS: Mapping[str, Sequence[tuple[str, int, str]]] = {
    "BF16": (("sign", 1, SIGN), ("exponent", 8, EXPONENT), ("fraction", 7, FRACTION)),
    "FP8 E4M3": (("sign", 1, SIGN), ("exponent", 4, EXPONENT), ("fraction", 3, FRACTION)),
    "FP4 E2M1": (("sign", 1, SIGN), ("exponent", 2, EXPONENT), ("fraction", 1, FRACTION)),
    "INT4": (("whole number", 4, WHOLE),),
    "E8M0 (scale)": (("exponent", 8, EXPONENT),),
}
"""Format -> its fields from the highest bit down: name, bits, colour."""


def values() -> dict[str, list[float]]:
    """Format -> every value that a code of it stands for, ascending, as the audit reads codes."""
    return {"INT4": _values("W4A16"), "FP4 E2M1": _values("NVFP4A16"), "FP8 E4M3": _values("FP8_DYNAMIC")}


def _values(preset: str) -> list[float]:
    grid = grid_of(PRESETS[preset])
    assert grid is not None
    codes, one = np.arange(1 << grid.bits, dtype=np.uint8)[:, None], np.ones((1, 1), np.float32)
    rows = Rows(grid, 1, codes, one, one, np.zeros((1, 1), np.float32))
    return sorted({float(value) for value in values_of(rows)[:, 0] if not np.isnan(value)})


def bit_layouts() -> str:
    """A box for each bit, by field."""
    parts: list[str] = []
    for row, (name, fields) in enumerate(LAYOUTS.items()):
        top, x = 16 + row * 46, 130
        parts.append(_text(0, top + 19, name))
        for field, bits, colour in fields:
            parts.append(_box(x, top, 34 * bits - 2, 28, colour))
            parts += [f'<path d="M{x + 34 * bit - 1} {top}v7" stroke="{GROUND}"/>' for bit in range(1, bits)]
            parts.append(_text(x + 17 * bits - 1, top + 20, field if bits > 2 else field[0], "#ffffff", "middle"))
            x += 34 * bits
    return _svg(16 + len(LAYOUTS) * 46, "Bit layouts of the formats", parts)


def code_points() -> str:
    """A line for each value that a code can have, every range at the same width."""
    parts: list[str] = []
    for row, (name, points) in enumerate(values().items()):
        top, span = 16 + row * 76, max(map(abs, points))
        parts += [_text(0, top + 16, name), _text(0, top + 34, f"{len(points)} values")]
        for value in points:
            x = 440 + 300 * value / span
            parts.append(f'<path d="M{x:.2f} {top}v34" stroke="{EXPONENT}" stroke-width="1.4"/>')
        for value in (points[0], 0.0, points[-1]):
            parts.append(_text(440 + 300 * value / span, top + 50, f"{value:g}", anchor="middle"))
    return _svg(16 + 3 * 76, "The values that codes can have", parts)


def shared_scales() -> str:
    """A matrix for each way in which weights share a scale; one colour is one scale."""
    ways: Sequence[tuple[str, str, Callable[[int, int], int]]] = (
        ("FP8_DYNAMIC", "an output row", lambda row, _: row),
        ("FP8_BLOCK", "a block of 128 x 128", lambda row, column: row // 4 * 9 + column // 4),
        ("W4A16, MXFP4", "a group along a row", lambda row, column: row * 9 + column // 4),
        ("NVFP4", "16 along a row, and all", lambda row, column: row * 9 + column // 2),
    )
    colours = (EXPONENT, FRACTION, SIGN, WHOLE)
    parts: list[str] = []
    for number, (name, shared, scale_of) in enumerate(ways):
        left = number * 190
        for row in range(8):
            for column in range(8):
                scale = scale_of(row, column)
                colour = colours[(scale + scale // 9) % len(colours)]
                parts.append(_box(left + 8 + column * 20, 16 + row * 14, 18, 12, colour))
        if name == "NVFP4":
            parts.append(
                f'<rect x="{left + 3}" y="11" width="169" height="120" fill="none" stroke="{INK}" stroke-width="2"/>'
            )
        parts += [_text(left + 8, 152, name), _text(left + 8, 170, shared)]
    return _svg(182, "Which weights share a scale", parts)


PICTURES = {
    "bit-layouts.svg": bit_layouts,
    "code-points.svg": code_points,
    "shared-scales.svg": shared_scales,
}


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="{colour}"/>'


def _text(x: float, y: float, text: str, colour: str = INK, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}">{text}</text>'


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    return "\n".join(_lines(height, title, parts)) + "\n"


def _lines(height: int, title: str, parts: Sequence[str]) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 0 {WIDTH + 24} {height}" width="{WIDTH}" '
        'font-family="sans-serif" font-size="14" role="img">'
    )
    yield f"<title>{title}</title>"
    yield f'<rect x="-12" y="0" width="{WIDTH + 24}" height="{height}" rx="8" fill="{GROUND}"/>'
    yield from parts
    yield "</svg>"


def main() -> None:
    """Entry point."""
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw())


if __name__ == "__main__":
    main()
