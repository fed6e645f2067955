"""Tasks of the Language Model Evaluation Harness against a running server, set up as published cards set them up.

The harness runs as a process of its own, in this environment or another; what it asks and how is written into a file
for it, and what it found is read strictly. It takes its tasks' data from the hub, or from files that a task names.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import hypot
from pathlib import Path
from typing import Any

from weighbridge.errors import Argument, Clause, StructureError, WeighbridgeError
from weighbridge.extras.endpoint.elsewhere import run_elsewhere
from weighbridge.extras.endpoint.server import Endpoint
from weighbridge.text.strict_json import parse_object

MAX_RESULT_BYTES = 1 << 26
SEED = 1234
"""Of RedHatAI's card, for all of the harness's generators."""
RETRIES, TIMEOUT = 3, 2400
"""Of the same card: attempts at a request, and seconds for one."""


class HarnessError(WeighbridgeError):
    """The harness could not be run, or did not give what was asked of it."""


@dataclass(frozen=True)
class Setting:
    """How a task is asked.

    Attributes:
        task: the harness's name of it.
        shots: worked examples before each question; None for as many as the task says.
        generation: keys of the request that replace the task's own.
        basis: how this is known: ``seen`` on a card, ``derived`` from one, or ``the harness's own``.
    """

    task: str
    shots: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    basis: str = "the harness's own"


_SAMPLED = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 64, "max_gen_toks": 64000, "seed": SEED}
"""How RedHatAI's card has Gemma 4 generate: Google's recommended sampling, with room to think."""

PUBLISHED: Mapping[str, Setting] = {
    setting.task: setting
    for setting in (
        Setting("gsm8k_platinum_cot_llama", 5, _SAMPLED, "seen on the card of RedHatAI/gemma-4-31B-it-FP8-dynamic"),
        Setting(
            "mmlu_pro", 5, _SAMPLED, "derived: 5 shots on a card that follows RedHatAI's 31B; the rest as for GSM8K"
        ),
        Setting("ifeval", 0, _SAMPLED, "derived: the harness's 0 shots, generated as RedHatAI's card has GSM8K"),
        Setting(
            "gsm8k",
            None,
            {},
            "derived: bg-digitalservices' card names task and chat template, the rest is the harness's own",
        ),
    )
}
"""Tasks of published cards of Gemma 4 builds. No card of the 26B was found that says more than that it was by chat."""


@dataclass(frozen=True)
class Score:
    """One figure of a task.

    Attributes:
        task, metric, filter: the harness's names; a filter is how an answer is found in what was generated.
        value: the figure.
        error: its standard error as the harness gives it; None where it gives none.
        higher_is_better: whether more is better.
        questions: how many were asked.
        version: of the harness; empty where it does not say.
    """

    task: str
    metric: str
    filter: str
    value: float
    error: float | None
    higher_is_better: bool
    questions: int
    version: str = ""


@dataclass(frozen=True)
class Retained:
    """What a build keeps of its source's score.

    Attributes:
        share: build over source, or source over build where less is better; None where that is no number.
        error: standard error of the share, as if both sides were drawn apart. They are asked the same questions, so
            that it is rather too large.
    """

    share: float | None
    error: float | None


def retained(source: Score, build: Score) -> Retained:
    """The share of a source's score that a build retains."""
    above, below = (build, source) if source.higher_is_better else (source, build)
    if not below.value:
        return Retained(None, None)
    share = above.value / below.value
    if above.error is None or below.error is None or not above.value:
        return Retained(share, None)
    return Retained(share, abs(share) * hypot(above.error / above.value, below.error / below.value))


@dataclass(frozen=True)
class Harness:
    """How the harness is run.

    Attributes:
        python: of the environment that has it.
        concurrency: requests under way at once.
        tokenizer: directory or hub id; with one, tasks are asked as plain text through ``/v1/completions``, which
            gives log-probabilities too; without, through ``/v1/chat/completions`` with the server's chat template.
        tasks: a directory with further tasks, each a YAML file.
        limit: questions of each task; None for all.
        max_gen_toks: tokens to generate at most, in place of the setting's; None to leave it.
    """

    python: Path
    concurrency: int = 128
    tokenizer: str | None = None
    tasks: Path | None = None
    limit: int | None = None
    max_gen_toks: int | None = None


