"""Descriptors of families, held against transformers' models on the meta device and against vLLM's source."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests import families_page, vllm_source
from tests.checkpoints import read_tensors
from tests.conftest import ROOT, Command
from tests.described import UNMADE, architectures, config_of, described, write_described
from tests.methods import Method
from weighbridge.checkpoint.model import Checkpoint, open_directory
from weighbridge.checkpoint.modules import ExpertTensor, split_experts
from weighbridge.cli.schema import PLACES, schema_text
from weighbridge.errors import RecipeError, StructureError
from weighbridge.extras.quality.forward import _place_of, _slots
from weighbridge.families import UNKNOWN, Family, Role, descriptors, families, family_of
from weighbridge.families.catalogue import units
from weighbridge.formats.schemes import PRESETS, to_config
from weighbridge.formats.tensors import Tensor
from weighbridge.linting import lint, lint_served
from weighbridge.linting.drafting import draft_recipe
from weighbridge.planning import make_plan
from weighbridge.recipe import read_recipe
from weighbridge.report import Severity

PATH = Path("recipes/mine/draft.yaml")
VLLM_MODELS = ROOT / "tests/golden/vllm-models.yaml"

MADE = list(architectures())
FIRST = list(dict(reversed(MADE)).values())
"""One architecture of each family."""

# Fused experts that model_free_ptq stops at, or cuts where they must not be cut; see test_fused_layouts.
NOT_UPSTREAM = {
    *("GptOssForCausalLM", "Llama4ForConditionalGeneration", "Llama4ForCausalLM"),
    *("GraniteMoeHybridForCausalLM", "GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
}

each = pytest.mark.parametrize("architecture", [architecture for _, architecture in MADE])

pytestmark = pytest.mark.usefixtures("one_thread")


# --- what they say


def test_no_architecture_and_no_type_is_of_two_families() -> None:
    for said in ("architectures", "model_types"):
        names = Counter(name for own in descriptors().values() for name in getattr(own, said))
        assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize(("folder", "read"), [("descriptors", descriptors), ("units", units)])
def test_mistake_is_located_in_the_file_that_makes_it(
    folder: str, read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "mine.yaml").write_text("nam: x\n")
    monkeypatch.setattr("weighbridge.families.catalogue.resources.files", lambda _: tmp_path)
    with pytest.raises(StructureError, match=f"^families/{folder}/mine.yaml:1: "):
        read.__wrapped__()


def test_published_schema_is_that_of_the_models_and_takes_every_descriptor() -> None:
    assert PLACES["family"].read_text() == schema_text("family"), "weighbridge schema family writes it anew"
    validator = Draft202012Validator(json.loads(schema_text("family")))
    folder = PLACES["family"].parent / "descriptors"
    wrong = {path.name for path in folder.glob("*.yaml") if not validator.is_valid(yaml.safe_load(path.read_text()))}
    assert wrong == set()
    assert not validator.is_valid({"name": "x", "architectures": ["X"], "published": [{"model": "a/b"}], "rolls": []})


def test_at_least_forty_families_are_described() -> None:
    assert len(families()) >= 40
    assert all(own.published for own in descriptors().values())


def test_architectures_that_are_not_made_are_some_that_transformers_has() -> None:
    import transformers

    named = {architecture for own in descriptors().values() for architecture in own.architectures}
    assert all(architecture in named and hasattr(transformers, architecture) for architecture in UNMADE)


# What publishers call models whose code lies beside them, or that were called so before transformers had them.
OF_PUBLISHERS = {
    *("Ernie4_5_ForCausalLM", "Ernie4_5_VLForConditionalGeneration"),  # Baidu
    *("KimiK2ForCausalLM", "Mellum2ForCausalLM", "Phi4ForCausalLM"),  # Moonshot, JetBrains, Microsoft
}


def test_an_architecture_is_one_that_transformers_or_vllm_has_or_a_publishers_own() -> None:
    import transformers

    served = {name for file in vllm_models().values() for name in file["architectures"]}
    named = {architecture for own in descriptors().values() for architecture in own.architectures}
    assert {name for name in named - served if not hasattr(transformers, name)} == OF_PUBLISHERS


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"architectures": ["Qwen3_5MoeForConditionalGeneration"]}, "Qwen3.5 and Qwen3.6"),
        ({"model_type": "nemotron_h"}, "Nemotron-H, Nano 2 and Nemotron 3"),
        ({"architectures": ["Unheard"], "text_config": {"model_type": "gemma4_text"}}, "Gemma 4"),
        ({"architectures": "LlamaForCausalLM"}, "unknown"),
        ({"architectures": [["LlamaForCausalLM"]], "model_type": ["llama"], "text_config": 1}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_family_is_the_one_that_config_json_names(config: dict[str, Any], name: str) -> None:
    assert family_of(config).name == name
    assert family_of(config).known == (name != "unknown")


NAMES: list[tuple[str, str, Role, bool]] = [
    # architecture, module, its role, whether a server loads it unquantized
    ("NemotronHForCausalLM", "backbone.layers.1.mixer.experts.7.up_proj", Role.EXPERTS, False),
    ("NemotronHForCausalLM", "backbone.layers.1.mixer.gate", Role.ROUTER, True),
    ("NemotronHForCausalLM", "backbone.layers.1.mixer.fc1_latent_proj", Role.LATENT, False),
    ("NemotronHForCausalLM", "backbone.layers.2.mixer.q_proj", Role.ATTENTION, False),
    ("NemotronHForCausalLM", "backbone.layers.0.mixer.conv1d", Role.CONVOLUTION, False),
    ("GlmMoeDsaForCausalLM", "model.layers.0.self_attn.indexer.wk", Role.INDEXER, True),
    ("GlmMoeDsaForCausalLM", "model.layers.0.self_attn.indexer.weights_proj", Role.INDEXER, True),
    ("GlmMoeDsaForCausalLM", "model.layers.0.self_attn.indexer.wq_b", Role.INDEXER, False),
    ("DeepseekV32ForCausalLM", "model.layers.0.self_attn.q_b_proj", Role.ATTENTION, False),
    ("JambaForCausalLM", "model.layers.0.mamba.in_proj", Role.MIXER, True),
    ("GraniteMoeHybridForCausalLM", "model.layers.0.mamba.in_proj", Role.MIXER, False),
    ("GraniteMoeHybridForCausalLM", "model.layers.0.shared_mlp.input_linear", Role.MLP, False),
    ("Lfm2ForCausalLM", "model.layers.0.conv.in_proj", Role.MIXER, False),
    ("Lfm2ForCausalLM", "model.layers.0.conv.conv", Role.CONVOLUTION, False),
    ("WhisperForConditionalGeneration", "proj_out", Role.HEAD, False),
    ("WhisperForConditionalGeneration", "model.decoder.layers.0.encoder_attn.k_proj", Role.ATTENTION, False),
    ("Qwen3OmniMoeForConditionalGeneration", "code2wav.pre_transformer.layers.0.mlp.up_proj", Role.TALKER, False),
    ("Qwen3OmniMoeForConditionalGeneration", "talker.model.layers.0.mlp.experts.0.up_proj", Role.TALKER, False),
    ("MiniCPMV", "vpm.encoder.layers.0.self_attn.q_proj", Role.VISION, False),
    ("MiniCPMV", "resampler.attn.out_proj", Role.VISION, False),
    ("Step3p5ForCausalLM", "model.layers.3.moe.experts.0.gate_proj", Role.EXPERTS, False),
    ("Step3p5ForCausalLM", "model.layers.3.share_expert.up_proj", Role.EXPERTS, False),
    ("Ernie4_5_MoeForCausalLM", "model.layers.1.mlp.moe_statics", Role.ROUTER, False),
    ("LongcatFlashForCausalLM", "model.layers.0.mlps.1.up_proj", Role.MLP, False),
    ("LongcatFlashForCausalLM", "model.layers.0.mlp.router.classifier", Role.ROUTER, True),
    ("Gemma3nForConditionalGeneration", "model.language_model.layers.0.laurel.linear_left", Role.SMALL, False),
    ("DeepseekV3ForCausalLM", "model.layers.61.eh_proj", Role.MTP, True),
]


@pytest.mark.parametrize(("architecture", "module", "role", "unquantized"), NAMES, ids=str)
def test_role_of_a_module_is_that_of_its_family(architecture: str, module: str, role: Role, unquantized: bool) -> None:
    family = family_of({"architectures": [architecture]})
    assert family.role_of(module) is role
    assert (family.unquantized(module) is not None) == unquantized


@pytest.mark.parametrize(
    ("architecture", "module"), [(one, name) for one, name, _, unquantized in NAMES if unquantized]
)
def test_codes_that_no_server_loads_are_errors_in_a_checkpoint_that_lies_there(architecture: str, module: str) -> None:
    preset = PRESETS["FP8_DYNAMIC"]
    structure = {f"{module}.weight": Tensor("F8_E4M3", (128, 128)), f"{module}.weight_scale": Tensor("BF16", (128, 1))}
    groups = {"group_0": {"targets": ["Linear"], **to_config(preset)}}
    declared = {"quant_method": "compressed-tensors", "format": preset.format, "config_groups": groups, "ignore": []}
    found = lint_served(Method(declared, structure, config={"architectures": [architecture]}).opened())
    assert found is not None
    (wrong,) = [finding for finding in found if "loads no codes" in finding.message]
    assert (wrong.severity, wrong.where) == (Severity.ERROR, module)


OF_ONE_SCHEME: list[tuple[str, bool]] = [
    # preset, whether vLLM takes the first half of V4's output projection so
    ("FP8_BLOCK", True),
    ("FP8_DYNAMIC", False),
    ("NVFP4A16", False),
    ("W4A16", False),
    ("MXFP4", False),
]


@pytest.mark.parametrize(("preset", "taken"), OF_ONE_SCHEME)
def test_a_linear_that_a_server_takes_in_one_scheme_alone_is_drafted_in_that_and_refused_in_others(
    preset: str, taken: bool
) -> None:
    structure = {
        "embed.weight": Tensor("BF16", (64, 256)),
        "head.weight": Tensor("BF16", (64, 256)),
        **{f"layers.0.attn.{name}.weight": Tensor("BF16", (256, 256)) for name in ("wq_b", "wo_a", "wo_b")},
        **{f"layers.0.ffn.shared_experts.w{n}.weight": Tensor("BF16", (256, 256)) for n in (1, 2, 3)},
    }
    config = {"architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4"}
    source = Method({}, structure, config=config).opened()
    text = drafted(source, preset)
    plan = make_plan(read_recipe(text.encode(), where="recipes/a/b.yaml"), source)
    assert ("layers.0.attn.wo_a" in plan.schemes) is taken
    assert "layers.0.attn.wo_b" in plan.schemes
    by_hand = re.sub(r"(?m)^  #.*wo_a.*\n|^  - re:.*wo_a.*\n|^  - .*wo_a\n", "", text)
    plan = make_plan(read_recipe(by_hand.encode(), where="recipes/a/b.yaml"), source)
    assert "layers.0.attn.wo_a" in plan.schemes
    assert ("serve/unquantized" in {finding.rule for finding in lint(plan)}) is not taken
    built = Method({}, plan.predicted.structure, config=plan.output_config()).opened()
    found = lint_served(built)
    assert found is not None
    assert ("serve/unquantized" in {finding.rule for finding in found}) is not taken


# --- against transformers


def drafted(source: Checkpoint, scheme: str = "FP8_DYNAMIC") -> str:
    return draft_recipe(source, model="org/model", licence="mit", path=PATH, scheme=scheme).text


@each
def test_draft_lints_clean_and_leaves_nothing_unknown(architecture: str) -> None:
    source = described(architecture)
    plan = make_plan(read_recipe(drafted(source).encode(), where=str(PATH)), source)
    findings = {item.rule for item in lint(plan) if item.severity is not Severity.NOTE}
    assert findings <= {"base/unpinned", *EXPECTED.get(architecture, ())}
    assert any(part.scheme is not None for part in plan.parts)


EXPECTED = {
    "ModernBertForMaskedLM": ("coverage/low",),
    "GptOssForCausalLM": ("serve/experts-passed-over",),
}
"""What a draft warns of beside its base."""


@each
def test_every_matrix_has_a_role(architecture: str) -> None:
    source = described(architecture)
    unknown = {
        name
        for name, tensor in source.structure.items()
        if len(tensor.shape) == 2 and name.endswith(".weight") and _role(source, name) is Role.OTHER
    }
    # A classifier on top of an encoder is called as its user pleases.
    assert unknown <= {"classifier.weight", "classifier.dense.weight", "classifier.out_proj.weight"}


def _role(source: Checkpoint, name: str) -> Role:
    return source.family.role_of(name.removesuffix(".weight"))


@pytest.mark.parametrize("architecture", FIRST)
def test_draft_is_built_as_planned_is_exact_and_is_what_upstream_makes(
    architecture: str, tmp_path: Path, call_build: Command
) -> None:
    _built_and_equal(architecture, "FP8_DYNAMIC", tmp_path, call_build)


@pytest.mark.campaign
@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "W4A16"])
@each
def test_every_architecture_is_built_as_planned_is_exact_and_is_what_upstream_makes(
    architecture: str, scheme: str, tmp_path: Path, call_build: Command
) -> None:
    _built_and_equal(architecture, scheme, tmp_path, call_build)


def _built_and_equal(architecture: str, scheme: str, directory: Path, call_build: Command) -> None:
    source, recipe = write_described(architecture, directory / "source"), directory / "draft.yaml"
    try:
        recipe.write_text(drafted(open_directory(source), scheme))
    except RecipeError as refused:
        assert "no group size that vLLM knows divides every width" in str(refused)
        pytest.skip(f"a sixteenth of its widths takes no groups: {refused}")
    outcome = call_build(recipe, "--model", source, "--output", directory / "ours", "--audit")
    assert outcome.code == 0, outcome.err + outcome.out
    assert "it derives exactly from the base" in " ".join(outcome.out.split())
    if architecture not in NOT_UPSTREAM:
        theirs = call_build(recipe, "--model", source, "--output", directory / "theirs", "--engine", "upstream")
        assert theirs.code == 0, theirs.err + theirs.out
        assert read_tensors(directory / "ours") == read_tensors(directory / "theirs")


# DeepSeek-V4 and Kimi-Linear are regrouped in memory as names cannot say, and are not measured.
@pytest.mark.parametrize(
    "architecture",
    [
        *("MixtralForCausalLM", "PhimoeForCausalLM", "MiniMaxM2ForCausalLM", "Lfm2MoeForCausalLM", "HYV3ForCausalLM"),
        *("HunYuanMoEV1ForCausalLM", "Ernie4_5_MoeForCausalLM", "ExaoneMoeForCausalLM", "GraniteMoeHybridForCausalLM"),
        *("MiMoV2FlashForCausalLM", "NemotronHForCausalLM", "Qwen3MoeForCausalLM", "Gemma3ForConditionalGeneration"),
        *("Llama4ForCausalLM", "GptOssForCausalLM", "Qwen3NextForCausalLM", "DeepseekV3ForCausalLM"),
    ],
)
def test_every_tensor_of_the_text_has_a_place_in_transformers_model_and_fills_it(architecture: str) -> None:
    source, slots = described(architecture), slots_of(architecture)
    names = [
        part.name
        for name, tensor in source.structure.items()
        for part in (
            split_experts(name, tensor, source.fused_experts[name])
            if name in source.fused_experts
            else [ExpertTensor(name, tensor, 0, 0)]
        )
        if source.family.role_of(name) not in (Role.VISION, Role.AUDIO)
    ]
    family = source.family
    places = [_place_of(family.in_transformers(name), slots) or _place_of(name, slots) for name in names]
    assert [name for name, place in zip(names, places, strict=True) if place is None] == []
    assert set(slots) - set(filter(None, places)) <= {"lm_head.weight"}


def slots_of(architecture: str) -> dict[str, Any]:
    """Where tensors go in the text model that quality is measured with."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = config_of(architecture).get_text_config()
    with torch.device("meta"):
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(config)
    return _slots(model, described(architecture).family)


