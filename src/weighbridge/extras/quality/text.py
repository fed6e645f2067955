"""Text to measure on, and the stretches of tokens that are taken from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weighbridge.errors import DatasetError
from weighbridge.recipe.quality import CARRIED_TEXTS
from weighbridge.samples.trained.text import held_out_text

CODE, ENGLISH = CARRIED_TEXTS
WINDOW = 256
"""Tokens of a window, a beginning-of-sequence token not counted."""

MAX_TEXT_BYTES = 256 * 1024 * 1024

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Text:
    """A text, and how reports call it."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of its UTF-8."""
        return hashlib.sha256(self.content.encode()).hexdigest()


@dataclass(frozen=True)
class Windows:
    """Stretches of a text, all of one length.

    Attributes:
        tokens: int64 [windows, tokens]; where the tokenizer begins a text with a token of its own, so does each window.
        text: what they are taken from.
    """

    tokens: Tokens
    text: Text


def open_text(name: str | None) -> Text:
    """A text that every environment carries, or a file.

    Args:
        name: ``code`` or None, the sources of Python's standard library that `weighbridge.samples.trained` holds out;
            ``english``, the manual of the language that Python's own help prints; or a UTF-8 file.

    Raises:
        DatasetError: the file cannot be read, or is no text.
    """
    if name in (None, CODE):
        return Text("held-out sources of Python's standard library", held_out_text())
    if name == ENGLISH:
        from pydoc_data.topics import topics

        return Text("the manual that Python's help prints", "\n\n".join(topics[topic] for topic in sorted(topics)))
    path = Path(str(name))
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TEXT_BYTES + 1)
        if len(raw) > MAX_TEXT_BYTES:
            raise DatasetError(f"is larger than {MAX_TEXT_BYTES:,} bytes", where=str(path), remedy="take a part of it")
        return Text(path.name, raw.decode())
    except OSError as error:
        what = f"the text cannot be read ({error.strerror})"
        raise DatasetError(what, where=str(path), remedy=f"name a file, or {CODE} or {ENGLISH}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"is not UTF-8 text (byte {error.start})", where=str(path)) from None


def take_windows(text: Text, tokenizer: Any, *, count: int) -> Windows:
    """Tokenize a text and take windows that do not overlap, spread evenly from its beginning to its end.

    Args:
        count: windows to take; all there are, where these are fewer.

    Raises:
        DatasetError: the text has not two windows.
    """
    ids = np.asarray(tokenizer(text.content, add_special_tokens=False, verbose=False)["input_ids"], np.int64)
    whole = len(ids) // WINDOW
    if whole < 2:
        what = f"has {len(ids):,} tokens; two windows of {WINDOW} are the least that an interval can be given for"
        raise DatasetError(what, where=text.name, remedy="take a longer text")
    chosen = np.unique(np.linspace(0, whole - 1, min(count, whole)).round().astype(np.int64))
    windows = ids[: whole * WINDOW].reshape(whole, WINDOW)[chosen]
    first = tokenizer("a")["input_ids"][:1]
    if tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]:
        windows = np.insert(windows, 0, tokenizer.bos_token_id, axis=1)
    return Windows(windows, text)
