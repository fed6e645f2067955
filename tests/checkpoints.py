"""Checkpoints as tests read, damage and rewrite them: by bytes, with none of the code that is under test."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class RawTensor:
    """A tensor as it lies in a shard.

    Attributes:
        dtype: safetensors' name, e.g. ``BF16``.
        shape: elements along each axis.
        data: little-endian, row-major.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def transposed(self, element_bytes: int) -> RawTensor:
        """The transpose of a matrix whose elements take `element_bytes` each."""
        rows, columns = self.shape
        data = bytearray(len(self.data))
        pitch = columns * element_bytes
        for column in range(columns):
            for byte in range(element_bytes):
                start = column * rows * element_bytes + byte
                data[start : start + rows * element_bytes : element_bytes] = self.data[
                    column * element_bytes + byte :: pitch
                ]
        return RawTensor(self.dtype, (columns, rows), bytes(data))


Tensors = dict[str, RawTensor]


def copy_checkpoint(source: Path, target: Path) -> Path:
    """Copy a checkpoint, and by no hard links: these would touch files that another worker is reading right now."""
    return shutil.copytree(source, target)


def rewrite(path: Path, content: bytes) -> None:
    """Write a file anew, so that what it may be a hard link to stays as it is."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON object in place."""
    content = json.loads(path.read_bytes())
    change(content)
    rewrite(path, json.dumps(content, indent=2).encode())


def edit_config(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json."""
    edit_json(directory / CONFIG, change)


def shards_of(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, by name."""
    return sorted(directory.glob("*.safetensors"))


def read_header(shard: Path) -> tuple[dict[str, Any], bytes]:
    """A shard's header entries (without ``__metadata__``) and the bytes after the header."""
    content = shard.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    entries = json.loads(content[8 : 8 + length])
    entries.pop("__metadata__", None)
    return entries, content[8 + length :]


def write_header(shard: Path, header: bytes, data: bytes) -> None:
    """Write a shard whose header is `header`, whatever that is."""
    rewrite(shard, struct.pack("<Q", len(header)) + header + data)


def read_shard(shard: Path) -> Tensors:
    """Every tensor of one safetensors file, in the order of its header."""
    entries, data = read_header(shard)
    return {
        name: RawTensor(entry["dtype"], tuple(entry["shape"]), data[slice(*entry["data_offsets"])])
        for name, entry in entries.items()
    }


def read_tensors(directory: Path) -> Tensors:
    """Every tensor of every safetensors file of a directory."""
    return {name: tensor for shard in shards_of(directory) for name, tensor in read_shard(shard).items()}


def write_shard(shard: Path, tensors: Mapping[str, RawTensor]) -> None:
    """Write one safetensors file with the tensors in the order given."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in tensors.items():
        begin, position = position, position + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, position]}
    write_header(shard, json.dumps(header).encode(), b"".join(tensor.data for tensor in tensors.values()))


def write_tensors(directory: Path, tensors: Tensors, *, shards: int = 1) -> None:
    """Replace all weights of a directory: one file, or several and their index."""
    for path in [*shards_of(directory), directory / INDEX]:
        path.unlink(missing_ok=True)
    if shards == 1:
        write_shard(directory / SINGLE, tensors)
        return
    names = list(tensors)
    members = {f"model-{n + 1:05}-of-{shards:05}.safetensors": names[n::shards] for n in range(shards)}
    for shard, held in members.items():
        write_shard(directory / shard, {name: tensors[name] for name in held})
    weight_map = {name: shard for shard, held in members.items() for name in held}
    total = sum(len(tensor.data) for tensor in tensors.values())
    rewrite(directory / INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}).encode())


def edit_tensors(directory: Path, change: Callable[[Tensors], object], *, shards: int = 1) -> None:
    """Change the tensors of a checkpoint and write them anew with a proper index."""
    tensors = read_tensors(directory)
    change(tensors)
    write_tensors(directory, tensors, shards=shards)


def rename_tensors(tensors: Tensors, names: Mapping[str, str]) -> None:
    """Give tensors new names, old -> new, all at once."""
    moved = {new: tensors.pop(old) for old, new in names.items()}
    tensors.update(moved)


def as_bf16(tensor: RawTensor) -> RawTensor:
    """A tensor of one-byte elements as if it were BF16 (the values do not matter to what reads headers)."""
    return replace(tensor, dtype="BF16", data=tensor.data * 2)


def contents(directory: Path) -> dict[str, bytes]:
    """Relative name -> bytes of every file below a directory."""
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files_below(directory)}


def without_evidence(directory: Path) -> dict[str, bytes]:
    """Relative name -> bytes of a checkpoint's own files: what is said of it says when it was built, too."""
    return {name: content for name, content in contents(directory).items() if not name.startswith("evidence/")}


def files_below(directory: Path) -> Iterable[Path]:
    """Every file below a directory, sorted."""
    return sorted(path for path in directory.rglob("*") if path.is_file())
