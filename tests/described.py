"""Structures of the families that have a descriptor: what transformers saves of each architecture, on the meta device.

Dimensions are transformers' own defaults, which are mostly those of a published model; layers and experts are few.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import RawTensor, Tensors, write_tensors
from tests.families import _shapes_in_file
from weighbridge.checkpoint.model import Checkpoint, Origin
from weighbridge.families import descriptors
from weighbridge.formats.tensors import Tensor

FEW: Mapping[str, Any] = {
    "num_hidden_layers": 4,
    "n_layer": 4,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_layers": 2,
    "depth": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "tie_word_embeddings": False,
}
"""What is less than in the published models, where a config has it."""

LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "indexer_types", "moe_layers")
"""Lists of one entry a layer, of which the first are taken."""


_GROUPED = {"hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 2}
_HYBRID = ["conv", "full_attention", "conv", "full_attention"]
_SLIDING = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
SIZES: Mapping[str, Mapping[str, Any]] = {
    "Dots1ForCausalLM": {**_GROUPED, "moe_intermediate_size": 512, "n_routed_experts": 4, "n_shared_experts": 2},
    "HunYuanDenseV1ForCausalLM": {**_GROUPED, "head_dim": 128},
    "HunYuanMoEV1ForCausalLM": {**_GROUPED, "head_dim": 128},
    "Lfm2MoeForCausalLM": {"layer_types": _HYBRID, "num_hidden_layers": 4},
    "Lfm2ForCausalLM": {"layer_types": _HYBRID, "num_hidden_layers": 4},
    "Gemma3nForCausalLM": {
        "num_kv_shared_layers": 0,
        "layer_types": _SLIDING,
        "num_hidden_layers": 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
}
"""What configs need to be told because transformers' defaults make no model, or none of every kind of layer."""

UNMADE: Mapping[str, str] = {
    "Gemma3nForConditionalGeneration": "its vision tower needs timm",
    "Qwen3OmniMoeForConditionalGeneration": "the defaults of its talker's config lack what its model asks for",
}
"""Architectures that transformers has and that are not made here, and why."""


def architectures() -> Iterator[tuple[str, str]]:
    """Descriptor and architecture, of those that transformers makes."""
    import transformers

    for name, descriptor in descriptors().items():
        for architecture in descriptor.architectures:
            if hasattr(transformers, architecture) and architecture not in UNMADE:
                yield name, architecture


@cache
def described(architecture: str) -> Checkpoint:
    """A model of an architecture as its files describe it: names on disk, all tensors BF16, and config.json."""
    import torch
    import transformers

    model_class, config = getattr(transformers, architecture), config_of(architecture)
    with torch.device("meta"):
        model = model_class(config)
    return Checkpoint(
        label=architecture,
        structure={name: Tensor("BF16", shape) for name, shape in sorted(_shapes_in_file(model))},
        config=config.to_dict(),
        origin=Origin(repository=f"an/{architecture}", base=f"an/{architecture}"),
    )


def config_of(architecture: str) -> Any:
    """transformers' config of a small model of an architecture."""
    import transformers

    config = _fewer(getattr(transformers, architecture).config_class(**SIZES.get(architecture, {})))
    config.architectures = [architecture]
    return config


def _fewer(config: Any) -> Any:
    for key, value in FEW.items():
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, value)
    for key in LISTS:
        entries = getattr(config, key, None)
        if isinstance(entries, list) and len(entries) > FEW["num_hidden_layers"]:
            setattr(config, key, entries[: FEW["num_hidden_layers"]])
    for key in config.sub_configs:
        part = getattr(config, key, None)
        if part is not None:
            _fewer(part)
    return config


SMALLER = 16
"""What widths are divided by where files are written: the layouts of the published models, in seconds."""


def write_described(architecture: str, directory: Path, *, seed: int = 0) -> Path:
    """A checkpoint of an architecture's layout with random BF16 weights, every large dimension a sixteenth."""
    checkpoint = described(architecture)
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for name, tensor in checkpoint.structure.items():
        shape = tuple(side // SMALLER if side >= 256 and side % SMALLER == 0 else side for side in tensor.shape)
        values = random.standard_normal(shape, np.float32) * 0.05
        tensors[name] = RawTensor("BF16", shape, (values.view(np.uint32) >> 16).astype("<u2").tobytes())
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(dict(checkpoint.config), default=str))
    write_tensors(directory, tensors)
    return directory
