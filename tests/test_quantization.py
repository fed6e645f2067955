"""A quantization config is read by its effect: each module gets the scheme that compressed-tensors applies to it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.checkpoint.modules import quantizable_modules
from weighbridge.errors import StructureError
from weighbridge.formats.compressed_tensors import read_args, read_scheme
from weighbridge.formats.declaration import Declaration
from weighbridge.formats.quantization import (
    read_declaration,
    resolve,
    resolve_as_compressed_tensors,
    without_quantization,
)
from weighbridge.formats.schemes import PRESETS, QuantizationArgs, Scheme, to_config
from weighbridge.formats.tensors import Tensor

LAYERS = [f"model.layers.{layer}" for layer in range(2)]
LINEARS = [
    "lm_head",
    "model.embed_vision.embedding_projection",
    *(f"{layer}.self_attn.{name}_proj" for layer in LAYERS for name in "qkvo"),
    *(f"{layer}.mlp.{name}_proj" for layer in LAYERS for name in ("gate", "up", "down")),
    *(f"model.layers.1.experts.{expert}.down_proj" for expert in range(3)),
    "model.layers.1.router.proj",
]
EMBEDDING, NORM = "model.embed_tokens", "model.norm"
STRUCTURE = {f"{name}.weight": Tensor("BF16", (128, 128)) for name in [*LINEARS, EMBEDDING]} | {
    f"{NORM}.weight": Tensor("BF16", (128,))
}

Applied = Callable[[dict[str, Any]], dict[str, Scheme]]


@pytest.fixture(scope="module")
def applied() -> Applied:
    """The scheme that compressed-tensors gives each Linear of a toy model with the names above."""
    import torch
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    model = torch.nn.Module()
    leaves = {name: torch.nn.Linear(128, 128, bias=False, device="meta") for name in LINEARS}
    others = {EMBEDDING: torch.nn.Embedding(128, 128, device="meta"), NORM: torch.nn.LayerNorm(128, device="meta")}
    for name, leaf in {**leaves, **others}.items():
        *parents, last = name.split(".")
        parent = model
        for part in parents:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = getattr(parent, part)
        parent.add_module(last, leaf)

    def apply(config: dict[str, Any]) -> dict[str, Scheme]:
        quantized = copy.deepcopy(model)
        apply_quantization_config(quantized, QuantizationConfig.model_validate(config), show_progress=False)
        schemes = {name: getattr(quantized.get_submodule(name), "quantization_scheme", None) for name in LINEARS}
        return {
            name: read_scheme(scheme.model_dump(mode="json"), where=name)
            for name, scheme in schemes.items()
            if scheme is not None
        }

    return apply


def config_of(
    *groups: tuple[str, Iterable[str]], ignore: Iterable[str] = (), spelled_out: bool = True
) -> dict[str, Any]:
    """A quantization config of (preset, targets) in the long form, or the short one that names presets."""
    if not spelled_out:
        return {
            "quant_method": "compressed-tensors",
            "config_groups": {preset: list(targets) for preset, targets in groups},
            "ignore": list(ignore),
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {
            f"group_{index}": {"targets": list(targets), **to_config(PRESETS[preset])}
            for index, (preset, targets) in enumerate(groups)
        },
        "ignore": list(ignore),
    }


def resolved(config: dict[str, Any], resolve: Callable[..., dict[str, Scheme]] = resolve) -> dict[str, Scheme]:
    declaration = read_declaration({"quantization_config": config}, where="config.json")
    assert declaration is not None
    return resolve(declaration, quantizable_modules(STRUCTURE), where="config.json")


def as_vllm(config: dict[str, Any]) -> dict[str, Scheme]:
    """What vLLM 0.32 finds for each Linear: ``should_ignore_layer``, then ``find_matched_target``, line by line."""
    scheme_of = {
        target: read_scheme({key: value for key, value in group.items() if key != "targets"}, where="group")
        for group in config["config_groups"].values()
        for target in group["targets"]
    }

    def equal_or_match(name: str, target: str) -> bool:
        return re.match(target[3:], name) is not None if target.startswith("re:") else name == target

    found = {}
    for name in LINEARS:
        if any(equal_or_match(name, entry) for entry in config["ignore"]):
            continue
        target = next((target for target in scheme_of if equal_or_match(name, target)), None)
        target = target or next((target for target in scheme_of if target.lower() in "columnparallellinear"), None)
        if target is not None:
            found[name] = scheme_of[target]
    return found


CONFIGS: dict[str, dict[str, Any]] = {
    "every Linear": config_of(("FP8_DYNAMIC", ["Linear"])),
    "no group": config_of(),
    "no target": config_of(("FP8_DYNAMIC", [])),
    "ignored names": config_of(("FP8_DYNAMIC", ["Linear"]), ignore=["lm_head", "model.layers.1.router.proj"]),
    "ignored patterns": config_of(("FP8_DYNAMIC", ["Linear"]), ignore=["lm_head", "re:.*embed.*", "re:.*router"]),
    "ignored pattern that misses": config_of(("FP8_DYNAMIC", ["Linear"]), ignore=["embed_vision", "re:router"]),
    "ignored class": config_of(("FP8_DYNAMIC", ["Linear"]), ignore=["Linear"]),
    "resolved names": config_of(("W8A8", [name for name in LINEARS if "self_attn" in name])),
    "patterns as targets": config_of(("FP8_DYNAMIC", ["re:.*self_attn.*", "re:.*experts.*"])),
    "two groups": config_of(("FP8_DYNAMIC", ["re:.*self_attn.*"]), ("W4A16", ["re:.*mlp.*"])),
    "a class and patterns": config_of(("FP8_DYNAMIC", ["Linear"]), ("W4A16", ["re:.*mlp.*"])),
    "a pattern and a name within it": config_of(
        ("W4A16", ["re:.*mlp.*"]), ("FP8_DYNAMIC", [f"{LAYERS[0]}.mlp.up_proj"])
    ),
    "a class and a name": config_of(("W4A16", ["Linear"]), ("FP8_DYNAMIC", ["lm_head"])),
    "a name that is ignored too": config_of(("FP8_DYNAMIC", ["lm_head"]), ignore=["re:lm"]),
    "patterns that overlap": config_of(("FP8_DYNAMIC", ["re:.*self_attn.*"]), ("W4A16", ["re:.*q_proj"])),
    "patterns that overlap, the later first by name": config_of(
        ("FP8_DYNAMIC", ["re:.*self_attn.*"]), ("W4A16", ["re:.*layers.*"])
    ),
    "one target in two groups": config_of(("FP8_DYNAMIC", ["Linear"]), ("W4A16", ["Linear"])),
    "presets by name": config_of(("FP8_DYNAMIC", ["re:.*self_attn.*"]), ("W4A16", ["re:.*mlp.*"]), spelled_out=False),
    "presets in small letters": config_of(("fp8_dynamic", ["Linear"]), spelled_out=False),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_module_gets_the_scheme_that_compressed_tensors_applies(config: dict[str, Any], applied: Applied) -> None:
    assert resolved(config, resolve_as_compressed_tensors) == applied(config)


LONG = {name: config for name, config in CONFIGS.items() if not name.startswith("presets")}


@pytest.mark.parametrize("config", LONG.values(), ids=LONG)
def test_each_module_gets_the_scheme_that_vllm_finds(config: dict[str, Any]) -> None:
    assert resolved(config) == as_vllm(config)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_read_as_compressed_tensors_reads_it(name: str, applied: Applied) -> None:
    config = config_of((name, ["re:.*self_attn.*"]))
    assert resolved(config) == applied(config)


TARGETS = st.sampled_from(
    [
        "Linear",
        "re:.*self_attn.*",
        "re:.*q_proj$",
        r"re:model\.layers\.0",
        "re:.*_proj",
        "re:.*experts.*",
        "re:q_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.1.experts.2.down_proj",
        "lm_head",
        "absent",
    ]
)


@given(
    groups=st.lists(
        st.tuples(
            st.sampled_from(["FP8_DYNAMIC", "FP8_BLOCK", "W4A16", "NVFP4A16"]),
            st.lists(TARGETS, max_size=3, unique=True),
        ),
        max_size=3,
    ),
    ignore=st.lists(TARGETS, max_size=2, unique=True),
)
@settings(deadline=None)
def test_any_groups_resolve_as_compressed_tensors_resolves_them(
    groups: list[tuple[str, list[str]]], ignore: list[str], applied: Applied
) -> None:
    config = config_of(*groups, ignore=ignore)
    assert resolved(config, resolve_as_compressed_tensors) == applied(config)
    assert resolved(config) == as_vllm(config)


def test_spelling_does_not_count() -> None:
    kept = {"lm_head", "model.embed_vision.embedding_projection", "model.layers.1.router.proj"}
    by_pattern = config_of(("FP8_DYNAMIC", ["Linear"]), ignore=["lm_head", "re:.*embed.*", "re:.*router"])
    by_name = config_of(("FP8_DYNAMIC", [name for name in LINEARS if name not in kept]))
    in_parts = config_of(
        ("FP8_DYNAMIC", [r"re:model\.layers\.0"]), ("FP8_DYNAMIC", [r"re:model\.layers\.1\.[^r]"]), ignore=[]
    )
    assert resolved(by_pattern) == resolved(by_name) == resolved(in_parts)


def test_how_scales_were_observed_does_not_count() -> None:
    config = config_of(("FP8", ["Linear"]))
    observed = copy.deepcopy(config)
    observed["config_groups"]["group_0"]["weights"] |= {"observer": "mse", "observer_kwargs": {"grid": 100}}
    assert resolved(observed) == resolved(config)


# key by key: what replaces it in the weights of an FP8_DYNAMIC config, and has an effect
EFFECTS: dict[str, dict[str, Any]] = {
    "bits": {"num_bits": 4},
    "type": {"type": "int"},
    "strategy": {"strategy": "tensor"},
    "symmetry": {"symmetric": False},
    "moment": {"dynamic": True, "strategy": "token"},
    "group": {"strategy": "group", "group_size": 64},
}


@pytest.mark.parametrize("change", EFFECTS.values(), ids=EFFECTS)
def test_everything_that_has_an_effect_counts(change: dict[str, Any]) -> None:
    config = config_of(("FP8_DYNAMIC", ["Linear"]))
    changed = copy.deepcopy(config)
    changed["config_groups"]["group_0"]["weights"] |= change
    assert resolved(changed)["lm_head"] != resolved(config)["lm_head"]


# --- where a config stands, and whose it is ---

FOUND = config_of(("FP8_DYNAMIC", ["Linear"]))
OTHER = {"quant_method": "modelopt"}

# config.json, the method that is found in it
PLACES: dict[str, tuple[dict[str, Any], str | None]] = {
    "nowhere": ({"model_type": "gemma4"}, None),
    "null": ({"quantization_config": None}, None),
    "top": ({"quantization_config": FOUND}, "compressed-tensors"),
    "older key": ({"compression_config": FOUND}, "compressed-tensors"),
    "text_config": ({"text_config": {"quantization_config": FOUND}}, "compressed-tensors"),
    "older key in text_config": ({"text_config": {"compression_config": FOUND}}, "compressed-tensors"),
    "top and text_config, the same": (
        {"text_config": {"quantization_config": FOUND}, "quantization_config": FOUND},
        "compressed-tensors",
    ),
    "thinker_config": ({"thinker_config": {"quantization_config": FOUND}}, "compressed-tensors"),
    "text_config of thinker_config": (
        {"thinker_config": {"text_config": {"quantization_config": FOUND}}},
        "compressed-tensors",
    ),
    "any part": ({"llm_config": {"decoder": {"quantization_config": FOUND}}}, "compressed-tensors"),
    "null at the top": (
        {"quantization_config": None, "text_config": {"quantization_config": FOUND}},
        "compressed-tensors",
    ),
    "text_config is no mapping": ({"text_config": [FOUND]}, None),
    "modelopt": ({"quantization_config": OTHER | {"quant_algo": "NVFP4"}}, "modelopt"),
    "fp8 of DeepSeek": (
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}},
        "fp8",
    ),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "gptq"),
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
    "no method": ({"quantization_config": {"bits": 4}}, "unknown"),
}


@pytest.mark.parametrize(("config", "method"), PLACES.values(), ids=PLACES)
def test_config_is_found_where_servers_look_for_it(config: Mapping[str, Any], method: str | None) -> None:
    declaration = read_declaration(config, where="config.json")
    assert (declaration and declaration.quant_method) == method


DIFFERING = {
    "top and text_config": {"text_config": {"quantization_config": FOUND}, "quantization_config": OTHER},
    "two parts": {"a_config": {"quantization_config": FOUND}, "b_config": {"quantization_config": OTHER}},
    "two keys": {"quantization_config": FOUND, "compression_config": OTHER},
    "one in the other's part": {
        "thinker_config": {"quantization_config": FOUND, "text_config": {"quantization_config": OTHER}}
    },
}


@pytest.mark.parametrize("config", DIFFERING.values(), ids=DIFFERING)
def test_two_configs_that_differ_are_refused(config: Mapping[str, Any]) -> None:
    with pytest.raises(StructureError, match="say different things"):
        read_declaration(config, where="config.json")


@pytest.mark.parametrize(("config", "method"), PLACES.values(), ids=PLACES)
def test_no_config_is_found_once_all_are_taken_out(config: Mapping[str, Any], method: str | None) -> None:
    assert read_declaration(without_quantization(config), where="config.json") is None


@pytest.mark.parametrize("config", [[], [1], "fp8", 7], ids=str)
def test_config_that_is_no_mapping_is_refused(config: object) -> None:
    with pytest.raises(StructureError, match=r"config\.json: quantization_config is no mapping"):
        read_declaration({"quantization_config": config}, where="config.json")


def test_config_of_a_method_that_is_not_read_gives_no_module_a_scheme_and_says_so() -> None:
    config = {"quant_method": "hqq", "config_groups": {"a": 7}}
    declaration = read_declaration({"quantization_config": config}, where="config.json")
    assert declaration == Declaration("hqq", unread="whose way of storing weights is not read here")
    assert resolve(declaration, LINEARS, where="config.json") == {}


def test_kv_cache_is_read() -> None:
    config = FOUND | {"kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor"}}
    declaration = read_declaration({"quantization_config": config}, where="config.json")
    assert declaration is not None
    assert declaration.kv_cache == QuantizationArgs(8, "float", "tensor")


# --- malformed configs ---


def with_weights(**change: Any) -> dict[str, Any]:
    config = config_of(("FP8_DYNAMIC", ["Linear"]))
    config["config_groups"]["group_0"]["weights"] |= change
    return config


def with_group(**change: Any) -> dict[str, Any]:
    config = config_of(("FP8_DYNAMIC", ["Linear"]))
    config["config_groups"]["group_0"] |= change
    return config


GROUP = "config.json: quantization_config.config_groups.group_0"

# quantization config, what the sentence says
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "groups are a list": (FOUND | {"config_groups": [1]}, "quantization_config: config_groups is no mapping"),
    "group is a number": (FOUND | {"config_groups": {"group_0": 7}}, f"{GROUP}: is no config group"),
    "group of an unknown preset": (FOUND | {"config_groups": {"group_0": ["Linear"]}}, "'group_0' is no preset"),
    "targets are text": (
        FOUND | {"config_groups": {"group_0": {"targets": "Linear"}}},
        f"{GROUP}.targets: is no list of names and patterns",
    ),
    "target is a number": (
        FOUND | {"config_groups": {"group_0": {"targets": [7]}}},
        f"{GROUP}.targets: is no list of names and patterns",
    ),
    "ignore is text": (FOUND | {"ignore": "lm_head"}, "quantization_config.ignore: is no list of names and patterns"),
    "no weights": (
        FOUND | {"config_groups": {"group_0": {"targets": ["Linear"]}}},
        f"{GROUP}: a scheme without weights is not known here",
    ),
    "weights are text": (
        FOUND | {"config_groups": {"group_0": {"targets": ["Linear"], "weights": "fp8"}}},
        f"{GROUP}.weights: is no mapping of quantization arguments",
    ),
    "kv cache is text": (
        FOUND | {"kv_cache_scheme": "fp8"},
        "kv_cache_scheme: is no mapping of quantization arguments",
    ),
    "no bits": (with_weights(num_bits=0), f"{GROUP}.weights: num_bits cannot be '0'"),
    "bits are text": (with_weights(num_bits="8"), "num_bits cannot be '8'"),
    "bits are true": (with_weights(num_bits=True), "num_bits cannot be 'True'"),
    "unknown type": (with_weights(type="complex"), "unknown type or strategy: 'complex', 'channel'"),
    "unknown strategy": (with_weights(strategy="row"), "unknown type or strategy: 'float', 'row'"),
    "strategy is a list": (with_weights(strategy=["row"]), "unknown type or strategy"),
    "moment is text": (with_weights(dynamic="global"), "dynamic must be true, false or 'local'"),
    "moment is a number": (with_weights(dynamic=1), "dynamic must be true, false or 'local'"),
    "symmetry is text": (with_weights(symmetric="yes"), "symmetric true or false"),
    "group without a size": (with_weights(strategy="group"), "strategy group cannot have group_size 'None'"),
    "group of nothing": (with_weights(strategy="group", group_size=0), "strategy group cannot have group_size '0'"),
    "absurd group": (with_weights(strategy="group", group_size=2**40), "group_size cannot be '1099511627776'"),
    "group is text": (with_weights(strategy=None, group_size="all"), "group_size cannot be 'all'"),
    "block without a structure": (with_weights(strategy="block"), "strategy block cannot have block_structure 'None'"),
    "block of one side": (with_weights(strategy="block", block_structure=[128]), "cannot have block_structure '[128]'"),
    "block of nothing": (with_weights(strategy="block", block_structure=[0, 128]), "cannot have block_structure"),
    "pattern that does not compile": (FOUND | {"ignore": ["re:("]}, "the pattern 're:(' does not compile"),
    "pattern with a back-reference": (FOUND | {"ignore": [r"re:(?!x)(a)\1"]}, "cannot be matched in a bounded time"),
    "key at the top": (
        FOUND | {"kv_cache_schema": None},
        "unknown key 'kv_cache_schema'; did you mean 'kv_cache_scheme'?",
    ),
    "key of a group": (with_group(weight=None), f"{GROUP}: unknown key 'weight'; did you mean 'weights'?"),
    "key of arguments": (with_weights(numbits=4), f"{GROUP}.weights: unknown key 'numbits'; did you mean 'num_bits'?"),
    "symmetry misspelt": (with_weights(symetric=False), "unknown key 'symetric'; did you mean 'symmetric'?"),
    "format misspelt": (FOUND | {"format": "float_quantized"}, "did you mean 'float-quantized'?"),
    "format of a group misspelt": (with_group(format="float-quantised"), "did you mean 'float-quantized'?"),
    "mixed group": (with_group(format="mixed-precision"), "one group cannot have the format mixed-precision"),
    "unknown status": (FOUND | {"quantization_status": "done"}, "quantization_status cannot be 'done'"),
    "version is a number": (FOUND | {"version": 0.19}, "version cannot be '0.19'"),
    "ratio is text": (FOUND | {"global_compression_ratio": "1.5"}, "global_compression_ratio cannot be '1.5'"),
    "transforms are a list": (FOUND | {"transform_config": [1]}, "transform_config is no mapping"),
    "unknown order": (with_weights(actorder="columns"), "actorder cannot be 'columns'"),
    "order of activations": (
        with_group(input_activations={"num_bits": 8, "type": "float", "actorder": "weight"}),
        "actorder is of weights alone",
    ),
    "unknown dtype of scales": (with_weights(scale_dtype="torch.bf16"), "scale_dtype cannot be 'torch.bf16'"),
    "zero points of another dtype": (
        with_weights(symmetric=False, zp_dtype="torch.int32"),
        "zero points of float8 are torch.float8_e4m3fn, not torch.int32",
    ),
    "observer is a number": (with_weights(observer=7), "observer cannot be '7'"),
    "arguments of an observer are text": (with_weights(observer_kwargs="maxshrink=1"), "observer_kwargs is no mapping"),
    "attention without activations": (
        with_group(targets=["LlamaAttention"], weights=None, input_activations=None),
        "has input_activations",
    ),
    "attention per channel": (
        with_group(
            targets=["LlamaAttention"],
            weights=None,
            input_activations={"num_bits": 8, "type": "float", "strategy": "group", "group_size": 8},
        ),
        "attention is quantized per tensor or attn_head, not per group",
    ),
    "activations alone of linears": (with_group(weights=None), "a scheme without weights is not known here"),
    "target that does not compile": (config_of(("W8A8", ["re:*"])), "the pattern 're:*' does not compile"),
    "pattern that is no text": (FOUND | {"ignore": ["re:\ud800"]}, "config.json"),
}


@pytest.mark.parametrize(("config", "sentence"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_config_is_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StructureError) as caught:
        resolved(config)
    message = str(caught.value)
    assert sentence in message
    assert message.startswith("config.json")
    assert len(message) < 400


def args() -> st.SearchStrategy[dict[str, Any]]:
    """Quantization arguments of the right types, whether they make sense or not."""
    return st.fixed_dictionaries(
        {},
        optional={
            "num_bits": st.sampled_from([2, 4, 8]),
            "type": st.sampled_from(["int", "float", "INT"]),
            "symmetric": st.booleans(),
            "strategy": st.sampled_from(
                [None, "tensor", "channel", "group", "block", "token", "tensor_group", "attn_head"]
            ),
            "group_size": st.sampled_from([None, -1, 0, 16, 128]),
            "block_structure": st.sampled_from([None, [128, 128], [0, 1]]),
            "dynamic": st.sampled_from([True, False, "local"]),
        },
    )


def upstream_args(raw: dict[str, Any]) -> Any | None:
    """The arguments as compressed-tensors reads them; None where it refuses them."""
    from compressed_tensors.quantization import QuantizationArgs as UpstreamArgs

    try:
        return UpstreamArgs.model_validate(raw)
    except (ValueError, NotImplementedError):
        return None


@given(args())
@settings(deadline=None, max_examples=300)
def test_arguments_that_compressed_tensors_takes_are_read_alike(raw: dict[str, Any]) -> None:
    theirs = upstream_args(raw)
    if theirs is None:
        return
    ours = read_args(raw, where="here")
    assert (ours.num_bits, ours.type, ours.strategy, ours.symmetric, ours.dynamic) == (
        theirs.num_bits,
        theirs.type,
        theirs.strategy,
        theirs.symmetric,
        theirs.dynamic,
    )
    grouped = ours.strategy in ("group", "tensor_group")
    assert ours.group_size == (theirs.group_size if grouped else None)
    assert list(ours.block_structure or []) == (theirs.block_structure or [])


@given(args())
@settings(deadline=None, max_examples=300)
def test_arguments_that_compressed_tensors_refuses_are_refused(raw: dict[str, Any]) -> None:
    if upstream_args(raw) is None:
        with pytest.raises(StructureError):
            read_args(raw, where="here")


def test_block_structure_is_read_in_its_older_spelling() -> None:
    older = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "128x128"}
    assert upstream_args(older).block_structure == [128, 128]  # type: ignore[union-attr]
    assert read_args(older, where="here").block_structure == (128, 128)


# --- which modules a config can mean ---


def test_linears_are_matrices_that_are_no_embeddings() -> None:
    assert set(quantizable_modules(STRUCTURE)) == set(LINEARS)


def test_embedding_that_is_stored_quantized_is_a_module_all_the_same() -> None:
    structure = {
        f"{EMBEDDING}.weight": Tensor("F8_E4M3", (128, 128)),
        f"{EMBEDDING}.weight_scale": Tensor("BF16", (128, 1)),
    }
    assert quantizable_modules(structure) == {
        EMBEDDING: {"weight": Tensor("F8_E4M3", (128, 128)), "weight_scale": Tensor("BF16", (128, 1))}
    }


def test_fused_experts_are_one_module() -> None:
    structure = {"layers.0.experts.gate_up_proj": Tensor("BF16", (8, 64, 32))}
    assert quantizable_modules(structure) == {"layers.0.experts.gate_up_proj": {"": Tensor("BF16", (8, 64, 32))}}
