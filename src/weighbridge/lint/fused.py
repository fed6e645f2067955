"""Lint of fused groups: linears that servers merge into one, and which must therefore be quantized alike."""

from __future__ import annotations

from collections.abc import Iterator

from weighbridge.lint.rules import Raised
from weighbridge.plan import Plan
from weighbridge.schemes import Scheme
from weighbridge.structure.names import compact


def check(plan: Plan) -> Iterator[Raised]:
    """Groups that are partly kept, quantized by different schemes, or lack a member."""
    partly: dict[str, list[str]] = {}
    differing: dict[str, list[str]] = {}
    lacking: dict[str, list[str]] = {}
    for parent, members, absent in plan.fused_groups:
        schemes: dict[str, Scheme | None] = {member: plan.schemes.get(f"{parent}.{member}") for member in members}
        kept = [member for member, scheme in schemes.items() if scheme is None]
        quantized = [member for member, scheme in schemes.items() if scheme is not None]
        if kept and quantized:
            partly.setdefault(f"{', '.join(quantized)} quantized, {', '.join(kept)} kept", []).append(parent)
        elif len(set(schemes.values())) > 1:
            differing.setdefault(", ".join(members), []).append(parent)
        if absent and quantized:
            lacking.setdefault(f"has {', '.join(members)} and no {', '.join(absent)}", []).append(parent)
    for what, parents in partly.items():
        for pattern in compact(parents):
            remedy = "keep all of them or none: servers load them as one matrix"
            yield Raised("fused/partly-ignored", str(pattern), what, remedy, len(pattern))
    for what, parents in differing.items():
        for pattern in compact(parents):
            yield Raised(
                "fused/schemes-differ", str(pattern), f"{what} have different schemes", "give them one", len(pattern)
            )
    for what, parents in lacking.items():
        for pattern in compact(parents):
            yield Raised(
                "fused/lacks-member", str(pattern), f"{what}: servers use the keys as values", "", len(pattern)
            )
