"""Quantizing a rectangle of a weight, to the bytes that llm-compressor writes on a CPU."""

from __future__ import annotations

from contextlib import suppress

from weighbridge.numbers.encoding import Encoding, SchemeNotCovered, encoding_of
from weighbridge.numbers.interface import Kernels, NonFiniteWeight, RangeTooLarge

__all__ = [
    "Encoding",
    "Kernels",
    "NonFiniteWeight",
    "RangeTooLarge",
    "SchemeNotCovered",
    "encoding_of",
    "load_kernels",
]


def load_kernels(device: str) -> Kernels:
    """The kernels for `device`: compiled ones for ``cpu`` where numba is installed, else torch's.

    All give the same bytes. The compiled ones may be called by several threads at once and scale with them.
    """
    if device == "cpu":
        with suppress(ImportError):
            from weighbridge.numbers.compiled import CompiledKernels

            return CompiledKernels()
    from weighbridge.numbers.portable import PortableKernels

    return PortableKernels(device)
