"""Recipes fit the models they name, whatever those call their parts; and what a plan predicts is what gets built.

Structures of published models are made on the meta device (`tests.families`); builds are of toys of the same families
(`tests.toy_models`) and of the miniature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import families
from tests.conftest import Once
from tests.planning import broken_rules, kept_roles, merged_members, quantized_roles
from tests.reference_locks import reference_lock
from tests.toy_models import TOYS, VOCABULARY
from weighbridge.checkpoint.model import Checkpoint, open_directory
from weighbridge.errors import BuildError
from weighbridge.families import UNKNOWN, Role
from weighbridge.formats.tensors import Structure, payload_bytes
from weighbridge.output.shards import open_shards
from weighbridge.planning import Plan, make_plan
from weighbridge.progress import Progress
from weighbridge.recipe import load_recipe
from weighbridge.recipe.catalogue import RECIPES

GEMMA_26B = "google/gemma-4-26B-A4B-it"
SIBLINGS = [repository for repository in families.FAMILIES if repository != GEMMA_26B]

# Tensors and bytes of payload as published: index files, and headers of E4B that others have read.
PUBLISHED = {
    GEMMA_26B: (1_013, 51_611_872_412),
    "google/gemma-4-31B-it": (1_188, 62_546_177_752),
    "google/gemma-4-12B-it": (677, 23_919_460_448),
    "google/gemma-4-E4B-it": (2_130, 15_992_314_836),
    "meta-llama/Llama-3.1-8B-Instruct": (291, 16_060_522_496),
    "Qwen/Qwen3-30B-A3B": (18_867, 61_064_245_248),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": (995, 93_405_585_408),
    "deepseek-ai/DeepSeek-V2-Lite": (5_291, 31_412_968_448),
}

QUANTIZED: Mapping[str, Mapping[Role, int]] = {
    GEMMA_26B: {Role.ATTENTION: 30 * 4 - 5, Role.MLP: 30 * 3, Role.EXPERTS: 30 * 128 * 3},
    "google/gemma-4-31B-it": {Role.ATTENTION: 60 * 4 - 10, Role.MLP: 60 * 3},
    "google/gemma-4-12B-it": {Role.ATTENTION: 48 * 4 - 8, Role.MLP: 48 * 3},
    "google/gemma-4-E4B-it": {Role.ATTENTION: 42 * 4, Role.MLP: 42 * 3},
    "meta-llama/Llama-3.1-8B-Instruct": {Role.ATTENTION: 32 * 4, Role.MLP: 32 * 3},
    "Qwen/Qwen3-30B-A3B": {Role.ATTENTION: 48 * 4, Role.EXPERTS: 48 * 128 * 3},
    "mistralai/Mixtral-8x7B-Instruct-v0.1": {Role.ATTENTION: 32 * 4, Role.EXPERTS: 32 * 8 * 3},
    # q_proj, kv_a_proj_with_mqa, kv_b_proj, o_proj; the two shared experts are stored as one wide one.
    "deepseek-ai/DeepSeek-V2-Lite": {Role.ATTENTION: 27 * 4, Role.MLP: 3, Role.EXPERTS: 26 * (64 + 1) * 3},
}

# Tensors of two axes or more that stay as they are.
KEPT: Mapping[str, Mapping[Role, int]] = {
    # 27 layers of 7, input_proj, the table of positions, embed_vision.
    GEMMA_26B: {Role.EMBEDDINGS: 1, Role.ROUTER: 30, Role.VISION: 27 * 7 + 3},
    "google/gemma-4-31B-it": {Role.EMBEDDINGS: 1, Role.VISION: 27 * 7 + 3},
    # patch_dense, pos_embedding, embed_vision; embed_audio.
    "google/gemma-4-12B-it": {Role.EMBEDDINGS: 1, Role.VISION: 3, Role.AUDIO: 1},
    # Audio: 12 layers with 4 feed-forward, 5 attention and 3 convolution weights, 3 before, output_proj, embed_audio.
    # Small: the gate and the projection of the per-layer embeddings in each layer, and their projection before.
    "google/gemma-4-E4B-it": {
        Role.EMBEDDINGS: 2,
        Role.VISION: 16 * 7 + 3,
        Role.AUDIO: 12 * 12 + 5,
        Role.SMALL: 42 * 2 + 1,
    },
    "meta-llama/Llama-3.1-8B-Instruct": {Role.EMBEDDINGS: 1, Role.HEAD: 1},
    "Qwen/Qwen3-30B-A3B": {Role.EMBEDDINGS: 1, Role.HEAD: 1, Role.ROUTER: 48},
    "mistralai/Mixtral-8x7B-Instruct-v0.1": {Role.EMBEDDINGS: 1, Role.HEAD: 1, Role.ROUTER: 32},
    "deepseek-ai/DeepSeek-V2-Lite": {Role.EMBEDDINGS: 1, Role.HEAD: 1, Role.ROUTER: 26},
}

QKV, Q_AND_K, GATE_AND_UP = ("q_proj", "k_proj", "v_proj"), ("q_proj", "k_proj"), ("gate_proj", "up_proj")

# Groups of quantized linears that servers merge.
MERGED: Mapping[str, Mapping[tuple[str, ...], int]] = {
    GEMMA_26B: {QKV: 25, Q_AND_K: 5, GATE_AND_UP: 30 * (1 + 128)},
    "google/gemma-4-31B-it": {QKV: 50, Q_AND_K: 10, GATE_AND_UP: 60},
    "google/gemma-4-12B-it": {QKV: 40, Q_AND_K: 8, GATE_AND_UP: 48},
    "google/gemma-4-E4B-it": {QKV: 42, GATE_AND_UP: 42},
    "meta-llama/Llama-3.1-8B-Instruct": {QKV: 32, GATE_AND_UP: 32},
    "Qwen/Qwen3-30B-A3B": {QKV: 48, GATE_AND_UP: 48 * 128},
    "mistralai/Mixtral-8x7B-Instruct-v0.1": {QKV: 32, ("w1", "w3"): 32 * 8},
    "deepseek-ai/DeepSeek-V2-Lite": {GATE_AND_UP: 1 + 26 * (64 + 1)},
}

each_family = pytest.mark.parametrize("repository", families.FAMILIES)


@cache
def planned(repository: str) -> Plan:
    """The plan of a published model's own recipe."""
    return make_plan(load_recipe(f"{repository}/fp8-dynamic"), families.checkpoint(repository))


