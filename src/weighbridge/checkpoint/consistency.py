"""A checkpoint against itself: what config.json declares for each module, and what its tensors are.

Every tensor that only quantization stores is held against something: the scheme of its module, the KV cache, or
nothing, and then it is an error by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from weighbridge.checkpoint.attention_scales import attention_problems, attention_scales
from weighbridge.checkpoint.declared_twice import declared_twice
from weighbridge.checkpoint.foreign_names import foreign_names, is_quantizers
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modelopt_check import modelopt_findings
from weighbridge.checkpoint.modules import FUSED_WEIGHT, QUANTIZATION_PARAMETERS, split_parameter, tensor_name
from weighbridge.checkpoint.problems import Problem, findings_of, said_of
from weighbridge.checkpoint.quantized import WEIGHTS, Modules, is_quantized
from weighbridge.checkpoint.readable import check_judged
from weighbridge.checkpoint.stored_layouts import layout_notes, layout_problems
from weighbridge.checkpoint.stored_schemes import accepted, agrees, scheme_problems
from weighbridge.checkpoint.strays import is_code, is_scale
from weighbridge.errors import StructureError
from weighbridge.formats.compressed_tensors import METHOD as COMPRESSED_TENSORS
from weighbridge.formats.declaration import Declaration
from weighbridge.formats.layouts import LAYOUTS
from weighbridge.formats.modelopt import HF_QUANT_CONFIG
from weighbridge.formats.modelopt import METHOD as MODELOPT
from weighbridge.formats.quantization import find_config, overlaps, resolve_as_compressed_tensors
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import Structure
from weighbridge.report import Finding, Severity
from weighbridge.text.names import split_name

_SERVED_PLACES = ("quantization_config", "compression_config", "text_config.quantization_config", HF_QUANT_CONFIG)
"""Where vLLM 0.32 looks for the quantization config: in a config.json, and beside it."""

_RESTORE = "a server would load the codes as if they were weights; restore quantization_config"
_UNKNOWN = "restore the declaration that says what it is, or take the weight from a source that has it in BF16"
_LOST = (
    "a server would load the codes as if they were weights, and what they are worth is lost with their scales: take "
    "the weight from a source that has it in BF16, or its scales too"
)


def inconsistencies(checkpoint: Checkpoint) -> list[Finding]:
    """Everywhere that config.json and tensors disagree; empty for an unquantized checkpoint that declares nothing.

    Raises:
        StructureError: its declaration is not wholly read here, so nothing more can be said of it (`check_judged`).
    """
    declaration, structure = checkpoint.declaration, checkpoint.structure
    foreign = foreign_names(structure)
    if foreign and declaration is not None and declaration.unread:
        return foreign  # wrong whatever is declared
    check_judged(checkpoint)
    scales = attention_scales(structure, declaration, checkpoint.family)
    taken = {scale.name for scale in scales}
    others = {name: tensor for name, tensor in structure.items() if name not in taken}
    modules = _without(checkpoint.modules, taken)
    problems = list(attention_problems(scales, structure, declaration, checkpoint.config))
    findings: list[Finding] = []
    if declaration is None:
        problems += _undeclared(modules)
    else:
        findings, mistaken = _order(checkpoint, declaration, modules)
        judged = {module: tensors for module, tensors in modules.items() if module not in mistaken}
        problems += _module_problems(checkpoint, declaration, judged, others)
        findings += [*_declared(checkpoint, declaration), *_notes(checkpoint, declaration, modules)]
        findings += declared_twice(checkpoint)
    problems += _strays(others, modules, named={name for _, name, _, _ in problems})
    problems += _bare_weights(structure, modules)
    return [*foreign, *findings_of(problems), *findings]


def check_consistent(checkpoint: Checkpoint) -> None:
    """Refuse a quantized checkpoint that contradicts itself: nothing can be made of it, or held against it.

    Raises:
        StructureError: with what is wrong with it.
    """
    wrong = next((finding for finding in inconsistencies(checkpoint) if finding.severity is Severity.ERROR), None)
    if wrong is not None:
        raise StructureError(f"contradicts itself: {wrong.where} {wrong.message}", where=checkpoint.label)


def _without(modules: Modules, taken: Collection[str]) -> Modules:
    """The modules without the scales of attention, which are judged with it."""
    kept = {
        module: {local: tensor for local, tensor in tensors.items() if tensor_name(module, local) not in taken}
        for module, tensors in modules.items()
    }
    return {module: tensors for module, tensors in kept.items() if tensors}


def _undeclared(modules: Modules) -> Iterator[Problem]:
    for module, tensors in modules.items():
        if is_quantized(tensors):
            remedy = _RESTORE if tensors.keys() - WEIGHTS else _LOST
            yield "config/missing", module, "stored quantized, but config.json has no quantization config", remedy


def _declared(checkpoint: Checkpoint, declaration: Declaration) -> Iterator[Finding]:
    """What is wrong with the declaration as a whole."""
    beside_weights = declaration.kv_cache is not None or declaration.attention
    if not checkpoint.schemes and (declaration.groups or not beside_weights):
        message = "its quantization config targets no module"
        yield Finding("config/quantizes-nothing", Severity.ERROR, checkpoint.declared_in, message)
    if declaration.quant_method != COMPRESSED_TENSORS:
        return
    formats = {scheme.format for scheme in checkpoint.schemes.values()}
    expected = formats.pop() if len(formats) == 1 else "mixed-precision"
    if checkpoint.schemes and declaration.format != expected:
        message = f"declares the format {declaration.format or 'none'}, but its schemes are stored as {expected}"
        yield Finding("config/format", Severity.ERROR, checkpoint.form.config, message)
    for index, group in enumerate(declaration.groups):
        if group.format not in ("", group.scheme.format):
            message = f"config group {index} declares the format {group.format}, but {group.scheme} is stored as "
            yield Finding("config/format", Severity.ERROR, checkpoint.form.config, message + group.scheme.format)


def _notes(checkpoint: Checkpoint, declaration: Declaration, modules: Modules) -> Iterator[Finding]:
    """What servers make of what is declared."""
    if declaration.place and declaration.place not in _SERVED_PLACES:
        message = (
            f"the quantization config stands in {declaration.place}, where vLLM 0.32 does not look for it by itself"
        )
        yield Finding("config/place", Severity.WARNING, checkpoint.form.config, message)
    described = bool(checkpoint.schemes and declaration.place) and declaration.quant_method == COMPRESSED_TENSORS
    if described and declaration.status != "compressed":
        status = declaration.status or "not said, which means initialized"
        message = f"quantization_status is {status}: transformers takes codes for plain weights; vLLM does not read it"
        yield Finding("config/status", Severity.WARNING, checkpoint.form.config, message, remedy="say compressed")
    yield from _cache(checkpoint, declaration)
    reordered = any(scheme.weights.reordered for scheme in checkpoint.schemes.values())
    if reordered and declaration.quant_method == COMPRESSED_TENSORS:
        message = (
            "actorder is group: compressed-tensors 0.19 and vLLM 0.32 refuse such a config (activation ordering by "
            "group is no longer supported); older releases read it, with weight_g_idx"
        )
        yield Finding(
            "config/actorder", Severity.WARNING, checkpoint.form.config, message, remedy="build with actorder: weight"
        )
    if declaration.quant_method in LAYOUTS:
        yield from layout_notes(checkpoint)
        if declaration.quant_method == MODELOPT:
            yield from modelopt_findings(checkpoint)
        return
    scalars = accepted(checkpoint.schemes, modules)
    message = "is a scalar [] where the format stores [1]; vLLM's loaders take both, others were not tried"
    yield from said_of(scalars, "config/scalar-scale", message, severity=Severity.NOTE)


def _cache(checkpoint: Checkpoint, declaration: Declaration) -> Iterator[Finding]:
    """What vLLM stops at in a declaration of the KV cache (``CompressedTensorsKVCacheMethod``, 0.32)."""
    cache = declaration.kv_cache
    if cache is None or not declaration.place or declaration.quant_method != COMPRESSED_TENSORS:
        return
    found = find_config(checkpoint.config, where=checkpoint.label)
    said = found.raw.get("kv_cache_scheme") if found is not None else None
    unsaid = [
        key for key in ("num_bits", "type", "strategy", "symmetric") if isinstance(said, dict) and key not in said
    ]
    served = (cache.type, cache.num_bits, cache.symmetric) == ("float", 8, True)
    if unsaid:
        message = f"kv_cache_scheme leaves out {' and '.join(unsaid)}: vLLM 0.32 stops there, and takes no default"
        yield Finding("config/kv-cache", Severity.WARNING, checkpoint.form.config, message, remedy="say it")
    elif not served or cache.strategy not in ("tensor", "attn_head"):
        message = f"declares the KV cache {cache}: vLLM 0.32 stops at any but symmetric FP8 per tensor or attn_head"
        yield Finding("config/kv-cache", Severity.WARNING, checkpoint.form.config, message)


def _order(checkpoint: Checkpoint, declaration: Declaration, modules: Modules) -> tuple[list[Finding], set[str]]:
    """Modules of which vLLM and compressed-tensors read the groups differently, and which the tensors agree with.

    Returns:
        The findings; and the modules whose tensors are what compressed-tensors alone reads: they need no other.
    """
    if not declaration.place or declaration.quant_method != COMPRESSED_TENSORS:
        return [], set()
    where = f"{checkpoint.label}/{checkpoint.form.config}"
    others = resolve_as_compressed_tensors(declaration, modules, where=where)
    alike: dict[tuple[Severity, str], list[str]] = {}
    mistaken = set()
    for module in modules:
        ours, theirs = checkpoint.schemes.get(module), others.get(module)
        if ours == theirs:
            continue
        served, other = (agrees(scheme, modules[module]) for scheme in (ours, theirs))
        if other and not served:
            mistaken.add(module)
        fits = "the first" if served else "the second, which vLLM does not read" if other else "neither"
        message = (
            f"config groups overlap: vLLM takes the first in the file ({_said(ours)}), compressed-tensors names, then "
            f"patterns by their text ({_said(theirs)}); the stored tensors agree with {fits}"
        )
        alike.setdefault((Severity.WARNING if served else Severity.ERROR, message), []).append(module)
    for module in overlaps(declaration, modules, where=where):
        if checkpoint.schemes.get(module) != others.get(module):
            continue
        message = (
            "config groups overlap: vLLM takes the first in the file and compressed-tensors the first by its text, "
            f"here the same ({_said(others.get(module))}); other servers may take another"
        )
        alike.setdefault((Severity.NOTE, message), []).append(module)
    remedy = "let each module be targeted by one group alone"
    return [
        finding
        for (severity, message), names in alike.items()
        for finding in said_of(names, "config/overlap", message, remedy, severity=severity)
    ], mistaken


def _said(scheme: Scheme | None) -> str:
    return "unquantized" if scheme is None else str(scheme)


def _module_problems(
    checkpoint: Checkpoint, declaration: Declaration, modules: Modules, structure: Structure
) -> Iterator[Problem]:
    """Modules that are quantized and not declared so, or the other way round, and those that are not what they must be.

    Args:
        structure: every tensor but the scales of attention.
    """
    said = checkpoint.declared_in
    judged = {}
    for module, tensors in modules.items():
        scheme = checkpoint.schemes.get(module)
        if scheme is None:
            if is_quantized(tensors):
                kept = f"{said} declares it unquantized, but it is stored quantized"
                if tensors.keys() - WEIGHTS:
                    remedy = "a server would load the codes as if they were weights; take it off the ignore list"
                else:
                    kept, remedy = f"{kept}, without scales", _LOST
                yield "config/ignored-but-quantized", module, kept, remedy
        elif is_quantized(tensors):
            judged[module] = tensors
        elif FUSED_WEIGHT not in tensors or declaration.quant_method in LAYOUTS:  # no linear to compressed-tensors
            stored = next((tensors[local] for local in ("weight", FUSED_WEIGHT) if local in tensors), "nothing")
            message = f"{said} declares {scheme}, but the weight is stored as {stored}"
            yield "config/declared-but-unquantized", module, message, "add it to the ignore list, or quantize it"
    if declaration.quant_method in LAYOUTS:
        yield from layout_problems(declaration, checkpoint.schemes, judged, structure)
        return
    for module, tensors in judged.items():
        yield from scheme_problems(module, checkpoint.schemes[module], tensors)


def _strays(structure: Structure, modules: Modules, *, named: Collection[str]) -> Iterator[Problem]:
    """Codes and scales that belong to no module.

    Args:
        structure: every tensor but the scales of attention.
        named: what is wrong by another rule already.
    """
    owned = {tensor_name(module, local) for module, tensors in modules.items() for local in tensors}
    for name, tensor in structure.items():
        if name in owned or name in named or is_quantizers(name):
            continue
        if is_code(name, tensor):
            yield "config/stray-codes", name, f"is {tensor}: codes that config.json declares nothing of", _UNKNOWN
        elif is_scale(name, structure):
            why = f"is {tensor}, by its name a scale, and belongs to nothing that config.json declares quantized"
            yield "config/stray-scale", name, why, "take it out, or restore what it belongs to"


def _bare_weights(structure: Structure, modules: Modules) -> Iterator[Problem]:
    """Weights without ``.weight`` beside siblings that have it: what llm-compressor 0.11 and 0.12 left of experts."""
    templates = {split_name(module)[0] for module in modules}
    for name, tensor in structure.items():
        if (
            len(tensor.shape) == 2
            and split_parameter(name)[1] not in QUANTIZATION_PARAMETERS | {"weight"}
            and split_name(name)[0] in templates
        ):
            why = "a weight without .weight beside quantized siblings: no server loads it"
            remedy = "build with llm-compressor 0.13 or newer (0.11 and 0.12 left experts so)"
            yield "config/bare-weight", name, why, remedy
