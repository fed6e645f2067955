"""Tables of what `benchmarks.compensation` recorded: python -m benchmarks.compensation_report RECORDS..."""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]

ROW_FIGURES = (
    "noise",
    "living noise",
    "inflation",
    "steps",
    "relative",
    "correlation",
    "projection",
    "pull",
    "moved",
    "moved 2",
    "moved 3",
    "largest move",
    "bias",
    "signs",
)
MODULE_FIGURES = (
    "noise",
    "living noise",
    "dead energy",
    "inflation",
    "relative",
    "correlation",
    "projection",
    "pull",
    "moved",
    "moved 2",
    "moved 3",
    "unexplained",
    "moved at rest",
    "lean at rest",
    "largest move",
    "bias",
    "signs",
    *(f"rows over {limit}" for limit in (8, 16, 32, 64, 128)),
    "row over module",
    "group noise",
    "column noise",
    "least column projection",
    "largest column projection",
    "column moved",
    "settled",
    "dead",
    "spectral share",
    "share of eight",
    "sketched share",
    "sketched share of eight",
    "widest group",
    "volume",
)


def read(paths: Iterable[str]) -> list[Record]:
    """All records of these files."""
    return [json.loads(line) for path in paths for line in Path(path).read_text().splitlines()]


def by(records: Iterable[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    """Records that agree in these keys, in order."""
    found: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        found[tuple(record.get(key) for key in keys)].append(record)
    return dict(sorted(found.items(), key=lambda item: tuple(map(str, item[0]))))


def figures(records: Sequence[Record], name: str) -> list[float]:
    """A figure of modules, where it could be had."""
    return [record[name] for record in records if name in record and math.isfinite(record[name] or 0)]


def of_rows(records: Sequence[Record], name: str, which: int) -> list[float]:
    """A figure of rows: 0 is the least of each module, 1 the median, 2 the 99.9th percentile, 3 the largest."""
    return [record["rows"][name][which] for record in records if name in record["rows"]]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all lies at or below."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def number(value: float) -> str:
    """Three digits, or more where there are more before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table in Markdown."""
    for row in (heads, ["---"] * len(heads), *rows):
        sys.stdout.write(f"| {' | '.join(number(cell) if isinstance(cell, float) else str(cell) for cell in row)} |\n")
    sys.stdout.write("\n")


def spread(title: str, records: Sequence[Record]) -> None:
    """Every figure of rows and of modules over all these records."""
    rows = sum(record["count"] for record in records)
    sys.stdout.write(f"### {title}: {len(records):,} modules, {rows:,} rows\n\n")
    found: list[list[Any]] = []
    for name in ROW_FIGURES:
        if not of_rows(records, name, 0):
            continue
        least, largest = min(of_rows(records, name, 0)), max(of_rows(records, name, 3))
        middle = statistics.median(of_rows(records, name, 1))
        found.append([f"row: {name}", least, middle, max(of_rows(records, name, 2)), largest])
    for name in MODULE_FIGURES:
        values = figures(records, name)
        if values:
            found.append(
                [f"module: {name}", min(values), statistics.median(values), percentile(values, 0.999), max(values)]
            )
    table(("figure", "least", "median", "99.9 % (rows: the largest of a module)", "largest"), found)


LARGEST = ("noise", "inflation", "row over module", "column noise", "group noise", "spectral share", "share of eight")


def grouped(title: str, records: Sequence[Record], *keys: str) -> None:
    """The largest of the figures that can be bounded, by setting."""
    sys.stdout.write(f"### {title}\n\n")
    heads = (*keys, "modules", "row noise: median", "99.9 %", "largest", "module noise: median", *LARGEST, "dead")
    found = []
    for group, members in by(records, *keys).items():
        rows = [
            statistics.median(of_rows(members, "noise", 1)),
            max(of_rows(members, "noise", 2)),
            max(of_rows(members, "noise", 3)),
        ]
        middle = statistics.median(figures(members, "noise"))
        most = [max(figures(members, name), default=math.nan) for name in LARGEST]
        dead = sum(1 for member in members if member["dead"])
        found.append([*group, f"{len(members):,}", *rows, middle, *most, dead])
    table(heads, found)


LEAST = (
    "noise",
    "inflation",
    "relative",
    "column noise",
    "spectral share",
    "share of eight",
    "sketched share",
    "volume",
    "correlation",
    "projection",
    "moved",
    "moved 3",
    "unexplained",
    "moved at rest",
    "lean at rest",
)


def attacked(records: Sequence[Record]) -> None:
    """What attacks leave: the weakest trace of each figure, beside the largest row."""
    sys.stdout.write(
        "### attacks: the least of each figure over modules (of correlation and projection the largest)\n\n"
    )
    found = []
    for group, members in by(records, "attack", "scheme").items():
        most = [
            (max if name in ("correlation", "projection") else min)(figures(members, name), default=math.nan)
            for name in LEAST
        ]
        found.append([*group, len(members), min(of_rows(members, "noise", 3)), *most])
    table(("attack", "scheme", "modules", "row noise: largest", *LEAST), found)


SMOOTH = (
    "projection",
    "coarseness",
    "noise",
    "relative",
    "spread",
    "spread in a group",
    "largest factor",
    "smallest factor",
    "deviation",
)


def smoothed(title: str, records: Sequence[Record], *keys: str) -> None:
    """Coarseness and factors, least, median and largest of each."""
    sys.stdout.write(f"### {title}\n\n")
    found = []
    for group, members in by(records, *keys).items():
        row = [
            " .. ".join(number(value) for value in _three(values)) if values else ""
            for values in (of_rows(members, "coarseness", 3), of_rows(members, "projection", 0))
        ]
        cells = [
            " .. ".join(number(value) for value in _three(values)) if values else ""
            for values in (figures(members, name) for name in SMOOTH)
        ]
        found.append([*group, len(members), *row, *cells])
    table((*keys, "modules", "row coarseness: largest", "row projection: least", *SMOOTH), found)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


def module_share(record: Record) -> float:
    """How much of the expected error's limit a module takes up, with a quarter to spare for what is not the mean."""
    limit = 1.25 * (1 + record.get("widest group", 1.0) / (4 * record["dampening"]))
    return float(record.get("living noise", record["noise"]) / limit)


def row_share(record: Record) -> float:
    """How much of today's limit, half of a widest step over the root of the dampening, the worst row takes up."""
    return float(record["rows"]["steps"][3] / (0.5 / record["dampening"] ** 0.5))


def projection_limits(record: Record) -> tuple[float, float]:
    """How far from one the projection onto the base may be: of a row, and of the whole module."""
    if "8" in record["scheme"].partition("-")[0]:
        return 0.2, 0.003
    dampening = record["dampening"]
    return (0.2, 0.06) if dampening >= 0.1 else (0.4, 0.06) if dampening >= 0.01 else (0.75, 0.12)


def row_projection_share(record: Record) -> float:
    """How much of its limit the row takes up whose projection is furthest from one."""
    least, _, _, largest = record["rows"]["projection"]
    return float(max(1 - least, largest - 1) / projection_limits(record)[0])


def module_projection_share(record: Record) -> float:
    """How much of its limit a module's projection takes up, dead columns left out."""
    living = record["projection"] / (1 - record.get("dead energy", 0.0))
    return float(abs(1 - living) / projection_limits(record)[1])


RELU = ("opt",)
"""Models whose activations are often zero, so that columns may be dead."""

BOUNDS: Mapping[str, Callable[[Record], float]] = {
    "row projection": row_projection_share,
    "module projection": module_projection_share,
    "module noise": module_share,
    "row steps (today)": row_share,
    "dead columns": lambda record: math.inf if record["dead"] and not record["model"].startswith(RELU) else 0.0,
}
"""Name -> how much of the limit a module takes up; what is above one is refused."""


def bounded(honest: Sequence[Record], attacks: Sequence[Record]) -> None:
    """How far honest modules stay below the proposed limits, and which attacks exceed which."""
    sys.stdout.write("### proposed limits: the largest share of each that an honest module takes up\n\n")
    living = [record for record in honest if "living noise" in record or not record["dead"]]
    found: list[list[Any]] = []
    for group, members in by(living, "scheme", "dampening").items():
        shares = [max(bound(record) for record in members) for bound in BOUNDS.values()]
        found.append([*group, f"{len(members):,}", *shares])
    table(("scheme", "dampening", "modules", *BOUNDS), found)
    sys.stdout.write("### proposed limits: modules refused after an attack, by each and by any\n\n")
    found = []
    for group, members in by(attacks, "attack", "scheme").items():
        caught = [sum(bound(record) > 1 for record in members) / len(members) for bound in BOUNDS.values()]
        any_of = sum(any(bound(record) > 1 for bound in BOUNDS.values()) for record in members) / len(members)
        found.append([*group, len(members), *(f"{share:.0%}" for share in (*caught, any_of))])
    table(("attack", "scheme", "modules", *BOUNDS, "any"), found)


_READS: Mapping[str, str] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "attention"),
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa"), "latent attention"),
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), "mlp"),
}
_LAYER = re.compile(r".*?layers\.\d+")


