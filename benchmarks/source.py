"""A source of real layer dimensions and chosen size: Gemma 4 26B-A4B's layers, random weights, one shard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.reference_locks import reference_lock
from weighbridge.checkpoint.layout import lay_out
from weighbridge.formats.tensors import Structure, Tensor
from weighbridge.samples import miniature

REAL = "google/gemma-4-26B-A4B-it"
TILE_ELEMENTS = 8 * 1024 * 1024
SEED = 20261121


EVERY_KIND = (0, 5, *(number for number in range(30) if number not in (0, 5)))
"""Layers of the real model in the order in which a source takes them: of 5, 11, 17, … values are the keys."""

LOCAL = tuple(number for number in range(30) if number % 6 != 5)
"""Those that have values of their own: upstream cannot build NVFP4 where one has none."""


def layers_of(size: int, layers: Sequence[int]) -> Structure:
    """As many whole layers of the real structure as it takes to make `size` bytes."""
    structure = reference_lock(REAL).structure
    chosen: dict[str, object] = {}
    total = 0
    for layer in layers:
        if total >= size:
            break
        prefix = f"model.language_model.layers.{layer}."
        members = {name: tensor for name, tensor in structure.items() if name.startswith(prefix)}
        chosen.update(members)
        total += sum(tensor.nbytes for tensor in members.values())
    return {name: structure[name] for name in chosen}


def make(directory: Path, size: int, layers: Sequence[int] = EVERY_KIND) -> None:
    """Write a checkpoint of at least `size` bytes in a single shard into an empty directory.

    The weights repeat a tile of normal values with one outlier in a thousand, shifted from tensor to tensor; what is
    measured does not depend on them.
    """
    miniature.make(directory)  # its config, tokenizer and the rest; its weights give way
    _take_weights_away(directory)
    _write(directory, layers_of(size, layers))


def make_model(directory: Path, layers: int) -> None:
    """Write a model that runs into an empty directory: the real model with some layers, the miniature's tokenizer.

    The last layer sees all that came before, as transformers wants it of Gemma 4; of its vision tower there is one
    layer. The weights are those of `make`.
    """
    miniature.make(directory)
    _take_weights_away(directory)
    lock = reference_lock(REAL)
    config = json.loads(json.dumps(lock.config))
    text, vision = config["text_config"], config["vision_config"]
    kinds = [*text["layer_types"][: layers - 1], "full_attention"]
    text |= {"num_hidden_layers": layers, "layer_types": kinds}
    vision["num_hidden_layers"] = 1
    own = json.loads((directory / "config.json").read_text())["text_config"]
    text |= {key: own[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    structure = {name: tensor for name, tensor in lock.structure.items() if "layers." not in name}
    for number, kind in enumerate(kinds):
        like = f"model.language_model.layers.{5 if kind == 'full_attention' else 0}."
        structure |= _like(lock.structure, like, f"model.language_model.layers.{number}.")
    tower = "model.vision_tower.encoder.layers.0."
    _write(directory, structure | _like(lock.structure, tower, tower))


def _like(structure: Structure, prefix: str, name: str) -> dict[str, Tensor]:
    """The tensors of a layer under the name of another."""
    return {
        f"{name}{whole.removeprefix(prefix)}": tensor for whole, tensor in structure.items() if whole.startswith(prefix)
    }


def _take_weights_away(directory: Path) -> None:
    for path in [*directory.glob("*.safetensors"), directory / "model.safetensors.index.json"]:
        path.unlink()


def _write(directory: Path, structure: Structure) -> None:
    random = np.random.default_rng(SEED)
    values = random.standard_normal(TILE_ELEMENTS, dtype=np.float32) * 0.02
    values[random.integers(0, TILE_ELEMENTS, TILE_ELEMENTS // 1000)] *= 16
    tile = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    layout = lay_out(structure)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(layout.head)
        for number, (begin, end) in enumerate(layout.ranges.values()):
            shift, left = 2 * (number * 7919 % TILE_ELEMENTS), end - begin
            while left:
                block = tile[shift : shift + left]
                file.write(block)
                left -= len(block)
                shift = 0
