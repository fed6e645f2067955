"""Running an audit: pieces in threads, the base's digests beside them, figures added up in the order of the pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from weighbridge.auditing.measure import Difference, Measure
from weighbridge.auditing.pieces import Strip
from weighbridge.auditing.work import Job, Result, look
from weighbridge.progress import Progress
from weighbridge.work.journal import Journal
from weighbridge.work.pieces import Piece
from weighbridge.work.running import Task, Threads, in_turn

Seen = list[tuple[int, Result]]

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
    pieces: Sequence[Piece[Strip]],
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
        KeyboardInterrupt: with what the user can do.
    """
    known = {number: seen for number, seen in journal.finished().items() if number < len(pieces)}
    journal.rewrite(known)
    done = {number: _seen(kept) for number, kept in known.items()}
    figures = Figures({}, found=len(done))
    todo = [piece for piece in pieces if piece.number not in done]

    def finish(piece: Piece[Strip], seen: Seen) -> Iterable[Task]:
        journal.add(piece.number, _kept(seen))
        done[piece.number] = seen
        progress.advance(piece.nbytes)
        return ()

    def keep(name: str, digest: str) -> Iterable[Task]:
        figures.digests[name] = digest
        return ()

    total = sum(piece.nbytes for piece in todo) + sum(size for size, _ in hashing.values())
    try:
        with progress.stage("auditing", total), Threads(workers) as threads:
            hashes = hashing.items()
            tasks = [Task(partial(threads.submit, hash_it), partial(keep, name)) for name, (_, hash_it) in hashes]
            tasks += [Task(partial(threads.submit, look, job, piece), partial(finish, piece)) for piece in todo]
            in_turn(tasks, workers)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what was audited is kept; give the same command again to go on") from None
    figures.seen = _added(done[piece.number] for piece in pieces)
    return figures


_KINDS: Mapping[str, type[Measure] | type[Difference]] = {kind.__name__: kind for kind in (Measure, Difference)}
_COLUMNS = frozenset({"settled", "zero_columns", "live_columns", "improving"})
"""Figures that have a bit for each column, or step: JSON cannot have integers of any size."""


def _kept(seen: Seen) -> list[Any]:
    """What a journal keeps of a piece."""
    return [[pair, type(result).__name__, _fields(result)] for pair, result in seen]


def _fields(result: Result) -> dict[str, Any]:
    values = {item.name: getattr(result, item.name) for item in fields(result)}
    return {name: hex(value) if name in _COLUMNS else value for name, value in values.items()}


def _seen(kept: list[Any]) -> Seen:
    return [
        (pair, _KINDS[kind](**{name: _figure(name, value) for name, value in values.items()}))
        for pair, kind, values in kept
    ]


def _figure(name: str, value: Any) -> Any:
    """A figure as JSON has it."""
    if name in _COLUMNS:
        return int(value, 16)
    return tuple(value) if isinstance(value, list) else value


def _added(results: Iterable[Seen]) -> dict[int, Result]:
    added: dict[int, Result] = {}
    for seen in results:
        for pair, result in seen:
            before = added.get(pair)
            added[pair] = result if before is None else before + result  # type: ignore[operator]
    return added
