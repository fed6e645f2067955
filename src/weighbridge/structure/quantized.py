"""Which modules of a checkpoint its declaration quantizes, where names alone do not say so.

Methods other than compressed-tensors leave to the server's model code what is a linear that can be quantized: a router,
a head or a projection beside the layers may stay a float without standing on any list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from weighbridge.errors import StructureError
from weighbridge.formats.declaration import LINEAR, Declaration
from weighbridge.formats.layouts import LAYOUTS
from weighbridge.formats.quantization import resolve
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import FLOATING_SOURCES, Tensor
from weighbridge.patterns import MAX_EXPRESSIONS, REGEX_PREFIX, PatternError, PatternList, pattern_list
from weighbridge.structure.modules import FUSED_WEIGHT
from weighbridge.structure.names import split_name

Modules = Mapping[str, Mapping[str, Tensor]]

MAX_ENTRIES = 4_096
"""More expressions than any declaration has; each is tried on each module."""

MAX_PARTS = 32
"""More parts than any module's name has; their runs are as many as the square of it."""

_MERGED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
_EXPERT = re.compile(r"(.*\.experts)\.[0-9]+\.")


def quantized_modules(declaration: Declaration, modules: Modules, *, where: str) -> dict[str, Scheme]:
    """The scheme of each module that a declaration quantizes, and that servers look for codes in.

    Args:
        modules: as `quantizable_modules` finds them.

    Raises:
        StructureError: a pattern that does not compile, or more of them than can be matched.
    """
    layout = LAYOUTS.get(declaration.quant_method)
    if layout is None:
        return resolve(declaration, modules, where=where)
    declared = declared_schemes(declaration, modules, where=where)
    coded = {module for module in declared if has_codes(modules[module])}
    kinds = {split_name(module)[0] for module in coded} if layout.by_kind else set()
    experts = {match[1] for module in coded if (match := _EXPERT.match(module))}

    def is_asked(module: str) -> bool:
        match = _EXPERT.match(module)
        return (
            module in coded
            or layout.asked(declaration, module)
            or split_name(module)[0] in kinds
            or any(partner in coded for partner in _partners(module))
            or (match is not None and match[1] in experts)
        )

    return {module: scheme for module, scheme in declared.items() if is_asked(module)}


def declared_schemes(declaration: Declaration, modules: Iterable[str], *, where: str) -> dict[str, Scheme]:
    """The scheme that a declaration has for each module by its name, whether a server asks for it or not.

    A target may name the module, or what holds it: the longest that does goes first, then patterns in their order.

    Raises:
        StructureError: as `quantized_modules`.
    """
    named: dict[str, Scheme] = {}
    patterns: list[tuple[str, Scheme]] = []
    for group in declaration.groups:
        for target in group.targets:
            if target.startswith(REGEX_PREFIX):
                patterns.append((target, group.scheme))
            else:
                named[target] = group.scheme
    lists = _pattern_lists([pattern for pattern, _ in patterns], where=where)
    schemes = dict(patterns)
    kept = frozenset(entry for entry in declaration.ignore if not entry.startswith(REGEX_PREFIX))
    ignored = _pattern_lists([entry for entry in declaration.ignore if entry.startswith(REGEX_PREFIX)], where=where)
    layout = LAYOUTS.get(declaration.quant_method)
    names_of = _runs if layout is not None and layout.in_parts else _itself
    found = {}
    for module in modules:
        if not kept.isdisjoint(names_of(module)) or any(entries.has(module) for entries in ignored):
            continue
        scheme = next((named[holder] for holder in _holders(module) if holder in named), None)
        if scheme is None:
            hits = ((entries, entries.first(module)) for entries in lists if entries.has(module))
            matched = next((entries.entries[index] for entries, index in hits if index is not None), None)
            scheme = named.get(LINEAR) if matched is None else schemes[matched]
        if scheme is not None:
            found[module] = scheme
    return found


def has_codes(tensors: Mapping[str, Tensor]) -> bool:
    """Whether anything of a module is stored as quantization stores it."""
    floats = {"weight", FUSED_WEIGHT}
    return any(local not in floats or tensor.dtype not in FLOATING_SOURCES for local, tensor in tensors.items())


def _holders(module: str) -> Iterator[str]:
    """A module's name and what holds it, the innermost first; then as vLLM calls it, which puts ``model`` elsewhere."""
    for name in (module, *_spellings(module)):
        parts = name.split(".")
        yield from (".".join(parts[:count]) for count in range(len(parts), 0, -1))


def _spellings(module: str) -> Iterator[str]:
    for written, other in (
        ("model.language_model.", "language_model.model."),
        ("language_model.model.", "model.language_model."),
    ):
        if module.startswith(written):
            yield other + module.removeprefix(written)


def _itself(module: str) -> tuple[str, ...]:
    return (module,)


def _runs(module: str) -> tuple[str, ...]:
    """Every run of whole parts of a name: ``b.c`` of ``a.b.c.d``, and the name itself."""
    parts = module.split(".")[:MAX_PARTS]
    ends = range(1, len(parts) + 1)
    return (module, *(".".join(parts[begin:end]) for end in ends for begin in range(end)))


def _partners(module: str) -> Iterator[str]:
    """What servers merge a module with."""
    parent, _, own = module.rpartition(".")
    for members in _MERGED:
        if own in members:
            yield from (f"{parent}.{member}" for member in members if member != own)


def _pattern_lists(entries: Iterable[str], *, where: str) -> list[PatternList]:
    """Expressions in lists that can be compiled."""
    expressions = tuple(dict.fromkeys(entries))
    if len(expressions) > MAX_ENTRIES:
        raise StructureError(f"has more than {MAX_ENTRIES:,} patterns of modules", where=where)
    try:
        return [
            pattern_list(expressions[at : at + MAX_EXPRESSIONS]) for at in range(0, len(expressions), MAX_EXPRESSIONS)
        ]
    except PatternError as error:
        raise StructureError(error.what, where=where, remedy=error.remedy) from None
