"""How a published module's codes mean a weight: which of its tensors are read, and what each is for.

All that is decoded here is of one kind: a code, less the zero point of its tile where there is one, times the scale of
its tile. What differs is where these lie. A decoded weight is BF16, as upstream's converters give it. Source: the
converters and compressors of compressed-tensors 0.19.0, ``convert_moe_packed_tensors`` of transformers 5.17, AutoGPTQ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import lcm
from typing import Literal, NamedTuple

from weighbridge.formats import compressed_tensors, modelopt
from weighbridge.formats.layouts import GPTQ_V2, OF_DEEPSEEK_V4
from weighbridge.formats.schemes import QuantizationArgs, Scheme
from weighbridge.formats.tensors import FLOATING_SOURCES, Tensor

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which place of a word has the code of each of eight rows, as AutoAWQ packs them."""
DECODED = "BF16"
"""The dtype of a weight that codes stand for."""

Element = Literal["E4M3", "E2M1", "INTEGER"]
Packing = Literal["bytes", "nibbles", "awq"]
Shared = Literal["", "divides", "reciprocal"]

CODES, SCALES, ZEROS, SHARED, ORDER, SHAPE = "codes", "scales", "zeros", "shared", "order", "shape"
"""What a tensor of a module is for."""


class Undecodable(ValueError):
    """A stored module is not turned into numbers here; the message is a clause that says why."""


@dataclass(frozen=True, slots=True)
class Codec:
    """How codes become a weight.

    Attributes:
        said: the way of storing, in words.
        element: type of a code.
        packing: one code a byte; ``nibbles``, two, the first in the lower half; ``awq``, those of eight rows in a word
            of 32 bits, in `AWQ_ORDER`.
        bits: bits of a code.
        offset: what is taken from an integer code; None where it has a sign of its own.
        height: rows that share a scale; None is all of them.
        width: columns that share a scale; None is all of them.
        zero_bias: what is added to a stored zero point, before what is taken from codes is taken from it, too.
        in_half: whether code times scale is rounded to F16 before it becomes BF16: upstream multiplies in the dtype of
            the scales.
        shared: what a scale of the whole does to those of tiles: it divides them, or its reciprocal does.
        symmetric: whether zero points, where they are stored, must be the middle of the codes: servers that are told so
            do not read them.
        in_order: whether a stored order must be that of groups side by side: servers that are told so do not read it.
    """

    said: str
    element: Element
    packing: Packing
    bits: int
    offset: int | None
    height: int | None
    width: int | None
    zero_bias: int = 0
    in_half: bool = False
    shared: Shared = ""
    symmetric: bool = False
    in_order: bool = False


class Reading(NamedTuple):
    """One tensor of a module, as it is read beside the rows of the weight.

    Attributes:
        local: its name in the module.
        tensor: its dtype, and its shape as a matrix whose rows go along with those of the weight.
        each: how many rows of the weight go with one of its own; 0 for what stands once for the module.
        transposed: whether the file holds the matrix the other way round.
    """

    local: str
    tensor: Tensor
    each: int = 1
    transposed: bool = False


@dataclass(frozen=True)
class Coded:
    """A module as it is stored.

    Attributes:
        weight: what its codes stand for.
        readings: by what each is for (`CODES`, `SCALES`, …).
    """

    codec: Codec
    weight: Tensor
    readings: Mapping[str, Reading]

    @property
    def unit(self) -> int:
        """Rows of the weight that must be decoded together: those that share words. Those of a block need not be, and a
        publisher may call a block as high as they like.
        """
        return lcm(
            *(reading.each for reading in self.readings.values() if reading.tensor.dtype == "I32" and reading.each)
        )


Stored = Mapping[str, Tensor]


def coded(method: str, form: str, scheme: Scheme, stored: Stored) -> Coded:
    """How a module that a method stores so is decoded.

    Args:
        method: ``quant_method`` of the checkpoint's config.
        form: the format that its config declares.
        stored: local name -> dtype and shape, of one module; of fused experts, of one of them.

    Raises:
        Undecodable: nothing here decodes it, or its tensors are not those of its scheme.
    """
    return _coded(method, form, scheme, tuple(sorted(stored.items())))


