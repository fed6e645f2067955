"""The miniature's own locks, made by paths that are not the project's: its digests, and what oneshot makes of it.

``python -m tests.miniature_locks`` (``make miniature-locks``) writes them into references/; tests make them anew and
compare.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

from weighbridge import miniature
from weighbridge.catalogue import lock_path
from weighbridge.structure.checkpoint import FileFact, Origin, open_directory
from weighbridge.structure.lock import write_lock

FP8_DYNAMIC = "weighbridge/gemma-4-mini-FP8-dynamic"
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


def oneshot_fp8_dynamic_lock(source: Path, output: Path) -> str:
    """The lock of what ``oneshot`` makes of the miniature with RedHatAI's published settings, saved by transformers."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source)
    recipe = QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=REDHATAI_IGNORE)
    oneshot(model=model, processor=tokenizer, recipe=recipe)
    model.save_pretrained(output, save_compressed=True)
    note = "made by llmcompressor 0.14.0.1 oneshot with the settings of RedHatAI/gemma-4-26B-A4B-it-FP8-dynamic's card"
    origin = Origin(FP8_DYNAMIC, "", miniature.NAME, "exact", note)
    return write_lock(replace(open_directory(output), files={}, origin=origin))


def main() -> None:
    """Write the locks into references/."""
    with tempfile.TemporaryDirectory() as scratch:
        source, output = Path(scratch) / "source", Path(scratch) / "oneshot"
        source.mkdir()
        miniature.make(source)
        lock_path(miniature.NAME).write_text(source_lock(source))
        lock_path(FP8_DYNAMIC).write_text(oneshot_fp8_dynamic_lock(source, output))


if __name__ == "__main__":
    main()
