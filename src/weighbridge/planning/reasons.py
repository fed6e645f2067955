"""Why a plan decides as it does: the rule behind every tensor, and what the recipe's comments say of it."""

from __future__ import annotations

from dataclasses import replace

from weighbridge.planning.model import Decision, Plan
from weighbridge.recipe import LoadedRecipe


def rules_by_tensor(plan: Plan) -> dict[str, str]:
    """What decided how each output tensor is stored, by its name; a recipe's entry with its file's name and line."""
    called = {decision: _called(decision) for decision in {part.decision for part in plan.parts}}
    return {name: called[part.decision] for part in plan.parts for name in part.outputs}


def reasons(plan: Plan) -> dict[str, str]:
    """What the recipe's comments say, by what `rules_by_tensor` calls the entry beneath them."""
    comments = _comments(plan.loaded)
    said = {_called(one): comments.get(one.place, "") for one in dict.fromkeys(part.decision for part in plan.parts)}
    return {called: words for called, words in said.items() if words}


def _called(decision: Decision) -> str:
    """A decision without the directory that the recipe lies in: that is nobody's business who reads it elsewhere."""
    return str(replace(decision, place=decision.place.rpartition("/")[2]))


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