# --- against vLLM's source


def vllm_models() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(VLLM_MODELS.read_text())
    return loaded


def facts_of(family: Family) -> Iterator[tuple[str, dict[str, Any]]]:
    """What vLLM's files of a family's architectures say."""
    own = next(own for own in descriptors().values() if own.name == family.name)
    for path, facts in vllm_models().items():
        if set(own.architectures) & set(facts["architectures"]):
            yield path, facts


# Merged by vLLM under names, or inside parts, that need no descriptor, and why.
NEEDS_NONE = {
    "conv1d": "convolutions are kept",
    "fused_qkv_a_g_proj": "of Kimi K3, which has a gate there",
    "qkv": "inside a vision tower, which is kept",
    "attn.qkv": "inside a vision tower, which is kept",
    "merged_proj": "inside a projector, which is kept",
    "linear_proj.merged_proj": "inside a projector, which is kept",
    "encoder_attn.kv_proj": "queries, keys and values of a decoder are given one scheme, which holds these two",
    "kv_proj": "queries, keys and values of a decoder are given one scheme, which holds these two",
    "self.qkv_proj": "the same as qkv_proj, by a longer name",
    "attn.fused_wqa_wkv": "the same as fused_wqa_wkv, by a longer name",
    "compressor.fused_wkv_wgate": "the same as fused_wkv_wgate, by a longer name",
}


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_what_vllm_merges_is_known(family: Family) -> None:
    known = [set(merge.members) for merge in family.merges]
    missing = {
        (path, whole, tuple(members))
        for path, facts in facts_of(family)
        for whole, members in facts["merges"].items()
        if whole not in NEEDS_NONE
        and not any({member.rpartition(".")[2] for member in members if member != whole} <= group for group in known)
    }
    assert missing == set()


