"""The miniature's own calibration text: English prose put together from word lists by hashes, the same everywhere.

It stands in for the data set that a recipe names, where there is no network or where thousands of samples are too many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

COUNT = 256

_ADJECTIVES = (
    *("heavy", "light", "hollow", "loaded", "rusty", "polished", "narrow", "broad", "quiet", "noisy"),
    *("stubborn", "careful", "hasty", "patient", "northern", "sudden", "late", "wooden", "brass", "blue"),
)
_NOUNS = (
    *("lorry", "driver", "scale", "bridge", "ticket", "keeper", "load", "wheel", "gate", "lamp"),
    *("harbour", "river", "quarry", "mill", "baker", "ledger", "clerk", "barrel", "crate", "market"),
    *("winter", "morning", "storm", "field", "village", "road", "signal", "motor", "cart", "stone"),
)
_VERBS = (
    *("weighs", "passes", "follows", "carries", "checks", "waits for", "pays for", "repairs", "lifts", "sells"),
    *("measures", "loses", "finds", "remembers", "trusts", "counts", "signs for", "complains about"),
)
_PLACES = (
    *("at the border", "behind the mill", "before sunrise", "after the rain", "on the old road", "near the quay"),
    *("in the yard", "across the river", "without a word", "for the third time", "under the lamp", "by hand"),
)
_QUESTIONS = (
    "Why does the {0} {1} stand still {3}?",
    "What would a {0} {1} weigh {3}?",
    "Who {2} the {1} {3}, and how often?",
    "How do I tell a {0} {1} from another one?",
    "Can you write three lines about a {1} that {2} the {4}?",
    "List what a {1} needs when it {2} a {0} {4}.",
)
_SENTENCES = (
    "The {0} {1} {2} the {4} {3}.",
    "Every {1} {2} a {0} {4}, and nobody asks why.",
    "When the {1} {2} the {4}, it is {0} and {5} kilograms too much.",
    "Ticket {5}: one {0} {1}, {6} crates, weighed {3}.",
    "If a {0} {1} {2} nothing, the {4} stays empty {3}.",
    '"{5} or {6}?" asks the {1}; the {4} only {2} the {0} one.',
    "First the {1}, then the {4}: that is how it is done {3}.",
    "There were {6} of them, each {0}, and one {1} {2} them all.",
)


@dataclass(frozen=True)
class Exchange:
    """A question and its answer: what a sample is made of."""

    question: str
    answer: str


def exchanges() -> tuple[Exchange, ...]:
    """All `COUNT` samples; an answer has between three and seven sentences."""
    return tuple(_exchange(number) for number in range(COUNT))


def _exchange(number: int) -> Exchange:
    draw = _draws(f"exchange {number}")
    answer = [_filled(_SENTENCES, _draws(f"exchange {number} sentence {index}")) for index in range(3 + draw[0] % 5)]
    return Exchange(_filled(_QUESTIONS, draw[1:]), " ".join(answer))


def _filled(templates: Sequence[str], draw: Sequence[int]) -> str:
    lists = (templates, _ADJECTIVES, _NOUNS, _VERBS, _PLACES, _NOUNS)
    template, *words = (words[number % len(words)] for words, number in zip(lists, draw, strict=False))
    return template.format(*words, draw[6] % 40_000, draw[7] % 90)


def _draws(label: str) -> tuple[int, ...]:
    """Ten integers below 2**24 that `label` determines."""
    digest = hashlib.sha256(label.encode()).digest()
    return tuple(int.from_bytes(digest[start : start + 3], "little") for start in range(0, 30, 3))
