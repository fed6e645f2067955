"""The journal of finished pieces: what it says of them, and what of it is believed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from weighbridge.work.journal import Journal

SEEN = [[0, "Measure", {"elements": 3, "snr": float("inf")}], "ä"]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "journal", b"key")
    journal.add(7, SEEN)
    return journal


def test_what_was_added_is_found(journal: Journal) -> None:
    journal.add(8, None)
    assert Journal(journal.path, b"key").finished() == {7: SEEN, 8: None}


def test_torn_line_counts_for_nothing_and_spoils_none_that_follows(journal: Journal) -> None:
    whole = journal.path.read_bytes()
    for cut in range(1, len(whole)):
        journal.path.write_bytes(whole + whole[:-cut])
        assert journal.finished() == {7: SEEN}
        journal.rewrite(journal.finished())
        journal.add(8, SEEN)
        assert journal.finished() == {7: SEEN, 8: SEEN}


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b" ", bytes(64), b"text", b"\xff\xfe", b"[]", b"7", b"[7,null]", b"[" * 100_000),
        *(b"0" * 64 + b" [8,null]", b" [8,null]", "ä [8,null]".encode()),
    ],
    ids=lambda line: repr(line[:40]),
)
def test_line_that_was_not_written_with_the_key_counts_for_nothing(line: bytes, journal: Journal) -> None:
    with journal.path.open("ab") as file:
        file.write(line + b"\n")
    assert journal.finished() == {7: SEEN}
    journal.add(8, SEEN)
    assert journal.finished() == {7: SEEN, 8: SEEN}


def test_line_of_another_key_is_not_believed(journal: Journal) -> None:
    assert Journal(journal.path, b"other").finished() == {}


def test_line_in_which_any_byte_is_another_is_not_believed(journal: Journal) -> None:
    content = journal.path.read_bytes()
    for place in range(len(content) - 1):
        journal.path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert journal.finished() == {}


def test_link_is_neither_read_nor_written_through(journal: Journal, tmp_path: Path) -> None:
    elsewhere = journal.path.rename(tmp_path / "elsewhere")
    content = elsewhere.read_bytes()
    journal.path.symlink_to(elsewhere)
    assert journal.finished() == {}
    with pytest.raises(OSError, match="symbolic links"):
        journal.add(8, SEEN)
    journal.rewrite({})
    journal.add(8, SEEN)
    assert journal.finished() == {8: SEEN}
    assert elsewhere.read_bytes() == content


def give_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, -1)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("put", [pipe, give_away])
def test_what_is_no_journal_of_this_user_is_not_read_and_gives_way(
    put: Callable[[Path], object], journal: Journal
) -> None:
    put(journal.path)
    assert journal.finished() == {}
    journal.rewrite({8: SEEN})
    journal.add(9, SEEN)
    assert journal.finished() == {8: SEEN, 9: SEEN}
    assert journal.path.stat().st_mode & 0o777 == 0o600


def test_pipe_in_its_place_is_not_waited_for(journal: Journal) -> None:
    pipe(journal.path)
    with pytest.raises(OSError, match="No such device"):
        journal.add(8, SEEN)


def test_nothing_is_left_of_a_journal_that_cannot_be_begun(journal: Journal) -> None:
    journal.forget()
    journal.path.mkdir()
    with pytest.raises(OSError, match="directory"):
        journal.rewrite({})
    assert list(journal.path.parent.iterdir()) == [journal.path]


def test_another_run_may_take_the_journal_away(journal: Journal) -> None:
    """Of the same audit, which was finished first."""
    journal.forget()
    journal.forget()
    assert journal.finished() == {}
    journal.add(8, SEEN)
    assert journal.finished() == {8: SEEN}


def test_journal_is_its_users_alone(journal: Journal) -> None:
    assert journal.path.stat().st_mode & 0o777 == 0o600
    journal.rewrite({7: SEEN})
    assert journal.path.stat().st_mode & 0o777 == 0o600
