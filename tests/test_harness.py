"""The evaluation harness: what it is told, how its results are read, and the real one on a task of local data."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests import vllm_server
from tests.conftest import ROOT, Outcome, call_main
from weighbridge.cli import evaluate_tasks
from weighbridge.extras.endpoint.harness import (
    MAX_RESULT_BYTES,
    PUBLISHED,
    Harness,
    HarnessError,
    Score,
    Setting,
    read_scores,
    request,
    retained,
)
from weighbridge.extras.endpoint.server import Endpoint

HERE = Harness(python=Path(sys.executable))
ENDPOINT = Endpoint("http://127.0.0.1:8000", "gemma")
GSM8K = PUBLISHED["gsm8k_platinum_cot_llama"]


# --- what the harness is told -----------------------------------------------------------------------------------------


def test_gsm8k_is_asked_as_redhatais_card_asks_it() -> None:
    told = request(ENDPOINT, GSM8K, HERE, output=Path("out"))
    assert told == {
        "model": "local-chat-completions",
        "model_args": {
            "model": "gemma",
            "base_url": "http://127.0.0.1:8000/v1/chat/completions",
            "num_concurrent": 128,
            "max_retries": 3,
            "timeout": 2400,
            "tokenized_requests": False,
            "tokenizer_backend": None,
        },
        "tasks": ["gsm8k_platinum_cot_llama"],
        "num_fewshot": 5,
        "apply_chat_template": True,
        "fewshot_as_multiturn": True,
        "gen_kwargs": {
            "do_sample": True,
            "temperature": 1.0,
            "top_p": 0.95,
            "top_k": 64,
            "max_gen_toks": 64000,
            "seed": 1234,
        },
        "seed": [1234] * 4,
        "output_path": "out",
    }


def test_a_task_that_no_card_has_is_left_as_the_harness_has_it() -> None:
    told = request(ENDPOINT, Setting("hellaswag"), HERE, output=Path("out"))
    assert "num_fewshot" not in told
    assert told["gen_kwargs"] == {}


def test_with_a_tokenizer_tasks_are_asked_as_plain_text() -> None:
    told = request(ENDPOINT, Setting("hellaswag"), Harness(HERE.python, tokenizer="models/it"), output=Path("out"))
    assert told["model"] == "local-completions"
    assert told["model_args"]["base_url"] == "http://127.0.0.1:8000/v1/completions"
    assert told["model_args"]["tokenizer"] == "models/it"
    assert told["apply_chat_template"] is False


@given(st.text())
def test_a_models_name_is_one_value_whatever_it_is(name: str) -> None:
    told = request(Endpoint("http://x", name), GSM8K, HERE, output=Path("out"))
    assert json.loads(json.dumps(told))["model_args"]["model"] == name
    assert "trust_remote_code" not in told["model_args"].keys() | told.keys()


def test_every_published_setting_says_how_it_is_known() -> None:
    for setting in PUBLISHED.values():
        assert re.match(r"seen on |derived: ", setting.basis)


def test_a_limit_of_tokens_goes_before_the_cards() -> None:
    told = request(ENDPOINT, GSM8K, Harness(HERE.python, max_gen_toks=99), output=Path("out"))
    assert told["gen_kwargs"]["max_gen_toks"] == 99
    assert GSM8K.generation["max_gen_toks"] == 64000


# --- what it answers --------------------------------------------------------------------------------------------------

RESULTS = {
    "results": {
        "ifeval": {
            "alias": "ifeval",
            "sample_len": 541,
            "prompt_level_strict_acc,none": 0.89,
            "prompt_level_strict_acc_stderr,none": 0.013,
            "inst_level_strict_acc,none": 0.92,
            "inst_level_strict_acc_stderr,none": "N/A",
            "perplexity,none": 12,
        }
    },
    "higher_is_better": {"ifeval": {"perplexity": False}},
    "lm_eval_version": "0.4.13",
}


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    content = json.loads(json.dumps(RESULTS))
    change(content)
    return json.dumps(content).encode()


def test_scores_have_their_filter_their_error_and_their_direction() -> None:
    assert read_scores(json.dumps(RESULTS).encode(), "ifeval", where="x") == (
        Score("ifeval", "prompt_level_strict_acc", "none", 0.89, 0.013, True, 541, "0.4.13"),
        Score("ifeval", "inst_level_strict_acc", "none", 0.92, None, True, 541, "0.4.13"),
        Score("ifeval", "perplexity", "none", 12.0, None, False, 541, "0.4.13"),
    )


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"{}", "has no results"),
        (changed(lambda content: content["results"].clear()), "has no ifeval"),
        (changed(lambda content: content["results"].update(ifeval={"alias": "x"})), "has no figure of ifeval"),
        (changed(lambda content: content["results"]["ifeval"].update({"acc,none": "1"})), "acc,none is no number"),
        (b'{"results": {"ifeval": {"acc,none": NaN}}}', "NaN is not a JSON number"),
        (b" " * (MAX_RESULT_BYTES + 1), "bytes"),
    ],
)
def test_what_is_no_result_is_refused(raw: bytes, sentence: str) -> None:
    with pytest.raises(HarnessError, match=sentence):
        read_scores(raw, "ifeval", where="x")


def score(value: float, error: float | None = None, *, higher: bool = True) -> Score:
    return Score("t", "m", "none", value, error, higher, 100)


@pytest.mark.parametrize(
    ("source", "build", "share"),
    [
        (score(0.8779), score(0.8423), 0.9594),  # bg-digitalservices' card: GSM8K, 95.9 % retained
        (score(0.9388), score(0.9305), 0.9912),
        (score(16.40, higher=False), score(16.63, higher=False), 0.9862),
        (score(0.0), score(0.5), None),
    ],
)
def test_the_share_retained_is_that_of_published_cards(source: Score, build: Score, share: float | None) -> None:
    found = retained(source, build).share
    assert found == (None if share is None else pytest.approx(share, abs=5e-5))


@given(st.floats(0.05, 1), st.floats(0.05, 1), st.floats(0, 0.05), st.floats(0, 0.05))
def test_the_shares_error_is_no_smaller_than_either_sides(mine: float, theirs: float, one: float, other: float) -> None:
    found = retained(score(theirs, other), score(mine, one))
    assume(found.share is not None)
    assert found.share is not None
    assert found.error is not None
    assert found.error >= 0.999 * found.share * max(one / mine, other / theirs)


def test_a_side_without_an_error_leaves_the_share_without_one() -> None:
    assert retained(score(0.8), score(0.7, 0.01)).error is None


# --- the real harness, on local data ----------------------------------------------------------------------------------

NAMED = "WEIGHBRIDGE_HARNESS_PYTHON"
PYTHON = os.environ.get(NAMED, sys.executable)
needs_harness = pytest.mark.skipif(
    NAMED not in os.environ and importlib.util.find_spec("lm_eval") is None,
    reason=f"lm_eval is not here (extra 'eval'), and {NAMED} names no Python that has it",
)
ANSWERS = {"The capital of France is": "Paris", "The capital of Italy is": "Rome", "Two and two is": "four"}
TASK = """\
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}}]
metadata: {{version: 1}}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one task, whose data lie beside it."""
    directory = tmp_path_factory.mktemp("tasks")
    data = directory / "capitals.jsonl"
    data.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in ANSWERS.items()))
    (directory / "capitals.yaml").write_text(TASK.format(data=json.dumps(str(data))))
    return directory


@pytest.fixture
def chats() -> Iterator[Callable[[Mapping[str, str]], str]]:
    """Starts a server that chats and knows the answers that it is given; gives its address."""
    started: list[ThreadingHTTPServer] = []

    def start(answers: Mapping[str, str]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.reply({"data": [{"id": "tiny"}]})

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                said = asked["messages"][-1]["content"].strip()
                message = {"role": "assistant", "content": answers.get(said, "I do not know")}
                self.reply({"choices": [{"index": 0, "message": message}]})

            def reply(self, content: Mapping[str, Any]) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        started.append(http)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{http.server_port}"

    yield start
    for http in started:
        http.shutdown()
        http.server_close()


def evaluate(*arguments: str | Path) -> Outcome:
    return call_main(evaluate_tasks.main, [str(argument) for argument in arguments])


@needs_harness
def test_the_harness_finds_what_each_side_knows_and_what_share_is_retained(
    tasks: Path, chats: Callable[[Mapping[str, str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    build, source = chats(dict(list(ANSWERS.items())[:2])), chats(ANSWERS)
    answer = evaluate(
        build,
        *("--source-endpoint", source, "--tasks", "capitals", "--include", tasks, "--harness", PYTHON),
        *("--format", "json"),
    )
    assert answer.code == 0, answer.err
    (section,) = answer.report["sections"]
    (row,) = section["tables"][0]["rows"]
    assert row[:2] == ["exact_match", "none"]
    assert (row[2], row[4], row[6]) == (100, pytest.approx(200 / 3), pytest.approx(200 / 3))
    assert section["facts"]["questions"] == 3
    assert section["facts"]["set up as"] == "the harness's own"
    assert section["facts"]["harness"].startswith("lm-eval 0.")


@needs_harness
def test_a_task_that_is_not_there_is_one_sentence(chats: Callable[[Mapping[str, str]], str]) -> None:
    answer = evaluate(chats({}), "--tasks", "no_such_task", "--harness", PYTHON)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert "no_such_task" in answer.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("http://127.0.0.1:9",), "cannot be reached"),
        (("http://127.0.0.1:9", "--harness", "/no/such/python"), "there is no such file"),
        (("http://127.0.0.1:9", "--tasks", "a,,b"), "must be names with commas between them"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    answer = evaluate(*arguments)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert sentence in answer.err


def test_an_environment_without_the_harness_is_named(chats: Callable[[Mapping[str, str]], str], tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without site-packages
    python.chmod(0o755)
    answer = evaluate(chats({}), "--harness", python)
    assert (answer.code, answer.out) == (2, "")
    assert "install 'weighbridge[eval]'" in answer.err


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.mark.campaign
@needs_harness
@pytest.mark.skipif(not vllm_server.PYTHON.exists(), reason="no environment with vLLM: make serve-env")
def test_a_real_server_is_asked_by_the_harness(mini: Path, tasks: Path, tmp_path: Path) -> None:
    with vllm_server.serving(mini, tmp_path, "--max-model-len", "256", *vllm_server.TEXT_ALONE) as real:
        answer = evaluate(real.url, "--tasks", "capitals", "--include", tasks, "--harness", PYTHON, "--format", "json")
    assert answer.code == 0, answer.err
    assert answer.report["sections"][0]["facts"]["questions"] == 3


def test_the_document_names_every_published_setting() -> None:
    document = (ROOT / "docs/explanation/throughput.md").read_text()
    assert {task for task in PUBLISHED if f"`{task}`" not in document} == set()
