"""A tokenizer for the trained miniature: Gemma's layout and special tokens, with merges learnt from text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from weighbridge.errors import BuildError
from weighbridge.samples.miniature import tokens

_SPACE = "▁"
# Merges stay within a word with the space before it, a digit, a run of signs, or an end of line with its indentation.
_WORDS = rf"{_SPACE}?[A-Za-z_]+|[0-9]|\n{_SPACE}*|{_SPACE}+|[^\sA-Za-z0-9_{_SPACE}]+"


def learn(texts: Sequence[str], size: int) -> dict[str, Any]:
    """The content of a tokenizer.json that has learnt its merges from `texts`.

    The miniature's special tokens and bytes keep their ids; what is learnt takes the unused ones in the order in which
    it was learnt, and then those behind them.

    Args:
        size: how many tokens there are in all.

    Raises:
        BuildError: the texts hold too few different words for that many.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.normalizers import Replace
    from tokenizers.pre_tokenizers import Split
    from tokenizers.trainers import BpeTrainer

    content = tokens.tokenizer()
    given = content["model"]["vocab"]
    fixed = {token: number for token, number in given.items() if not token.startswith("<unused")}
    free = [number for number in range(size) if number not in fixed.values()]
    learner = Tokenizer(BPE())
    learner.normalizer = Replace(" ", _SPACE)
    learner.pre_tokenizer = Split(Regex(_WORDS), "isolated")
    # Characters outside ASCII are left to the tokens of bytes. The space is a token already, and is learnt once more.
    trainer = BpeTrainer(vocab_size=len(free) + 1, show_progress=False)
    learner.train_from_iterator((text.encode("ascii", "ignore").decode() for text in texts), trainer)
    learnt = learner.get_vocab()
    news = [token for token in sorted(learnt, key=learnt.__getitem__) if token not in fixed]
    if len(news) != len(free):
        raise BuildError(
            f"{len(news)} tokens can be learnt from the text, and {len(free)} are wanted", where="tokenizer"
        )
    vocabulary = fixed | dict(zip(news, free, strict=True))
    content["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    content["model"]["merges"] = json.loads(learner.to_str())["model"]["merges"]
    return content
