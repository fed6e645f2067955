"""Throughput: what is measured against a server that really streams, what is refused, and a real vLLM in a campaign."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import vllm_server
from tests.conftest import ROOT, Outcome, call_main
from weighbridge.cli import bench_serve, evaluate_tasks
from weighbridge.extras.endpoint.server import Endpoint, EndpointError, open_endpoint
from weighbridge.extras.endpoint.throughput import Figures, Load, measure, prompt, read_result, stream_load

PAUSE = 0.02
"""Seconds between two tokens of the local server."""


@dataclass
class Server:
    """A server on this machine that streams tokens one by one, each after a pause; what it was asked is kept.

    Attributes:
        url: where it is.
        asked: the requests, in their order.
        under_way, most: requests that are answered now, and the most that ever were.
        answer: what is sent after the tokens: the event that counts them, and the end.
    """

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    under_way: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    models: Sequence[Any] = ("tiny",)
    status: int = 200
    ending: Callable[[dict[str, Any]], Sequence[str]] = lambda request: [
        json.dumps(
            {
                "choices": [],
                "usage": {
                    "prompt_tokens": len(request["prompt"].split()),
                    "completion_tokens": request["max_tokens"],
                },
            }
        ),
        "[DONE]",
    ]


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.reply(json.dumps({"data": [{"id": model} for model in server.models]}))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.asked.append(request)
                server.under_way += 1
                server.most = max(server.most, server.under_way)
            if server.status != 200:
                self.reply('{"error": "too much"}', server.status)
            else:
                self.tell(request)

        def tell(self, request: dict[str, Any]) -> None:
            self.send_response(200)
            self.end_headers()
            events = [json.dumps({"choices": [{"text": " word"}]})] * request["max_tokens"]
            for event in events:
                time.sleep(PAUSE)
                self.wfile.write(f"data: {event}\n\n".encode())
                self.wfile.flush()
            with server.lock:
                server.under_way -= 1  # before the client can know that it is over, and ask again
            for event in server.ending(request):
                self.wfile.write(f"data: {event}\n\n".encode())

        def reply(self, content: str, status: int = 200) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content.encode())

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as started:
        yield started


# --- what is measured -------------------------------------------------------------------------------------------------

LOAD = Load(concurrency=3, requests=6, input_words=5, output_tokens=4)


def test_tokens_are_those_that_the_server_counts(server: Server) -> None:
    figures = stream_load(Endpoint(server.url, "tiny"), LOAD)
    assert (figures.input_tokens, figures.output_tokens) == (6 * 5, 6 * 4)


def test_no_time_is_shorter_than_the_server_took(server: Server) -> None:
    figures = stream_load(Endpoint(server.url, "tiny"), LOAD)
    assert figures.first >= PAUSE
    assert figures.first_slow >= figures.first
    assert figures.each > 0
    assert figures.seconds >= 2 * 4 * PAUSE  # six requests, three at a time
    assert figures.throughput() <= 3 / PAUSE


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_requests_are_under_way_and_no_more(server: Server, concurrency: int) -> None:
    stream_load(Endpoint(server.url, "tiny"), Load(concurrency, 6, 5, 4))
    assert server.most == concurrency
    assert len(server.asked) == 6


def test_the_model_generates_on_whatever_it_would_rather_do_and_is_asked_without_chance(server: Server) -> None:
    stream_load(Endpoint(server.url, "tiny"), LOAD)
    for request in server.asked:
        assert (request["model"], request["max_tokens"]) == ("tiny", 4)
        assert (request["ignore_eos"], request["temperature"], request["stream"]) == (True, 0, True)


@given(st.integers(-1, 2**40), st.integers(1, 64), st.integers(0, 500), st.integers(8, 100))
def test_a_prompt_is_the_same_every_time_and_no_two_of_a_load_begin_alike(
    seed: int, concurrency: int, number: int, words: int
) -> None:
    load = Load(concurrency, 1, words, 2, seed)
    assert prompt(load, number) == prompt(load, number)
    assert len(prompt(load, number).split()) == words
    assert prompt(load, number).split()[:8] != prompt(load, number + 1).split()[:8]


def test_sides_are_asked_in_turns_after_one_request_to_warm_up() -> None:
    asked: list[tuple[str, int]] = []

    def client(endpoint: Endpoint, load: Load) -> Figures:
        asked.append((endpoint.model, load.concurrency))
        return Figures(1, 2, 1.0, 0.1, 0.1, 0.1)

    sides = {"source": Endpoint("", "s"), "build": Endpoint("", "b")}
    measured = measure(sides, [Load(1, 1, 1, 2), Load(8, 8, 1, 2)], rounds=2, client=client)
    assert asked == [("s", 1), ("b", 1), *[("s", 1), ("b", 1), ("s", 8), ("b", 8)] * 2]
    assert {(one.side, one.load.concurrency, len(one.rounds)) for one in measured} == {
        (side, concurrency, 2) for side in sides for concurrency in (1, 8)
    }


def test_both_sides_get_the_same_prompts_and_no_round_gets_one_twice() -> None:
    seeds: dict[str, list[int]] = {"s": [], "b": []}

    def client(endpoint: Endpoint, load: Load) -> Figures:
        seeds[endpoint.model].append(load.seed)
        return Figures(1, 2, 1.0, 0.1, 0.1, 0.1)

    sides = {"source": Endpoint("", "s"), "build": Endpoint("", "b")}
    measure(sides, [Load(1, 1, 1, 2), Load(8, 8, 1, 2)], rounds=3, client=client)
    assert seeds["s"] == seeds["b"]
    assert len(set(seeds["s"])) == len(seeds["s"])


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "sentence"),
    [
        (lambda request: ["[DONE]"], "does not say how many tokens it generated"),
        (lambda request: [], r"ended without \[DONE\]"),
        (lambda request: ["{"], "is not JSON"),
        (lambda request: ['{"usage": {"prompt_tokens": 1, "completion_tokens": 1}}', "[DONE]"], "generated 1 tokens"),
        (lambda request: ['{"usage": [1]}', "[DONE]"], "does not say how many tokens"),
    ],
)
def test_an_answer_that_cannot_be_timed_is_no_figure(server: Server, ending: Any, sentence: str) -> None:
    server.ending = ending
    with pytest.raises(EndpointError, match=sentence):
        stream_load(Endpoint(server.url, "tiny"), Load(1, 1, 5, 2))


def test_one_request_that_fails_fails_the_run(server: Server) -> None:
    server.status = 429
    with pytest.raises(EndpointError, match="answers 429"):
        stream_load(Endpoint(server.url, "tiny"), LOAD)


@pytest.mark.parametrize(
    ("models", "named", "sentence"),
    [
        (["a", "b"], None, "serves a, b; name the model that is meant as `model`"),
        (["a"], "b", "serves a;"),
        ([], None, "serves no model"),
        ([7], None, "serves 7"),
    ],
)
def test_a_model_that_is_not_served_is_refused(models: list[Any], named: str, sentence: str, server: Server) -> None:
    server.models = models
    with pytest.raises(EndpointError, match=sentence):
        open_endpoint(server.url, named)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://", "http://localhost:notaport"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(EndpointError):
        open_endpoint(url)


def test_an_address_may_end_in_the_version(server: Server) -> None:
    assert open_endpoint(f"{server.url}/v1/") == Endpoint(server.url, "tiny")


RESULT = {
    "completed": 6,
    "failed": 0,
    "total_input_tokens": 30,
    "total_output_tokens": 24,
    "duration": 2.0,
    "median_ttft_ms": 50.0,
    "p99_ttft_ms": 70.0,
    "median_tpot_ms": 10.0,
    "backend": "openai",
}


def test_figures_of_vllms_client_are_in_seconds() -> None:
    figures = read_result(json.dumps(RESULT).encode(), LOAD, where="x")
    assert figures == Figures(30, 24, 2.0, 0.05, 0.07, 0.01)
    assert (figures.throughput(), figures.rate()) == (12.0, 100.0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"completed": 5}, "answered 5 of 6 requests"),
        ({"failed": 1}, "answered 6 of 6"),
        ({"duration": "2"}, "wrote no result"),
        ({"median_tpot_ms": 0.0}, "too little"),
    ],
)
def test_a_result_that_is_not_whole_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EndpointError, match=sentence):
        read_result(json.dumps({**RESULT, **change}).encode(), LOAD, where="x")


# --- the command ------------------------------------------------------------------------------------------------------

SMALL = ("--concurrency", "4", "--requests", "1", "--input-tokens", "4", "--output-tokens", "3", "--rounds", "2")


def bench(*arguments: str) -> Outcome:
    return call_main(bench_serve.main, arguments)


def test_report_has_both_sides_and_their_ratio(server: Server) -> None:
    answer = bench(server.url, "--source-endpoint", server.url, *SMALL, "--format", "json")
    single, many = answer.report["sections"]
    assert answer.code == 0
    assert single["tables"][0]["columns"] == ["figure", "source", "build", "build / source"]
    for _, source, build, ratio in single["tables"][0]["rows"]:
        assert ratio == pytest.approx(build / source)
    assert [row[0] for row in many["tables"][0]["rows"]] == [1, 4]
    assert single["facts"]["a request"] == "4 tokens in, 3 out"


def test_report_of_a_build_alone_compares_with_nothing(server: Server) -> None:
    answer = bench(server.url, *SMALL)
    assert answer.code == 0
    assert "source" not in answer.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("http://127.0.0.1:9",), "cannot be reached"),
        (("{server}", "--vllm", "/no/such/python", "--tokenizer", "x"), "there is no such file"),
        (("{server}", "--vllm", os.devnull), "there is no such file"),
        (("{server}", "--vllm", __file__), "add --tokenizer"),
        (("{server}", "--output-tokens", "1"), "must be at least 2"),
        (("{server}", "--concurrency", "1,0"), "must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(arguments: Sequence[str], sentence: str, server: Server) -> None:
    answer = bench(*(argument.format(server=server.url) for argument in arguments))
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert sentence in answer.err


@pytest.mark.parametrize("command", ["bench-serve", "evaluate-tasks"])
def test_options_that_the_document_shows_are_the_commands(command: str) -> None:
    document = (ROOT / "docs/explanation/throughput.md").read_text()
    part = document[document.index("## Throughput") : document.index("## Tasks")]
    main = bench_serve.main
    if command == "evaluate-tasks":
        part, main = document[document.index("## Tasks") :], evaluate_tasks.main
    shown = {option for line in re.findall(r"ARGS=\"?([^\"`]*)", part) for option in re.findall(r"--[\w-]+", line)}
    assert shown
    assert {option for option in shown if option not in call_main(main, ["--help"]).out} == set()


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.mark.campaign
@pytest.mark.skipif(not vllm_server.PYTHON.exists(), reason="no environment with vLLM: make serve-env")
def test_a_real_server_is_measured_by_both_clients(mini: Path, tmp_path: Path) -> None:
    with vllm_server.serving(mini, tmp_path, "--max-model-len", "256", *vllm_server.TEXT_ALONE) as real:
        own = bench(real.url, *SMALL, "--source-endpoint", real.url, "--format", "json")
        vllms = bench(real.url, *SMALL, "--vllm", str(vllm_server.PYTHON), "--tokenizer", str(mini), "--format", "json")
    assert (own.code, vllms.code) == (0, 0), own.err + vllms.err
    assert vllms.report["sections"][0]["facts"]["client"].startswith("vLLM's own")
    for answer in (own, vllms):
        single, many = answer.report["sections"]
        assert single["facts"]["a request"].endswith(" 3 out")
        assert all(figure > 0 for row in many["tables"][0]["rows"] for figure in row if isinstance(figure, float))
