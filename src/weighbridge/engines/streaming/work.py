"""Doing a piece: read, quantize, write, digest. The same function runs in a thread here and in a task elsewhere."""

from __future__ import annotations

import hashlib
import math
import os
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from weighbridge.engines.rewriting import Rewrite, Rewritten, Stored, UnusableScale, rewritten
from weighbridge.engines.streaming.pieces import COPY, Decode, Job, Piece, Read, Span, Strip
from weighbridge.errors import BuildError
from weighbridge.formats.codecs import CODES
from weighbridge.formats.tensors import DTYPE_BITS
from weighbridge.machine.columns import Columns, gather
from weighbridge.machine.standing import Standing, check_same
from weighbridge.numbers import NonFiniteWeight, load_kernels
from weighbridge.numbers.encoding import SOURCES

WEIGHT, WEIGHT_SHAPE = "weight", "weight_shape"


@dataclass(frozen=True, slots=True)
class Done:
    """What a finished piece wrote.

    Attributes:
        piece: its number.
        written: SHA-256 (hex) over all that it wrote, in order: what a resumed build checks it by; empty where no
            digests are taken.
        tensors: output name -> SHA-256 (hex) of its bytes, for the tensors that this piece wrote whole.
        inexact: names of written global scales whose reciprocal is not the scale that the source stores.
    """

    piece: int
    written: str
    tensors: Mapping[str, str]
    inexact: Sequence[str] = ()


def largest(job: Job, piece: Piece) -> dict[int, float]:
    """The largest absolute value of each fused group's weights in a piece (group number -> value).

    Raises:
        BuildError: a weight holds NaN or infinity, or the source cannot be read.
        StructureError: the source is no longer the one whose header was read.
    """
    kernels = load_kernels(job.device)
    found: dict[int, float] = {}
    for strip in piece.strips:
        if strip.group is not None:
            with _refused_by_name(strip):
                value = kernels.amax(_weight(job, strip), strip.weight.dtype)
            found[strip.group] = max(found.get(strip.group, 0.0), value)
    return found


def do(job: Job, piece: Piece, group_largest: Mapping[int, float]) -> Done:
    """Write everything that a piece's strips become.

    Args:
        group_largest: for each group of the piece's strips the largest absolute value over all members.

    Raises:
        BuildError: a weight holds NaN or infinity, or the source cannot be read.
        StructureError: the source is no longer the one whose header was read.
        OSError: the output cannot be written.
    """
    everything = hashlib.sha256()
    tensors = {}
    inexact: list[str] = []
    for strip in piece.strips:
        if strip.rewrite is None:
            contents = _results(job, strip, None if strip.group is None else group_largest[strip.group])
        else:
            rewritten = _rewritten(job, strip, strip.rewrite)
            contents = rewritten.contents
            inexact += [strip.names[local] for local in rewritten.inexact if local in strip.writes]
        for local, span in strip.writes.items():
            content = contents[local]
            assert len(content) == span.size, (strip.module, local, len(content), span)
            _write(job.output / span.file, span.offset, content)
            if job.digests:
                digest = hashlib.sha256(content)
                everything.update(digest.digest())
                if strip.whole:
                    tensors[strip.names[local]] = digest.hexdigest()
    return Done(piece.number, everything.hexdigest() if job.digests else "", tensors, inexact)


def read_back(job: Job, piece: Piece) -> str:
    """What `Done.written` of a piece would be if it had written what lies there now.

    Raises:
        OSError: the output cannot be read.
    """
    everything = hashlib.sha256()
    for strip in piece.strips:
        for span in strip.writes.values():
            everything.update(hashlib.sha256(_read(job.output / span.file, span)).digest())
    return everything.hexdigest()


def _results(job: Job, strip: Strip, amax: float | None) -> Mapping[str, memoryview | bytes]:
    if strip.scheme is None and strip.decode is None:
        return {COPY: _read_source(job, strip.reads[COPY])}
    with _refused_by_name(strip):
        weight = _weight(job, strip)
        if strip.scheme is None:
            return {WEIGHT: weight.reshape(-1).view(np.uint8).data}
        arrays = load_kernels(job.device).quantize(weight, strip.weight.dtype, strip.scheme, amax=amax)
    contents: dict[str, memoryview | bytes] = {
        local: array.reshape(-1).view(np.uint8).data for local, array in arrays.items()
    }
    contents[WEIGHT_SHAPE] = struct.pack("<2q", *strip.shape)
    return contents


