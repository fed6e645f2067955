"""The source of a build: a directory, a checkpoint on the hub, or the miniature, made on the spot."""

from __future__ import annotations

import tempfile
from pathlib import Path

from weighbridge import miniature
from weighbridge.cache import cache_directory
from weighbridge.errors import BuildError, StructureError
from weighbridge.structure.checkpoint import Checkpoint, open_directory
from weighbridge.structure.hub import download
from weighbridge.structure.opening import open_checkpoint
from weighbridge.structure.tensors import FLOATING_SOURCES

MINIATURE = "mini"


def open_model(model: str) -> Checkpoint:
    """Open what ``--model`` names, by its headers, quantized or not.

    Raises:
        StructureError, HubError: as `open_checkpoint`.
        BuildError: it names nothing.
    """
    if not model:
        raise BuildError("names no model", where="--model", remedy=f"name a directory, a hub id, or {MINIATURE}")
    return open_directory(make_miniature(), label=MINIATURE) if model == MINIATURE else open_checkpoint(model)


def open_source(model: str) -> Checkpoint:
    """Open what ``--model`` names as a model that can be quantized.

    Raises:
        StructureError, HubError: as `open_checkpoint`.
        BuildError: it names nothing, or what is quantized already.
    """
    source = open_model(model)
    if source.declaration is not None:
        raise BuildError(
            f"is already quantized ({source.declaration.quant_method})",
            where=source.label,
            remedy="name the base model it was made from",
        )
    for name, tensor in source.structure.items():
        if tensor.dtype not in FLOATING_SOURCES and len(tensor.shape) >= 2:
            raise BuildError(
                f"tensor {name} is {tensor}: the weights are already quantized, or of a kind no scheme can start from",
                where=source.label,
                remedy="name the base model in BF16, F16 or F32",
            )
    return source


def fetch(source: Checkpoint) -> Checkpoint:
    """The same source with its weights on disk: downloaded, if it lies on the hub.

    Raises:
        HubError: the download failed.
        BuildError: only a lock of it is at hand.
    """
    if source.directory is not None:
        return source
    if not source.shards:
        raise BuildError(
            "is a structure lock: it can be planned for, not built from",
            where=source.label,
            remedy="name a directory or a hub id with --model",
        )
    local = open_directory(download(source), label=source.label)
    if local.structure != source.structure:
        raise StructureError("what was downloaded has other tensors than the hub's headers said", where=source.label)
    return local


def make_miniature() -> Path:
    """The directory of the miniature; made in the user's cache the first time."""
    directory = cache_directory() / f"{Path(miniature.NAME).name}-{miniature.version()}"
    if not directory.is_dir():
        try:
            with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
                staging = Path(scratch) / directory.name
                staging.mkdir()
                miniature.make(staging)
                staging.rename(directory)
        except OSError as error:
            if not directory.is_dir():  # otherwise another process has made it meanwhile
                raise BuildError(f"the miniature cannot be made ({error.strerror})", where=str(directory)) from error
    return directory