def family(module: str) -> str | None:
    """What linears have in common that read the same: layer, and which of its inputs; None where none else reads it."""
    layer, reads = _LAYER.match(module), _READS.get(module.rpartition(".")[2])
    if layer is None or reads is None:
        return None
    return f"{layer.group()} {'experts' if 'expert' in module else reads}"


def siblings(honest: Sequence[Record], attacks: Sequence[Record]) -> None:
    """How alike the noise is of linears that read the same input, and how an altered one stands out from them."""
    heads = ("groups", "median", "99 %", "largest")
    sys.stdout.write("### linears that read the same: the largest noise of a group over its least\n\n")
    settings = ("part", "model", "scheme", "dampening", "order", "tokens")
    groups = by(
        [{**record, "family": family(record["module"])} for record in honest if not record["dead"]],
        *settings,
        "family",
    )
    ratios: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for group, members in groups.items():
        if group[-1] is not None and len({member["module"] for member in members}) > 1:
            noises = figures(members, "noise")
            ratios[group[2], group[3]].append(max(noises) / min(noises))
    table(
        ("scheme", "dampening", *heads),
        ([*key, len(all_), statistics.median(all_), percentile(all_, 0.99), max(all_)] for key, all_ in ratios.items()),
    )
    sys.stdout.write("### an altered linear's noise over that of the nearest unaltered one that reads the same\n\n")
    unaltered: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in attacks:
        if record["attack"] == "nothing":
            unaltered[record["model"], record["scheme"], family(record["module"])].append(record)
    stands: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for record in attacks:
        kin = family(record["module"])
        others = [
            other["noise"]
            for other in unaltered[record["model"], record["scheme"], kin]
            if other["module"] != record["module"]
        ]
        if kin is not None and others:
            stands[record["attack"], record["scheme"]].append(min(record["noise"] / other for other in others))
    table(
        ("attack", "scheme", "modules", "least", "median", "largest"),
        ([*key, len(all_), *_three(all_)] for key, all_ in sorted(stands.items())),
    )


