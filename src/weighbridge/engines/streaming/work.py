"""Doing a piece: read, quantize, write, digest. The same function runs in a thread here and in a task elsewhere."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from weighbridge.engines.codes import of_codes
from weighbridge.engines.rewriting import Rewrite, Rewritten, Stored, UnusableScale, rewritten
from weighbridge.engines.streaming.pieces import COPY, Job, Strip
from weighbridge.errors import BuildError
from weighbridge.machine.hashing import blocks_of
from weighbridge.numbers import NonFiniteWeight, RangeTooLarge, load_kernels
from weighbridge.numbers.encoding import SOURCES
from weighbridge.work.pieces import Piece
from weighbridge.work.reading import Buffers, Bytes, read_stored
from weighbridge.work.regions import Region

WEIGHT, WEIGHT_SHAPE = "weight", "weight_shape"


@dataclass(frozen=True, slots=True)
class Done:
    """What a finished piece wrote.

    Attributes:
        written: SHA-256 (hex) over all that it wrote, in order: what a resumed build checks it by; empty where no
            digests are taken.
        tensors: output name -> SHA-256 (hex) of its bytes, for the tensors that this piece wrote whole.
        inexact: names of written global scales whose reciprocal is not the scale that the source stores.
    """

    written: str
    tensors: Mapping[str, str]
    inexact: Sequence[str] = ()


@dataclass(frozen=True)
class Shared:
    """What rows have from the whole of their module, or group of modules.

    Attributes:
        largest: `Strip.group` -> the largest of what scales of all its members are made of.
        steps: module -> how many ranges its search tries, where that is not known beforehand.
    """

    largest: Mapping[int, float]
    steps: Mapping[str, int]

    def of(self, piece: Piece[Strip]) -> Shared:
        """What a piece has of it."""
        groups = {strip.group for strip in piece.strips if strip.group is not None}
        modules = {strip.module for strip in piece.strips}
        return Shared(
            {group: self.largest[group] for group in groups},
            {module: self.steps[module] for module in modules & self.steps.keys()},
        )


def improving(job: Job, piece: Piece[Strip]) -> dict[str, int]:
    """For each module of a piece whose search may stop, the steps that lessen the error of any tile, a bit for each.

    Raises:
        BuildError: a weight of which no scale can be made.
        StructureError: the source cannot be read, or is no longer the one whose header was read.
    """
    kernels = load_kernels(job.device)
    found: dict[str, int] = {}
    for strip in piece.strips:
        if strip.search is not None and strip.search.may_stop:
            assert strip.scheme is not None
            with _refused_by_name(strip):
                lessened = kernels.improving(_weight(job, strip), strip.weight.dtype, strip.scheme)
            found[strip.module] = found.get(strip.module, 0) | lessened
    return found


def largest(job: Job, piece: Piece[Strip], steps: Mapping[str, int]) -> dict[int, float]:
    """The largest of what the scales of each group in a piece are made of (`Strip.group` -> value).

    Args:
        steps: see `Shared`.

    Raises:
        BuildError: a weight of which no scale can be made.
        StructureError: the source cannot be read, or is no longer the one whose header was read.
    """
    found: dict[int, float] = {}
    for strip in piece.strips:
        if strip.group is not None:
            with _refused_by_name(strip):
                value = _largest(job, strip, steps.get(strip.module))
            found[strip.group] = max(found.get(strip.group, 0.0), value)
    return found


def do(job: Job, piece: Piece[Strip], shared: Shared) -> Done:
    """Write everything that a piece's strips become.

    Raises:
        BuildError: a weight of which no scale can be made.
        StructureError: the source cannot be read, or is no longer the one whose header was read.
        OSError: the output cannot be written.
    """
    everything = hashlib.sha256()
    tensors = {}
    inexact: list[str] = []
    for strip in piece.strips:
        if strip.rewrite is None:
            contents = _results(job, strip, shared)
        else:
            rewritten = _rewritten(job, strip, strip.rewrite)
            contents = rewritten.contents
            inexact += [strip.names[local] for local in rewritten.inexact if local in strip.writes]
        for local, region in strip.writes.items():
            content = contents[local]
            assert len(content) == region.tensor.nbytes, (strip.module, local, len(content), region)
            _write(job.output / region.file, region.offset, content)
            if job.digests:
                digest = hashlib.sha256(content)
                everything.update(digest.digest())
                if strip.whole:
                    tensors[strip.names[local]] = digest.hexdigest()
    return Done(everything.hexdigest() if job.digests else "", tensors, inexact)


def read_back(job: Job, piece: Piece[Strip]) -> str:
    """What `Done.written` of a piece would be if it had written what lies there now.

    Raises:
        OSError: the output cannot be read.
    """
    everything = hashlib.sha256()
    for strip in piece.strips:
        for region in strip.writes.values():
            digest = hashlib.sha256()
            with _opened(job.output / region.file, os.O_RDONLY, "rb") as file:
                file.seek(region.offset)
                for block in blocks_of(file, region.tensor.nbytes):
                    digest.update(block)
            everything.update(digest.digest())
    return everything.hexdigest()


def _results(job: Job, strip: Strip, shared: Shared) -> Mapping[str, memoryview | bytes]:
    if strip.scheme is None and strip.reads[COPY].coded is None:
        return {COPY: _read(job, strip.reads[COPY]).data}
    with _refused_by_name(strip):
        weight = _weight(job, strip)
        if strip.scheme is None:
            return {WEIGHT: weight.reshape(-1).view(np.uint8).data}
        amax = None if strip.group is None else shared.largest[strip.group]
        steps = shared.steps.get(strip.module)
        arrays = load_kernels(job.device).quantize(weight, strip.weight.dtype, strip.scheme, amax=amax, steps=steps)
    contents: dict[str, memoryview | bytes] = {
        local: array.reshape(-1).view(np.uint8).data for local, array in arrays.items()
    }
    contents[WEIGHT_SHAPE] = struct.pack("<2q", *strip.shape)
    return contents


def _weight(job: Job, strip: Strip) -> npt.NDArray[np.generic]:
    """The rows of a weight: as the source has them, or as its codes mean them."""
    region = strip.reads[COPY]
    if region.coded is not None:
        from weighbridge.numbers.decoding import decoded  # numba, which a copy does without

        return of_codes(partial(_read, job), region.coded, strip.weight.shape[0], decoded)
    return _read(job, region).view(SOURCES[strip.weight.dtype].array).reshape(strip.weight.shape)


def _largest(job: Job, strip: Strip, steps: int | None) -> float:
    """The largest of what the scales of some rows are made of."""
    region = strip.reads[COPY]
    assert strip.scheme is not None
    if region.coded is None or strip.search is not None:
        return load_kernels(job.device).largest(_weight(job, strip), strip.weight.dtype, strip.scheme, steps=steps)
    from weighbridge.numbers.decoding import largest

    return of_codes(partial(_read, job), region.coded, strip.weight.shape[0], largest)


def _rewritten(job: Job, strip: Strip, rewrite: Rewrite) -> Rewritten:
    stored = {local: Stored(region.tensor, _read(job, region, local).data) for local, region in strip.reads.items()}
    try:
        return rewritten(rewrite, stored)
    except UnusableScale as problem:
        raise BuildError(str(problem), where=f"{strip.module}.{problem.local}", remedy=problem.remedy) from None


_buffers = Buffers()


def _read(job: Job, region: Region, purpose: str = COPY) -> Bytes:
    """A region of the source in this thread's buffer for `purpose`, valid until the thread reads for it again."""
    buffer = _buffers.of(purpose, region.tensor.nbytes)
    read_stored(job.source, region, memoryview(buffer.data))
    return buffer


def _opened(path: Path, flags: int, mode: str) -> io.FileIO:
    """A file of the output, which must not have become a link."""
    return io.FileIO(os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC), mode)


def _write(path: Path, offset: int, content: memoryview | bytes) -> None:
    with _opened(path, os.O_RDWR, "r+b") as file:
        written = 0
        while written < len(content):
            written += os.pwrite(file.fileno(), content[written:], offset + written)


@contextmanager
def _refused_by_name(strip: Strip) -> Iterator[None]:
    try:
        yield
    except NonFiniteWeight as problem:
        raise BuildError(
            f"{problem} and cannot be quantized",
            where=f"{strip.module}.weight",
            remedy="the source is damaged: compare its digests with the published ones",
        ) from None
    except RangeTooLarge as problem:
        raise BuildError(
            str(problem),
            where=f"{strip.module}.weight",
            remedy="take another observer for it, or one that expands less, or add it to ignore",
        ) from None
