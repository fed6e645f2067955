"""A strict reader of safetensors headers.

The format (https://huggingface.co/docs/safetensors): eight bytes little-endian length N, N bytes of JSON, then the
tensors' bytes. The reference reader accepts duplicate keys and checks less than a stranger's file deserves; this one
refuses whatever does not describe the whole file exactly once.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weighbridge.errors import StructureError
from weighbridge.formats.tensors import DTYPE_BITS, StoredTensor, Tensor
from weighbridge.machine.standing import Standing, check_same, explained, standing_of
from weighbridge.text.strict_json import parse_object

LENGTH_BYTES = 8
#: The reference implementation's own limit (``MAX_HEADER_SIZE`` in safetensors/src/tensor.rs) is
#: 100 MB; a header of 50,000 tensors has about 7 MB.
MAX_HEADER_BYTES = 64 * 1024 * 1024
GIT_LFS_POINTER = b"version "
MAX_NAME_LENGTH = 1024
MAX_AXES = 16
MAX_AXIS = 2**48
_NAMES = re.compile(r"[!-z|~]+(?:\n[!-z|~]+)*")
"""Names in lines: of what can be printed in ASCII, all but spaces and braces."""
_KEYS = frozenset({"dtype", "shape", "data_offsets"})


@dataclass(frozen=True)
class Header:
    """One safetensors file's header.

    Attributes:
        tensors: tensor name -> dtype, shape and byte range, in the order of their bytes.
        metadata: the ``__metadata__`` strings.
        data_offset: where the tensors' bytes begin, counted from the start of the file.
        standing: the file that it was read from, as it was then; None for one on the hub, which a commit names.
    """

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    data_offset: int
    standing: Standing | None = field(default=None, compare=False)


def read_header(path: Path, *, where: str) -> Header:
    """Read and check the header of a file on disk.

    Raises:
        StructureError: unreadable, or not one well-formed safetensors file from its first byte to its last.
    """
    with explained(where), path.open("rb") as file:
        standing = standing_of(os.fstat(file.fileno()))
        length = header_length(file.read(LENGTH_BYTES), file_size=standing.size, where=where)
        raw = file.read(length)
        check_same(file.fileno(), standing, where=where)
    return replace(parse_header(raw, file_size=standing.size, where=where), standing=standing)


def header_length(first_bytes: bytes, *, file_size: int, where: str) -> int:
    """Length in bytes of the JSON header, from the first eight bytes of a file of `file_size` bytes.

    Raises:
        StructureError: the file is too short for the header it announces, or announces an absurd one.
    """
    if len(first_bytes) < LENGTH_BYTES:
        raise StructureError(
            f"is {file_size} bytes long, too short for a safetensors file", where=where, remedy="fetch the file again"
        )
    length: int = struct.unpack("<Q", first_bytes[:LENGTH_BYTES])[0]
    if first_bytes == GIT_LFS_POINTER:
        raise StructureError(
            "is a Git LFS pointer, not the file itself", where=where, remedy="run 'git lfs pull' there"
        )
    if length > MAX_HEADER_BYTES:
        raise StructureError(
            f"announces a header of {length:,} bytes, more than the {MAX_HEADER_BYTES:,} allowed; "
            "it is no safetensors file or a damaged one",
            where=where,
        )
    if LENGTH_BYTES + length > file_size:
        raise StructureError(
            f"is cut off within its header: {file_size:,} bytes of at least {LENGTH_BYTES + length:,}",
            where=where,
            remedy="fetch the file again",
        )
    return length


def parse_header(raw: bytes, *, file_size: int, where: str) -> Header:
    """Check a header's JSON (the `length` bytes after the first eight) against the size of the file it heads.

    Raises:
        StructureError: with the name of the first tensor that is wrong.
    """
    if not raw.startswith(b"{"):
        raise StructureError("its header is not a JSON object", where=where)
    data_offset = LENGTH_BYTES + len(raw)
    entries = parse_object(raw, where=where)
    if not raw.rstrip(b" ").endswith(b"}"):
        raise StructureError("its header ends with white space other than spaces", where=where)
    metadata = _metadata(entries.pop("__metadata__", {}), where=where)
    check_names(entries, where=where)
    known: dict[str, Tensor] = {}
    stored = [(name, _stored_tensor(name, entry, known, where=where)) for name, entry in entries.items()]
    stored.sort(key=lambda item: (item[1].begin, item[1].end))

    position = 0
    for name, tensor in stored:
        if tensor.begin != position:
            kind = "overlaps the tensor before it" if tensor.begin < position else "leaves a hole before it"
            raise StructureError(f"tensor {name!r} begins at byte {tensor.begin:,} and {kind}", where=where)
        position = tensor.end
    payload = file_size - data_offset
    if position != payload:
        kind = "is cut off" if position > payload else "has bytes that belong to no tensor"
        raise StructureError(
            f"{kind}: the header describes {position:,} bytes of tensors, the file holds {payload:,}",
            where=where,
            remedy="fetch the file again",
        )
    return Header(tensors=dict(stored), metadata=metadata, data_offset=data_offset)


def check_names(names: Collection[str], *, where: str) -> None:
    """As `check_name` of each, but all at once where all of them are well.

    Raises:
        StructureError: as `check_name`.
    """
    lines = "\n".join(names)
    well = lines.count("\n") == len(names) - 1 and max(map(len, names)) <= MAX_NAME_LENGTH
    if not well or _NAMES.fullmatch(lines) is None:
        for name in names:
            check_name(name, where=where)


def check_name(name: object, *, where: str) -> str:
    """A tensor name that is safe to print, to compare and to write into a structure lock.

    Raises:
        StructureError: empty, too long, or with characters that are not printable or not ASCII.
    """
    if not isinstance(name, str) or not name or len(name) > MAX_NAME_LENGTH:
        raise StructureError(f"a tensor name is empty, too long or no string: {str(name)[:80]!r}", where=where)
    if not (name.isascii() and name.isprintable()) or any(character in name for character in " {}"):
        raise StructureError(f"the tensor name {name[:80]!r} has characters that no tensor name has", where=where)
    return name


def check_shape(shape: object, *, name: str, where: str) -> tuple[int, ...]:
    """A shape of whole, non-negative, bounded numbers.

    Raises:
        StructureError: with the tensor's name.
    """
    if not isinstance(shape, list) or len(shape) > MAX_AXES:
        raise StructureError(f"tensor {name!r} has no proper shape", where=where)
    for axis in shape:
        if type(axis) is not int or not 0 <= axis <= MAX_AXIS:
            raise StructureError(f"tensor {name!r} has an impossible axis {str(axis)[:40]!r} in its shape", where=where)
    return tuple(shape)


def check_dtype(dtype: object, *, name: str, where: str) -> str:
    """A dtype that safetensors defines.

    Raises:
        StructureError: with the tensor's name.
    """
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise StructureError(f"tensor {name!r} has the unknown dtype {str(dtype)[:40]!r}", where=where)
    return dtype


def _metadata(value: Any, *, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise StructureError("__metadata__ is not a mapping of strings", where=where)
    return value


def _stored_tensor(name: str, entry: Any, known: dict[str, Tensor], *, where: str) -> StoredTensor:
    """One entry of a header, its name checked before.

    Args:
        known: what earlier entries were, by how it is written: experts are many and alike.
    """
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        raise StructureError(f"tensor {name!r} is not described by exactly dtype, shape and data_offsets", where=where)
    written = f"{entry['dtype']!r} {entry['shape']!r}"
    tensor = known.get(written)
    if tensor is None:
        tensor = known[written] = Tensor(
            dtype=check_dtype(entry["dtype"], name=name, where=where),
            shape=check_shape(entry["shape"], name=name, where=where),
        )
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(at) is int and at >= 0 for at in offsets):
        raise StructureError(f"tensor {name!r} has no proper data_offsets", where=where)
    begin, end = offsets
    bits = tensor.parameters * DTYPE_BITS[tensor.dtype]
    if bits % 8 or end - begin != bits // 8:
        raise StructureError(
            f"tensor {name!r} is {tensor}, {bits / 8:,.10g} bytes, but its byte range holds {end - begin:,}",
            where=where,
        )
    return StoredTensor(tensor, begin, end)
