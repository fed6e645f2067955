"""What somebody puts into a build while it grows, or between two runs of it, does not become part of what is signed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import copy_checkpoint, without_evidence
from tests.conftest import Command, Once, Outcome, environment, run_script
from weighbridge import evidence
from weighbridge.building.judging import judge
from weighbridge.building.making import Work, make
from weighbridge.checkpoint.model import open_directory
from weighbridge.engines.streaming import work
from weighbridge.engines.streaming.pieces import Job, cut
from weighbridge.engines.streaming.work import read_back
from weighbridge.machine.hashing import hash_shard
from weighbridge.output.shards import lay_out_shards
from weighbridge.planning import make_plan
from weighbridge.recipe import load_recipe
from weighbridge.work.reading import reader_of

SHARDS = ("--shard-size", "3MB")

STOPPED = """
import os, signal, sys
from weighbridge.cli import build
from weighbridge.work import journal

add = journal.Journal.add
left = int(sys.argv.pop(1))

def add_and_stop(self, *finished):
    global left
    add(self, *finished)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

journal.Journal.add = add_and_stop
sys.exit(build.main(sys.argv[1:]))
"""
"""build.py, killed when so many pieces are finished."""


def run_build(source: Path, output: Path, *options: str) -> Outcome:
    return run_script(
        "build.py", "fp8-dynamic", "--model", source, "--output", output, *SHARDS, "--workers", "1", *options
    )


@pytest.fixture(scope="module")
def undisturbed(once: Once, mini: Path) -> dict[str, bytes]:
    """The files of the build that nobody touches."""

    def make(directory: Path) -> None:
        outcome = run_build(mini, directory / "build")
        assert outcome.code == 0, outcome

    return without_evidence(once("undisturbed-in-shards", make) / "build")


@pytest.fixture
def source(mini: Path, tmp_path: Path) -> Path:
    return copy_checkpoint(mini, tmp_path / "source")


@pytest.fixture
def killed(source: Path, tmp_path: Path) -> Path:
    """The staging directory of a build that was killed with two pieces done."""
    command = [sys.executable, "-c", STOPPED, "2", "fp8-dynamic", "--model", str(source), *SHARDS, "--workers", "1"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "place" / "build")],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done
    (staging,) = (tmp_path / "place").glob(".build.staging-*")
    return staging


def first_shard(staging: Path) -> Path:
    return min((staging / "checkpoint").glob("*.part"))


def journalled(staging: Path) -> list[tuple[str, int, dict[str, Any]]]:
    """Each line's code, the piece, and what is said of it."""
    lines = [line.split(" ", 1) for line in (staging / "journal.jsonl").read_text().splitlines()]
    return [(code, *json.loads(entry)) for code, entry in lines]


def write_below(path: Path, content: bytes = b"planted") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def link_to_victim(staging: Path, name: str) -> None:
    """A link under a name that the build will write to, to a file of the user's elsewhere."""
    (staging / "checkpoint" / name).symlink_to(victim(staging))


def victim(staging: Path) -> Path:
    path = staging.parent.parent / "victim"
    path.write_bytes(b"precious")
    return path


def shard_as_a_link(staging: Path) -> None:
    """A finished shard is replaced by a link to a copy, which somebody can change after it was checked."""
    shard = first_shard(staging)
    shard.rename(staging.parent.parent / "elsewhere")
    shard.symlink_to(staging.parent.parent / "elsewhere")


def shard_of_two_names(staging: Path) -> None:
    os.link(first_shard(staging), staging.parent.parent / "other-name")


def hard_link_to_victim(staging: Path) -> None:
    first_shard(staging).unlink()
    os.link(victim(staging), first_shard_name(staging))


def first_shard_name(staging: Path) -> Path:
    return staging / "checkpoint" / "model-00001-of-00004.safetensors.part"


def altered_shard(staging: Path) -> bytes:
    """Another byte in a finished piece; gives the shard's content."""
    shard = first_shard(staging)
    content = bytearray(shard.read_bytes())
    content[next(index for index in range(len(content) - 1, 0, -1) if content[index])] ^= 1
    shard.write_bytes(content)
    return bytes(content)


