"""The miniature's tokenizer: Gemma's, with nothing but the bytes and the special tokens left."""

from __future__ import annotations

from typing import Any

_SIZE = 512
_FIRST_BYTE = 238  # as in the real vocabulary, like every id below 238
_SPACE = "▁"
_SPECIAL = {
    "<pad>": 0,
    "<eos>": 1,
    "<bos>": 2,
    "<unk>": 3,
    "<mask>": 4,
    "<|tool>": 46,
    "<tool|>": 47,
    "<|tool_call>": 48,
    "<tool_call|>": 49,
    "<|tool_response>": 50,
    "<tool_response|>": 51,
    '<|"|>': 52,
    "<|think|>": 98,
    "<|channel>": 100,
    "<channel|>": 101,
    "<|turn>": 105,
    "<turn|>": 106,
    "<|image>": 494,
    "<|audio>": 495,
    "<|image|>": 496,
    "<|audio|>": 497,
    "<image|>": 498,
    "<audio|>": 499,
    "<|video|>": 500,
}


def tokenizer() -> dict[str, Any]:
    """The content of tokenizer.json: 512 tokens, no merges, each character as its UTF-8 bytes, a space as one token."""
    special = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, number in _SPECIAL.items()
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special_piece("<bos>"), _sequence_piece("A", 0)],
            "pair": [
                _special_piece("<bos>"),
                _sequence_piece("A", 0),
                _special_piece("<bos>", 1),
                _sequence_piece("B", 1),
            ],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [_SPECIAL["<bos>"]], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(_vocabulary())},
            "merges": [],
        },
    }


def _vocabulary() -> list[str]:
    vocabulary = [f"<unused{number}>" for number in range(_SIZE)]
    vocabulary[_FIRST_BYTE : _FIRST_BYTE + 256] = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary[_FIRST_BYTE - 1] = _SPACE
    for token, number in _SPECIAL.items():
        vocabulary[number] = token
    return vocabulary


def _special_piece(token: str, type_id: int = 0) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": type_id}}


def _sequence_piece(sequence: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": sequence, "type_id": type_id}}
