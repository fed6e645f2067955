"""The container of a build: shard files, index, config.json and the files that are carried over."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from weighbridge.cache import write_atomically
from weighbridge.errors import BuildError
from weighbridge.plan import Plan
from weighbridge.structure.checkpoint import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, Checkpoint, carried_files
from weighbridge.structure.header import Header, read_header
from weighbridge.structure.layout import Layout, lay_out
from weighbridge.structure.tensors import Tensor, payload_bytes

COPY_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class OutputShard:
    """A shard of a build, laid out before anything is written into it."""

    name: str
    layout: Layout


def lay_out_shards(plan: Plan, shard_size: int) -> tuple[OutputShard, ...]:
    """Put the plan's outputs into shards of at most `shard_size` bytes of payload, in the order of the source.

    What one module needs stays together; a module larger than `shard_size` has a shard of its own.
    """
    contents: list[dict[str, Tensor]] = [{}]
    filled = 0
    for part in plan.parts:
        size = sum(tensor.nbytes for tensor in part.outputs.values())
        if contents[-1] and filled + size > shard_size:
            contents.append({})
            filled = 0
        contents[-1].update(part.outputs)
        filled += size
    count = len(contents)
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    if count == 1:
        names = [SINGLE_FILE]
    return tuple(OutputShard(name, lay_out(content)) for name, content in zip(names, contents, strict=True))


def normalize_shards(directory: Path) -> None:
    """Give what an upstream engine wrote the form of every build here.

    Upstream drops the ``{"format": "pt"}`` that transformers asks for, leaves files with mode 600 and writes an index
    even for one shard (facts of llm-compressor 0.14.0.1). The tensors' bytes stay as they are.
    """
    written = sorted(directory.glob("*.safetensors"))
    for path in written:
        header = read_header(path, where=path.name)
        structure = {name: stored.tensor for name, stored in header.tensors.items()}
        layout = lay_out(structure)
        if layout.ranges != {name: (stored.begin, stored.end) for name, stored in header.tensors.items()}:
            raise BuildError("the engine wrote a shard in another order than safetensors does", where=path.name)
        _replace_head(path, header, layout.head)
    if len(written) == 1:
        written[0].rename(directory / SINGLE_FILE)
    write_index(directory)


def write_index(directory: Path) -> None:
    """Write ``model.safetensors.index.json`` for several shards; remove what stands there for one."""
    path = directory / INDEX_FILE
    path.unlink(missing_ok=True)
    headers = {shard.name: read_header(shard, where=shard.name) for shard in sorted(directory.glob("*.safetensors"))}
    if len(headers) <= 1:
        return
    weight_map = {name: shard for shard, header in headers.items() for name in header.tensors}
    total = sum(stored.tensor.nbytes for header in headers.values() for stored in header.tensors.values())
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def write_config(directory: Path, plan: Plan) -> None:
    """Write config.json: the source's own keys in their order, and the quantization config."""
    content = json.dumps(plan.output_config(), indent=2, ensure_ascii=False) + "\n"
    write_atomically(directory / CONFIG_FILE, content.encode())


def carry_files(source: Checkpoint, directory: Path) -> None:
    """Copy every file that is neither weights nor config.json, byte for byte."""
    assert source.directory is not None
    for name in carried_files(source):
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.directory / name, target)


def bytes_needed(plan: Plan, source: Checkpoint, *, rewritten: bool) -> int:
    """Bytes of disk that a build takes: the predicted tensors, headers and index, and the files carried over.

    Args:
        rewritten: whether shards are written twice (`normalize_shards`), so that the largest stands there twice.
    """
    structure = plan.predicted.structure
    names = sum(len(name) for name in structure)
    carried = sum(source.files[name].size or 0 for name in carried_files(source))
    sizes = [sum(stored.tensor.nbytes for stored in header.tensors.values()) for header in source.shards.values()]
    twice = max(sizes, default=0) if rewritten else 0
    return payload_bytes(structure) + 2 * (names + 120 * len(structure)) + carried + twice


def _replace_head(path: Path, header: Header, head: bytes) -> None:
    temporary = path.with_suffix(".safetensors.part")
    try:
        with path.open("rb") as old, temporary.open("wb") as new:
            old.seek(header.data_offset)
            new.write(head)
            shutil.copyfileobj(old, new, COPY_BYTES)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