def altered_with_its_journal(staging: Path) -> None:
    """Other bytes in the finished pieces, and a journal that says that these are what was written."""
    altered_shard(staging)
    source = open_directory(staging.parent.parent / "source")
    plan = make_plan(load_recipe("fp8-dynamic"), source)
    laid_out = [replace(shard, name=f"{shard.name}.part") for shard in lay_out_shards(plan, 3_000_000)]
    pieces = cut(plan, source, laid_out)
    job = Job(reader_of(source), staging / "checkpoint", "cpu", True)
    lines = journalled(staging)
    for _, number, said in lines:
        piece = pieces[number]
        said["written"] = read_back(job, piece)
        for strip in (strip for strip in piece.strips if strip.whole):
            for local, region in strip.writes.items():
                content = (staging / "checkpoint" / region.file).read_bytes()[region.offset :][: region.tensor.nbytes]
                said["tensors"][strip.names[local]] = hashlib.sha256(content).hexdigest()
    assert lines != journalled(staging)
    entries = [(code, json.dumps([number, said], separators=(",", ":"))) for code, number, said in lines]
    (staging / "journal.jsonl").write_text("".join(f"{code} {entry}\n" for code, entry in entries))


def link_journal(staging: Path) -> None:
    (staging / "journal.jsonl").rename(staging.parent.parent / "journal")
    (staging / "journal.jsonl").symlink_to(staging.parent.parent / "journal")


def pipe_for_journal(staging: Path) -> None:
    (staging / "journal.jsonl").unlink()
    os.mkfifo(staging / "journal.jsonl")


