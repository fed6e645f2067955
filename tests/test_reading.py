"""What reads a checkpoint on disk: one file opened once, copied to other processes, closed when nobody holds it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints import copy_checkpoint, shards_of
from weighbridge.checkpoint.model import open_directory
from weighbridge.errors import StructureError
from weighbridge.formats.tensors import Tensor
from weighbridge.machine.columns import Columns
from weighbridge.work import reading
from weighbridge.work.reading import Reader, read_stored, reader_of
from weighbridge.work.regions import Region


def first_bytes(reader: Reader, shard: Path) -> bytes:
    target = bytearray(100)
    reader.read(shard.name, 7, memoryview(target))
    return bytes(target)


def opened(shard: Path) -> int:
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum(os.path.realpath(path) == str(shard.resolve()) for path in links)


def test_reader_and_its_copies_read_what_lies_there_and_close_it(mini: Path, tmp_path: Path) -> None:
    shard = shards_of(copy_checkpoint(mini, tmp_path / "copy"))[0]
    reader = reader_of(open_directory(tmp_path / "copy"))
    copy = pickle.loads(pickle.dumps(reader))
    for _ in range(2):
        for each in (reader, copy):
            assert first_bytes(each, shard) == shard.read_bytes()[7:107]
    assert opened(shard) == 2
    del copy, each
    assert opened(shard) == 1
    del reader
    assert opened(shard) == 0


def test_file_that_changed_since_its_header_was_read_is_refused_to_all_who_ask(mini: Path, tmp_path: Path) -> None:
    shard = shards_of(copy_checkpoint(mini, tmp_path / "copy"))[0]
    reader = reader_of(open_directory(tmp_path / "copy"))
    os.utime(shard, ns=(1, 1))
    for each in (reader, reader, pickle.loads(pickle.dumps(reader))):
        with pytest.raises(StructureError, match="changed while it was read"):
            first_bytes(each, shard)


def test_what_cannot_be_read_is_refused_by_name(mini: Path, tmp_path: Path) -> None:
    shard = shards_of(copy_checkpoint(mini, tmp_path / "copy"))[0]
    reader = reader_of(open_directory(tmp_path / "copy"))
    with pytest.raises(StructureError, match=f"{shard.name}: has become shorter while it was read"):
        reader.read(shard.name, shard.stat().st_size - 3, memoryview(bytearray(4)))
    other = reader_of(open_directory(tmp_path / "copy"))
    shard.unlink()
    with pytest.raises(StructureError, match=rf"{shard.name}: cannot be read \(No such file"):
        first_bytes(other, shard)


class InMemory:
    """A file of random bytes, and how many of them were read."""

    def __init__(self, size: int) -> None:
        self.content = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        self.count = 0

    def read(self, file: str, offset: int, target: memoryview) -> None:
        self.count += len(target)
        target[:] = memoryview(self.content[offset : offset + len(target)].data)


@given(
    lines=st.integers(1, 9),
    width=st.integers(1, 40),
    step=st.integers(1, 3),
    starts=st.lists(st.tuples(st.integers(0, 39), st.integers(1, 40)), min_size=1, max_size=12),
)
def test_rows_that_lie_as_columns_are_the_same_whatever_was_read_ahead(
    lines: int, width: int, step: int, starts: list[tuple[int, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "WINDOW_BYTES", 128)
        patch.setattr(reading, "WORTH_AHEAD", 16)
        reader = InMemory(5 + lines * width * 2)
        matrix = reader.content[5:].view(np.uint16).reshape(lines, width)
        for start, most in starts:
            columns = Columns(start % width, step, width)
            count = min(most, columns.left)
            target = np.empty((count, lines), np.uint16)
            region = Region("file", 5, Tensor("BF16", (count, lines)), columns)
            read_stored(reader, region, memoryview(target.reshape(-1).view(np.uint8).data))
            assert (target == matrix[:, start % width :: step][:, :count].T).all()


def test_a_matrix_is_passed_once_for_many_rows_that_lie_as_its_columns() -> None:
    lines, width, each = 512, 4096, 512
    reader = InMemory(lines * width * 2)
    for first in range(0, width, each):
        region = Region("file", 0, Tensor("BF16", (each, lines)), Columns(first, 1, width))
        read_stored(reader, region, memoryview(bytearray(each * lines * 2)))
    assert reader.count == lines * width * 2
