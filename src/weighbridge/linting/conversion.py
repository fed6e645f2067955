"""Lint of what a conversion changes."""

from __future__ import annotations

from collections.abc import Iterator

from weighbridge.linting.rules import Raised
from weighbridge.planning import Plan
from weighbridge.text.patterns import pattern_list


def check(plan: Plan) -> Iterator[Raised]:
    """Entries that match nothing quantized, and conversions after which everything is as it was."""
    changes = plan.loaded.recipe.convert
    if changes is None:
        return
    patterns = pattern_list(tuple(changes.dequantize))
    matched = {index for module in plan.source.schemes for index in patterns.matches(module)}
    for index, entry in enumerate(changes.dequantize):
        if index not in matched:
            yield Raised(
                "convert/matches-nothing",
                f"{plan.loaded.location('convert', 'dequantize', index)} {entry}",
                "matches no module that is quantized in the source",
                "names are matched from their start, as in ignore: begin with re:.* and what is particular to them",
            )
    if not plan.obstacles and plan.predicted.structure == plan.source.structure:
        yield Raised(
            "convert/changes-nothing",
            plan.loaded.location("convert"),
            "every tensor would stay as it is",
            "name modules to dequantize, another format, or another layout of experts",
        )
