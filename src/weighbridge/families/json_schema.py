"""The JSON Schema of descriptors, by which editors complete and check them."""

from __future__ import annotations

import json
from typing import Any

from weighbridge.families.descriptor import Descriptor

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def family_schema() -> dict[str, Any]:
    """What a descriptor of a family may say."""
    return {"$schema": DRAFT, **Descriptor.model_json_schema(), "title": "A family of models"}


def write_family_schema() -> str:
    """The schema as the repository publishes it."""
    return json.dumps(family_schema(), indent=2) + "\n"
