"""What tests share: the miniature, one finished build of it, and the two commands, in this process and as scripts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

# Read when huggingface_hub is first imported: no test may depend on what the hub says today.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from weighbridge.base.source import make_miniature
from weighbridge.cli import build, validate
from weighbridge.evidence.signing import make_key_pair
from weighbridge.machine import resources

ROOT = Path(__file__).resolve().parents[1]
MINI_LOCK = ROOT / "references" / "weighbridge" / "gemma-4-mini.yaml"
MINI_BUILD_LOCK = ROOT / "references" / "weighbridge" / "gemma-4-mini-FP8-dynamic.yaml"
FP8_DYNAMIC = ROOT / "recipes" / "google" / "gemma-4-26B-A4B-it" / "fp8-dynamic.yaml"

ROOM = 64 * 1024**3
"""Bytes of memory that builds and audits in this process are allowed."""

# Machines are shared: no test may fail because one was slow.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

# What a person may have set and a subprocess would obey.
PERSONAL = ("HF_", "HUGGING", "WEIGHBRIDGE_", "TQDM_", "COLUMNS", "PYTHON", "http_proxy", "https_proxy", "HTTP", "ALL_")


@dataclass(frozen=True)
class Outcome:
    """What a command answered: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """The report of a command that was given ``--format json``."""
        found: dict[str, Any] = json.loads(self.out)
        return found


Command = Callable[..., Outcome]
"""A command: called with its arguments (paths or text), and as a script with further options of `run_script`."""

Once = Callable[[str, Callable[[Path], None]], Path]
"""Makes a directory of this name once for the whole run, whichever worker asks for it first."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "campaign: long; only make test-all runs it")


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A directory that all workers of a run share."""
    own = tmp_path_factory.getbasetemp()
    root = (own if worker_id == "master" else own.parent) / "shared"
    root.mkdir(exist_ok=True)
    return root


MADE_BEFORE = Path(os.environ.get("WEIGHBRIDGE_TESTS_MADE", os.devnull))
"""What an earlier run of the same tests made once: `benchmarks.mutations` tries mutants against it first."""


@pytest.fixture(scope="session", autouse=True)
def private_cache(shared_root: Path) -> Iterator[None]:
    """Keep the user's own cache out of tests, and tests out of it."""
    with pytest.MonkeyPatch.context() as patch:
        if (MADE_BEFORE / "cache").is_dir():
            shutil.copytree(MADE_BEFORE / "cache", shared_root / "cache", dirs_exist_ok=True)
        patch.setenv("WEIGHBRIDGE_CACHE", str(shared_root / "cache"))
        yield


