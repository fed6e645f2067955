"""Fused experts in compressed-tensors' schemes: one tensor of codes, and scales with an axis for the experts in front.

No tool of that family stores them so; published checkpoints do (``experts.gate_up_proj`` F8_E4M3 [E, out, in] beside
``experts.gate_up_proj.weight_scale`` [E, out, 1]), and servers read them by rules of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from weighbridge.formats import Format
from weighbridge.formats.schemes import Scheme, SchemeMismatch
from weighbridge.formats.tensors import FLOATING_SOURCES, Tensor
from weighbridge.structure.modules import FUSED_WEIGHT, tensor_name

Problem = tuple[str, str, str, str]
"""Rule, name, message, remedy."""


def fused_problems(
    form: Format, module: str, scheme: Scheme | None, tensors: Mapping[str, Tensor]
) -> Iterator[Problem]:
    """Where fused experts, and what belongs to them, are not what the scheme makes of each expert's weight.

    Experts that are kept as floats, with nothing beside them, are no target of ``Linear`` and right as they are.
    """
    codes = tensors[FUSED_WEIGHT]
    if codes.dtype in FLOATING_SOURCES and len(tensors) == 1:
        return
    if scheme is None:
        what = "config.json declares it unquantized, but it is stored quantized"
        yield "config/ignored-but-quantized", module, what, "a server would load the codes as if they were weights"
        return
    experts, rows, columns = codes.shape
    scale = tensors.get("weight_scale")
    dtype = scale.dtype if scale is not None and scale.dtype in FLOATING_SOURCES else "BF16"
    try:
        one = form.stored_tensors(scheme, Tensor(dtype, (rows, columns)))
    except SchemeMismatch as mismatch:
        yield "config/scheme-mismatch", module, f"declared {scheme}, which cannot be: {mismatch}", ""
        return
    expected = {
        FUSED_WEIGHT if local == "weight" else local: Tensor(tensor.dtype, (experts, *tensor.shape))
        for local, tensor in one.items()
    }
    for local in sorted(expected.keys() | tensors.keys()):
        own, wanted, name = tensors.get(local), expected.get(local), tensor_name(module, local)
        if own is None:
            yield "config/missing-tensor", name, f"missing; the declared scheme has it as {wanted} here", ""
        elif wanted is None:
            yield "config/surplus-tensor", name, f"is {own}, which the declared scheme does not store", ""
        elif own != wanted:
            yield "config/wrong-tensor", name, f"is {own}; the declared scheme has {wanted} here", ""
