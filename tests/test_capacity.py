"""Capacity: the published figures of both accountings, what is cached by models of several kinds, and its limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import families, vllm_server
from tests.conftest import ROOT, Command
from tests.reference_locks import reference_lock
from weighbridge.checkpoint.model import Checkpoint, open_directory
from weighbridge.checks.capacity.accounting import (
    GIB,
    CacheShape,
    Capacity,
    Demand,
    Layers,
    check_against_structure,
    read_cache_shape,
    sglang_capacity,
    vllm_capacity,
    weights_in_memory,
)
from weighbridge.errors import StructureError
from weighbridge.formats.tensors import Tensor, payload_bytes

GEMMA = reference_lock("google/gemma-4-26B-A4B-it")
GEMMA_LOCK = str(ROOT / "references/google/gemma-4-26B-A4B-it.yaml")
SHAPE = read_cache_shape(GEMMA.config, where="config.json")
WITHIN = 0.02

LARGITDATA = reference_lock("LargitData/gemma-4-26b-a4b-it-fp8").structure
FUSENAI = reference_lock("FusenAI/gemma-4-26B-A4B-it-NVFP4").structure
KUNHUNJON = reference_lock("kunhunjon/gemma-4-26B-A4B-it-qat-NVFP4-full").structure
NVIDIA = reference_lock("nvidia/Gemma-4-26B-A4B-NVFP4").structure


def beside(cache: float, server: str, structure: Any, **asked: Any) -> Demand:
    """A card that has `cache` GiB left beside the weights, and nothing else."""
    assert server in ("vLLM", "SGLang")
    weights = weights_in_memory("vLLM" if server == "vLLM" else "SGLang", structure, SHAPE).total
    return Demand(round(cache * GIB) + weights, kv_dtype="fp8", utilization=1, reserve=0, **asked)


# --- published figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "structure", "published"),
    [
        ("SGLang", KUNHUNJON, 17.81),
        ("SGLang", NVIDIA, 20.07),
        ("vLLM", LARGITDATA, 25.75),
        ("vLLM", GEMMA.structure, 48.5),
        ("vLLM", FUSENAI, 17.2),
    ],
    ids=["kunhunjon", "nvidia", "LargitData", "google", "FusenAI"],
)
def test_weights_in_memory_are_the_published_ones(server: Any, structure: Any, published: float) -> None:
    assert weights_in_memory(server, structure, SHAPE).total / GIB == pytest.approx(published, rel=WITHIN)


def test_vllm_has_the_published_tokens_and_requests_of_the_fp8_build() -> None:
    found = vllm_capacity(LARGITDATA, SHAPE, beside(46.37, "vLLM", LARGITDATA, context=32_768, batched_tokens=8192))
    assert (found.bytes_per_token, found.tokens) == (122_880, 405_184)
    assert round(found.requests, 2) == 38.87


def test_vllm_has_the_published_tokens_of_fusenais_build_in_both_dtypes() -> None:
    demand = beside(9.9, "vLLM", FUSENAI)
    assert vllm_capacity(FUSENAI, SHAPE, demand).tokens == pytest.approx(87_000, rel=WITHIN)
    wide = Demand(demand.memory, kv_dtype="bf16", utilization=1, reserve=0)
    assert vllm_capacity(FUSENAI, SHAPE, wide).tokens == pytest.approx(43_000, rel=WITHIN)


def test_vllm_has_the_published_tokens_and_requests_of_the_31b() -> None:
    checkpoint = families.checkpoint("google/gemma-4-31B-it")
    text = {**checkpoint.config["text_config"], "sliding_window": 1024}
    shape = read_cache_shape({"text_config": text}, where="config.json")
    cache = round(55.22 * GIB)  # LargitData/gemma-4-31b-it-fp8, as its card has it
    weights = weights_in_memory("vLLM", checkpoint.structure, shape).total
    found = vllm_capacity(checkpoint.structure, shape, Demand(cache + weights, "fp8", 32_768, 1, 0, 8192))
    assert (found.tokens, round(found.requests, 2)) == (120_624, 11.57)


def test_vllm_0_32_says_the_same_of_a_gibibyte_for_smollm2() -> None:
    config = {**DENSE, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
    shape = read_cache_shape(config, where="config.json")
    weights = weights_in_memory("vLLM", NOTHING, shape).total
    found = vllm_capacity(NOTHING, shape, Demand(GIB + weights, "bf16", 2048, 1, 0))
    assert (found.tokens, round(found.requests, 2)) == (46_592, 22.75)  # its log, see docs/explanation/capacity.md


@pytest.mark.parametrize(("structure", "cache", "published"), [(KUNHUNJON, 3.33, 232_000), (NVIDIA, 1.07, 74_000)])
def test_sglang_has_the_published_tokens_in_two_pools(structure: Any, cache: float, published: int) -> None:
    found = sglang_capacity(structure, SHAPE, beside(cache, "SGLang", structure, sliding_share=0.05))
    assert found.tokens == pytest.approx(published, rel=WITHIN)


def test_a_24_gb_card_holds_the_published_pool_by_the_defaults_that_are_assumed() -> None:
    found = sglang_capacity(KUNHUNJON, SHAPE, Demand(24 * GIB, kv_dtype="fp8", sliding_share=0.05))
    assert found.tokens == pytest.approx(232_000, rel=WITHIN)


def test_layers_of_gemma_cache_what_both_pools_are_made_of() -> None:
    assert SHAPE.bytes_per_token(1, sliding=False) == 10_240
    assert SHAPE.bytes_per_token(1, sliding=True) == 102_400


@pytest.mark.campaign
@pytest.mark.skipif(not vllm_server.PYTHON.exists(), reason="no environment with vLLM: make serve-env")
def test_a_real_vllm_logs_the_requests_that_its_accounting_says(mini: Path, tmp_path: Path) -> None:
    options = ("--max-model-len", "1024", "--max-num-batched-tokens", "256", "--block-size", "128")
    with vllm_server.serving(mini, tmp_path, *options, *vllm_server.TEXT_ALONE) as real:
        (logged,) = re.findall(r"Maximum concurrency for 1,024 tokens per request: ([0-9.]+)x", real.log.read_text())
    checkpoint = open_directory(mini)
    shape = read_cache_shape(checkpoint.config, where="the miniature")
    weights = weights_in_memory("vLLM", checkpoint.structure, shape).total
    found = vllm_capacity(checkpoint.structure, shape, Demand(GIB + weights, "bf16", 1024, 1, 0, 256, 128))
    assert round(found.requests, 2) == float(logged)


# --- other models -----------------------------------------------------------------------------------------------------

# hub id -> kinds of layers: how many, keys and values of one, whether they slide
CACHED = {
    "google/gemma-4-26B-A4B-it": [(5, 2 * 2 * 512, False), (25, 2 * 8 * 256, True)],
    "google/gemma-4-31B-it": [(10, 2 * 4 * 512, False), (50, 2 * 16 * 256, True)],
    "google/gemma-4-12B-it": [(8, 2 * 1 * 512, False), (40, 2 * 8 * 256, True)],
    "google/gemma-4-E4B-it": [(4, 2 * 2 * 512, False), (20, 2 * 2 * 256, True)],  # 18 of 42 share another's
    "meta-llama/Llama-3.1-8B-Instruct": [(32, 2 * 8 * 128, False)],
    "Qwen/Qwen3-30B-A3B": [(48, 2 * 4 * 128, False)],
    "mistralai/Mixtral-8x7B-Instruct-v0.1": [(32, 2 * 8 * 128, False)],
    "deepseek-ai/DeepSeek-V2-Lite": [(27, 512 + 64, False)],
}


@pytest.mark.parametrize("repository", CACHED)
def test_layers_cache_what_their_config_says_and_their_projections_have_it(repository: str) -> None:
    checkpoint = families.checkpoint(repository)
    shape = read_cache_shape(checkpoint.config, where=repository)
    assert [(kind.number, kind.elements, kind.window is not None) for kind in shape.kinds] == CACHED[repository]
    check_against_structure(shape, checkpoint.config, checkpoint.structure, where=repository)


LLAMA = families.checkpoint("meta-llama/Llama-3.1-8B-Instruct")
LLAMA_SHAPE = read_cache_shape(LLAMA.config, where="config.json")


def llama(account: Any) -> Capacity:
    found: Capacity = account(LLAMA.structure, LLAMA_SHAPE, Demand(24 * GIB, context=8192, reserve=0))
    return found


def test_without_sliding_layers_both_accountings_take_the_same_bytes_a_token() -> None:
    assert llama(vllm_capacity).bytes_per_token == llama(sglang_capacity).bytes_per_token == 32 * 2 * 8 * 128 * 2


def test_without_sliding_layers_as_many_requests_fit_as_their_tokens_do() -> None:
    found = llama(vllm_capacity)
    assert found.requests == pytest.approx(found.tokens / 8192, rel=1e-3)


# --- laws -------------------------------------------------------------------------------------------------------------

kinds = st.builds(
    lambda number, heads, head, window: Layers(number, 2 * heads * head, head, window),
    st.integers(1, 64),
    st.integers(1, 16),
    st.sampled_from([64, 128, 256, 512]),
    st.none(),
)
shapes = st.builds(
    lambda full, sliding, window: CacheShape((full, *(layer._replace(window=window) for layer in sliding)), 131_072),
    kinds,
    st.lists(kinds, max_size=1),
    st.integers(16, 4096),
)
NOTHING = {"model.norm.weight": Tensor("BF16", (1,))}


@given(shapes, st.integers(1, 200), st.sampled_from([vllm_capacity, sglang_capacity]))
def test_tokens_that_are_promised_fit_into_the_cache(shape: CacheShape, gibibytes: int, account: Any) -> None:
    found = account(NOTHING, shape, Demand(gibibytes * GIB, reserve=0))
    assert found.tokens * found.bytes_per_token <= max(found.cache, 0)


@given(shapes, st.integers(1, 100), st.sampled_from([vllm_capacity, sglang_capacity]))
def test_a_larger_card_never_holds_less(shape: CacheShape, gibibytes: int, account: Any) -> None:
    smaller, larger = (account(NOTHING, shape, Demand(size * GIB)) for size in (gibibytes, gibibytes + 1))
    assert smaller.tokens <= larger.tokens
    assert smaller.requests <= larger.requests


# --- what cannot be computed ------------------------------------------------------------------------------------------

DENSE = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_hidden_layers": None}, "has no num_hidden_layers, which the KV cache's size depends on"),
        ({"max_position_embeddings": None}, "has no max_position_embeddings"),
        ({"num_attention_heads": "4"}, "num_attention_heads must be a whole number"),
        ({"num_key_value_heads": True}, "num_key_value_heads must be a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 10,000"),
        ({"layer_types": ["full_attention"]}, "layer_types must name a type for each of the 4 layers"),
        ({"layer_types": ["full_attention"] * 3 + ["mamba"]}, "layers of the type 'mamba'"),
        ({"layer_types": ["sliding_attention"] * 4}, "has no sliding_window"),
        ({"sliding_window": 512}, "has sliding_window and no layer_types"),
        ({"full_attention_interval": 4}, "has full_attention_interval and no layer_types"),
        ({"num_kv_shared_layers": 4}, "num_kv_shared_layers must be below the 4 layers"),
        ({"v_head_dim": 32}, "values of another width than keys"),
        ({"per_layer_config": {"x": {}}}, "per_layer_config must map numbers of layers"),
    ],
)
def test_a_config_that_lacks_what_is_needed_is_refused_in_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StructureError, match=re.escape(sentence)):
        read_cache_shape({**DENSE, **change}, where="config.json")


@pytest.mark.parametrize(
    ("change", "cached"),
    [
        ({}, [(4, 2 * 2 * 64, False)]),
        ({"num_key_value_heads": None}, [(4, 2 * 4 * 64, False)]),
        ({"head_dim": 128}, [(4, 2 * 2 * 128, False)]),
        ({"sliding_window": 512, "use_sliding_window": False}, [(4, 2 * 2 * 64, False)]),
        ({"per_layer_config": {"03": {"head_dim": 128}}}, [(3, 2 * 2 * 64, False), (1, 2 * 2 * 128, False)]),
        ({"num_kv_shared_layers": 1}, [(3, 2 * 2 * 64, False)]),
    ],
)
def test_absent_keys_mean_what_they_mean_to_transformers(change: dict[str, Any], cached: list[Any]) -> None:
    shape = read_cache_shape({**DENSE, **change}, where="config.json")
    assert [(kind.number, kind.elements, kind.window is not None) for kind in shape.kinds] == cached


def test_a_config_that_contradicts_its_tensors_is_refused() -> None:
    shape = read_cache_shape(DENSE, where="config.json")
    structure = {"model.layers.0.self_attn.k_proj.weight": Tensor("BF16", (256, 256))}
    with pytest.raises(StructureError, match=r"has 256 rows where config\.json makes it 128"):
        check_against_structure(shape, DENSE, structure, where="x")


def test_tied_heads_and_towers_are_held_once() -> None:
    assert weights_in_memory("vLLM", GEMMA.structure, SHAPE).payload == payload_bytes(GEMMA.structure)


# --- the command ------------------------------------------------------------------------------------------------------

ON_24_GB = ("--gpu", "24GB", "--kv-dtype", "fp8", "--reference", "none")


def test_a_plan_with_a_card_has_both_accountings_and_says_that_they_are_computed(call_build: Command) -> None:
    answer = call_build("nvfp4", "--plan", "--model", GEMMA_LOCK, *ON_24_GB, "--format", "json")
    section = answer.report["sections"][-1]
    accounts, parts = section["tables"]
    assert (answer.code, section["id"], section["title"]) == (0, "capacity", "on a card of 24 GiB")
    assert "computed, not measured" in section["summary"]
    assert [row[0] for row in accounts["rows"]] == [row[0] for row in parts["rows"]] == ["vLLM", "SGLang"]
    assert {"share of the card", "reserved of it", "KV cache"} <= section["facts"].keys()


def test_a_plan_without_a_card_says_nothing_of_one(call_build: Command) -> None:
    report = call_build("nvfp4", "--plan", "--model", GEMMA_LOCK, "--reference", "none", "--format", "json").report
    assert "capacity" not in {section["id"] for section in report["sections"]}


@pytest.mark.parametrize(
    ("recipe", "asked", "dtype"),
    [
        ("fp8-dynamic-kv8", (), "fp8"),
        ("fp8-dynamic", (), "bf16"),
        ("fp8-dynamic", ("--kv-dtype", "fp8"), "fp8"),
        ("fp8-dynamic-kv8", ("--kv-dtype", "bf16"), "bf16"),
    ],
)
def test_the_cache_has_the_dtype_that_the_build_declares_unless_another_is_asked_for(
    recipe: str, asked: tuple[str, ...], dtype: str, call_build: Command
) -> None:
    card = ("--gpu", "80GB", "--reference", "none", "--format", "json")
    report = call_build(recipe, "--plan", "--model", GEMMA_LOCK, *card, *asked).report
    assert report["sections"][-1]["facts"]["KV cache"].startswith(dtype)


def test_weights_that_leave_no_room_are_found_wanting(call_build: Command) -> None:
    answer = call_build("fp8-dynamic", "--plan", "--model", GEMMA_LOCK, *ON_24_GB)
    assert answer.code == 1
    assert "can be built, but would not be served" in " ".join(answer.out.split())
    assert "capacity/too-large" in answer.out


def test_room_by_one_accounting_alone_is_a_warning(call_build: Command) -> None:
    card = ("--gpu", "20GB", "--reserve", "0GB", "--reference", "none", "--format", "json")
    answer = call_build("nvfp4-experts-modelopt", "--plan", "--model", GEMMA_LOCK, *card)
    (finding,) = answer.report["sections"][-1]["findings"]
    assert (answer.code, finding["severity"]) == (0, "warning")
    assert "SGLang" in finding["where"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--gpu", "24", "--plan"), "is no card's memory; write it with its unit, as 24GB"),
        (("--gpu", "much", "--plan"), "is no size"),
        (("--gpu", "24GB", "--gpu-memory-utilization", "90", "--plan"), "must be more than 0 and at most 1"),
        (("--gpu", "24GB"), "--gpu has no effect without --plan; add --plan"),
        (("--gpu", "24GB", "--plan", "--model", "tests/data/odd-parts.yaml"), "num_hidden_layers"),
    ],
)
def test_what_cannot_be_said_is_one_sentence(arguments: tuple[str, ...], sentence: str, call_build: Command) -> None:
    model = () if "--model" in arguments else ("--model", GEMMA_LOCK)
    answer = call_build("fp8-dynamic", *arguments, *model)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert sentence in answer.err


# --- docs/explanation/capacity.md ------------------------------------------------------------------------------------

DOCUMENT = (ROOT / "docs/explanation/capacity.md").read_text()


def test_the_locks_of_published_builds_are_the_sizes_that_the_document_starts_from() -> None:
    for structure in (KUNHUNJON, NVIDIA, FUSENAI, LARGITDATA, GEMMA.structure):
        assert f"{payload_bytes(structure):,}" in DOCUMENT


def test_checkpoint_of_the_miniature_is_accounted_for() -> None:
    mini: Checkpoint = reference_lock("weighbridge/gemma-4-mini")
    shape = read_cache_shape(mini.config, where="the miniature")
    check_against_structure(shape, mini.config, mini.structure, where="the miniature")
    assert {kind.window is None for kind in shape.kinds} == {True, False}