def _weight(job: Job, strip: Strip) -> npt.NDArray[np.generic]:
    """The rows of a weight: as the source has them, or as its codes mean them."""
    if strip.decode is not None:
        return _decoded(job, strip, strip.decode)
    content = _read_source(job, strip.reads[COPY])
    return np.frombuffer(content, SOURCES[strip.weight.dtype].array).reshape(strip.weight.shape)


def _decoded(job: Job, strip: Strip, how: Decode) -> npt.NDArray[np.generic]:
    from weighbridge.numbers.decoding import Raw, UnusableCodes, decoded  # numba, which a copy does without

    stored: dict[str, Raw] = {}
    # The largest last: all are read into the one buffer of this thread, so that the others must be copied.
    for role, read in sorted(strip.reads.items(), key=lambda item: item[0] == CODES):
        content = np.frombuffer(_read_source(job, read), np.uint8).reshape(read.tensor.shape[0], -1)
        stored[role] = Raw(read.tensor.dtype, content if role == CODES else content.copy())
    try:
        return decoded(how.codec, stored, strip.first, strip.weight.shape[0], strip.shape)
    except UnusableCodes as problem:
        raise BuildError(
            str(problem),
            where=f"{strip.module}.{how.names[problem.role]}",
            remedy="the source is damaged: compare its digests with the published ones",
        ) from None


def _rewritten(job: Job, strip: Strip, rewrite: Rewrite) -> Rewritten:
    # Each is read into the one buffer of this thread, so all but the last would be lost without a copy.
    stored = {local: Stored(read.tensor, bytes(_read_source(job, read))) for local, read in strip.reads.items()}
    try:
        return rewritten(rewrite, stored)
    except UnusableScale as problem:
        raise BuildError(str(problem), where=f"{strip.module}.{problem.local}", remedy=problem.remedy) from None


def _read_source(job: Job, read: Read) -> memoryview:
    span = read.span
    try:
        if read.columns is not None:
            return _read_columns(job, read, read.columns)
        content = _read(job.source / span.file, span, known=job.standings[span.file])
    except OSError as error:
        raise BuildError(f"the source cannot be read ({error.strerror})", where=span.file) from error
    if len(content) != span.size:
        raise BuildError("the source has become shorter while it was read", where=span.file)
    return content


def _read_columns(job: Job, read: Read, columns: Columns) -> memoryview:
    """Rows that lie as columns of a matrix."""
    rows, *inner = read.tensor.shape
    target = memoryview(bytearray(read.tensor.nbytes))
    element = DTYPE_BITS[read.tensor.dtype] // 8
    with (job.source / read.span.file).open("rb", buffering=0) as file:
        check_same(file.fileno(), job.standings[read.span.file], where=read.span.file)

        def fill(offset: int, part: memoryview) -> None:
            if os.preadv(file.fileno(), [part], offset) != len(part):
                raise BuildError("the source has become shorter while it was read", where=read.span.file)

        shape = rows, math.prod(inner)
        gather(fill, columns, offset=read.span.offset, shape=shape, element=element, target=target)
    return target


class _Buffers(threading.local):
    """One buffer a thread: asking for megabytes anew for every strip costs more than quantizing them."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def of(self, size: int) -> memoryview:
        if len(self.buffer) < size:
            self.buffer = bytearray(size)
        return memoryview(self.buffer)[:size]


_buffers = _Buffers()


def _read(path: Path, span: Span, *, known: Standing | None = None) -> memoryview:
    """A span of a file, in this thread's buffer; valid until the thread reads the next.

    Args:
        known: the file as it stood when its header was read, for one that this build does not write itself.
    """
    target = _buffers.of(span.size)
    count = 0
    with path.open("rb", buffering=0) as file:
        check_same(file.fileno(), known, where=str(path))
        while count < span.size and (more := os.preadv(file.fileno(), [target[count:]], span.offset + count)):
            count += more
    return target[:count]


def _write(path: Path, offset: int, content: memoryview | bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        written = 0
        while written < len(content):
            written += os.pwrite(file.fileno(), content[written:], offset + written)


@contextmanager
def _refused_by_name(strip: Strip) -> Iterator[None]:
    try:
        yield
    except NonFiniteWeight:
        raise BuildError(
            "the weight holds NaN or infinity and cannot be quantized",
            where=f"{strip.module}.weight",
            remedy="the source is damaged: compare its digests with the published ones",
        ) from None
