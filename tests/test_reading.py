"""What reads a checkpoint on disk: one file opened once, copied to other processes, closed when nobody holds it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from tests.checkpoints import copy_checkpoint, shards_of
from weighbridge.checkpoint.model import open_directory
from weighbridge.errors import StructureError
from weighbridge.work.reading import Reader, reader_of


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
