"""Quantization schemes: what each says, and exactly which tensors it writes for a weight.

The terms are compressed-tensors' own (``QuantizationArgs``, ``QuantizationScheme``). The closed forms stand here
because planning must not wait for torch; tests hold them against what compressed-tensors 0.19.0 writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from weighbridge.formats.tensors import Tensor

Dynamic = bool | Literal["local"]

STRATEGIES = ("tensor", "channel", "group", "block", "token", "tensor_group", "attn_head")


@dataclass(frozen=True)
class QuantizationArgs:
    """How one kind of value (weights, input activations, KV cache) is quantized.

    Two are equal when they have the same effect on a served model; how codes and scales were chosen (`observer`,
    `actorder`) and in which dtype compressed-tensors keeps scales in memory (`scale_dtype`) do not count.

    Attributes:
        num_bits: bits of one code.
        type: ``float`` (E4M3 for 8 bits, E2M1 for 4) or ``int``.
        strategy: what shares a scale: tensor, channel (an output row), group (`group_size` along a row), block
            (`block_structure`), token, tensor_group (groups under one global scale), attn_head.
        dynamic: scales are computed as values arrive; ``local`` keeps a calibrated global scale.
        actorder: in which order GPTQ took the columns: ``weight``, also called ``static``, leaves no trace, ``group``
            also groups them in it.
        reordered: a ``weight_g_idx`` says which group each column is in (``actorder: group``).
    """

    num_bits: int
    type: Literal["float", "int"]
    strategy: str
    symmetric: bool = True
    dynamic: Dynamic = False
    group_size: int | None = None
    block_structure: tuple[int, int] | None = None
    scale_dtype: str | None = field(default=None, compare=False)
    observer: str | None = field(default=None, compare=False)
    observer_kwargs: Mapping[str, Any] = field(default_factory=dict, compare=False)
    actorder: Literal["weight", "static", "group"] | None = field(default=None, compare=False)
    reordered: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reordered", self.actorder == "group")

    @property
    def unit(self) -> int:
        """Rows of a weight that stay together: those of a block, or those whose zero points share a word."""
        if self.block_structure is not None:
            return self.block_structure[0]
        return 32 // self.num_bits if self.type == "int" and not self.symmetric else 1

    def __str__(self) -> str:
        detail = {
            "group": f"group {self.group_size}",
            "tensor_group": f"group {self.group_size} under a global scale",
            "block": f"block {'x'.join(map(str, self.block_structure or ()))}",
        }.get(self.strategy, self.strategy)
        moment = {True: ", dynamic", False: "", "local": ", locally dynamic"}[self.dynamic]
        sign = "" if self.symmetric else " asymmetric"
        order = ", columns grouped by activation" if self.reordered else ""
        return f"{self.type}{self.num_bits}{sign} per {detail}{moment}{order}"


@dataclass(frozen=True)
class Scheme:
    """What a module gets: its weights and its activations."""

    weights: QuantizationArgs
    input_activations: QuantizationArgs | None = None
    output_activations: QuantizationArgs | None = None
    #: compressed-tensors' name for the storage format; schemes that are stored differently are not equal.
    format: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", _format(self.weights, self.input_activations))

    def __str__(self) -> str:
        said = [f"weights {self.weights}"]
        for kind, args in (("input", self.input_activations), ("output", self.output_activations)):
            if args is not None:
                said.append(f"{kind} activations {args}{', static' if args.dynamic is False else ''}")
        return "; ".join(said)

    @property
    def needs_calibration(self) -> bool:
        """Whether activations must be seen before this scheme can be written (a data-free build cannot)."""
        observed = (self.input_activations, self.output_activations)
        return any(args is not None and args.dynamic is not True for args in observed)


FP4_FORMATS = {16: "nvfp4-pack-quantized", 32: "mxfp4-pack-quantized"}
"""Group size -> format of four-bit floats; there is no other."""


def _format(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> str:
    """The storage format of a scheme. Source: ``infer_module_format`` of compressed-tensors 0.19.0."""
    if weights.type == "float" and weights.num_bits == 4 and weights.group_size in FP4_FORMATS:
        return FP4_FORMATS[weights.group_size]
    if weights.type == "float" and weights.group_size == 32 and weights.scale_dtype == "torch.uint8":
        return "mxfp8-quantized"
    if weights.type == "int":
        return "pack-quantized" if inputs is None else "int-quantized"
    return "naive-quantized" if inputs is None else "float-quantized"


_FP8_TOKEN = QuantizationArgs(8, "float", "token", dynamic=True)
_INT8_TOKEN = QuantizationArgs(8, "int", "token", dynamic=True)
_INT4_TOKEN = QuantizationArgs(4, "int", "token", dynamic=True)
_INT8 = Scheme(QuantizationArgs(8, "int", "channel"), _INT8_TOKEN)
_NVFP4 = QuantizationArgs(4, "float", "tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn")
_MXFP4 = QuantizationArgs(4, "float", "group", group_size=32, scale_dtype="torch.uint8")
_MXFP8 = QuantizationArgs(8, "float", "group", group_size=32, scale_dtype="torch.uint8")


def _integers(bits: int, *, symmetric: bool = True) -> QuantizationArgs:
    return QuantizationArgs(bits, "int", "group", symmetric=symmetric, group_size=128)


PRESETS: Mapping[str, Scheme] = {
    "FP8": Scheme(
        QuantizationArgs(8, "float", "tensor"), QuantizationArgs(8, "float", "tensor", observer="static_minmax")
    ),
    "FP8_DYNAMIC": Scheme(QuantizationArgs(8, "float", "channel"), _FP8_TOKEN),
    "FP8_BLOCK": Scheme(
        QuantizationArgs(8, "float", "block", block_structure=(128, 128)),
        QuantizationArgs(8, "float", "group", group_size=128, dynamic=True),
    ),
    "W8A8": _INT8,
    "INT8": _INT8,
    "W8A16": Scheme(_integers(8)),
    "W4A16": Scheme(_integers(4)),
    "W4A16_ASYM": Scheme(_integers(4, symmetric=False)),
    "W4AFP8": Scheme(_integers(4), _FP8_TOKEN),
    "NVFP4A16": Scheme(_NVFP4),
    "NVFP4": Scheme(_NVFP4, replace(_NVFP4, dynamic="local", observer="static_minmax")),
    "MXFP4A16": Scheme(_MXFP4),
    "MXFP4": Scheme(_MXFP4, replace(_MXFP4, dynamic=True)),
    "MXFP8A16": Scheme(_MXFP8),
    "MXFP8": Scheme(_MXFP8, replace(_MXFP8, dynamic=True)),
    **{f"W{bits}A16": Scheme(_integers(bits)) for bits in (2, 3, 5, 6, 7)},
    **{f"W{bits}A8": Scheme(_integers(bits), _INT8_TOKEN) for bits in (2, 3, 4, 5, 6, 7)},
    **{f"W{bits}A4": Scheme(_integers(bits), _INT4_TOKEN) for bits in (2, 3, 4)},
}
"""The presets of compressed-tensors 0.19.0, but for UNQUANTIZED; a test compares each with upstream's."""