pytestmark = pytest.mark.usefixtures("one_thread")


# --- structures and recipes of published models


def test_structure_from_the_meta_device_is_that_of_the_published_files() -> None:
    published = reference_lock(GEMMA_26B)
    assert families.checkpoint(GEMMA_26B).structure == published.structure


@each_family
def test_structure_has_the_published_number_of_tensors_and_bytes(repository: str) -> None:
    structure = families.checkpoint(repository).structure
    assert (len(structure), payload_bytes(structure)) == PUBLISHED[repository]


@each_family
def test_embeddings_are_told_from_linears_by_name(repository: str) -> None:
    import torch

    def last_names(kind: type[torch.nn.Module]) -> set[str]:
        modules = families.meta_model(repository).named_modules()
        return {name.rpartition(".")[2] for name, module in modules if isinstance(module, kind)}

    assert all(map(UNKNOWN.is_embedding, last_names(torch.nn.Embedding)))
    assert not any(map(UNKNOWN.is_embedding, last_names(torch.nn.Linear)))


@pytest.mark.parametrize("repository", SIBLINGS)
def test_recipe_of_another_model_only_lacks_a_pinned_revision(repository: str) -> None:
    assert broken_rules(planned(repository)) == {"base/unpinned"}


@each_family
def test_recipe_quantizes_the_bulk_of_the_linears(repository: str) -> None:
    assert quantized_roles(planned(repository)) == QUANTIZED[repository]


@each_family
def test_recipe_keeps_every_other_matrix(repository: str) -> None:
    assert kept_roles(planned(repository)) == KEPT[repository]


@each_family
def test_recipe_knows_what_servers_merge(repository: str) -> None:
    assert merged_members(planned(repository)) == MERGED[repository]


# --- prediction and build


def integers(bits: int) -> dict[str, Any]:
    """One config group of integer weights in groups of 32, activations as they are."""
    arguments = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    return {"group_0": {"weights": arguments}}


