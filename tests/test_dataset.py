"""Calibration data: what is read, which rows are taken, how they become tokens, and what is refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import environment
from tests.hub_server import Hub, serve
from weighbridge.api import calibrated_with
from weighbridge.base.source import open_source, with_own_texts
from weighbridge.engines.oneshot.dataset import Rows, choose_rows, open_rows, with_file
from weighbridge.engines.oneshot.load import load_tokenizer
from weighbridge.engines.oneshot.samples import Samples, make_samples
from weighbridge.errors import WeighbridgeError
from weighbridge.recipe import load_recipe
from weighbridge.recipe.calibration import Calibration, Dataset
from weighbridge.samples.miniature.text import COUNT, exchanges

TEXTS = [f"Lorry {number} weighs {number * 17} kilograms." for number in range(12)]
DIALOGUE = [{"role": "user", "content": "How heavy?"}, {"role": "assistant", "content": "Very."}]
CHAT = [[{**message, "content": f"{message['content']} {number}"} for message in DIALOGUE] for number in range(12)]


def calibration(file: str | Path = "", **settings: Any) -> Calibration:
    """A calibration with a file; `column` is the data set's, the rest the calibration's."""
    dataset = Dataset(file=str(file), column=settings.pop("column", "text")) if file else Dataset(hub="org/chat")
    return Calibration(dataset=dataset, **{"samples": 4, "sequence_length": 64, "experts": "all", **settings})


def write_parquet(path: Path, columns: dict[str, list[Any]], *, group: int = 5) -> Path:
    """A Parquet file with several row groups."""
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.table(columns), path, row_group_size=group)
    return path


def write_json_lines(path: Path, column: str, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps({"id": row, column: value}) + "\n" for row, value in enumerate(values)))
    return path


@pytest.fixture(scope="module")
def tokenizer(mini: Path) -> Any:
    return load_tokenizer(mini, where="mini")


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """The same twelve texts as a file of any kind."""

    def write(suffix: str) -> Path:
        path = tmp_path / f"texts{suffix}"
        match suffix:
            case ".txt":
                path.write_text("\n".join(TEXTS) + "\n")
            case ".jsonl":
                write_json_lines(path, "text", TEXTS)
            case ".parquet":
                write_parquet(path, {"text": TEXTS})
        return path

    return write


# --- which rows


@given(st.integers(1, 400), st.data())
def test_rows_are_chosen_once_each_and_more_samples_only_add_to_them(count: int, data: st.DataObject) -> None:
    samples = data.draw(st.integers(0, count))
    seed = data.draw(st.integers(0, 2**32 - 1))
    chosen = choose_rows(count, samples, seed)
    assert len(chosen) == len(set(chosen)) == samples
    assert set(chosen) <= set(range(count))
    assert choose_rows(count, count, seed)[:samples] == chosen


def test_rows_are_chosen_by_a_definition_that_anybody_can_follow() -> None:
    ranked = sorted(range(1000), key=lambda row: hashlib.sha256(struct.pack("<QQ", 42, row)).hexdigest())
    assert choose_rows(1000, 5, 42) == tuple(ranked[:5]) == (645, 939, 315, 145, 998)


def test_another_seed_chooses_other_rows() -> None:
    assert choose_rows(1000, 20, 0) != choose_rows(1000, 20, 1)


# --- files


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_kinds_of_file_give_the_same_rows_in_the_order_they_are_asked_for(
    suffix: str, written: Callable[[str], Path]
) -> None:
    path = written(suffix)
    rows = open_rows(calibration(path))
    assert (rows.name, rows.count, rows.revision) == (path.name, 12, "")
    assert rows.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert rows.take([11, 0, 6]) == [TEXTS[11], TEXTS[0], TEXTS[6]]


def test_blank_lines_of_a_text_file_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n  one  \r\n\n\ntwo\n")
    rows = open_rows(calibration(tmp_path / "texts.txt"))
    assert rows.take(range(rows.count)) == ["one", "two"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_messages_come_as_they_were_written(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"chat{suffix}"
    if suffix == ".jsonl":
        write_json_lines(path, "messages", CHAT)
    else:
        write_parquet(path, {"messages": CHAT})
    assert open_rows(calibration(path, column="messages")).take([7]) == [CHAT[7]]


REFUSED: dict[str, tuple[str, bytes | None, str]] = {
    "no such file": (".jsonl", None, "data.jsonl: no such file"),
    "no JSON": (".jsonl", b'{"text": "a"}\n{"text": \n', "data.jsonl:2: is not JSON"),
    "no object": (".jsonl", b'["text"]\n', "data.jsonl:1: is not a JSON object"),
    "an empty line": (".jsonl", b'{"text": "a"}\n\n{"text": "b"}\n', "data.jsonl:2: is not JSON"),
    "a key twice": (".jsonl", b'{"text": "a", "text": "b"}\n', "data.jsonl:1: the key 'text' stands twice"),
    "another column": (".jsonl", b'{"text": "a"}\n{"prompt": "b"}\n', "data.jsonl:2: has no 'text'; name another"),
    "no UTF-8": (".jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "data.jsonl:2: is not UTF-8"),
    "no text in UTF-8": (".txt", b"one\ntwo\n\xff\n", "data.txt:3: is not UTF-8"),
    "no Parquet": (".parquet", b"PAR1 and nothing more", "data.parquet: is no Parquet file that can be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_not_what_it_should_be_is_refused_by_file_and_line(case: str, tmp_path: Path) -> None:
    suffix, content, sentence = REFUSED[case]
    path = tmp_path / f"data{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeighbridgeError) as refused:
        open_rows(calibration(path, samples=1))
    assert sentence in str(refused.value)


def test_a_parquet_file_without_the_column_is_refused_with_those_it_has(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "data.parquet", {"prompt": ["a"], "answer": ["b"]})
    with pytest.raises(WeighbridgeError, match=r"has no 'text'; .* there is 'prompt', 'answer'"):
        open_rows(calibration(path))


# --- rows that are no samples


def rows_of(values: list[Any]) -> Rows:
    return Rows("rows", len(values), lambda rows: [values[row] for row in rows])


NO_SAMPLES: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "too few": (TEXTS, {"samples": 13}, "rows: has 12 rows, and 13 samples are asked for"),
    "none": ([], {"samples": 1}, "rows: has 0 rows, and 1 samples are asked for"),
    "messages for text": (CHAT, {}, "is no text but a list"),
    "nothing for text": ([None], {"samples": 1}, "rows, row 0: is no text but nothing"),
    "text for messages": (TEXTS, {"render": "chat"}, "is no list of messages but text"),
    "no message": ([[]], {"samples": 1, "render": "chat"}, "rows, row 0: is a list without messages"),
    "a message without role": ([[{"content": "x"}]], {"samples": 1, "render": "chat"}, "without role and content"),
    "blank text": ([" \n"], {"samples": 1}, "rows, row 0: renders to no text"),
    "what the template cannot join": (
        [[{"role": "user", "content": 7}]],
        {"samples": 1, "render": "chat"},
        "rows, row 0: the chat template refuses it",
    ),
}


@pytest.mark.parametrize("case", NO_SAMPLES)
def test_rows_that_are_no_samples_are_refused_in_one_sentence(case: str, tokenizer: Any) -> None:
    values, settings, sentence = NO_SAMPLES[case]
    with pytest.raises(WeighbridgeError) as refused:
        make_samples(calibration(**settings), rows_of(values), tokenizer)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_without_a_chat_template_renders_no_chat(mini: Path) -> None:
    plain = load_tokenizer(mini, where="mini")
    plain.chat_template = None
    with pytest.raises(WeighbridgeError, match="the model has no chat template; say render: text"):
        make_samples(calibration(render="chat"), rows_of(CHAT), plain)


# --- tokens


def test_text_gets_the_special_tokens_of_the_tokenizer(tokenizer: Any) -> None:
    samples = make_samples(calibration(samples=12, sequence_length=1000), rows_of(TEXTS), tokenizer)
    texts = [tokenizer.decode(ids) for ids in samples.token_ids]
    assert texts == [f"<bos>{TEXTS[row]}" for row in samples.chosen]


def test_chat_has_those_that_its_template_writes_and_no_others(tokenizer: Any) -> None:
    samples = make_samples(calibration(samples=1, sequence_length=1000, render="chat"), rows_of(CHAT[:1]), tokenizer)
    text = "<bos><|turn>user\nHow heavy? 0<turn|>\n<|turn>model\nVery. 0<turn|>\n"
    assert tokenizer.decode(samples.token_ids[0]) == text


def test_samples_are_cut_to_the_sequence_length(tokenizer: Any) -> None:
    whole = make_samples(calibration(sequence_length=1000), rows_of(TEXTS), tokenizer)
    cut = make_samples(calibration(sequence_length=9), rows_of(TEXTS), tokenizer)
    assert cut.token_ids == tuple(ids[:9] for ids in whole.token_ids)


def test_digest_is_over_lengths_and_ids_as_four_bytes_each() -> None:
    samples = Samples(rows_of([]), (3, 1), ((2, 5, 300), (7,)))
    content = struct.pack("<6I", 3, 2, 5, 300, 1, 7)
    assert (samples.tokens, samples.sha256) == (4, hashlib.sha256(content).hexdigest())


@given(st.lists(st.integers(1, 5), max_size=40), st.integers(1, 6))
def test_batches_hold_every_sample_once_and_only_samples_of_one_length(lengths: list[int], size: int) -> None:
    ids = tuple((number, *[0] * (length - 1)) for number, length in enumerate(lengths))
    batches = Samples(rows_of([]), tuple(range(len(ids))), ids).batches(size)
    assert sorted(sample for batch in batches for sample in batch) == sorted(ids)
    assert all(len({len(sample) for sample in batch}) == 1 and len(batch) <= size for batch in batches)
    for length in set(lengths):
        same = [sample for batch in batches for sample in batch if len(sample) == length]
        assert same == [sample for sample in ids if len(sample) == length]
        assert sum(len(batch) < size for batch in batches if len(batch[0]) == length) <= 1


# --- texts, and a file in the place of a data set


@pytest.mark.parametrize(("render", "first"), [("chat", list), ("text", str)])
def test_miniature_brings_its_own_texts_in_the_place_of_a_hubs_data_set(render: str, first: type, mini: Path) -> None:
    asked = load_recipe("nvfp4")
    changed = asked.recipe.calibration.model_copy(update={"render": render}) if asked.recipe.calibration else None
    asked = replace(asked, recipe=asked.recipe.model_copy(update={"calibration": changed}))
    done = with_own_texts(asked, open_source("mini")).recipe.calibration
    assert done is not None
    assert (done.samples, done.sequence_length) == (32, 128)
    rows = open_rows(done)
    assert (rows.name, rows.count, type(rows.take([0])[0])) == ("gemma-4-mini.jsonl", COUNT, first)


def test_other_models_and_files_are_calibrated_as_the_recipe_says(
    written: Callable[[str], Path], mini: Path, tmp_path: Path
) -> None:
    loaded = load_recipe("nvfp4")
    assert with_own_texts(loaded, open_source(str(mini))) is loaded
    named = calibrated_with(loaded, written(".txt"))
    assert with_own_texts(named, open_source("mini")) is named


def test_texts_of_the_miniature_are_the_same_everywhere_and_all_different() -> None:
    texts = [f"{pair.question}\n{pair.answer}\n" for pair in exchanges()]
    assert len(set(texts)) == COUNT
    digest = "20fd72986569b42c"
    assert hashlib.sha256("".join(texts).encode()).hexdigest().startswith(digest)


@pytest.mark.parametrize(("file", "render"), [("own.txt", "text"), ("own.jsonl", "chat"), ("own.parquet", "chat")])
def test_a_file_takes_the_place_of_the_data_set_and_keeps_the_rest(
    file: str, render: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(file).touch()
    asked = calibration(samples=7, seed=3, render="chat")
    done = with_file(asked, file)
    assert (done.dataset.file, done.dataset.hub, done.render) == (file, None, render)
    assert (done.samples, done.seed) == (7, 3)


@pytest.mark.parametrize(
    ("file", "sentence"),
    [("own.csv", "own.csv: is no .jsonl, .parquet or .txt file"), ("absent.jsonl", "absent.jsonl: no such file")],
)
def test_a_file_that_cannot_be_read_takes_no_place(file: str, sentence: str) -> None:
    with pytest.raises(WeighbridgeError, match=sentence):
        with_file(calibration(), file)


# --- the hub

PROGRAM = """
import json, sys
from weighbridge.engines.oneshot.dataset import open_rows
from weighbridge.errors import WeighbridgeError
from weighbridge.recipe.calibration import Calibration, Dataset

