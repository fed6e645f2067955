"""vLLM itself, in the environment that ``make serve-env`` makes: what it loads, what it computes, that it serves.

WEIGHBRIDGE_SERVING_PYTHON names another environment.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests import mistral_native
from tests.checkpoints import copy_checkpoint
from tests.conftest import Command, Once, call_main, run_script
from tests.damage import DAMAGES, damaged
from tests.served_families import COMPUTED_OTHERWISE, SERVED, write_served
from tests.serving_answers import HONEST, ask_about, recorded
from tests.serving_misread import misread
from tests.vllm_server import serving
from weighbridge.cli import serve_check
from weighbridge.extras.endpoint.server import open_endpoint
from weighbridge.extras.serving.client import environment
from weighbridge.recipe import load_recipe
from weighbridge.samples.trained.text import write_calibration

pytestmark = pytest.mark.campaign

WINDOWS = ("--windows", "16", "--length", "128")
FEW = ("--windows", "8", "--length", "96")
DENSE = ("fp8-dynamic", "w4a16", "nvfp4a16", "nvfp4")
EXPERTS = (*DENSE, "w4a16-experts-fp8", "nvfp4a16-experts-fp8", "nvfp4-experts-fp8")


@pytest.fixture(scope="session")
def build_of(once: Once) -> Callable[[str, str], Path]:
    """A build of a model by a recipe, made once."""

    def make(model: str, recipe: str) -> Path:
        def build(directory: Path) -> None:
            named = f"HuggingFaceTB/SmolLM2-135M-Instruct/{recipe}" if model == "smollm2" else recipe
            data: tuple[str | Path, ...] = ()
            if load_recipe(named).recipe.calibration is not None and model != "mini":
                write_calibration(directory / "calibration.jsonl")
                data = ("--calibration", directory / "calibration.jsonl")
            outcome = run_script("build.py", named, "--model", model, "--output", directory / "build", *data)
            assert outcome.code == 0, outcome.err + outcome.out

        return once(f"served-{model}-{recipe}", build) / "build"

    return make


@pytest.mark.parametrize("name", [*HONEST, *DAMAGES])
def test_vllm_answers_as_it_was_recorded(
    name: str, python: Path, build_of: Callable[[str, str], Path], tmp_path: Path
) -> None:
    checkpoint = build_of("mini", DAMAGES[name].recipe if name in DAMAGES else name)
    if name in DAMAGES:
        checkpoint = damaged(checkpoint, tmp_path / name, DAMAGES[name])
    answer = ask_about(checkpoint, tmp_path / "log")
    kept = {"keys", "parameters", "unfilled", "not_finite", "shared_scales", "replaced", "model"}
    assert answer.model_dump(include=kept) == recorded(name).model_dump(include=kept)
    assert sorted(answer.writes) == sorted(recorded(name).writes)


@pytest.mark.parametrize("recipe", DENSE)
def test_dense_builds_serve_and_the_server_computes_what_they_mean(
    recipe: str, python: Path, build_of: Callable[[str, str], Path]
) -> None:
    checkpoint = build_of("smollm2", recipe)
    outcome = call_main(serve_check.main, [checkpoint, "--source", "smollm2", "--serving-python", python, *WINDOWS])
    assert outcome.code == 0, outcome.out + outcome.err


@pytest.mark.parametrize("recipe", EXPERTS)
def test_trained_experts_serve_and_the_server_computes_what_they_mean(
    recipe: str, python: Path, build_of: Callable[[str, str], Path]
) -> None:
    checkpoint = build_of("trained-mini", recipe)
    outcome = call_main(
        serve_check.main, [checkpoint, "--source", "trained-mini", "--serving-python", python, *WINDOWS]
    )
    assert outcome.code == 0, outcome.out + outcome.err


def drafted_build(architecture: str, directory: Path) -> tuple[Path, Path]:
    """A small model of an architecture, and its build by a drafted recipe."""
    source, recipe, build = (
        write_served(architecture, directory / "source"),
        directory / "draft.yaml",
        directory / "build",
    )
    for arguments in (
        ("--new-recipe", "an/model", "--model", source, "--licence", "apache-2.0", "--output", recipe),
        (recipe, "--model", source, "--output", build),
    ):
        outcome = run_script("build.py", *arguments)
        assert outcome.code == 0, outcome.err + outcome.out
    return source, build


@pytest.mark.parametrize("architecture", SERVED)
def test_drafted_builds_of_many_families_serve_and_the_server_computes_what_they_mean(
    architecture: str, python: Path, tmp_path: Path
) -> None:
    _, build = drafted_build(architecture, tmp_path)
    outcome = call_main(serve_check.main, [build, "--serving-python", python, *FEW])
    assert outcome.code == 0, outcome.out + outcome.err


@pytest.mark.parametrize("architecture", COMPUTED_OTHERWISE)
def test_a_server_that_computes_the_source_otherwise_too_is_said_to(
    architecture: str, python: Path, tmp_path: Path
) -> None:
    source, build = drafted_build(architecture, tmp_path)
    outcome = call_main(serve_check.main, [build, "--source", source, "--serving-python", python, *FEW])
    assert outcome.code == 1, outcome.err
    assert "serve/disagrees" in outcome.out
    assert "serve/source-disagrees" in outcome.out


def test_result_is_recorded_in_the_evidence(
    python: Path, build_of: Callable[[str, str], Path], tmp_path: Path, call_validate: Command
) -> None:
    build = copy_checkpoint(build_of("smollm2", "fp8-dynamic"), tmp_path / "build")
    few = ("--windows", "2", "--length", "32", "--record")
    outcome = call_main(serve_check.main, [build, "--source", "smollm2", "--serving-python", python, *few])
    assert outcome.code == 0, outcome.out + outcome.err
    assert json.loads((build / "evidence/added/serving.json").read_text())["holds"]
    assert call_validate(build, "--evidence").code == 0


def test_a_server_that_takes_one_scale_for_another_is_caught(
    python: Path, build_of: Callable[[str, str], Path], tmp_path: Path
) -> None:
    in_float32, _ = misread(build_of("smollm2", "fp8-dynamic"), "model.layers.15.mlp.up_proj.weight_scale", tmp_path)
    assert [finding.rule for finding in in_float32.findings] == ["serve/disagrees"]


def test_a_build_answers_over_the_openai_api(
    python: Path, build_of: Callable[[str, str], Path], tmp_path: Path
) -> None:
    asked = {
        "model": "it",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 16,
        "temperature": 0,
    }
    with serving(build_of("smollm2", "fp8-dynamic"), tmp_path, "--max-model-len", "512") as server:
        assert open_endpoint(server.url).model == "it"
        headers = {"Content-Type": "application/json"}
        request = Request(f"{server.url}/v1/chat/completions", data=json.dumps(asked).encode(), headers=headers)
        with urlopen(request) as response:
            answer = json.load(response)
    assert "Paris" in answer["choices"][0]["message"]["content"]


SCORED = """\
import json, sys, vllm
model = vllm.LLM(
    model=sys.argv[1], enforce_eager=True, max_model_len=64, dtype="bfloat16", skip_tokenizer_init=True,
    enable_prefix_caching=False, seed=0,
)
texts = [[(7 * number + 31 * row) % 255 + 1 for number in range(48)] for row in range(4)]
asked = vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
scored = model.generate([{"prompt_token_ids": text} for text in texts], asked, use_tqdm=False)
found = [
    found[token].logprob
    for text, each in zip(texts, scored)
    for token, found in zip(text[1:], each.prompt_logprobs[1:])
]
json.dump(found, open(sys.argv[2], "w"))
"""
"""What the client does, without a tokenizer: Mistral's is no file of a few lines."""