# Made without a quantization config by vLLM, and of a role that no recipe quantizes anyway, or a part of a tower.
KEPT_ANYWAY = (Role.VISION, Role.AUDIO, Role.ROUTER, Role.CONVOLUTION, Role.MTP, Role.HEAD, Role.SMALL)


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_what_vllm_loads_unquantized_is_never_drafted(family: Family) -> None:
    wrong = set()
    for path, facts in facts_of(family):
        for name in facts["unquantized"]:
            places = [f"model.layers.0.{holder}.{name}" for holder in ("mlp", "mlp.router", "self_attn.indexer")]
            if not any(family.role_of(place) in KEPT_ANYWAY or family.unquantized(place) for place in places):
                wrong.add((path, name))
    apart = {"linear_1", "linear_2", "embedding_projection", "fc1", "fc2", "out_proj", "proj1", "proj2", "conv_out"}
    apart |= {
        "proj",
        "merging_layer",
        "w_in",
        "w_out",
        "v_head",
        "qkv_proj",
        "o_proj",
        "glu",
        "module",
        "patch_embedding",
    }
    apart |= {"w1", "w2", "wo", "wqkv"}  # of DeepSeek-V4's vision tower
    # Wholes, of which descriptors name the members; and what Kimi K3 has and Kimi-Linear has not.
    apart |= {"fused_wkv_wgate", "wk_weights_proj", "routed_expert_up_proj", "routed_expert_down_proj"}
    apart |= {"mlp_res_proj", "self_attention_res_proj", "output_attn_res_proj"}
    assert {item for item in wrong if item[1] not in apart} == set()


