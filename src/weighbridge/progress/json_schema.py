"""The JSON Schema of an event of ``--progress json``: the events' own types, in a standard form."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from weighbridge.progress.shown import Event

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def progress_schema() -> dict[str, Any]:
    """What stands on one line. Every key is always there; more may come."""
    schema = TypeAdapter(Event).json_schema(mode="serialization")
    return {"$schema": DRAFT, "title": "An event", "description": "One line of --progress json.", **schema}


def write_progress_schema() -> str:
    """The schema as the repository publishes it."""
    return json.dumps(progress_schema(), indent=2) + "\n"