@lru_cache(maxsize=4096)  # experts are many and alike
def _coded(method: str, form: str, scheme: Scheme, stored: tuple[tuple[str, Tensor], ...]) -> Coded:
    reader = CODECS.get(method)
    if reader is None:
        raise Undecodable(f"quant_method is {method}; decoded are {', '.join(CODECS)}")
    if scheme.weights.reordered and method == compressed_tensors.METHOD:
        raise Undecodable("its columns are grouped by activation (weight_g_idx)")
    return reader(form, scheme, dict(stored))


def _compressed_tensors(_: str, scheme: Scheme, stored: Stored) -> Coded:
    args = scheme.weights
    packed = scheme.format.endswith("pack-quantized")
    codes = _matrix(stored, "weight_packed" if packed else "weight", {"U8", "I32"} if packed else {"F8_E4M3", "I8"})
    per_byte = 2 if codes.dtype == "U8" else 1
    columns = codes.shape[-1] * (32 // args.num_bits if codes.dtype == "I32" else per_byte)
    weight = Tensor(DECODED, (codes.shape[0], columns))
    readings = {CODES: Reading("weight_packed" if packed else "weight", codes)}
    readings |= _scales(args, stored, "weight_scale", weight)
    if not args.symmetric:
        readings[ZEROS] = _zero_points(args, stored, readings[SCALES], weight, packed=packed)
    if args.strategy == "tensor_group":
        readings[SHARED] = _whole(stored, "weight_global_scale", {"F32"})
    shared: Shared = "divides" if args.strategy == "tensor_group" else ""
    codec = _codec(args, readings, offset=1 << (args.num_bits - 1) if packed else None, shared=shared)
    if "weight_shape" in stored and codes.dtype == "I32":
        shape = _need(stored, "weight_shape", {"I32", "I64"})
        if shape.shape != (2,):
            raise Undecodable(f"weight_shape is {shape}, where two numbers are meant")
        readings[SHAPE] = Reading("weight_shape", Tensor(shape.dtype, (1, 2)), 0)
    return Coded(codec, weight, readings)


def _modelopt(_: str, scheme: Scheme, stored: Stored) -> Coded:
    args = scheme.weights
    codes = _matrix(stored, "weight", {"U8"} if args.num_bits == 4 else {"F8_E4M3"})
    weight = Tensor(DECODED, (codes.shape[0], codes.shape[-1] * (2 if args.num_bits == 4 else 1)))
    readings = {CODES: Reading("weight", codes), **_scales(args, stored, "weight_scale", weight)}
    if args.strategy == "tensor_group":
        readings[SHARED] = _whole(stored, "weight_scale_2", {"F32"})
    return Coded(
        _codec(args, readings, shared="reciprocal" if args.strategy == "tensor_group" else ""), weight, readings
    )


def _fp8(form: str, scheme: Scheme, stored: Stored) -> Coded:
    """DeepSeek's blocks under ``weight_scale_inv``, and whole tensors under one scale of either name, or Mistral's.

    DeepSeek V4 calls either ``scale``; its experts are two codes of four bits a byte, and 32 share an exponent.
    """
    args = scheme.weights
    four_bits = args.num_bits == 4
    codes = _matrix(stored, "weight", {"I8", "U8"} if four_bits else {"F8_E4M3"})
    weight = Tensor(DECODED, (codes.shape[0], codes.shape[-1] * (2 if four_bits else 1)))
    names = ["scale"] if form in OF_DEEPSEEK_V4 else []
    name = next((name for name in (*names, "weight_scale_inv", "qscale_weight") if name in stored), "weight_scale")
    readings = {CODES: Reading("weight", codes), **_scales(args, stored, name, weight)}
    # Whatever the dtype of the scales, this is multiplied in F32.
    return Coded(_codec(args, readings, in_half=False), weight, readings)


def _gptq(form: str, scheme: Scheme, stored: Stored) -> Coded:
    """``qweight`` [in x bits / 32, out], ``qzeros`` [groups, out x bits / 32], ``scales`` [groups, out], ``g_idx``.

    Zero points are stored less one, but for the format ``gptq_v2``; ``g_idx`` says which group each column is in. vLLM
    reads zero points only without ``sym``, and ``g_idx`` only with ``desc_act``; AutoGPTQ reads both always.
    """
    args = scheme.weights
    if args.num_bits not in (4, 8):
        raise Undecodable(f"codes of {args.num_bits} bits")
    codes = _turned(stored, "qweight")
    rows, words = codes.tensor.shape
    columns = words * 32 // args.num_bits
    readings = {CODES: codes, **_turned_groups(args, stored, rows, columns)}
    if ZEROS not in readings:
        raise Undecodable("it has no qzeros")
    if "g_idx" in stored:
        order = _need(stored, "g_idx", {"I32"})
        if order.shape != (columns,):
            raise Undecodable(f"g_idx is {order}, and the weight has {columns} columns")
        readings[ORDER] = Reading("g_idx", Tensor("I32", (1, columns)), 0)
    codec = replace(
        _codec(args, readings, offset=0),
        zero_bias=0 if form == GPTQ_V2 else 1,
        symmetric=args.symmetric,
        in_order=not args.reordered,
    )
    return Coded(codec, Tensor(DECODED, (rows, columns)), readings)


def _awq(_: str, scheme: Scheme, stored: Stored) -> Coded:
    """``qweight`` [in, out x bits / 32], ``qzeros`` [groups, out x bits / 32], ``scales`` [groups, out]."""
    args = scheme.weights
    if args.num_bits != 4:
        raise Undecodable(f"codes of {args.num_bits} bits")
    codes = _turned(stored, "qweight", each=8)
    words, columns = codes.tensor.shape
    readings = {CODES: codes, **_turned_groups(args, stored, 8 * words, columns)}
    codec = replace(
        _codec(args, readings, offset=0 if ZEROS in readings else 8), packing="awq", symmetric=args.symmetric
    )
    return Coded(codec, Tensor(DECODED, (8 * words, columns)), readings)


def _mxfp4(_: str, scheme: Scheme, stored: Stored) -> Coded:
    """An expert of gpt-oss: ``blocks`` [rows, groups, 16] and ``scales`` [rows, groups], exponents of 32 codes each."""
    blocks = _need(stored, "blocks", {"U8"})
    if len(blocks.shape) != 3 or blocks.shape[2] != 16:
        raise Undecodable(f"its blocks are {blocks}")
    codes = Tensor(blocks.dtype, (blocks.shape[0], 16 * blocks.shape[1]))
    weight = Tensor(DECODED, (codes.shape[0], 2 * codes.shape[1]))
    readings = {CODES: Reading("blocks", codes), **_scales(scheme.weights, stored, "scales", weight)}
    return Coded(_codec(scheme.weights, readings), weight, readings)


def _turned(stored: Stored, local: str, *, each: int = 1) -> Reading:
    """A matrix of words that the file holds the other way round."""
    found = _need(stored, local, {"I32"})
    if len(found.shape) != 2 or not found.parameters:
        raise Undecodable(f"{local} is {found}, and no matrix")
    return Reading(local, Tensor(found.dtype, found.shape[::-1]), each, transposed=True)


def _turned_groups(args: QuantizationArgs, stored: Stored, rows: int, columns: int) -> dict[str, Reading]:
    """Scales and zero points of a weight that lies transposed: a row for each group."""
    groups, left = divmod(columns, args.group_size or columns)
    scales = _need(stored, "scales", FLOATING_SOURCES)
    if left or scales.shape != (groups, rows):
        raise Undecodable(f"scales is {scales}, which is not {[groups, rows]} as a weight of {[rows, columns]} has it")
    found = {SCALES: Reading("scales", Tensor(scales.dtype, (rows, groups)), transposed=True)}
    if "qzeros" in stored:
        each = 32 // args.num_bits
        found[ZEROS] = _turned(stored, "qzeros", each=each)
        if found[ZEROS].tensor.shape != (-(-rows // each), groups):
            raise Undecodable(f"qzeros is {stored['qzeros']}, which is not {[groups, -(-rows // each)]}")
    return found


CODECS: Mapping[str, Callable[[str, Scheme, Stored], Coded]] = {
    compressed_tensors.METHOD: _compressed_tensors,
    modelopt.METHOD: _modelopt,
    "fp8": _fp8,
    "gptq": _gptq,
    "awq": _awq,
    "mxfp4": _mxfp4,
}
"""By the name that ``quant_method`` has in config.json."""


def _codec(
    args: QuantizationArgs,
    readings: Mapping[str, Reading],
    *,
    offset: int | None = None,
    shared: Shared = "",
    in_half: bool | None = None,
) -> Codec:
    if (args.type, args.num_bits) not in {("float", 8), ("float", 4), ("int", 8), ("int", 4)}:
        raise Undecodable(f"codes of {args.num_bits} bits")
    if args.num_bits == 4 and args.type == "int" and offset is None:
        raise Undecodable("integers of 4 bits, one a byte")
    height, width = {
        "tensor": (None, None),
        "channel": (1, None),
        "block": args.block_structure or (None, None),
    }.get(args.strategy, (1, args.group_size))
    return Codec(
        said=str(args),
        element="INTEGER" if args.type == "int" else "E4M3" if args.num_bits == 8 else "E2M1",
        packing="nibbles" if args.num_bits == 4 else "bytes",
        bits=args.num_bits,
        offset=offset if args.type == "int" else None,
        height=height,
        width=width,
        in_half=readings[SCALES].tensor.dtype == "F16" if in_half is None else in_half,
        shared=shared,
    )


def _scales(args: QuantizationArgs, stored: Stored, local: str, weight: Tensor) -> dict[str, Reading]:
    """The scales of a weight's tiles as a matrix; a row of it goes with one row of the weight, or of its blocks."""
    rows, columns = weight.shape
    if args.strategy == "tensor":
        return {SCALES: _whole(stored, local, FLOATING_SOURCES)}
    if args.strategy == "block":
        assert args.block_structure is not None
        each, wide = args.block_structure
    else:
        each, wide = 1, args.group_size or columns
    kinds: set[str] = {"F8_E4M3"} if args.strategy == "tensor_group" else {*FLOATING_SOURCES, "U8", "F8_E8M0"}
    found = _need(stored, local, kinds)
    shape = -(-rows // each), -(-columns // wide)
    spelled = {shape, (shape[0], 1, shape[1], 1), *([shape[:1]] if args.strategy == "channel" else [])}
    if found.shape not in spelled or (columns % wide and args.strategy != "block"):
        raise Undecodable(f"{local} is {found}, which is not {list(shape)} as a weight of {list(weight.shape)} has it")
    return {SCALES: Reading(local, Tensor(found.dtype, shape), each)}


def _zero_points(args: QuantizationArgs, stored: Stored, scales: Reading, weight: Tensor, *, packed: bool) -> Reading:
    """Zero points beside the scales; packed ones share words down the rows."""
    local = "weight_zero_point"
    found = _need(stored, local, {"I32"} if packed and args.strategy != "tensor" else {"I8"})
    shape = scales.tensor.shape
    each = scales.each
    if found.dtype == "I32":
        each = 32 // args.num_bits
        shape = (-(-weight.shape[0] // each), shape[1])
    if _spread(found.shape) != _spread(shape):
        raise Undecodable(f"{local} is {found}, which is not {list(shape)}")
    return Reading(local, Tensor(found.dtype, shape), each)


def _spread(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which there is more than one."""
    return tuple(axis for axis in shape if axis != 1)


def _whole(stored: Stored, local: str, kinds: frozenset[str] | set[str]) -> Reading:
    found = _need(stored, local, kinds)
    if found.parameters != 1:
        raise Undecodable(f"{local} is {found}, where one number is meant")
    return Reading(local, Tensor(found.dtype, (1, 1)), 0)


def _need(stored: Stored, local: str, kinds: frozenset[str] | set[str]) -> Tensor:
    found = stored.get(local)
    if found is None:
        raise Undecodable(f"it has no {local}")
    if found.dtype not in kinds:
        raise Undecodable(f"{local} is {found}; decoded are {', '.join(sorted(kinds))}")
    return found


def _matrix(stored: Stored, local: str, kinds: frozenset[str] | set[str]) -> Tensor:
    found = _need(stored, local, kinds)
    if len(found.shape) != 2 or not found.parameters:
        raise Undecodable(f"its codes are {found}, and no matrix")
    return found
