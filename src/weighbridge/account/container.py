"""What stands beside the tensors in shards and index: records, which some readers obey all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from weighbridge.account.leaves import kind_of, leaves
from weighbridge.account.model import Kind, State, Verdict
from weighbridge.structure.strict_json import parse_object
from weighbridge.structure.weights import INDEX_FILE

WRITTEN = "what every writer of safetensors puts there"
RECORD = "a record of the size; servers read the headers"
UNKNOWN = "no writer that is known here puts it there"


def judge_metadata(shard: str, metadata: Mapping[str, str]) -> Iterator[Verdict]:
    """The strings in a shard's header. transformers reads ``format``; what else there is belongs to nobody."""
    for key, value in metadata.items():
        known = (key, value) == ("format", "pt")
        state, by = (State.FOLLOWS, WRITTEN) if known else (State.NOT_JUDGED, UNKNOWN)
        yield Verdict(Kind.KEY, f"{shard}:__metadata__.{key}", state, by)


def judge_index(raw: bytes) -> Iterator[Verdict]:
    """The keys of the index beside its weight_map, which is held against the headers.

    transformers 5.17 takes a ``dtype`` from there (``_get_dtype``), so that no key passes that is not a record.

    Raises:
        StructureError: it is not JSON.
    """
    document = parse_object(raw, where=INDEX_FILE)
    metadata = {key: value for key, value in document.items() if key != "weight_map"}
    if not leaves(metadata):
        yield Verdict(Kind.KEY, f"{INDEX_FILE}:metadata", State.HARMLESS, f"absent: {RECORD}")
    for path, text in leaves(metadata).items():
        record = path in (("metadata", "total_size"), ("metadata", "total_parameters")) and kind_of(text) == "number"
        state, by = (State.HARMLESS, RECORD) if record else (State.NOT_JUDGED, UNKNOWN)
        yield Verdict(Kind.KEY, f"{INDEX_FILE}:{'.'.join(path)}", state, by)


def is_plainly_written(raw: bytes) -> bool:
    """Whether JSON is written with the white space of a common writer: what is read of it is all that there is."""
    document = json.loads(raw)
    for indent in (2, 4, None):
        for ascii_alone in (False, True):
            text = json.dumps(document, indent=indent, ensure_ascii=ascii_alone).encode()
            if raw in (text, text + b"\n"):
                return True
    return False
