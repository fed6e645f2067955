"""Doing work in turn: by threads of this process, or by whatever else runs functions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, Protocol, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Executor(Protocol):
    """Runs functions of pieces.

    Attributes:
        workers: how many run at a time.
    """

    workers: int

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a module-level function of picklable values, wherever there is room."""

    def submit_here(self, function: Callable[[], T]) -> Future[T]:
        """Run a function in this process."""


class Threads:
    """Threads: kernels, hashing and input/output all let go of the interpreter's lock."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="piece")

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._pool.submit(function, *args, **kwargs)

    def submit_here(self, function: Callable[[], T]) -> Future[T]:
        return self._pool.submit(function)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


class Task(NamedTuple):
    """Something to do.

    Attributes:
        begin: hands it to an executor.
        then: takes the result, in the thread that waits for it; gives what is to be done next, before all else.
    """

    begin: Callable[[], Future[Any]]
    then: Callable[[Any], Iterable[Task]]


def in_turn(tasks: Iterable[Task], workers: int) -> None:
    """Do tasks in their order, some ahead of the workers; a failure cancels what is waiting."""
    waiting = deque(tasks)
    running: dict[Future[Any], Callable[[Any], Iterable[Task]]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:
                task = waiting.popleft()
                running[task.begin()] = task.then
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            # What is done is written down before what failed beside it ends the run.
            for future in sorted(finished, key=lambda done: done.exception() is not None):
                waiting.extendleft(running.pop(future)(future.result()))
    finally:
        for future in running:
            future.cancel()
