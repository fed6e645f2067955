"""llm-compressor's own end-to-end configurations, written anew as recipes: equal to what upstream makes, or refused.

Source: ``tests/e2e/configs`` and ``recipes`` of llm-compressor (commit ab1ba3ef, August 2026), on a toy Llama in the
place of TinyLlama. Those of ``model_free_ptq`` are held in test_streaming.py, conversions in test_source_codecs.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import read_tensors
from tests.conftest import Once
from tests.planning import recipe_text
from tests.test_oneshot import differing
from tests.toy_models import write_llama
from weighbridge.base.source import open_source
from weighbridge.engines import oneshot
from weighbridge.engines.oneshot.dataset import open_rows
from weighbridge.engines.oneshot.load import load_tokenizer
from weighbridge.engines.oneshot.samples import make_samples
from weighbridge.errors import RecipeError
from weighbridge.linting import lint
from weighbridge.planning import make_plan
from weighbridge.progress import Progress
from weighbridge.recipe import read_recipe
from weighbridge.report import Severity

pytestmark = pytest.mark.usefixtures("one_thread")

FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
BY_ROW = {**INT8, "strategy": "channel"}
STATIC = {"num_bits": 8, "type": "int", "strategy": "tensor", "observer": "static_minmax"}
NVFP4 = {
    **{"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16},
    "scale_dtype": "torch.float8_e4m3fn",
}
MIXED: Mapping[str, Any] = {
    "group_0": {
        "targets": [r"re:.*\.down_proj$"],
        "weights": {**FP8, "strategy": "channel"},
        "input_activations": {**FP8, "strategy": "token", "dynamic": True},
    },
    "group_1": {
        "targets": [r"re:.*self_attn\.(k|o|q|v)_proj$", r"re:.*\.(gate|up)_proj$"],
        "weights": NVFP4,
        "input_activations": {**NVFP4, "dynamic": "local"},
    },
}
CACHE = {"scheme": "FP8", "scales": "calibrated"}
CACHED = {**FP8, "strategy": "tensor"}
SMOOTH = {"SmoothQuantModifier": {"smoothing_strength": 0.8}}
MAPPINGS = [
    [["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"],
    [["re:.*gate_proj", "re:.*up_proj"], "re:.*post_attention_layernorm"],
]
ATTENTION = [
    {"smooth_layer": "re:.*input_layernorm$", "balance_layers": ["re:.*q_proj$", "re:.*k_proj$", "re:.*v_proj$"]}
]


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes:
        ours: keys of a recipe.
        theirs: modifiers of llm-compressor, by name, with their arguments.
    """

    ours: Mapping[str, Any]
    theirs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def preset(name: str, modifier: str = "QuantizationModifier") -> Case:
    """A preset of every linear but the head."""
    own: dict[str, Any] = {} if modifier == "QuantizationModifier" else {"modifiers": [{modifier: {}}]}
    return Case({"scheme": name, **own}, {modifier: {"scheme": name, "targets": ["Linear"], "ignore": ["lm_head"]}})


def spelled(
    group: Mapping[str, Any], *before: Mapping[str, Mapping[str, Any]], quantizing: str = "", **options: Any
) -> Case:
    """Arguments of every linear but the head, behind modifiers that smooth."""
    own = [*before, *([{quantizing: options}] if quantizing else [])]
    smoothing = {name: said for entry in before for name, said in entry.items()}
    groups = {"group_0": {**group, "targets": ["Linear"]}}
    return Case(
        {"config_groups": {"group_0": dict(group)}, **({"modifiers": own} if own else {})},
        {
            **smoothing,
            quantizing or "QuantizationModifier": {"ignore": ["lm_head"], "config_groups": groups, **options},
        },
    )


