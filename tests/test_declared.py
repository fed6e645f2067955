"""What lies in a checkpoint is what its config declares: every code and scale belongs to something, or is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.planning import MINI, recipe, source
from tests.test_modifiers import DATA
from weighbridge.checkpoint.consistency import inconsistencies
from weighbridge.checkpoint.lock import write_lock
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import quantizable_modules
from weighbridge.checkpoint.readable import check_decoded
from weighbridge.checkpoint.strays import is_code, is_scale
from weighbridge.errors import RecipeError, StructureError
from weighbridge.formats.quantization import read_declaration, resolve
from weighbridge.formats.schemes import PRESETS, args_to_config, stored_tensors, to_config
from weighbridge.formats.tensors import Structure, Tensor
from weighbridge.linting import lint
from weighbridge.planning import make_plan
from weighbridge.recipe import load_recipe
from weighbridge.report import Finding, Severity

LAYERS, HIDDEN, INNER = 3, 64, 128
PROJECTIONS = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qo"},
    **{f"self_attn.{name}_proj": (HIDDEN // 2, HIDDEN) for name in "kv"},
    **{f"mlp.{name}_proj": (INNER, HIDDEN) for name in ("gate", "up")},
    "mlp.down_proj": (HIDDEN, INNER),
}
LINEARS = {
    f"model.layers.{layer}.{name}": Tensor("BF16", shape)
    for layer in range(LAYERS)
    for name, shape in PROJECTIONS.items()
}
REST = {
    "model.embed_tokens.weight": Tensor("BF16", (256, HIDDEN)),
    "model.norm.weight": Tensor("BF16", (HIDDEN,)),
    "lm_head.weight": Tensor("BF16", (256, HIDDEN)),
}
PLAIN = {**{f"{name}.weight": weight for name, weight in LINEARS.items()}, **REST}
LLAMA = {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2}
ATTENTIONS = [f"model.layers.{layer}.self_attn" for layer in range(LAYERS)]
FP8_CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}
PER_HEAD = FP8_CACHE | {"strategy": "attn_head"}
LINEAR_GROUP = {"targets": ["Linear"], **to_config(PRESETS["FP8_DYNAMIC"])}
OF_ATTENTION = {"targets": ["LlamaAttention"], "weights": None, "input_activations": FP8_CACHE}


def stored(preset: str = "FP8_DYNAMIC") -> dict[str, Tensor]:
    """The model, its linears quantized."""
    quantized = {
        f"{name}.{local}": tensor
        for name, weight in LINEARS.items()
        for local, tensor in stored_tensors(PRESETS[preset], weight).items()
    }
    return {**quantized, **REST}


def declared(*groups: Mapping[str, Any], **keys: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {f"group_{index}": dict(group) for index, group in enumerate(groups)},
        "ignore": ["lm_head"],
        **keys,
    }


def checkpoint(
    structure: Structure, quantization: Mapping[str, Any] | None, config: Mapping[str, Any] = LLAMA
) -> Checkpoint:
    whole = dict(config) if quantization is None else {**config, "quantization_config": quantization}
    declaration = read_declaration(whole, where="config.json")
    schemes = {} if declaration is None else resolve(declaration, quantizable_modules(structure), where="config.json")
    return Checkpoint("here", structure, whole, declaration, schemes)


def findings(
    structure: Structure, quantization: Mapping[str, Any] | None, config: Mapping[str, Any] = LLAMA
) -> list[Finding]:
    return inconsistencies(checkpoint(structure, quantization, config))


def errors(
    structure: Structure, quantization: Mapping[str, Any] | None, config: Mapping[str, Any] = LLAMA
) -> set[tuple[str, str]]:
    """Rule and place of each error."""
    found = findings(structure, quantization, config)
    return {(finding.rule, finding.where) for finding in found if finding.severity is Severity.ERROR}


def scales(*kinds: str, shape: tuple[int, ...] = (1,), dtype: str = "BF16", layers: int = LAYERS) -> dict[str, Tensor]:
    return {f"{attention}.{kind}_scale": Tensor(dtype, shape) for attention in ATTENTIONS[:layers] for kind in kinds}


def per_head(queries: int = 4, keys: int = 2) -> dict[str, Tensor]:
    return scales("q", shape=(queries, 1, 1)) | scales("k", "v", shape=(keys, 1, 1))


# --- what holds ---

GROUPS = (LINEAR_GROUP, OF_ATTENTION)
HOLDS: dict[str, tuple[dict[str, Tensor], dict[str, Any] | None]] = {
    "nothing quantized": (PLAIN, None),
    "linears": (stored(), declared(LINEAR_GROUP)),
    "a cache declared without scales": (stored(), declared(LINEAR_GROUP, kv_cache_scheme=FP8_CACHE)),
    "a cache with scales": (stored() | scales("k", "v"), declared(LINEAR_GROUP, kv_cache_scheme=FP8_CACHE)),
    "a cache with scalars": (stored() | scales("k", "v", shape=()), declared(LINEAR_GROUP, kv_cache_scheme=FP8_CACHE)),
    "scales in F32": (stored() | scales("k", "v", dtype="F32"), declared(LINEAR_GROUP, kv_cache_scheme=FP8_CACHE)),
    "scales of heads": (stored() | per_head(), declared(
        LINEAR_GROUP, OF_ATTENTION | {"input_activations": PER_HEAD}, kv_cache_scheme=PER_HEAD)),
    "attention and cache": (stored() | scales("q", "k", "v"), declared(*GROUPS, kv_cache_scheme=FP8_CACHE)),
    "attention alone": (stored() | scales("q", "k", "v"), declared(*GROUPS)),
    "a cache alone": (PLAIN | scales("k", "v"), declared(format="dense", kv_cache_scheme=FP8_CACHE)),
    "a cache alone, declared": (PLAIN, declared(format="dense", kv_cache_scheme=FP8_CACHE)),
    "as modelopt names them": (
        stored() | {f"{name}.{kind}_proj.{kind}_scale": Tensor("F32", ()) for name in ATTENTIONS for kind in "kv"},
        declared(LINEAR_GROUP, kv_cache_scheme=FP8_CACHE),
    ),
    "as early llm-compressor named them": (
        stored() | {f"{name}.{kind}_proj.output_scale": Tensor("BF16", (1,)) for name in ATTENTIONS for kind in "kv"},
        declared(LINEAR_GROUP, kv_cache_scheme=FP8_CACHE),
    ),
    "as vLLM names them": (
        stored() | {f"{name}.attn.{kind}_scale": Tensor("F32", (1,)) for name in ATTENTIONS for kind in "kv"},
        declared(LINEAR_GROUP, kv_cache_scheme=FP8_CACHE),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("structure", "quantization"), HOLDS.values(), ids=HOLDS)
def test_what_is_declared_and_stored_holds(structure: Structure, quantization: dict[str, Any] | None) -> None:
    assert findings(structure, quantization) == []


def test_layers_that_use_the_keys_of_others_need_no_scales() -> None:
    structure = stored() | scales("k", "v", layers=2)
    quantization = declared(LINEAR_GROUP, kv_cache_scheme=FP8_CACHE)
    assert errors(structure, quantization) == {
        ("config/missing-tensor", f"model.layers.2.self_attn.{kind}_scale") for kind in "kv"
    }
    assert errors(structure, quantization, LLAMA | {"num_kv_shared_layers": 1}) == set()
    assert errors(structure, quantization, {"text_config": LLAMA | {"num_kv_shared_layers": 1}}) == set()


# --- scales of attention ---

CACHE = declared(LINEAR_GROUP, kv_cache_scheme=FP8_CACHE)
HEADS = declared(LINEAR_GROUP, OF_ATTENTION | {"input_activations": PER_HEAD}, kv_cache_scheme=PER_HEAD)
ALL = "model.layers.{0-2}.self_attn"
ATTENTION: dict[str, tuple[dict[str, Tensor], dict[str, Any] | None, set[tuple[str, str]]]] = {
    "no cache is declared": (
        stored() | scales("k", "v"), declared(LINEAR_GROUP),
        {("config/undeclared-scale", f"{ALL}.{kind}_scale") for kind in "kv"},
    ),
    "nothing is declared": (
        PLAIN | scales("k", "v"), None, {("config/undeclared-scale", f"{ALL}.{kind}_scale") for kind in "kv"},
    ),
    "the cache is dynamic": (
        stored() | scales("k"), declared(LINEAR_GROUP, kv_cache_scheme=FP8_CACHE | {"dynamic": True}),
        {("config/undeclared-scale", f"{ALL}.k_scale")},
    ),
    "queries are not declared": (
        stored() | scales("q", "k", "v"), CACHE, {("config/undeclared-scale", f"{ALL}.q_scale")},
    ),
    "keys alone": (stored() | scales("k"), CACHE, {("config/missing-tensor", f"{ALL}.v_scale")}),
    "queries are missing": (
        stored() | scales("k", "v"), declared(*GROUPS, kv_cache_scheme=FP8_CACHE),
        {("config/missing-tensor", f"{ALL}.q_scale")},
    ),
    "some layers": (
        stored() | scales("k", "v", layers=2), CACHE,
        {("config/missing-tensor", f"model.layers.2.self_attn.{kind}_scale") for kind in "kv"},
    ),
    "beyond the layers": (
        stored() | scales("k", "v") | {"model.layers.7.self_attn.k_scale": Tensor("BF16", (1,))}, CACHE,
        {("config/stray-scale", "model.layers.7.self_attn.k_scale")},
    ),
    "of a vision tower": (
        stored() | scales("k", "v") | {
            "model.vision_tower.layers.0.self_attn.k_proj.weight": Tensor("BF16", (8, 8)),
            "model.vision_tower.layers.0.self_attn.k_scale": Tensor("BF16", (1,)),
        }, CACHE | {"ignore": ["lm_head", "re:.*vision.*"]},
        {("config/stray-scale", "model.vision_tower.layers.0.self_attn.k_scale")},
    ),
    "wrong dtype": (
        stored() | scales("k", "v", dtype="F8_E4M3"), CACHE,
        {("config/wrong-tensor", f"{ALL}.{kind}_scale") for kind in "kv"},
    ),
    "of heads where one is declared": (
        stored() | scales("k", "v", shape=(2, 1, 1)), CACHE,
        {("config/wrong-tensor", f"{ALL}.{kind}_scale") for kind in "kv"},
    ),
    "one where those of heads are declared": (
        stored() | scales("q", "k", "v"), HEADS,
        {("config/wrong-tensor", f"{ALL}.{kind}_scale") for kind in "qkv"},
    ),
    "of too many heads": (
        stored() | per_head(keys=4), HEADS, {("config/wrong-tensor", f"{ALL}.{kind}_scale") for kind in "kv"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("structure", "quantization", "expected"), ATTENTION.values(), ids=ATTENTION)
def test_scales_of_attention_are_accounted_for(
    structure: Structure, quantization: dict[str, Any] | None, expected: set[tuple[str, str]]
) -> None:
    assert errors(structure, quantization) == expected


# --- codes and scales that belong to nothing ---

STRAY: dict[str, tuple[str, Tensor, str]] = {
    "a head in FP8": ("mtp.fc.weight", Tensor("F8_E4M3", (64, 128)), "ignored"),
    "a head in FP8 of the other kind": ("mtp.fc.weight", Tensor("F8_E5M2", (64, 128)), "ignored"),
    "a head in INT8": ("mtp.fc.weight", Tensor("I8", (64, 128)), "ignored"),
    "four bits, packed": ("mtp.fc.weight", Tensor("U8", (64, 64)), "ignored"),
    "four bits": ("mtp.fc.weight", Tensor("F4", (64, 128)), "ignored"),
    "six bits": ("mtp.fc.weight", Tensor("F6_E2M3", (64, 128)), "ignored"),
    "under a name of no scheme": ("mtp.fc.weight_blocks", Tensor("U8", (64, 4, 16)), "config/stray-codes"),
    "exponents": ("mtp.fc.block_scales", Tensor("F8_E8M0", (64, 4)), "config/stray-codes"),
    "one axis": ("mtp.fc.factor", Tensor("F8_E4M3", (64,)), "config/stray-codes"),
    "nothing at all": ("mtp.fc.rest", Tensor("F4", (0, 8)), "config/stray-codes"),
    "an embedding": ("model.embed_positions.weight", Tensor("I8", (64, 64)), "config/stray-codes"),
    "a convolution": ("mtp.conv.weight", Tensor("F8_E4M3", (8, 8, 3, 3)), "config/stray-codes"),
    "words of 32 bits": ("mtp.fc.codes", Tensor("I32", (64, 16)), "config/stray-codes"),
    "a scale without its module": ("mtp.fc.weight_scale", Tensor("BF16", (64, 1)), "ignored"),
    "of GPTQ": ("mtp.fc.qzeros", Tensor("I32", (1, 8)), "ignored"),
    "an order": ("mtp.fc.g_idx", Tensor("I32", (64,)), "ignored"),
    "of fused experts": ("mtp.experts.w1_weight_scale", Tensor("BF16", (4, 8)), "config/stray-scale"),
    "of bitsandbytes": ("mtp.fc.weight.absmax", Tensor("F32", (64,)), "config/stray-scale"),
    "beside its weight": ("model.layers.0.mlp.down_proj_scale", Tensor("F32", (64, 1)), "config/stray-scale"),
    "below its weight": ("model.embed_tokens.scale", Tensor("F32", (256, 1)), "config/stray-scale"),
    "under a name of a tool's own": ("model.embed_tokens.smooth_scale", Tensor("F32", (128,)), "config/stray-scale"),
    "a largest value": ("model.embed_tokens.weight_amax", Tensor("F32", ()), "config/stray-scale"),
    "of softmax": ("mtp.prob_output_scale", Tensor("F32", ()), "config/stray-scale"),
}
IGNORED = declared(LINEAR_GROUP, ignore=["lm_head", "re:mtp.*"])


@pytest.mark.parametrize(("name", "tensor", "rule"), STRAY.values(), ids=STRAY)
def test_codes_and_scales_that_nothing_declares_are_named(name: str, tensor: Tensor, rule: str) -> None:
    module = name.rpartition(".")[0]
    expected = ("config/ignored-but-quantized", module) if rule == "ignored" else (rule, name)
    assert errors(stored() | {name: tensor}, IGNORED) == {expected}


@pytest.mark.parametrize(("name", "tensor", "rule"), STRAY.values(), ids=STRAY)
def test_they_are_named_where_nothing_is_declared_at_all(name: str, tensor: Tensor, rule: str) -> None:
    module = name.rpartition(".")[0]
    expected = ("config/missing", module) if rule == "ignored" else (rule, name)
    assert errors(PLAIN | {name: tensor}, None) == {expected}


def test_codes_without_scales_are_not_to_be_taken_off_the_ignore_list() -> None:
    (finding,) = findings(stored() | {"mtp.fc.weight": Tensor("F8_E4M3", (64, 128))}, IGNORED)
    assert "lost with their scales" in finding.remedy
    assert "ignore list" not in finding.remedy


# Read off the checkpoints of transformers' models; none of them is quantized.
HONEST: dict[str, Tensor] = {
    "model.layers.0.router.scale": Tensor("BF16", (HIDDEN,)),
    "model.layers.0.router.per_expert_scale": Tensor("BF16", (8,)),
    "model.layers.0.layer_scalar": Tensor("BF16", (1,)),
    "model.layers.0.input_layernorm.scale": Tensor("BF16", (HIDDEN,)),
    "logit_scale": Tensor("F32", ()),
    "model.embed_tokens.embed_scale": Tensor("F32", ()),
    "model.text_video_logit_scale": Tensor("F32", ()),
    "model.audio_tower.layers.0.attn.per_dim_scale": Tensor("BF16", (16,)),
    "model.layers.0.layer_scale": Tensor("BF16", (HIDDEN,)),
    "model.decoder.input_hidden_states_scale": Tensor("F32", (1,)),
    "model.hc_scale": Tensor("F32", (3,)),
    "model.embeddings.position_ids": Tensor("I64", (1, 512)),
    "model.visual.position_ids": Tensor("I32", (1, 512)),
    "model.layers.0.mlp.gate.tid2eid": Tensor("I64", (256, 6)),
    "model.layers.1.mlp.gate.tid2eid": Tensor("I32", (256, 6)),
    "h.0.attn.bias": Tensor("U8", (1, 1, 1024, 1024)),
    "h.1.attn.bias": Tensor("BOOL", (1, 1, 1024, 1024)),
    "h.0.attn.masked_bias": Tensor("F32", ()),
    "bn.num_batches_tracked": Tensor("I64", ()),
    "layers.0.attn.relative_position_index": Tensor("I64", (49, 49)),
    "model.layers.0.mlp.gate.e_score_correction_bias": Tensor("F32", (8,)),
    "model.flag": Tensor("BOOL", ()),
    "tokenizer.merges": Tensor("U8", (4096,)),
}


@pytest.mark.parametrize(("name", "tensor"), HONEST.items(), ids=HONEST)
def test_what_models_have_of_their_own_is_no_code_and_no_scale(name: str, tensor: Tensor) -> None:
    structure = PLAIN | {"model.layers.0.router.proj.weight": Tensor("BF16", (8, HIDDEN)), name: tensor}
    assert (is_code(name, tensor), is_scale(name, structure)) == (False, False)
    assert findings(structure, None) == []


# --- shapes and dtypes that loaders take for others ---

STATIC = {name: PRESETS[name] for name in ("FP8", "NVFP4")}


def changed(structure: Structure, local: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: change(tensor) if name.endswith(f".{local}") else tensor for name, tensor in structure.items()}


def one_axis_less(tensor: Tensor) -> Tensor:
    return Tensor(tensor.dtype, tensor.shape[:-1])


ODD: dict[str, tuple[str, str, Callable[[Tensor], Tensor], str]] = {
    "scalars for weights": ("FP8", "weight_scale", one_axis_less, "note"),
    "scalars for inputs": ("FP8", "input_scale", one_axis_less, "note"),
    "scalars for global scales": ("NVFP4", "weight_global_scale", one_axis_less, "note"),
    "F32 for inputs": ("FP8", "input_scale", lambda tensor: Tensor("F32", tensor.shape), ""),
    "F32 for weights": ("FP8_DYNAMIC", "weight_scale", lambda tensor: Tensor("F32", tensor.shape), ""),
    "rows in one axis": ("FP8_DYNAMIC", "weight_scale", one_axis_less, "vLLM's loader stops at any other shape"),
    "the other way round": (
        "FP8_DYNAMIC", "weight_scale", lambda tensor: Tensor("BF16", tensor.shape[::-1]), "the declared scheme stores",
    ),
    "codes for scales": (
        "FP8", "input_scale", lambda tensor: Tensor("F8_E4M3", tensor.shape), "the declared scheme stores",
    ),
    "two of one": ("FP8", "weight_scale", lambda tensor: Tensor("BF16", (2,)), "the declared scheme stores"),
}  # fmt: skip


@pytest.mark.parametrize(("preset", "local", "change", "said"), ODD.values(), ids=ODD)
def test_scales_of_another_shape_or_dtype_are_what_loaders_make_of_them(
    preset: str, local: str, change: Callable[[Tensor], Tensor], said: str
) -> None:
    quantization = declared({"targets": ["Linear"], **to_config(PRESETS[preset])}, format=PRESETS[preset].format)
    found = findings(changed(stored(preset), local, change), quantization)
    if said in ("", "note"):
        assert {finding.rule for finding in found} == ({"config/scalar-scale"} if said else set())
    else:
        assert {finding.rule for finding in found} == {"config/wrong-tensor"}
        assert all(said in finding.message for finding in found)
        assert sum(finding.count for finding in found) == len(LINEARS)


# --- columns in the order of activations ---


def ordered(actorder: str | None) -> dict[str, Any]:
    weights = args_to_config(PRESETS["W4A16"].weights) | {"actorder": actorder, "group_size": 32}
    return declared({"targets": ["Linear"], "weights": weights}, format="pack-quantized")


def packed(*, without: str = "", indexed: bool = True) -> dict[str, Tensor]:
    structure: dict[str, Tensor] = dict(REST)
    for name, weight in LINEARS.items():
        rows, columns = weight.shape
        structure |= {
            f"{name}.weight_packed": Tensor("I32", (rows, columns // 8)),
            f"{name}.weight_scale": Tensor("BF16", (rows, columns // 32)),
            f"{name}.weight_shape": Tensor("I64", (2,)),
        }
        if indexed and name != without:
            structure[f"{name}.weight_g_idx"] = Tensor("I32", (columns,))
    return structure


@pytest.mark.parametrize("order", ["group", "dynamic", True])
def test_columns_grouped_by_activation_have_an_index_everywhere(order: str) -> None:
    lacking = "model.layers.1.mlp.down_proj"
    assert errors(packed(), ordered(order)) == set()
    (warning,) = findings(packed(), ordered(order))
    assert "vLLM 0.32 refuse" in warning.message
    assert errors(packed(without=lacking), ordered(order)) == {("config/missing-tensor", f"{lacking}.weight_g_idx")}


def test_columns_grouped_by_activation_are_turned_into_no_numbers() -> None:
    with pytest.raises(StructureError, match="grouped by activation"):
        check_decoded(checkpoint(packed(), ordered("group")))
    check_decoded(checkpoint(packed(indexed=False), ordered("weight")))


@pytest.mark.parametrize("order", [None, False, "weight", "static"])
def test_other_orders_store_no_index(order: str | None) -> None:
    assert findings(packed(indexed=False), ordered(order)) == []
    assert {rule for rule, _ in errors(packed(), ordered(order))} == {"config/surplus-tensor"}


# --- groups that overlap ---

MLP = r"re:.*mlp\.(gate|up|down)_proj$"
LAST = r"re:.*layers\.2\.mlp\.(gate|up|down)_proj$"
SPELLED = r"re:model\.layers\.2\.mlp\..*"
NAMES = [f"model.layers.2.mlp.{name}_proj" for name in ("gate", "up", "down")]


def overlapping(*targets_and_presets: tuple[list[str], str]) -> dict[str, Any]:
    groups = [{"targets": targets, **to_config(PRESETS[preset])} for targets, preset in targets_and_presets]
    return declared(*groups, format="mixed-precision")


def mixed(last: str) -> dict[str, Tensor]:
    """Attention in FP8, mlp in NVFP4, and that of the last layer as `last` says."""
    return REST | {
        f"{name}.{local}": tensor
        for name, weight in LINEARS.items()
        for local, tensor in stored_tensors(
            PRESETS["FP8_DYNAMIC" if "attn" in name else last if ".2." in name else "NVFP4A16"], weight
        ).items()
    }


ATTN = "re:.*self_attn.*"
# config, what the mlp of the last layer is, severity, what is said
OVERLAPS: dict[str, tuple[dict[str, Any], str, Severity, str]] = {
    "alike to both readers": (
        overlapping(([ATTN, LAST], "FP8_DYNAMIC"), ([MLP], "NVFP4A16")), "FP8_DYNAMIC", Severity.NOTE, "the same",
    ),
    "the first in the file": (
        overlapping(([ATTN, SPELLED], "FP8_DYNAMIC"), ([MLP], "NVFP4A16")),
        "FP8_DYNAMIC", Severity.WARNING, "agree with the first",
    ),
    "the first by its text": (
        overlapping(([ATTN, SPELLED], "FP8_DYNAMIC"), ([MLP], "NVFP4A16")),
        "NVFP4A16", Severity.ERROR, "agree with the second, which vLLM does not read",
    ),
    "names after a pattern": (
        overlapping(([MLP], "NVFP4A16"), ([ATTN, *NAMES], "FP8_DYNAMIC")),
        "FP8_DYNAMIC", Severity.ERROR, "agree with the second, which vLLM does not read",
    ),
    "names after a pattern, unheeded": (
        overlapping(([MLP], "NVFP4A16"), ([ATTN, *NAMES], "FP8_DYNAMIC")),
        "NVFP4A16", Severity.WARNING, "agree with the first",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("quantization", "last", "severity", "said"), OVERLAPS.values(), ids=OVERLAPS)
def test_groups_that_overlap_are_told_with_both_readings(
    quantization: dict[str, Any], last: str, severity: Severity, said: str
) -> None:
    found = findings(mixed(last), quantization)
    assert {(finding.rule, finding.severity) for finding in found} == {("config/overlap", severity)}
    assert {finding.where for finding in found} == set(NAMES)
    assert all(said in finding.message for finding in found)


def test_tensors_that_agree_with_neither_reading_are_named_too() -> None:
    quantization = overlapping(([ATTN, SPELLED], "FP8_DYNAMIC"), ([MLP], "NVFP4A16"))
    found = errors(mixed("W8A8"), quantization)
    assert {rule for rule, _ in found} > {"config/overlap"}


# --- what cannot be judged ---

UNREAD: dict[str, dict[str, Any]] = {
    "rotations": declared(LINEAR_GROUP, transform_config={"config_groups": {"R1": {"type": "hadamard"}}}),
    "rotations that call themselves dense": declared(
        LINEAR_GROUP, transform_config={"format": "dense", "config_groups": {"R1": {"type": "hadamard"}}}
    ),
    "pruned weights": declared(LINEAR_GROUP, sparsity_config={"format": "sparse-24-bitmask", "targets": ["Linear"]}),
    "a format of pruned weights": declared(LINEAR_GROUP, format="marlin-24"),
    "another method": {"quant_method": "quark", "global_quant_config": {}},
    "no method": {"bits": 4},
}


@pytest.mark.parametrize("quantization", UNREAD.values(), ids=UNREAD)
def test_declaration_that_is_not_wholly_read_is_no_verdict(quantization: dict[str, Any]) -> None:
    with pytest.raises(StructureError, match="cannot be judged"):
        findings(stored(), quantization)


IDLE: dict[str, dict[str, Any]] = {
    "no transforms": {"transform_config": {}},
    "transforms of nothing": {"transform_config": {"config_groups": {}}},
    "null": {"transform_config": None, "sparsity_config": None},
    "dense": {"sparsity_config": {"format": "dense", "global_sparsity": 0.1, "registry_requires_subclass": False}},
    "remarks": {"version": "0.9.1", "global_compression_ratio": 1.89},
    "what transformers adds": {"run_compressed": True, "dequantize": False},
}


@pytest.mark.parametrize("keys", IDLE.values(), ids=IDLE)
def test_keys_that_say_nothing_of_the_tensors_are_read(keys: dict[str, Any]) -> None:
    assert findings(stored(), declared(LINEAR_GROUP, **keys)) == []


@pytest.mark.parametrize("status", ["frozen", "initialized", "calibration", "decompressed", None])
def test_status_that_transformers_reads_otherwise_is_a_warning(status: str | None) -> None:
    (finding,) = findings(stored(), declared(LINEAR_GROUP, quantization_status=status))
    assert (finding.rule, finding.severity) == ("config/status", Severity.WARNING)


REFUSED_CACHES = {
    "integers": FP8_CACHE | {"type": "int"},
    "four bits": FP8_CACHE | {"num_bits": 4},
    "asymmetric": FP8_CACHE | {"symmetric": False},
    "per token": FP8_CACHE | {"strategy": "token", "dynamic": True},
    "no strategy": {key: value for key, value in FP8_CACHE.items() if key != "strategy"},
    "no symmetry": {key: value for key, value in FP8_CACHE.items() if key != "symmetric"},
}


@pytest.mark.parametrize("cache", REFUSED_CACHES.values(), ids=REFUSED_CACHES)
def test_a_cache_that_vllm_stops_at_is_a_warning(cache: dict[str, Any]) -> None:
    (finding,) = findings(stored(), declared(LINEAR_GROUP, kv_cache_scheme=cache))
    assert (finding.rule, finding.severity) == ("config/kv-cache", Severity.WARNING)


def test_a_lock_keeps_the_order_of_columns_and_is_not_written_of_what_is_not_read() -> None:
    locked = write_lock(checkpoint(packed(), ordered("group")))
    assert "actorder: group" in locked
    with pytest.raises(StructureError, match="cannot be locked"):
        write_lock(checkpoint(stored(), UNREAD["rotations"]))


def test_a_config_where_servers_do_not_look_is_a_warning() -> None:
    nested = {**LLAMA, "thinker_config": {"quantization_config": declared(LINEAR_GROUP)}}
    (finding,) = findings(stored(), None, nested)
    assert (finding.rule, finding.severity) == ("config/place", Severity.WARNING)
    assert "thinker_config.quantization_config" in finding.message


def test_a_group_in_another_format_than_its_scheme_is_stored_in_is_an_error() -> None:
    group = LINEAR_GROUP | {"format": "int-quantized"}
    assert errors(stored(), declared(group)) == {("config/format", "config.json")}


def test_fused_experts_have_what_their_scheme_stores_for_each() -> None:
    experts = "model.layers.0.mlp.experts.gate_up_proj"
    whole = {
        experts: Tensor("F8_E4M3", (4, 2 * INNER, HIDDEN)),
        f"{experts}.weight_scale": Tensor("BF16", (4, 2 * INNER, 1)),
    }
    quantization = declared(LINEAR_GROUP)
    assert errors(stored() | whole, quantization) == set()
    assert errors(stored() | {experts: whole[experts]}, quantization) == {
        ("config/missing-tensor", f"{experts}.weight_scale")
    }
    flat = {f"{experts}.weight_scale": Tensor("BF16", (4, 1))}
    assert {rule for rule, _ in errors(stored() | whole | flat, quantization)} == {"config/wrong-tensor"}
    assert errors(stored() | whole, declared(LINEAR_GROUP, ignore=["lm_head", "re:.*experts.*"])) == {
        ("config/ignored-but-quantized", experts)
    }


# --- recipes that quantize the KV cache alone ---


@pytest.mark.parametrize("keys", [{}, {"config_groups": {}}], ids=["no scheme", "no groups"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_a_recipe_can_quantize_the_cache_alone(keys: dict[str, Any], calibrated: bool, tmp_path: Path) -> None:
    content = recipe(
        scheme=None,
        method="oneshot" if calibrated else "model_free_ptq",
        kv_cache={"scheme": "FP8", "scales": "calibrated" if calibrated else "none"},
        calibration=DATA if calibrated else None,
        **keys,
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    plan = make_plan(load_recipe(str(path)), source(MINI))
    assert [finding for finding in lint(plan) if finding.severity is Severity.ERROR] == []
    assert inconsistencies(plan.predicted) == []
    assert plan.quantization is not None
    assert (plan.quantization["format"], plan.quantization["config_groups"]) == ("dense", {})
    added = set(plan.predicted.structure) - set(source(MINI).structure)
    assert {name.rpartition(".")[2] for name in plan.additions} == ({"k_scale", "v_scale"} if calibrated else set())
    assert set(plan.additions) <= added


def test_the_cache_alone_has_no_form_in_modelopts_format(tmp_path: Path) -> None:
    content = recipe(scheme=None, method="oneshot", format="modelopt", kv_cache={"scheme": "FP8", "scales": "none"})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match="a recipe has either a scheme or config_groups"):
        load_recipe(str(path))
