"""The descriptors of this package, and which of them a config.json asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from weighbridge.errors import StructureError
from weighbridge.families.descriptor import Descriptor, Unit
from weighbridge.families.family import Family
from weighbridge.text.strict_yaml import Strict, parse_yaml, validate

COMMON = "common"
"""The unit that every family has last: what decoders of many families call the same."""

_Kind = TypeVar("_Kind", bound=Strict)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a config.json names by its architecture, or else by its type or that of its text model.

    A config that names neither may be Mistral's own (params.json), which is known by its keys: of the descriptors whose
    keys it has, the one with most. What no descriptor describes is the unknown family, which knows what is common to
    many.
    """
    names = config.get("architectures")
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and name in _by_architecture():
            return _family(_by_architecture()[name])
    for part in (config, config.get("text_config")):
        kind = part.get("model_type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind in _by_type():
            return _family(_by_type()[kind])
    if config.keys().isdisjoint(("architectures", "model_type")):
        for name, params in _by_params():
            if config.keys() >= params:
                return _family(name)
    return UNKNOWN


@cache
def descriptors() -> Mapping[str, Descriptor]:
    """File name without its end -> descriptor, in the order of names."""
    return dict(_read("descriptors", Descriptor))


@cache
def units() -> Mapping[str, Unit]:
    """Name -> unit."""
    return dict(_read("units", Unit))


def families() -> tuple[Family, ...]:
    """Every family that is described."""
    return tuple(map(_family, descriptors()))


@cache
def _family(name: str) -> Family:
    own = descriptors()[name]
    shared = (*(units()[unit] for unit in own.units), units()[COMMON])
    return Family(own.name, known=True, published=own.published, units=(own, *shared), params=own.params)


@cache
def _by_architecture() -> Mapping[str, str]:
    return {architecture: name for name, own in descriptors().items() for architecture in own.architectures}


@cache
def _by_type() -> Mapping[str, str]:
    return {kind: name for name, own in descriptors().items() for kind in own.model_types}


@cache
def _by_params() -> tuple[tuple[str, frozenset[str]], ...]:
    """Descriptors that are known by keys of params.json, those that ask for most first."""
    found = [(name, frozenset(own.params)) for name, own in descriptors().items() if own.params]
    return tuple(sorted(found, key=lambda item: -len(item[1])))


def _read(folder: str, kind: type[_Kind]) -> Iterator[tuple[str, _Kind]]:
    found = resources.files(__package__).joinpath(folder)
    for item in sorted(found.iterdir(), key=lambda item: item.name):
        if item.name.endswith(".yaml"):
            document = parse_yaml(item.read_bytes(), where=f"families/{folder}/{item.name}", error=StructureError)
            yield item.name.removesuffix(".yaml"), validate(document, kind, error=StructureError)


UNKNOWN = Family("unknown", known=False, published=(), units=(units()[COMMON],))
"""What no descriptor describes."""
