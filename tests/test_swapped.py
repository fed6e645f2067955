"""A file that is another one, or has other bytes, than when it was first read is refused, whenever that happens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import copy_checkpoint
from tests.conftest import Command
from weighbridge.auditing.pieces import cut as cut_for_audit
from weighbridge.auditing.run import run as run_audit
from weighbridge.building.judging import judge
from weighbridge.checkpoint.header import read_header
from weighbridge.checkpoint.model import open_directory
from weighbridge.engines.streaming.work import do
from weighbridge.errors import StructureError
from weighbridge.machine.hashing import hash_file, hash_shard
from weighbridge.machine.standing import changed, opened, standing_of
from weighbridge.output.shards import carry_files
from weighbridge.planning import make_plan
from weighbridge.progress import Progress

SHARD = "model-00002-of-00002.safetensors"

Change = Callable[[Path], object]


def renamed_over(path: Path) -> None:
    """The same bytes but one, in another file that takes its name."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    other = path.with_name("other")
    other.write_bytes(content)
    shutil.copystat(path, other)
    other.rename(path)


def rewritten_in_place(path: Path) -> None:
    """Another last byte, and the times that a program can set as they were."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b" ")


def replaced_by_its_copy(path: Path) -> None:
    """The very bytes: nobody can know that before they are read."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    other.rename(path)


def linked_elsewhere(path: Path) -> None:
    other = shutil.copy2(path, path.parent.parent / "elsewhere")
    path.unlink()
    path.symlink_to(other)


CHANGES: dict[str, Change] = {
    function.__name__.replace("_", " "): function
    for function in (renamed_over, rewritten_in_place, cut_short, grown, replaced_by_its_copy, linked_elsewhere)
}


@pytest.fixture
def source(mini: Path, tmp_path: Path) -> Path:
    return copy_checkpoint(mini, tmp_path / "source")


def once(change: Callable[[], object]) -> Callable[[], None]:
    left = [change]

    def act() -> None:
        if left:
            left.pop()()

    return act


Hook = Callable[[Callable[[], object], pytest.MonkeyPatch], None]


