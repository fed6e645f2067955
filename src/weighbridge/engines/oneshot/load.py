"""The model and its tokenizer from a directory, without network: what llm-compressor calibrates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weighbridge.errors import BuildError, first_line


def load_tokenizer(directory: Path, *, where: str) -> Any:
    """The tokenizer alone: Gemma 4's processor needs torchvision, which text does not.

    Raises:
        BuildError: there is none, or transformers cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (ValueError, KeyError, OSError, TypeError, ImportError) as error:
        remedy = "put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the weights"
        what = f"its tokenizer cannot be loaded ({first_line(error)})"
        raise BuildError(what, where=where, remedy=remedy) from error


def load_model(directory: Path, *, device: str | None, where: str) -> Any:
    """The model with its experts one by one, in the dtype in which it is stored.

    Experts are split once they are loaded. llm-compressor's ``load_quantizable_moe`` would spare checkpoints that store
    them one by one the way through one tensor and back, but looks through every module of transformers for what to
    patch, which imports torchvision (transformers 5.17).

    Raises:
        BuildError: transformers does not know the architecture, or cannot load it.
    """
    from llmcompressor.modeling.moe.linearize import linearize_moe

    try:
        loader, _ = loader_of(directory)
        model = loader.from_pretrained(directory, dtype="auto", device_map=device, local_files_only=True)
        return linearize_moe(model)
    except (ValueError, KeyError, RuntimeError, NotImplementedError, OSError, ImportError) as error:
        raise BuildError(f"the model cannot be loaded ({first_line(error)})", where=where) from error


def loader_of(directory: Path) -> tuple[Any, Any]:
    """transformers' class that loads the model of a directory, with all that it sees and hears, and its configuration.

    Raises:
        ValueError, OSError: transformers does not know the architecture.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM, config
