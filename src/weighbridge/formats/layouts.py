"""What the tensors of a module must be, by method: names, dtypes and shapes, in closed form.

Of modelopt's format some schemes are written here, too; of every other method in this table nothing is. Where a server
takes several kinds of one tensor (a scale of shape [] or [1], scales in F32 or BF16), all of them stand here. Source:
the ``create_weights`` of vLLM 0.32's quantization methods, ``modelopt.torch.export`` 0.47.0, transformers 5.17.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from weighbridge.formats.declaration import LINEAR, Declaration
from weighbridge.formats.schemes import QuantizationArgs, Scheme, SchemeMismatch
from weighbridge.formats.tensors import FLOATING_SOURCES, Tensor

FUSED = ""
"""The local name of a tensor that holds all experts; what belongs to it is called by a suffix, ``_weight_scale``."""

SCALES_ANYWHERE = ("F32", "BF16", "F16")
DEEPSEEK_V4, DEEPSEEK_V4_FP8 = "deepseek-v4", "deepseek-v4-fp8"
"""DeepSeek V4 with experts of four bits, and of eight."""
OF_DEEPSEEK_V4 = (DEEPSEEK_V4, DEEPSEEK_V4_FP8)
"""The formats of an ``fp8`` declaration whose scales are called ``scale``."""
GPTQ_V2 = "gptq_v2"
"""The format of a ``gptq`` declaration whose zero points are stored as they are, and not less one."""


@dataclass(frozen=True)
class Wanted:
    """What may stand under a local name.

    Attributes:
        kinds: dtypes and shapes, any of which servers take; the first is the usual one. None where what would say so is
            itself not there.
        absent: whether it may be missing: ``never``; ``everywhere``, from all modules of a checkpoint or from none; or
            ``anywhere``.
    """

    kinds: tuple[Tensor, ...]
    absent: Literal["never", "everywhere", "anywhere"] = "never"


Expected = dict[str, Wanted]
Stored = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """How a method stores a module, and what servers take for quantized.

    Attributes:
        expected: the declaration's format, a scheme and what is stored of a module -> local name -> what must be there.
            Raises SchemeMismatch where the scheme cannot be applied to such a weight.
        asked: whether servers look for codes in a module that stores none and is on no list of what is kept.
        in_parts: whether a plain entry of the list of what is kept may name what holds a module, or other parts of its
            name, too (``mlp.gate``).
        by_kind: whether modules that differ only in their numbers are quantized all or none; otherwise servers go by
            what each stores, and only by what they merge it with.
    """

    expected: Callable[[str, Scheme, Stored], Expected]
    asked: Callable[[Declaration, str], bool]
    by_kind: bool = True
    in_parts: bool = False


def modelopt(_: str, scheme: Scheme, stored: Stored) -> Expected:
    """``weight``, ``weight_scale``, ``weight_scale_2``, ``input_scale``; of fused experts [E, …] each, as suffixes."""
    fused = FUSED in stored or any(local.startswith("_") for local in stored)

    def named(local: str) -> str:
        return local if not fused else FUSED if local == "weight" else f"_{local}"

    codes = stored.get(named("weight"))
    if codes is None:
        return {named("weight"): Wanted(())}
    shape = _weight_shape(scheme.weights, codes, axes=3 if fused else 2)
    *experts, rows, columns = shape
    whole = _whole(experts)
    found = {named("weight"): Wanted(_codes(scheme.weights, shape))}
    match scheme.weights.strategy:
        case "tensor":
            found[named("weight_scale")] = Wanted(whole)
        case "channel":
            found[named("weight_scale")] = Wanted((Tensor("F32", (*experts, rows)),))
        case "block":
            high, wide = _blocks(scheme.weights, rows, columns)
            square = Tensor("F32", (*experts, high, wide))
            four = () if fused else (Tensor("F32", (high, 1, wide, 1)),)
            found[named("weight_scale")] = Wanted((*four, square))
        case _:
            found[named("weight_scale")] = Wanted(_group_scales(scheme.weights, shape, fused=fused))
    if scheme.weights.strategy == "tensor_group":
        found[named("weight_scale_2")] = Wanted(whole)
    inputs = scheme.input_activations
    if inputs is not None and inputs.dynamic is not True:
        found[named("input_scale")] = Wanted(whole)
    elif inputs is None and scheme.weights.strategy == "tensor_group":
        found[named("input_scale")] = Wanted(whole, "anywhere")  # older exports have it, and vLLM drops it
    return found


def fp8(form: str, scheme: Scheme, stored: Stored) -> Expected:
    """``weight`` with ``weight_scale_inv`` for each block, or ``weight_scale``; DeepSeek V4 calls either ``scale``.

    Mistral's own form has ``qscale_weight`` and ``qscale_act``.

    Experts of DeepSeek V4 are two E2M1 codes a byte (I8) with an E8M0 scale for 32; transformers' fused experts have
    ``gate_up_proj_scale_inv`` [E, …].
    """
    args = scheme.weights
    fused = FUSED in stored or any(local.startswith("_") for local in stored)
    if fused:
        scale = "_scale_inv"
    elif form in OF_DEEPSEEK_V4:
        scale = "weight_scale_inv" if "weight_scale_inv" in stored and "scale" not in stored else "scale"
    elif args.strategy == "block":
        scale = "weight_scale_inv"
    else:
        scale = _called(stored, "weight_scale", "weight_scale_inv", "qscale_weight")
    name = FUSED if fused else "weight"
    if name not in stored:
        return {name: Wanted(())}
    shape = _weight_shape(args, stored[name], axes=3 if fused else 2)
    *experts, rows, columns = shape
    if args.num_bits == 4:
        groups = (*experts, rows, _groups(args, columns))
        packed = (*experts, rows, columns // 2)
        return {
            name: Wanted((Tensor("I8", packed), Tensor("U8", packed))),
            scale: Wanted((Tensor("F8_E8M0", groups), Tensor("U8", groups))),
        }
    found = {name: Wanted((Tensor("F8_E4M3", shape),))}
    if args.strategy == "block":
        blocks = (*experts, *_blocks(args, rows, columns))
        dtypes: tuple[str, ...] = ("F32", "BF16", "F8_E8M0")
        if form in OF_DEEPSEEK_V4:  # beside experts of four bits vLLM 0.32 holds every scale as a power of two
            dtypes = ("F8_E8M0",) if form == DEEPSEEK_V4 else ("F8_E8M0", "F32", "BF16")
        found[scale] = Wanted(tuple(Tensor(dtype, blocks) for dtype in dtypes))
    else:
        found[scale] = Wanted(_whole(experts, SCALES_ANYWHERE))
    if scheme.input_activations is not None and scheme.input_activations.dynamic is False:
        # transformers calls it otherwise, and Ministral 3 is published so.
        plainly = _called(stored, "input_scale", "activation_scale", "qscale_act")
        found["_input_scale" if fused else plainly] = Wanted(_whole(experts, SCALES_ANYWHERE))
    return found


def _called(stored: Stored, *names: str) -> str:
    """The first of some names of one thing that is stored; the first of all where none is."""
    return next((name for name in names if name in stored), names[0])


def mxfp4(_form: str, _scheme: Scheme, stored: Stored) -> Expected:
    """gpt-oss: ``gate_up_proj_blocks`` U8 [E, rows, groups, 16], ``_scales`` [E, rows, groups], ``_bias`` [E, rows]."""
    blocks = stored.get("_blocks")
    if blocks is None:
        return {"_blocks": Wanted(())}
    if len(blocks.shape) != 4 or blocks.shape[3] != 16:
        raise SchemeMismatch("scheme/group-size", f"codes lie in [experts, rows, groups, 16], these are {blocks}")
    experts, rows, groups = blocks.shape[:3]
    return {
        "_blocks": Wanted((Tensor("U8", blocks.shape),)),
        "_scales": Wanted((Tensor("U8", (experts, rows, groups)),)),
        "_bias": Wanted(tuple(Tensor(dtype, (experts, rows)) for dtype in ("BF16", "F16", "F32")), "everywhere"),
    }


def gptq(_: str, scheme: Scheme, stored: Stored) -> Expected:
    """``qweight`` [in x bits / 32, out], ``qzeros`` [groups, out x bits / 32], ``scales`` [groups, out], ``g_idx``."""
    args = scheme.weights
    codes = stored.get("qweight")
    if codes is None:
        return {"qweight": Wanted(())}
    _check_axes(codes, 2)
    words, out = codes.shape
    width = words * 32 // args.num_bits
    return {
        "qweight": Wanted((Tensor("I32", codes.shape),)),
        **_zeros_and_scales(args, _groups(args, width), out),
        "g_idx": Wanted((Tensor("I32", (width,)),), "everywhere"),
    }


def awq(_: str, scheme: Scheme, stored: Stored) -> Expected:
    """``qweight`` I32 [in, out x bits / 32], ``qzeros`` I32 [groups, out x bits / 32], ``scales`` [groups, out]."""
    args = scheme.weights
    codes = stored.get("qweight")
    if codes is None:
        return {"qweight": Wanted(())}
    _check_axes(codes, 2)
    width, words = codes.shape
    found = _zeros_and_scales(args, _groups(args, width), words * 32 // args.num_bits)
    if args.symmetric:
        found["qzeros"] = Wanted(found["qzeros"].kinds, "everywhere")
    return {"qweight": Wanted((Tensor("I32", codes.shape),)), **found}


def quark(_: str, scheme: Scheme, stored: Stored) -> Expected:
    """``weight`` with ``weight_scale``: of 32 in E8M0, of a tensor, a row [out] or a block in F32; ``input_scale``."""
    args = scheme.weights
    codes = stored.get("weight")
    if codes is None:
        return {"weight": Wanted(())}
    shape = _weight_shape(args, codes, axes=2)
    rows, columns = shape
    match args.strategy:
        case "tensor":
            scales = _whole([])
        case "channel":
            scales = (Tensor("F32", (rows,)),)
        case "block":
            blocks = _blocks(args, rows, columns)
            scales = (Tensor("F32", blocks), Tensor("F8_E8M0", blocks))
        case _:
            scales = _group_scales(args, shape, fused=False)
    found = {"weight": Wanted(_codes(args, shape)), "weight_scale": Wanted(scales)}
    if scheme.input_activations is not None and scheme.input_activations.dynamic is False:
        found["input_scale"] = Wanted(_whole([]))
    return found


def _codes(args: QuantizationArgs, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    if args.num_bits == 4:
        return (Tensor("U8", (*shape[:-1], shape[-1] // 2)),)
    return (Tensor("F8_E4M3" if args.type == "float" else "I8", shape),)


def _weight_shape(args: QuantizationArgs, codes: Tensor, *, axes: int) -> tuple[int, ...]:
    """The shape of the weight whose codes these are; a weight that is stored as a float is taken as it is."""
    _check_axes(codes, axes)
    packed = args.num_bits == 4 and codes.dtype not in FLOATING_SOURCES
    return (*codes.shape[:-1], codes.shape[-1] * 2) if packed else codes.shape


def _check_axes(codes: Tensor, axes: int) -> None:
    if len(codes.shape) != axes:
        raise SchemeMismatch("scheme/not-two-dimensional", f"its codes must have {axes} axes, these are {codes}")


def _groups(args: QuantizationArgs, width: int) -> int:
    size = args.group_size or width
    if size == 0 or width % size:
        raise SchemeMismatch("scheme/group-size", f"group size {size} does not divide width {width}")
    return width // size


def _group_scales(args: QuantizationArgs, shape: tuple[int, ...], *, fused: bool) -> tuple[Tensor, ...]:
    """Scales along the last axis; of fused experts also along the middle one, as Llama 4 and gpt-oss lie.

    NVFP4 has E4M3 scales under a global one; MX formats have exponents alone, which safetensors calls U8 or F8_E8M0.
    """
    *experts, rows, columns = shape
    shapes = [(*experts, rows, _groups(args, columns))]
    size = args.group_size or columns
    if fused and args.num_bits == 4 and rows * 2 % size == 0 and columns % 2 == 0:
        shapes.append((*experts, rows * 2 // size, columns // 2))
    dtypes = ("F8_E4M3",) if args.strategy == "tensor_group" else ("U8", "F8_E8M0")
    return tuple(Tensor(dtype, shape) for shape in shapes for dtype in dtypes)


def _blocks(args: QuantizationArgs, rows: int, columns: int) -> tuple[int, int]:
    height, width = args.block_structure or (1, 1)
    return -(-rows // height), -(-columns // width)


def _whole(experts: list[int], dtypes: tuple[str, ...] = ("F32",)) -> tuple[Tensor, ...]:
    """A scale of a whole tensor, or one for each expert of a fused one."""
    shapes = [tuple(experts), (), (1,)] if experts else [(), (1,)]
    return tuple(Tensor(dtype, shape) for dtype in dtypes for shape in shapes)


def _zeros_and_scales(args: QuantizationArgs, groups: int, out: int) -> Expected:
    if out * args.num_bits % 32:
        raise SchemeMismatch("scheme/group-size", f"{args.num_bits}-bit zero points of {out} rows fill no whole words")
    return {
        "qzeros": Wanted((Tensor("I32", (groups, out * args.num_bits // 32)),)),
        "scales": Wanted(tuple(Tensor(dtype, (groups, out)) for dtype in ("F16", "BF16", "F32"))),
    }


def _always(_declaration: Declaration, _module: str) -> bool:
    return True


def _where_listed(declaration: Declaration, module: str) -> bool:
    """GPTQ: what ``modules_in_block_to_quantize`` names; without it vLLM goes by what is stored."""
    return is_decoder_linear(module) and any(group.targets != (LINEAR,) for group in declaration.groups)


def _where_lists(declaration: Declaration, module: str) -> bool:
    """AWQ: what ``modules_to_not_convert`` does not name; without it vLLM goes by what is stored."""
    return is_decoder_linear(module) and bool(declaration.ignore)


def is_decoder_linear(module: str) -> bool:
    """Whether every server takes a module of this name for a linear of a decoder layer that may be quantized."""
    parts = module.split(".")
    inside = any(first in _LAYERS and second.isdigit() for first, second in pairwise(parts))
    foreign = any(word in part for part in parts for word in _TOWERS)
    linear = parts[-1] in _PROJECTIONS or ("experts" in parts and parts[-1] in _EXPERT_LINEARS)
    return inside and linear and not foreign


_LAYERS = frozenset({"layers", "h", "blocks"})
_TOWERS = ("vision", "visual", "audio", "image")
_PROJECTIONS = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj"}
)
_EXPERT_LINEARS = frozenset({"w1", "w2", "w3"})


def _in_decoder(_: Declaration, module: str) -> bool:
    return is_decoder_linear(module)


LAYOUTS: Mapping[str, Layout] = {
    "modelopt": Layout(modelopt, _always),
    "fp8": Layout(fp8, _in_decoder, in_parts=True),
    "mxfp4": Layout(mxfp4, _in_decoder, in_parts=True),
    "gptq": Layout(gptq, _where_listed, by_kind=False, in_parts=True),
    "awq": Layout(awq, _where_lists, by_kind=False),
    "quark": Layout(quark, _in_decoder),
}
"""By the name that ``quant_method`` has in config.json."""
