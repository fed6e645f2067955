"""Weights that are hard to quantize, and whether two kernels agree on them.

A device may be trusted with a build if its kernels agree with those of the CPU here. On CUDA, a division made into a
multiplication or a subnormal flushed to zero would show. To ask a machine::

    from tests.kernel_agreement import disagreements
    from weighbridge.numbers.portable import PortableKernels
    print(disagreements(PortableKernels("cuda"), PortableKernels("cpu")))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from weighbridge.formats.schemes import PRESETS, Scheme
from weighbridge.numbers.encoding import INTEGER_BITS, SOURCES, Array, encoding_of
from weighbridge.numbers.interface import Kernels, RangeTooLarge


def _changed(preset: str, **weights: Any) -> Scheme:
    return replace(PRESETS[preset], weights=replace(PRESETS[preset].weights, **weights))


COVERED: Mapping[str, Scheme] = {
    name: scheme
    for name, scheme in PRESETS.items()
    if scheme.weights.type == "float" or scheme.weights.num_bits in INTEGER_BITS.values()
}
"""The presets that the kernels cover: those of integers of other sizes are llm-compressor's to build."""

SCHEMES: Mapping[str, Scheme] = {
    **COVERED,
    "W4A16 in groups of 8": _changed("W4A16", group_size=8),
    "W4A16 in groups of 32": _changed("W4A16", group_size=32),
    "W4A16 in groups of 64": _changed("W4A16", group_size=64),
    "W8A16 in groups of 32": _changed("W8A16", group_size=32),
    "W4A8 per channel": _changed("W8A8", num_bits=4),
    "W4A16_ASYM in groups of 32": _changed("W4A16_ASYM", group_size=32),
    "W8A16_ASYM": _changed("W4A16_ASYM", num_bits=8),
    "W8A8_ASYM": _changed("W8A8", symmetric=False),
}
"""Every scheme that the kernels cover, by name; what is observed apart."""

_OBSERVERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mse": ("memoryless_mse", {}),
    "expanded": ("nvfp4_expanded_mse", {}),
    "4/6": ("fouroversix", {"norm": 2}),
    "stopping": ("memoryless_mse", {"patience": 1, "grid": 40, "maxshrink": 0.5, "norm": 2.0}),
    "other powers": ("memoryless_mse", {"norm": 3, "expand": 1.3, "patience": 2, "grid": 33.3}),
    "signed": ("signed_minmax", {}),
    "signed, searched": ("signed_mse", {}),
}

OBSERVED: Mapping[str, Scheme] = {
    f"{scheme}, {name}": replace(
        SCHEMES[scheme], weights=replace(SCHEMES[scheme].weights, observer=observer, observer_kwargs=arguments)
    )
    for scheme in (
        "NVFP4A16",
        "W4A16 in groups of 32",
        "W4A16_ASYM in groups of 32",
        "W8A16",
        "W8A8_ASYM",
        "FP8_DYNAMIC",
        "FP8_BLOCK",
        "MXFP4A16",
        "MXFP8A16",
    )
    for name, (observer, arguments) in _OBSERVERS.items()
    if not observer.startswith("signed") or scheme in ("W4A16 in groups of 32", "W8A16")
}
"""Schemes whose ranges are chosen by other observers than min-max."""


def hard_weight(kind: str, dtype: str, rows: int, columns: int) -> Array:
    """Raw `dtype` elements, [rows, columns], hard in the way that `kind` (of `KINDS`) says. Always the same ones."""
    return KINDS[kind](dtype, (rows, columns), np.random.default_rng(0))


def disagreements(first: Kernels, second: Kernels, *, rows: int = 130) -> list[str]:
    """Where the two do not give the same bytes: dtype, kind of weight, width, scheme, and which tensors differ."""
    found = []
    for dtype in SOURCES:
        for columns in (128, 704):
            for kind in KINDS:
                weight = hard_weight(kind, dtype, rows, columns)
                if first.amax(weight, dtype) != second.amax(weight, dtype):
                    found.append(f"{dtype} {kind} {columns}: amax")
                for name, scheme in {**SCHEMES, **OBSERVED}.items():
                    if columns % (encoding_of(scheme).width or 1) and scheme.weights.group_size:
                        continue
                    one, other = (_quantized(kernels, weight, dtype, scheme) for kernels in (first, second))
                    different = sorted(
                        tensor
                        for tensor in one.keys() | other.keys()
                        if tensor not in one or tensor not in other or one[tensor].tobytes() != other[tensor].tobytes()
                    )
                    if different:
                        found.append(f"{dtype} {kind} {columns} {name}: {', '.join(different)}")
    return found


def _quantized(kernels: Kernels, weight: Array, dtype: str, scheme: Scheme) -> dict[str, Array]:
    try:
        return kernels.quantize(weight, dtype, scheme)
    except RangeTooLarge:
        return {}


