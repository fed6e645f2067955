"""Names under which tools once wrote quantized weights, and which no server's loader reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from weighbridge.formats.tensors import Structure
from weighbridge.report import Finding, Severity
from weighbridge.text.names import compact

_PROJECTION_FIRST = re.compile(
    r"(?P<experts>(?:^|.*\.)experts)\.(?P<projection>(?:gate|up|down|gate_up)_proj|w[123])\.(?P<expert>[0-9]+)\."
)
_QUANTIZER = re.compile(r".*\.(?P<kind>(?:weight|input|output|bias)_quantizer)\.\w+$")


def foreign_names(structure: Structure) -> list[Finding]:
    """One finding for each way of naming that no loader reads: it goes on with what lay in memory, or stops."""
    return [*_projection_first(structure), *_quantizers(structure)]


def _projection_first(structure: Structure) -> Iterator[Finding]:
    """``experts.gate_proj.0.weight``, as modelopt 0.43 wrote Qwen3-VL-MoE, for ``experts.0.gate_proj.weight``."""
    projections: set[str] = set()
    names: set[str] = set()
    for name in structure:
        match = _PROJECTION_FIRST.match(name)
        if match is not None:
            projections.add(match["projection"])
            names.add(f"{match['experts']}.PROJECTION.{match['expert']}")
    if not names:
        return
    first, beside = _first_of(names)
    spelled = "|".join(sorted(projections))
    pattern = f"{first.replace('PROJECTION', f'({spelled})')}.*"
    yield Finding(
        "names/expert-after-projection",
        Severity.ERROR,
        pattern,
        f"no loader reads these names: an expert's number stands before its projection (experts.0.gate_proj){beside}",
        count=sum(1 for name in structure if _PROJECTION_FIRST.match(name)),
        remedy="rename the tensors, or export again with another version of the tool",
    )


def is_quantizers(name: str) -> bool:
    """Whether a tensor's name is that of a tool's quantizer object."""
    return _QUANTIZER.match(name) is not None


def _quantizers(structure: Structure) -> Iterator[Finding]:
    """``weight_quantizer.scale``, a tool's own quantizer objects, for ``weight_scale``."""
    names = [name for name in structure if is_quantizers(name)]
    if names:
        first, beside = _first_of(names)
        yield Finding(
            "names/quantizer-objects",
            Severity.ERROR,
            first,
            f"no server reads this name, which is that of a quantizer inside a tool{beside}; vLLM stops at it",
            count=len(names),
            remedy="export the checkpoint as the tool does for servers (weight_scale, input_scale, output_scale)",
        )


def _first_of(names: Iterable[str]) -> tuple[str, str]:
    """The first pattern of some names, and a clause that counts the others."""
    first, *more = map(str, compact(names))
    return first, f" (and {len(more)} more such patterns)" if more else ""