KV_CACHES: Mapping[str, QuantizationArgs] = {"FP8": QuantizationArgs(8, "float", "tensor")}
"""What recipes may name for the KV cache: symmetric E4M3 with one static scale for keys and one for values."""


class SchemeMismatch(ValueError):
    """A scheme cannot be applied to a weight of this shape.

    Attributes:
        rule: id of the lint rule that it breaks.
    """

    def __init__(self, rule: str, why: str) -> None:
        self.rule = rule
        super().__init__(why)


def rows_and_columns(weight: Tensor) -> tuple[int, int]:
    """The two axes of a weight [out, in].

    Raises:
        SchemeMismatch: it has fewer, or more.
    """
    if len(weight.shape) != 2:
        rule = "scheme/one-dimensional" if len(weight.shape) < 2 else "scheme/not-two-dimensional"
        raise SchemeMismatch(rule, f"a weight must have two axes, this one is {weight}")
    return weight.shape[0], weight.shape[1]


def stored_tensors(scheme: Scheme, weight: Tensor) -> dict[str, Tensor]:
    """The tensors that compressed-tensors stores for a module whose weight is `weight` ([out, in], float).

    Returns:
        Local name (``weight``, ``weight_scale``, …) -> dtype and shape.

    Raises:
        SchemeMismatch: the weight is not two-dimensional, or a group size does not divide its width.
    """
    rows, columns = rows_and_columns(weight)
    args = scheme.weights
    fp4 = args.type == "float" and args.num_bits == 4
    if args.num_bits > 8 or (fp4 and (args.group_size not in FP4_FORMATS or not args.symmetric)):
        raise SchemeMismatch("scheme/strategy", f"compressed-tensors cannot write weights {args}")
    scale = Tensor(weight.dtype, scale_shape(args, rows, columns))
    form = scheme.format
    stored: dict[str, Tensor]
    if form in ("nvfp4-pack-quantized", "mxfp4-pack-quantized"):
        if columns % 2:
            raise SchemeMismatch("scheme/group-size", f"two codes share a byte and width {columns} is odd")
        scale_dtype = "U8" if form == "mxfp4-pack-quantized" else "F8_E4M3"
        stored = {
            "weight_packed": Tensor("U8", (rows, columns // 2)),
            "weight_scale": replace(scale, dtype=scale_dtype),
        }
    elif form == "pack-quantized":
        stored = {
            "weight_packed": Tensor("I32", (rows, _words(columns, args.num_bits))),
            "weight_scale": scale,
            "weight_shape": Tensor("I64", (2,)),
        }
        if not args.symmetric and args.strategy in ("group", "channel"):
            groups = scale.shape[-1]
            stored["weight_zero_point"] = Tensor("I32", (_words(scale.shape[0], args.num_bits), groups))
        elif not args.symmetric:
            stored["weight_zero_point"] = replace(scale, dtype="I8")
    else:
        stored = {"weight": replace(weight, dtype="F8_E4M3" if args.type == "float" else "I8"), "weight_scale": scale}
        if form == "mxfp8-quantized":
            stored["weight_scale"] = replace(scale, dtype="U8")
        if not args.symmetric:
            stored["weight_zero_point"] = replace(scale, dtype="F8_E4M3" if args.type == "float" else "I8")
    if args.strategy == "tensor_group":
        stored["weight_global_scale"] = Tensor("F32", (1,))
    if args.reordered:
        stored["weight_g_idx"] = Tensor("I32", (columns,))
    inputs = _activation_tensors(scheme.input_activations, "input", weight, columns)
    return stored | inputs | _activation_tensors(scheme.output_activations, "output", weight, rows)


def scale_shape(args: QuantizationArgs, rows: int, columns: int) -> tuple[int, ...]:
    """Shape of the scales of a [rows, columns] weight.

    Raises:
        SchemeMismatch: a group does not divide the width. (Blocks may be ragged: compressed-tensors pads them.)
    """
    match args.strategy:
        case "tensor":
            return (1,)
        case "channel":
            return (rows, 1)
        case "group" | "tensor_group":
            assert args.group_size is not None
            if columns % args.group_size:
                why = f"group size {args.group_size} does not divide width {columns}"
                raise SchemeMismatch("scheme/group-size", why)
            return (rows, columns // args.group_size)
        case "block":
            assert args.block_structure is not None
            height, width = args.block_structure
            return (-(-rows // height), -(-columns // width))
        case _:
            raise SchemeMismatch("scheme/strategy", f"weights cannot be quantized per {args.strategy}")


def weight_of(scheme: Scheme, stored: Mapping[str, Tensor]) -> Tensor | None:
    """The float weight ([out, in]) that must have been quantized to give `stored`; None if nothing can have."""
    if "weight" in stored:
        shape = stored["weight"].shape
    elif "weight_packed" in stored:
        packed = stored["weight_packed"]
        if len(packed.shape) != 2:
            return None
        columns = packed.shape[1] * (8 if packed.dtype == "U8" else 32) // scheme.weights.num_bits
        shape = (packed.shape[0], columns)
    else:
        return None
    scale = stored.get("weight_scale")
    kept_in_source_dtype = scale is not None and scale.dtype in ("BF16", "F16", "F32")
    return Tensor(scale.dtype if scale is not None and kept_in_source_dtype else "BF16", shape)


def to_config(scheme: Scheme) -> dict[str, Any]:
    """A scheme as compressed-tensors writes it into a config group (without its targets)."""
    return {
        "weights": args_to_config(scheme.weights),
        "input_activations": scheme.input_activations and args_to_config(scheme.input_activations),
        "output_activations": scheme.output_activations and args_to_config(scheme.output_activations),
        "format": scheme.format,
    }


def args_to_config(args: QuantizationArgs) -> dict[str, Any]:
    """Arguments as compressed-tensors writes them."""
    return {
        "num_bits": args.num_bits,
        "type": args.type,
        "symmetric": args.symmetric,
        "group_size": args.group_size,
        "strategy": args.strategy,
        "block_structure": list(args.block_structure) if args.block_structure else None,
        "dynamic": args.dynamic,
        "actorder": args.actorder,
        "scale_dtype": args.scale_dtype,
        "zp_dtype": None if args.symmetric else "torch.float8_e4m3fn" if args.type == "float" else "torch.int8",
        "observer": args.observer,
        "observer_kwargs": dict(args.observer_kwargs),
    }


def _activation_tensors(args: QuantizationArgs | None, prefix: str, weight: Tensor, width: int) -> dict[str, Tensor]:
    """What static activations of a width store. Source: ``initialize_qparams`` of compressed-tensors 0.19.0."""
    if args is None or args.dynamic is True:
        return {}
    stored = {f"{prefix}_global_scale": Tensor("F32", (1,))} if args.strategy == "tensor_group" else {}
    if args.dynamic == "local":
        return stored
    if args.strategy == "tensor":
        shape: tuple[int, ...] = (1,)
    elif args.group_size is not None:
        shape = (-(-width // args.group_size),)
    else:
        raise SchemeMismatch(
            "scheme/strategy", f"activations of a linear cannot have static scales per {args.strategy}"
        )
    stored[f"{prefix}_scale"] = Tensor(weight.dtype, shape)
    if not args.symmetric:
        stored[f"{prefix}_zero_point"] = Tensor("F8_E4M3" if args.type == "float" else "I8", shape)
    return stored


def _words(elements: int, bits: int) -> int:
    return -(-elements * bits // 32)
