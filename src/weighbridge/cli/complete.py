"""What a shell may complete an argument to; argcomplete asks. Recipes and locks are listed by name, none is opened."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable

Words = Callable[[], Iterable[str]]


def complete(action: argparse.Action, *words: Words) -> None:
    """Let an argument be completed to some words, and to files."""

    def completer(prefix: str, **_: object) -> list[str]:
        from argcomplete.completers import FilesCompleter

        found = [word for some in words for word in some() if word.startswith(prefix)]
        return [*found, *FilesCompleter()(prefix)]

    action.completer = completer  # type: ignore[attr-defined]


def recipes() -> list[str]:
    """The catalogue's recipes: those of the main model by their short names, and all by their whole ones."""
    from weighbridge.recipe.catalogue import MAIN_MODEL, recipe_names

    names = recipe_names()
    return [*(name.removeprefix(f"{MAIN_MODEL}/") for name in names if name.startswith(f"{MAIN_MODEL}/")), *names]


def locks() -> list[str]:
    """The structure locks of published checkpoints, by path."""
    from weighbridge.base.locks import REFERENCES

    return sorted(os.path.relpath(path) for path in REFERENCES.rglob("*.yaml"))
