"""A checkpoint of one of the methods in `weighbridge.formats.layouts` against itself, by names, dtypes and shapes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

from weighbridge.formats import FORMATS
from weighbridge.formats.layouts import LAYOUTS, Expected, Layout
from weighbridge.formats.modelopt import METHOD
from weighbridge.formats.schemes import SchemeMismatch
from weighbridge.formats.tensors import Tensor
from weighbridge.report import Finding, Severity
from weighbridge.structure.checkpoint import CONFIG_FILE, Checkpoint
from weighbridge.structure.foreign_names import is_quantizers
from weighbridge.structure.modelopt_check import modelopt_findings
from weighbridge.structure.modules import FUSED_WEIGHT, split_parameter, tensor_name
from weighbridge.structure.names import compact
from weighbridge.structure.quantized import declared_schemes, has_codes

Problem = tuple[str, str, str, str]
"""Rule, name, message, remedy."""

CODE_DTYPES = frozenset({"F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "F4"})
"""Dtypes in which nothing but codes and their scales is stored in two axes or more."""

BESIDE = frozenset({"bias", "k_scale", "v_scale", "q_scale", "k_bias", "v_bias"})
"""What a quantized linear may have beside what its scheme stores: its bias, and what belongs to the KV cache."""

CALIBRATE = "calibrate with more text, or show every expert every token; a server multiplies by what lay in memory"


def layout_findings(checkpoint: Checkpoint) -> list[Finding]:
    """Everywhere that declaration and tensors disagree, and what they leave to a server's own code."""
    declaration = checkpoint.declaration
    assert declaration is not None
    layout = LAYOUTS[declaration.quant_method]
    problems = [*_problems(layout, checkpoint), *_homeless(checkpoint)]
    findings = [*_by_problem(problems), *_left(checkpoint), *_said(checkpoint)]
    if declaration.quant_method == METHOD:
        findings += modelopt_findings(checkpoint)
    if not checkpoint.schemes and (declaration.groups or declaration.kv_cache is None):
        what = f"declares {declaration.quant_method}, and no module here is quantized by it"
        findings.append(Finding("config/quantizes-nothing", Severity.ERROR, CONFIG_FILE, what))
    return findings


def _problems(layout: Layout, checkpoint: Checkpoint) -> Iterator[Problem]:
    declaration = checkpoint.declaration
    assert declaration is not None
    expected_of: dict[str, Expected] = {}
    for module, tensors in checkpoint.modules.items():
        scheme = checkpoint.schemes.get(module)
        if scheme is None:
            if has_codes(tensors):
                name = _first_coded(module, tensors)
                what = f"is {checkpoint.structure[name]}, and the declaration quantizes no module of this name"
                yield (
                    "config/ignored-but-quantized",
                    name,
                    what,
                    "a server would load the codes as if they were weights",
                )
        elif not has_codes(tensors):
            stored = tensors.get("weight", tensors.get(FUSED_WEIGHT, "nothing"))
            what = f"is declared to be {scheme}, but the weight is stored as {stored}"
            yield "config/declared-but-unquantized", module, what, "exclude it, or quantize it"
        else:
            try:
                expected_of[module] = layout.expected(declaration.format, scheme, tensors)
            except SchemeMismatch as mismatch:
                yield "config/scheme-mismatch", module, f"is declared to be {scheme}, which cannot be: {mismatch}", ""
    somewhere = {local for module in expected_of for local in checkpoint.modules[module]}
    beside = _beside(checkpoint, expected_of)
    for module, expected in expected_of.items():
        tensors = {**beside[module], **checkpoint.modules[module]}
        yield from _tensor_problems(module, expected, tensors, somewhere)


