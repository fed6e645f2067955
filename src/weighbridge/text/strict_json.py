"""JSON as a hostile stranger may write it: bounded, without duplicate keys, and without NaN but in configurations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from weighbridge.errors import StructureError

#: config.json and an index are kilobytes; the largest published index (DeepSeek's) is 9 MB.
MAX_JSON_BYTES = 64 * 1024 * 1024
#: A header has about ten of these marks a tensor, an index one. A megabyte of brackets costs as much as fifty of names.
MAX_MARKS = 1_000_000
MAX_DEPTH = 64

_CORRECT = "correct the file, or fetch it again"
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_MARKS = bytes({*range(256)} - {*b'[]{}"'})
_CONSTANTS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""What Python's json reads and writes beside JSON; one NaN for all, so that two readings of it are equal."""


def parse_object(raw: bytes, *, where: str) -> dict[str, Any]:
    """Parse a JSON object from UTF-8 bytes.

    Raises:
        StructureError: too large, not UTF-8, not JSON, too deep, a key twice, NaN or Infinity, or not an object.
    """

    def refuse(name: str) -> float:
        raise StructureError(f"{name} is not a JSON number", where=where)

    return _parsed(raw, refuse, where=where)


def parse_config(raw: bytes, *, where: str) -> dict[str, Any]:
    """Parse a configuration that Python wrote: as `parse_object`, with the bare ``Infinity`` and ``NaN`` of its json.

    NVIDIA's Nemotron models are published with ``"time_step_limit": [0.0, Infinity]``; transformers and vLLM read it.

    Raises:
        StructureError: as `parse_object`, but for NaN and Infinity.
    """
    return _parsed(raw, _CONSTANTS.__getitem__, where=where)


def _parsed(raw: bytes, constant: Callable[[str], float], *, where: str) -> dict[str, Any]:
    if len(raw) > MAX_JSON_BYTES:
        raise StructureError(f"is {len(raw):,} bytes of JSON, more than the {MAX_JSON_BYTES:,} allowed", where=where)
    if sum(raw.count(mark) for mark in (b",", b"[", b"{")) > MAX_MARKS:
        raise StructureError("is JSON of more values than any checkpoint needs", where=where)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise StructureError(f"the key {twice[:80]!r} stands twice in one JSON object", where=where)
        return mapping

    def finite(number: str) -> float:
        value = float(number)
        if math.isinf(value):
            raise StructureError(f"{number[:40]} is too large for a number", where=where)
        return value

    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=constant, parse_float=finite)
        if "\\u" in text:  # an escape may stand for half a character, which cannot be written again
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise StructureError("the JSON is nested too deeply", where=where) from None
    except UnicodeDecodeError as error:
        raise StructureError(f"is not UTF-8 (byte {error.start})", where=where) from None
    except UnicodeEncodeError:
        raise StructureError("holds half of a character (a lone surrogate)", where=where) from None
    except ValueError as error:
        raise StructureError(f"is not JSON ({error})", where=where, remedy=_CORRECT) from None
    if not isinstance(value, dict):
        raise StructureError("is not a JSON object", where=where)
    if not _is_shallow(raw):
        _check_depth(value, where=where)
    return value


def _is_shallow(raw: bytes) -> bool:
    """Whether JSON, as its brackets alone show, is nested no deeper than is allowed; as is every honest header.

    Brackets in text show nothing: without escapes, quotes that stand side by side once all but quotes and brackets is
    gone hold no bracket between them, and where other quotes are left, it is not known.
    """
    marks = raw.translate(_ONE_KIND, _NO_MARKS).replace(b'""', b"")
    if b'"' in marks or b"\\" in raw:
        return False
    for _ in range(MAX_DEPTH):
        if not marks:
            return True
        marks = marks.replace(b"[]", b"")
    return not marks


def _check_depth(value: Any, *, where: str) -> None:
    """What is nested more deeply cannot be written into a lock or a config again: writers recurse."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for holder in level
            for item in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise StructureError("the JSON is nested too deeply", where=where)
