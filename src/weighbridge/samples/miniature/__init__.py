"""A small Gemma 4 mixture of experts, made on the spot, that stands in for google/gemma-4-26B-A4B-it.

It has every tensor pattern of the real model under the real names, and the same bytes on every platform: its weights
are hashes of their own names and positions, its documents are files of this package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from weighbridge.checkpoint.layout import lay_out
from weighbridge.formats.tensors import Tensor
from weighbridge.samples.miniature import layout, tokens

NAME = "weighbridge/gemma-4-mini"


def version() -> str:
    """Twelve hex digits that change whenever what `make` writes may change: a digest of this package's files."""
    digest = hashlib.sha256()
    for item in _sources(resources.files(__package__)):
        digest.update(item.name.encode() + b"\0" + item.read_bytes())
    return digest.hexdigest()[:12]


def make(directory: Path) -> None:
    """Write the checkpoint into `directory`, which is there already and empty.

    The files: two BF16 safetensors shards of about 20 MB together with their index, config.json,
    generation_config.json, processor_config.json, tokenizer.json, tokenizer_config.json, chat_template.jinja and
    README.md.
    """
    from weighbridge.samples.miniature import (
        weights,  # numpy takes a while to import, and most commands never come here
    )

    documents = {item.name: item.read_bytes() for item in resources.files(__package__).joinpath("files").iterdir()}
    shapes = layout.shapes(json.loads(documents["config.json"]))
    documents["tokenizer.json"] = _document(tokens.tokenizer())
    documents["model.safetensors.index.json"] = _document(layout.index(shapes))
    for name, content in documents.items():
        (directory / name).write_bytes(content)
    for shard in layout.SHARDS:
        members = {name: Tensor("BF16", shape) for name, shape in shapes.items() if layout.shard_of(name) == shard}
        laid_out = lay_out(members)
        with (directory / shard).open("wb") as file:
            file.write(laid_out.head)
            for name in laid_out.ranges:
                file.write(weights.bf16(name, members[name].shape).astype("<u2", copy=False).data)


def _document(content: object) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _sources(package: Traversable) -> Iterator[Traversable]:
    for item in sorted(package.iterdir(), key=lambda item: item.name):
        if item.is_dir():
            yield from _sources(item)
        elif not item.name.endswith(".pyc"):
            yield item
