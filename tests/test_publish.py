"""``make publish``: the real client uploads to a hub on this machine what its evidence holds for, and nothing else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.checkpoints import copy_checkpoint, rewrite
from tests.conftest import Command, Once, Outcome, environment, run_script
from tests.hub_server import Hub, failing, rewritten, serve

TOKEN = "hf_writer"
REPOSITORY = "us/gemma-4-mini-FP8"


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub that holds nothing yet and lets one token write."""
    with serve({}, token=TOKEN) as hub:
        yield hub


def run_publish(hub: Hub, scratch: Path, *arguments: str | Path, token: str = TOKEN) -> Outcome:
    """The command as a script runs it, which has agreed to what is listed."""
    return run_unagreed(hub, scratch, *arguments, "--yes", token=token)


def run_unagreed(hub: Hub, scratch: Path, *arguments: str | Path, token: str = TOKEN) -> Outcome:
    variables = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": token,
        "HF_HOME": str(scratch / "home"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    command = [sys.executable, "-m", "weighbridge.cli.publish", *map(str, arguments)]
    done = subprocess.run(command, env=environment(variables), capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def download(hub: Hub, scratch: Path, target: Path | None) -> Path:
    """What the hub client makes of a repository: a snapshot of links in its cache, or a directory of files."""
    where = f", local_dir={str(target)!r}" if target else ""
    program = f"from huggingface_hub import snapshot_download\nprint(snapshot_download({REPOSITORY!r}{where}))"
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(scratch / "reader"), "HF_HUB_OFFLINE": "0"}
    added = {**variables, "NO_PROXY": "127.0.0.1,localhost"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment(added), capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def complaints(done: Outcome) -> list[str]:
    """The errors that a command said after it had listed what would go, the last line."""
    *listed, last = done.err.splitlines()
    assert not any(line.startswith("error: ") for line in listed)
    return [last] if last.startswith("error: ") else []


def contents(checkpoint: Path) -> dict[str, bytes]:
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return {path.relative_to(checkpoint).as_posix(): path.read_bytes() for path in files}


def test_build_is_published_as_it_stands_with_its_evidence(hub: Hub, signed_builds: Path, tmp_path: Path) -> None:
    done = run_publish(hub, tmp_path, signed_builds / "build", REPOSITORY, "--key", signed_builds / "key.pub.pem")
    assert done.code == 0, done.err + done.out
    assert hub.commit_of(REPOSITORY) in done.out.replace("\n      ", "")
    assert hub.content(REPOSITORY) == contents(signed_builds / "build")


def test_another_build_takes_the_place_of_the_first_and_leaves_nothing_of_it(
    hub: Hub, signed_builds: Path, mini_build: Path, tmp_path: Path
) -> None:
    assert run_publish(hub, tmp_path, signed_builds / "build", REPOSITORY).code == 0
    done = run_publish(hub, tmp_path, mini_build, REPOSITORY)
    assert done.code == 0, done.err + done.out
    assert hub.content(REPOSITORY) == contents(mini_build)


def test_altered_build_is_not_published(hub: Hub, mini_build: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(mini_build, tmp_path / "copy")
    rewrite(copy / "chat_template.jinja", b"altered")
    done = run_publish(hub, tmp_path, copy, REPOSITORY)
    assert done.code == 1
    assert "nothing was uploaded" in done.out
    assert "chat_template.jinja" in done.out
    assert hub.requests() == []


def test_build_that_somebody_else_signed_is_not_published(hub: Hub, signed_builds: Path, tmp_path: Path) -> None:
    done = run_publish(hub, tmp_path, signed_builds / "build", REPOSITORY, "--key", signed_builds / "other.pub.pem")
    assert done.code == 1
    assert hub.requests() == []


def test_token_that_may_not_write_is_said_in_one_sentence(hub: Hub, mini_build: Path, tmp_path: Path) -> None:
    done = run_publish(hub, tmp_path, mini_build, REPOSITORY, token="hf_reader")
    assert done.code == 2
    assert len(complaints(done)) == 1
    assert "hf_reader" not in done.err


def test_hub_that_breaks_off_is_said_in_one_sentence(hub: Hub, mini_build: Path, tmp_path: Path) -> None:
    hub.alter(r"/commit/", failing(500))
    done = run_publish(hub, tmp_path, mini_build, REPOSITORY)
    assert done.code == 2
    assert len(complaints(done)) == 1


def test_hub_that_holds_something_else_afterwards_is_found_out(hub: Hub, mini_build: Path, tmp_path: Path) -> None:
    def lose_a_file(answer: dict[str, list[dict[str, str]]]) -> object:
        answer["siblings"] = [item for item in answer["siblings"] if item["rfilename"] != "config.json"]
        return answer

    hub.alter(r"/api/models/.*/revision/", rewritten(lose_a_file))
    done = run_publish(hub, tmp_path, mini_build, REPOSITORY)
    assert done.code == 1
    assert "publish/other-files" in done.out
    assert "config.json" in done.out


def test_what_is_no_hub_id_is_refused(hub: Hub, mini_build: Path, tmp_path: Path) -> None:
    done = run_publish(hub, tmp_path, mini_build, "not-an-id")
    assert done.code == 2
    assert "org/name" in done.err


@pytest.mark.parametrize("place", ["the client's cache", "a directory"])
def test_what_was_published_holds_where_it_is_downloaded(
    place: str, hub: Hub, signed_builds: Path, tmp_path: Path, call_validate: Command
) -> None:
    assert run_publish(hub, tmp_path, signed_builds / "build", REPOSITORY, "--public").code == 0
    directory = download(hub, tmp_path, tmp_path / "local" if place == "a directory" else None)
    outcome = call_validate(directory, "--evidence", "--key", signed_builds / "key.pub.pem")
    assert outcome.code == 0, outcome.out
    command = [sys.executable, "-m", "model_signing", "verify", "key", directory]
    command += ["--signature", directory / "evidence/model.sig", "--public_key", signed_builds / "key.pub.pem"]
    links = ["--allow_symlinks"] if place == "the client's cache" else []
    done = subprocess.run([*map(str, command), *links], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def visibility(hub: Hub) -> bool:
    """Whether the repository is private."""
    return REPOSITORY in hub._private


@pytest.mark.parametrize(("options", "private"), [((), True), (("--public",), False)], ids=["as it is", "--public"])
def test_repository_is_private_unless_it_is_to_be_public(
    options: tuple[str, ...], private: bool, hub: Hub, mini_build: Path, tmp_path: Path
) -> None:
    assert run_publish(hub, tmp_path, mini_build, REPOSITORY, *options).code == 0
    assert visibility(hub) is private


def test_repository_that_is_public_already_gets_nothing_that_was_not_to_be_public(
    hub: Hub, mini_build: Path, signed_builds: Path, tmp_path: Path
) -> None:
    assert run_publish(hub, tmp_path, mini_build, REPOSITORY, "--public").code == 0
    done = run_publish(hub, tmp_path, signed_builds / "build", REPOSITORY)
    assert done.code == 2
    assert "anybody may see it" in complaints(done)[0]
    assert hub.content(REPOSITORY) == contents(mini_build)


def test_every_file_is_listed_with_its_size_before_anything_is_sent(hub: Hub, mini_build: Path, tmp_path: Path) -> None:
    done = run_unagreed(hub, tmp_path, mini_build, REPOSITORY)
    lines = [line.split() for line in done.err.splitlines()]
    assert {name: f"{len(content):,}" for name, content in contents(mini_build).items()}.items() <= {
        line[1]: line[0] for line in lines if len(line) == 2
    }.items()
    assert hub.requests() == []


def test_nothing_is_sent_where_there_is_nobody_to_ask(hub: Hub, mini_build: Path, tmp_path: Path) -> None:
    done = run_unagreed(hub, tmp_path, mini_build, REPOSITORY)
    assert done.code == 2
    assert "--yes" in complaints(done)[0]
    assert hub.requests() == []


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("\n", 2)], ids=["yes", "no", "nothing"])
def test_who_sits_at_a_terminal_is_asked(answer: str, code: int, hub: Hub, mini_build: Path, tmp_path: Path) -> None:
    variables = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    command = [sys.executable, "-m", "weighbridge.cli.publish", str(mini_build), REPOSITORY]
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        command, env=environment(variables), stdin=terminal, stdout=subprocess.DEVNULL, stderr=terminal
    )
    os.close(terminal)
    os.write(master, answer.encode())
    said = b""
    with suppress(OSError):  # the terminal is closed
        while part := os.read(master, 4096):
            said += part
    os.close(master)
    assert process.wait() == code, said
    assert b"upload it, private? [y/N]" in said
    assert bool(hub.requests()) is (code == 0)


STRAYS = (".env", ".netrc", "id_rsa", "train.jsonl", "notes/secret.txt")


@pytest.fixture(scope="module")
def build_with_strays(once: Once, mini: Path) -> Path:
    """A build that took over what no model needs, because that was named."""

    def make(directory: Path) -> None:
        source = copy_checkpoint(mini, directory / "source")
        (source / "notes").mkdir()
        for name in STRAYS:
            (source / name).write_text("hf_secret")
        named = [option for name in STRAYS for option in ("--carry", name)]
        outcome = run_script("build.py", "fp8-dynamic", "--model", source, "--output", directory / "build", *named)
        assert outcome.code == 0, outcome.err + outcome.out

    return once("build-with-strays", make) / "build"


def test_file_that_no_model_needs_is_not_published_unless_it_is_named(
    hub: Hub, build_with_strays: Path, tmp_path: Path
) -> None:
    done = run_publish(hub, tmp_path, build_with_strays, REPOSITORY, "--include", "id_rsa", "--include", "*.jsonl")
    assert done.code == 2
    assert ".env and 2 more" in complaints(done)[0]
    assert hub.requests() == []


def test_file_that_no_model_needs_is_published_where_it_is_named(
    hub: Hub, build_with_strays: Path, tmp_path: Path
) -> None:
    named = [option for name in STRAYS for option in ("--include", name)]
    done = run_publish(hub, tmp_path, build_with_strays, REPOSITORY, *named)
    assert done.code == 0, done.err + done.out
    assert set(STRAYS) <= hub.content(REPOSITORY).keys()
