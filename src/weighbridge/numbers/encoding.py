"""What a kernel has to know of a scheme and of a source dtype, and the arithmetic that both kernels share.

Source: ``calculate_qparams``, ``generate_gparam`` and the compressors of compressed-tensors 0.19.0, as they run on a
CPU for ``model_free_ptq``. A scale is computed and kept in the weight's own dtype, so a BF16 weight has a scale, a
quotient and even an NVFP4 global scale of eight significant bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from weighbridge.formats.observers import Search, UnknownChoice, observer_of
from weighbridge.formats.schemes import QuantizationArgs, Scheme

Array = np.ndarray[Any, Any]
Element = Literal["E4M3", "E2M1", "INT4", "INT8"]
ScaleKind = Literal["float", "E4M3", "E8M0"]

HALF_RANGE: Mapping[Element, float] = {"E4M3": 448.0, "E2M1": 6.0, "INT4": 7.5, "INT8": 127.5}
"""What the largest absolute value of a tile is divided by to give its scale: half of (largest - smallest code)."""

LARGEST_EXPONENT: Mapping[Element, int] = {"E2M1": 2, "E4M3": 8}
"""The exponent of the largest value of a floating element: floor(log2(6)) and floor(log2(448))."""

INTEGER_BITS: Mapping[Element, int] = {"INT4": 4, "INT8": 8}
"""Bits of an integer element."""


class SchemeNotCovered(ValueError):
    """The kernels do not quantize by this scheme; the message says what of it they lack."""


@dataclass(frozen=True, slots=True)
class Source:
    """A dtype in which weights arrive.

    Attributes:
        array: numpy dtype of the raw elements; BF16, which numpy lacks, comes as its bit patterns.
        epsilon: distance from 1 to the next larger value; what a scale of zero is replaced by.
        tiny: the smallest normal value.
        zero_exponent: E8M0 of a group of zeros. Its scale would be 2^-127; where the dtype lacks that, it is 1.
    """

    array: np.dtype[Any]
    epsilon: float
    tiny: float
    zero_exponent: int


SOURCES: Mapping[str, Source] = {
    "BF16": Source(np.dtype(np.uint16), 2.0**-7, 2.0**-126, 0),
    "F16": Source(np.dtype(np.float16), 2.0**-10, 2.0**-14, 127),
    "F32": Source(np.dtype(np.float32), 2.0**-23, 2.0**-126, 0),
}


@dataclass(frozen=True, slots=True)
class Encoding:
    """How one weight becomes codes and scales.

    Attributes:
        element: type of a code.
        scale: how the scale of a tile is kept: in the weight's dtype, as E4M3 under a global scale, as a power of two.
        packed: codes are stored as ``weight_packed`` rather than ``weight``.
        height: rows that share a scale; None is all of them.
        width: columns that share a scale; None is all of them.
        zero_points: codes span from the smallest to the largest value of a tile, and a zero point says where zero is.
        signed: a scale has the sign that puts the value of the largest magnitude at the smallest code.
        search: for the range of a tile that codes should span; None where it is the range of its values.
    """

    element: Element
    scale: ScaleKind
    packed: bool
    height: int | None
    width: int | None
    zero_points: bool = False
    signed: bool = False
    search: Search | None = None

    @property
    def needs_steps(self) -> bool:
        """Whether a slice can be quantized only by one who knows how many ranges are tried for all of the module."""
        return self.search is not None and self.search.may_stop

    @property
    def needs_amax(self) -> bool:
        """Whether a slice can be quantized only by one who knows the largest absolute value of all (or of the fused
        group): per-tensor scales and NVFP4's global scale."""
        return self.height is None or self.scale == "E4M3"

    @property
    def nibbles(self) -> bool:
        """Whether two codes share a byte."""
        return self.packed and self.element in ("E2M1", "INT4")

    def row_bytes(self, columns: int) -> int:
        """Bytes of the codes of one row; packed integers fill whole 32-bit words."""
        own = columns // 2 if self.nibbles else columns
        if self.packed and self.element in INTEGER_BITS:
            return -(-columns * INTEGER_BITS[self.element] // 32) * 4
        return own


def encoding_of(scheme: Scheme) -> Encoding:
    """How the weights of `scheme` are encoded.

    Raises:
        SchemeNotCovered: an observer that looks at activations, or a combination of type, strategy, scale and observer
            that has no arithmetic here.
    """
    args = scheme.weights
    try:
        observer = observer_of(args)
    except UnknownChoice as problem:
        raise SchemeNotCovered(str(problem)) from None
    if observer.needs_data:
        raise SchemeNotCovered(f"the observer {args.observer} looks at activations, which takes data")
    if args.reordered:
        raise SchemeNotCovered("columns grouped by activation are not covered")
    element = _element(args)
    height, width = _tile(args)
    if observer.signed and (args.type != "int" or not args.symmetric):
        raise SchemeNotCovered(f"the observer {args.observer} is for integers without zero points")
    if height is None and (observer.search is not None or observer.signed or not args.symmetric):
        # llm-compressor's own sums over a whole weight depend on how many threads add.
        raise SchemeNotCovered("one scale for a whole weight is that of its largest value, without zero points")
    packed = scheme.format in ("pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized")
    kind = _scale_kind(args, element)
    return Encoding(element, kind, packed, height, width, not args.symmetric, observer.signed, observer.search)


def global_scale(amax: float, dtype: str) -> np.float32:
    """NVFP4's global scale for weights of `dtype` whose largest absolute value is `amax`.

    It is 448 x 6 / amax in the weight's own dtype, and in two rounded steps, for torch divides a number by a tensor as
    ``reciprocal() * number``. Where it overflows it is 1: for F16 weights that is any amax below 0.041.
    """
    with np.errstate(over="ignore", divide="ignore"):
        reciprocal = rounded(np.float32(1) / np.float32(amax), dtype)
        scale = rounded(reciprocal * np.float32(448 * 6), dtype)
    return scale if np.isfinite(scale) else np.float32(1)


def rounded(value: np.float32, dtype: str) -> np.float32:
    """`value` rounded to the nearest value of `dtype`, ties to even."""
    match dtype:
        case "BF16":
            bits = int(value.view(np.uint32))
            return np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
        case "F16":
            return np.float32(np.float16(value))
        case _:
            return value


def stored_scales(scales: npt.NDArray[np.float32], dtype: str) -> Array:
    """Scales whose values `dtype` can hold, as raw elements of `dtype`."""
    if dtype == "BF16":
        return (scales.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return scales.astype(SOURCES[dtype].array)


def named(
    encoding: Encoding, codes: Array, scales: Array, zero_points: npt.NDArray[np.int8] | None, shared: np.float32 | None
) -> dict[str, Array]:
    """The tensors of a module, by local names: `codes` are uint8 [rows, bytes], `shared` is NVFP4's global scale."""
    if encoding.packed:
        tensors = {"weight_packed": codes.view(np.int32) if encoding.element in INTEGER_BITS else codes}
    else:
        tensors = {"weight": codes.view(np.int8) if encoding.element in INTEGER_BITS else codes}
    tensors["weight_scale"] = scales
    if zero_points is not None:
        packed = encoding.packed
        tensors["weight_zero_point"] = (
            _packed_down(zero_points, INTEGER_BITS[encoding.element]) if packed else zero_points
        )
    if shared is not None:
        tensors["weight_global_scale"] = np.array([shared])
    return tensors


def _packed_down(zero_points: npt.NDArray[np.int8], bits: int) -> Array:
    """Zero points [rows, groups] with their offset, packed down the rows: int32 [words, groups], ended by zeros."""
    each = 32 // bits
    rows, groups = zero_points.shape
    offset = np.zeros((-(-rows // each) * each, groups), np.uint32)
    offset[:rows] = zero_points.astype(np.int32) + (1 << (bits - 1))
    shifts = np.arange(0, 32, bits, dtype=np.uint32)[None, :, None]
    words: Array = (offset.reshape(-1, each, groups) << shifts).sum(axis=1, dtype=np.uint32)
    return words.view(np.int32)


def _element(args: QuantizationArgs) -> Element:
    match args.type, args.num_bits:
        case "float", 8:
            return "E4M3"
        case "float", 4:
            return "E2M1"
        case "int", 8:
            return "INT8"
        case "int", 4:
            return "INT4"
    raise SchemeNotCovered(f"{args.type}{args.num_bits} weights are not covered")


def _tile(args: QuantizationArgs) -> tuple[int | None, int | None]:
    match args.strategy:
        case "tensor":
            return None, None
        case "channel":
            return 1, None
        case "group" | "tensor_group":
            return 1, args.group_size
        case "block" if args.type == "float":
            assert args.block_structure is not None
            return args.block_structure
    raise SchemeNotCovered(f"{args.type} weights per {args.strategy} are not covered")


def _scale_kind(args: QuantizationArgs, element: Element) -> ScaleKind:
    match element, args.strategy, args.group_size, args.scale_dtype:
        case "E2M1", "tensor_group", 16, "torch.float8_e4m3fn":
            return "E4M3"
        case "E2M1" | "E4M3", "group", 32, "torch.uint8":
            return "E8M0"
        case "E4M3" | "INT4" | "INT8", "tensor" | "channel" | "group" | "block", _, None:
            return "float"
    raise SchemeNotCovered(f"{args} with scales of dtype {args.scale_dtype} is not covered")
