"""Which files of a model's directory belong to the model; what else lies there is nobody's to hand on.

A directory that somebody trained or downloaded in holds more than a model: keys, data, notes. A build is signed and may
be published, so it takes over what is on a closed list, and of the rest what was named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from weighbridge.checkpoint.file_names import check_file_names, check_publishable
from weighbridge.checkpoint.model import BEHAVIOUR_FILES, EVIDENCE, Checkpoint, carried_files
from weighbridge.errors import StructureError

_NAMED = sorted(map(re.escape, BEHAVIOUR_FILES))
_LANGUAGES = (
    "ar|bg|bn|ca|chinese|cn|cs|da|de|el|en|english|es|et|fa|fi|fil|fr|he|hi|hr|hu|id|it|ja|japanese|jp|kk|ko|korean|kr|lt|"
    "lv|ms|nl|no|pl|pt|ro|ru|sk|sl|sr|sv|sw|ta|te|th|tr|tw|uk|ur|vi|zh"
)
"""What languages are called in names of files: ISO 639-1, and what else is usual."""
_OF_TERMS = (
    r"model|code|weights|agreement|apache|mit|bsd|3rd|third|party|"
    r"(apple|cohere|deepseek|exaone|falcon|gemma|glm|google|granite|hunyuan|ibm|internlm|jamba|kimi|lg|liquid|llama|meta|"
    r"microsoft|minimax|mistral|moonshot|nemotron|nvidia|olmo|openai|phi|qwen|tencent|yi)[\d.]*"
)
"""What terms are of, in names of files: parts of a release, licences, publishers and their models."""

NEEDED: tuple[tuple[str, str], ...] = (
    (rf"({'|'.join(_NAMED)})", "what servers tokenize, template and sample with"),
    (
        r"((video_|audio_|image_)?(pre)?processor|feature_extractor|audio_tokenizer)_config\.json",
        "how servers prepare images, video and sound",
    ),
    (
        r"(vocab|dict|special_vocab)\.txt|(vocab|entity_vocab|normalizer|emoji|byte_maps)\.json|bpe\.codes",
        "vocabularies of transformers' slow tokenizers",
    ),
    (
        r"(spiece|spm|spm_char|sentencepiece|sentencepiece\.bpe|tiktoken)\.model|tokenizer\.model\.v\d+(m\d+)?|"
        r"[\w-]+\.tiktoken|tekken\.json",
        "vocabularies of SentencePiece, tiktoken and Mistral",
    ),
    (r"(\w+_)?chat_template(_\w+)?\.(jinja|json)|additional_chat_templates/[\w-]+\.jinja", "templates of chats"),
    (r"params\.json", "Mistral's own config, which vLLM can read"),
    (
        r"modules\.json|config_sentence_transformers\.json|sentence_\w+_config\.json|"
        r"\d+_[A-Za-z]+/(config\.json|model\.safetensors)",
        "modules of sentence-transformers, which vLLM reads",
    ),
    (
        r"(configuration|modeling|tokenization|processing|(image|video|audio|feature)_(processing|extraction))"
        r"(_\w+)?\.py",
        "code by the names that transformers gives it, which servers run if they are told to trust it",
    ),
    (
        rf"README([._-](?i:{_LANGUAGES})([_-][A-Za-z]{{2,4}})?)?\.md|README\.base\.md",
        "the model's card, in each language",
    ),
    (
        r"(?i:(third_party_)?(licen[cs]es?|notices?|copying|copyright|use_policy|acceptable_use_policy|terms))"
        rf"(?i:[-_]({_OF_TERMS}|{_LANGUAGES}|\d[\d.]*))*(\.(txt|md|rst))?",
        "terms that a copy must come with",
    ),
)
"""Expressions for whole names of files that are taken over, and why; the closed list."""


def needed(name: str, config: Mapping[str, Any]) -> str | None:
    """Why a model needs a file of this name; None where nothing says that it does.

    Args:
        config: the model's config.json, which may name code of its own.
    """
    if name in _code_of(config):
        return "code that config.json names"
    return _listed(name)


@cache
def _listed(name: str) -> str | None:
    return next((why for expression, why in NEEDED if re.fullmatch(expression, name)), None)


def _code_of(config: Mapping[str, Any]) -> Iterator[str]:
    """The files that config.json's ``auto_map`` has its classes in (``modeling_x.XForCausalLM``)."""
    named = config.get("auto_map")
    for entry in named.values() if isinstance(named, dict) else ():
        for one in entry if isinstance(entry, list) else (entry,):
            module, dot, _ = str(one).rpartition(".")
            if dot and re.fullmatch(r"\w+", module):
                yield f"{module}.py"


def left_behind(source: Checkpoint, named: Sequence[str]) -> list[str]:
    """Names of the files that a build does not take over: neither on the list nor named.

    Args:
        named: names, or patterns of the shell, of files that go along all the same.
    """
    return [
        name
        for name in carried_files(source)
        if needed(name, source.config) is None and not any(fnmatchcase(name, pattern) for pattern in named)
    ]


_WRITTEN = ("README.md", "README.base.md", f"{EVIDENCE}/README.md")
"""What a build writes itself, beside shards: nothing goes along that differs from it in case alone."""


def with_what_goes_along(source: Checkpoint, named: Sequence[str]) -> Checkpoint:
    """A source without the files that a build leaves behind.

    Args:
        named: as for `left_behind`.

    Raises:
        StructureError: a pattern is of no file that could go along, or a file has a name that cannot be listed.
    """
    check_file_names(source.files, where=source.label)
    for pattern in named if source.shards else ():  # a lock does not know all files
        if not any(fnmatchcase(name, pattern) for name in carried_files(source)):
            raise StructureError(
                f"holds no file {pattern!r} that a build could take over: weights, evidence and git's own files it "
                "never does",
                where=source.label,
                remedy="name a file of it, or a pattern as in 'original/*.json'",
            )
    left = frozenset(left_behind(source, named))
    kept = replace(source, files={name: fact for name, fact in source.files.items() if name not in left})
    vars(kept).update({"modules": source.modules})  # cached, and the same
    check_file_names({*carried_files(kept), source.form.config, source.form.index, *_WRITTEN}, where=source.label)
    check_publishable(carried_files(kept), where=source.label)
    return kept
