"""The second client: transformers with compressed-tensors, experts loaded by llm-compressor's own mappings.

Plain transformers (5.17) drops every expert of a quantized Gemma 4 and goes on with random ones. llm-compressor's
``load_quantizable_moe`` with ``patch_moe_mappings`` loads them. It has transformers look through all of its modules for
the class of the experts, which imports torchvision; here that class is replaced where it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weighbridge.errors import first_line
from weighbridge.extras.serving.answer import ServingError

MEMBERS = ("gate_proj", "up_proj", "down_proj")


def distributions(directory: Path, token_ids: Sequence[Sequence[int]], *, where: str) -> list[npt.NDArray[np.float32]]:
    """Log-probabilities of all next tokens after each token of each text, in BFloat16 arithmetic.

    Returns:
        for each text float32 [tokens, vocabulary].

    Raises:
        ServingError: transformers cannot load it, or left any of its tensors aside.
    """
    import torch

    from weighbridge.engines.quiet import quieted

    found = []
    with quieted(), torch.inference_mode():
        model = _load(directory, where=where)
        for tokens in token_ids:
            logits = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0].float()
            found.append(torch.log_softmax(logits, dim=-1).numpy())
    return found


def _load(directory: Path, *, where: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        loader = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        with _linear_experts(config):
            model, said = loader.from_pretrained(
                directory, dtype=torch.bfloat16, local_files_only=True, output_loading_info=True
            )
    except (ValueError, KeyError, RuntimeError, NotImplementedError, OSError, ImportError, AttributeError) as error:
        raise ServingError(f"transformers cannot load it ({first_line(error)})", where=where) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(map(str, said[problem]))
        if keys:
            what = f"{len(keys):,} {problem.replace('_', ' ')}, the first {keys[0]}"
            raise ServingError(f"transformers loads it with {what}", where=where)
    return model.eval()


@contextmanager
def _linear_experts(config: Any) -> Iterator[None]:
    """Experts one by one while the block runs, for architectures for which llm-compressor knows them."""
    import sys

    from compressed_tensors.utils import patch_attr
    from llmcompressor.modeling.moe.conversion_mappings import (
        ARCH_TO_IMPORT_PATHS,
        get_linearize_load_mappings,
        has_linearize_load_mappings,
        patch_moe_mappings,
    )
    from llmcompressor.modeling.moe.linear_experts import LinearExperts2D
    from transformers import modeling_utils
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )
    from transformers.core_model_loading import WeightRenaming

    kind = config.model_type
    if kind not in ARCH_TO_IMPORT_PATHS or getattr(config.get_text_config(), "num_experts", None) is None:
        yield
        return
    as_stored = [
        WeightRenaming(source_patterns=rf"\.experts\.(\d+)\.{member}\.", target_patterns=rf".experts.\1.{member}.")
        for member in MEMBERS
    ]
    before = get_checkpoint_conversion_mapping(kind)
    if has_linearize_load_mappings(kind):
        experts, mapping, _ = get_linearize_load_mappings(kind)
    else:
        with patch_moe_mappings(kind, as_stored):
            experts, mapping, _ = get_linearize_load_mappings(kind)
    linear = LinearExperts2D.get_linear_experts_cls(experts)
    register_checkpoint_conversion_mapping(kind, mapping, overwrite=True)
    home = sys.modules[experts.__module__]
    try:
        with patch_attr(modeling_utils, "apply_patches", lambda: patch_attr(home, experts.__name__, linear)):
            yield
    finally:
        register_checkpoint_conversion_mapping(kind, before or [], overwrite=True)
