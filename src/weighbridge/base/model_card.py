"""A model card and a LICENSE file: what a checkpoint says of itself in its front matter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weighbridge.checkpoint.model import read_small
from weighbridge.errors import StructureError
from weighbridge.text.strict_yaml import parse_yaml

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
