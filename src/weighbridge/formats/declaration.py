"""A quantization config, read: which targets get which scheme, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weighbridge.errors import StructureError
from weighbridge.formats.schemes import QuantizationArgs, Scheme

LINEAR = "Linear"


@dataclass(frozen=True)
class Group:
    """A config group: the targets that get a scheme."""

    targets: tuple[str, ...]
    scheme: Scheme


@dataclass(frozen=True)
class Declaration:
    """A quantization config as it is written.

    Attributes:
        quant_method: who reads it, e.g. ``compressed-tensors``, ``modelopt``, ``fp8``.
        format: how tensors are stored, e.g. ``float-quantized``; empty where the method has no such key.
        unread: why a checkpoint that declares this cannot be judged, as a clause; empty where all of it is read.
    """

    quant_method: str
    format: str = ""
    groups: tuple[Group, ...] = ()
    ignore: tuple[str, ...] = ()
    kv_cache: QuantizationArgs | None = None
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
