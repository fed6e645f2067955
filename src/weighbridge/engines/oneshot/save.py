"""A quantized model as shards, and nothing beside them: no moment of it looks like a checkpoint.

transformers writes config.json before the first shard. Here shards grow under names that no tool takes for one, and
get their own only when the last is whole; config.json is the business of whoever knows that the build is good.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighbridge.errors import BuildError
from weighbridge.progress import Progress

if TYPE_CHECKING:
    import torch

UNFINISHED = ".part"


def save_shards(model: Any, output: Path, *, shard_size: int, progress: Progress) -> None:
    """Compress a calibrated model and write its tensors into `output` as safetensors files.

    The tensors are those that llm-compressor's own ``save_pretrained`` would write, under the names they have there.

    There are two files at least: without an index, several are no checkpoint.

    Args:
        shard_size: bytes at which a new file is begun.

    Raises:
        BuildError: safetensors could not write.
        OSError: a file could not be renamed.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = _stored_tensors(model)
    size = sum(tensor.nbytes for tensor in tensors.values())
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=min(shard_size, size // 2)
    )
    with progress.stage("writing", size):
        for name, members in split.filename_to_tensors.items():
            shard = {member: tensors.pop(member).contiguous() for member in members}
            try:
                save_file(shard, output / f"{name}{UNFINISHED}", metadata={"format": "pt"})
            except SafetensorError as error:
                raise BuildError(f"a shard cannot be written ({error})", where=str(output)) from error
            progress.advance(sum(tensor.nbytes for tensor in shard.values()))
    for name in split.filename_to_tensors:
        (output / f"{name}{UNFINISHED}").rename(output / name)


def _stored_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Every tensor that is stored, compressed, under its name on disk; one of two that are tied."""
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.offload import disable_onloading
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    ModelCompressor.from_pretrained_model(model).compress_model(model, skip_compressed=True)
    with disable_onloading(), torch.no_grad():
        state = remove_tied_weights_from_state_dict(dict(model.state_dict()), model)
        for key in model._keys_to_ignore_on_save or ():
            state.pop(key, None)
        for copy, original in model.all_tied_weights_keys.items():  # tied by config.json, though no longer in memory
            if copy in state and original in state and torch.equal(state[copy], state[original]):
                del state[copy]
        stored: dict[str, torch.Tensor] = revert_weight_conversion(model, state)
    return stored
