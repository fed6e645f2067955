"""What is measured of two distributions, how sure it is, on which text; limits of recipes; ``make evaluate``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.checkpoints import copy_checkpoint, edit_tensors
from tests.conftest import FP8_DYNAMIC, ROOT, call_main
from weighbridge.checkpoint.model import open_directory
from weighbridge.cli import evaluate
from weighbridge.engines.oneshot.load import load_tokenizer
from weighbridge.errors import DatasetError, RecipeError
from weighbridge.extras.quality.assess import Evaluated, comparison, is_dequantized, judge
from weighbridge.extras.quality.metrics import Measured, divergences, gathered, interval, measure_window
from weighbridge.extras.quality.text import WINDOW, Text, open_text, take_windows
from weighbridge.progress import Progress
from weighbridge.recipe import load_recipe
from weighbridge.recipe.quality import Quality
from weighbridge.report import Severity

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = arrays.arrays(np.float32, (3, 7), elements=st.floats(-30, 30, width=32))


# --- laws


@given(ROWS, ROWS)
def test_divergence_is_never_negative(source: Any, build: Any) -> None:
    assert (divergences(source, build) >= 0).all()


@given(ROWS)
def test_divergence_from_itself_is_zero(source: Any) -> None:
    assert (divergences(source, source) == 0).all()


@given(ROWS, ROWS, st.integers(-64, 64))
def test_constant_added_to_logits_is_no_difference(source: Any, build: Any, shift: int) -> None:
    plain = divergences(source.astype(np.float64), build)
    assert np.allclose(divergences(source + np.float64(shift), build), plain, rtol=1e-9, atol=1e-12)


@given(ROWS, ROWS)
def test_cross_entropy_is_entropy_and_divergence(source: Any, build: Any) -> None:
    def normalized(rows: Any) -> Any:
        wide = rows.astype(np.float64)
        return wide - np.log(np.exp(wide).sum(1, keepdims=True))

    one, other = normalized(source), normalized(build)
    share = np.exp(one)
    assert np.allclose(divergences(source, build), (share * one).sum(1) - (share * other).sum(1), atol=1e-9)


@given(st.integers(0, 1 << 32), st.integers(2, 90))
def test_window_is_the_mean_over_its_tokens_however_rows_are_cut(seed: int, length: int) -> None:
    random = np.random.default_rng(seed)
    source, build = random.standard_normal((2, length, 11), np.float32)
    tokens = random.integers(0, 11, length)
    kl, agreement, loss, _, hits, _ = measure_window(source, build, tokens)
    rows = np.arange(length - 1)
    logs = source[:-1] - np.log(np.exp(source[:-1].astype(np.float64)).sum(1, keepdims=True))
    assert kl == pytest.approx(divergences(source[:-1], build[:-1]).mean())
    assert agreement == pytest.approx((source[:-1].argmax(1) == build[:-1].argmax(1)).mean())
    assert loss == pytest.approx(-logs[rows, tokens[1:]].mean(), rel=1e-6)
    assert hits == pytest.approx((source[:-1].argmax(1) == tokens[1:]).mean())


# --- intervals


@given(arrays.arrays(np.float64, st.integers(2, 30), elements=st.floats(0, 10)))
def test_interval_lies_around_the_mean_and_within_the_values(values: Any) -> None:
    found = interval([values])
    assert values.min() - 1e-9 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= values.max() + 1e-9


def test_interval_is_the_same_each_time() -> None:
    values = np.random.default_rng(3).exponential(size=40)
    assert interval([values]) == interval([values])


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = [found.low <= 1 <= found.high for found in (interval([random.exponential(size=60)]) for _ in range(200))]
    assert 0.88 <= np.mean(covered) <= 0.99


def test_what_two_models_share_cancels_in_a_paired_interval() -> None:
    random = np.random.default_rng(0)
    common = random.exponential(size=40)
    one, other = common + 0.01 + 1e-4 * random.standard_normal(40), common
    paired = interval([one, other], lambda first, second: first - second)
    assert 0.0099 < paired.low < paired.high < 0.0101
    assert interval([one]).low < interval([other]).high


# --- text


def test_windows_are_spread_evenly_do_not_overlap_and_begin_as_the_tokenizer_begins(mini: Path) -> None:
    tokenizer = load_tokenizer(mini, where="mini")
    text = Text("numbers", " ".join(map(str, range(5000))))
    windows = take_windows(text, tokenizer, count=5).tokens
    ids = np.asarray(tokenizer(text.content, add_special_tokens=False)["input_ids"])
    begins_with_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    own = windows[:, 1:] if begins_with_bos else windows
    last = len(ids) // WINDOW - 1
    assert own.shape == (5, WINDOW)
    assert np.array_equal(own[0], ids[:WINDOW])
    assert np.array_equal(own[-1], ids[last * WINDOW : (last + 1) * WINDOW])


@pytest.mark.parametrize("name", ["code", "english", None])
def test_texts_that_every_environment_carries_are_the_same_each_time(name: str | None) -> None:
    text = open_text(name)
    assert len(text.content) > 100_000
    assert text.sha256 == open_text(name).sha256


def test_text_that_cannot_be_used_is_an_error(tmp_path: Path, mini: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        open_text(str(tmp_path / "nothing.txt"))
    (tmp_path / "bytes").write_bytes(b"abc\xff")
    with pytest.raises(DatasetError, match=r"not UTF-8 text \(byte 3\)"):
        open_text(str(tmp_path / "bytes"))
    with pytest.raises(DatasetError, match="two windows"):
        take_windows(Text("short", "a few words"), load_tokenizer(mini, where="mini"), count=4)


# --- limits


def recipe_with(tmp_path: Path, quality: Any) -> Path:
    content = yaml.safe_load(FP8_DYNAMIC.read_text())
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**content, "quality": quality}))
    return path


def test_recipe_states_limits(tmp_path: Path) -> None:
    limits = load_recipe(str(recipe_with(tmp_path, {"max_kl": 1, "min_agreement": 0.97}))).recipe.quality
    assert limits == Quality(max_kl=1.0, min_agreement=0.97)


@pytest.mark.parametrize(
    ("quality", "named"),
    [
        ({}, "states no limit: max_kl, min_agreement or max_perplexity_ratio"),
        ({"max_kl": 0}, "quality.max_kl"),
        ({"max_kl": float("inf")}, "quality.max_kl"),
        ({"min_agreement": 97}, "quality.min_agreement"),
        ({"max_kld": 0.1}, "did you mean 'max_kl'"),
        ({"max_kl": 0.1, "windows": 1}, "quality.windows"),
        ({"max_kl": "low"}, "quality.max_kl"),
        ({"max_kl": 0.1, "dtype": "float16"}, "quality.dtype"),
    ],
    ids=str,
)
def test_limit_that_cannot_be_is_refused_with_its_line(quality: Any, named: str, tmp_path: Path) -> None:
    path = recipe_with(tmp_path, quality)
    with pytest.raises(RecipeError) as error:
        load_recipe(str(path))
    assert named in str(error.value)
    assert f"{path}:" in str(error.value)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(open_text("english").content[:40_000])
    return path


@pytest.mark.parametrize(
    ("limits", "rules"),
    [
        ({"max_kl": 1e-6}, {("quality/limit", "quality.max_kl")}),
        ({"min_agreement": 1.0}, {("quality/limit", "quality.min_agreement")}),
        ({"max_perplexity_ratio": 0.5}, {("quality/limit", "quality.max_perplexity_ratio")}),
        ({"max_kl": 50, "min_agreement": 0.001, "max_perplexity_ratio": 50}, set()),
    ],
    ids=str,
)
def test_build_is_held_against_limits(
    limits: dict[str, Any], rules: set[tuple[str, str]], mini: Path, mini_build: Path, text_file: Path
) -> None:
    asked = Quality(**limits, text=str(text_file), windows=2)
    report = judge(open_directory(mini_build), open_directory(mini), asked, Progress())
    assert {(found.rule, found.where) for found in report.findings() if found.severity is Severity.ERROR} == rules
    assert report.holds == (not rules)


def test_limit_inside_the_interval_is_a_warning(mini: Path, mini_build: Path, text_file: Path) -> None:
    exact = judge(
        open_directory(mini_build), open_directory(mini), Quality(max_kl=50, text=str(text_file), windows=4), Progress()
    )
    estimate = float(str(exact.sections[1].tables[0].rows[0][2]).split()[0])
    near = Quality(max_kl=estimate * 1.0001 + 1e-4, text=str(text_file), windows=4)
    report = judge(open_directory(mini_build), open_directory(mini), near, Progress())
    assert report.holds
    assert [found.rule for found in report.findings() if found.severity is Severity.WARNING] == ["quality/near-limit"]


# --- reports


def evaluated(directory: Path, kl: float, spread: float, *, label: str) -> Evaluated:
    """A build of the kind of `directory` whose divergences are as given."""
    from dataclasses import replace

    random = np.random.default_rng(len(label))
    rows = [(kl + spread * random.standard_normal(), 0.9, 3.0, 3.0 + kl, 0.4, 0.4) for _ in range(20)]
    return Evaluated(replace(open_directory(directory), label=label), 8.0, (), gathered(rows))


@pytest.mark.parametrize(
    ("spread", "said"), [(1e-4, "beyond the interval"), (1.0, "cannot be told apart on this text")]
)
def test_builds_of_equal_bits_are_compared_in_pairs(spread: float, said: str, mini: Path, mini_build: Path) -> None:
    pair = [evaluated(mini_build, kl, spread, label=label) for kl, label in ((0.02, "near"), (0.03, "far"))]
    _, pairs = comparison(pair, open_directory(mini)).tables
    (row,) = pairs.rows
    assert {row[0], row[1]} == {"near", "far"}
    assert row[3] == said


def test_source_that_was_quantized_before_is_ranked_by_nothing(mini: Path, mini_build: Path, tmp_path: Path) -> None:
    again = copy_checkpoint(mini, tmp_path / "again")
    (again / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- dequantized\n---\n# Weights of four bits\n")
    source = open_directory(again)
    assert is_dequantized(source)
    assert not is_dequantized(open_directory(mini))
    pair = [evaluated(mini_build, kl, 1e-4, label=label) for kl, label in ((0.02, "near"), (0.03, "far"))]
    assert len(comparison(pair, source).tables) == 1


def test_card_of_smollm2_says_that_it_was_quantized_before() -> None:
    from weighbridge.base.model_card import card_metadata
    from weighbridge.samples.trained import smollm2

    card = (Path(smollm2.__file__).parent / "smollm2.md").read_bytes()
    assert "dequantized" in card_metadata(card, where="smollm2.md")["tags"]  # type: ignore[operator]


def test_evaluate_tabulates_source_build_and_share_retained(mini_build: Path, text_file: Path) -> None:
    arguments = (mini_build, mini_build, "--source", "mini", "--text", text_file, "--windows", "2", "--format", "json")
    outcome = call_main(evaluate.main, arguments)
    assert outcome.code == 0, outcome.err
    text, build, again, beside = outcome.report["sections"]
    assert "2 windows of" in text["summary"]
    assert [row[0] for row in build["tables"][0]["rows"]] == [
        *("KL divergence, nats a token", "same most probable token", "perplexity", "next token hit"),
    ]
    assert build["tables"] == again["tables"]
    assert "cannot be told apart" in json.dumps(beside["tables"])


def test_source_against_itself_loses_nothing(mini: Path, text_file: Path) -> None:
    outcome = call_main(
        evaluate.main, (mini, "--source", "mini", "--text", text_file, "--windows", "2", "--format", "json")
    )
    rows = {row[0]: row[1:] for row in outcome.report["sections"][1]["tables"][0]["rows"]}
    assert rows["KL divergence, nats a token"][1] == "0.00000 [0.00000, 0.00000]"
    assert rows["same most probable token"][1] == "100.00 % [100.00 %, 100.00 %]".replace(" %, ", ", ").replace(
        " %]", "]"
    )
    assert rows["perplexity"][2] == "100.00 % [100.00, 100.00]"


def test_build_that_lacks_an_expert_is_not_measured(mini_build: Path, tmp_path: Path, text_file: Path) -> None:
    damaged = copy_checkpoint(mini_build, tmp_path / "damaged")
    edit_tensors(
        damaged,
        lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.3.experts.1." in name],
    )
    outcome = call_main(evaluate.main, (damaged, "--source", "mini", "--text", text_file))
    assert outcome.code == 2
    assert "lacks model.layers.3.experts.1" in outcome.err


def test_document_names_every_rule_and_no_other() -> None:
    rule = r"quality/[a-z]+(?:-[a-z]+)*"
    sources = (ROOT / "src" / "weighbridge" / "extras" / "quality").glob("*.py")
    raised = {found for path in sources for found in re.findall(rf'"({rule})"', path.read_text())}
    assert set(re.findall(rf"`({rule})`", (ROOT / "docs/explanation/quality.md").read_text())) == raised


def test_measured_arrays_are_in_the_order_of_their_fields() -> None:
    seen = gathered([(1, 2, 3, 4, 5, 6)])
    assert isinstance(seen, Measured)
    assert [float(getattr(seen, name)[0]) for name in ("kl", "agreement", "source_loss", "build_hits")] == [1, 2, 3, 6]