Make = Callable[[str, tuple[int, int], np.random.Generator], Array]

_UNSIGNED = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}
_EXPONENT_AT = {"BF16": 7, "F16": 10, "F32": 23}
_SIGN_AT = {"BF16": 15, "F16": 15, "F32": 31}
_INFINITY = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}


def _of_bits(dtype: str, magnitudes: Array, random: np.random.Generator) -> Array:
    """Elements of these bit patterns, each with a random sign."""
    signs = random.integers(0, 2, magnitudes.shape) << _SIGN_AT[dtype]
    return (magnitudes | signs).astype(_UNSIGNED[dtype]).view(SOURCES[dtype].array)


def _of_values(dtype: str, values: Array) -> Array:
    """Elements of these values; BF16 by cutting off what it cannot hold."""
    if dtype != "BF16":
        return np.clip(values, -65504, 65504).astype(SOURCES[dtype].array)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def _normal(dtype: str, shape: tuple[int, int], random: np.random.Generator) -> Array:
    return _of_values(dtype, random.standard_normal(shape) * 0.02)


def _outliers(dtype: str, shape: tuple[int, int], random: np.random.Generator) -> Array:
    far = np.where(random.random(shape) < 0.005, 300, 1)
    return _of_values(dtype, random.standard_normal(shape) * 0.02 * far)


def _many_magnitudes(dtype: str, shape: tuple[int, int], random: np.random.Generator) -> Array:
    return _of_values(dtype, random.standard_normal(shape) * np.exp(3 * random.standard_normal(shape)))


def _zeros(dtype: str, shape: tuple[int, int], random: np.random.Generator) -> Array:
    return _of_bits(dtype, np.zeros(shape, np.int64), random)


def _zero_rows_and_blocks(dtype: str, shape: tuple[int, int], random: np.random.Generator) -> Array:
    weight = _normal(dtype, shape, random)
    weight[::9] = 0
    weight[:128, :128] = 0
    return weight


def _subnormal(dtype: str, shape: tuple[int, int], random: np.random.Generator) -> Array:
    return _of_bits(dtype, random.integers(0, 1 << _EXPONENT_AT[dtype], shape), random)


def _smallest(dtype: str, shape: tuple[int, int], random: np.random.Generator) -> Array:
    # Scales of such rows underflow: amax over 448 may be no value of the dtype.
    limits = random.integers(1, 1000, (shape[0], 1))
    return _of_bits(dtype, random.integers(0, limits, shape), random)


def _largest(dtype: str, shape: tuple[int, int], random: np.random.Generator) -> Array:
    top = _INFINITY[dtype]
    return _of_bits(dtype, random.integers(top - (3 << _EXPONENT_AT[dtype]), top, shape), random)


def _any_pattern(dtype: str, shape: tuple[int, int], random: np.random.Generator) -> Array:
    return _of_bits(dtype, random.integers(0, _INFINITY[dtype], shape), random)


def _few_binades(dtype: str, shape: tuple[int, int], random: np.random.Generator) -> Array:
    span = 12 << _EXPONENT_AT[dtype]
    tops = random.integers(span, _INFINITY[dtype], (shape[0], 1))
    return _of_bits(dtype, random.integers(tops - span, tops, shape), random)


def _ties(dtype: str, shape: tuple[int, int], random: np.random.Generator) -> Array:
    # Where the largest value is a power of two times half the range of an element, the scale is that power exactly, and
    # midpoints between codes can be met.
    half_ranges = random.choice([448.0, 6.0, 7.5, 127.5], (shape[0], 1))
    significands = random.integers(0, 64, shape) / 4
    values = np.minimum(significands * 2.0 ** random.integers(-8, 6, shape), half_ranges)
    values[:, ::8] = half_ranges
    values *= 2.0 ** random.integers(-6, 6, (shape[0], 1))
    return _of_values(dtype, values * random.choice([-1, 1], shape))


def _few_on_the_grid(dtype: str, shape: tuple[int, int], random: np.random.Generator) -> Array:
    # Mostly zeros, and else what some range leaves without an error.
    values = random.choice([0.5, 1, 2, 4, 6, 7], shape) * (random.random(shape) < 0.1)
    return _of_values(dtype, values * 2.0 ** random.integers(-6, 6, (shape[0], 1)) * random.choice([-1, 1], shape))


KINDS: Mapping[str, Make] = {
    "normal": _normal,
    "outliers": _outliers,
    "many magnitudes": _many_magnitudes,
    "zeros": _zeros,
    "zero rows and blocks": _zero_rows_and_blocks,
    "subnormal": _subnormal,
    "smallest": _smallest,
    "largest": _largest,
    "any pattern": _any_pattern,
    "few binades": _few_binades,
    "ties": _ties,
    "few on the grid": _few_on_the_grid,
}
"""Kinds of hard weights."""
