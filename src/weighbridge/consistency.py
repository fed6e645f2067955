"""A checkpoint against itself: what config.json declares for each module, and what its tensors are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from weighbridge.formats import FORMATS, Format
from weighbridge.formats.layouts import LAYOUTS
from weighbridge.formats.schemes import Scheme, SchemeMismatch
from weighbridge.formats.tensors import Tensor
from weighbridge.report import Finding, Severity
from weighbridge.structure.checkpoint import Checkpoint
from weighbridge.structure.declared_twice import declared_twice
from weighbridge.structure.foreign_names import foreign_names
from weighbridge.structure.fused_check import fused_problems
from weighbridge.structure.layout_check import layout_findings
from weighbridge.structure.modules import (
    FUSED_WEIGHT,
    QUANTIZATION_PARAMETERS,
    split_parameter,
)
from weighbridge.structure.names import compact, split_name
from weighbridge.structure.readable import check_judged

QUANTIZED_DTYPES = frozenset({"F8_E4M3", "F8_E5M2", "I8", "U8", "I32", "F4"})


def inconsistencies(checkpoint: Checkpoint) -> list[Finding]:
    """Everywhere that config.json and tensors disagree; empty for an unquantized checkpoint that declares nothing.

    Raises:
        StructureError: its quantization is not read here, so nothing more can be said of it.
    """
    foreign = foreign_names(checkpoint.structure)
    if foreign and checkpoint.declaration is not None and checkpoint.declaration.unread:
        return foreign  # wrong whatever is declared
    check_judged(checkpoint)
    return [*foreign, *declared_twice(checkpoint), *_contradictions(checkpoint)]


def _contradictions(checkpoint: Checkpoint) -> list[Finding]:
    modules = checkpoint.modules
    declaration = checkpoint.declaration
    if declaration is None:
        stored = [module for module, tensors in modules.items() if _is_quantized(tensors)]
        return _grouped(
            ((module, "stored quantized, but config.json has no quantization config") for module in stored),
            "config/missing",
            "a server would load the codes as if they were weights; restore quantization_config",
        )
    if declaration.quant_method in LAYOUTS:
        return layout_findings(checkpoint)
    findings = [
        *_by_problem(_module_problems(FORMATS[declaration.quant_method], checkpoint, modules)),
        *_bare_weights(checkpoint, modules),
    ]
    if not checkpoint.schemes:
        findings.append(
            Finding(
                "config/quantizes-nothing", Severity.ERROR, "config.json", "its quantization config targets no module"
            )
        )
    formats = {scheme.format for scheme in checkpoint.schemes.values()}
    expected = formats.pop() if len(formats) == 1 else "mixed-precision"
    if checkpoint.schemes and declaration.format != expected:
        findings.append(
            Finding(
                "config/format",
                Severity.ERROR,
                "config.json",
                f"declares the format {declaration.format or 'none'}, but its schemes are stored as {expected}",
            )
        )
    return findings


Problem = tuple[str, str, str, str]
"""Rule, module, message, remedy."""


def _module_problems(
    form: Format, checkpoint: Checkpoint, modules: Mapping[str, Mapping[str, Tensor]]
) -> Iterator[Problem]:
    for module, tensors in modules.items():
        scheme = checkpoint.schemes.get(module)
        if FUSED_WEIGHT in tensors:
            yield from fused_problems(form, module, scheme, tensors)
            continue
        if scheme is None:
            if _is_quantized(tensors):
                yield (
                    "config/ignored-but-quantized",
                    module,
                    "config.json declares it unquantized, but it is stored quantized",
                    "a server would load the codes as if they were weights; take it off the ignore list",
                )
        elif not _is_quantized(tensors):
            yield (
                "config/declared-but-unquantized",
                module,
                f"config.json declares {scheme}, but the weight is stored as {tensors.get('weight', 'nothing')}",
                "add it to the ignore list, or quantize it",
            )
        else:
            yield from _scheme_problems(form, module, scheme, tensors)


def _scheme_problems(form: Format, module: str, scheme: Scheme, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
    weight = form.weight_of(scheme, tensors)
    try:
        expected = form.stored_tensors(scheme, weight) if weight is not None else None
    except SchemeMismatch as mismatch:
        yield "config/scheme-mismatch", module, f"declared {scheme}, which cannot be: {mismatch}", ""
        return
    if expected is None:
        yield "config/missing-tensor", f"{module}.weight", "its scales are there, but no weight", ""
        return
    for local in sorted(expected.keys() | tensors.keys()):
        own, wanted = tensors.get(local), expected.get(local)
        name = f"{module}.{local}"
        if own is None:
            yield "config/missing-tensor", name, f"missing; the declared scheme stores it as {wanted}", ""
        elif wanted is None:
            yield "config/surplus-tensor", name, f"is {own}, which the declared scheme does not store", ""
        elif own != wanted:
            yield "config/wrong-tensor", name, f"is {own}; the declared scheme stores {wanted}", ""


def _bare_weights(checkpoint: Checkpoint, modules: Mapping[str, Mapping[str, Tensor]]) -> list[Finding]:
    """Weights without ``.weight`` beside siblings that have it: what llm-compressor 0.11 and 0.12 left of experts."""
    templates = {split_name(module)[0] for module in modules}
    bare = [
        name
        for name, tensor in checkpoint.structure.items()
        if len(tensor.shape) == 2
        and split_parameter(name)[1] not in QUANTIZATION_PARAMETERS | {"weight"}
        and split_name(name)[0] in templates
    ]
    return _grouped(
        ((name, "a weight without .weight beside quantized siblings: no server loads it") for name in bare),
        "config/bare-weight",
        "build with llm-compressor 0.13 or newer (0.11 and 0.12 left experts so)",
    )


def _is_quantized(tensors: Mapping[str, Tensor]) -> bool:
    weight = tensors.get("weight", tensors.get(FUSED_WEIGHT))
    return bool(tensors.keys() & QUANTIZATION_PARAMETERS) or (weight is not None and weight.dtype in QUANTIZED_DTYPES)


def _by_problem(problems: Iterable[Problem]) -> list[Finding]:
    alike: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for rule, name, message, remedy in problems:
        alike.setdefault((rule, remedy), []).append((name, message))
    return [finding for (rule, remedy), items in alike.items() for finding in _grouped(items, rule, remedy)]


def _grouped(items: Iterable[tuple[str, str]], rule: str, remedy: str) -> list[Finding]:
    by_message: dict[str, list[str]] = {}
    for name, message in items:
        by_message.setdefault(message, []).append(name)
    return [
        Finding(rule, Severity.ERROR, str(pattern), message, count=len(pattern), remedy=remedy)
        for message, names in by_message.items()
        for pattern in compact(names)
    ]