PLANTS: dict[str, Callable[[Path], object]] = {
    "a file": lambda staging: write_below(staging / "checkpoint/modeling_evil.py"),
    "what a killed run left of a file": lambda staging: write_below(staging / "checkpoint/.config.json.3oqynwkc"),
    "a file in a folder": lambda staging: write_below(staging / "checkpoint/a/b/file.json"),
    "a tokenizer": lambda staging: write_below(staging / "checkpoint/tokenizer.json"),
    "other weights": lambda staging: write_below(staging / "checkpoint/consolidated.safetensors"),
    "evidence": lambda staging: write_below(staging / "checkpoint/evidence/more.json"),
    "a file of an evil name": lambda staging: write_below(staging / "checkpoint/a\nb"),
    "an empty folder": lambda staging: (staging / "checkpoint/empty").mkdir(),
    "a folder where a file goes": lambda staging: (staging / "checkpoint/config.json").mkdir(),
    "a pipe": lambda staging: os.mkfifo(staging / "checkpoint/pipe"),
    "a link where config.json goes": lambda staging: link_to_victim(staging, "config.json"),
    "a link where the tokenizer goes": lambda staging: link_to_victim(staging, "tokenizer.json"),
    "a link where the card goes": lambda staging: link_to_victim(staging, "README.base.md"),
    "a link where the evidence goes": lambda staging: (staging / "checkpoint/evidence").symlink_to(staging.parent),
    "a link where the index goes": lambda staging: link_to_victim(staging, "model.safetensors.index.json"),
    "a link where a shard goes": shard_as_a_link,
    "a shard under a second name": shard_of_two_names,
    "a second name of a file where a shard goes": hard_link_to_victim,
    "a shard with other bytes": altered_shard,
    "a shard with other bytes, and a journal": altered_with_its_journal,
    "a journal that is a link": link_journal,
    "a journal of nonsense": lambda staging: (staging / "journal.jsonl").write_text(
        f'[0,{{}}]\n{"0" * 64} [0,{{}}]\n[]\nnull\n"x"\n\xff\n'
    ),
    "a pipe in the journal's place": pipe_for_journal,
    "what a killed run left of a journal": lambda staging: write_below(staging / ".journal.jsonl.3oqynwkc"),
    "a link with the name of that": lambda staging: (staging / ".journal.jsonl.3oqynwkc").symlink_to(victim(staging)),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_what_was_planted_between_two_runs_is_no_part_of_the_build(
    plant: str, killed: Path, source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    PLANTS[plant](killed)
    outcome = run_build(source, tmp_path / "place" / "build")
    assert outcome.code == 0, outcome
    assert without_evidence(tmp_path / "place" / "build") == undisturbed
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["build"]
    assert victim_is_as_it_was(tmp_path)


def victim_is_as_it_was(directory: Path) -> bool:
    return not (directory / "victim").exists() or (directory / "victim").read_bytes() == b"precious"


def test_what_was_finished_is_found_again(killed: Path, source: Path, tmp_path: Path) -> None:
    outcome = run_build(source, tmp_path / "place" / "build")
    assert "2 found finished by an earlier run" in " ".join(outcome.out.split())


def test_nothing_is_found_again_by_whoever_has_another_secret(killed: Path, source: Path, tmp_path: Path) -> None:
    """As on another machine, or after the cache was cleared: begun anew, and never believed."""
    outcome = run_script(
        "build.py",
        *("fp8-dynamic", "--model", source, "--output", tmp_path / "place" / "build", *SHARDS),
        env={"WEIGHBRIDGE_CACHE": str(tmp_path / "cache")},
    )
    assert outcome.code == 0, outcome
    assert "found finished" not in outcome.out


def give_away(staging: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    os.chown(staging, 12345, -1)


def as_a_link(staging: Path) -> None:
    staging.rename(staging.with_name("moved"))
    staging.symlink_to("moved")


def as_a_file(staging: Path) -> None:
    shutil.rmtree(staging)
    staging.write_text("")


OPENINGS: dict[str, Callable[[Path], object]] = {
    "readable by the group": lambda staging: staging.chmod(0o750),
    "writable by anybody": lambda staging: staging.chmod(0o707),
    "a link": as_a_link,
    "a file": as_a_file,
    "somebody else's": give_away,
}


@pytest.mark.parametrize("opening", OPENINGS)
def test_staging_that_others_could_write_to_is_refused(
    opening: str, killed: Path, source: Path, tmp_path: Path
) -> None:
    OPENINGS[opening](killed)
    outcome = run_build(source, tmp_path / "place" / "build")
    assert outcome.code == 2, outcome
    assert "others than this user could have written into it" in outcome.err
    assert not (tmp_path / "place" / "build").exists()


def test_secret_that_others_could_read_is_refused(mini: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "secret").write_bytes(b"x" * 32)
    (tmp_path / "cache" / "secret").chmod(0o644)
    command = ("build.py", "fp8-dynamic", "--model", mini, "--output", tmp_path / "build")
    outcome = run_script(*command, env={"WEIGHBRIDGE_CACHE": str(tmp_path / "cache")})
    assert outcome.code == 2
    assert "is not this user's alone" in outcome.err


def test_staging_is_its_users_alone(killed: Path) -> None:
    assert killed.stat().st_mode & 0o777 == 0o700
    assert (killed / "journal.jsonl").stat().st_mode & 0o777 == 0o600


def test_file_that_the_source_no_longer_has_is_not_carried(source: Path, tmp_path: Path) -> None:
    """A run that was killed when it had copied everything, before anything was signed."""
    (source / "added_tokens.json").write_text("{}")
    program = STOPPED.replace("journal.Journal.add = add_and_stop", AT_THE_INDEX)
    command = [sys.executable, "-c", program, "1", "fp8-dynamic", "--model", str(source), *SHARDS]
    output = tmp_path / "place" / "build"
    done = subprocess.run([*command, "--output", str(output)], env=environment(), capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done
    (staging,) = (tmp_path / "place").glob(".build.staging-*")
    assert (staging / "checkpoint" / "added_tokens.json").exists()
    (source / "added_tokens.json").unlink()
    outcome = run_build(source, output)
    assert outcome.code == 0, outcome
    assert "found finished by an earlier run" in " ".join(outcome.out.split())
    assert not (output / "added_tokens.json").exists()


AT_THE_INDEX = """
from weighbridge.output import shards
def stop(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
shards.finish = stop
"""


# While it is built: by a process of the same user, which no directory keeps out.


def config_of_others(growing: Path) -> None:
    (growing / "config.json").write_text((growing / "config.json").read_text() + "\n")


def flipped(growing: Path) -> None:
    shard = min(growing.glob("*.safetensors*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    before = shard.stat()
    with shard.open("r+b") as file:
        file.write(content)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))


MEANWHILE: dict[str, Callable[[Path], object]] = {
    "a file": lambda growing: write_below(growing / "notes.txt"),
    "a file that models have": lambda growing: write_below(growing / "added_tokens.json"),
    "a link": lambda growing: (growing / "link").symlink_to("config.json"),
    "a folder": lambda growing: (growing / "folder").mkdir(),
    "another tokenizer": lambda growing: write_below(growing / "tokenizer_config.json", b"{}"),
    "another config": config_of_others,
    "other weights": flipped,
    "a file taken away": lambda growing: (growing / "generation_config.json").unlink(),
    "a shard replaced by a copy of it": lambda growing: replaced(min(growing.glob("*.safetensors*"))),
}


def replaced(path: Path) -> None:
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def at_judging(change: Callable[[Path], object], patch: pytest.MonkeyPatch) -> None:
    def after(built: Any, *arguments: Any, **named: Any) -> Any:
        reports = judge(built, *arguments, **named)
        change(built.directory)
        return reports

    patch.setattr("weighbridge.building.judge", after)


def at_signing(change: Callable[[Path], object], patch: pytest.MonkeyPatch) -> None:
    write = evidence.write

    def before(directory: Path, *arguments: Any, **named: Any) -> None:
        change(directory)
        write(directory, *arguments, **named)

    patch.setattr(evidence, "write", before)


def after_signing(change: Callable[[Path], object], patch: pytest.MonkeyPatch) -> None:
    write = evidence.write

    def after(directory: Path, *arguments: Any, **named: Any) -> None:
        write(directory, *arguments, **named)
        change(directory)

    patch.setattr(evidence, "write", after)


def after_making(change: Callable[[Path], object], patch: pytest.MonkeyPatch) -> None:
    def after(work: Work, growing: Any, **named: Any) -> Any:
        made = make(work, growing, **named)
        change(growing.checkpoint)
        return made

    patch.setattr("weighbridge.building.make", after)


MOMENTS = {"made": after_making, "judged": at_judging, "to be signed": at_signing}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("change", MEANWHILE)
def test_what_is_planted_while_it_is_built_is_not_signed(
    change: str, moment: str, mini: Path, tmp_path: Path, call_build: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    MOMENTS[moment](MEANWHILE[change], monkeypatch)
    outcome = call_build("fp8-dynamic", "--model", mini, "--output", tmp_path / "place" / "build")
    assert outcome.code in (1, 2), outcome
    assert not (tmp_path / "place").exists() or list((tmp_path / "place").iterdir()) == []


@pytest.mark.parametrize("change", MEANWHILE)
def test_what_is_planted_when_it_was_signed_is_refused(
    change: str, mini: Path, tmp_path: Path, call_build: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_signing(MEANWHILE[change], monkeypatch)
    outcome = call_build("fp8-dynamic", "--model", mini, "--output", tmp_path / "place" / "build")
    assert outcome.code == 2, outcome
    assert not (tmp_path / "place").exists() or list((tmp_path / "place").iterdir()) == []


def test_weights_that_are_changed_before_they_are_hashed_are_refused(
    mini: Path, tmp_path: Path, call_build: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change_first(path: Path, spans: Any, **_: Any) -> Any:
        flipped(path.parent)
        return hash_shard(path, spans)

    monkeypatch.setattr("weighbridge.engines.streaming.run.hash_shard", change_first)
    outcome = call_build("fp8-dynamic", "--model", mini, "--output", tmp_path / "build")
    assert outcome.code == 2, outcome
    assert "is not what this build wrote" in outcome.err


def test_a_shard_that_became_a_link_is_not_written_through(tmp_path: Path) -> None:
    elsewhere, shard = tmp_path / "elsewhere", tmp_path / "shard"
    elsewhere.write_bytes(b"somebody's")
    shard.symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        work._write(shard, 0, b"codes")
    assert elsewhere.read_bytes() == b"somebody's"