AWQ = {"AWQModifier": {"duo_scaling": "both"}}
CASES: Mapping[str, Case] = {
    "kv_cache_fp8": Case({"kv_cache": CACHE}, {"QuantizationModifier": {"kv_cache_scheme": CACHED}}),
    "multiple_modifiers_gptq_awq": Case(
        {
            "config_groups": {
                "attention": {"targets": [r"re:.*self_attn\.(k|q|o|v)_proj$"], "scheme": "W4A16"},
                "mlp": {"targets": [r"re:.*mlp\.(down|gate|up)_proj$"], "scheme": "W8A8"},
            },
            "modifiers": [
                {"AWQModifier": {"duo_scaling": True, "mappings": ATTENTION}},
                {"QuantizationModifier": {"groups": ["attention"]}},
                {"GPTQModifier": {"groups": ["mlp"], "block_size": 128, "dampening_frac": 0.001, "actorder": None}},
            ],
        },
        {
            "AWQModifier": {"duo_scaling": True, "mappings": ATTENTION},
            "QuantizationModifier": {
                "ignore": ["lm_head"],
                "scheme": "W4A16",
                "targets": [r"re:.*self_attn\.(k|q|o|v)_proj$"],
            },
            "GPTQModifier": {
                **{"ignore": ["lm_head"], "scheme": "W8A8", "targets": [r"re:.*mlp\.(down|gate|up)_proj$"]},
                **{"block_size": 128, "dampening_frac": 0.001, "actorder": None},
            },
        },
    ),
    "nvfp4_fp8_mixed": Case(
        {
            "config_groups": MIXED,
        },
        {
            "QuantizationModifier": {
                "ignore": ["lm_head"],
                "config_groups": MIXED,
            }
        },
    ),
    "kv_cache_gptq_tinyllama": Case(
        {
            "config_groups": {"group_0": {"weights": {**INT4, "strategy": "channel", "group_size": None}}},
            "kv_cache": CACHE,
            "modifiers": [{"GPTQModifier": {"actorder": None}}],
        },
        {
            "GPTQModifier": {
                **{"ignore": ["lm_head"], "actorder": None, "kv_cache_scheme": CACHED},
                "config_groups": {
                    "group_0": {"weights": {**INT4, "strategy": "channel", "group_size": None}, "targets": ["Linear"]}
                },
            }
        },
    ),
    "w4a16_grouped_quant": preset("W4A16", "GPTQModifier"),
    "w8a16_grouped_quant": preset("W8A16", "GPTQModifier"),
    "w4a16_actorder_weight": spelled({"weights": INT4}, quantizing="GPTQModifier", actorder="weight"),
    "fp4_nvfp4": preset("NVFP4"),
    "fp4_nvfp4a16": preset("NVFP4A16"),
    "fp8_block": preset("FP8_BLOCK"),
    "fp8_dynamic_per_token": preset("FP8_DYNAMIC"),
    "fp8_static_per_tensor": preset("FP8"),
    "fp8_weight_only_channel": spelled({"weights": {**FP8, "strategy": "channel"}}),
    "fp8_weight_only_tensor": spelled({"weights": {**FP8, "strategy": "tensor"}}),
    "int8_dynamic_per_token": preset("W8A8"),
    "int8_channel_weight_static_per_tensor_act": spelled(
        {"weights": BY_ROW, "input_activations": {**STATIC, "symmetric": True}},
        SMOOTH,
        quantizing="GPTQModifier",
        actorder=None,
    ),
    "w8a8_dynamic_asym": spelled(
        {"weights": BY_ROW, "input_activations": {**INT8, "symmetric": False, "strategy": "token", "dynamic": True}},
        {"SmoothQuantModifier": {"smoothing_strength": 0.8, "mappings": MAPPINGS}},
        quantizing="GPTQModifier",
        actorder=None,
    ),
    "w8a8_static_asym": spelled(
        {"weights": BY_ROW, "input_activations": {**STATIC, "symmetric": False}},
        SMOOTH,
        quantizing="GPTQModifier",
        actorder=None,
    ),
    "w4a16_sym_awq": spelled({"weights": INT4}, AWQ),
    "w4a16_asym_awq": spelled({"weights": {**INT4, "symmetric": False}}, AWQ),
}
IN_SHORT = ("kv_cache_fp8", "multiple_modifiers_gptq_awq", "w4a16_grouped_quant")
"""What every run of the tests builds."""

REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "w4a16_actorder_group": (
        {"config_groups": {"group_0": {"weights": INT4}}, "modifiers": [{"GPTQModifier": {"actorder": "group"}}]},
        "actorder: group is no longer known to compressed-tensors 0.19 and vLLM 0.32, which refuse it; "
        "take actorder: weight, or none",
    ),
    "attention_quantization": (
        {"config_groups": {"group_0": {"targets": ["LlamaAttention"], "input_activations": {**FP8}}}},
        "a config group has either a scheme or weights",
    ),
}
"""Configurations that no recipe can be -> what is said of them."""


