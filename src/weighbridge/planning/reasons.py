"""Why a plan decides as it does: the rule behind every tensor, and what the recipe's comments say of it."""

from __future__ import annotations

import re

from weighbridge.planning.model import Plan
from weighbridge.recipe import LoadedRecipe

_PLACE = re.compile(r" \((?P<place>(?:[^()]*/)?(?P<file>[^()/]+:\d+))\)$")
"""The end of a rule that a recipe's entry made: file and line of it."""


def rules_by_tensor(plan: Plan) -> dict[str, str]:
    """What decided how each output tensor is stored, by its name; a recipe's entry with its file's name and line."""
    called = {rule: _called(rule) for rule in {part.rule for part in plan.parts}}
    return {name: called[part.rule] for part in plan.parts for name in part.outputs}


def reasons(plan: Plan) -> dict[str, str]:
    """What the recipe's comments say, by what `rules_by_tensor` calls the entry beneath them."""
    comments = _comments(plan.loaded)
    places = {rule: _PLACE.search(rule) for rule in dict.fromkeys(part.rule for part in plan.parts)}
    said = {_called(rule): comments.get(place["place"], "") for rule, place in places.items() if place is not None}
    return {rule: words for rule, words in said.items() if words}


def _called(rule: str) -> str:
    """A rule without the directory that the recipe lies in: that is nobody's business who reads it elsewhere."""
    return _PLACE.sub(r" (\g<file>)", rule)


def _comments(loaded: LoadedRecipe) -> dict[str, str]:
    """The comment right above each key and item of a recipe, by its file and line."""
    lines = loaded.raw.decode().splitlines()
    found = {}
    for path, line in loaded.document.lines.items():
        first = line - 1
        while first and lines[first - 1].lstrip().startswith("#"):
            first -= 1
        words = (comment.strip().lstrip("#").strip() for comment in lines[first : line - 1])
        found[loaded.document.place(path)] = " ".join(words)
    return found
