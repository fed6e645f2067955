"""A checkpoint behind vLLM's OpenAI API, while a block runs: started on a free port, stopped for sure."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from weighbridge.extras.serving.answer import ServingError
from weighbridge.extras.serving.client import environment

HOST = "127.0.0.1"
NAME = "checkpoint"
"""What requests call the model."""

_PATIENCE_SECONDS = 10


@contextmanager
def served(
    checkpoint: Path, *, python: Path, log: Path, length: int = 512, threads: int = 1, options: tuple[str, ...] = ()
) -> Iterator[str]:
    """Serve a checkpoint while the block runs.

    It has the kernels that vLLM has for the machine, and no others: on a CPU dense FP8 and W4A16, BF16 experts.

    Args:
        python: of the serving environment.
        log: everything that the server prints goes here.
        length: tokens that a request may take.
        options: further options of the server.

    Yields:
        the address, e.g. ``http://127.0.0.1:8123``.

    Raises:
        ServingError: the server ended before it answered.
    """
    port = _free_port()
    command = [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint.resolve())),
        *("--served-model-name", NAME, "--host", HOST, "--port", str(port), "--enforce-eager"),
        *("--max-model-len", str(length), "--dtype", "bfloat16", *options),
    ]
    with log.open("wb") as output:
        server = subprocess.Popen(  # noqa: S603
            command,
            env=environment(threads=threads),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its own process group: the engine's processes end with it
            cwd=log.parent,
        )
    try:
        address = f"http://{HOST}:{port}"
        _await(server, address, log)
        yield address
    finally:
        _stop(server)


def ask(address: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request to the server, e.g. ``/v1/completions``; its answer as JSON."""
    data = None if body is None else json.dumps({"model": NAME, **body}).encode()
    request = Request(f"{address}{path}", data=data, headers={"Content-Type": "application/json"})  # noqa: S310
    with urlopen(request) as answer:  # noqa: S310
        found: dict[str, Any] = json.loads(answer.read() or b"{}")
    return found


def _await(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Wait until the server answers, however slow the machine is, or until it has ended."""
    while server.poll() is None:
        try:
            ask(address, "/health")
            return
        except URLError:
            time.sleep(0.5)
    raise ServingError(
        f"the server ended before it answered (exit code {server.returncode})",
        where=str(log),
        remedy="its last lines say why",
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server's whole process group: politely, then for sure."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, how)
        except ProcessLookupError:
            break  # all of it has ended
        try:
            server.wait(timeout=_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    server.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
    return port