def evaluate(endpoint: Endpoint, setting: Setting, harness: Harness) -> tuple[Score, ...]:
    """Have the harness ask a server one task.

    Raises:
        HarnessError: there is no harness, no such task, it stopped, or its result cannot be read.
    """
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        config = place / "config.json"
        config.write_text(json.dumps(request(endpoint, setting, harness, output=place / "out")))
        command = [str(harness.python), "-m", "lm_eval", "run", "--config", str(config)]
        done = run_elsewhere(command, place)
        found = sorted(place.glob("out/**/results*.json"))
        if done.returncode or len(found) != 1:
            raise _stopped(done.stderr, setting, harness)
        return read_scores(found[0].read_bytes(), setting.task, where=f"the harness's result of {setting.task}")


def generation_of(setting: Setting, harness: Harness) -> dict[str, Any]:
    """The keys of a request that replace the task's own."""
    return {**setting.generation, **({} if harness.max_gen_toks is None else {"max_gen_toks": harness.max_gen_toks})}


def request(endpoint: Endpoint, setting: Setting, harness: Harness, *, output: Path) -> dict[str, Any]:
    """What the harness is told, as the content of its configuration file.

    A file, since in the harness's own arguments a comma in a model's name would begin another argument.
    """
    chat = harness.tokenizer is None
    model = {
        "model": endpoint.model,
        "base_url": f"{endpoint.url}/v1/{'chat/' if chat else ''}completions",
        "num_concurrent": harness.concurrency,
        "max_retries": RETRIES,
        "timeout": TIMEOUT,
        "tokenized_requests": False,
    }
    named = {"tokenizer_backend": "huggingface", "tokenizer": harness.tokenizer}
    backend = {"tokenizer_backend": None} if chat else named
    told = {
        "model": "local-chat-completions" if chat else "local-completions",
        "model_args": {**model, **backend},
        "tasks": [setting.task],
        "num_fewshot": setting.shots,
        "apply_chat_template": chat,
        "fewshot_as_multiturn": chat,
        "gen_kwargs": generation_of(setting, harness),
        "include_path": str(harness.tasks.resolve()) if harness.tasks is not None else None,
        "limit": harness.limit,
        "seed": [SEED] * 4,
        "output_path": str(output),
    }
    return {key: value for key, value in told.items() if value is not None}


def read_scores(raw: bytes, task: str, *, where: str) -> tuple[Score, ...]:
    """The scores of a task in a file that the harness wrote; of a group, those of the whole.

    Raises:
        HarnessError: the file is malformed, too large, or has no figure of the task.
    """
    if len(raw) > MAX_RESULT_BYTES:
        raise HarnessError(f"is {len(raw):,} bytes", where=where)
    try:
        content = parse_object(raw, where=where)
    except StructureError as problem:
        raise HarnessError(problem.what, where=where) from problem
    figures = _mapping(_mapping(content, "results", where=where), task, where=where)
    better = content.get("higher_is_better")
    better = better.get(task) if isinstance(better, dict) else None
    questions = figures.get("sample_len")
    scores = []
    for key, value in figures.items():
        metric, comma, name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        if not isinstance(value, int | float):
            raise HarnessError(f"{key} is no number but {str(value)[:40]!r}", where=where)
        error = figures.get(f"{metric}_stderr,{name}")
        scores.append(
            Score(
                task=task,
                metric=metric,
                filter=name,
                value=float(value),
                error=float(error) if isinstance(error, int | float) else None,  # the harness writes N/A for none
                higher_is_better=not (isinstance(better, dict) and better.get(metric) is False),
                questions=questions if isinstance(questions, int) else 0,
                version=str(content.get("lm_eval_version") or "")[:20],
            )
        )
    if not scores:
        raise HarnessError(f"has no figure of {task}", where=where)
    return tuple(scores)


def _mapping(content: Mapping[str, Any], key: str, *, where: str) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise HarnessError(f"has no {key}", where=where)
    return value


def _stopped(said: str, setting: Setting, harness: Harness) -> HarnessError:
    """Why the harness stopped, from the last line in which it says so."""
    if "No module named lm_eval" in said:
        what = "there is no lm_eval in its environment"
        remedy = Clause("install 'weighbridge[eval]' into it, or name another as ", Argument("harness"))
        return HarnessError(what, where=str(harness.python), remedy=remedy)
    lines = [line.strip() for line in said.splitlines() if "Error" in line or "not found" in line]
    return HarnessError(f"the harness stopped ({lines[-1][:300] if lines else 'it says no more'})", where=setting.task)
