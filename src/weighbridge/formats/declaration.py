"""A quantization config, read: which targets get which scheme, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from weighbridge.errors import StructureError
from weighbridge.formats.schemes import QuantizationArgs, Scheme

LINEAR = "Linear"


@dataclass(frozen=True)
class Group:
    """A config group: the targets that get a scheme.

    Attributes:
        format: how the group itself says that it is stored; empty where it does not.
    """

    targets: tuple[str, ...]
    scheme: Scheme
    format: str = field(default="", compare=False)


@dataclass(frozen=True)
class AttentionGroup:
    """A config group without weights: the queries, keys and values of a class of attention are quantized.

    Attributes:
        targets: the class, e.g. ``LlamaAttention``.
        args: how they are quantized.
    """

    targets: tuple[str, ...]
    args: QuantizationArgs


@dataclass(frozen=True)
class Declaration:
    """A quantization config as it is written.

    Attributes:
        quant_method: who reads it, e.g. ``compressed-tensors``, ``modelopt``, ``fp8``.
        format: how tensors are stored, e.g. ``float-quantized``; empty where the method has no such key.
        attention: groups that quantize attention itself, which servers read together with the KV cache.
        status: compressed-tensors' ``quantization_status``; empty where the method has no such key.
        place: where in config.json it stands, e.g. ``thinker_config.quantization_config``, or the name of a file of its
            own; empty for a lock.
        unread: why a checkpoint that declares this cannot be judged, as a clause that follows the method's name; empty
            where all of it is read.
    """

    quant_method: str
    format: str = ""
    groups: tuple[Group, ...] = ()
    ignore: tuple[str, ...] = ()
    kv_cache: QuantizationArgs | None = None
    attention: tuple[AttentionGroup, ...] = ()
    status: str = field(default="", compare=False)
    place: str = field(default="", compare=False)
    unread: str = ""


def read_word(raw: Mapping[str, Any], key: str, *, default: str, where: str) -> str:
    """A plain word of a config, such as the name of a method or format.

    Raises:
        StructureError: it is none.
    """
    word = raw.get(key, default)
    if not isinstance(word, str) or len(word) > 64 or not (word == "" or word.replace("-", "_").isidentifier()):
        raise StructureError(f"{key} cannot be {str(word)[:40]!r}", where=where)
    return word


def read_strings(raw: Any, *, where: str) -> tuple[str, ...]:
    """A list of names and patterns; none where the key is null.

    Raises:
        StructureError: it is no such list.
    """
    if raw is None:
        return ()
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        raise StructureError("is no list of names and patterns", where=where)
    return tuple(raw)


def check_keys(raw: Mapping[str, Any], known: Iterable[str], *, where: str) -> None:
    """Refuse a key that is not read: servers may obey it, or it is another one misspelt.

    Raises:
        StructureError: with the first such key, and the known one that it resembles.
    """
    known = sorted(known)
    for key in raw:
        if key not in known:
            close = get_close_matches(str(key)[:64], known, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"known here are {', '.join(known)}"
            raise StructureError(f"unknown key {str(key)[:40]!r}", where=where, remedy=remedy)
