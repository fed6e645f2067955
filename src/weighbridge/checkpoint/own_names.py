"""A declaration that speaks of modules as vLLM calls them, and the names that they have in the file.

In Mistral's own form they differ: the file has ``layers.0.attention.wq``, and what quantizes or ignores it must name
``model.layers.0.self_attn.q_proj``, which is what vLLM 0.32 makes of it before it asks (families/units/
mistral-native.yaml).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from weighbridge.errors import StructureError
from weighbridge.families import Family
from weighbridge.formats.declaration import LINEAR, Declaration
from weighbridge.text.names import split_name
from weighbridge.text.patterns import REGEX_PREFIX, PatternError, pattern_list


def in_own_names(declaration: Declaration, modules: Collection[str], family: Family, *, where: str) -> Declaration:
    """The same declaration by names of the file: what a target or an entry of what is ignored means, module by module.

    Args:
        modules: those of the file.

    Raises:
        StructureError: a pattern does not compile, or cannot be matched in a bounded time.
    """
    if not family.params:
        return declaration
    called = {module: family.in_vllm(module) for module in modules}

    def meant(entries: Iterable[str]) -> Iterator[str]:
        for entry in entries:
            if entry == LINEAR:
                yield entry
        patterns = pattern_list(tuple(entries))
        yield from (module for module, name in called.items() if patterns.has(name))

    try:
        groups = tuple(replace(group, targets=tuple(meant(group.targets))) for group in declaration.groups)
        return replace(declaration, groups=groups, ignore=tuple(meant(declaration.ignore)))
    except PatternError as error:
        raise StructureError(error.what, where=where, remedy=error.remedy) from None


def entries_for(modules: Iterable[str], others: Iterable[str], family: Family) -> list[str]:
    """Entries of a list that name modules of the file as vLLM calls them, and none of `others`.

    Modules that differ in numbers alone are one expression, unless one of `others` differs from them in numbers alone.
    """
    taken = {split_name(family.in_vllm(module))[0] for module in others}
    entries: dict[str, None] = {}
    for module in modules:
        name = family.in_vllm(module)
        template = split_name(name)[0]
        numbered = template != name and template not in taken
        entries[_expression(template) if numbered else name] = None
    return list(entries)


def _expression(template: str) -> str:
    return f"{REGEX_PREFIX}{r'[0-9]+'.join(map(re.escape, template.split('{}')))}$"
