"""How the miniature is calibrated: with its own text, and as little of it as ten million parameters need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from weighbridge.samples.miniature.text import exchanges

FILE = "gemma-4-mini.jsonl"

COLUMNS: Mapping[str, str] = {"chat": "messages", "text": "text"}
"""How a recipe renders its rows -> the column of the file that has them so."""

LIMITS: Mapping[str, int] = {"samples": 32, "sequence_length": 128, "batch_size": 8, "least_tokens": 16}
"""What is enough: a calibration takes seconds on a CPU. A recipe that asks for less gets less."""


def write_texts(directory: Path) -> None:
    """Write the texts as a data set of one file, with a column for each way of rendering them."""
    rows = (
        {
            COLUMNS["chat"]: [
                {"role": "user", "content": pair.question},
                {"role": "assistant", "content": pair.answer},
            ],
            COLUMNS["text"]: f"{pair.question} {pair.answer}",
        }
        for pair in exchanges()
    )
    (directory / FILE).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
