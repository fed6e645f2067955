"""The modules of a checkpoint of one of the methods in `weighbridge.formats.layouts`, by names, dtypes and shapes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import split_parameter, tensor_name
from weighbridge.checkpoint.problems import Problem
from weighbridge.checkpoint.quantized import Modules, declared_schemes
from weighbridge.families import Role
from weighbridge.formats import FORMATS
from weighbridge.formats.declaration import Declaration
from weighbridge.formats.layouts import LAYOUTS, Expected
from weighbridge.formats.schemes import Scheme, SchemeMismatch
from weighbridge.formats.tensors import Structure, Tensor
from weighbridge.report import Finding, Severity
from weighbridge.text.names import compact

BIAS = "bias"
"""What a quantized linear may have beside what its scheme stores."""

CALIBRATE = "calibrate with more text, or show every expert every token; a server multiplies by what lay in memory"


def layout_problems(
    declaration: Declaration, schemes: Mapping[str, Scheme], modules: Modules, structure: Structure
) -> Iterator[Problem]:
    """Where quantized modules are not what their method stores.

    Args:
        modules: those that are quantized and declared so, with their tensors by local name.
        structure: every tensor but the scales of attention.
    """
    layout = LAYOUTS[declaration.quant_method]
    expected_of: dict[str, Expected] = {}
    for module, tensors in modules.items():
        try:
            expected_of[module] = layout.expected(declaration.format, schemes[module], tensors)
        except SchemeMismatch as mismatch:
            yield "config/scheme-mismatch", module, f"declared {schemes[module]}, which cannot be: {mismatch}", ""
    somewhere = {local for module in expected_of for local in modules[module]}
    beside = _beside(structure, expected_of)
    for module, expected in expected_of.items():
        yield from _tensor_problems(module, expected, {**beside[module], **modules[module]}, somewhere)


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
                why = f"missing; the declared scheme stores it as {_listed(wanted.kinds)}"
                yield "config/missing-tensor", name, why, CALIBRATE if local.endswith("input_scale") else ""
        elif own not in wanted.kinds:
            why = f"is {own}; the declared scheme stores {_listed(wanted.kinds)}"
            yield "config/wrong-tensor", name, why, ""


def _listed(kinds: tuple[Tensor, ...]) -> str:
    shapes = list(dict.fromkeys(kind.shape for kind in kinds))
    dtypes = list(dict.fromkeys(kind.dtype for kind in kinds))
    return f"{' or '.join(dtypes)} {' or '.join(str(list(shape)) for shape in shapes)}"


def _beside(structure: Structure, modules: Iterable[str]) -> Mapping[str, Mapping[str, Tensor]]:
    """Every other tensor that lies directly in one of these modules."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    wanted = set(modules)
    for name, tensor in structure.items():
        module, local = split_parameter(name)
        if module in wanted and local != BIAS:
            found[module][local] = tensor
    return found


def layout_notes(checkpoint: Checkpoint) -> Iterator[Finding]:
    """What such a method leaves to a server's own code, and what it declares, in the words of the others."""
    declaration = checkpoint.declaration
    assert declaration is not None
    kept = [
        module
        for module in declared_schemes(declaration, checkpoint.modules, where=checkpoint.label)
        if module not in checkpoint.schemes
        and ".layers." in f".{module}."
        and checkpoint.family.role_of(module) is not Role.ROUTER
    ]
    for pattern in compact(kept):
        weight = next(iter(checkpoint.modules[next(iter(pattern))].values()))
        what = f"is kept as {weight.dtype} and on no list of what is kept: a server's own code decides"
        yield Finding("config/left-unquantized", Severity.NOTE, str(pattern), what, count=len(pattern))
    if declaration.quant_method in FORMATS:
        return
    for scheme, count in Counter(checkpoint.schemes.values()).items():
        what = f"{declaration.quant_method}: {scheme}; judged by names, dtypes and shapes alone"
        yield Finding("config/judged-by-layout", Severity.NOTE, checkpoint.declared_in, what, count=count)
