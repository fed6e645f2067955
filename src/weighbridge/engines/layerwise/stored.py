"""What a checkpoint stores of modules that a calibration is done with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from weighbridge.engines.layerwise.skeleton import ORIGINAL, Skeleton, tensors_of, weight_of_another
from weighbridge.engines.oneshot.calibrate import unshifted

if TYPE_CHECKING:
    import torch


def freeze_and_compress(modules: Iterable[Any]) -> None:
    """Quantize modules for good, as ``ModelCompressor.compress_model`` does with those of a whole model."""
    from compressed_tensors.compressors import compress_module
    from compressed_tensors.quantization.utils import is_module_quantized
    from llmcompressor.modifiers.quantization.calibration import freeze_module_quantization

    for part in list(modules):
        if is_module_quantized(part):
            freeze_module_quantization(part)
            compress_module(part)


def stored_tensors(skeleton: Skeleton, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The tensors of modules under the names that a checkpoint has for them.

    Of two that are tied, one is stored.
    """
    from transformers.core_model_loading import revert_weight_conversion

    model = skeleton.model
    state = {whole: tensor for name in names for whole, tensor in tensors_of(skeleton, name).items()}
    for whole in [whole for whole in state if whole.endswith(f".{ORIGINAL}")]:
        norm = whole.removesuffix(ORIGINAL) + "weight"
        state[norm] = unshifted(state[norm], state.pop(whole))
    for key in model._keys_to_ignore_on_save or ():
        state.pop(key, None)
    for copy, original in model.all_tied_weights_keys.items():
        if copy in state and _is_copy(skeleton, state[copy], copy, original):
            del state[copy]
    stored: dict[str, torch.Tensor] = revert_weight_conversion(model, state)
    return stored


def _is_copy(skeleton: Skeleton, tensor: torch.Tensor, name: str, original: str) -> bool:
    """Whether a tensor is another's; one that no file has a tensor for is."""
    import torch

    return name not in skeleton.loaded or torch.equal(tensor, weight_of_another(skeleton, original))
