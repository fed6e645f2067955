"""Tensors that lie in safetensors files beside the shards, and that no index names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

from weighbridge.checkpoint.form import MISTRAL
from weighbridge.checkpoint.header import read_header
from weighbridge.checkpoint.hub import read_other_header
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.weights import other_weights
from weighbridge.errors import StructureError
from weighbridge.formats.quantization import text_config
from weighbridge.text.names import split_name

MTP_COUNTS = (
    "mtp_num_hidden_layers",
    "num_nextn_predict_layers",
    "num_mtp_modules",
    "num_mtp_layers",
    "mtp_num_layers",
)
"""Keys of config.json that say how many layers predict further tokens."""
_MTP_NAMES = ("mtp", "nextn", "shared_head", "eh_proj", "enorm", "hnorm")


def forgotten(checkpoint: Checkpoint) -> Iterator[tuple[str, list[str]]]:
    """Safetensors files that are no shards, each with the tensors of the model in it that no shard has.

    A tensor is the model's if others of the shards are called so but for numbers (another layer, another expert), or
    if it is one of the layers for speculative decoding that config.json speaks of. Mistral's own form
    (``consolidated*.safetensors``) calls everything otherwise, and a file that is no safetensors file holds nothing.

    Raises:
        HubError: the hub did not give a header.
    """
    templates = {split_name(name)[0] for name in checkpoint.structure}
    speculative = _speaks_of_mtp(checkpoint.config)
    for file in other_weights(checkpoint.files, checkpoint.shards, checkpoint.form.index):
        if file.endswith(".safetensors") and "/" not in file and _is_of_form(file, checkpoint):
            names = _tensors(checkpoint, file) - checkpoint.structure.keys()
            own = sorted(name for name in names if split_name(name)[0] in templates or (speculative and _is_mtp(name)))
            if own:
                yield file, own


def _is_of_form(file: str, checkpoint: Checkpoint) -> bool:
    return checkpoint.form is MISTRAL or not file.startswith(MISTRAL.stem)


def _tensors(checkpoint: Checkpoint, file: str) -> Set[str]:
    try:
        if checkpoint.directory is not None:
            return read_header(checkpoint.directory / file, where=file).tensors.keys()
        return read_other_header(checkpoint, file).tensors.keys()
    except StructureError:
        return frozenset()


def _speaks_of_mtp(config: Mapping[str, Any]) -> bool:
    holders = (config, text_config(config))
    return any(type(holder.get(key)) is int and holder[key] > 0 for holder in holders for key in MTP_COUNTS)


def _is_mtp(name: str) -> bool:
    return any(part.startswith(_MTP_NAMES) for part in name.split("."))
