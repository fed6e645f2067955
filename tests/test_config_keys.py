"""What a key of config.json decides is known for every key that transformers' own configs have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from weighbridge.account.keys import config_keys, meaning_in_config
from weighbridge.account.leaves import leaves
from weighbridge.account.model import State

ARCHITECTURES = (
    *("llama", "llama4", "mistral", "mistral3", "mixtral", "qwen2", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_vl"),
    *("qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen3_omni_moe", "deepseek_v2", "deepseek_v3", "gpt_oss"),
    *("minimax", "minimax_m2", "nemotron_h", "granite", "granitemoe", "granitemoehybrid", "jamba", "falcon_h1"),
    *("lfm2", "lfm2_moe", "phi3", "phimoe", "phi4_multimodal", "gemma2", "gemma3", "gemma3n", "gemma4", "olmo3"),
    *("olmoe", "cohere2", "ernie4_5_moe", "hunyuan_v1_moe", "seed_oss", "smollm3", "longcat_flash", "whisper"),
    *("glm4_moe", "glm4v_moe", "glm_moe_dsa", "exaone4", "dots1", "apertus", "mllama", "llava", "internvl"),
)
"""Of transformers 5.17's, those that people quantize."""


def keys_of(document: dict[str, Any]) -> Iterator[str]:
    """Every key of a config, at any depth, but for the names of labels and layers, which stand for themselves."""
    for key, value in document.items():
        yield str(key)
        if isinstance(value, dict) and key not in ("id2label", "label2id", "per_layer_config"):
            yield from keys_of(value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_key_of_an_architecture_is_classified(architecture: str) -> None:
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[architecture]().to_dict()
    attention = {"full_attention", "sliding_attention"}  # kinds of layers, by which rope_parameters are told apart
    assert set(keys_of(config)) - attention - config_keys().keys() == set()


def test_a_key_that_nobody_knows_is_not_judged() -> None:
    assert meaning_in_config(("nobody_knows_this",))[0] is State.NOT_JUDGED
    assert meaning_in_config(("text_config", "nobody_knows_this"))[0] is State.NOT_JUDGED


@pytest.mark.parametrize(
    ("path", "state"),
    [
        (("rope_parameters", "full_attention", "anything"), State.HELD),
        (("id2label", "0"), State.HELD),
        (("text_config", "rms_norm_eps"), State.HELD),
        (("vision_config", "_name_or_path"), State.HARMLESS),
        (("transformers_version",), State.HARMLESS),
        (("dtype",), State.HELD),
    ],
)
def test_the_innermost_key_that_is_known_decides(path: tuple[str, ...], state: State) -> None:
    assert meaning_in_config(path)[0] is state


def test_every_value_of_a_document_is_in_one_leaf_and_empty_mappings_are_leaves() -> None:
    document: dict[str, Any] = {"a": {"b": 1, "c": {}}, "d": [{"e": {}}], "f": None, "g": {"": 0}}
    assert leaves(document) == {
        ("a", "b"): "1",
        ("a", "c"): "{}",
        ("d",): json.dumps([{"e": {}}]),
        ("f",): "null",
        ("g", ""): "0",
    }
