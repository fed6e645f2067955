"""How an audit runs: resumed, sampled, with other workers and memory, over the hub; and never on what changed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np
import pytest

from tests.alterations import one_row
from tests.checkpoints import copy_checkpoint, shards_of
from tests.conftest import Command
from tests.hub_server import serve, truncated
from tests.test_audit import altered, diverging, look
from weighbridge.auditing import Sample, assess, method_of
from weighbridge.auditing.measure import Measure
from weighbridge.auditing.pairing import KeptPair, Pairing, pair
from weighbridge.auditing.pieces import cut
from weighbridge.auditing.run import WORKER_PIECES
from weighbridge.auditing.work import look as look_at_piece
from weighbridge.checkpoint.model import open_directory
from weighbridge.errors import WeighbridgeError
from weighbridge.formats.tensors import Tensor
from weighbridge.work import reading
from weighbridge.work.pieces import PIECE_BYTES
from weighbridge.work.regions import Region

JOURNALS = "audits"


@pytest.fixture
def journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where journals lie, alone."""
    monkeypatch.setenv("WEIGHBRIDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / JOURNALS


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Lets so many pieces be looked at, and then fails; gives a list of how many more it would let be."""

    def after(count: int) -> list[int]:
        left = [count]

        def limited(*arguments: object) -> object:
            if not left[0]:
                raise WeighbridgeError("stopped by the test")
            left[0] -= 1
            return look_at_piece(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr("weighbridge.auditing.run.look", limited)
        return left

    return after


def figures(found: assess.Audit) -> list[tuple[str, Measure]]:
    return [(item.name, seen) for item, seen, _ in found.quantized]


def test_interrupted_audit_goes_on(
    mini_build: Path, mini: Path, journals: Path, stopping: Callable[[int], list[int]]
) -> None:
    unseen = stopping(10_000)
    whole = look(mini_build, mini)
    pieces = 10_000 - unseen[0]
    stopping(2)
    with pytest.raises(WeighbridgeError, match="stopped"):
        look(mini_build, mini)
    assert [path.suffix for path in journals.iterdir()] == [".jsonl"]
    unseen = stopping(10_000)
    resumed = look(mini_build, mini)
    assert 1 <= resumed.found == pieces - (10_000 - unseen[0])
    assert figures(resumed) == figures(whole)
    assert list(journals.iterdir()) == []


def test_audit_that_the_user_interrupts_says_that_it_can_go_on(
    mini_build: Path, mini: Path, journals: Path, call_validate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("weighbridge.auditing.run.look", interrupt)
    outcome = call_validate(mini_build, "--source", mini)
    said = "error: interrupted; what was audited is kept; give the same command again to go on\n"
    assert (outcome.code, outcome.err) == (2, said)
    assert [path.suffix for path in journals.iterdir()] == [".jsonl"]


def test_journal_of_a_file_that_was_touched_is_not_believed(
    mini_build: Path, mini: Path, tmp_path: Path, journals: Path, stopping: Callable[[int], list[int]]
) -> None:
    copy = copy_checkpoint(mini_build, tmp_path / "copy")
    shard = shards_of(copy)[0]
    stopping(2)
    with pytest.raises(WeighbridgeError, match="stopped"):
        look(copy, mini)
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(content)
    stopping(10_000)
    assert look(copy, mini).found == 0


def test_journal_under_the_name_of_another_audit_is_not_believed(
    mini_build: Path, mini: Path, journals: Path, stopping: Callable[[int], list[int]]
) -> None:
    stopping(2)
    for sample in (None, Sample(0.5, 1)):
        with pytest.raises(WeighbridgeError, match="stopped"):
            look(mini_build, mini, sample=sample)
        stopping(2)
    one, other = journals.iterdir()
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1])
    other.write_bytes(content[0])
    stopping(10_000)
    assert look(mini_build, mini).found == 0


def test_memory_is_counted_with_the_largest_strip(
    mini_build: Path, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that share a scale stay together, however many a config says that they are."""
    counted: list[int] = []

    def count(workers: int | None, memory: int, *, each: int) -> int:
        counted.append(each)
        return 1

    monkeypatch.setattr("weighbridge.auditing.assess.affordable_workers", count)
    look(mini_build, mini)
    monkeypatch.setattr("weighbridge.work.reading.PIECE_BYTES", 1024)
    look(mini_build, mini)
    pieces = cut(pair(open_directory(mini_build), open_directory(mini), ()))
    largest = max(strip.nbytes for piece in pieces for strip in piece.strips)
    assert counted == [WORKER_PIECES * PIECE_BYTES, WORKER_PIECES * largest]


def test_file_that_changes_while_it_is_read_is_refused(
    mini_build: Path, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_checkpoint(mini_build, tmp_path / "copy")
    shard = shards_of(copy)[0]
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(content)

    def touching(*arguments: object) -> object:
        os.utime(shard, ns=(1, 1))
        return look_at_piece(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("weighbridge.auditing.run.look", touching)
    with pytest.raises(WeighbridgeError, match="changed while it was read"):
        look(copy, mini)


def test_figures_do_not_depend_on_workers(mini_build: Path, mini: Path, call_validate: Command) -> None:
    said = [call_validate(mini_build, "--source", mini, "--workers", count).out for count in ("1", "3")]
    assert said[0] == said[1]


def test_too_little_memory_is_refused(mini_build: Path, call_validate: Command) -> None:
    outcome = call_validate(mini_build, "--source", "mini", "--memory", "1MiB")
    assert outcome.code == 2
    assert "memory" in outcome.err


# --- samples


def test_sample_takes_its_share_of_rows(mini_build: Path, mini: Path) -> None:
    found = look(mini_build, mini, sample=Sample(0.1, 5))
    assert 0.08 < found.checked / found.total < 0.35  # small tensors are whole
    assert not found.diverging
    for item, seen, _ in found.quantized:
        assert seen.rows == max(1, round(item.weight.shape[0] * 0.1))


def test_sample_is_the_same_for_one_seed(mini_build: Path, mini: Path) -> None:
    first, second, other = (look(mini_build, mini, sample=Sample(0.05, seed)) for seed in (1, 1, 2))
    assert figures(first) == figures(second)
    assert figures(first) != figures(other)


def test_probability_of_missing_is_hypergeometric(mini_build: Path, mini: Path) -> None:
    found = look(mini_build, mini, sample=Sample(0.1, 5))
    rows = [item.weight.shape[0] for item, _, _ in found.quantized]
    for altered_rows in (1, 10):
        worst = max(comb(n - altered_rows, round(0.1 * n)) / comb(n, round(0.1 * n)) for n in rows)
        assert found.missed(altered_rows) == pytest.approx(worst)
    assert found.missed(1) > found.missed(10) > found.missed(100)


def test_share_of_seeds_that_see_one_altered_row_is_what_was_said(mini_build: Path, mini: Path, tmp_path: Path) -> None:
    done = []
    copy = altered(mini_build, tmp_path / "copy", lambda t: done.append(one_row(np.random.default_rng(8), t)))
    seen = sum(bool(diverging(look(copy, mini, sample=Sample(0.5, seed)))) for seed in range(20))
    assert 3 <= seen <= 17  # each sees it with probability one half: outside with probability 0.0004


def test_report_states_what_a_sample_would_have_missed(call_validate: Command, mini_build: Path) -> None:
    outcome = call_validate(mini_build, "--source", "mini", "--sample", "10", "--format", "json")
    assert outcome.code == 0, outcome.err
    facts = next(section["facts"] for section in outcome.report["sections"] if section["id"] == "audit")
    assert re.fullmatch(r"seed \d+, 10 % of each tensor's rows", str(facts["sample"]))
    assert re.fullmatch(r"probability 0\.9\d* at most", facts["missed with 1 altered row"])


def test_a_sample_takes_kept_tensors_by_runs_of_4096_elements() -> None:
    tensor = Tensor("BF16", (100, 1000))
    kept = KeptPair("norm", Region("base", 0, tensor), Region("build", 0, tensor))
    (piece,) = cut(Pairing((kept,)), Sample(0.2, 3))
    runs = [run for strip in piece.strips for run in strip.spans]
    assert sum(count for _, count in runs) in (5 * 4096, 4 * 4096 + 100_000 % 4096)
    assert all(first % 4096 == 0 for first, _ in runs)


def test_work_is_cut_into_pieces_of_four_mebibytes_of_the_base() -> None:
    """By nothing but size, so that a journal is understood under any other setting."""
    tensor = Tensor("BF16", (5 * 1024, 1024))
    kept = KeptPair("embedding", Region("base", 0, tensor), Region("build", 0, tensor))
    pieces = cut(Pairing((kept,)))
    assert [piece.nbytes for piece in pieces] == [4 * 2**20, 4 * 2**20, 2 * 2**20]


def test_rows_of_a_sample_are_known_to_nobody_beforehand_unless_a_seed_is_named(
    mini_build: Path, mini: Path, call_validate: Command
) -> None:
    def sample(*arguments: str) -> str:
        outcome = call_validate(mini_build, "--source", mini, "--sample", "10", *arguments, "--format", "json")
        assert outcome.code == 0, outcome.err + outcome.out
        (said,) = (item["facts"]["sample"] for item in outcome.report["sections"] if item["id"] == "audit")
        return str(said)

    assert sample() != sample()
    assert sample("--seed", "7") == "seed 7, 10 % of each tensor's rows"


@pytest.mark.parametrize("share", ["0", "101", "many"])
def test_share_that_is_none_is_refused(share: str, call_validate: Command, mini_build: Path) -> None:
    outcome = call_validate(mini_build, "--source", "mini", "--sample", share)
    assert outcome.code == 2
    assert "no share of rows" in outcome.err


# --- the hub

SHARDS = r"safetensors$"


@pytest.fixture
def variables(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Variables with which a process of its own asks an endpoint, from caches that are empty at first."""
    places = {"HF_HOME": str(tmp_path / "home"), "WEIGHBRIDGE_CACHE": str(tmp_path / "cache")}
    proxies = {"NO_PROXY": "127.0.0.1,localhost", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return lambda endpoint: {**places, **proxies, "HF_ENDPOINT": endpoint}


def kept(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) if directory.exists() else 0


def test_hub_sources_are_read_once_and_not_kept(
    mini_build: Path, mini: Path, run_validate: Command, variables: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    with serve({"org/base": mini, "org/build": mini_build}) as hub:
        outcome = run_validate("org/build", "--source", "org/base", "--format", "json", env=variables(hub.endpoint))
        sent = hub.bytes_sent(SHARDS)
    assert outcome.code == 0, outcome.err
    said = {section["id"]: section["summary"] for section in outcome.report["sections"]}
    assert said["audit"] == "derives exactly from the base: 111 identical, 185 exact"
    assert said["source"].endswith("by SHA-256")
    whole = sum(path.stat().st_size for side in (mini, mini_build) for path in shards_of(side))
    assert sent < 1.1 * whole
    assert kept(tmp_path / "home") + kept(tmp_path / "cache") < 0.1 * whole


def test_hub_that_breaks_off_is_one_sentence(
    mini_build: Path, mini: Path, run_validate: Command, variables: Callable[[str], dict[str, str]]
) -> None:
    with serve({"org/base": mini}) as hub:
        hub.alter(SHARDS, truncated(after=300_000))
        outcome = run_validate(mini_build, "--source", "org/base", env=variables(hub.endpoint))
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1


def test_what_a_hub_is_asked_for_and_what_is_held_of_it(mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 MiB, the last 16 of them, and as many that wait to be hashed: 256 MiB are reserved for a side, of
    however many shards."""
    size = 40 * 1024 * 1024 * 8
    checkpoint = replace(open_directory(mini), shards={})
    asked: list[tuple[int, int]] = []

    def answer(_snapshot: object, _name: str, begin: int, end: int) -> bytes:
        asked.append((begin, end))
        return bytes(end - begin)

    monkeypatch.setattr(reading, "snapshot_of", lambda _: type("Snapshot", (), {"label": "hub"})())
    monkeypatch.setattr(reading, "read_bytes", answer)
    reader = reading.HubReader(checkpoint)
    reader._sizes, reader._hashes = {"shard": size, "other": size}, reading._BlockHashes(["shard", "other"])
    block = 8 * 1024 * 1024
    byte = memoryview(bytearray(1))
    for number in range(39, 22, -1):  # 17, from the end, none of which can be hashed yet
        reader.read("shard", number * block, byte)
    assert asked == [(number * block, (number + 1) * block) for number in range(39, 22, -1)]
    reader.read("shard", 38 * block, byte)
    assert len(asked) == 17, "is held"
    reader.read("shard", 39 * block, byte)
    assert len(asked) == 18, "is not held any more"
    for number in range(39, 22, -1):
        reader.read("other", number * block, byte)
    assert len(reader._hashes._early) == 16
    assert 2 * 16 * block == reading.HUB_BYTES


def test_digest_of_blocks_that_come_in_any_order_is_the_files(mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = shards_of(mini)[0].read_bytes()
    monkeypatch.setattr(reading, "BLOCK_BYTES", 4096)
    checkpoint = open_directory(mini)
    monkeypatch.setattr(reading, "snapshot_of", lambda _: type("Snapshot", (), {"label": "mini"})())
    monkeypatch.setattr(reading, "read_bytes", lambda _snapshot, _name, begin, end: content[begin:end])
    reader = reading.HubReader(checkpoint)
    random = np.random.default_rng(0)
    for _ in range(300):
        begin = int(random.integers(len(content) - 9000))
        target = memoryview(bytearray(int(random.integers(1, 9000))))
        reader.read(shards_of(mini)[0].name, begin, target)
        assert bytes(target) == content[begin : begin + len(target)]
    assert reader.digest(shards_of(mini)[0].name) == hashlib.sha256(content).hexdigest()


def test_audit_of_a_base_that_is_read_otherwise_now_is_another(mini_build: Path, mini: Path) -> None:
    build, base = open_directory(mini_build), open_directory(mini)
    method = method_of(build, None)
    other = replace(base, config={**base.config, "quantization_config": {"quant_method": "gptq"}})
    assert assess._key(build, base, method, None) != assess._key(build, other, method, None)
    assert assess._key(build, base, method, None) == assess._key(build, open_directory(mini), method, None)
