"""Throughput as a report: tables as published cards have them, source beside build."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from weighbridge.extras.endpoint.server import Endpoint
from weighbridge.extras.endpoint.throughput import Figures, Measured
from weighbridge.report import Report, Section, Table

SOURCE, BUILD = "source", "build"
Row = tuple[str | int | float, ...]


def report_throughput(sides: Mapping[str, Endpoint], measured: Sequence[Measured], *, client: str) -> Report:
    """What was measured: one request at a time, and by concurrency; medians of the rounds, and how far these lie apart.

    Args:
        sides: ``build``, and ``source`` where it was asked too.
        measured: every side under every load, the first load of one request at a time.
        client: who put the load on, in words.
    """
    load = measured[0].load
    facts: dict[str, str | int] = {side: f"{endpoint.model} at {endpoint.url}" for side, endpoint in sides.items()}
    tokens = sum(figures.input_tokens for one in measured for figures in one.rounds)
    requests = sum(one.load.requests * len(one.rounds) for one in measured)
    facts |= {
        "client": client,
        "a request": f"{tokens / requests:,.0f} tokens in, {load.output_tokens:,} out",
        "rounds": f"{len(measured[0].rounds)}, the sides in turns",
    }
    single = Section(
        id="throughput-single",
        title="one request at a time",
        summary=_sentence(_at(measured, load.concurrency)),
        facts=facts,
        tables=(_single(_at(measured, load.concurrency)),),
    )
    most = max(one.load.concurrency for one in measured)
    many = Section(
        id="throughput-concurrent",
        title="by concurrency",
        summary=_sentence(_at(measured, most)),
        tables=(_by_concurrency(measured, tuple(sides)),),
    )
    build = sides[BUILD]
    verdict = f"{build.model}: {single.summary}; {many.summary}"
    return Report("bench-serve", build.url, verdict, (single, many))


def _at(measured: Sequence[Measured], concurrency: int) -> dict[str, Measured]:
    return {one.side: one for one in measured if one.load.concurrency == concurrency}


def _sentence(sides: Mapping[str, Measured]) -> str:
    """Tokens a second of the build, and how that compares."""
    build = sides[BUILD]
    at_once = build.load.concurrency
    figure = Figures.rate if at_once == 1 else Figures.throughput
    says = f"{build.middle(figure):,.1f} tokens a second"
    says += f" with {at_once:,} requests at once" if at_once > 1 else ""
    return says + "".join(f", {ratio:.2f} times the source's" for ratio in _compared(sides, figure))


def _single(sides: Mapping[str, Measured]) -> Table:
    """One row for each figure of a request that has the server to itself."""
    ordered = [side for side in (SOURCE, BUILD) if side in sides]
    rows: list[Row] = [
        (name, *(sides[side].middle(figure) for side in ordered), *_compared(sides, figure))
        for name, figure in (("time to first token, ms", Figures.first_ms), ("tokens a second", Figures.rate))
    ]
    return Table(("figure", *ordered, *_comparison(sides)), tuple(rows))


def _by_concurrency(measured: Sequence[Measured], sides: Sequence[str]) -> Table:
    """One row for each number of requests at once."""
    ordered = [side for side in (SOURCE, BUILD) if side in sides]
    columns = (
        "at once",
        *(f"{side}: tokens a second" for side in ordered),
        *_comparison(ordered),
        *(f"{side}: first token, ms" for side in ordered),
        *(f"{side}: 99th percentile, ms" for side in ordered),
        "spread",
    )
    rows: list[Row] = []
    for concurrency in dict.fromkeys(one.load.concurrency for one in measured):
        at = _at(measured, concurrency)
        rows.append(
            (
                concurrency,
                *(at[side].middle(Figures.throughput) for side in ordered),
                *_compared(at, Figures.throughput),
                *(at[side].middle(Figures.first_ms) for side in ordered),
                *(at[side].middle(Figures.first_slow_ms) for side in ordered),
                f"{max(map(_spread, at.values())):.0%}",
            )
        )
    return Table(columns, tuple(rows))


def _comparison(sides: Mapping[str, Measured] | Sequence[str]) -> tuple[str, ...]:
    """The column that there is where there are two sides."""
    return ("build / source",) if SOURCE in sides else ()


def _compared(sides: Mapping[str, Measured], figure: Callable[[Figures], float]) -> tuple[float, ...]:
    """What stands in that column."""
    return (sides[BUILD].middle(figure) / sides[SOURCE].middle(figure),) if SOURCE in sides else ()


def _spread(one: Measured) -> float:
    """How far the slowest round lies from the fastest, as a share of the median."""
    found = [figures.throughput() for figures in one.rounds]
    return (max(found) - min(found)) / one.middle(Figures.throughput)
