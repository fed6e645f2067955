"""What NVIDIA's own modelopt makes of the miniature, and the locks of it: an oracle for builds in modelopt's format.

It runs in an environment of its own, on the CPU, from the repository's root:

    python -m venv modelopt-env
    modelopt-env/bin/python -m pip install -c constraints.txt -r tests/modelopt-requirements.txt
    PYTHONPATH=src modelopt-env/bin/python -m tests.modelopt_locks builds/modelopt references/weighbridge

The first argument is where the builds shall lie, the second where their locks shall. modelopt 0.47.0 takes the experts
of transformers' Gemma 4 as they are, fused, and writes them one by one; nothing is done to the model here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.miniature_locks import lock_name
from weighbridge.base.source import make_miniature
from weighbridge.checkpoint.lock import write_lock
from weighbridge.checkpoint.model import Origin, open_directory
from weighbridge.machine.installation import ROOT
from weighbridge.samples import miniature

NO_KV_CACHE = "none"
BUILDS = {
    "NVFP4-modelopt": ("nvfp4", NO_KV_CACHE),
    "NVFP4-experts-modelopt": ("nvfp4_experts_only", "fp8_cast"),
    "NVFP4-mlp-modelopt": ("nvfp4_mlp_only", NO_KV_CACHE),
}
"""The builds, and what each is to modelopt's hf_ptq.py: its ``--qformat`` and its ``--kv_cache_qformat``.

``nvfp4`` quantizes attention, mlp and experts, ``nvfp4_mlp_only`` mlp and experts; ``fp8_cast`` declares an FP8 KV
cache without scales. Embeddings, routers, the vision tower and lm_head are kept by all of them.
"""


def export(source: Path, output: Path, build: str) -> None:
    """Save what modelopt makes of the miniature in `source`, calibrated with each line of the repository's licence."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.recipe.presets import KV_QUANT_CFG_CHOICES, QUANT_CFG_CHOICES
    from modelopt.torch.export import export_hf_checkpoint
    from modelopt.torch.quantization.utils import update_quant_cfg_with_kv_cache_quant
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source)
    lines = [line.strip() for line in (ROOT / "LICENSE").read_text().splitlines() if line.strip()]

    @torch.no_grad()
    def calibrate(model: torch.nn.Module) -> None:
        for line in lines:
            model(**tokenizer(line, return_tensors="pt"))

    linears, kv_cache = BUILDS[build]
    settings = QUANT_CFG_CHOICES[linears]
    if kv_cache != NO_KV_CACHE:
        settings = update_quant_cfg_with_kv_cache_quant(settings, KV_QUANT_CFG_CHOICES[kv_cache]["quant_cfg"])
    mtq.quantize(model, settings, calibrate)
    export_hf_checkpoint(model, export_dir=output)


def modelopt_lock(output: Path, build: str) -> str:
    """The lock of what `export` saved in `output`."""
    producer = json.loads((output / "hf_quant_config.json").read_bytes())["producer"]
    linears, kv_cache = BUILDS[build]
    note = f"made by nvidia-modelopt {producer['version']} on CPU: qformat {linears}, kv_cache_qformat {kv_cache}"
    origin = Origin(lock_name(build), "", miniature.NAME, "exact", note)
    return write_lock(replace(open_directory(output), files={}, config={}, origin=origin))


def main(arguments: Sequence[str]) -> None:
    """Make all builds in the first directory, and write their locks into the second."""
    builds, locks = map(Path, arguments)
    source = make_miniature()
    locks.mkdir(parents=True, exist_ok=True)
    for build in BUILDS:
        name = Path(lock_name(build)).name
        export(source, builds / name, build)
        (locks / f"{name}.yaml").write_text(modelopt_lock(builds / name, build))


if __name__ == "__main__":
    main(sys.argv[1:])
