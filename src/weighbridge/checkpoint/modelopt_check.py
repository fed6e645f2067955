"""What there is to say of a checkpoint of modelopt's beyond its layout: what servers make of what it declares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.problems import said_of
from weighbridge.checkpoint.quantized import declared_schemes, is_quantized
from weighbridge.formats.layouts import is_decoder_linear
from weighbridge.formats.modelopt import expression_of
from weighbridge.formats.modelopt_reading import MIXED
from weighbridge.report import Finding, Severity


def modelopt_findings(checkpoint: Checkpoint) -> list[Finding]:
    """Weights without activations, and exclusions that vLLM does not find."""
    return [*_weights_alone(checkpoint), *_kept_unmerged(checkpoint)]


def _weights_alone(checkpoint: Checkpoint) -> Iterator[Finding]:
    """modelopt's four-bit weights without activations: what servers make of them."""
    declaration = checkpoint.declaration
    assert declaration is not None
    alone = [
        module
        for module, scheme in checkpoint.schemes.items()
        if scheme.input_activations is None and scheme.weights.strategy == "tensor_group"
    ]
    if alone and declaration.format == "NVFP4":
        what = (
            "quant_algo is NVFP4 and input_activations is null: the weights alone are quantized; vLLM reads it as "
            "W4A16_NVFP4 since its PR 54427, and multiplied every expert by 0 before"
        )
    elif alone:
        what = "the weights alone are quantized (W4A16_NVFP4): servers compute with the activations as they are"
    else:
        return
    yield Finding("config/weights-alone", Severity.NOTE, checkpoint.declared_in, what, count=len(alone))


def _kept_unmerged(checkpoint: Checkpoint) -> Iterator[Finding]:
    """modelopt's exclusions by a wildcard that matches what vLLM merges, but not the name that vLLM gives to it.

    vLLM asks for the merged name alone: ``self_attn.qkv_proj``, which is excluded by itself or where each member stands
    on the list by its own name (``is_layer_excluded``).
    """
    declaration = checkpoint.declaration
    assert declaration is not None
    if declaration.format == MIXED or not declaration.ignore:
        return
    listed, family = set(declaration.ignore), checkpoint.family
    asked: dict[str, list[str]] = defaultdict(list)
    for module, tensors in checkpoint.modules.items():
        parent = module.rpartition(".")[0]
        merge = family.merge_of(module)
        if merge is None or module in checkpoint.schemes or is_quantized(tensors) or not is_decoder_linear(module):
            continue
        members = [f"{parent}.{name}" for name in merge.members]
        if not all(expression_of(member) in listed for member in members if member in checkpoint.modules):
            asked[f"{parent}.{merge.into}"].append(module)
    sought = declared_schemes(declaration, asked, where=checkpoint.label)
    found = [module for merged in sought for module in asked[merged]]
    what = "is excluded, but not by the name of what vLLM merges it into, where it looks for codes then"
    remedy = "exclude it by its own name, with what it is merged with"
    yield from said_of(found, "config/kept-unmerged", what, remedy, severity=Severity.WARNING)