def _tensor_problems(
    module: str, expected: Expected, tensors: Mapping[str, Tensor], somewhere: set[str]
) -> Iterator[Problem]:
    if any(not wanted.kinds for wanted in expected.values()):
        for local in expected:
            yield "config/missing-tensor", tensor_name(module, local), "missing; what belongs to it is there", ""
        return
    for local in sorted(expected.keys() | tensors.keys()):
        name, own, wanted = tensor_name(module, local), tensors.get(local), expected.get(local)
        if wanted is None:
            yield "config/surplus-tensor", name, f"is {own}, which the declared scheme does not store", ""
        elif own is None:
            if wanted.absent == "never" or (wanted.absent == "everywhere" and local in somewhere):
                remedy = CALIBRATE if local.endswith("input_scale") else ""
                yield (
                    "config/missing-tensor",
                    name,
                    f"missing; the declared scheme stores it as {_listed(wanted.kinds)}",
                    remedy,
                )
        elif own not in wanted.kinds:
            what = f"is {own}; the declared scheme stores {_listed(wanted.kinds)}"
            yield "config/wrong-tensor", name, what, ""


def _listed(kinds: tuple[Tensor, ...]) -> str:
    shapes = list(dict.fromkeys(kind.shape for kind in kinds))
    dtypes = list(dict.fromkeys(kind.dtype for kind in kinds))
    return f"{' or '.join(dtypes)} {' or '.join(str(list(shape)) for shape in shapes)}"


def _first_coded(module: str, tensors: Mapping[str, Tensor]) -> str:
    """The tensor of a module that shows that it is quantized: its codes, or else a scale."""
    ordered = sorted(tensors, key=lambda local: (local not in ("weight", FUSED_WEIGHT, "qweight", "_blocks"), local))
    return tensor_name(module, ordered[0])


def _beside(checkpoint: Checkpoint, modules: Iterable[str]) -> Mapping[str, Mapping[str, Tensor]]:
    """Every other tensor that lies directly in one of these modules and is not part of any linear."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    wanted = set(modules)
    for name, tensor in checkpoint.structure.items():
        module, local = split_parameter(name)
        if module in wanted and local not in BESIDE:
            found[module][local] = tensor
    return found


def _homeless(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Codes and scales that are no part of any module: nothing would give them a meaning."""
    owned = {tensor_name(module, local) for module, tensors in checkpoint.modules.items() for local in tensors}
    judged = checkpoint.schemes.keys()
    for name, tensor in checkpoint.structure.items():
        coded = tensor.dtype in CODE_DTYPES and len(tensor.shape) >= 2
        if coded and name not in owned and split_parameter(name)[0] not in judged and not is_quantizers(name):
            yield "config/codes-of-no-module", name, f"is {tensor}, and belongs to no module that is quantized", ""


def _left(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Float linears of the layers that no list names: said, because only a server's model code knows what they are."""
    declaration = checkpoint.declaration
    assert declaration is not None
    kept = [
        module
        for module in declared_schemes(declaration, checkpoint.modules, where=checkpoint.label)
        if module not in checkpoint.schemes and ".layers." in f".{module}." and not module.endswith(("gate", "router"))
    ]
    for pattern in compact(kept):
        weight = next(iter(checkpoint.modules[next(iter(pattern))].values()))
        what = f"is kept as {weight.dtype} and on no list of what is kept: a server's own code decides"
        yield Finding("config/left-unquantized", Severity.NOTE, str(pattern), what, count=len(pattern))


def _said(checkpoint: Checkpoint) -> Iterator[Finding]:
    """What a method that is only read here declares, in the words of the others."""
    declaration = checkpoint.declaration
    assert declaration is not None
    if declaration.quant_method in FORMATS:
        return
    for scheme, count in Counter(checkpoint.schemes.values()).items():
        what = f"{declaration.quant_method}: {scheme}; judged by names, dtypes and shapes alone"
        yield Finding("config/judged-by-layout", Severity.NOTE, CONFIG_FILE, what, count=count)


def _by_problem(problems: Iterable[Problem]) -> Iterator[Finding]:
    alike: dict[tuple[str, str, str], list[str]] = {}
    for rule, name, message, remedy in problems:
        alike.setdefault((rule, message, remedy), []).append(name)
    for (rule, message, remedy), names in alike.items():
        for pattern in compact(names):
            yield Finding(rule, Severity.ERROR, str(pattern), message, count=len(pattern), remedy=remedy)
