"""What a checkpoint's config.json says of its quantization, by effect: the scheme that each module gets.

Two configs may spell one thing in many ways (patterns or resolved names, one group or several); they are compared by
what each module gets once targets and ignore lists are resolved against the checkpoint's own modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from weighbridge.errors import StructureError
from weighbridge.formats import compressed_tensors, methods, modelopt_reading
from weighbridge.formats.declaration import LINEAR, Declaration
from weighbridge.formats.schemes import Scheme
from weighbridge.text.patterns import REGEX_PREFIX, PatternError, pattern_list

CONFIG_KEYS = ("quantization_config", "compression_config")
MAX_DEPTH = 8
"""How deep a config of a part may stand; composite models have two or three levels."""

NOT_READ = "whose way of storing weights is not read here"
UNNAMED = "unknown"

_METHOD = re.compile(r"[A-Za-z0-9][\w./+-]{0,63}", re.ASCII)
"""What methods are called; some have the name of who made them in front: ``intel/auto-round``."""


class FoundConfig(NamedTuple):
    """A quantization config inside a config.json.

    Attributes:
        place: where it stands, e.g. ``thinker_config.quantization_config``.
        raw: the quantization config itself.
        model: the config that it stands in, of the whole model or of a part.
    """

    place: str
    raw: Mapping[str, Any]
    model: Mapping[str, Any]


def find_config(config: Mapping[str, Any], *, where: str) -> FoundConfig | None:
    """The quantization config inside a config.json: at the top, or in any sub-config.

    Composite models keep it in the config of the part that is quantized (``text_config``, ``thinker_config``).

    Raises:
        StructureError: it is no mapping, or there are two that differ.
    """
    found: FoundConfig | None = None
    for place, raw, model in _all_configs(config, (), depth=MAX_DEPTH):
        if not isinstance(raw, dict):
            raise StructureError(f"{place} is no mapping", where=where)
        if found is not None and found.raw != raw:
            raise StructureError(
                f"{found.place} and {place} say different things",
                where=where,
                remedy="servers read one of them each: keep the one that the tensors agree with",
            )
        found = found or FoundConfig(place, raw, model)
    return found


def _all_configs(
    config: Mapping[str, Any], path: tuple[str, ...], *, depth: int
) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Every quantization config with its place and what it stands in, those of a config before those of its parts."""
    for key in CONFIG_KEYS:
        if config.get(key) is not None:
            yield ".".join((*path, key)), config[key], config
    for key, part in config.items():
        if key not in CONFIG_KEYS and isinstance(part, dict) and depth:
            yield from _all_configs(part, (*path, str(key)[:40]), depth=depth - 1)


def read_declaration(config: Mapping[str, Any], *, where: str) -> Declaration | None:
    """Read the quantization config of a config.json; None where there is none.

    Raises:
        StructureError: a config that is malformed, or that its method's reader does not wholly know.
    """
    found = find_config(config, where=where)
    if found is None:
        return None
    method = _read_method(found.raw, where=where)
    reader = READERS.get(method)
    if reader is None:
        read = Declaration(method, unread=NOT_READ if method != UNNAMED else "for its config names no quant_method")
    else:
        read = reader(found.raw, found.model, where=f"{where}: {found.place}")
    return replace(read, place=found.place)


def _read_method(raw: Mapping[str, Any], *, where: str) -> str:
    method = raw.get("quant_method", UNNAMED)
    if not isinstance(method, str) or not _METHOD.fullmatch(method):
        raise StructureError(f"quant_method cannot be {str(method)[:40]!r}", where=where)
    return method


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of a composite model's text model; the config itself where it has no such part."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without any of the quantization configs that `find_config` would find in it."""
    return _without(config, depth=MAX_DEPTH)


def _without(config: Mapping[str, Any], *, depth: int) -> dict[str, Any]:
    return {
        key: _without(value, depth=depth - 1) if isinstance(value, dict) and depth else value
        for key, value in config.items()
        if key not in CONFIG_KEYS
    }


def resolve(declaration: Declaration, modules: Iterable[str], *, where: str) -> dict[str, Scheme]:
    """The scheme that a server gives each of `modules`; modules that get none are left out.

    The first target in the order of the config that is the module's name or a pattern for it, and only then the class
    ``Linear``; of groups that name one target the last. The ignore list holds names and patterns. Source:
    ``find_matched_target`` and ``should_ignore_layer`` of vLLM 0.32.

    Raises:
        StructureError: a pattern that does not compile or cannot be matched in a bounded time.
    """
    scheme_of = {target: group.scheme for group in declaration.groups for target in group.targets}
    targets = tuple(target for target in scheme_of if target != LINEAR)
    return _resolved(targets, declaration.ignore, scheme_of, modules, where=where)


def resolve_as_compressed_tensors(declaration: Declaration, modules: Iterable[str], *, where: str) -> dict[str, Scheme]:
    """The scheme that compressed-tensors, and with it transformers, gives each of `modules`.

    A target that is a module's name goes before one that is a pattern, and that before the class name ``Linear``; of
    several patterns the first in the order of their text, of several groups that name one target the last
    (``match_targets`` and ``apply_quantization_config`` of compressed-tensors 0.19.0). The class may be ignored, too.

    Raises:
        StructureError: a pattern that does not compile or cannot be matched in a bounded time.
    """
    if LINEAR in declaration.ignore:
        return {}
    scheme_of = {target: group.scheme for group in declaration.groups for target in group.targets}
    targets = tuple(sorted(scheme_of.keys() - {LINEAR}, key=lambda target: (REGEX_PREFIX in target, target)))
    return _resolved(targets, declaration.ignore, scheme_of, modules, where=where)


def overlaps(declaration: Declaration, modules: Iterable[str], *, where: str) -> list[str]:
    """The modules that targets of different schemes name or match.

    Raises:
        StructureError: a pattern that does not compile or cannot be matched in a bounded time.
    """
    scheme_of = {target: group.scheme for group in declaration.groups for target in group.targets}
    targets = tuple(target for target in scheme_of if target != LINEAR)
    with refused(where):
        lists = pattern_list(targets)
        return [module for module in modules if len({scheme_of[targets[index]] for index in lists.matches(module)}) > 1]


def _resolved(
    targets: tuple[str, ...],
    ignore: tuple[str, ...],
    scheme_of: Mapping[str, Scheme],
    modules: Iterable[str],
    *,
    where: str,
) -> dict[str, Scheme]:
    """The scheme of the first target that matches, or that of the class."""
    resolved = {}
    with refused(where):
        target_list, ignored = pattern_list(targets), pattern_list(ignore)
        for module in modules:
            if ignored.matches(module):
                continue
            first = target_list.first(module)
            scheme = scheme_of.get(LINEAR) if first is None else scheme_of[targets[first]]
            if scheme is not None:
                resolved[module] = scheme
    return resolved


@contextmanager
def refused(where: str) -> Iterator[None]:
    """Say where patterns stand that cannot be compiled or matched.

    Raises:
        StructureError: in the place of a PatternError.
    """
    try:
        yield
    except PatternError as error:
        raise StructureError(error.what, where=where, remedy=error.remedy) from None


READERS: Mapping[str, Callable[..., Declaration]] = {
    compressed_tensors.METHOD: compressed_tensors.read_declaration,
    **dict.fromkeys(modelopt_reading.METHODS, modelopt_reading.read_declaration),
    **methods.READERS,
}
"""By the name that ``quant_method`` has in config.json: what reads the rest. Each is given the quantization config, the
config that it stands in, and ``where``."""
