"""Running a job: lay out, check what is there, find shared scales, do the pieces, hash what came out."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from weighbridge.checkpoint.model import Checkpoint, check_unchanged, identities
from weighbridge.engines.streaming.cluster import RayExecutor
from weighbridge.engines.streaming.following import FollowingHash
from weighbridge.engines.streaming.pieces import Job, Strip, cut
from weighbridge.engines.streaming.work import Done, Shared, do, improving, largest, read_back
from weighbridge.errors import Argument, BuildError, Clause
from weighbridge.machine.cache import key_of
from weighbridge.machine.hashing import hash_shard
from weighbridge.machine.installation import version_of
from weighbridge.machine.resources import Resources, affordable_workers
from weighbridge.machine.standing import Standing, standing_of
from weighbridge.numbers import SchemeNotCovered, encoding_of
from weighbridge.output.shards import UNFINISHED, OutputShard, lay_out_shards, unfinished
from weighbridge.output.staging import clear_but
from weighbridge.planning import Plan
from weighbridge.progress import Progress
from weighbridge.version import __version__
from weighbridge.work.journal import Journal
from weighbridge.work.pieces import PIECE_BYTES, Piece
from weighbridge.work.reading import reader_of, worker_bytes
from weighbridge.work.running import Executor, Task, Threads, in_turn

log = logging.getLogger(__name__)

T = TypeVar("T")

NUMERIC_TOOLS = ("numpy", "torch", "compressed-tensors")
#: What a worker holds at most, in pieces: what it read and what it writes; on other devices, and where torch rewrites
#: what is stored, copies in float too.
WORKER_PIECES_CPU, WORKER_PIECES = 4, 16


@dataclass
class Outcome:
    """What a run did and found.

    Attributes:
        pieces: how many pieces the build has.
        found: pieces that an earlier run had finished and that were as it left them.
        altered: numbers of pieces that an earlier run had finished and that were made anew, because they had changed.
        source_digests: SHA-256 (hex) of each source shard.
        shard_digests: SHA-256 (hex) of each output shard.
        standings: each output shard as it stood when it was hashed, by the name that it will have.
        tensor_digests: SHA-256 (hex) of each output tensor's bytes, whatever shard holds it.
        inexact: names of written global scales whose reciprocal is not what the source stores.
    """

    pieces: int
    found: int = 0
    altered: list[int] = field(default_factory=list)
    source_digests: dict[str, str] = field(default_factory=dict)
    shard_digests: dict[str, str] = field(default_factory=dict)
    standings: dict[str, Standing] = field(default_factory=dict)
    tensor_digests: dict[str, str] = field(default_factory=dict)
    inexact: list[str] = field(default_factory=list)


def build_key(plan: Plan, source: Checkpoint, resources: Resources) -> str:
    """A name for everything that determines a build's bytes: recipe, source, layout, tools, kind of device.

    A source file counts by what it was on disk when its header was read (name, size, inode, times of change), so that
    one that was touched between two runs begins a new build; its digest is taken while it is read.
    """
    decides = {"method", "format", "scheme", "config_groups", "ignore", "fused_groups", "kv_cache", "convert"}
    return key_of(
        {
            "recipe": plan.loaded.recipe.model_dump(mode="json", include=decides),
            "source": identities(source),
            "shard_size": resources.shard_size,
            "piece_bytes": PIECE_BYTES,
            "device": sorted({device.partition(":")[0] for device in resources.devices}),
            "tools": {"weighbridge": __version__} | {name: version_of(name) for name in NUMERIC_TOOLS},
        }
    )


def check_covered(plan: Plan) -> None:
    """Refuse a scheme that the kernels have no arithmetic for.

    Raises:
        BuildError: an observer that looks at activations, or an uncommon type, size or combination.
    """
    # Schemes that differ by their observers alone are equal.
    schemes = {repr(part.scheme): part.scheme for part in plan.parts if part.makes_codes and part.scheme is not None}
    for scheme in schemes.values():
        try:
            encoding_of(scheme)
        except SchemeNotCovered as reason:
            raise BuildError(
                f"this engine does not quantize to {scheme.weights} ({reason})",
                where=plan.loaded.document.where,
                remedy=Clause("build it with ", Argument("engine"), " upstream"),
            ) from None


def write(
    plan: Plan,
    source: Checkpoint,
    output: Path,
    *,
    journal: Journal,
    hashed: Checkpoint,
    resources: Resources,
    progress: Progress,
) -> Outcome:
    """Write a build's shards into `output`, going on where an earlier run with the same `journal` stopped.

    Their names end in `UNFINISHED` until `weighbridge.output.shards.finish` says that they are whole. Whatever else
    `output` holds goes.

    Args:
        source: what is read; the plan's own source, on disk.
        hashed: whose shards' digests are taken beside the work: the source, or what that was made of.

    Raises:
        BuildError: a weight that cannot be quantized.
        StructureError: the source cannot be read, or changed since its headers were read.
        WeighbridgeError: too little memory for one worker.
        OSError: the output cannot be written.
    """
    check_covered(plan)
    laid_out = lay_out_shards(plan, resources.shard_size)
    clear_but(output, {name for shard in laid_out for name in (shard.name, f"{shard.name}{UNFINISHED}")})
    shards = [unfinished(shard, output) for shard in laid_out]
    for shard in shards:
        _make_file(output / shard.name, shard)
    reader = reader_of(source)
    jobs = [Job(reader, output.resolve(), device, resources.digests) for device in resources.devices]
    pieces = cut(plan, source, shards)
    lean = all(device == "cpu" for device in resources.devices)
    lean = lean and not any(part.action == "rewrite" for part in plan.parts)
    strips = [strip for piece in pieces for strip in piece.strips]
    each = worker_bytes(
        WORKER_PIECES_CPU if lean else WORKER_PIECES,
        max((strip.weight.nbytes for strip in strips), default=0),
        (region for strip in strips for region in strip.reads.values()),
    )
    workers = affordable_workers(resources.workers, resources.limit, each=each)
    log.info("%d pieces, %d workers, on %s", len(pieces), workers, ", ".join(resources.devices))
    with RayExecutor(resources.ray) if resources.ray else Threads(workers) as executor:
        run = _Run(shards, pieces, jobs, _shard_paths(hashed), resources.digests, executor, progress, journal)
        outcome = run.go()
    for read in (source, hashed):
        check_unchanged(read, read.shards)
    return outcome


@dataclass
class _Run:
    shards: Sequence[OutputShard]
    pieces: Sequence[Piece[Strip]]
    jobs: Sequence[Job]
    hashed: Mapping[Path, Standing | None]
    digests: bool
    executor: Executor
    progress: Progress
    journal: Journal

    def go(self) -> Outcome:
        outcome = Outcome(pieces=len(self.pieces))
        done = self._check_finished(outcome)
        todo = [piece for piece in self.pieces if piece.number not in done]
        self._do(todo, done, self._find_shared(todo), outcome)
        for item in done.values():
            self._check_written(item, outcome)
            outcome.inexact += item.inexact
        outcome.inexact.sort()
        return outcome

    def _job(self, piece: Piece[Strip]) -> Job:
        return self.jobs[piece.number % len(self.jobs)]

    def _check_finished(self, outcome: Outcome) -> dict[int, Done]:
        """Believe the journal only where the bytes are still what it says."""
        claimed = {number: Done(**it) for number, it in self.journal.finished().items() if number < len(self.pieces)}
        found: dict[int, Done] = {}

        def compare(piece: Piece[Strip], digest: str) -> None:
            if digest == claimed[piece.number].written:
                found[piece.number] = claimed[piece.number]
            else:
                outcome.altered.append(piece.number)

        self._each("checking what is there", [self.pieces[number] for number in claimed], read_back, compare)
        outcome.found = len(found)
        if claimed:
            log.info(
                "going on with an earlier run: %d pieces found finished, %d not as they were",
                len(found),
                len(outcome.altered),
            )
        self.journal.rewrite({number: asdict(done) for number, done in found.items()})
        return found

    def _find_shared(self, todo: Sequence[Piece[Strip]]) -> Shared:
        """What must be known of whole modules, and of groups of them, before a first row is quantized."""
        groups = {strip.group for piece in todo for strip in piece.strips if strip.group is not None}
        with_groups = [piece for piece in self.pieces if any(strip.group in groups for strip in piece.strips)]
        searches = {
            strip.module: search
            for piece in (*todo, *with_groups)
            for strip in piece.strips
            if (search := strip.search) is not None and search.may_stop
        }
        searched = [piece for piece in self.pieces if any(strip.module in searches for strip in piece.strips)]
        lessened: dict[str, int] = {}
        found: dict[int, float] = {}

        def join_steps(_: Piece[Strip], values: Mapping[str, int]) -> None:
            lessened.update({module: lessened.get(module, 0) | value for module, value in values.items()})

        def join_largest(_: Piece[Strip], values: Mapping[int, float]) -> None:
            found.update({group: max(found.get(group, 0.0), value) for group, value in values.items()})

        if searched:
            self._each("finding how far to search", searched, improving, join_steps)
        steps = {module: search.reached(lessened[module]) for module, search in searches.items()}
        if groups:
            self._each("finding shared scales", with_groups, largest, join_largest, steps)
        return Shared(found, steps)

    def _each(
        self,
        stage: str,
        pieces: Sequence[Piece[Strip]],
        function: Callable[..., T],
        then: Callable[[Piece[Strip], T], None],
        *further: Any,
    ) -> None:
        """Have `function` done of each piece with its job (and what is `further` said), and `then` what came of it."""

        def finish(piece: Piece[Strip], result: T) -> Iterable[Task]:
            then(piece, result)
            self.progress.advance(piece.nbytes)
            return ()

        with self.progress.stage(stage, sum(piece.nbytes for piece in pieces)):
            in_turn(
                [
                    Task(
                        partial(self.executor.submit, function, self._job(piece), piece, *further),
                        partial(finish, piece),
                    )
                    for piece in pieces
                ],
                self.executor.workers,
            )

    def _do(
        self,
        todo: Sequence[Piece[Strip]],
        done: dict[int, Done],
        shared: Shared,
        outcome: Outcome,
    ) -> None:
        """Do the unfinished pieces; hash the source behind them, and each shard when nothing more goes into it."""
        files = {piece.number: _files(piece) for piece in todo}
        missing = Counter(file for own in files.values() for file in own)
        whole = [shard.name for shard in self.shards if not missing[shard.name]]
        last = max((shard.layout.file_size for shard in self.shards if missing[shard.name]), default=0)
        hashing = FollowingHash(self.hashed if self.digests else {}, distance=last, progress=self.progress)
        to_read = sum(piece.nbytes for piece in todo)
        read = 0

        def hash_more(_: None = None) -> Iterator[Task]:
            if hashing.begin_step(read / to_read if to_read else 1):
                yield Task(partial(self.executor.submit_here, hashing.step), hash_more)

        def hash_whole(name: str) -> Task:
            return Task(partial(self.executor.submit_here, partial(self._hash_shard, name, outcome)), hash_more)

        def finish(piece: Piece[Strip], result: Done) -> Iterator[Task]:
            nonlocal read
            if self.digests:  # nothing could be believed of a piece that has none
                self.journal.add(piece.number, asdict(result))
            done[piece.number] = result
            read += piece.nbytes
            self.progress.advance(piece.nbytes)
            for file in files[piece.number]:
                missing[file] -= 1
                if not missing[file] and self.digests:
                    yield hash_whole(file)
            yield from hash_more()

        tasks = [*hash_more()]
        if self.digests:
            tasks += map(hash_whole, whole)
        for piece in todo:
            begin = partial(self.executor.submit, do, self._job(piece), piece, shared.of(piece))
            tasks.append(Task(begin, partial(finish, piece)))
        with self.progress.stage("quantizing", to_read + hashing.size):
            in_turn(tasks, self.executor.workers)
        outcome.source_digests.update(hashing.digests)

    def _hash_shard(self, name: str, outcome: Outcome) -> None:
        """Hash a shard and every tensor in it as they lie there: what is signed is what was read back, not what was
        meant to be written."""
        layout = next(shard.layout for shard in self.shards if shard.name == name)
        head = len(layout.head)
        spans = {tensor: (head + begin, head + end) for tensor, (begin, end) in layout.ranges.items()}
        path, final = self.jobs[0].output / name, name.removesuffix(UNFINISHED)
        standing = standing_of(path.lstat())
        outcome.shard_digests[final], tensors = hash_shard(path, spans, known=standing)
        outcome.standings[final] = standing
        outcome.tensor_digests.update(tensors)

    def _check_written(self, done: Done, outcome: Outcome) -> None:
        """Refuse a shard in which a tensor is not what the piece that wrote it had written."""
        for tensor, digest in done.tensors.items() if self.digests else ():
            if outcome.tensor_digests[tensor] != digest:
                raise BuildError(
                    "is not what this build wrote: somebody else writes into the directory that it grows in",
                    where=tensor,
                    remedy="find out who, and build anew",
                )


def _shard_paths(checkpoint: Checkpoint) -> dict[Path, Standing | None]:
    assert checkpoint.directory is not None
    return {checkpoint.directory / name: header.standing for name, header in checkpoint.shards.items()}


def _files(piece: Piece[Strip]) -> list[str]:
    """Output shards that a piece writes to."""
    return sorted({region.file for strip in piece.strips for region in strip.writes.values()})


def _make_file(path: Path, shard: OutputShard) -> None:
    """A file of the shard's full size that begins with its header; what is in it already stays."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "r+b") as file:
        file.write(shard.layout.head)
        file.flush()
        if os.fstat(file.fileno()).st_size != shard.layout.file_size:
            os.ftruncate(file.fileno(), shard.layout.file_size)
