"""What stands beside the tensors in shards and index: records, which some readers obey all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from weighbridge.account.leaves import kind_of, leaves
from weighbridge.account.model import Kind, State, Verdict
from weighbridge.text.strict_json import parse_object

WRITTEN = "what every writer of safetensors puts there"
RECORD = "a record of the size; servers read the headers"
_SIZES = (("metadata", "total_size"), ("metadata", "total_parameters"))
UNKNOWN = "no writer that is known here puts it there"


def judge_metadata(shard: str, metadata: Mapping[str, str]) -> Iterator[Verdict]:
    """The strings in a shard's header. transformers reads ``format``; what else there is belongs to nobody."""
    for key, value in metadata.items():
        known = (key, value) == ("format", "pt")
        state, by = (State.FOLLOWS, WRITTEN) if known else (State.NOT_JUDGED, UNKNOWN)
        yield Verdict(Kind.KEY, f"{shard}:__metadata__.{key}", state, by)


def judge_index(name: str, raw: bytes) -> Iterator[Verdict]:
    """The keys of the index of this name beside its weight_map, which is held against the headers.

    transformers 5.17 takes a ``dtype`` from there (``_get_dtype``), so that no key passes that is not a record.

    Raises:
        StructureError: it is not JSON.
    """
    document = parse_object(raw, where=name)
    metadata = {key: value for key, value in document.items() if key != "weight_map"}
    found = leaves(metadata)
    if _SIZES[0] not in found:
        yield Verdict(Kind.KEY, f"{name}:{'.'.join(_SIZES[0])}", State.HARMLESS, f"absent: {RECORD}")
    for path, text in found.items():
        record = (path in _SIZES and kind_of(text) == "number") or (path, text) == (("metadata",), "{}")
        state, by = (State.HARMLESS, RECORD) if record else (State.NOT_JUDGED, UNKNOWN)
        yield Verdict(Kind.KEY, f"{name}:{'.'.join(path)}", state, by)


def is_plainly_written(raw: bytes) -> bool:
    """Whether JSON is written with the white space of a common writer: what is read of it is all that there is."""
    document, second = json.loads(raw), raw.partition(b"\n")[2]
    indent = len(second) - len(second.lstrip(b" ")) if second.strip() else None
    ascii_alone = raw.isascii()
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_alone).encode()
    return raw in (text, text + b"\n")
