"""Where safetensors puts tensors in a file: order, offsets and header, as its own serializer writes them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from weighbridge.formats.tensors import SERIALIZER_ORDER, Structure

METADATA = {"format": "pt"}
ALIGNMENT = 8


@dataclass(frozen=True)
class Layout:
    """One file's layout.

    Attributes:
        head: the file's first bytes: length, header JSON, padding.
        ranges: tensor name -> begin and end, counted from the end of `head`; in the order of the file.
    """

    head: bytes
    ranges: Mapping[str, tuple[int, int]]

    @property
    def file_size(self) -> int:
        """Bytes of the whole file."""
        return len(self.head) + max((end for _, end in self.ranges.values()), default=0)


def lay_out(structure: Structure) -> Layout:
    """Lay out one file that holds these tensors, with the metadata ``{"format": "pt"}``.

    The order is safetensors' own: by dtype (largest alignment first), then by name. Source: ``prepare`` in
    safetensors/src/tensor.rs of 0.8.0; a test compares with ``safetensors.serialize`` over every dtype.
    """
    ranges: dict[str, tuple[int, int]] = {}
    header: dict[str, object] = {"__metadata__": METADATA}
    position = 0
    for name in sorted(structure, key=lambda name: (SERIALIZER_ORDER[structure[name].dtype], name)):
        tensor = structure[name]
        begin, position = position, position + tensor.nbytes
        ranges[name] = (begin, position)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, position]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return Layout(head=struct.pack("<Q", len(text)) + text, ranges=ranges)
