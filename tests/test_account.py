"""The account is closed: nothing in a checkpoint that a server would obey is left unjudged."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoints import (
    CONFIG,
    INDEX,
    RawTensor,
    contents,
    copy_checkpoint,
    edit_config,
    edit_json,
    edit_tensors,
    read_tensors,
    rename_tensors,
    rewrite,
    shards_of,
    write_shard,
)
from tests.conftest import ROOT, Command, Once, Outcome, call_main
from tests.tiny import BESIDE, CONFIG_OF, RECIPE, write_tiny
from weighbridge.account import judge, unjudged
from weighbridge.account.base import Base
from weighbridge.account.files import HARMLESS_FILES, harmless, judge_files
from weighbridge.account.keys import RENAMED, _renamed, config_keys, meaning_beside
from weighbridge.account.model import Account, Judged, Kind, State
from weighbridge.account.quantization import judge_quantization
from weighbridge.account.redirects import redirects
from weighbridge.account.sizes import sizes_by_tensors
from weighbridge.account.tensors import judge_tensors
from weighbridge.checkpoint.model import Checkpoint, open_directory
from weighbridge.cli import build, validate
from weighbridge.formats.tensors import Tensor
from weighbridge.planning import make_plan
from weighbridge.recipe import load_recipe

SEVERAL = ("--shard-size", "60kB")


@dataclass(frozen=True)
class Honest:
    """An honest build of a base that no lock is of.

    Attributes:
        source: the base; recipe: what it was built by; build: the checkpoint.
    """

    source: Path
    recipe: Path
    build: Path

    def judge(self, checkpoint: Path, *further: str) -> Outcome:
        """What validate.py says of a copy, with everything at hand."""
        arguments = ("--source", str(self.source), "--recipe", str(self.recipe), "--format", "json", *further)
        return call_main(validate.main, (checkpoint, *arguments))


@pytest.fixture(scope="module")
def honest(once: Once) -> Honest:
    def make(directory: Path) -> None:
        source = write_tiny(directory / "source")
        recipe = directory / "recipe.yaml"
        recipe.write_text(RECIPE)
        arguments = (recipe, "--model", source, "--output", directory / "build", "--audit", *SEVERAL)
        outcome = call_main(build.main, arguments)
        assert outcome.code == 0, outcome

    root = once("account", make)
    return Honest(root / "source", root / "recipe.yaml", root / "build")


@pytest.fixture
def copy(honest: Honest, tmp_path: Path) -> Path:
    return copy_checkpoint(honest.build, tmp_path / "copy")


def account_of(outcome: Outcome) -> dict[str, Any]:
    (section,) = (section for section in outcome.report["sections"] if section["id"] == "account")
    return dict(section)


def harmless_in(outcome: Outcome) -> str:
    """What an account names as harmless."""
    return " ".join(text for label, text in account_of(outcome)["facts"].items() if label.startswith("harmless"))


def named(outcome: Outcome) -> str:
    """Everything that a report says, and the one sentence of a refusal."""
    return outcome.out + outcome.err


def test_honest_build_of_a_base_without_a_lock_holds(honest: Honest) -> None:
    outcome = honest.judge(honest.build)
    assert outcome.code == 0
    account = account_of(outcome)
    assert account["summary"].endswith("all of them judged")
    assert "README.md" in harmless_in(outcome)
    assert all(label == "base" or label.startswith("harmless") for label in account["facts"])


def test_honest_build_of_a_base_without_a_lock_verifies_from_its_evidence_alone(
    honest: Honest, call_validate: Command
) -> None:
    assert call_validate(honest.build, "--evidence").code == 0


def test_alone_a_checkpoint_passes_and_what_was_not_judged_is_said(honest: Honest, call_validate: Command) -> None:
    outcome = call_validate(honest.build, "--format", "json")
    assert outcome.code == 0
    account = account_of(outcome)
    labels = " ".join(account["facts"])
    assert all(re.search(rf"not judged: [0-9]+ {kind}", labels) for kind in ("file", "key", "tensor")), labels
    assert "not judged" in account["summary"]


def test_verdict_says_what_it_was_compared_with_and_not_all_that_stands_above_it(
    honest: Honest, call_validate: Command
) -> None:
    alone = " ".join(call_validate(honest.build, "--quiet").out.split())
    assert "the account: " in alone
    assert "of which not judged: " in alone
    assert alone.endswith("the weights: not read, only the scales of whole tensors")
    beside = ("--recipe", honest.recipe, "--source", honest.source)
    said = " ".join(call_validate(honest.build, *beside, "--quiet").out.split())
    assert "the audit: " in said
    assert "against the recipe's plan: all " in said
    assert not [title for title in ("the account", "rule of serving", "the checkpoint itself") if title in said]


def test_alone_each_tensor_follows_from_the_scheme_or_is_not_judged(honest: Honest) -> None:
    checkpoint = open_directory(honest.build)
    judged = {item.state: item.names for item in judge_tensors(checkpoint, None, None, "")}
    assert judged.keys() == {State.FOLLOWS, State.NOT_JUDGED}
    assert sorted(chain.from_iterable(judged.values())) == sorted(checkpoint.structure)
    assert {name.rpartition(".")[0] for name in judged[State.FOLLOWS]} == set(checkpoint.schemes)


WEIGHTS = {
    "consolidated.safetensors": "vLLM",
    "consolidated-00001-of-00002.safetensors": "vLLM",
    "zz_extra.safetensors": "index",
    "model.safetensors": "transformers",
    "model-00001-of-00009.safetensors": "index",
    "adapter_model.safetensors": "index",
    "pytorch_model.bin": "safetensors",
    "pytorch_model-00001-of-00001.bin": "safetensors",
    "model.pt": "safetensors",
    "consolidated.00.pth": "pickle",
    "model.ckpt": "pickle",
    "weights.pkl": "pickle",
    "tiny-Q4_K_M.gguf": "llama.cpp",
    "weights.npz": "MLX",
    "tf_model.h5": "TensorFlow",
    "flax_model.msgpack": "Flax",
    "model.onnx": "ONNX",
    "original/consolidated.00.pth": "folder",
    "onnx/model.onnx": "folder",
    "deep/er/model.safetensors": "folder",
    "consolidated.safetensors.index.json": "index",
    "pytorch_model.bin.index.json": "index",
    "model.fp16.safetensors.index.json": "index",
}
"""Files with weights that no server should find beside the shards -> a word of who would take them."""


@pytest.mark.parametrize("name", WEIGHTS)
def test_other_weights_fail_and_who_would_take_them_is_said(honest: Honest, copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(shards_of(honest.source)[0], copy / name)
    outcome = honest.judge(copy)
    assert outcome.code == 1
    findings = account_of(outcome)["findings"]
    assert [(finding["rule"], finding["where"]) for finding in findings] == [("account/other-weights", name)]
    assert WEIGHTS[name] in findings[0]["message"]


@pytest.mark.parametrize("name", [name for name in WEIGHTS if "/" not in name])
def test_other_weights_fail_alone_too(copy: Path, name: str, call_validate: Command) -> None:
    (copy / name).write_bytes(b"\0" * 64)
    outcome = call_validate(copy)
    assert outcome.code == 1
    assert name in outcome.out


def test_weights_beside_a_single_shard_fail(honest: Honest, tmp_path: Path, call_validate: Command) -> None:
    single = write_tiny(tmp_path / "single", shards=1)
    write_shard(single / "zz_extra.safetensors", {"model.norm.weight": read_tensors(single)["model.norm.weight"]})
    outcome = call_validate(single)
    assert outcome.code == 1
    assert "where there is no index" in " ".join(outcome.out.split())


@pytest.mark.parametrize(("content", "rules"), [(b"theirs", set()), (b"others", {"account/other-weights"})])
def test_weights_that_publishers_keep_for_other_programs_are_the_bases(
    honest: Honest, copy: Path, tmp_path: Path, content: bytes, rules: set[str]
) -> None:
    source = copy_checkpoint(honest.source, tmp_path / "source")
    for directory, held in ((source, b"theirs"), (copy, content)):
        (directory / "original").mkdir()
        (directory / "original" / "consolidated.00.pth").write_bytes(held)
    base = Base(open_directory(source), "the base", listed=True)
    verdicts = judge_files(open_directory(copy), base, None)
    found = {
        finding.rule
        for verdict in verdicts
        if verdict.name == "original/consolidated.00.pth"
        for finding in verdict.findings
    }
    assert found == rules


ADDED = (
    *("adapter_config.json", "additional_chat_templates/tool_use.jinja", "modeling_llama.py", "foo.txt"),
    *("tokenizer.model", "preprocessor_config.json", "processor_config.json", "params.json", "tekken.json"),
    *("hf_quant_config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "vocab.txt"),
    *("chat_template.json", "added_tokens.json", "config_sentence_transformers.json", "quantize_config.json"),
    *("tokenizer.json.bak", "inference.yaml", "x", ".env", "recipe.yaml"),
)


@pytest.mark.parametrize("name", ADDED)
def test_file_that_the_base_lacks_fails(honest: Honest, copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_text("{}")
    outcome = honest.judge(copy)
    assert outcome.code in (1, 2)
    assert name in named(outcome)


@pytest.mark.parametrize("name", [*BESIDE, "chat_template.jinja"])
def test_file_of_the_base_that_is_altered_or_gone_fails(honest: Honest, copy: Path, name: str) -> None:
    rewrite(copy / name, (copy / name).read_bytes().replace(b"s", b"z"))
    altered = honest.judge(copy)
    (copy / name).unlink()
    gone = honest.judge(copy)
    for outcome in (altered, gone):
        assert outcome.code == 1
        assert name in json.dumps(account_of(outcome)["findings"])


def test_text_that_happens_to_be_json_is_not_judged_by_keys(tmp_path: Path) -> None:
    base, copy = (write_tiny(tmp_path / name) for name in ("base", "copy"))
    (base / "chat_template.jinja").write_text('{"a": 1}')
    (copy / "chat_template.jinja").write_text('{"a":1}')  # as JSON the same; as a template other text
    verdicts = judge_files(open_directory(copy), Base(open_directory(base), "the base", listed=True), None)
    (verdict,) = (verdict for verdict in verdicts if verdict.name == "chat_template.jinja")
    assert [finding.rule for finding in verdict.findings] == ["account/file-changed"]


KEYS: dict[str, Callable[[dict[str, Any]], object]] = {
    "rope_parameters.rope_theta": lambda config: config["rope_parameters"].update(rope_theta=1e6),
    "rope_parameters.factor": lambda config: config["rope_parameters"].update(factor=8.0),
    "rms_norm_eps": lambda config: config.update(rms_norm_eps=1e-6),
    "final_logit_softcapping": lambda config: config.update(final_logit_softcapping=30.0),
    "sliding_window": lambda config: config.update(sliding_window=16),
    "layer_types": lambda config: config.update(layer_types=["sliding_attention"] * 2),
    "num_attention_heads": lambda config: config.update(num_attention_heads=2),
    "num_experts_per_tok": lambda config: config.update(num_experts_per_tok=1),
    "tie_word_embeddings": lambda config: config.update(tie_word_embeddings=True),
    "eos_token_id": lambda config: config.update(eos_token_id=[2]),
    "hidden_act": lambda config: config.update(hidden_act="gelu"),
    "architectures": lambda config: config.update(architectures=["MistralForCausalLM"]),
    "auto_map.AutoModelForCausalLM": lambda config: config.update(auto_map={"AutoModelForCausalLM": "modeling.X"}),
    "dtype": lambda config: config.update(dtype="float16"),
    "torch_dtype": lambda config: config.update(torch_dtype="float16"),
    "attention_bias": lambda config: config.update(attention_bias=True),
    "max_position_embeddings": lambda config: config.pop("max_position_embeddings"),
    "nobody_knows_this": lambda config: config.update(nobody_knows_this={}),
    "rope_parameters.nobody_knows_this": lambda config: config["rope_parameters"].update(nobody_knows_this=None),
    "transformers_weights": lambda config: config.update(transformers_weights="other.safetensors"),
    "speculators_config.verifier.name_or_path": lambda config: config.update(
        speculators_config={"verifier": {"name_or_path": "org/other"}}
    ),
    "attention_dropout": lambda config: config.update(attention_dropout="none"),  # harmless, but for its kind
    "transformers_version": lambda config: config.update(transformers_version="not.a.version/"),
    "audio_config.attention_dropout": lambda config: config.update(audio_config={"attention_dropout": 0.0}),
    "output_hidden_states": lambda config: config.update(output_hidden_states=True),
    "initializer_range": lambda config: config.update(initializer_range=3.0),
}


@pytest.mark.parametrize("key", KEYS)
def test_key_of_the_config_that_is_not_the_bases_fails(honest: Honest, copy: Path, key: str) -> None:
    edit_config(copy, KEYS[key])
    outcome = honest.judge(copy)
    assert outcome.code == 1
    said = json.dumps(account_of(outcome)["findings"])
    assert f"config.json:{key}" in said or f"config.json: {key.partition('.')[0]}" in said


REDIRECTS: dict[str, Callable[[Path], object]] = {
    "transformers_weights": lambda copy: edit_config(copy, lambda c: c.update(transformers_weights="x.safetensors")),
    "name_or_path": lambda copy: edit_config(
        copy, lambda c: c.update(speculators_config={"verifier": {"name_or_path": "org/other"}})
    ),
    "auto_map": lambda copy: edit_config(copy, lambda c: c.update(auto_map={"AutoConfig": "org/other--code.X"})),
    "base_model_name_or_path": lambda copy: edit_config(copy, lambda c: c.update(base_model_name_or_path="org/other")),
    "adapter_config.json": lambda copy: (copy / "adapter_config.json").write_text("{}"),
    "attn_implementation": lambda copy: edit_config(copy, lambda c: c.update(attn_implementation="org/kernel")),
    "audio_tokenizer": lambda copy: (copy / "processor_config.json").write_text(
        json.dumps({"audio_tokenizer": {"audio_tokenizer_name_or_path": "org/other"}})
    ),
}


@pytest.mark.parametrize("what", REDIRECTS)
def test_what_makes_a_server_load_something_else_fails_alone(copy: Path, what: str, call_validate: Command) -> None:
    REDIRECTS[what](copy)
    outcome = call_validate(copy)
    assert outcome.code == 1
    assert what in outcome.out
    assert "account/redirect" in outcome.out


OF_THE_BASE: dict[str, tuple[dict[str, Any], bool]] = {
    "code of another repository": ({"auto_map": {"AutoConfig": "org/other--code.X"}}, False),
    "weights elsewhere": ({"base_model_name_or_path": "org/other"}, False),
    "a kernel from elsewhere": ({"attn_implementation": "org/kernel"}, False),
    "other shards": ({"transformers_weights": "x.safetensors"}, True),
    "another model": ({"speculators_config": {"verifier": {"name_or_path": "org/other"}}}, True),
}
"""Redirects -> the config, and whether it is one although the base says just so: the shards are passed over."""


@pytest.mark.parametrize(("config", "found"), OF_THE_BASE.values(), ids=OF_THE_BASE)
def test_redirect_of_the_base_itself_counts_where_the_shards_are_passed_over(
    config: dict[str, Any], found: bool
) -> None:
    assert any(redirects(Checkpoint(label="here", structure={}, config=config), config)) == found
    assert any(redirects(Checkpoint(label="here", structure={}, config=config), {}))


IGNORED = {
    "a norm": ("model.norm", True),
    "norms by an expression": ("re:.*_layernorm", True),
    "a linear that is kept": ("lm_head", True),
    "a local name": ("weight", False),
    "what is not there": ("model.nowhere", False),
    "an expression for nothing": ("re:.*nowhere.*", False),
    "a class": ("Linear", False),
}
"""Entries of a list of what is ignored, and whether they are about something that lies there."""


@pytest.mark.parametrize(("entry", "known"), IGNORED.values(), ids=IGNORED)
def test_ignored_by_a_name_of_something_there_is_held_without_a_recipe_too(copy: Path, entry: str, known: bool) -> None:
    edit_config(copy, lambda config: config["quantization_config"].update(ignore=["lm_head", entry]))
    verdicts = {verdict.name: verdict.state for verdict in judge_quantization(open_directory(copy), None, None)}
    assert verdicts["config.json:quantization_config.ignore"] is (State.HELD if known else State.NOT_JUDGED)


_GROUP = "config_groups.group_0"
_INT8_INPUTS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
_CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
UNTRACED: dict[str, tuple[str, dict[str, Any] | None, bool]] = {
    "what FP8 weights usually have": (f"{_GROUP}.input_activations", {**_INT8_INPUTS, "type": "float"}, True),
    "no activations": (f"{_GROUP}.input_activations", None, True),
    "integers for weights of floats": (f"{_GROUP}.input_activations", _INT8_INPUTS, False),
    "inputs of four bits": (f"{_GROUP}.input_activations", {**_INT8_INPUTS, "type": "float", "num_bits": 4}, False),
    "one dynamic scale for all": (
        f"{_GROUP}.input_activations",
        {**_INT8_INPUTS, "type": "float", "strategy": "tensor"},
        False,
    ),
    "static without scales": (f"{_GROUP}.input_activations", {**_CACHE}, False),
    "outputs": (f"{_GROUP}.output_activations", {**_INT8_INPUTS, "type": "float"}, False),
    "static outputs without scales": (f"{_GROUP}.output_activations", {**_CACHE}, False),
    "a cache without scales": ("kv_cache_scheme", _CACHE, False),
    "a dynamic cache": ("kv_cache_scheme", {**_CACHE, "dynamic": True}, False),
    "no cache": ("kv_cache_scheme", None, True),
}
"""What is declared of activations and caches, and whether it is known without a recipe: by a preset, or by scales."""


@pytest.mark.parametrize(("place", "args", "known"), UNTRACED.values(), ids=UNTRACED)
def test_what_leaves_no_trace_in_tensors_is_known_by_a_preset_or_a_recipe_alone(
    copy: Path, place: str, args: dict[str, Any] | None, known: bool
) -> None:
    def declare(config: dict[str, Any]) -> None:
        *outer, last = place.split(".")
        inner = config["quantization_config"]
        for key in outer:
            inner = inner[key]
        inner[last] = args

    edit_config(copy, declare)
    states = {
        verdict.state
        for verdict in judge_quantization(open_directory(copy), None, None)
        if verdict.name.startswith(f"config.json:quantization_config.{place}")
    }
    assert states == {State.HELD if known else State.NOT_JUDGED}


@pytest.mark.parametrize(
    ("part", "local", "known"),
    [
        ("input_activations", "input_scale", True),
        ("output_activations", "output_scale", True),
        ("output_activations", "input_scale", False),
        ("input_activations", "output_scale", False),
        ("input_activations", "weight_global_scale", False),
        ("output_activations", "k_scale", False),
    ],
)
def test_static_activations_are_known_by_scales_of_their_own(copy: Path, part: str, local: str, known: bool) -> None:
    edit_config(
        copy, lambda config: config["quantization_config"]["config_groups"]["group_0"].update({part: {**_CACHE}})
    )
    opened = open_directory(copy)
    module = next(iter(opened.schemes))
    opened = replace(opened, structure={**opened.structure, f"{module}.{local}": Tensor("F32", (1,))})
    place = f"config.json:quantization_config.{_GROUP}.{part}"
    states = {verdict.state for verdict in judge_quantization(opened, None, None) if verdict.name.startswith(place)}
    assert states == {State.HELD if known else State.NOT_JUDGED}


@pytest.mark.parametrize(
    ("path", "state"),
    [
        (("transformers_version",), State.HARMLESS),
        (("name_or_path",), State.HARMLESS),
        (("eos_token_id",), State.HELD),
        (("added_tokens", "name_or_path"), State.HELD),
    ],
)
def test_files_beside_the_config_decide_how_the_model_answers_but_for_records(
    path: tuple[str, ...], state: State
) -> None:
    assert meaning_beside(path)[0] is state


def test_each_key_of_a_renamed_config_group_is_judged_once(honest: Honest, copy: Path) -> None:
    def rename(config: dict[str, Any]) -> None:
        groups = config["quantization_config"]["config_groups"]
        groups["another"] = groups.pop("group_0")
        del groups["another"]["output_activations"]

    edit_config(copy, rename)
    plan = make_plan(load_recipe(str(honest.recipe)), open_directory(honest.source))
    names = [verdict.name for verdict in judge_quantization(open_directory(copy), plan, None)]
    groups = sorted(name for name in names if ".config_groups." in name)
    assert groups == sorted(set(groups))
    assert {name.split(".")[4] for name in groups} >= {"weights", "output_activations", "targets"}


@pytest.mark.parametrize("place", [(), ("text_config",)])
def test_keys_have_todays_names_where_keys_mean_what_they_mean_at_the_top(place: tuple[str, ...]) -> None:
    for old, new in RENAMED.items():
        assert _renamed({(*place, old): "1"}) == {(*place, new): "1"}
        assert _renamed({(*place, "a_mapping", old): "1"}) == {(*place, "a_mapping", old): "1"}


def test_the_one_group_of_a_plan_may_be_spelled_as_several(honest: Honest, copy: Path) -> None:
    modules = sorted(open_directory(copy).schemes)

    def split(config: dict[str, Any]) -> None:
        (group,) = config["quantization_config"]["config_groups"].values()
        halves = modules[::2], modules[1::2]
        config["quantization_config"]["config_groups"] = {
            f"group_{index}": {**group, "targets": names} for index, names in enumerate(halves)
        }

    edit_config(copy, split)
    plan = make_plan(load_recipe(str(honest.recipe)), open_directory(honest.source))
    states = {
        verdict.state
        for verdict in judge_quantization(open_directory(copy), plan, None)
        if ".config_groups." in verdict.name
    }
    assert states == {State.HARMLESS}


HARMLESS_KEYS: dict[str, Callable[[dict[str, Any]], object]] = {
    "transformers_version": lambda config: config.update(transformers_version="4.57.1"),
    "_name_or_path": lambda config: config.update(_name_or_path="somewhere/else"),
    "attention_dropout": lambda config: config.update(attention_dropout=0.1),
    "quantization_config.version": lambda config: config["quantization_config"].update(version="0.9.4"),
    "quantization_config.ignore": lambda config: config["quantization_config"]["ignore"].append("model.norm"),
    "quantization_config.config_groups": lambda config: config["quantization_config"].update(
        config_groups={"FP8_DYNAMIC": config["quantization_config"]["config_groups"]["group_0"]}
    ),
    "quantization_config.sparsity_config": lambda config: config["quantization_config"].update(sparsity_config={}),
}


@pytest.mark.parametrize("key", HARMLESS_KEYS)
def test_key_that_nothing_depends_on_passes_and_is_named(honest: Honest, copy: Path, key: str) -> None:
    edit_config(copy, HARMLESS_KEYS[key])
    outcome = honest.judge(copy)
    assert outcome.code == 0
    assert f"config.json:{key}" in harmless_in(outcome)


QUANTIZATION_KEYS: dict[str, Callable[[dict[str, Any]], object]] = {
    "quantization_status": lambda config: config.update(quantization_status="frozen"),
    "quantization_status left out": lambda config: config.pop("quantization_status"),
    "ignore": lambda config: config["ignore"].append("re:.*mlp.*"),
    "ignored by the name of a merged linear": lambda config: config["ignore"].append("model.layers.0.mlp.gate_up_proj"),
    "targets": lambda config: config["config_groups"]["group_0"].update(targets=["re:.*mlp.*"]),
    "no targets": lambda config: config["config_groups"]["group_0"].update(targets=[]),
    "a further group without targets": lambda config: config["config_groups"].update(
        second={**config["config_groups"]["group_0"], "targets": []}
    ),
    "num_bits": lambda config: config["config_groups"]["group_0"]["weights"].update(num_bits=4),
    "kv_cache_scheme": lambda config: config.update(
        kv_cache_scheme={"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    ),
    "quant_method": lambda config: config.update(quant_method="fp8"),
    "unknown": lambda config: config.update(unknown=1),
    "ignored by an expression that matches nothing here": lambda config: config["ignore"].append("re:.*nowhere.*"),
    "ignored by a class": lambda config: config["ignore"].append("Module"),
    "ignored by the class Linear": lambda config: config["ignore"].append("Linear"),
    "ignored by the names of vLLM": lambda config: config["ignore"].append(r"re:^language_model\.model\.layers\..*"),
    "an expression that never ends": lambda config: config["ignore"].append("re:" + "(.*.*.*.*.*)*" * 8 + "x$"),
    "a group for a class of vLLM": lambda config: config.update(
        config_groups={"first": _int8_group("ParallelLinear"), **config["config_groups"]}
    ),
    "a group for merged linears": lambda config: config.update(
        config_groups={"first": _int8_group("re:.*qkv_proj$"), **config["config_groups"]}
    ),
    "a group for attention": lambda config: config["config_groups"].update(
        second={
            "targets": ["LlamaAttention"],
            "weights": None,
            "input_activations": {"num_bits": 2, "type": "int", "strategy": "tensor", "dynamic": True},
            "output_activations": None,
        }
    ),
    "a transform": lambda config: config.update(transform_config={"format": "dense", "config_groups": {}}),
    "sparsity": lambda config: config.update(sparsity_config={"format": "dense", "sparsity_structure": "2:4"}),
    "scale_dtype": lambda config: config["config_groups"]["group_0"]["weights"].update(scale_dtype="torch.int8"),
    "symmetric": lambda config: config["config_groups"]["group_0"]["weights"].update(symmetric=1),
}


def _int8_group(target: str) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
    return {"targets": [target], "weights": weights, "format": "int-quantized"}


PLACES: dict[str, Callable[[dict[str, Any]], object]] = {
    "its older name": lambda config: config.update(compression_config=config.pop("quantization_config")),
    "in a sub-config": lambda config: config.update(
        text_config={"quantization_config": config.pop("quantization_config")}
    ),
    "in a sub-config that nobody knows": lambda config: config.update(
        nobody={"quantization_config": config.pop("quantization_config")}
    ),
    "a copy": lambda config: config.update(text_config={"quantization_config": config["quantization_config"]}),
    "an empty one of the older name": lambda config: config.update(compression_config=None),
}


@pytest.mark.parametrize("place", PLACES)
def test_quantization_config_in_another_place_fails(honest: Honest, copy: Path, place: str) -> None:
    edit_config(copy, PLACES[place])
    assert honest.judge(copy).code in (1, 2)


DOCUMENTS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "a token that is called like a key of config.json": (
        "tokenizer.json",
        lambda document: document["model"]["vocab"].update(torch_dtype=document["model"]["vocab"].pop("a")),
    ),
    "a token that is called like a record": (
        "tokenizer.json",
        lambda document: document["model"]["vocab"].update(transformers_version=5),
    ),
    "a special token that is called like a record": (
        "tokenizer_config.json",
        lambda document: document.update(extra_special_tokens={"name_or_path": "the"}),
    ),
    "a setting below one that is called like a record": (
        "generation_config.json",
        lambda document: document.update(watermarking_config={"transformers_version": "x"}),
    ),
}


@pytest.mark.parametrize("what", DOCUMENTS)
def test_what_is_only_called_like_something_harmless_fails(honest: Honest, copy: Path, what: str) -> None:
    file, change = DOCUMENTS[what]
    edit_json(copy / file, change)
    assert honest.judge(copy).code == 1


def test_harmless_key_below_another_than_a_config_fails(honest: Honest, copy: Path) -> None:
    edit_config(copy, lambda config: config["rope_parameters"].update(use_cache=True))
    assert honest.judge(copy).code == 1


def test_folder_behind_a_link_is_refused(honest: Honest, copy: Path) -> None:
    hidden = copy / "evidence" / "templates"
    hidden.mkdir()
    (hidden / "tool_use.jinja").write_text("evil")
    (copy / "additional_chat_templates").symlink_to("evidence/templates")
    outcome = honest.judge(copy)
    assert outcome.code == 2
    assert "is a link to a folder" in outcome.err


def test_only_shard_under_another_name_fails(honest: Honest, tmp_path: Path, call_validate: Command) -> None:
    single = write_tiny(tmp_path / "single", shards=1)
    (single / "model.safetensors").rename(single / "weights.safetensors")
    assert "account/shard-name" in call_validate(single).out
    arguments = (single, "--source", honest.source)
    assert call_validate(*arguments).code == 1


def test_tokenizer_that_runs_code_of_another_repository_fails_alone(copy: Path, call_validate: Command) -> None:
    edit_json(copy / "tokenizer_config.json", lambda c: c.update(auto_map={"AutoTokenizer": ["org/other--t.T", None]}))
    outcome = call_validate(copy)
    assert outcome.code == 1
    assert "account/redirect" in outcome.out


SIZES: dict[str, Callable[[dict[str, Any]], object]] = {
    "vocab_size": lambda config: config.update(vocab_size=300),
    "hidden_size": lambda config: config.update(hidden_size=32),
    "num_hidden_layers": lambda config: config.update(num_hidden_layers=3),
    "num_hidden_layers, fewer": lambda config: config.update(num_hidden_layers=1),
    "num_hidden_layers, no number": lambda config: config.update(num_hidden_layers="2"),
}


@pytest.mark.parametrize("key", SIZES)
def test_size_that_the_tensors_contradict_fails_alone(copy: Path, key: str, call_validate: Command) -> None:
    edit_config(copy, SIZES[key])
    outcome = call_validate(copy)
    assert outcome.code == 1
    assert f"config.json:{key.partition(',')[0]}" in outcome.out


LAYERS: dict[str, tuple[dict[str, Any], str | None]] = {
    "as many as there are": ({"num_hidden_layers": 2}, ""),
    "more": ({"num_hidden_layers": 3}, "is 3, but layer 2 has no tensor"),
    "none stated": ({}, None),
    "of an encoder, or of a decoder": ({"num_hidden_layers": 3, "is_encoder_decoder": True}, None),
    "counted twice": ({"num_hidden_layers": 3, "num_layers": 6}, None),
}


@pytest.mark.parametrize(("config", "wrong"), LAYERS.values(), ids=LAYERS)
def test_number_of_layers_is_held_against_tensors_where_it_is_known_what_it_counts(
    config: dict[str, Any], wrong: str | None
) -> None:
    names = ["model.embed_tokens.weight", "model.layers.0.norm.weight", "model.layers.1.norm.weight", "layers.7.weight"]
    found = dict(sizes_by_tensors(config, dict.fromkeys(names, Tensor("BF16", (8, 4)))))
    assert found.get(("num_hidden_layers",)) == wrong


def test_model_without_numbered_layers_has_no_number_of_layers() -> None:
    structure = {"embed_tokens.weight": Tensor("BF16", (8, 4)), "layers.norm.weight": Tensor("BF16", (4,))}
    assert ("num_hidden_layers",) not in dict(sizes_by_tensors({"num_hidden_layers": 2}, structure))


@pytest.mark.parametrize("own", ["tok_embeddings", "embed", "transformer.wte", "model.embed_tokens"])
@pytest.mark.parametrize("planted", ["model.embed_tokens", "embed_tokens"])
def test_sizes_are_not_judged_by_an_embedding_that_may_be_a_planted_one(own: str, planted: str) -> None:
    structure = {f"{own}.weight": Tensor("BF16", (8, 4)), f"{planted}.weight": Tensor("BF16", (9, 4))}
    found = dict(sizes_by_tensors({"vocab_size": 9, "hidden_size": 4}, structure))
    assert bool(found) is (own == planted)  # one tensor, and no doubt


def test_keys_of_a_lock_are_judged_where_it_is_of_a_quantized_checkpoint(honest: Honest) -> None:
    opened, base = open_directory(honest.build), open_directory(honest.source)

    def keys(checkpoint: Checkpoint) -> set[str]:
        lock = replace(checkpoint, shards={})
        return {name for item in judge(lock).judged if item.kind is Kind.KEY for name in item.names}

    assert "config.json:hidden_size" in keys(opened)
    assert keys(base) == set()


def test_what_is_not_judged_is_named_briefly() -> None:
    def said(kind: Kind, *names: str) -> str:
        account = Account((Judged(kind, State.NOT_JUDGED, "unknown", names),))
        return " ".join(finding.where for finding in unjudged(account))

    layers = [f"model.layers.{number}.extra" for number in range(30)]
    assert said(Kind.TENSOR, *layers) == "model.layers.{0-29}.extra"
    assert said(Kind.FILE, "a.bin", "b/c.bin", "b/d.bin") == "a.bin, 2 files in b/"
    assert said(Kind.KEY, "config.json:a.b", "config.json:a.c", "config.json:d") == "config.json: a.b, a.c, d"
    assert said(Kind.KEY, "config.json:a", "generation_config.json:b") == "config.json: a; generation_config.json: b"
    many = [f"config.json:text_config.key{number}" for number in range(1_200)]
    assert said(Kind.KEY, *many[:10]).endswith("text_config.key8, text_config.key9")
    assert said(Kind.KEY, *many).endswith("text_config.key8, text_config.key9, and 1,190 more")


@pytest.mark.parametrize("key", QUANTIZATION_KEYS)
def test_key_of_the_quantization_config_that_changes_what_is_served_fails(honest: Honest, copy: Path, key: str) -> None:
    edit_config(copy, lambda config: QUANTIZATION_KEYS[key](config["quantization_config"]))
    assert honest.judge(copy).code in (1, 2)


def test_metadata_of_an_index_or_a_shard_that_nobody_knows_fails(honest: Honest, copy: Path) -> None:
    edit_json(copy / INDEX, lambda index: index["metadata"].update(dtype="float16"))
    outcome = honest.judge(copy)
    assert outcome.code == 1
    assert f"{INDEX}: metadata" in json.dumps(account_of(outcome)["findings"])


def test_white_space_of_a_config_passes_and_is_named(honest: Honest, copy: Path) -> None:
    rewrite(copy / CONFIG, (copy / CONFIG).read_bytes() + b"\n\n")
    outcome = honest.judge(copy)
    assert outcome.code == 0
    assert CONFIG in harmless_in(outcome)


@pytest.mark.parametrize(
    "name", ["README.md", "docs/usage.md", "LICENSE", "LICENSE.txt", "NOTICE", "figures/a.png", ".gitattributes"]
)
def test_harmless_file_has_its_reason(name: str) -> None:
    assert harmless(name) in {why for _, why in HARMLESS_FILES}


@pytest.mark.parametrize(
    "name", ["LICENSE.py", "readme", "merges.txt", "vocab.txt", "md", "tokenizer.md.json", "x.jinja"]
)
def test_file_that_may_be_obeyed_is_not_harmless(name: str) -> None:
    assert harmless(name) is None


# The law: from an honest, audited build, any one change fails, or is harmless by the closed list and named.

Change = Callable[[Path], str]
"""Changes a copy of the build, and gives the name that a report must show if it lets it pass."""

PLAIN_NAMES = st.from_regex(
    r"[a-z][a-z0-9_]{0,8}(\.(json|txt|py|jinja|model|yaml|md|png|bin|pt|gguf))?", fullmatch=True
)


@st.composite
def byte_changes(draw: st.DrawFn) -> Change:
    place, mask = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 255))
    pick = draw(st.integers(0, 1 << 16))

    def change(copy: Path) -> str:
        names = [name for name in contents(copy) if not name.startswith("evidence/")]
        name = names[pick % len(names)]
        raw = bytearray((copy / name).read_bytes())
        raw[int(place * len(raw))] ^= mask
        rewrite(copy / name, bytes(raw))
        return name

    return change


@st.composite
def key_changes(draw: st.DrawFn) -> Change:
    file = draw(st.sampled_from([CONFIG, "generation_config.json", "tokenizer_config.json", "tokenizer.json", INDEX]))
    pick = draw(st.integers(0, 1 << 16))
    kind = draw(st.sampled_from(["add", "remove", "alter"]))
    name = draw(st.one_of(st.sampled_from(sorted(config_keys())), st.from_regex(r"[a-z_]{1,12}", fullmatch=True)))
    value = draw(st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.just({}), st.just([])))

    def change(copy: Path) -> str:
        document = json.loads((copy / file).read_bytes())
        holders = [document]
        for holder in holders:
            holders += [item for item in holder.values() if isinstance(item, dict) and item]
        holder = holders[pick % len(holders)]
        key = list(holder)[pick % len(holder)] if kind != "add" else name
        before = json.dumps(document)
        if kind == "remove":
            holder.pop(key)
        else:
            holder[key] = value
        if json.dumps(document) == before:
            holder["changed_all_the_same"] = 1
        rewrite(copy / file, json.dumps(document, indent=2).encode())
        return key

    return change


@st.composite
def file_changes(draw: st.DrawFn) -> Change:
    kind = draw(st.sampled_from(["add", "remove", "rename"]))
    pick, name = draw(st.integers(0, 1 << 16)), draw(PLAIN_NAMES)
    folder = draw(st.sampled_from(["", "", "sub/", "original/", "additional_chat_templates/"]))

    def change(copy: Path) -> str:
        names = [path.name for path in sorted(copy.iterdir()) if path.is_file() and not harmless(path.name)]
        target = copy / (folder + name)
        target.parent.mkdir(exist_ok=True)
        if kind == "add":
            target.write_text("{}")
        elif kind == "rename":
            (copy / names[pick % len(names)]).rename(target)
        else:
            (copy / names[pick % len(names)]).unlink()
        return target.name

    return change


@st.composite
def tensor_changes(draw: st.DrawFn) -> Change:
    kind = draw(st.sampled_from(["add", "remove", "rename", "dtype", "value"]))
    pick, name = draw(st.integers(0, 1 << 16)), draw(st.from_regex(r"[a-z_]{1,9}(\.weight(_scale)?)?", fullmatch=True))

    def change(copy: Path) -> str:
        shards = len(shards_of(copy))

        def edit(tensors: dict[str, RawTensor]) -> None:
            own = list(tensors)[pick % len(tensors)]
            tensor = tensors[own]
            if kind == "add":
                tensors[name] = RawTensor("BF16", (2, 2), b"\0" * 8)
            elif kind == "remove":
                tensors.pop(own)
            elif kind == "rename":
                rename_tensors(tensors, {own: f"{own}.{name}"})
            elif kind == "dtype":
                dtype = {"BF16": "F16", "F8_E4M3": "I8"}[tensor.dtype]
                tensors[own] = RawTensor(dtype, tensor.shape, tensor.data)
            else:
                raw = bytearray(tensor.data)
                raw[pick % len(raw)] ^= 0x41
                tensors[own] = RawTensor(tensor.dtype, tensor.shape, bytes(raw))

        edit_tensors(copy, edit, shards=shards)
        return name

    return change


NAMED_BEFORE = ("total_size",)
"""What no server reads and an honest build has otherwise than its base; so it is in every report."""

CHANGES = st.one_of(byte_changes(), key_changes(), file_changes(), tensor_changes())


def check_one_change(honest: Honest, place: Path, change: Change) -> None:
    copy = place / "changed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(honest.build, copy)
    name = change(copy)
    outcome = honest.judge(copy)
    assert outcome.code in (0, 1, 2)
    if outcome.code == 0:
        said, before = harmless_in(outcome), harmless_in(honest.judge(honest.build))
        assert name in said
        assert said != before or harmless(name) or name in NAMED_BEFORE, "a change that passes is named"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("changed")


@given(change=CHANGES)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_one_change_fails_or_is_named_as_harmless(honest: Honest, place: Path, change: Change) -> None:
    check_one_change(honest, place, change)


@pytest.mark.campaign
@given(change=CHANGES)
@settings(max_examples=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_one_of_many_changes_fails_or_is_named_as_harmless(honest: Honest, place: Path, change: Change) -> None:
    check_one_change(honest, place, change)


def test_tiny_config_has_keys_of_the_table_alone() -> None:
    assert set(CONFIG_OF) <= set(config_keys())


def test_docs_name_every_reason_for_what_is_harmless() -> None:
    page = (ROOT / "docs/explanation/account.md").read_text()
    assert [why for _, why in HARMLESS_FILES if why not in page] == []
