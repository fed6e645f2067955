"""vLLM itself behind the gate, in the environment that ``make serve-env`` makes: honest builds start and answer, frauds
do not start, and each byte of a shard is read once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT, Once, run_script
from tests.dishonest import Lie, Workshop, open_workshop
from tests.gate_frauds import FRAUDS, Fraud, write_policy
from tests.vllm_server import SETTINGS
from weighbridge.evidence.signing import make_key_pair

pytestmark = pytest.mark.campaign

HONEST = Lie("nothing")
SCRIPT = ROOT / "tests" / "gated_vllm.py"


@pytest.fixture(scope="session")
def workshop(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("workshop"), audited=True)


@pytest.fixture(scope="session")
def signed_build(once: Once) -> Callable[[str, str], Path]:
    """A build of a model by a recipe, audited and signed with ``key.pem`` beside it, made once."""

    def make(model: str, recipe: str) -> Path:
        def build(directory: Path) -> None:
            make_key_pair(directory / "key.pem", directory / "key.pub.pem", curve="P-256")
            (directory / "policy.yaml").write_text("signed_by: [{key: key.pub.pem}]\naudit: exact\n")
            target = ("--output", directory / "build", "--audit", "--sign", directory / "key.pem")
            outcome = run_script("build.py", recipe, "--model", model, *target)
            assert outcome.code == 0, outcome.err + outcome.out

        return once(f"gated-{model}-{recipe.rpartition('/')[2]}", build)

    return make


def start(
    python: Path, build: Path, policy: Path | str | None, *, before: Sequence[str] = (), script: Path = SCRIPT
) -> subprocess.CompletedProcess[str]:
    """Start vLLM for a checkpoint, behind a policy or without, and have it answer.

    Args:
        before: a program and its options that this is run by.
        script: in the place of the one that starts it.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VLLM_"))}
    environment = {**kept, **SETTINGS, "TORCH_COMPILE_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    command = [*before, str(python), str(script), str(build), *([] if policy is None else [str(policy)])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def answer(done: subprocess.CompletedProcess[str]) -> list[int]:
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    tokens: list[int] = json.loads(done.stdout.splitlines()[-1])
    return tokens


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        ("mini", "fp8-dynamic"),
        ("mini", "w4a16"),
        ("mini", "nvfp4a16"),
        ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct/fp8-dynamic"),
    ],
)
def test_honest_build_starts_and_answers_as_without_the_gate(
    model: str, recipe: str, python: Path, signed_build: Callable[[str, str], Path]
) -> None:
    place = signed_build(model, recipe)
    gated = start(python, place / "build", place / "policy.yaml")
    assert answer(gated) == answer(start(python, place / "build", None))
    assert "loaded, hashed and filled as promised" in gated.stdout + gated.stderr


@pytest.mark.parametrize("fraud", FRAUDS, ids=lambda fraud: fraud.what)
def test_fraud_does_not_start(fraud: Fraud, python: Path, workshop: Workshop, tmp_path: Path) -> None:
    build = fraud.commit(workshop, tmp_path / "build")
    done = start(python, build, write_policy(tmp_path, workshop, fraud.policy))
    said = done.stdout + done.stderr
    assert done.returncode != 0, said[-2000:]
    assert re.search(r"loader\.py:\d+\] refused: ", said) or not (build / "model.safetensors").exists(), said[-3000:]
    assert not re.search(r"^\[\d", done.stdout, re.MULTILINE)


def test_no_policy_no_start(python: Path, workshop: Workshop, tmp_path: Path) -> None:
    build = workshop.forged(HONEST, tmp_path / "build")
    done = start(python, build, "")
    assert done.returncode != 0
    assert "no policy is named" in done.stdout + done.stderr


def test_a_parameter_that_nothing_fills_stops_the_start(python: Path, workshop: Workshop, tmp_path: Path) -> None:
    """The gate as it is, over a loader of vLLM's that leaves one tensor out."""
    build = workshop.forged(HONEST, tmp_path / "build")
    policy = write_policy(tmp_path, workshop)
    script = tmp_path / "forgetful.py"
    script.write_text(
        "import runpy, sys\n"
        "from vllm.model_executor.model_loader.default_loader import DefaultModelLoader\n"
        "from weighbridge.extras.vllm_plugin.loader import GatedLoader\n"
        "own = GatedLoader.get_all_weights\n"
        "forgotten = 'layers.1.experts.2.up_proj.weight'\n"
        "GatedLoader.get_all_weights = lambda *given: (\n"
        "    pair for pair in own(*given) if not pair[0].endswith(forgotten)\n"
        ")\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    done = start(python, build, policy, script=script)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "stayed unfilled" in said, said[-3000:]


@pytest.mark.skipif(shutil.which("strace") is None, reason="reads are counted with strace")
def test_each_byte_of_a_shard_is_read_once(python: Path, workshop: Workshop, tmp_path: Path) -> None:
    build = workshop.forged(HONEST, tmp_path / "build")
    log = tmp_path / "reads"
    trace = ("strace", "--follow-forks", "--decode-fds=path", "--output", str(log), "--trace=read,pread64,readv,mmap")
    answer(start(python, build, write_policy(tmp_path, workshop), before=trace))
    shard = (build / "model.safetensors").resolve()
    lines = [line for line in log.read_text(errors="replace").splitlines() if f"<{shard}>" in line]
    assert not [line for line in lines if " mmap(" in line or line.startswith("mmap(")]
    counts = [int(found[1]) for line in lines if (found := re.search(r"= (\d+)$", line))]
    header = int.from_bytes(shard.read_bytes()[:8], "little") + 8
    size = shard.stat().st_size
    # Headers are read where the structure is judged; the tensors' bytes once.
    assert size <= sum(counts) <= size + 4 * header