@pytest.fixture(scope="session")
def once(shared_root: Path) -> Once:
    def make_once(name: str, make: Callable[[Path], None]) -> Path:
        if (MADE_BEFORE / f"{name}.done").exists():
            return MADE_BEFORE / name
        directory, done = shared_root / name, shared_root / f"{name}.done"
        with FileLock(shared_root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(directory, ignore_errors=True)  # of an attempt that failed
                directory.mkdir()
                make(directory)
                done.touch()
        return directory

    return make_once


@pytest.fixture(scope="session")
def mini(private_cache: None) -> Path:
    """The directory of the miniature; it is shared, so tests change copies of it (`checkpoints.copy_checkpoint`)."""
    return make_miniature()


@pytest.fixture(scope="session")
def mini_building(once: Once, mini: Path) -> Path:
    """A directory with ``build``, the finished fp8-dynamic build of the miniature, and what making it answered."""

    def make(directory: Path) -> None:
        arguments = ("fp8-dynamic", "--model", "mini", "--output", directory / "build", "--format", "json")
        outcome = run_script("build.py", *arguments)
        assert outcome.code == 0, outcome.err + outcome.out
        keep_outcome(directory, outcome)

    return once("mini-build", make)


@pytest.fixture(scope="session")
def mini_build(mini_building: Path) -> Path:
    """The finished fp8-dynamic build of the miniature; it is shared, so tests change copies of it."""
    return mini_building / "build"


@pytest.fixture(scope="session")
def python() -> Path:
    """The Python of an environment with vLLM."""
    from tests.serving_answers import serving_python
    from weighbridge.extras.serving.answer import ServingError

    try:
        return serving_python()
    except ServingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def signed_builds(once: Once, mini: Path) -> Path:
    """Builds of the miniature that are signed with ``key.pem``, and ``other.pem``, the key of somebody else.

    ``build`` and ``older`` have the same bytes and other times; ``other`` is of another recipe.
    """

    def make(directory: Path) -> None:
        for name in ("key", "other"):
            make_key_pair(directory / f"{name}.pem", directory / f"{name}.pub.pem", curve="P-256")
        for name, recipe in (("older", "fp8-dynamic"), ("other", "fp8-block"), ("build", "fp8-dynamic")):
            place = directory / name
            outcome = run_script(
                "build.py", recipe, "--model", "mini", "--output", place, "--sign", directory / "key.pem"
            )
            assert outcome.code == 0, outcome.err + outcome.out

    return once("signed-builds", make)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests with tiny matrices: torch's threads fight with those of the other test worker."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def run_build() -> Command:
    """``python build.py …`` in a process of its own."""
    return lambda *arguments, **options: run_script("build.py", *arguments, **options)


@pytest.fixture(scope="session")
def run_validate() -> Command:
    """``python validate.py …`` in a process of its own."""
    return lambda *arguments, **options: run_script("validate.py", *arguments, **options)


@pytest.fixture(scope="session", autouse=True)
def room() -> Iterator[None]:
    """Builds and audits in this process start beside all that other tests have loaded by then, which is gigabytes."""
    resources.DEFAULT_MEMORY, usual = ROOM, resources.DEFAULT_MEMORY
    yield
    resources.DEFAULT_MEMORY = usual


@pytest.fixture
def call_build() -> Command:
    """build.py in this process, which holds more than a build may by default."""
    return lambda *arguments: call_main(build.main, (*arguments, *_room(arguments)))


@pytest.fixture
def call_validate() -> Command:
    """validate.py in this process, which holds more than an audit may by default."""
    return lambda *arguments: call_main(validate.main, (*arguments, *_room(arguments)))


def _room(arguments: Sequence[str | Path]) -> tuple[str, ...]:
    """What holds no tensor takes no option for it."""
    return () if {"--memory", "--plan", "--new-recipe"} & {*arguments} else ("--memory", str(ROOM))


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no import of torch, or of what imports it, succeed: what runs all the same does without."""
    for name in ("torch", "llmcompressor", "compressed_tensors", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)


def run_script(script: str, *arguments: str | Path, env: dict[str, str] | None = None, **options: Any) -> Outcome:
    """Run a script of the repository with this Python.

    Args:
        env: variables to add to an environment from which personal settings are taken.
        options: further options of `subprocess.run`, e.g. ``cwd``, ``umask``, ``preexec_fn``.
    """
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment(env), capture_output=True, text=True, check=False, **options)
    return Outcome(done.returncode, done.stdout, done.stderr)


def environment(added: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a subprocess: offline, with the tests' own cache, without what a person has set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PERSONAL)}
    return {**kept, "HF_HUB_OFFLINE": "1", "WEIGHBRIDGE_CACHE": os.environ["WEIGHBRIDGE_CACHE"], **(added or {})}


def keep_outcome(directory: Path, outcome: Outcome) -> None:
    """Write down what a command answered, for tests in other workers."""
    (directory / "outcome.json").write_text(json.dumps(asdict(outcome)))


def kept_outcome(directory: Path) -> Outcome:
    """What `keep_outcome` wrote down."""
    return Outcome(**json.loads((directory / "outcome.json").read_text()))


def call_main(main: Callable[[Sequence[str]], int], arguments: Sequence[str | Path]) -> Outcome:
    """A command in this process."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse's own way out
            code = int(stop.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())
