"""The container of a build: shard files, index, config.json and the files that are carried over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weighbridge.cache import write_atomically
from weighbridge.formats.tensors import Tensor, payload_bytes
from weighbridge.plan import Plan
from weighbridge.structure.checkpoint import CONFIG_FILE, Checkpoint, assemble, carried_files
from weighbridge.structure.header import read_header
from weighbridge.structure.layout import Layout, lay_out
from weighbridge.structure.weights import INDEX_FILE, SINGLE_FILE

EVIDENCE_BYTES = 1024 * 1024
"""Room for the evidence of a build, beside a line for each tensor: packages, reports, the model card."""

UNFINISHED = ".part"
"""Ends the name of a shard that is not whole: what a killed build leaves is no checkpoint to anybody."""


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
    placed: set[str] = set()
    for part in plan.parts:
        outputs = {name: tensor for name, tensor in part.outputs.items() if name not in placed}
        size = sum(tensor.nbytes for tensor in outputs.values())
        if contents[-1] and filled + size > shard_size:
            contents.append({})
            filled = 0
        contents[-1].update(outputs)
        placed.update(outputs)
        filled += size
    count = len(contents)
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    if count == 1:
        names = [SINGLE_FILE]
    return tuple(OutputShard(name, lay_out(content)) for name, content in zip(names, contents, strict=True))


def open_shards(directory: Path, quantization: Mapping[str, Any], *, label: str) -> Checkpoint:
    """What an engine of upstream wrote into a directory: shards alone, which `quantization` describes.

    Raises:
        StructureError: malformed, or no shard.
    """
    headers = {path.name: read_header(path, where=path.name) for path in sorted(directory.glob("*.safetensors"))}
    return assemble(
        label=label,
        shards=headers,
        index=None,
        config={"quantization_config": quantization},
        files={},
        directory=directory,
    )


def unfinished(shard: OutputShard, directory: Path) -> OutputShard:
    """A shard under the name that it has while it grows, where an earlier run may have come further."""
    growing = replace(shard, name=f"{shard.name}{UNFINISHED}")
    if (directory / shard.name).exists():
        (directory / shard.name).rename(directory / growing.name)
    return growing


def finish(directory: Path) -> None:
    """Give shards that are whole their own names, and write the index. All else of the checkpoint is there already."""
    for path in sorted(directory.glob(f"*{UNFINISHED}")):
        path.rename(path.with_name(path.name.removesuffix(UNFINISHED)))
    _write_index(directory)


def _write_index(directory: Path) -> None:
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
    """Write config.json (the source's own keys in their order, and the quantization config) and what goes with it."""
    content = json.dumps(plan.output_config(), indent=2, ensure_ascii=False) + "\n"
    write_atomically(directory / CONFIG_FILE, content.encode())
    for name, document in plan.documents.items():
        write_atomically(directory / name, document)


def carry_files(source: Checkpoint, directory: Path) -> None:
    """Copy every file that is neither weights nor config.json, byte for byte."""
    assert source.directory is not None
    for name in carried_files(source):
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.directory / name, target)


def bytes_needed(plan: Plan, source: Checkpoint, *, twice: bool) -> int:
    """Bytes of disk that a build takes: the predicted tensors, headers and index, and the files carried over.

    Args:
        twice: whether an engine of upstream writes the tensors first, which are then laid out anew.
    """
    structure = plan.predicted.structure
    names = sum(len(name) for name in structure)
    carried = sum(source.files[name].size or 0 for name in carried_files(source))
    evidence = EVIDENCE_BYTES + 2 * names
    return (2 if twice else 1) * payload_bytes(structure) + 2 * (names + 120 * len(structure)) + carried + evidence