for asked in map(json.loads, sys.argv[1:]):
    calibration = Calibration(dataset=Dataset(column="messages", **asked), samples=2, sequence_length=8, experts="all")
    try:
        rows = open_rows(calibration)
        print(json.dumps([rows.name, rows.revision, rows.count, rows.take([9, 2])]))
    except WeighbridgeError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with a data set of two splits and two configurations."""
    directory = tmp_path_factory.mktemp("chat")
    (directory / "data").mkdir()
    write_parquet(directory / "data" / "train-00000-of-00002.parquet", {"messages": CHAT[:5]})
    write_parquet(directory / "data" / "train-00001-of-00002.parquet", {"messages": CHAT[5:]})
    card = {"configs": [{"config_name": "all", "data_files": [{"split": "train_sft", "path": "data/train-*"}]}]}
    (directory / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    with serve({"datasets/org/chat": directory}) as hub:
        yield hub


def ask(hub: Hub, home: Path, *asked: dict[str, str], **variables: str) -> list[Any]:
    """What each data set gives in a process of its own: name, commit, rows and two of them, or a sentence."""
    places = {"HF_HOME": str(home), "HF_ENDPOINT": hub.endpoint, "NO_PROXY": "127.0.0.1,localhost"}
    env = environment({**places, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", **variables})
    command = [sys.executable, "-c", PROGRAM, *map(json.dumps, asked)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=home)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hubs_data_set_is_read_at_a_commit_and_again_without_network(hub: Hub, tmp_path: Path) -> None:
    commit = hub.commit_of("datasets/org/chat")
    (tmp_path / "org" / "chat").mkdir(parents=True)  # a directory of this name is not what was asked for
    newest = {"hub": "org/chat", "split": "train_sft"}
    pinned = {**newest, "revision": commit}
    rows = [commit, 12, [CHAT[9], CHAT[2]]]
    assert ask(hub, tmp_path, newest, pinned) == [
        ["org/chat, train_sft", *rows],
        [f"org/chat@{commit}, train_sft", *rows],
    ]
    asked = len(hub.log)
    assert ask(hub, tmp_path, pinned, HF_HUB_OFFLINE="1") == [[f"org/chat@{commit}, train_sft", *rows]]
    assert len(hub.log) == asked


def test_what_the_hub_does_not_have_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    cases = {
        "the data set cannot be loaded": {"hub": "org/other", "split": "train_sft"},
        "Unknown split": {"hub": "org/chat", "split": "nowhere"},
        "BuilderConfig 'none' not found": {"hub": "org/chat", "split": "train_sft", "config": "none"},
        "name a file as `calibration`": {"hub": "org/chat", "split": "train_sft", "revision": "0" * 40},
    }
    for phrase, sentence in zip(cases, ask(hub, tmp_path, *cases.values()), strict=True):
        assert phrase in sentence
        assert "\n" not in sentence
