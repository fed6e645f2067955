"""The tensors of a module in compressed-tensors' format against its scheme, and what loaders take in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from weighbridge.checkpoint.modules import FUSED_WEIGHT, tensor_name
from weighbridge.checkpoint.problems import Problem
from weighbridge.checkpoint.quantized import Modules, is_quantized
from weighbridge.formats.schemes import Scheme, SchemeMismatch, stored_tensors, weight_of
from weighbridge.formats.tensors import FLOATING_SOURCES, Tensor


def agrees(scheme: Scheme | None, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensors of a module are what a scheme stores."""
    if scheme is None or not is_quantized(tensors):
        return scheme is None and not is_quantized(tensors)
    return not any(True for _ in scheme_problems("", scheme, tensors))


def scheme_problems(module: str, scheme: Scheme, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
    """Where the tensors of a quantized module are not what its scheme stores."""
    if FUSED_WEIGHT in tensors:
        yield from _fused_problems(module, scheme, tensors)
        return
    try:
        differing = _differing(scheme, tensors)
    except SchemeMismatch as mismatch:
        yield "config/scheme-mismatch", module, f"declared {scheme}, which cannot be: {mismatch}", ""
        return
    if weight_of(scheme, tensors) is None:
        yield "config/missing-tensor", f"{module}.weight", "its scales are there, but no weight", ""
        return
    for local, (own, wanted) in differing.items():
        name = tensor_name(module, local)
        if own is None:
            yield "config/missing-tensor", name, f"missing; the declared scheme stores it as {wanted}", ""
        elif wanted is None:
            yield "config/surplus-tensor", name, f"is {own}, which the declared scheme does not store", ""
        elif len(own.shape) == 1 and wanted.shape == (*own.shape, 1) and local.endswith("scale"):
            message = f"is {own}; the declared scheme stores {wanted}, and vLLM's loader stops at any other shape"
            yield "config/wrong-tensor", name, message, "write the scales as [rows, 1]"
        elif not _loads(own, wanted) and not _is_shape(local, own):
            yield "config/wrong-tensor", name, f"is {own}; the declared scheme stores {wanted}", ""


def _differing(scheme: Scheme, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Local name -> what is stored and what the scheme stores, where the two differ; nothing where no weight is there.

    Raises:
        SchemeMismatch: the scheme cannot be applied to a weight of this shape.
    """
    weight = weight_of(scheme, tensors)
    if weight is None:
        return {}
    expected = stored_tensors(scheme, weight)
    pairs = {local: (tensors.get(local), expected.get(local)) for local in sorted(expected.keys() | tensors.keys())}
    return {local: (own, wanted) for local, (own, wanted) in pairs.items() if own != wanted}


def _loads(own: Tensor, wanted: Tensor) -> bool:
    """Whether vLLM's loaders take a tensor for another that differs from it.

    They copy floats into parameters of a float dtype of their own, and take a scalar for one element
    (``_assert_and_load`` and ``_load_into_shard_id`` of vllm/model_executor/parameter.py).
    """
    floats = own.dtype in FLOATING_SOURCES and wanted.dtype in FLOATING_SOURCES
    return (floats or own.dtype == wanted.dtype) and (
        own.shape == wanted.shape or (own.shape, wanted.shape) == ((), (1,))
    )


def _is_shape(local: str, own: Tensor) -> bool:
    """Whether a tensor is a ``weight_shape`` in integers of 32 bits, as Kimi K2 is published; loaders copy integers."""
    return local == "weight_shape" and own == Tensor("I32", (2,))


def _fused_problems(module: str, scheme: Scheme, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
    """Experts of a layer in one tensor each: every tensor of the scheme has the experts as a first axis.

    No tool of that family stores them so; published checkpoints do, and servers read them by rules of their own.
    """
    codes = tensors[FUSED_WEIGHT]
    experts = codes.shape[0]
    alone = {
        (local or "weight"): replace(tensor, shape=tensor.shape[1:]) if tensor.shape[:1] == (experts,) else tensor
        for local, tensor in tensors.items()
    }
    for rule, name, message, remedy in scheme_problems(module, scheme, alone):
        of = " for one expert" if rule in ("config/missing-tensor", "config/wrong-tensor") else ""
        yield rule, name.removesuffix(".weight"), f"{message}{of}", remedy


def accepted(schemes: Mapping[str, Scheme], modules: Modules) -> Iterator[str]:
    """The scales of another shape than their format's that loaders take all the same."""
    for module, scheme in schemes.items():
        try:
            differing = _differing(scheme, modules.get(module, {}))
        except SchemeMismatch:
            continue  # an error of its own, see `scheme_problems`
        for local, (own, wanted) in differing.items():
            if own is not None and wanted is not None and own.shape != wanted.shape and _loads(own, wanted):
                yield f"{module}.{local}"
