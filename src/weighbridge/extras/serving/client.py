"""Asking the client inside a serving environment, in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path

from weighbridge.extras.serving.answer import MAX_ANSWER_BYTES, Answer, Request, ServingError, read_answer
from weighbridge.extras.serving.environment import INSIDE

logger = logging.getLogger(__name__)

CLIENT = "vllm_client"
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_INT4_W4A8": "0",  # otherwise W4A16 would run with inputs of eight bits
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_COMPILE_DISABLE": "1",  # counting ranks of log-probabilities is not worth a compiler
    "HF_HUB_OFFLINE": "1",
}
_PERSONAL = ("PYTHON", "VLLM_", "HF_", "TRANSFORMERS_", "VIRTUAL_ENV")
"""What a person may have set for other uses of Python and vLLM."""


def ask(request: Request, *, python: Path, log: Path) -> Answer:
    """Have the client load a checkpoint, and read its answer.

    Args:
        python: of the serving environment.
        log: everything that the server prints goes here.

    Raises:
        ServingError: the client gave no answer.
    """
    with tempfile.TemporaryDirectory(prefix="weighbridge-serving-") as scratch:
        asked, answered = Path(scratch) / "request.json", Path(scratch) / "answer.json"
        asked.write_text(json.dumps(asdict(request)))
        logger.info("a server of %s loads %s; what it prints goes to %s", python, request.checkpoint, log)
        with log.open("wb") as output:
            done = subprocess.run(  # noqa: S603
                [str(python), "-m", CLIENT, str(asked), str(answered)],
                env=environment(threads=request.threads),
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                cwd=scratch,
            )
        if done.returncode or not answered.is_file() or answered.stat().st_size > MAX_ANSWER_BYTES:
            what = f"the server ended without an answer (exit code {done.returncode})"
            raise ServingError(what, where=str(log), remedy="its last lines say why")
        return read_answer(answered.read_bytes(), where="the server's answer")


def environment(*, threads: int) -> dict[str, str]:
    """The environment of a process inside: offline, quiet, without what a person has set for other Pythons."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_PERSONAL)}
    return {**kept, **SETTINGS, "PYTHONPATH": str(INSIDE), "OMP_NUM_THREADS": str(threads)}
