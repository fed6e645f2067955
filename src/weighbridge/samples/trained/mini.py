"""The miniature with weights that have learnt something: a Gemma 4 mixture of experts for quality tables.

Random weights route chaotically, so that any rounding looks like a catastrophe. These were trained on the standard
library's sources; the vision tower, which nothing has learnt to use, is the miniature's own.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighbridge.checkpoint.layout import lay_out
from weighbridge.formats.tensors import Tensor
from weighbridge.progress import Progress
from weighbridge.samples import miniature
from weighbridge.samples.miniature import layout, weights
from weighbridge.samples.trained import text, tokens
from weighbridge.samples.trained.setting import Measured, Setting

if TYPE_CHECKING:
    import torch

NAME = "weighbridge/gemma-4-mini-trained"
VOCABULARY = 4096
SETTING = Setting(steps=1000, batch=4, length=256, rate=3e-3, warmup=50)
REVISION = 1
"""To be raised when what the same setting makes of the same text changes."""

_BEGIN = 2
_PREFIX = "model.language_model."
_TEMPLATE = b"{{- bos_token -}}{%- for message in messages -%}{{- message['content'] -}}{%- endfor -%}\n"
"""For text that has no turns: what is said, one message after the other."""

_COPIED = ("generation_config.json", "processor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Outcome:
    """A trained model and what it reached.

    Attributes:
        setting: how it was trained.
        tensors: name in the checkpoint -> BF16 values, of the language model.
        losses: of each step, in nats a token.
        measured: on the held-out text, after rounding to BF16, in BF16 arithmetic.
        unigram: perplexity of the held-out text by the frequencies of tokens alone.
    """

    setting: Setting
    tensors: Mapping[str, torch.Tensor]
    losses: tuple[float, ...]
    measured: Measured
    unigram: float


def version() -> str:
    """Twelve hex digits that change whenever what `make` writes may change.

    They stand for the miniature, the setting, the text (which comes with Python), and the libraries that do the sums.
    """
    libraries = {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    parts = [REVISION, VOCABULARY, asdict(SETTING), libraries, platform.machine(), miniature.version()]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for part in (text.training_text(), text.held_out_text()):
        digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()[:12]


def make(directory: Path, progress: Progress) -> None:
    """Train, and write the checkpoint into `directory`, which is there already and empty.

    Raises:
        OSError: the directory cannot be written.
    """
    config = configuration(VOCABULARY)
    tokenizer = tokens.learn(text.training_files(), VOCABULARY)
    outcome = learn(config, tokenizer, text.training_text(), text.held_out_text(), SETTING, progress)
    write(directory, config, tokenizer, outcome)


def configuration(vocabulary: int) -> dict[str, Any]:
    """The miniature's config.json with a vocabulary of this many tokens."""
    config: dict[str, Any] = json.loads(_miniature_file("config.json"))
    config["text_config"] |= {"vocab_size": vocabulary, "vocab_size_per_layer_input": vocabulary}
    return config


def learn(
    config: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    training: str,
    held_out: str,
    setting: Setting,
    progress: Progress,
) -> Outcome:
    """Train the language model of a config.json in F32, round it to BF16 once, and measure it."""
    import torch
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    from weighbridge.samples.trained.training import measure, reproducible, train, unigram_perplexity

    ids, unseen = (encode(tokenizer, part) for part in (training, held_out))
    with reproducible(setting) as generator:
        wanted = Gemma4TextConfig(**{**config["text_config"], "dtype": "float32"})
        wanted._experts_implementation = "eager"
        model = Gemma4ForCausalLM(wanted)
        _prepare(model)
        routers = [layer.router for layer in model.model.layers]
        losses = train(model, routers, ids, setting, begin=_BEGIN, generator=generator, progress=progress)
        model.to(torch.bfloat16)
        measured = measure(model, routers, unseen, length=setting.length, begin=_BEGIN)
    tensors = {_PREFIX + name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    tensors.pop(f"{_PREFIX}lm_head.weight")
    unigram = unigram_perplexity(ids, unseen, wanted.vocab_size)
    return Outcome(setting, tensors, tuple(losses), measured, unigram)


def write(directory: Path, config: Mapping[str, Any], tokenizer: Mapping[str, Any], outcome: Outcome) -> None:
    """Write a checkpoint: two BF16 shards, index, configuration, tokenizer, template, and a card with what was reached.

    Raises:
        OSError: the directory cannot be written.
    """
    shapes = layout.shapes(config)
    documents = {name: _miniature_file(name) for name in _COPIED}
    documents["config.json"] = _document(config)
    documents["tokenizer.json"] = _document(tokenizer)
    documents["model.safetensors.index.json"] = _document(layout.index(shapes))
    documents["chat_template.jinja"] = _TEMPLATE
    documents["README.md"] = card(outcome).encode()
    for name, content in documents.items():
        (directory / name).write_bytes(content)
    for shard in layout.SHARDS:
        _write_shard(directory / shard, shapes, outcome.tensors)


def encode(tokenizer: Mapping[str, Any], text: str) -> torch.Tensor:
    """Token ids of a text, int64 [tokens], without the one that begins a text."""
    import torch
    from tokenizers import Tokenizer

    lines = text.splitlines(keepends=True)
    pieces = ["".join(lines[first : first + 200]) for first in range(0, len(lines), 200)]
    encoded = Tokenizer.from_str(json.dumps(tokenizer)).encode_batch(pieces, add_special_tokens=False)
    return torch.tensor([number for piece in encoded for number in piece.ids], dtype=torch.int64)


def card(outcome: Outcome) -> str:
    """The model card: how it was trained, and what it reached."""
    measured = outcome.measured
    layers = "\n".join(
        f"| {number} | {min(shares):.1%} | {max(shares):.1%} | {even:.2f} |"
        for number, (shares, even) in enumerate(zip(measured.shares, measured.effective_experts, strict=True))
    )
    template = resources.files(__package__).joinpath("mini.md").read_text()
    return template.format(
        name=NAME,
        python=platform.python_version(),
        setting=outcome.setting,
        perplexity=measured.perplexity,
        unigram=outcome.unigram,
        held_out=measured.tokens,
        layers=layers,
    )


def _prepare(model: Any) -> None:
    """First weights that learn quickly, and the miniature's own factors of the layers, which are not trained."""
    import torch

    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            # Attention is not scaled by the head's size: keys of full length would have each token see one other.
            layer.self_attn.k_norm.weight.fill_(layer.self_attn.head_dim**-0.5)
            layer.layer_scalar.copy_(_miniature_values(f"{_PREFIX}layers.{number}.layer_scalar", (1,)))


def _miniature_values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    return torch.from_numpy(weights.bf16(name, shape).view("<i2")).view(torch.bfloat16)


def _write_shard(path: Path, shapes: Mapping[str, layout.Shape], learnt: Mapping[str, torch.Tensor]) -> None:
    import torch

    members = {name: Tensor("BF16", shape) for name, shape in shapes.items() if layout.shard_of(name) == path.name}
    laid_out = lay_out(members)
    with path.open("wb") as file:
        file.write(laid_out.head)
        for name in laid_out.ranges:
            if name in learnt:
                file.write(learnt[name].contiguous().view(torch.int16).numpy().astype("<i2", copy=False).data)
            else:
                file.write(weights.bf16(name, members[name].shape).astype("<u2", copy=False).data)


def _miniature_file(name: str) -> bytes:
    return resources.files(miniature).joinpath("files", name).read_bytes()


def _document(content: object) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
