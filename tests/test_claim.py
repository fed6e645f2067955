"""A target belongs to one build at a time, and nothing is replaced but what was there when the build began."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.checkpoints import contents, without_evidence
from tests.conftest import ROOT, environment
from weighbridge.errors import BuildError
from weighbridge.output import staging
from weighbridge.output.staging import Interrupted, claimed, staged

OLD = {"config.json": b"old", "model.safetensors": b"old weights", "sub/file": b"old"}
NEW = {"config.json": b"new", "model.safetensors": b"new weights"}


def write(directory: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def build(target: Path, *, force: bool = False, meanwhile: Callable[[Path], object] = lambda _: None) -> None:
    """As a build does it: claim, grow, and take the target's place; `meanwhile` something happens to the target."""
    with claimed(target, force=force, source=None) as claim, staged(claim, key="key") as growing:
        write(growing.checkpoint, NEW)
        meanwhile(target)
        growing.commit()


def no_second_name(path: Path) -> list[str]:
    return sorted(beside.name for beside in path.parent.iterdir() if beside != path)


def kept_build(target: Path) -> dict[str, bytes]:
    return contents(target.parent / f".{target.name}.staging-key" / "checkpoint")


@pytest.fixture(params=["renameat2", "rename alone"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the file system can rename without replacing, and swap two names."""
    if request.param == "rename alone":
        monkeypatch.setattr(staging, "_renamed", lambda old, new, how: False)
    return str(request.param)


def touch_back(target: Path) -> None:
    """Other bytes of the same length, with the times of the old."""
    before = (target / "config.json").stat()
    (target / "config.json").write_bytes(b"OLD")
    os.utime(target / "config.json", ns=(before.st_atime_ns, before.st_mtime_ns))


def other_directory(target: Path) -> None:
    target.rename(target.with_name("moved"))
    shutil.copytree(target.with_name("moved"), target)


def become(target: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(target)
    make(target)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file more": lambda target: (target / "notes.txt").write_text("mine"),
    "a file more below": lambda target: (target / "sub/notes.txt").write_text("mine"),
    "a file less": lambda target: (target / "sub/file").unlink(),
    "a file with other bytes": lambda target: (target / "config.json").write_bytes(b"other"),
    "a file with other bytes and its old times": touch_back,
    "a file renamed over": lambda target: (
        write(target, {"x": b"old"}) and (target / "x").rename(target / "config.json")
    ),
    "a file with another mode": lambda target: (target / "config.json").chmod(0o600),
    "another directory with the same files": other_directory,
    "a file in its place": lambda target: become(target, lambda path: path.write_text("mine")),
    "a link in its place": lambda target: become(target, lambda path: path.symlink_to(target.parent)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_while_its_replacement_was_built_is_left_and_the_build_is_kept(
    change: str, file_system: str, tmp_path: Path
) -> None:
    target = write(tmp_path / "place" / "target", OLD)
    seen: list[dict[str, bytes | str]] = []

    def meanwhile(path: Path) -> None:
        CHANGES[change](path)
        seen.append(state(path))

    with pytest.raises(BuildError, match="changed while the build went on"):
        build(target, force=True, meanwhile=meanwhile)
    assert [state(target)] == seen
    assert kept_build(target) == NEW


def test_build_that_was_kept_takes_its_place_when_it_is_asked_for_again(file_system: str, tmp_path: Path) -> None:
    target = write(tmp_path / "place" / "target", OLD)
    with pytest.raises(BuildError):
        build(target, force=True, meanwhile=CHANGES["a file more"])
    build(target, force=True)
    assert contents(target) == NEW
    assert no_second_name(target) == []


def test_what_comes_between_two_renames_is_left_and_the_old_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_renamed", lambda old, new, how: False)
    target = write(tmp_path / "place" / "target", OLD)
    contents_of, seen = staging._contents, 0

    def appear(directory: Path) -> staging.Contents | None:
        nonlocal seen
        seen += directory.name == staging.REPLACED
        if seen == 1:  # the old one was just moved aside
            write(target, {"photo.jpg": b"mine"})
        return contents_of(directory)

    monkeypatch.setattr(staging, "_contents", appear)
    with pytest.raises(BuildError, match="what stood there before is kept in"):
        build(target, force=True)
    assert contents(target) == {"photo.jpg": b"mine"}
    assert contents(target.parent / ".target.staging-key" / staging.REPLACED) == OLD
    assert kept_build(target) == NEW


def state(path: Path) -> dict[str, bytes | str]:
    """A directory's files and what they hold; a file or a link by itself."""
    if path.is_symlink() or not path.is_dir():
        return {"": f"link to {path.readlink()}" if path.is_symlink() else path.read_bytes()}
    return dict(contents(path))


def test_what_was_removed_while_its_replacement_was_built_is_not_replaced(file_system: str, tmp_path: Path) -> None:
    target = write(tmp_path / "place" / "target", OLD)
    with pytest.raises(BuildError, match="changed while the build went on"):
        build(target, force=True, meanwhile=shutil.rmtree)
    assert not target.exists()
    assert kept_build(target) == NEW


def test_what_changes_at_the_very_last_moment_is_put_back(
    file_system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write(tmp_path / "place" / "target", OLD)
    note = staging._note

    def change_and_note(growing: staging.Staging) -> None:  # after it was looked at, before anything is renamed
        note(growing)
        (target / "notes.txt").write_text("mine")

    monkeypatch.setattr(staging, "_note", change_and_note)
    with pytest.raises(BuildError, match="changed while the build went on"):
        build(target, force=True)
    assert contents(target) == {**OLD, "notes.txt": b"mine"}
    assert kept_build(target) == NEW


APPEARANCES: dict[str, Callable[[Path], object]] = {
    "a checkpoint": lambda target: write(target, OLD),
    "a directory with a file": lambda target: write(target, {"photo.jpg": b"mine"}),
    "a file": lambda target: target.write_text("mine"),
    "a link": lambda target: target.symlink_to(target.parent),
    "a link to nothing": lambda target: target.symlink_to("nothing"),
}


@pytest.mark.parametrize("forced", [False, True], ids=["not forced", "forced"])
@pytest.mark.parametrize("appearance", APPEARANCES)
def test_what_came_into_being_while_the_build_went_on_is_left_and_the_build_is_kept(
    appearance: str, forced: bool, file_system: str, tmp_path: Path
) -> None:
    target = tmp_path / "place" / "target"
    seen: list[dict[str, bytes | str]] = []

    def meanwhile(path: Path) -> None:
        APPEARANCES[appearance](path)
        seen.append(state(path))

    with pytest.raises(BuildError, match="came into being there while the build went on"):
        build(target, force=forced, meanwhile=meanwhile)
    assert [state(target)] == seen
    assert kept_build(target) == NEW


def test_what_came_into_an_empty_target_while_the_build_went_on_is_left(file_system: str, tmp_path: Path) -> None:
    target = tmp_path / "place" / "target"
    target.mkdir(parents=True)
    with pytest.raises(BuildError, match="came into being"):
        build(target, meanwhile=lambda path: write(path, OLD))
    assert contents(target) == OLD
    assert kept_build(target) == NEW


@pytest.mark.parametrize("before", [{}, OLD], ids=["nothing", "an old one"])
def test_finished_build_takes_its_place_and_leaves_nothing_beside_it(
    before: Mapping[str, bytes], file_system: str, tmp_path: Path
) -> None:
    target = write(tmp_path / "place" / "target", before)
    build(target, force=True)
    assert contents(target) == NEW
    assert no_second_name(target) == []


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_target_is_as_open_as_the_umask_has_it(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        build(tmp_path / "target")
    finally:
        os.umask(before)
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o777 & ~mask


# One build at a time.

HOLDER = """
import sys
from pathlib import Path
from weighbridge.output.staging import claimed
with claimed(Path(sys.argv[1]), force=True, source=None):
    print("claimed", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has claimed ``target``."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "target")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    yield process
    process.kill()
    process.communicate()


def through_a_link(target: Path) -> Path:
    """The same target by another path."""
    link = target.parent / "link"
    link.symlink_to(target.parent)
    return link / target.name


@pytest.mark.parametrize("path", [lambda target: target, through_a_link], ids=["its path", "another path of it"])
def test_target_that_is_being_built_is_refused_and_says_by_whom(
    path: Callable[[Path], Path], holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(BuildError, match=rf"another build of it is under way \(process {holder.pid} of"):
        build(path(tmp_path / "target"), force=True)
    assert not (tmp_path / "target").exists()


def test_claim_ends_with_the_process_that_was_killed(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    build(tmp_path / "target")
    assert no_second_name(tmp_path / "target") == []


@pytest.mark.parametrize("linked", [False, True])
def test_file_that_is_called_as_a_claim_is_left_alone(linked: bool, tmp_path: Path) -> None:
    place = tmp_path / ".out.claim"
    if linked:
        (tmp_path / "precious").write_text("data")
        os.link(tmp_path / "precious", place)
    else:
        place.write_text("data")
    with pytest.raises(BuildError, match="no build wrote"):
        build(tmp_path / "out")
    assert place.read_text() == "data"


def test_directory_that_is_called_as_staging_and_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / ".out.staging-keys"
    other.mkdir(mode=0o700)
    (other / "id_rsa").write_text("secret")
    build(tmp_path / "out")
    assert (other / "id_rsa").read_text() == "secret"


def test_claim_ends_with_the_build(tmp_path: Path) -> None:
    build(tmp_path / "target")
    build(tmp_path / "target", force=True)
    assert no_second_name(tmp_path / "target") == []


def test_refused_build_leaves_no_directory_that_it_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), claimed(tmp_path / "a" / "b" / "target", force=False, source=None):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_of_two_builds_of_one_target_one_is_there_and_the_other_says_that_it_is_not(mini: Path, tmp_path: Path) -> None:
    recipes = ("fp8-dynamic", "fp8-block")
    processes = [
        subprocess.Popen(
            [sys.executable, ROOT / "build.py", recipe, "--model", "mini", "--output", tmp_path / "target"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        for recipe in recipes
    ]
    answers = {recipe: process.communicate() for recipe, process in zip(recipes, processes, strict=True)}
    codes = {recipe: process.returncode for recipe, process in zip(recipes, processes, strict=True)}
    assert sorted(codes.values()) == [0, 2], answers
    (winner,) = (recipe for recipe, code in codes.items() if code == 0)
    built = json.loads(without_evidence(tmp_path / "target")["config.json"])
    strategy = built["quantization_config"]["config_groups"]["group_0"]["weights"]["strategy"]
    assert strategy == {"fp8-dynamic": "channel", "fp8-block": "block"}[winner]


# Killed at every step of a replacement: one process for each, which stops itself before its nth step.

KILLED = """
import os, signal, sys
from pathlib import Path
from weighbridge.output import staging

target, step, can_swap = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "renameat2"
STEPS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "ctypes.dlsym", "open"}
armed, seen = False, 0

def stop(event, arguments):
    global seen
    if armed and event in STEPS and not (event == "open" and not str(arguments[0]).startswith(str(target.parent))):
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

sys.addaudithook(stop)
if not can_swap:
    def renamed(old, new, how):
        sys.audit("ctypes.dlsym", None, "renameat2")
        return False
    staging._renamed = renamed
with staging.claimed(target, force=True, source=None) as claim, staging.staged(claim, key="key") as growing:
    (growing.checkpoint / "config.json").write_bytes(b"new")
    (growing.checkpoint / "model.safetensors").write_bytes(b"new weights")
    growing.commit()
    armed = True
"""

MOST_STEPS = 60


@pytest.mark.parametrize("can_swap", ["renameat2", "rename alone"])
def test_replacement_that_is_killed_at_any_step_loses_nothing(can_swap: str, tmp_path: Path) -> None:
    """The next run leaves the old or the new there, whole, and a forced build after it ends as it should."""
    kills = 0
    for step in range(MOST_STEPS):
        target = write(tmp_path / str(step) / "target", OLD)
        command = [sys.executable, "-c", KILLED, str(target), str(step), can_swap]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
        with claimed(target, force=True, source=None):
            assert contents(target) in (OLD, NEW), step
        build(target, force=True)
        assert contents(target) == NEW, step
        assert no_second_name(target) == [], step
    assert 8 <= kills < MOST_STEPS, kills


def test_next_run_says_that_it_put_back_what_a_killed_one_had_moved(tmp_path: Path) -> None:
    target = write(tmp_path / "target", OLD)
    settled = set()
    for step in range(MOST_STEPS):
        command = [sys.executable, "-c", KILLED, str(target), str(step), "rename alone"]
        if subprocess.run(command, env=environment(), capture_output=True, check=False).returncode == 0:
            break
        with claimed(target, force=True, source=None) as claim:
            settled.add(claim.settled)
        shutil.rmtree(target)
        write(target, OLD)
        shutil.rmtree(target.with_name(".target.staging-key"), ignore_errors=True)
    assert {
        "",
        "what a killed run had moved aside stands at the target again",
        "the build that a run was killed in stands at its target; what it replaced was removed",
    } == settled


@pytest.mark.parametrize(
    ("left", "goes"),
    [
        *(("journal.jsonl", True), (".journal.jsonl.3oqynwkc", True), ("unfinished", True)),
        *(("journal.new", False), (".journal", False), ("other", False)),
    ],
)
def test_what_is_left_of_a_killed_run_goes_where_a_build_put_all_of_it_there(
    left: str, goes: bool, tmp_path: Path
) -> None:
    target = write(tmp_path / "target", OLD)
    directory = target.with_name(".target.staging-key")
    directory.mkdir(0o700)
    write(directory, {left: b""})
    with claimed(target, force=True, source=None):
        assert directory.exists() is not goes


@pytest.mark.parametrize(
    ("key", "said"),
    [("key", "interrupted; what is done is kept in "), (None, "")],
)
def test_interrupted_build_says_what_is_kept_and_nothing_where_nothing_is(
    key: str | None, said: str, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    with (
        pytest.raises((KeyboardInterrupt, Interrupted)) as caught,
        claimed(target, force=False, source=None) as claim,
        staged(claim, key=key),
    ):
        raise KeyboardInterrupt("an audit can go on")
    assert str(caught.value).startswith(said) if said else not caught.value.args
    assert (no_second_name(target) == []) is (key is None)