def test_mistrals_own_form_loads_by_vllms_names_and_rows_that_it_reorders_are_wrong(
    python: Path, tmp_path: Path
) -> None:
    loud = mistral_native.loud_tensors(mistral_native.DENSE)
    source = mistral_native.write_mistral(tmp_path / "source", mistral_native.DENSE, loud)
    recipe = tmp_path / "draft.yaml"
    arguments = ("--new-recipe", "an/model", "--model", source, "--licence", "apache-2.0", "--output", recipe)
    assert run_script("build.py", *arguments).code == 0
    everything = tmp_path / "all.yaml"
    kept = re.sub(r"  - re:\.\*w[kqv]\.\*\n", "", recipe.read_text())
    everything.write_text(f"{kept}  - [wq, wk, wv]\nallow:\n  - serve/turned-rows because this is what is measured\n")
    answers = {}
    for name, named in (("drafted", recipe), ("everything", everything), ("source", None)):
        checkpoint = source if named is None else tmp_path / name
        if named is not None:
            outcome = run_script("build.py", named, "--model", source, "--output", checkpoint)
            assert outcome.code == 0, outcome.err + outcome.out
        answer, log = tmp_path / f"{name}.json", tmp_path / f"{name}.log"
        with log.open("wb") as output:
            command = [str(python), "-c", SCORED, str(checkpoint), str(answer)]
            subprocess.run(command, env=environment(threads=1), stdout=output, stderr=output, check=False, cwd=tmp_path)
        assert answer.exists(), log.read_text()[-2000:]
        answers[name] = json.loads(answer.read_text())

    def distance(name: str) -> float:
        pairs = zip(answers[name], answers["source"], strict=True)
        return math.sqrt(sum((own - other) ** 2 for own, other in pairs) / len(answers["source"]))

    assert distance("drafted") < 0.5 < 1 < distance("everything")
