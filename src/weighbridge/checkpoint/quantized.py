"""Which modules of a checkpoint its declaration quantizes, where names alone do not say so.

Methods other than compressed-tensors leave to the server's model code what is a linear that can be quantized: a router,
a head or a projection beside the layers may stay a float without standing on any list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from weighbridge.checkpoint.modules import FUSED_WEIGHT
from weighbridge.checkpoint.strays import is_code
from weighbridge.families import Family
from weighbridge.formats.declaration import LINEAR, Declaration
from weighbridge.formats.layouts import LAYOUTS
from weighbridge.formats.quantization import refused, resolve
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import Tensor
from weighbridge.text.names import expert_of, split_name
from weighbridge.text.patterns import MAX_EXPRESSIONS, REGEX_PREFIX, PatternError, PatternList, pattern_list

Modules = Mapping[str, Mapping[str, Tensor]]

MAX_ENTRIES = 4_096
"""More expressions than any declaration has; each is tried on each module."""

MAX_PARTS = 32
"""More parts than any module's name has; their runs are as many as the square of it."""

WEIGHTS = frozenset({"weight", FUSED_WEIGHT})
"""Local names of weights as models have them; whatever else is part of a module, quantization put there."""


def quantized_modules(declaration: Declaration, modules: Modules, family: Family, *, where: str) -> dict[str, Scheme]:
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
    coded = {module for module in declared if is_quantized(modules[module])}
    kinds = {split_name(module)[0] for module in coded} if layout.by_kind else set()
    experts = {expert[0] for module in coded if (expert := expert_of(module)) is not None}

    def is_asked(module: str) -> bool:
        expert = expert_of(module)
        return (
            module in coded
            or layout.asked(declaration, module)
            or split_name(module)[0] in kinds
            or any(partner in coded for partner in _partners(module, family))
            or (expert is not None and expert[0] in experts)
        )

    return {module: scheme for module, scheme in declared.items() if is_asked(module)}


def declared_schemes(declaration: Declaration, modules: Iterable[str], *, where: str) -> dict[str, Scheme]:
    """The scheme that a declaration has for each module by its name, whether a server asks for it or not.

    A target may name the module, or what holds it: the longest that does goes first, then patterns in their order.

    Raises:
        StructureError: as `quantized_modules`.
    """
    with refused(where):
        choose = _Chooser(declaration)
        found = ((module, choose(module)) for module in modules)
        return {module: scheme for module, scheme in found if scheme is not None}


class _Chooser:
    """A declaration's targets and the list of what is kept, compiled: a module's name -> its scheme, or None."""

    def __init__(self, declaration: Declaration) -> None:
        targets = [(target, group.scheme) for group in declaration.groups for target in group.targets]
        self.named = {target: scheme for target, scheme in targets if not target.startswith(REGEX_PREFIX)}
        self.by_pattern = {target: scheme for target, scheme in targets if target.startswith(REGEX_PREFIX)}
        self.lists = _pattern_lists(self.by_pattern)
        self.kept = frozenset(entry for entry in declaration.ignore if not entry.startswith(REGEX_PREFIX))
        self.ignored = _pattern_lists(entry for entry in declaration.ignore if entry.startswith(REGEX_PREFIX))
        layout = LAYOUTS.get(declaration.quant_method)
        self.names_of = _runs if layout is not None and layout.in_parts else (lambda module: (module,))

    def __call__(self, module: str) -> Scheme | None:
        if not self.kept.isdisjoint(self.names_of(module)) or any(entries.has(module) for entries in self.ignored):
            return None
        holder = next((holder for holder in _holders(module) if holder in self.named), None)
        if holder is not None:
            return self.named[holder]
        for entries in self.lists:
            first = entries.first(module) if entries.has(module) else None
            if first is not None:
                return self.by_pattern[entries.entries[first]]
        return self.named.get(LINEAR)


def is_quantized(tensors: Mapping[str, Tensor]) -> bool:
    """Whether anything of a module is stored as quantization stores it."""
    return any(local not in WEIGHTS or is_code("weight", tensor) for local, tensor in tensors.items())


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


def _runs(module: str) -> tuple[str, ...]:
    """Every run of whole parts of a name: ``b.c`` of ``a.b.c.d``, and the name itself."""
    parts = module.split(".")[:MAX_PARTS]
    ends = range(1, len(parts) + 1)
    return (module, *(".".join(parts[begin:end]) for end in ends for begin in range(end)))


def _partners(module: str, family: Family) -> Iterator[str]:
    """What servers merge a module with."""
    parent, _, own = module.rpartition(".")
    merge = family.merge_of(module)
    if merge is not None:
        yield from (f"{parent}.{member}" for member in merge.members if member != own)


def _pattern_lists(entries: Iterable[str]) -> list[PatternList]:
    """Expressions in lists that can be compiled.

    Raises:
        PatternError: one does not compile, or there are more than can be matched.
    """
    expressions = tuple(dict.fromkeys(entries))
    if len(expressions) > MAX_ENTRIES:
        raise PatternError(f"has more than {MAX_ENTRIES:,} patterns of modules")
    return [pattern_list(expressions[at : at + MAX_EXPRESSIONS]) for at in range(0, len(expressions), MAX_EXPRESSIONS)]