@pytest.mark.skipif("WEIGHBRIDGE_VLLM" not in os.environ, reason="names a wheel of vLLM, or its sources")
def test_what_was_read_of_vllm_is_what_its_source_says() -> None:
    files = vllm_source.model_files(Path(os.environ["WEIGHBRIDGE_VLLM"]))
    assert vllm_source.read_models(files) == vllm_models()


def test_models_are_read_off_their_syntax() -> None:
    registry = 'A = {"XForCausalLM": ("x", "XForCausalLM")}'
    text = """
class X:
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj"], "alone": ["alone"]}
    def __init__(self):
        self.gate = GateLinear(1, 2, quant_config=None, prefix=f"{prefix}.gate")
        self.up = ColumnParallelLinear(1, 2, quant_config=quant_config, prefix=f"{prefix}.up")
        self.down = ColumnParallelLinear(1, 2, **arguments)
        self.fc = ReplicatedLinear(1, 2, prefix="eh_proj")
    def load_weights(self):
        stacked_params_mapping = [(".w13", ".w1", 0), (".w13", ".w3", 1)]
"""
    models = vllm_source.read_models({vllm_source.REGISTRY: registry, "vllm/model_executor/models/x.py": text})
    assert models == {
        "model_executor/models/x.py": {
            "architectures": ["XForCausalLM"],
            "merges": {"qkv_proj": ["q_proj", "k_proj"], "w13": ["w1", "w3"]},
            "unquantized": ["eh_proj", "gate"],
        }
    }


