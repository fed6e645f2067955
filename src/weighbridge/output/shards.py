"""The container of a build: shard files, index, config.json and the files that are carried over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weighbridge.checkpoint.header import read_header
from weighbridge.checkpoint.layout import Layout, lay_out
from weighbridge.checkpoint.model import Checkpoint, assemble, carried_files, standing_in
from weighbridge.formats.tensors import Tensor, payload_bytes
from weighbridge.machine.cache import write_atomically
from weighbridge.machine.hashing import blocks_of
from weighbridge.machine.standing import Standing, check_stands, opened, standing_of
from weighbridge.planning import Plan

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
    names = plan.source.form.shards(len(contents))
    return tuple(OutputShard(name, lay_out(content)) for name, content in zip(names, contents, strict=True))


def open_shards(directory: Path, config: Mapping[str, Any], *, label: str) -> Checkpoint:
    """What an engine of upstream wrote into a directory: shards alone, which `config` describes.

    Raises:
        StructureError: malformed, or no shard.
    """
    headers = {path.name: read_header(path, where=path.name) for path in sorted(directory.glob("*.safetensors"))}
    return assemble(
        label=label,
        shards=headers,
        index=None,
        config=config,
        files={},
        directory=directory,
    )


def unfinished(shard: OutputShard, directory: Path) -> OutputShard:
    """A shard under the name that it has while it grows, where an earlier run may have come further."""
    growing = replace(shard, name=f"{shard.name}{UNFINISHED}")
    if (directory / shard.name).exists():
        (directory / shard.name).rename(directory / growing.name)
    return growing


def finish(directory: Path, standings: Mapping[str, Standing]) -> dict[str, Standing]:
    """Give shards that are whole their own names.

    Args:
        standings: names of the shards, each as it stood when it was hashed.

    Returns:
        How each stands now.

    Raises:
        StructureError: one changed since it was hashed.
    """
    for name, standing in standings.items():
        growing = directory / f"{name}{UNFINISHED}"
        check_stands(growing, standing, where=str(growing))
        growing.rename(directory / name)
    return {name: standing_of((directory / name).lstat()) for name in standings}


def write_index(directory: Path, names: Iterable[str], index: str) -> dict[str, str]:
    """Write the index of shards under the name `index`, where there are several.

    Returns:
        SHA-256 (hex) of the index, by its name; nothing where one shard needs none.
    """
    names = sorted(names)
    if len(names) <= 1:
        return {}
    headers = {name: read_header(directory / name, where=name) for name in names}
    weight_map = {name: shard for shard, header in headers.items() for name in header.tensors}
    total = sum(stored.tensor.nbytes for header in headers.values() for stored in header.tensors.values())
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return _written(directory, {index: (json.dumps(content, indent=2) + "\n").encode()})


def _written(directory: Path, documents: Mapping[str, bytes]) -> dict[str, str]:
    """Write small files; gives the SHA-256 (hex) of each."""
    for name, content in documents.items():
        write_atomically(directory / name, content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in documents.items()}


def write_config(directory: Path, plan: Plan) -> dict[str, str]:
    """Write the config (the source's own keys in their order, and the quantization config) and what goes with it.

    Returns:
        SHA-256 (hex) of each file that was written.
    """
    content = json.dumps(plan.output_config(), indent=2, ensure_ascii=False) + "\n"
    return _written(directory, {plan.source.form.config: content.encode(), **plan.documents})


def carry_files(source: Checkpoint, directory: Path) -> dict[str, str]:
    """Copy every file that is neither weights nor the config, byte for byte.

    Returns:
        SHA-256 (hex) of each.

    Raises:
        StructureError: one is no longer what it was when the source was listed.
    """
    assert source.directory is not None
    digests = {}
    for name in carried_files(source):
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        where = f"{source.label}/{name}"
        with opened(source.directory / name, standing_in(source, name), where=where) as file, target.open("xb") as copy:
            for block in blocks_of(file):
                digest.update(block)
                copy.write(block)
        digests[name] = digest.hexdigest()
    return digests


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
