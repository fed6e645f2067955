"""Names that a file of a checkpoint may have, so that whoever writes a list of files and whoever reads it agree.

The list of digests, Model Signing, git, the hub and its client are each particular in their own way. A name that one of
them refuses, or would read as another, is refused here, by who builds a checkpoint and by who judges its evidence.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from weighbridge.errors import StructureError

MAX_NAME = 1024
"""Characters of a name with its folders, which is what the hub's paths are bounded by here."""
MAX_PART = 255
"""Bytes of a file's or folder's own name: the limit of the common file systems."""
KEPT_BY_OTHERS = frozenset({".git", ".cache"})
"""Folders that the hub's client leaves out or refuses, wherever they lie (``FORBIDDEN_FOLDERS`` of huggingface_hub)."""


def fault_of(name: str) -> str:
    """What keeps a name, relative to the checkpoint, from being listed and read back; empty where nothing does."""
    parts = name.split("/")
    sizes = [len(part.encode(errors="surrogatepass")) for part in parts]
    faults = {
        "is not UTF-8": any("\ud800" <= character <= "\udfff" for character in name),
        "has a line break or another character that is not printable": not name.isprintable(),
        "is no path within a checkpoint": any(part in ("", ".", "..") for part in parts),
        "has a backslash, which some take for a folder's end": "\\" in name,
        "begins or ends with a blank": any(part != part.strip() for part in parts),
        f"is longer than {MAX_NAME:,} characters, or {MAX_PART} bytes between its slashes": len(name) > MAX_NAME
        or max(sizes) > MAX_PART,
    }
    return next((fault for fault, so in faults.items() if so), "")


def check_file_names(names: Iterable[str], *, where: str) -> None:
    """Refuse names that cannot be listed, or that some file systems take for one another.

    Raises:
        StructureError: with the first such name.
    """
    seen: dict[str, str] = {}
    for name in sorted(names):
        fault = fault_of(name)
        if fault:
            raise StructureError(f"holds a file whose name {fault}: {name!r}", where=where, remedy=_RENAME)
        parts = name.split("/")
        for spelled in ("/".join(parts[:end]) for end in range(1, len(parts) + 1)):
            other = seen.setdefault(_folded(spelled), spelled)
            if other != spelled:
                what = f"holds {other!r} and {spelled!r}, which are one name where case does not count"
                raise StructureError(what, where=where, remedy=_RENAME)


_RENAME = "rename it or take it out"


def check_publishable(names: Iterable[str], *, where: str) -> None:
    """Refuse files that the hub would not take, beside what `check_file_names` refuses.

    Raises:
        StructureError: with the first such name.
    """
    for name in sorted(names):
        kept = KEPT_BY_OTHERS & set(name.split("/"))
        if kept:
            what = f"would carry {name!r}, and the hub takes nothing of a folder {min(kept)}"
            raise StructureError(what, where=where, remedy="leave it behind, or put it elsewhere")


def _folded(name: str) -> str:
    """A name as file systems know it that regard neither case nor how an accent is composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
