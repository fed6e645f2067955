"""What config.json says of sizes, as far as the names and shapes of tensors say it too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from weighbridge.account.leaves import Path
from weighbridge.checkpoint.forgotten import MTP_COUNTS
from weighbridge.formats.tensors import Structure, Tensor
from weighbridge.text.names import layer_of

HEADS = frozenset({"lm_head", "output", "output_layer", "embed_out", "head", "output_head"})
"""What the output head of a language model is called."""
INPUTS = ("embed_tokens", "tok_embeddings", "embed", "wte", "word_embeddings")
"""What the input embedding is called: a tensor of one of these names stands in doubt beside one of another."""
BY = "the shapes and names of the tensors"


def sizes_by_tensors(config: Mapping[str, Any], structure: Structure) -> Iterator[tuple[Path, str]]:
    """The keys that tensors decide, each with what is wrong with it; empty where nothing is.

    Only a model with one input embedding is looked at, called ``embed_tokens``: of several nobody knows which is meant.
    """
    embeddings = [
        name
        for name, tensor in structure.items()
        if name.removesuffix(".weight").rpartition(".")[2] in INPUTS and len(tensor.shape) == 2
    ]
    if len(embeddings) != 1 or not embeddings[0].endswith("embed_tokens.weight"):
        return
    path, text = _text_config(config)
    embedding = structure[embeddings[0]]
    for key, axis in (("vocab_size", 0), ("hidden_size", 1)):
        if key in text:
            yield (*path, key), _differs(text[key], embedding, axis, embeddings[0])
    yield from _layers(path, text, structure, embeddings[0].removesuffix("embed_tokens.weight"))
    yield from _head(config, structure)


def _text_config(config: Mapping[str, Any]) -> tuple[Path, Mapping[str, Any]]:
    """Where the sizes of the language model stand: at the top, or in the one sub-config that has them."""
    text = config.get("text_config")
    if "hidden_size" not in config and isinstance(text, Mapping):
        return ("text_config",), text
    return (), config


def _differs(stated: object, embedding: Tensor, axis: int, name: str) -> str:
    actual = embedding.shape[axis]
    return "" if type(stated) is int and stated == actual else f"is {str(stated)[:40]}, but {name} is {embedding}"


def _layers(path: Path, text: Mapping[str, Any], structure: Structure, prefix: str) -> Iterator[tuple[Path, str]]:
    """Every layer that is stated has a tensor. (Layers for speculative decoding may lie behind the last one.)

    Of a model with an encoder, or of one that counts layers twice (LongCat), nobody knows which layers are meant.
    """
    stated = text.get("num_hidden_layers")
    numbers = {layer_of(name.removeprefix(prefix)) for name in structure if name.startswith(f"{prefix}layers.")}
    layers = {number for number in numbers if number is not None}
    if stated is None or not layers or text.get("is_encoder_decoder") or "num_layers" in text:
        return
    if type(stated) is not int or stated < 0:
        yield (*path, "num_hidden_layers"), f"is {str(stated)[:40]}, which is no number of layers"
        return
    further = max((text[key] for key in MTP_COUNTS if type(text.get(key)) is int), default=0)
    missing = next((number for number in range(min(stated, max(layers) + 2)) if number not in layers), None)
    wrong = "" if missing is None else f"is {stated:,}, but layer {missing} has no tensor"
    if missing is None and max(layers) >= stated + further:
        wrong = f"is {stated:,}, but there are tensors of layer {max(layers)}"
    yield (*path, "num_hidden_layers"), wrong


def _head(config: Mapping[str, Any], structure: Structure) -> Iterator[tuple[Path, str]]:
    """A model that generates text and whose head is not tied has one."""
    tied, architectures = config.get("tie_word_embeddings"), config.get("architectures")
    generates = isinstance(architectures, list) and any(str(name).endswith("ForCausalLM") for name in architectures)
    if tied is False and generates:
        stored = any(HEADS & set(name.split(".")) for name in structure)
        yield ("tie_word_embeddings",), "" if stored else "is false, but no output head is stored"
