"""JSON documents as their leaves: the path of each value that is no mapping, and the value as text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]


def leaves(document: Mapping[str, Any]) -> dict[Path, str]:
    """Path -> value as JSON, of every value that is no mapping, and of mappings that are empty."""
    return dict(_leaves(document, ()))


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, Mapping) and (value or not path):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    else:
        yield path, json.dumps(value, sort_keys=True)


def kind_of(text: str) -> str:
    """What kind of JSON value a leaf's text is: numbers are one kind, so that 0 and 0.0 are alike."""
    value = json.loads(text)
    return "number" if type(value) in (int, float) else type(value).__name__


def shown(text: str | None) -> str:
    """A leaf as a finding shows it."""
    if text is None:
        return "absent"
    return text if len(text) <= 200 else f"{text[:200]}..."
