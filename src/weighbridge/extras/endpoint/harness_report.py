"""Scores of the harness as a report: source beside build, and what share is retained, as published cards have it."""

from __future__ import annotations

from collections.abc import Sequence

from weighbridge.extras.endpoint.harness import Harness, Score, Setting, generation_of, retained
from weighbridge.extras.endpoint.server import Endpoint
from weighbridge.report import Report, Section, Table

Cell = str | int | float
ALONE = ("metric", "answer found by", "build, %", "standard error")
COMPARED = (*ALONE[:2], "source, %", "standard error", *ALONE[2:], "retained, %", "standard error")


def report_scores(
    build: Endpoint,
    tasks: Sequence[tuple[Setting, Sequence[Score], Sequence[Score] | None]],
    harness: Harness,
) -> Report:
    """One section a task.

    Args:
        build: the server that serves the build.
        tasks: each with the build's scores, and the source's or None.
    """
    sections = tuple(_section(setting, mine, theirs, harness) for setting, mine, theirs in tasks)
    verdict = "; ".join(f"{section.title}: {section.summary}" for section in sections)
    return Report("evaluate-tasks", build.model, verdict, sections)


def _section(setting: Setting, build: Sequence[Score], source: Sequence[Score] | None, harness: Harness) -> Section:
    first = build[0]
    if source is None:
        summary = f"{first.metric} {_percent(first.value)}"
        table = Table(ALONE, tuple((score.metric, score.filter, *_figure(score)) for score in build))
    else:
        pairs = _pairs(source, build)
        share = retained(*pairs[0]).share
        summary = f"{first.metric} {_percent(first.value)}" + (f", {_percent(share)} of the source's" if share else "")
        table = Table(COMPARED, tuple(_compared(*pair) for pair in pairs))
    return Section("task", setting.task, summary, facts=_facts(setting, first, harness), tables=(table,))


def _pairs(source: Sequence[Score], build: Sequence[Score]) -> list[tuple[Score, Score]]:
    """Both sides' scores of the same metric and filter."""
    theirs = {(score.metric, score.filter): score for score in source}
    return [(theirs[score.metric, score.filter], score) for score in build if (score.metric, score.filter) in theirs]


def _compared(source: Score, build: Score) -> tuple[Cell, ...]:
    kept = retained(source, build)
    share, error = ("" if figure is None else 100 * figure for figure in (kept.share, kept.error))
    return build.metric, build.filter, *_figure(source), *_figure(build), share, error


def _figure(score: Score) -> tuple[Cell, Cell]:
    return 100 * score.value, "" if score.error is None else 100 * score.error


def _facts(setting: Setting, score: Score, harness: Harness) -> dict[str, str | int]:
    way = "the server's chat template" if harness.tokenizer is None else "plain text, without a chat template"
    return {
        "questions": score.questions,
        "examples before each": "as the task says" if setting.shots is None else setting.shots,
        "asked through": way,
        "generation": ", ".join(f"{key}={value}" for key, value in generation_of(setting, harness).items())
        or "as the task says",
        "set up as": setting.basis,
        "harness": f"lm-eval {score.version}".strip(),
    }


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"
