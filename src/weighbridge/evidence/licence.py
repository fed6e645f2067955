"""The licence that a source declares in its own card or LICENSE file, and whether the recipe says the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weighbridge.errors import StructureError
from weighbridge.recipe import Recipe
from weighbridge.report import Finding, Section, Severity
from weighbridge.strict_yaml import parse_yaml
from weighbridge.structure.checkpoint import Checkpoint, read_small

CARD = "README.md"
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
FENCE = "---\n"

_TEXTS = {
    "apache-2.0": ("apache license", "version 2.0"),
    "mit": ("permission is hereby granted, free of charge, to any person obtaining a copy",),
    "gpl-3.0": ("gnu general public license", "version 3"),
    "cc-by-4.0": ("creative commons attribution 4.0",),
    "gemma": ("gemma terms of use",),
}
"""What a LICENSE file's text begins with, in lower case, for the licences that published models have most."""

_SPDX = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "gpl-3.0": "GPL-3.0-only",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
}


@dataclass(frozen=True)
class Declared:
    """A licence (the hub's identifier, in lower case) and what declares it: the card, or a LICENSE file."""

    licence: str
    file: str


def declared_licence(directory: Path, card: str = CARD) -> Declared | None:
    """What the card in a directory declares, or else its LICENSE file; None where neither says a licence known here.

    Raises:
        StructureError: one of the two cannot be read.
    """
    if (directory / card).is_file():
        metadata = card_metadata(read_small(directory / card, label=str(directory)), where=card)
        licence = metadata.get("license")
        if licence == "other":
            licence = metadata.get("license_name")
        if isinstance(licence, str) and licence:
            return Declared(licence.lower(), "card")
    for name in LICENCE_FILES:
        if (directory / name).is_file():
            beginning = read_small(directory / name, label=str(directory))[:4096].decode(errors="replace").lower()
            words = " ".join(beginning.split())
            for licence, marks in _TEXTS.items():
                if all(mark in words for mark in marks):
                    return Declared(licence, name)
    return None


def card_metadata(raw: bytes, *, where: str) -> dict[str, object]:
    """The YAML between the ``---`` lines at the top of a model card; empty where there is none.

    Raises:
        StructureError: it is no YAML mapping.
    """
    text = raw.decode(errors="replace").replace("\r\n", "\n")
    if not text.startswith(FENCE) or f"\n{FENCE}" not in text[len(FENCE) - 1 :]:
        return {}
    block = text[len(FENCE) :].partition(f"\n{FENCE}")[0]
    return parse_yaml(f"{block}\n".encode(), where=where, error=StructureError).value if block.strip() else {}


def spdx(licence: str) -> str | None:
    """SPDX's own spelling of a licence; None for one that SPDX has no identifier of, as far as is known here."""
    return _SPDX.get(licence.lower())


def licence_section(source: Checkpoint, recipe: Recipe) -> Section:
    """Hold the recipe's licence against the source's own declaration.

    Raises:
        StructureError: the source's card cannot be read.
    """
    assert source.directory is not None
    return judge_licence(recipe, declared_licence(source.directory))


def judge_licence(recipe: Recipe, declared: Declared | None) -> Section:
    """Hold the recipe's licence against what the source declares, if it declares any."""
    ours = recipe.base.licence
    if declared is None:
        finding = Finding(
            "licence/undeclared",
            Severity.WARNING,
            "base.licence",
            f"the source declares no licence in a card or LICENSE file, so {ours} is the recipe's word",
            remedy="look it up where the base is published",
        )
        return Section("the licence", f"{ours}, as the recipe says", findings=(finding,))
    if declared.licence != ours.lower():
        finding = Finding(
            "licence/other",
            Severity.ERROR,
            "base.licence",
            f"is {ours}, but the source's own {declared.file} declares {declared.licence}",
            remedy="write into the recipe what the source itself declares at the pinned revision",
        )
        return Section("the licence", f"{ours} is not what the source declares", findings=(finding,))
    return Section("the licence", f"{ours}, as the source's own {declared.file} declares")