def content_of(ours: Mapping[str, Any], text: Path) -> bytes:
    base = {"model": "example-org/toy", "licence": "apache-2.0"}
    content = {"name": "test", "description": "A test.", "base": base, "method": "oneshot", "ignore": ["lm_head"]}
    content |= {
        "calibration": {"dataset": {"file": str(text)}, "samples": 8, "sequence_length": 48, "experts": "all"},
        **ours,
    }
    if "scheme" not in content and "config_groups" not in content:
        del content["ignore"]
    return recipe_text(content).encode()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"sentence {number} of some text, {number * 7919 % 1000}\n" for number in range(16)))
    return path


@pytest.fixture
def wide(once: Once) -> Path:
    return once("toy-llama-wide", lambda directory: write_llama(directory, inner=256))


Compare = Callable[[str], None]


@pytest.fixture
def compare(text: Path, wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Builds a configuration by its recipe and by llm-compressor alone, and holds one against the other."""

    def check(name: str) -> None:
        import torch
        from llmcompressor import oneshot as upstream
        from llmcompressor.pipelines.cache import IntermediatesCache
        from torch.utils.data import DataLoader
        from transformers import AutoModelForCausalLM, AutoTokenizer

        case, source = CASES[name], open_source(str(wide))
        loaded = read_recipe(content_of(case.ours, text), where="recipe.yaml")
        needs = bool(loaded.recipe.needing_data)
        if not needs:
            raw = content_of({**case.ours, "calibration": None}, text).replace(b"calibration: null\n", b"")
            loaded = read_recipe(raw, where="recipe.yaml")
        plan = make_plan(loaded, source)
        assert [str(found) for found in lint(plan) if found.severity is Severity.ERROR] == []
        (tmp_path / "ours").mkdir()
        oneshot.quantize(plan, source, tmp_path / "ours", device="cpu", progress=Progress(shown=False))
        data: dict[str, Any] = {}
        if needs:
            assert loaded.recipe.calibration is not None
            samples = make_samples(
                loaded.recipe.calibration, open_rows(loaded.recipe.calibration), load_tokenizer(wide, where="toy")
            )
            ids = [torch.tensor([row]) for row in samples.token_ids]
            rows: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
            data = {"dataset": DataLoader(rows, batch_size=None)}
        # AWQ copies what it has cached by way of pinned memory, of which a machine without an accelerator has none.
        monkeypatch.setattr(IntermediatesCache, "pin_memory", lambda *_: None)
        model = AutoModelForCausalLM.from_pretrained(wide, dtype="auto")
        modifiers = [_upstream(name, options) for name, options in case.theirs.items()]
        upstream(model=model, processor=AutoTokenizer.from_pretrained(wide), recipe=modifiers, **data)
        model.save_pretrained(tmp_path / "theirs", save_compressed=True)
        ours, theirs = read_tensors(tmp_path / "ours"), read_tensors(tmp_path / "theirs")
        assert differing(ours, theirs) == []
        declared = json.loads((tmp_path / "theirs" / "config.json").read_text())["quantization_config"]
        assert plan.quantization is not None
        assert _orders(plan.quantization) == _orders(declared)

    return check


def _upstream(name: str, options: Mapping[str, Any]) -> Any:
    from importlib import import_module

    from weighbridge.engines.oneshot.modifiers import MODULES

    return getattr(import_module(MODULES[name]), name)(**json.loads(json.dumps(options)))


def _orders(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Targets and order of columns of every group whose columns are ordered."""
    groups = config["config_groups"].values()
    return sorted(
        (str(sorted(group["targets"])), str(group["weights"]["actorder"]))
        for group in groups
        if group["weights"] is not None and group["weights"]["actorder"] is not None
    )


@pytest.mark.parametrize("name", IN_SHORT)
def test_a_configuration_of_upstream_is_built_with_its_tensors(name: str, compare: Compare) -> None:
    compare(name)


@pytest.mark.campaign
@pytest.mark.parametrize("name", [name for name in CASES if name not in IN_SHORT])
def test_every_configuration_of_upstream_is_built_with_its_tensors(name: str, compare: Compare) -> None:
    compare(name)


@pytest.mark.parametrize("name", REFUSED)
def test_a_configuration_that_no_recipe_can_be_is_refused_with_its_reason(name: str, text: Path) -> None:
    keys, why = REFUSED[name]
    with pytest.raises(RecipeError) as refused:
        read_recipe(content_of(keys, text), where="recipe.yaml")
    assert why in str(refused.value)
