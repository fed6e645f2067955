"""Sources for tests of the engine: a mixture of experts of chosen size, with K=V attention and a dense mlp."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from weighbridge.checkpoint.layout import lay_out
from weighbridge.formats.tensors import Tensor

RECIPE = """\
name: engine-test
description: a recipe for sources of tests
base: {{model: google/gemma-4-26B-A4B-it, revision: 4d7ae4984b7db7de8f8457170b3f1a419ee76d52, licence: apache-2.0}}
method: model_free_ptq
{scheme}
ignore: ["re:.*router", "re:.*norm.*", "re:.*embed.*"]
"""


def write_moe(directory: Path, *, layers: int, experts: int = 16, hidden: int = 512, inner: int = 320) -> None:
    """Write a single-shard BF16 checkpoint of about ``layers * experts * hidden * inner * 6`` bytes; layer 0 is K=V."""
    structure = {
        "model.embed_tokens.weight": Tensor("BF16", (4096, hidden)),
        "model.norm.weight": Tensor("BF16", (hidden,)),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        structure |= {
            f"{prefix}experts.gate_up_proj": Tensor("BF16", (experts, 2 * inner, hidden)),
            f"{prefix}experts.down_proj": Tensor("BF16", (experts, hidden, inner)),
            f"{prefix}router.proj.weight": Tensor("BF16", (experts, hidden)),
            f"{prefix}input_layernorm.weight": Tensor("BF16", (hidden,)),
            f"{prefix}mlp.gate_proj.weight": Tensor("BF16", (2 * inner, hidden)),
            f"{prefix}mlp.up_proj.weight": Tensor("BF16", (2 * inner, hidden)),
            f"{prefix}mlp.down_proj.weight": Tensor("BF16", (hidden, 2 * inner)),
            f"{prefix}self_attn.q_proj.weight": Tensor("BF16", (2 * hidden, hidden)),
            f"{prefix}self_attn.k_proj.weight": Tensor("BF16", (hidden, hidden)),
            f"{prefix}self_attn.o_proj.weight": Tensor("BF16", (hidden, 2 * hidden)),
        }
        if layer:
            structure[f"{prefix}self_attn.v_proj.weight"] = Tensor("BF16", (hidden, hidden))
    layout = lay_out(structure)
    random = np.random.default_rng(layers)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(layout.head)
        for begin, end in layout.ranges.values():
            values = random.standard_normal((end - begin) // 2, dtype=np.float32) * 0.02
            file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
    (directory / "config.json").write_text(json.dumps({"model_type": "test", "tie_word_embeddings": True}))


def write_recipe(path: Path, scheme: str) -> Path:
    """Write a recipe with this scheme, or these lines of YAML in its place."""
    path.write_text(RECIPE.format(scheme=scheme if "\n" in scheme else f"scheme: {scheme}"))
    return path
