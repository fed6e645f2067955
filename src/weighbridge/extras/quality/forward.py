"""A checkpoint's own next-token distributions, by this project's dequantization in transformers' architecture.

Nothing of compressed-tensors, llm-compressor or a server takes part, so that each can be held against it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from weighbridge.auditing.pairing import ATTENTION_SCALES, HEAD
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import fused_experts, split_experts, split_parameter
from weighbridge.checkpoint.readable import check_read_by_transformers
from weighbridge.errors import StructureError, first_line
from weighbridge.extras.quality.activations import Activations, fake_quantized
from weighbridge.extras.quality.experts import QuantizedExperts
from weighbridge.extras.quality.weights import Weight, activations_of, read_weight, stored_bytes, weights_of
from weighbridge.families import Family, Role
from weighbridge.formats.quantization import without_quantization
from weighbridge.formats.tensors import Tensor
from weighbridge.progress import Progress
from weighbridge.work.reading import reader_of

Dtype = Literal["float64", "float32", "bfloat16"]

_TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.")
"""What stands before the names of a text model's tensors where a checkpoint has other parts too."""

_OTHER_PARTS = (Role.VISION, Role.AUDIO)


@dataclass(frozen=True)
class Forward:
    """A model that is loaded; see `open_forward`.

    Attributes:
        label: how messages call the checkpoint.
        notes: what of the checkpoint takes no part, and why; a sentence each.
        vocabulary: number of tokens that a distribution has.
        bits_a_weight: bits that the checkpoint stores for each weight of the model, scales counted.
    """

    label: str
    dtype: Dtype
    model: Any
    notes: tuple[str, ...]
    vocabulary: int
    bits_a_weight: float

    def log_probabilities(self, token_ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Log-probabilities (natural, of all next tokens) after each token of one text or of several of one length.

        No token is put before the first: where the model expects a beginning-of-sequence token, it is among the ids.

        Args:
            token_ids: whole numbers, [tokens] or [texts, tokens].

        Returns:
            float32 [..., tokens, vocabulary]: row t is the distribution of the token that follows token t, so that the
            log-probability of token t + 1 of a text is ``result[t, token_ids[t + 1]]``. Logits are widened to float32
            before they are normalized, whatever the arithmetic of the model.

        Raises:
            StructureError: an id that the vocabulary does not have, or a config whose model cannot be run: its numbers
                contradict one another, say of heads.
        """
        ids = np.asarray(token_ids, np.int64)
        if ids.size and not (ids.min() >= 0 and ids.max() < self.vocabulary):
            raise StructureError(
                f"has {self.vocabulary:,} tokens, and was asked for the token {int(ids.max())}",
                where=self.label,
                remedy="take the tokenizer of the same checkpoint",
            )
        rows = torch.from_numpy(ids.reshape(-1, ids.shape[-1])).to(self.model.device)
        with torch.inference_mode():
            try:
                logits = self.model(input_ids=rows, use_cache=False).logits.float()
            except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
                what = f"transformers cannot run the model of its config ({first_line(error)})"
                raise StructureError(what, where=self.label) from error
            found: npt.NDArray[np.float32] = torch.log_softmax(logits, dim=-1).cpu().numpy()
        return found.reshape(*ids.shape, -1)


def open_forward(
    checkpoint: Checkpoint, *, dtype: Dtype = "float32", device: str = "cpu", progress: Progress | None = None
) -> Forward:
    """Load the text model of a checkpoint with its weights dequantized and its activations quantized as declared.

    It reads compressed-tensors and modelopt declarations and unquantized checkpoints, experts one by one or fused.
    Weights are what codes and scales mean in float32, rounded once to `dtype`; linears whose scheme quantizes inputs
    get them quantized and made floats again, with scales per token, per group or as calibrated
    (`activations`); matrix products and all else are transformers' own, in `dtype`. An FP8 KV cache is not emulated:
    keys and values stay in `dtype`. Every tensor of the checkpoint has a place in the model or stands in
    `Forward.notes`, and every place is filled, or it is an error.

    Example::

        with_build = open_forward(open_checkpoint("builds/example"), dtype="bfloat16")
        with_build.log_probabilities([2, 17, 4])  # float32 [3, vocabulary]

    Args:
        checkpoint: on disk or on the hub, with config.json.
        dtype: arithmetic of the model. In bfloat16 Gemma's factor of the embeddings is rounded too, as servers do it.

    Raises:
        StructureError: the checkpoint contradicts itself or its config, lacks a tensor, has one that no part of the
            architecture takes, or is of an architecture that transformers does not know.
        HubError: it lies on the hub, which does not answer.
    """
    weights = weights_of(checkpoint, reader_of(checkpoint))
    return _loaded(checkpoint, weights, dtype, device, progress or Progress())


def open_weights_forward(
    checkpoint: Checkpoint, *, dtype: Dtype = "float32", device: str = "cpu", progress: Progress | None = None
) -> Forward:
    """As `open_forward`, but inputs are left as they are: what the weights alone mean.

    Raises:
        StructureError, HubError: as `open_forward`.
    """
    weights = weights_of(checkpoint, reader_of(checkpoint))
    return _loaded(checkpoint, weights, dtype, device, progress or Progress(), inputs_of=lambda _: None)


def open_partly_restored(
    build: Checkpoint,
    source: Checkpoint,
    restored: Callable[[str], bool],
    *,
    dtype: Dtype = "float32",
    device: str = "cpu",
    progress: Progress | None = None,
) -> Forward:
    """Load a build as if some of its modules had been left unquantized: their weights are taken from its source.

    Args:
        restored: of a quantized module's name, whether it is to be the source's.

    Raises:
        StructureError: as `open_forward`, of either side; or the source has no such weight.
        HubError: as `open_forward`.
    """
    weights, originals = (weights_of(side, reader_of(side)) for side in (build, source))
    for name, weight in weights.items():
        if weight.module is not None and restored(weight.module.name):
            if name not in originals:
                raise StructureError(f"has no {name} to take in place of the build's", where=source.label)
            weights[name] = originals[name]
    return _loaded(build, weights, dtype, device, progress or Progress())


def _loaded(
    checkpoint: Checkpoint,
    weights: Mapping[str, Weight],
    dtype: Dtype,
    device: str,
    progress: Progress,
    *,
    inputs_of: Callable[[Weight], Activations | None] = activations_of,
) -> Forward:
    label = checkpoint.label
    with torch.device("meta"):
        empty = _architecture(checkpoint, dtype)
    placed, notes = _placed(weights, empty, checkpoint.family, label=label)
    model = _architecture(checkpoint, dtype)
    slots = _slots(model, checkpoint.family)
    inputs: dict[str, Activations] = {}
    with torch.no_grad(), progress.stage("loading", sum(weight.tensor.nbytes for weight in placed.values())):
        for name, weight in placed.items():
            slots[name].copy_(torch.from_numpy(read_weight(weight)))
            activations = inputs_of(weight)
            if activations is not None:
                inputs[split_parameter(name)[0]] = activations
            progress.advance(weight.tensor.nbytes)
    _emulate(model, inputs, label=label)
    if checkpoint.declaration is not None and checkpoint.declaration.kv_cache is not None:
        notes = (*notes, "it declares a quantized KV cache, which is not emulated: keys and values stay as computed")
    vocabulary = model.get_output_embeddings().weight.shape[0]
    bits = 8 * sum(map(stored_bytes, placed.values())) / sum(weight.tensor.parameters for weight in placed.values())
    return Forward(label, dtype, model.to(device).eval(), notes, vocabulary, bits)


def _architecture(checkpoint: Checkpoint, dtype: Dtype) -> Any:
    """transformers' text model for a checkpoint's config.json, its weights whatever lay in memory.

    The config is read as data: no code of the checkpoint's own, no other kernels, nothing from the hub.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING
    from transformers.initialization import no_init_weights
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    check_read_by_transformers(checkpoint)
    bare = without_quantization(checkpoint.config)
    _check_layers(bare, checkpoint)
    try:
        config = CONFIG_MAPPING[bare["model_type"]].from_dict(copy.deepcopy(bare))  # it writes into what it is given
        text = config.get_text_config(decoder=True)
        if "tie_word_embeddings" in bare:
            text.tie_word_embeddings = config.tie_word_embeddings
        with no_init_weights():
            model = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]._from_config(
                text, dtype=getattr(torch, dtype), attn_implementation="sdpa", experts_implementation="eager"
            )
        model.tie_weights()
    except (
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        RuntimeError,
        ArithmeticError,
        StrictDataclassError,
    ) as error:
        what = f"transformers makes no text model of its config.json ({first_line(error)})"
        raise StructureError(what, where=checkpoint.label) from error
    return model


