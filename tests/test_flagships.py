"""Recipes of large models fit them: their locks are what the dimensions make, and as large as what is published."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.flagships import FLAGSHIPS, checkpoint, derived_lock, parameters
from tests.planning import broken_rules, kept_roles, merged_members, quantized_roles
from tests.reference_locks import reference_lock
from weighbridge.base.locks import lock_path
from weighbridge.families import Role
from weighbridge.formats.tensors import payload_bytes
from weighbridge.planning import Plan, make_plan
from weighbridge.recipe import load_recipe
from weighbridge.recipe.catalogue import recipe_names

# Elements of each dtype, as the hub counts them from the published headers, or their sum where only that was found.
ELEMENTS: Mapping[str, Mapping[str, int] | int] = {
    "meta-llama/Llama-3.3-70B-Instruct": {"BF16": 70_553_706_496},
    "Qwen/Qwen3-235B-A22B": {"BF16": 235_093_634_560},
    "zai-org/GLM-4.6": 356_785_898_816,
    # The hub counts two elements in a byte of codes: 118,244,966,400 in U8 are half as many codes, and the scales.
    "openai/gpt-oss-120b": {"BF16": 2_167_371_072, "U8": 57_330_892_800 + 3_583_180_800},
    "deepseek-ai/DeepSeek-R1": {"BF16": 3_918_786_560, "F8_E4M3": 680_571_043_840, "F32": 41_555_600},
    "deepseek-ai/DeepSeek-V3.2": 685_396_921_376,
    "moonshotai/Kimi-K2-Instruct": 1_026_470_731_056,
    "MiniMaxAI/MiniMax-M2": 228_703_644_928,
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31_577_940_288,
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": 24_011_361_280,
    "ibm-granite/granite-4.0-h-small": 32_207_337_984,
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": 108_641_793_536,
    "Qwen/Qwen3.6-35B-A3B": {"BF16": 35_951_822_704},
}

# Tensors, and bytes of payload where they are published too, of those whose index or headers somebody has published.
INDEXED: Mapping[str, tuple[int, int | None]] = {
    "moonshotai/Kimi-K2-Instruct": (139_644, None),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (6_243, None),
    "Qwen/Qwen3-235B-A22B": (36_945, 470_187_269_120),
    "deepseek-ai/DeepSeek-R1": (91_991, 688_574_839_360),
    "MiniMaxAI/MiniMax-M2": (96_103, 230_121_630_720),
    "Qwen/Qwen3.6-35B-A3B": (1_045, 71_903_645_408),
}

QUANTIZED: Mapping[str, Mapping[Role, int]] = {
    "meta-llama/Llama-3.3-70B-Instruct": {Role.ATTENTION: 80 * 4, Role.MLP: 80 * 3},
    "Qwen/Qwen3-235B-A22B": {Role.ATTENTION: 94 * 4, Role.EXPERTS: 94 * 128 * 3},
    # 92 layers and one that drafts; three are dense, the others have a shared expert.
    "zai-org/GLM-4.6": {Role.ATTENTION: 93 * 4, Role.MLP: 3 * 3, Role.EXPERTS: 90 * (160 + 1) * 3},
    "openai/gpt-oss-120b": {Role.ATTENTION: 36 * 4, Role.EXPERTS: 36 * 128 * 3},
    # Queries and keys go through latents: two projections each, and o_proj.
    "deepseek-ai/DeepSeek-R1": {Role.ATTENTION: 62 * 5, Role.MLP: 3 * 3, Role.EXPERTS: 59 * (256 + 1) * 3},
    "deepseek-ai/DeepSeek-V3.2": {Role.ATTENTION: 62 * 5, Role.MLP: 3 * 3, Role.EXPERTS: 59 * (256 + 1) * 3},
    "moonshotai/Kimi-K2-Instruct": {Role.ATTENTION: 61 * 5, Role.MLP: 3, Role.EXPERTS: 60 * (384 + 1) * 3},
    # Experts have no gate: up and down alone.
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": {
        Role.ATTENTION: 6 * 4,
        Role.MIXER: 23 * 2,
        Role.EXPERTS: 23 * (128 + 1) * 2,
    },
    "MiniMaxAI/MiniMax-M2": {Role.ATTENTION: 62 * 4, Role.EXPERTS: 62 * 256 * 3},
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": {Role.ATTENTION: 40 * 4, Role.MLP: 40 * 3},
    # The shared mlp's gate and up are one linear.
    "ibm-granite/granite-4.0-h-small": {
        Role.ATTENTION: 4 * 4,
        Role.MIXER: 36 * 2,
        Role.EXPERTS: 40 * 72 * 3,
        Role.MLP: 40 * 2,
    },
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": {Role.ATTENTION: 48 * 4, Role.EXPERTS: 48 * (16 + 1) * 3},
    # 40 layers and one that drafts, of which 30 have linear attention: in_proj_qkv, in_proj_z, out_proj.
    "Qwen/Qwen3.6-35B-A3B": {Role.ATTENTION: 11 * 4, Role.MIXER: 30 * 3, Role.EXPERTS: 41 * (256 + 1) * 3},
}

# Tensors of two axes or more that stay as they are.
KEPT: Mapping[str, Mapping[Role, int]] = {
    "meta-llama/Llama-3.3-70B-Instruct": {Role.EMBEDDINGS: 1, Role.HEAD: 1},
    "Qwen/Qwen3-235B-A22B": {Role.EMBEDDINGS: 1, Role.HEAD: 1, Role.ROUTER: 94},
    "zai-org/GLM-4.6": {Role.EMBEDDINGS: 1, Role.HEAD: 1, Role.ROUTER: 90, Role.MTP: 1},
    "openai/gpt-oss-120b": {Role.EMBEDDINGS: 1, Role.HEAD: 1, Role.ROUTER: 36},
    "deepseek-ai/DeepSeek-R1": {Role.EMBEDDINGS: 2, Role.HEAD: 2, Role.ROUTER: 59, Role.MTP: 1},
    # Of each indexer queries and keys, published in FP8, and weights_proj.
    "deepseek-ai/DeepSeek-V3.2": {
        Role.EMBEDDINGS: 2,
        Role.HEAD: 2,
        Role.ROUTER: 59,
        Role.MTP: 1,
        Role.INDEXER: 62 * 3,
    },
    "moonshotai/Kimi-K2-Instruct": {Role.EMBEDDINGS: 1, Role.HEAD: 1, Role.ROUTER: 60},
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": {
        Role.EMBEDDINGS: 1,
        Role.HEAD: 1,
        Role.ROUTER: 23,
        Role.CONVOLUTION: 23,
    },
    "MiniMaxAI/MiniMax-M2": {Role.EMBEDDINGS: 1, Role.HEAD: 1, Role.ROUTER: 62},
    # 24 layers of 7, the projector's three, the convolution over patches.
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": {Role.EMBEDDINGS: 1, Role.HEAD: 1, Role.VISION: 24 * 7 + 4},
    "ibm-granite/granite-4.0-h-small": {Role.EMBEDDINGS: 1, Role.ROUTER: 40, Role.CONVOLUTION: 36},
    # 34 layers of 6, the adapter's two, the projector, patches, positions.
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": {
        Role.EMBEDDINGS: 1,
        Role.HEAD: 1,
        Role.ROUTER: 48,
        Role.VISION: 34 * 6 + 5,
    },
    # 27 layers of 4, the merger's two, patches, positions; in_proj_a and in_proj_b; a gate beside each shared expert.
    "Qwen/Qwen3.6-35B-A3B": {
        Role.EMBEDDINGS: 1,
        Role.HEAD: 1,
        Role.ROUTER: 41 * 2,
        Role.MIXER: 30 * 2,
        Role.CONVOLUTION: 30,
        Role.MTP: 1,
        Role.VISION: 27 * 4 + 4,
    },
}

QKV, GATE_AND_UP, LATENTS = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("q_a_proj", "kv_a_proj_with_mqa")

# Groups of quantized linears that servers merge.
MERGED: Mapping[str, Mapping[tuple[str, ...], int]] = {
    "meta-llama/Llama-3.3-70B-Instruct": {QKV: 80, GATE_AND_UP: 80},
    "Qwen/Qwen3-235B-A22B": {QKV: 94, GATE_AND_UP: 94 * 128},
    "zai-org/GLM-4.6": {QKV: 93, GATE_AND_UP: 3 + 90 * (160 + 1)},
    "openai/gpt-oss-120b": {QKV: 36, GATE_AND_UP: 36 * 128},
    "deepseek-ai/DeepSeek-R1": {LATENTS: 62, GATE_AND_UP: 3 + 59 * (256 + 1)},
    "deepseek-ai/DeepSeek-V3.2": {LATENTS: 62, GATE_AND_UP: 3 + 59 * (256 + 1)},
    "moonshotai/Kimi-K2-Instruct": {LATENTS: 61, GATE_AND_UP: 1 + 60 * (384 + 1)},
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": {QKV: 6},
    "MiniMaxAI/MiniMax-M2": {QKV: 62, ("w1", "w3"): 62 * 256},
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": {QKV: 40, GATE_AND_UP: 40},
    "ibm-granite/granite-4.0-h-small": {QKV: 4, GATE_AND_UP: 40 * 72},
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": {QKV: 48, GATE_AND_UP: 48 * (16 + 1)},
    "Qwen/Qwen3.6-35B-A3B": {QKV: 11, ("in_proj_qkv", "in_proj_z"): 30, GATE_AND_UP: 41 * (256 + 1)},
}

each_flagship = pytest.mark.parametrize("repository", FLAGSHIPS)
RECIPES = [name for name in recipe_names() if name.rpartition("/")[0] in FLAGSHIPS]


@pytest.fixture(scope="module", params=RECIPES)
def plan(request: pytest.FixtureRequest) -> Plan:
    """The plan of a recipe for the lock of its base: one at a time, since all of them together take gigabytes."""
    return make_plan(load_recipe(request.param), reference_lock(request.param.rpartition("/")[0]))


def model_of(plan: Plan) -> str:
    """The base of the plan's recipe."""
    return plan.loaded.recipe.base.model


