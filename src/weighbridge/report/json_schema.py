"""The JSON Schema of a report in ``--format json``: the findings tree's own types, in a standard form."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from weighbridge.report.findings import JSON_VERSION, Report


def report_schema() -> dict[str, Any]:
    """What `as_json` writes: every key is always there; more may come without a new ``schema_version``."""
    schema = TypeAdapter(Report).json_schema(mode="serialization")
    holds = {"type": "boolean", "description": "No finding in it is an error."}
    schema["$defs"]["Section"]["properties"]["holds"] = holds
    schema["properties"] = {
        "schema_version": {
            "const": JSON_VERSION,
            "description": "Of this form; another number where a reader would have to change.",
        },
        **schema["properties"],
        "holds": holds,
    }
    for part in (schema, *schema["$defs"].values()):
        if "properties" in part:
            part["required"] = list(part["properties"])
    return {**schema, "title": "A report"}
