"""Calibration samples: rows rendered as text, tokenized by the model's own tokenizer, and put into batches."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

from weighbridge.engines.oneshot.dataset import Rows, choose_rows
from weighbridge.errors import DatasetError
from weighbridge.recipe.calibration import Calibration


@dataclass(frozen=True)
class Samples:
    """What a model will see.

    Attributes:
        rows: where it comes from.
        chosen: which rows, from 0, in the order in which they were drawn.
        token_ids: the token ids of each.
    """

    rows: Rows
    chosen: tuple[int, ...]
    token_ids: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.token_ids))

    @property
    def sha256(self) -> str:
        """SHA-256 over every sample in its order: its number of tokens, then their ids, each as four bytes
        (little-endian)."""
        digest = hashlib.sha256()
        for ids in self.token_ids:
            digest.update(struct.pack(f"<{1 + len(ids)}I", len(ids), *ids))
        return digest.hexdigest()

    def batches(self, size: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Batches of at most `size` samples of one length, in the order in which they are full, the rest last.

        Padding is observed like text by every hook of llm-compressor, and its other collator cuts a batch to its
        shortest sample; samples of one length need neither.
        """
        full: list[tuple[tuple[int, ...], ...]] = []
        filling: dict[int, list[tuple[int, ...]]] = {}
        for ids in self.token_ids:
            batch = filling.setdefault(len(ids), [])
            batch.append(ids)
            if len(batch) == size:
                full.append(tuple(filling.pop(len(ids))))
        return (*full, *map(tuple, filling.values()))


def take_samples(calibration: Calibration, rows: Rows) -> tuple[tuple[int, ...], list[Any]]:
    """The rows that the calibration's seed chooses, and their values.

    Raises:
        DatasetError: fewer rows than samples are asked for, or a value that is neither text nor, for
            ``render: chat``, a list of messages.
    """
    if rows.count < calibration.samples:
        raise DatasetError(
            f"has {rows.count:,} rows, and {calibration.samples:,} samples are asked for",
            where=rows.name,
            remedy="lower calibration.samples, or name a larger data set",
        )
    chosen = choose_rows(rows.count, calibration.samples, calibration.seed)
    values = rows.take(chosen)
    for row, value in zip(chosen, values, strict=True):
        problem = _problem(value, calibration)
        if problem:
            where = f"{rows.name}, row {row:,}"
            raise DatasetError(problem, where=where, remedy="check calibration.dataset.column and calibration.render")
    return chosen, values


def make_samples(calibration: Calibration, rows: Rows, tokenizer: Any) -> Samples:
    """Render and tokenize the chosen rows.

    Text gets the special tokens that the tokenizer adds of itself; what a chat template renders has its own already.

    Raises:
        DatasetError: as `take_samples`; or a row that renders to nothing, or that the chat template refuses.
    """
    chosen, values = take_samples(calibration, rows)
    chat = calibration.render == "chat"
    if chat and getattr(tokenizer, "chat_template", None) is None:
        raise DatasetError("the model has no chat template", where="calibration.render", remedy="say render: text")
    token_ids = []
    for row, value in zip(chosen, values, strict=True):
        text = _rendered(value, tokenizer, where=f"{rows.name}, row {row:,}") if chat else value
        ids = tokenizer(text, add_special_tokens=not chat, truncation=True, max_length=calibration.sequence_length)[
            "input_ids"
        ]
        if not text.strip() or not ids:
            raise DatasetError("renders to no text", where=f"{rows.name}, row {row:,}", remedy="take such rows out")
        token_ids.append(tuple(map(int, ids)))
    return Samples(rows, chosen, tuple(token_ids))


def _rendered(messages: list[dict[str, Any]], tokenizer: Any, *, where: str) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise DatasetError(f"the chat template refuses it ({error})", where=where) from error
    return text


def _problem(value: object, calibration: Calibration) -> str:
    if calibration.render == "text":
        return "" if isinstance(value, str) else f"is no text but {_kind(value)}"
    if not isinstance(value, list):
        return f"is no list of messages but {_kind(value)}"
    if not value:
        return "is a list without messages"
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            return "holds a message without role and content"
    return ""


def _kind(value: object) -> str:
    names = {str: "text", list: "a list", dict: "a mapping", type(None): "nothing", bool: "true or false"}
    return names.get(type(value), "a number")