def _check_layers(config: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Refuse a config of more layers than there are tensors: transformers would make lists of them for days."""
    for holder in (config, *(part for part in config.values() if isinstance(part, dict))):
        layers = holder.get("num_hidden_layers") or 0
        if not isinstance(layers, int) or layers > len(checkpoint.structure):
            what = f"config.json says {layers!r:.40} layers, and there are {len(checkpoint.structure):,} tensors"
            raise StructureError(what, where=checkpoint.label)


def _slots(model: nn.Module, family: Family) -> dict[str, torch.Tensor]:
    """Where each tensor of a checkpoint goes: parameters (tied ones once) and stored buffers, experts one by one."""
    buffers = model.state_dict().keys() - dict(model.named_parameters(remove_duplicate=False)).keys()
    whole = {**dict(model.named_parameters()), **{name: model.get_buffer(name) for name in sorted(buffers)}}
    known = {name: Tensor("F32", tuple(tensor.shape)) for name, tensor in whole.items()}
    layouts = fused_experts(known, family)
    slots: dict[str, torch.Tensor] = {}
    for name, tensor in whole.items():
        if name not in layouts:
            slots[name] = tensor.detach()
            continue
        for part in split_experts(name, known[name], layouts[name]):
            matrix = tensor.detach()[part.expert].T if part.transposed else tensor.detach()[part.expert]
            last = part.first_row + part.tensor.shape[0] * part.step
            slots[part.name] = matrix[part.first_row : last : part.step]
    return slots


def _placed(
    weights: Mapping[str, Weight], model: Any, family: Family, *, label: str
) -> tuple[dict[str, Weight], tuple[str, ...]]:
    """Which weight goes where; what has no place must have a reason not to, and no place may stay empty.

    Raises:
        StructureError: with the first that is without a place, of another shape, or missing.
    """
    slots, without_place = _slots(model, family), _reasons(model, family)
    placed: dict[str, Weight] = {}
    aside: dict[str, int] = {}
    for name, weight in weights.items():
        place = _place_of(family.in_transformers(name), slots) or _place_of(name, slots)
        if place is None:
            reason = without_place(name)
            if not reason:
                raise StructureError(f"{name} ({weight.tensor}) has no place in the model of its config", where=label)
            aside[reason] = aside.get(reason, 0) + 1
        elif place in placed:
            raise StructureError(f"{name} and {placed[place].name} are the same weight", where=label)
        elif tuple(slots[place].shape) != weight.tensor.shape:
            found, asked = list(weight.tensor.shape), list(slots[place].shape)
            raise StructureError(f"{name} has the shape {found}; its config asks for {asked}", where=label)
        else:
            placed[place] = weight
    missing = [name for name in slots if name not in placed]
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise StructureError(f"lacks {missing[0]}{more}, which its config asks for", where=label)
    return placed, tuple(f"{count:,} tensors {reason}" for reason, count in aside.items())


def _place_of(name: str, slots: Mapping[str, torch.Tensor]) -> str | None:
    candidates = [name] + [
        prefix + name.removeprefix(before)
        for before in _TEXT_PREFIXES
        if name.startswith(before)
        for prefix in ("model.", "")
    ]
    return next((candidate for candidate in candidates if candidate in slots), None)


def _reasons(model: Any, family: Family) -> Callable[[str], str]:
    """Why a tensor may have no place in a text model; empty for one that must have."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    # Layers that share keys and values leave out what they do not use, as transformers says for itself.
    unused = tuple(f"layers.{layer}.self_attn.{local}." for layer, local in _shared_keys(model))

    def reason(name: str) -> str:
        module, local = split_parameter(name)
        if family.role_of(module) in _OTHER_PARTS:
            return "are of its vision or audio part, which text does not reach"
        if local in ATTENTION_SCALES:
            return "are scales of a KV cache, which is not emulated"
        if tied and (module, local) == (HEAD, "weight"):
            return "are a stored head, in place of which the config takes the embedding"
        if any(part in name for part in unused):
            return "are keys and values of layers that take those of others"
        return ""

    return reason


def _shared_keys(model: nn.Module) -> Iterator[tuple[int, str]]:
    for name, module in model.named_modules():
        if getattr(module, "is_kv_shared_layer", False):
            layer = int(next(part for part in name.split(".") if part.isdigit()))
            yield from ((layer, local) for local in ("k_proj", "v_proj", "k_norm", "v_norm"))


def _emulate(model: nn.Module, inputs: Mapping[str, Activations], *, label: str) -> None:
    """Have linears and experts quantize their inputs."""
    experts: dict[str, dict[tuple[int, str], Activations]] = {}
    for name, how in inputs.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            layer, expert, member = name.rsplit(".", 2)
            experts.setdefault(layer, {})[int(expert), member] = how
            continue
        module.register_forward_pre_hook(_quantizing(how))
    for name, own in experts.items():
        module = model.get_submodule(name)
        if set(dict(module.named_parameters())) != {"gate_up_proj", "down_proj"} or not hasattr(module, "act_fn"):
            raise StructureError(f"the experts {name} have a form whose inputs are not quantized here", where=label)
        model.set_submodule(name, QuantizedExperts(module, own))


def _quantizing(how: Activations) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    return lambda _, arguments: (fake_quantized(arguments[0], how), *arguments[1:])
