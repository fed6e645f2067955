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

from weighbridge.account.files import harmless
from weighbridge.base.locks import lock_path
from weighbridge.checkpoint.lock import write_lock
from weighbridge.checkpoint.model import FileFact, Origin, carried_files, open_directory
from weighbridge.samples import miniature
from weighbridge.samples.miniature.text import exchanges

LAYER = r"re:model\.language_model\.layers\.\d+\."
W4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
FP4 = {
    "num_bits": 4,
    "type": "float",
    "strategy": "tensor_group",
    "group_size": 16,
    "scale_dtype": "torch.float8_e4m3fn",
}
FP4_INPUTS = {**FP4, "dynamic": "local", "observer": "static_minmax"}
FP8_INPUTS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}


def _experts(**args: dict[str, Any]) -> dict[str, Any]:
    """Settings that give the experts a scheme of their own, and FP8_DYNAMIC to the rest."""
    rest = {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}, "input_activations": FP8_INPUTS}
    experts = {"targets": [rf"{LAYER}experts\.\d+\.(gate|up|down)_proj$"], **args}
    return {"config_groups": {"group_0": experts, "group_1": {"targets": ["Linear"], **rest}}}


ONESHOT: dict[str, dict[str, Any]] = {
    "FP8-dynamic": {"scheme": "FP8_DYNAMIC"},
    "FP8-block": {"scheme": "FP8_BLOCK"},
    "W4A16": {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {**W4, "group_size": 32}}}},
    "W4A16-G64": {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {**W4, "group_size": 64}}}},
    "NVFP4A16": {"scheme": "NVFP4A16"},
    "MXFP4": {"scheme": "MXFP4"},
    "NVFP4A16-experts-FP8": _experts(weights=FP4),
    "W4A16-experts-FP8": _experts(weights={**W4, "group_size": 32}),
}
"""The miniature's data-free builds, and the settings of the modifier that makes each."""

CALIBRATED: dict[str, dict[str, Any]] = {
    "NVFP4": {"scheme": "NVFP4"},
    "NVFP4-GPTQ": {"scheme": "NVFP4"},
    "NVFP4-experts-FP8": _experts(weights=FP4, input_activations=FP4_INPUTS),
    "W4A16-GPTQ": ONESHOT["W4A16"],
    "W4A16-AWQ": ONESHOT["W4A16"],
    "W4A16-AWQ-GPTQ": ONESHOT["W4A16"],
    "FP8-dynamic-KV8": {"scheme": "FP8_DYNAMIC", "kv_cache_scheme": {"num_bits": 8, "type": "float"}},
}
"""Those that see calibration data, and the settings of the modifier that quantizes."""

AWQ_MAPPINGS = [
    (f"{LAYER}pre_feedforward_layernorm$", [rf"{LAYER}mlp\.gate_proj$", rf"{LAYER}mlp\.up_proj$"], None),
    (rf"{LAYER}mlp\.up_proj$", [rf"{LAYER}mlp\.down_proj$"], None),
    (f"{LAYER}pre_feedforward_layernorm_2$", [rf"{LAYER}experts.*gate_proj$", rf"{LAYER}experts.*up_proj$"], "experts"),
    (rf"{LAYER}experts\.\d+\.up_proj$", [rf"{LAYER}experts\.\d+\.down_proj$"], None),
]
"""What AWQ scales down, what it scales up for it, and where it looks; llm-compressor has none for Gemma 4."""

REDHATAI_IGNORE = ["lm_head", "re:.*embed.*", "re:.*router", "re:.*vision_tower.*"]
"""The ignore list on the card of RedHatAI/gemma-4-26B-A4B-it-FP8-dynamic."""


def source_lock(directory: Path) -> str:
    """The lock of a miniature in `directory`: structure, config, and the digests of all files that are obeyed."""
    checkpoint = open_directory(directory)
    weights = [*checkpoint.shards, "config.json", "model.safetensors.index.json"]
    pinned = [*weights, *(name for name in carried_files(checkpoint) if harmless(name) is None)]
    files = {}
    for name in sorted(pinned):
        content = (directory / name).read_bytes()
        files[name] = FileFact(len(content), hashlib.sha256(content).hexdigest())
    of_weights = "".join(f"{name} {files[name].sha256}\n" for name in sorted(weights))
    revision = hashlib.sha256(of_weights.encode()).hexdigest()
    origin = Origin(miniature.NAME, revision[:40], miniature.NAME, "exact", "made by weighbridge.samples.miniature")
    return write_lock(replace(checkpoint, files=files, origin=origin))


def lock_name(build: str) -> str:
    """Name in references/ of the lock of one of `ONESHOT` or `CALIBRATED`."""
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


def calibrated(source: Path, output: Path, build: str) -> None:
    """Save what ``llmcompressor.oneshot`` makes of the miniature with its own text as calibration data."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    if not torch.accelerator.is_available():  # AWQ pins memory to copy it to an accelerator, and stops without one
        IntermediatesCache.pin_memory = lambda *_: None
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.bfloat16)
    model.config.text_config.allow_global_per_layer_attribute_access = True
    tokenizer = AutoTokenizer.from_pretrained(source)
    quantizing = GPTQModifier if build.endswith("GPTQ") else QuantizationModifier
    settings = {"targets": "Linear", "ignore": REDHATAI_IGNORE, **copy.deepcopy(CALIBRATED[build])}
    smoothing = [AWQModifier(mappings=[AWQMapping(*mapping) for mapping in AWQ_MAPPINGS])]
    oneshot(
        model=model,
        processor=tokenizer,
        recipe=[*(smoothing if "AWQ" in build else ()), quantizing(**settings)],
        dataset=Dataset.from_dict({"text": [f"{pair.question} {pair.answer}" for pair in exchanges()]}),
        batch_size=8,
        num_calibration_samples=16,
        shuffle_calibration_samples=False,
        max_seq_length=128,
    )
    model.save_pretrained(output, save_compressed=True)


def oneshot_lock(output: Path, build: str) -> str:
    """The lock of what `oneshot` or `calibrated` saved in `output`."""
    text = " and text of the miniature's own" if build in CALIBRATED else ""
    note = f"made by llmcompressor 0.14.0.1 oneshot with the ignore list of RedHatAI's cards{text}"
    origin = Origin(lock_name(build), "", miniature.NAME, "exact", note)
    return write_lock(replace(open_directory(output), files={}, config={}, origin=origin))


def main() -> None:
    """Write the locks into references/."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        source.mkdir()
        miniature.make(source)
        lock_path(miniature.NAME).write_text(source_lock(source))
        for build in (*ONESHOT, *CALIBRATED):
            make = oneshot if build in ONESHOT else calibrated
            make(source, Path(scratch) / build, build)
            lock_path(lock_name(build)).write_text(oneshot_lock(Path(scratch) / build, build))


if __name__ == "__main__":
    main()