def test_page_is_made_of_the_descriptors() -> None:
    assert (ROOT / "docs/reference/families.md").read_text() == families_page.page()


# --- families that nobody describes


def unheard_of(*names: str) -> Checkpoint:
    tensors = {name: Tensor("BF16", (64, 64)) for name in names}
    tensors["model.layers.0.mlp.up_proj.weight"] = Tensor("BF16", (64, 64))
    return Checkpoint("unheard of", tensors, {"architectures": ["Unheard-of\nFor: [&a"]})


def test_draft_of_an_unknown_family_says_so_first() -> None:
    assert drafted(unheard_of()).splitlines()[1].startswith("# Unknown family: no descriptor of this model")


def test_much_that_nobody_knows_is_said_in_lint() -> None:
    source = unheard_of("model.layers.0.gizmo.weight")
    draft = draft_recipe(source, model="org/model", licence="mit", path=PATH)
    assert "coverage/unknown" in {finding.rule for finding in draft.findings}
    assert "50% of the parameters" in next(f.message for f in draft.findings if f.rule == "coverage/unknown")


PARTS = st.sampled_from(
    ["model", "layers", "0", "17", "norm", "ln_1", "LayerNorm", "gate", "mlp", "self_attn", "up_proj", "weight", "bias"]
) | st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=9).filter(
    lambda text: "." not in text
)


@given(st.lists(st.lists(PARTS, min_size=1, max_size=7).map(".".join), min_size=1, max_size=12, unique=True))
def test_draft_of_any_names_ends_and_covers_what_it_keeps(names: list[str]) -> None:
    source = unheard_of(*(f"{name}.weight" for name in names))
    try:
        text = drafted(source)
    except RecipeError as refused:
        assert "no entry of an ignore list can name its module" in str(refused)
        return
    plan = make_plan(read_recipe(text.encode(), where=str(PATH)), source)
    quantized = {part.module for part in plan.parts if part.scheme is not None}
    bulk = (Role.ATTENTION, Role.MLP, Role.EXPERTS, Role.MIXER)
    assert all(UNKNOWN.role_of(module) in bulk for module in quantized)