def before(name: str, function: Callable[..., Any]) -> Hook:
    """Something happens right before a function of the product is called the first time."""

    def hook(change: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
        act = once(change)

        def called(*arguments: Any, **named: Any) -> Any:
            act()
            return function(*arguments, **named)

        patch.setattr(name, called)

    return hook


def after(name: str, function: Callable[..., Any]) -> Hook:
    """Something happens right after a function of the product returned the first time."""

    def hook(change: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
        act = once(change)

        def called(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            act()
            return result

        patch.setattr(name, called)

    return hook


BUILD_MOMENTS: dict[str, Hook] = {
    "when the headers were read": before("weighbridge.building.make_plan", make_plan),
    "while it is quantized": after("weighbridge.engines.streaming.run.do", do),
    "while outputs are hashed": before("weighbridge.engines.streaming.run.hash_shard", hash_shard),
    "when it was hashed": before("weighbridge.building.judge", judge),
    "when it was judged": after("weighbridge.building.judge", judge),
}


@pytest.mark.parametrize("name", [SHARD, "config.json", "tokenizer.json"])
@pytest.mark.parametrize("moment", BUILD_MOMENTS)
@pytest.mark.parametrize("change", CHANGES)
def test_source_that_changes_is_refused_by_a_build(
    change: str,
    moment: str,
    name: str,
    source: Path,
    tmp_path: Path,
    call_build: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    BUILD_MOMENTS[moment](lambda: CHANGES[change](source / name), monkeypatch)
    outcome = call_build("fp8-dynamic", "--model", source, "--output", tmp_path / "build", "--workers", "1")
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1
    assert "changed while it was read" in outcome.err
    assert not (tmp_path / "build").exists()


@contextmanager
def another_in_its_place(source: Path) -> Iterator[None]:
    """Another directory of other weights stands under the source's name for a while; no file of it is touched."""
    other = copy_checkpoint(source, source.parent / "other")
    rewritten_in_place(other / SHARD)
    source.rename(source.parent / "aside")
    other.rename(source)
    yield
    source.rename(other)
    (source.parent / "aside").rename(source)


def test_source_that_is_another_only_while_it_is_quantized_is_refused(
    source: Path, tmp_path: Path, call_build: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(*arguments: Any) -> Any:
        with another_in_its_place(source):
            return do(*arguments)

    monkeypatch.setattr("weighbridge.engines.streaming.run.do", swapped)
    outcome = call_build("fp8-dynamic", "--model", source, "--output", tmp_path / "build", "--workers", "1")
    assert outcome.code == 2, outcome
    assert "changed while it was read" in outcome.err
    assert not (tmp_path / "build").exists()


def test_file_that_is_another_only_while_it_is_copied_is_refused(
    source: Path, tmp_path: Path, call_build: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(*arguments: Any) -> Any:
        with another_in_its_place(source):
            return carry_files(*arguments)

    monkeypatch.setattr("weighbridge.output.shards.carry_files", swapped)
    outcome = call_build("fp8-dynamic", "--model", source, "--output", tmp_path / "build", "--workers", "1")
    assert outcome.code == 2, outcome
    assert "changed while it was read" in outcome.err


AUDIT_MOMENTS: dict[str, Hook] = {
    "when the headers were read": before("weighbridge.auditing.assess.cut", cut_for_audit),
    "when its weights were looked at": after("weighbridge.auditing.assess.run", run_audit),
}


@pytest.mark.parametrize("moment", AUDIT_MOMENTS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("side", "name"),
    [("source", SHARD), ("source", "config.json"), ("build", "model.safetensors"), ("build", "config.json")],
    ids=str,
)
def test_what_changes_is_refused_by_an_audit(
    side: str,
    name: str,
    change: str,
    moment: str,
    source: Path,
    mini_build: Path,
    tmp_path: Path,
    call_validate: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = {"source": source, "build": copy_checkpoint(mini_build, tmp_path / "build")}
    AUDIT_MOMENTS[moment](lambda: CHANGES[change](places[side] / name), monkeypatch)
    outcome = call_validate(places["build"], "--source", source, "--workers", "1")
    assert outcome.code == 2, outcome
    assert "changed while it was read" in outcome.err


def test_base_that_is_another_only_while_it_is_audited_is_refused(
    source: Path, mini_build: Path, call_validate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(*arguments: Any, **named: Any) -> Any:
        with another_in_its_place(source):
            return run_audit(*arguments, **named)

    monkeypatch.setattr("weighbridge.auditing.assess.run", swapped)
    outcome = call_validate(mini_build, "--source", source, "--workers", "1")
    assert outcome.code == 2, outcome
    assert "changed while it was read" in outcome.err


@pytest.mark.parametrize("change", CHANGES)
def test_shard_that_changes_before_its_evidence_hashes_it_is_refused(
    change: str, mini_build: Path, tmp_path: Path, call_validate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = copy_checkpoint(mini_build, tmp_path / "build")
    before("weighbridge.evidence.subject.hash_shard", hash_shard)(
        lambda: CHANGES[change](build / "model.safetensors"), monkeypatch
    )
    outcome = call_validate(build, "--evidence")
    assert outcome.code in (1, 2), outcome
    assert "changed while it was read" in outcome.out + outcome.err


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_header_was_read_from_is_held_against_what_is_hashed(change: str, source: Path) -> None:
    header = read_header(source / SHARD, where=SHARD)
    CHANGES[change](source / SHARD)
    with pytest.raises(StructureError, match="changed while it was read"):
        hash_file(source / SHARD, Progress(shown=False), known=header.standing)


def test_what_a_header_was_read_from_is_what_stood_there(source: Path) -> None:
    assert open_directory(source).shards[SHARD].standing == standing_of((source / SHARD).stat())


def test_refusal_says_what_where_and_what_to_do() -> None:
    assert str(changed("x/config.json")) == (
        "x/config.json: has changed while it was read; nothing is said of it; run this again when nobody writes there"
    )


def test_file_that_is_written_to_while_it_is_hashed_for_the_first_time_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(b"as it was")
    with pytest.raises(StructureError, match="has changed while it was read"), opened(path, None, where="shard"):
        path.write_bytes(b"otherwise!")