COARSENESS, RELATIVE = 8.0, 0.35
"""Proposed for smoothed modules: error over that of the base's own min-max rounding (of AWQ), and over the weight."""


def smoothing_bounded(honest: Sequence[Record], attacks: Sequence[Record]) -> None:
    """How far honest smoothed modules stay below the proposed limits, and which factors exceed them."""
    sys.stdout.write("### proposed limits of smoothed modules\n\n")
    found: list[list[Any]] = []
    for group, members in by(honest, "method").items():
        most = max(figures(members, "coarseness")) / COARSENESS
        found.append([*group, "", len(members), most, max(figures(members, "relative")) / RELATIVE, ""])
    for group, members in by(attacks, "attack", "scheme").items():
        coarse, far = ([record[name] for record in members] for name in ("coarseness", "relative"))
        caught = sum(one > COARSENESS or other > RELATIVE for one, other in zip(coarse, far, strict=True))
        found.append(
            [*group, len(members), min(coarse) / COARSENESS, min(far) / RELATIVE, f"{caught / len(members):.0%}"]
        )
    heads = ("method or factors", "scheme", "modules", "coarseness over limit", "relative error over limit", "refused")
    table((*heads[:3], f"{heads[3]} (honest: largest, others: least)", *heads[4:]), found)


def report(records: Iterable[Record]) -> None:
    """Write all tables."""
    parts = by(records, "part")
    modules, builds = parts.get(("modules",), []), parts.get(("builds",), [])
    honest = [*modules, *builds]
    settings = by(modules, "model", "scheme", "dampening", "order", "tokens")
    sys.stdout.write(
        f"{len(settings):,} settings of models by quantize_weight, {len(modules):,} modules; "
        f"{len(by(builds, 'model', 'scheme')):,} whole builds with GPTQ, {len(builds):,} modules; "
        f"{len(by(parts.get(('smoothing',), []), 'model', 'method', 'scheme')):,} with AWQ or SmoothQuant\n\n"
    )
    if honest:
        spread("honest, all", honest)
        grouped("honest, by dampening and tokens", honest, "dampening", "tokens")
        grouped("honest, by scheme", honest, "scheme")
        grouped("honest, by scheme and dampening", honest, "scheme", "dampening")
        grouped("honest, by model", honest, "model")
        grouped("honest, by order", honest, "order")
    if builds:
        grouped("whole builds alone", builds, "scheme", "dampening")
        grouped("modules alone, of the settings that builds have", modules, "scheme", "dampening", "tokens")
    if ("attacks",) in parts:
        attacked(parts[("attacks",)])
        bounded(honest, parts[("attacks",)])
        siblings(honest, parts[("attacks",)])
    if ("smoothing",) in parts:
        smoothed("smoothing, honest", parts[("smoothing",)], "method", "scheme")
        smoothed("smoothing, honest, by model", parts[("smoothing",)], "model")
    if ("factors",) in parts:
        smoothed("factors that no method gives", parts[("factors",)], "scheme", "attack")
        smoothing_bounded(parts.get(("smoothing",), []), parts[("factors",)])


def main() -> None:
    """Entry point."""
    report(read(sys.argv[1:]))


if __name__ == "__main__":
    main()