# Groups of 32 divide every width of the toys and the miniature, those of 128 in the presets do not.
SCHEMES: Mapping[str, Any] = {
    "FP8_DYNAMIC": "FP8_DYNAMIC",
    "FP8_BLOCK": "FP8_BLOCK",
    "W8A8": "W8A8",
    "W8A16": integers(8),
    "W4A16": integers(4),
    "NVFP4A16": "NVFP4A16",
    "MXFP4": "MXFP4",
    "MXFP8": "MXFP8",
}
RECIPE_OF = {
    "llama": "meta-llama/Llama-3.1-8B-Instruct/fp8-dynamic",
    "qwen3-moe": "Qwen/Qwen3-30B-A3B/fp8-dynamic",
    "mixtral": "mistralai/Mixtral-8x7B-Instruct-v0.1/fp8-dynamic",
    "deepseek-v2": "deepseek-ai/DeepSeek-V2-Lite/fp8-dynamic",
    "miniature": f"{GEMMA_26B}/fp8-dynamic",
}
# Where model_free_ptq stops, and with what words; there the prediction is held against oneshot.
STOPS = {
    ("llama", "FP8_BLOCK"): "non contiguous tensor",
    ("qwen3-moe", "FP8_BLOCK"): "non contiguous tensor",
    ("miniature", "FP8_BLOCK"): "non contiguous tensor",
    ("miniature", "NVFP4A16"): "self_attn.v_proj.weight not found in weight map",
}

Sources = Callable[[str], Checkpoint]


@pytest.fixture(scope="session")
def source(once: Once, mini: Path) -> Sources:
    """A small checkpoint by its name."""
    return lambda name: open_directory(mini if name == "miniature" else once(f"toy-{name}", TOYS[name]))


def plan_with(source: Checkpoint, recipe: str, scheme: Any, method: str, scratch: Path) -> Plan:
    """The plan of a recipe of the catalogue with another scheme (a preset's name, or config groups) and method."""
    content = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    content.pop("scheme")
    content.pop("references", None)
    content |= {"method": method, "scheme" if isinstance(scheme, str) else "config_groups": scheme}
    path = scratch / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return make_plan(load_recipe(str(path)), source)


def built_by(plan: Plan, directory: Path) -> Structure:
    """What the recipe's method writes: ``model_free_ptq`` or ``oneshot`` of llm-compressor."""
    from weighbridge.engines import oneshot, upstream

    directory.mkdir()
    if plan.loaded.recipe.method == "oneshot":
        oneshot.quantize(plan, plan.source, directory, device="cpu", progress=Progress(shown=False))
    else:
        upstream.quantize(plan, plan.source, directory, device="cpu", workers=1)
    return open_shards(directory, {}, label=str(directory)).structure


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "miniature"])
def test_prediction_is_what_is_built(name: str, scheme: str, source: Sources, tmp_path: Path) -> None:
    method = "oneshot" if (name, scheme) in STOPS else "model_free_ptq"
    plan = plan_with(source(name), RECIPE_OF[name], SCHEMES[scheme], method, tmp_path)
    assert not plan.obstacles
    assert plan.predicted.structure == built_by(plan, tmp_path / "build")


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "W4A16", "NVFP4A16"])
@pytest.mark.parametrize("name", ["mixtral", "deepseek-v2"])
def test_prediction_holds_for_names_of_other_families(name: str, scheme: str, source: Sources, tmp_path: Path) -> None:
    plan = plan_with(source(name), RECIPE_OF[name], SCHEMES[scheme], "model_free_ptq", tmp_path)
    assert plan.predicted.structure == built_by(plan, tmp_path / "build")


@pytest.mark.parametrize(("name", "scheme"), STOPS)
def test_upstream_still_stops_where_the_prediction_is_held_against_oneshot(
    name: str, scheme: str, source: Sources, tmp_path: Path
) -> None:
    plan = plan_with(source(name), RECIPE_OF[name], SCHEMES[scheme], "model_free_ptq", tmp_path)
    with pytest.raises(BuildError, match=STOPS[name, scheme]):
        built_by(plan, tmp_path / "build")


@pytest.mark.parametrize("scheme", ["NVFP4", "FP8"])
def test_prediction_with_static_activations_is_what_calibration_writes(
    scheme: str, source: Sources, tmp_path: Path
) -> None:
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    llama = source("llama")
    plan = plan_with(llama, RECIPE_OF["llama"], scheme, "oneshot", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(llama.directory, dtype="auto")
    tokens = torch.arange(64).reshape(4, 16) * 7 % VOCABULARY
    samples: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens]
    oneshot(
        model=model,
        dataset=torch.utils.data.DataLoader(samples),
        recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=list(plan.loaded.recipe.ignored)),
    )
    model.save_pretrained(tmp_path / "build", save_compressed=True)
    assert plan.predicted.structure == open_directory(tmp_path / "build").structure


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_the_same_for_one_seed(name: str, source: Sources, tmp_path: Path) -> None:
    TOYS[name](tmp_path)
    first = source(name).directory
    assert first is not None
    assert (tmp_path / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