pytestmark = pytest.mark.usefixtures("one_thread")


@each_flagship
def test_lock_is_what_the_dimensions_make(repository: str) -> None:
    assert lock_path(repository).read_text() == derived_lock(repository)


@each_flagship
def test_lock_says_that_it_is_derived(repository: str) -> None:
    origin = reference_lock(repository).origin
    assert (origin.basis, origin.base, origin.revision) == ("derived", repository, "")
    assert "have not been seen" in origin.note


@each_flagship
def test_structure_has_the_published_number_of_elements(repository: str) -> None:
    found = parameters(checkpoint(repository).structure)
    published = ELEMENTS[repository]
    assert (sum(found.values()) if isinstance(published, int) else found) == published


@pytest.mark.parametrize("repository", INDEXED)
def test_structure_has_the_published_number_of_tensors_and_bytes(repository: str) -> None:
    structure = checkpoint(repository).structure
    count, size = INDEXED[repository]
    assert len(structure) == count
    assert size in (None, payload_bytes(structure))


@each_flagship
def test_model_has_a_recipe_of_eight_bits_and_one_of_four(repository: str) -> None:
    schemes = [load_recipe(name).recipe.groups[0].scheme for name in RECIPES if name.startswith(f"{repository}/")]
    assert sorted(scheme.weights.num_bits for scheme in schemes) == [4, 8]


def test_recipe_only_lacks_a_pinned_revision(plan: Plan) -> None:
    assert (broken_rules(plan), plan.obstacles) == ({"base/unpinned"}, ())


def test_recipe_quantizes_the_bulk_of_the_linears(plan: Plan) -> None:
    assert quantized_roles(plan) == QUANTIZED[model_of(plan)]


def test_recipe_keeps_every_other_matrix(plan: Plan) -> None:
    assert kept_roles(plan) == KEPT[model_of(plan)]


def test_recipe_knows_what_servers_merge(plan: Plan) -> None:
    assert merged_members(plan) == MERGED[model_of(plan)]


def test_codes_of_a_quantized_source_are_decoded_and_what_they_were_quantized_in_is_gone(plan: Plan) -> None:
    coded = {module for parts in plan.source.coded.values() for module in parts}
    assert {part.module for part in plan.parts if part.action == "requantize"} == coded & plan.schemes.keys()
    assert {part.weight.dtype for part in plan.parts if part.module in coded} <= {"BF16"}
    assert not any(name.endswith(("_scale_inv", "_blocks", "_scales")) for name in plan.predicted.structure)
