"""Pieces done by tasks of a Ray cluster."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import redirect_stdout
from importlib.util import find_spec
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar
from urllib.parse import urlsplit

from weighbridge.errors import Argument, BuildError, Clause
from weighbridge.work.running import Threads

PATIENCE = 10.0
"""Seconds within which a cluster must take a connection."""

P = ParamSpec("P")
T = TypeVar("T")


def check_cluster(address: str) -> None:
    """Refuse a Ray cluster that nothing answers for: ``ray.init`` would wait for it without an end.

    Raises:
        BuildError: Ray is not installed, or nothing takes a connection at the address.
    """
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        if place.hostname is not None and place.port is not None:  # "auto" is looked for by Ray itself
            socket.create_connection((place.hostname, place.port), timeout=PATIENCE).close()
    except (OSError, ValueError) as error:
        raise BuildError(
            f"cannot connect to a Ray cluster ({error})",
            where=Clause(Argument("ray"), f" {address}"),
            remedy="'ray start --head' begins one and says its address",
        ) from error
    if find_spec("ray") is None:
        raise BuildError(
            "needs the package ray", where=Clause(Argument("executor"), " ray"), remedy="pip install 'weighbridge[ray]'"
        )


class RayExecutor:
    """Tasks of a Ray cluster whose machines see the same files; a task whose machine dies is done again elsewhere."""

    def __init__(self, address: str) -> None:
        import ray

        # Ray says what it has to say on standard output, which is the report's.
        self._redirected = redirect_stdout(sys.stderr)
        self._redirected.__enter__()
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
        self._ray = ray
        self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._here = Threads(1)
        self._remote: dict[Any, Any] = {}

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if function not in self._remote:
            # Writing the same bytes at the same offsets twice is harmless, so a lost task is simply run again.
            self._remote[function] = self._ray.remote(max_retries=-1)(function)
        future: Future[T] = self._remote[function].remote(*args, **kwargs).future()
        return future

    def submit_here(self, function: Callable[[], T]) -> Future[T]:
        return self._here.submit_here(function)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._here.__exit__(kind, error, trace)
        self._ray.shutdown()
        self._redirected.__exit__(kind, error, trace)
