"""What a calibration takes, as a section of a plan's report."""

from __future__ import annotations

from weighbridge.planning import Plan
from weighbridge.planning.calibrating import HELD, calibration_needs
from weighbridge.report import Section


def calibration_section(plan: Plan) -> Section:
    """Memory and disk, computed from what is known before a weight is read."""
    needs = calibration_needs(plan)
    facts: dict[str, str | int] = {
        "weights of the largest layer": f"{needs.layer:,} bytes",
        "memory at least (--memory)": f"{HELD + needs.memory:,} bytes",
        "beside the output on disk, about": f"{needs.disk:,} bytes",
    }
    calibration = plan.loaded.recipe.calibration if plan.loaded.recipe.needing_data else None
    if calibration is not None:
        tokens = calibration.samples * calibration.sequence_length
        facts["tokens at most"] = f"{tokens:,}, twice through each layer for each modifier that sees them"
    if needs.kept:
        facts["of it what AWQ holds of all samples"] = f"{needs.kept:,} bytes; with fewer samples, less"
    if needs.hessians:
        facts["Hessians of GPTQ at least"] = f"{needs.hessians:,} bytes; with more memory, more experts at a time"
    return Section(
        id="calibration-needs",
        title="what calibrating takes",
        summary=f"computed, not measured: {(HELD + needs.memory) / 2**30:.1f} GiB of memory, one layer at a time",
        facts=facts,
        judges=False,
    )
