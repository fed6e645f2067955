"""The miniature's own locks, made by paths that are not the project's: its digests, and what oneshot makes of it.

``python -m tests.miniature_locks`` (``make miniature-locks``) writes them into references/; tests make them anew and
compare.
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from weighbridge import miniature
from weighbridge.catalogue import lock_path
from weighbridge.structure.checkpoint import FileFact, Origin, open_directory
from weighbridge.structure.lock import write_lock

W4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
ONESHOT: dict[str, dict[str, Any]] = {
    "FP8-dynamic": {"scheme": "FP8_DYNAMIC"},
    "FP8-block": {"scheme": "FP8_BLOCK"},
    "W4A16": {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {**W4, "group_size": 32}}}},
    "W4A16-G64": {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {**W4, "group_size": 64}}}},
    "NVFP4A16": {"scheme": "NVFP4A16"},
    "MXFP4": {"scheme": "MXFP4"},
}
"""The miniature's builds, and the settings of the modifier that makes each."""

REDHATAI_IGNORE = ["lm_head", "re:.*embed.*", "re:.*router", "re:.*vision_tower.*"]
"""The ignore list on the card of RedHatAI/gemma-4-26B-A4B-it-FP8-dynamic."""


def source_lock(directory: Path) -> str:
    """The lock of a miniature in `directory`: structure, config, and the digests of weights, index and config."""
    checkpoint = open_directory(directory)
    pinned = [*checkpoint.shards, "config.json", "model.safetensors.index.json"]
    files = {}
    for name in sorted(pinned):
        content = (directory / name).read_bytes()
        files[name] = FileFact(len(content), hashlib.sha256(content).hexdigest())
    revision = hashlib.sha256("".join(f"{name} {fact.sha256}\n" for name, fact in files.items()).encode()).hexdigest()
    origin = Origin(miniature.NAME, revision[:40], miniature.NAME, "exact", "made by weighbridge.miniature")
    return write_lock(replace(checkpoint, files=files, origin=origin))


def lock_name(build: str) -> str:
    """Name in references/ of the lock of one of `ONESHOT`."""
    return f"{miniature.NAME}-{build}"


def oneshot(source: Path, output: Path, build: str) -> None:
    """Save what ``llmcompressor.oneshot`` makes of the miniature, the way RedHatAI's builds were made."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source)
    recipe = QuantizationModifier(targets="Linear", ignore=REDHATAI_IGNORE, **copy.deepcopy(ONESHOT[build]))
    oneshot(model=model, processor=tokenizer, recipe=recipe)
    model.save_pretrained(output, save_compressed=True)


def oneshot_lock(output: Path, build: str) -> str:
    """The lock of what `oneshot` saved in `output`."""
    note = "made by llmcompressor 0.14.0.1 oneshot with the ignore list of RedHatAI's cards"
    origin = Origin(lock_name(build), "", miniature.NAME, "exact", note)
    return write_lock(replace(open_directory(output), files={}, config={}, origin=origin))


def main() -> None:
    """Write the locks into references/."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        source.mkdir()
        miniature.make(source)
        lock_path(miniature.NAME).write_text(source_lock(source))
        for build in ONESHOT:
            oneshot(source, Path(scratch) / build, build)
            lock_path(lock_name(build)).write_text(oneshot_lock(Path(scratch) / build, build))


if __name__ == "__main__":
    main()
