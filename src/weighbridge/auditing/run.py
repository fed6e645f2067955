"""Running an audit: pieces in threads, the base's digests beside them, figures added up in the order of the pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from weighbridge.auditing.journal import Journal, Seen
from weighbridge.auditing.pieces import Piece
from weighbridge.auditing.work import Job, Result, look
from weighbridge.progress import Progress

WORKER_PIECES = 14
"""What a worker holds at most, in pieces: both sides, and of smoothed modules three copies as float32."""


@dataclass
class Figures:
    """What a run saw.

    Attributes:
        seen: index of a pair -> its figures, all rows added up.
        digests: SHA-256 (hex) of each of the base's shards that was read whole.
        found: pieces that an earlier run had finished.
    """

    seen: dict[int, Result]
    digests: dict[str, str] = field(default_factory=dict)
    found: int = 0


def run(
    job: Job,
    pieces: Sequence[Piece],
    *,
    journal: Journal,
    workers: int,
    hashing: Mapping[str, tuple[int, Callable[[], str]]],
    progress: Progress,
) -> Figures:
    """Look at every piece that `journal` does not know yet.

    Args:
        hashing: shard of the base -> its bytes, and what hashes it.

    Raises:
        StructureError, HubError: a side cannot be read.
    """
    done = {number: seen for number, seen in journal.finished().items() if number < len(pieces)}
    figures = Figures({}, found=len(done))
    todo = [piece for piece in pieces if piece.number not in done]

    def finish(piece: Piece, seen: Seen) -> None:
        journal.add(piece.number, seen)
        done[piece.number] = seen
        progress.advance(piece.nbytes)

    tasks: deque[tuple[Callable[..., Any], Callable[[Any], None]]] = deque()
    for name, (_, hash_it) in hashing.items():
        tasks.append((hash_it, _keep(figures.digests, name)))
    for piece in todo:
        tasks.append((partial(look, job, piece), partial(finish, piece)))
    total = sum(piece.nbytes for piece in todo) + sum(size for size, _ in hashing.values())
    with (
        progress.stage("auditing", total),
        ThreadPoolExecutor(workers, thread_name_prefix="audit") as pool,
    ):
        _in_turn(pool, tasks, 2 * workers)
    figures.seen = _added(done[piece.number] for piece in pieces)
    return figures


def _keep(digests: dict[str, str], name: str) -> Callable[[str], None]:
    def keep(digest: str) -> None:
        digests[name] = digest

    return keep


def _in_turn(
    pool: ThreadPoolExecutor, tasks: deque[tuple[Callable[..., Any], Callable[[Any], None]]], at_a_time: int
) -> None:
    """Run tasks and hand each result on; a failure cancels what is waiting."""
    running: dict[Future[Any], Callable[[Any], None]] = {}
    try:
        while tasks or running:
            while tasks and len(running) < at_a_time:
                work, then = tasks.popleft()
                running[pool.submit(work)] = then
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            # What is done is written down before what failed beside it ends the run.
            for future in sorted(finished, key=lambda done: done.exception() is not None):
                running.pop(future)(future.result())
    finally:
        for future in running:
            future.cancel()


def _added(results: Iterable[Seen]) -> dict[int, Result]:
    added: dict[int, Result] = {}
    for seen in results:
        for pair, result in seen:
            before = added.get(pair)
            added[pair] = result if before is None else before + result  # type: ignore[operator]
    return added
