"""Reading a report back from its JSON, as somebody else may have written it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from weighbridge.errors import StructureError
from weighbridge.report.findings import Report
from weighbridge.report.present import as_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def read_report(raw: bytes, *, where: str) -> Report:
    """Read what `as_json` wrote, and nothing else.

    Raises:
        StructureError: no report, or one that is written otherwise.
    """
    from pydantic import ValidationError  # most commands never read a report back

    try:
        report = _adapter().validate_json(raw)
    except (ValidationError, ValueError):
        raise StructureError("is no report", where=where) from None
    if as_json(report).encode() != raw:
        raise StructureError("is not written as Weighbridge writes it", where=where)
    return report


@cache
def _adapter() -> TypeAdapter[Report]:
    from pydantic import TypeAdapter

    return TypeAdapter(Report)
