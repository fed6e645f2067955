"""A real vLLM, started for a test that asks it as a user would: over OpenAI's API, and by its log."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from weighbridge.extras.serving.environment import DEFAULT, python_of

PYTHON = Path(os.environ.get("WEIGHBRIDGE_SERVING_PYTHON", python_of(DEFAULT)))
"""The Python of an environment with vLLM: the one that ``make serve-env`` makes, if no other is named."""

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

TEXT_ALONE = ("--limit-mm-per-prompt", '{"image": 0, "audio": 0, "video": 0}')
"""Options with which the towers of a miniature stay out of it."""


@dataclass(frozen=True)
class Server:
    """A server that is ready.

    Attributes:
        url: where it is.
        log: what it has said so far.
    """

    url: str
    log: Path


@contextmanager
def serving(checkpoint: Path, directory: Path, *options: str) -> Iterator[Server]:
    """Serve a checkpoint as ``it`` until the block ends; its log goes into `directory`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "it"]
    command += ["--enforce-eager", "--dtype", "bfloat16", *options]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VLLM_"))}
    log = directory / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment | SETTINGS, stdout=out, stderr=subprocess.STDOUT)
        try:
            while "Application startup complete" not in log.read_text():
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(1)
            yield Server(f"http://127.0.0.1:{port}", log)
        finally:
            process.terminate()
            process.wait()
