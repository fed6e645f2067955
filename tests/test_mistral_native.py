"""Sources in Mistral's own form (params.json, consolidated*.safetensors): planned, drafted, built, judged, audited."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import edit_json, read_tensors, rename_tensors, rewrite, shards_of, write_shard, write_tensors
from tests.conftest import Command, Once
from tests.mistral_native import DENSE, INDEX, KINDS, LARGE, MOE, PARAMS, in_fp8, tensors_of, write_mistral
from tests.tiny import CONFIG_OF
from weighbridge.checkpoint.lock import open_lock, write_lock
from weighbridge.checkpoint.model import Checkpoint, open_directory
from weighbridge.families import Role
from weighbridge.linting import lint
from weighbridge.linting.drafting import draft_recipe
from weighbridge.planning import Plan, make_plan
from weighbridge.recipe import read_recipe
from weighbridge.report import Severity

pytestmark = pytest.mark.usefixtures("one_thread")

PATH = Path("recipes/mine/draft.yaml")
Sources = Callable[[str], Path]

STOPS = {("audio", "NVFP4A16"): "asks for a w3 beside every w1, and the audio tower has none"}
"""What model_free_ptq does not make of them, and why."""


@pytest.fixture(scope="session")
def source(once: Once) -> Sources:
    """A checkpoint of a kind: a dense and an audio one of one shard, the others of two shards and an index.

    Upstream needs what it gives one global scale in one shard, so that the one with experts is a single one, too.
    """

    def made(kind: str) -> Path:
        def write(place: Path) -> None:
            write_mistral(place / "it", {**KINDS, "large": LARGE}[kind], shards=2 if kind == "vision" else 1)

        return once(f"mistral-{kind}", write) / "it"

    return made


def drafted(checkpoint: Checkpoint, scheme: str = "FP8_DYNAMIC") -> str:
    return draft_recipe(checkpoint, model="org/model", licence="apache-2.0", path=PATH, scheme=scheme).text


def planned(checkpoint: Checkpoint, recipe: str) -> Plan:
    return make_plan(read_recipe(recipe.encode(), where=str(PATH)), checkpoint)


def raised(plan: Plan) -> set[str]:
    """Rules that lint raises an error or a warning of, but for the missing revision."""
    return {item.rule for item in lint(plan) if item.severity is not Severity.NOTE} - {"base/unpinned"}


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16"])
@pytest.mark.parametrize("kind", KINDS)
def test_draft_lints_clean_is_built_as_planned_is_exact_and_is_what_upstream_makes(
    kind: str, scheme: str, source: Sources, tmp_path: Path, call_build: Command, call_validate: Command
) -> None:
    model, recipe = source(kind), tmp_path / "draft.yaml"
    recipe.write_text(drafted(open_directory(model), scheme))
    # Latent attention has 192 rows there, which no server merges with what stands before it in blocks.
    assert raised(planned(open_directory(model), recipe.read_text())) <= {"scheme/ragged-block"}
    built = call_build(recipe, "--model", model, "--output", tmp_path / "ours", "--audit")
    assert built.code == 0, built.err + built.out
    assert "it derives exactly from the base" in " ".join(built.out.split())
    judged = call_validate(tmp_path / "ours", "--source", model, "--recipe", recipe)
    assert judged.code == 0, judged.out
    assert "not judged" not in judged.out
    assert call_validate(tmp_path / "ours", "--evidence", "--source", model).code == 0
    theirs = call_build(recipe, "--model", model, "--output", tmp_path / "theirs", "--engine", "upstream")
    if (kind, scheme) in STOPS:
        assert theirs.code == 2
        return
    assert theirs.code == 0, theirs.err + theirs.out
    assert read_tensors(tmp_path / "ours") == read_tensors(tmp_path / "theirs")
    assert names(tmp_path / "ours") == names(tmp_path / "theirs")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_files_are_called_as_mistral_calls_them(source: Sources, tmp_path: Path, call_build: Command) -> None:
    recipe, output = tmp_path / "draft.yaml", tmp_path / "build"
    recipe.write_text(drafted(open_directory(source("moe"))))
    for options, shards in (((), 1), (("--shard-size", "600KB"), 4)):
        outcome = call_build(recipe, "--model", source("moe"), "--output", output, "--force", *options)
        assert outcome.code == 0, outcome.err
        found = [shard.name for shard in shards_of(output)]
        numbered = [f"consolidated-{n:05}-of-{shards:05}.safetensors" for n in range(1, shards + 1)]
        assert found == (["consolidated.safetensors"] if shards == 1 else numbered)
        assert (output / INDEX).exists() is (shards > 1)
        assert not (output / "config.json").exists()
    params = json.loads((output / PARAMS).read_bytes())
    assert {key: value for key, value in params.items() if key != "quantization_config"} == MOE
    assert params["quantization_config"]["quant_method"] == "compressed-tensors"


# What a module of the file is called in vLLM 0.32, read in mistral.py, mistral_large_3.py and voxtral.py of its
# model_executor/models; with a tower the language model lies in another.
IN_VLLM = {
    "dense": {
        "layers.1.attention.wq": "model.layers.1.self_attn.q_proj",
        "layers.1.attention.wo": "model.layers.1.self_attn.o_proj",
        "layers.1.feed_forward.w1": "model.layers.1.mlp.gate_proj",
        "layers.1.feed_forward.w2": "model.layers.1.mlp.down_proj",
        "layers.1.feed_forward.w3": "model.layers.1.mlp.up_proj",
        "output": "lm_head",
    },
    "moe": {
        "layers.1.attention.wq_a": "model.layers.1.self_attn.q_a_proj",
        "layers.1.attention.wq_b": "model.layers.1.self_attn.q_b_proj",
        "layers.1.attention.wkv_a_with_mqa": "model.layers.1.self_attn.kv_a_proj_with_mqa",
        "layers.1.attention.wkv_b": "model.layers.1.self_attn.kv_b_proj",
        "layers.1.gate": "model.layers.1.mlp.gate",
        "layers.1.experts.3.w1": "model.layers.1.mlp.experts.3.gate_proj",
        "layers.1.experts.3.w2": "model.layers.1.mlp.experts.3.down_proj",
        "layers.1.shared_experts.w3": "model.layers.1.mlp.shared_experts.up_proj",
    },
    "vision": {
        "layers.0.attention.wv": "language_model.model.layers.0.self_attn.v_proj",
        "vision_encoder.transformer.layers.0.attention.wq": "vision_encoder.transformer.layers.0.attention.wq",
    },
    "audio": {
        "layers.0.feed_forward.w2": "language_model.model.layers.0.mlp.down_proj",
        "mm_whisper_embeddings.whisper_encoder.transformer.layers.0.attention.wq": (
            "whisper_encoder.whisper_encoder.layers.0.self_attn.q_proj"
        ),
        "mm_whisper_embeddings.whisper_encoder.transformer.layers.0.attention.wo": (
            "whisper_encoder.whisper_encoder.layers.0.self_attn.out_proj"
        ),
        "mm_whisper_embeddings.whisper_encoder.transformer.layers.0.feed_forward.w1": (
            "whisper_encoder.whisper_encoder.layers.0.mlp.fc1"
        ),
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_named_as_vllm_calls_it_and_nothing_that_is_quantized(kind: str, source: Sources) -> None:
    opened = open_directory(source(kind))
    assert {module: opened.family.in_vllm(module) for module in IN_VLLM[kind]} == IN_VLLM[kind]
    plan = planned(opened, drafted(opened))
    assert plan.quantization is not None
    entries = plan.quantization["ignore"]

    def kept(module: str) -> bool:
        """As vLLM asks: plain names are equal, expressions match from the start."""
        name = opened.family.in_vllm(module)
        return any(re.match(entry[3:], name) if entry.startswith("re:") else entry == name for entry in entries)

    for part in plan.parts:
        if f"{part.module}.weight" in part.outputs and len(part.weight.shape) == 2 and "tok_emb" not in part.module:
            assert kept(part.module) is (part.scheme is None), part.module


def test_layers_of_which_some_are_kept_are_named_one_by_one_and_several_schemes_by_their_targets(
    source: Sources, tmp_path: Path, call_build: Command, call_validate: Command
) -> None:
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text(
        "name: mixed\ndescription: two schemes\nbase: {model: org/model, licence: apache-2.0}\n"
        "method: model_free_ptq\nconfig_groups:\n"
        "  experts: {targets: ['re:.*experts.*'], scheme: NVFP4A16}\n"
        "  others: {targets: ['re:.*attention\\..*', 're:.*feed_forward.*'], scheme: FP8_DYNAMIC}\n"
        "ignore: [output, 're:.*tok_embeddings', 're:layers\\.[0-9]+\\.gate$', 're:layers\\.1\\.attention\\..*']\n"
        "fused_groups: [[w1, w3], [wq_a, wkv_a_with_mqa]]\n"
    )
    outcome = call_build(recipe, "--model", source("moe"), "--output", tmp_path / "build", "--audit")
    assert outcome.code == 0, outcome.err + outcome.out
    declared = json.loads((tmp_path / "build" / PARAMS).read_bytes())["quantization_config"]
    assert "model.layers.1.self_attn.q_a_proj" in declared["ignore"]
    mlp = ("down_proj", "gate_proj", "up_proj")
    assert [sorted(group["targets"]) for group in declared["config_groups"].values()] == [
        [
            *(
                rf"re:model\.layers\.[0-9]+\.mlp\.experts\.[0-9]+\.{name}$"
                for name in ("down_proj", "gate_proj", "up_proj")
            ),
            *(
                rf"re:model\.layers\.[0-9]+\.mlp\.shared_experts\.{name}$"
                for name in ("down_proj", "gate_proj", "up_proj")
            ),
        ],
        [
            *(f"model.layers.0.self_attn.{name}" for name in ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj")),
            "model.layers.0.self_attn.q_b_proj",
            *(rf"re:model\.layers\.[0-9]+\.mlp\.{name}$" for name in mlp),
        ],
    ]
    judged = call_validate(tmp_path / "build", "--source", source("moe"), "--recipe", recipe)
    assert judged.code == 0, judged.out


# As params.json of mistralai/Mistral-Small-4-119B-2603-NVFP4 is quoted in the tests of two public repositories.
PUBLISHED = [
    *("model.embed_tokens", "re:patch_merger.*", "re:vision_encoder.*", "re:vision_language_adapter.*"),
    *("re:.*kv_a_proj_with_mqa$", "re:.*q_a_proj$", "re:.*gate$", "re:.*self_attn.*", "re:.*attention.*", "lm_head"),
]


@pytest.mark.parametrize(
    ("key", "method"), [("quantization_config", "compressed-tensors"), ("quantization", "compressed_tensors")]
)
def test_declaration_as_it_is_published_is_read_by_vllms_names(
    key: str, method: str, source: Sources, tmp_path: Path, call_build: Command, call_validate: Command
) -> None:
    recipe, output = tmp_path / "draft.yaml", tmp_path / "build"
    text = drafted(open_directory(source("large")), "NVFP4A16").replace("  - [wq_a, wkv_a_with_mqa]\n", "")
    recipe.write_text(text.replace("ignore:\n", "ignore:\n  - re:.*attention\\..*\n"))
    assert call_build(recipe, "--model", source("large"), "--output", output).code == 0

    def publish(params: dict[str, Any]) -> None:
        own = params.pop("quantization_config")
        params[key] = {**own, "quant_method": method, "ignore": PUBLISHED}

    edit_json(output / PARAMS, publish)
    opened = open_directory(output)
    assert {opened.family.role_of(module) for module in opened.schemes} == {Role.EXPERTS, Role.MLP}
    assert len(opened.schemes) == 3 + 3 + 4 * 3
    judged = call_validate(output, "--source", source("large"))
    assert judged.code == 0, judged.out
    assert opened.declaration is not None
    assert opened.declaration.place == "quantization_config"


# --- what vLLM would compute with

TURNED: list[tuple[str, int, bool]] = [
    # scheme, rows of a head, whether queries and keys mean the same once vLLM has reordered their rows
    ("FP8_DYNAMIC", 64, False),
    ("FP8_BLOCK", 64, True),
    ("FP8_BLOCK", 128, True),
    ("FP8_BLOCK", 256, False),
    ("W4A16", 64, False),
    ("NVFP4A16", 64, False),
    ("W8A8", 64, False),
]


@pytest.mark.parametrize(("scheme", "head", "right"), TURNED)
def test_queries_and_keys_whose_scales_are_not_reordered_are_refused_and_drafts_keep_them(
    scheme: str, head: int, right: bool, tmp_path: Path
) -> None:
    params = {**DENSE, "head_dim": head, "n_heads": 256 // head * 2, "n_kv_heads": 256 // head}
    opened = open_directory(write_mistral(tmp_path / "source", params))
    everything = (
        "name: all\ndescription: all\nbase: {model: org/model, licence: apache-2.0}\nmethod: model_free_ptq\n"
        f"scheme: {scheme}\nignore: [output, 're:.*tok_emb.*']\nfused_groups: [[wq, wk, wv], [w1, w3]]\n"
    )
    assert ("serve/turned-rows" in raised(planned(opened, everything))) is not right
    plan = planned(opened, drafted(opened, scheme))
    assert raised(plan) == set()
    merged = {f"layers.{layer}.attention.{member}" for layer in range(2) for member in ("wq", "wk", "wv")}
    assert (merged <= plan.schemes.keys()) is right
    assert merged.isdisjoint(plan.schemes) is not right


def test_latent_attention_is_loaded_as_it_lies(source: Sources) -> None:
    opened = open_directory(source("moe"))
    plan = planned(opened, drafted(opened, "FP8_DYNAMIC"))
    assert raised(plan) == set()
    assert {"layers.0.attention.wq_a", "layers.0.attention.wkv_b"} <= plan.schemes.keys()


def test_towers_that_vllm_makes_unquantized_are_refused(source: Sources) -> None:
    opened = open_directory(source("vision"))
    recipe = drafted(opened).replace("  - re:.*vision_language_adapter.*\n", "")
    assert raised(planned(opened, recipe)) == {"quantize/vision"}


def test_experts_without_shared_ones_have_no_loader(tmp_path: Path) -> None:
    params = {**DENSE, "moe": {**MOE["moe"], "num_shared_experts": 0}}
    opened = open_directory(write_mistral(tmp_path / "source", params))
    text = drafted(open_directory(write_mistral(tmp_path / "other", {**DENSE, "moe": MOE["moe"]})))
    assert raised(planned(opened, text)) == {"serve/no-loader"}


# --- Mistral's own FP8


@pytest.mark.parametrize("activations", ["TENSOR", "NO_SCALES", None])
@pytest.mark.parametrize("kind", ["dense", "moe", "vision"])
def test_own_fp8_is_decoded_as_its_publisher_means_it_and_quantized_anew(
    kind: str, activations: str | None, tmp_path: Path, call_build: Command, call_validate: Command
) -> None:
    params, tensors = in_fp8(KINDS[kind], activations=activations)
    model = write_mistral(tmp_path / "source", params, tensors)
    assert call_validate(model).code == 0
    conversion = tmp_path / "floats.yaml"
    conversion.write_text(
        "name: floats\ndescription: BF16 of it\nbase: {model: org/model, licence: apache-2.0}\nmethod: convert\n"
        "convert: {dequantize: ['re:.*']}\n"
    )
    outcome = call_build(conversion, "--model", model, "--output", tmp_path / "floats")
    assert outcome.code == 0, outcome.err + outcome.out
    assert read_tensors(tmp_path / "floats") == meant(tensors)
    assert json.loads((tmp_path / "floats" / PARAMS).read_bytes()) == KINDS[kind]
    recipe = tmp_path / "draft.yaml"
    recipe.write_text(drafted(open_directory(model), "FP8_BLOCK"))
    for source, name in ((model, "codes"), (tmp_path / "floats", "of-floats")):
        outcome = call_build(recipe, "--model", source, "--output", tmp_path / name, "--audit")
        assert outcome.code == 0, outcome.err + outcome.out
    assert read_tensors(tmp_path / "codes") == read_tensors(tmp_path / "of-floats")


def meant(tensors: Any) -> Any:
    """What Mistral's FP8 stands for: a code times ``qscale_weight``, in BF16."""
    import torch

    from tests.checkpoints import RawTensor

    found = {}
    for name, tensor in tensors.items():
        if name.endswith(("qscale_weight", "qscale_act")):
            continue
        if tensor.dtype == "F8_E4M3":
            stored = tensors[name.replace(".weight", ".qscale_weight")]
            scale = torch.frombuffer(bytearray(stored.data), dtype=torch.float32)
            codes = torch.frombuffer(bytearray(tensor.data), dtype=torch.uint8).view(torch.float8_e4m3fn).float()
            values = (codes * scale).to(torch.bfloat16)
            found[name] = RawTensor("BF16", tensor.shape, values.view(torch.uint8).numpy().tobytes())
        else:
            found[name] = tensor
    return found


# --- locks, both forms, refusals


@pytest.mark.parametrize("kind", KINDS)
def test_lock_plans_as_the_directory_does(kind: str, source: Sources, tmp_path: Path) -> None:
    opened, path = open_directory(source(kind)), tmp_path / "lock.yaml"
    path.write_text(write_lock(opened))
    recipe = drafted(opened)
    from_lock, from_source = planned(open_lock(path), recipe), planned(opened, recipe)
    assert open_lock(path).form == opened.form
    assert from_lock.predicted.structure == from_source.predicted.structure
    assert from_lock.schemes == from_source.schemes
    declared = [sorted(plan.output_config()["quantization_config"]["ignore"]) for plan in (from_lock, from_source)]
    assert declared[0] == declared[1]


def test_both_forms_whole_are_read_in_hugging_faces(tmp_path: Path, call_build: Command) -> None:
    model = write_mistral(tmp_path / "source", DENSE)
    tensors = read_tensors(model)
    (model / "config.json").write_text(json.dumps(CONFIG_OF))
    rename_tensors(tensors, {name: f"model.{name}" for name in list(tensors)})
    write_shard(model / "model.safetensors", tensors)
    opened = open_directory(model)
    assert (opened.form.config, list(opened.shards)) == ("config.json", ["model.safetensors"])


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object] | bytes, str]] = {
    "no JSON": (b"{'dim': 1}", "not JSON"),
    "a list": (b"[]", "not a JSON object"),
    "nested too deeply": (b'{"dim": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "a key twice": (b'{"dim": 1, "dim": 2}', "stands twice"),
    "a number beyond all bounds": (b'{"dim": 1e999}', "too large"),
    "empty": (b"{}", "not in the words of Mistral's own config"),
    "no dim": (lambda params: params.pop("dim"), "not in the words of Mistral's own config"),
    "no layers": (lambda params: params.pop("n_layers"), "not in the words of Mistral's own config"),
    "a config.json": (lambda params: params.update(model_type="llama"), "not in the words of Mistral's own config"),
    "layers in a text": (lambda params: params.update(n_layers="2"), "n_layers cannot be '2'"),
    "NaN layers": (lambda params: params.update(n_layers=float("nan")), "n_layers cannot be 'nan'"),
    "true heads": (lambda params: params.update(n_heads=True), "n_heads cannot be 'True'"),
    "no heads": (lambda params: params.update(n_heads=0), "n_heads cannot be '0'"),
    "dim as a list": (lambda params: params.update(dim=[4096]), "dim cannot be '[4096]'"),
    "quantization as text": (lambda params: params.update(quantization="fp8"), "quantization is no mapping"),
    "quantization of MLX": (
        lambda params: params.update(quantization={"group_size": 64, "bits": 4}),
        "neither compressed-tensors nor fp8_e4m3",
    ),
    "FP8 by channels": (
        lambda params: params.update(quantization={"qformat_weight": "fp8_e4m3", "qscheme_act": "CHANNEL"}),
        "neither compressed-tensors nor fp8_e4m3",
    ),
    "FP8 with a key more": (
        lambda params: params.update(quantization={"qformat_weight": "fp8_e4m3", "rotate": True}),
        "unknown key 'rotate'",
    ),
    "FP8 of floats": (
        lambda params: params.update(quantization={"qformat_weight": "fp8_e4m3"}),
        "targets no module",
    ),
    "quantized twice": (
        lambda params: params.update(quantization={"qformat_weight": "fp8_e4m3"}, quantization_config={}),
        "says how it is quantized twice",
    ),
    "a pattern that does not compile": (
        lambda params: params.update(
            quantization={"quant_method": "compressed-tensors", "config_groups": {"FP8_DYNAMIC": ["re:("]}}
        ),
        "does not compile",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_params_that_cannot_be_are_one_sentence(case: str, tmp_path: Path, call_build: Command) -> None:
    model, recipe = write_mistral(tmp_path / "source", DENSE), tmp_path / "draft.yaml"
    recipe.write_text(drafted(open_directory(model)))
    change, phrase = HOSTILE[case]
    if isinstance(change, bytes):
        rewrite(model / PARAMS, change)
    else:
        edit_json(model / PARAMS, change)
    outcome = call_build(recipe, "--model", model, "--output", tmp_path / "build")
    assert outcome.code == 2, outcome
    assert phrase in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "build").exists()


def _add_config(model: Path) -> None:
    (model / "config.json").write_text(json.dumps(CONFIG_OF))


def _rename_shards(model: Path) -> None:
    write_tensors(model, tensors_of(DENSE))


def _add_shard(model: Path) -> None:
    (model / "consolidated.safetensors").rename(model / "consolidated-1.safetensors")
    write_shard(model / "consolidated-2.safetensors", {"a.weight": tensors_of(DENSE)["norm.weight"]})


def _rename_both(model: Path) -> None:
    _rename_shards(model)
    (model / PARAMS).rename(model / "config.json")


def _pickle(model: Path) -> None:
    (model / "consolidated.safetensors").rename(model / "consolidated.00.pth")


FORMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "both configs, and shards of the one alone": (_add_config, "both params.json and config.json"),
    "params.json, and shards of the other form": (_rename_shards, "has params.json, no config.json"),
    "several shards without an index": (_add_shard, "no consolidated.safetensors.index.json"),
    "params.json in the name of config.json": (_rename_both, "in the words of Mistral's params.json"),
    "pickles alone": (_pickle, "only pickled weights"),
}


@pytest.mark.parametrize("case", FORMS)
def test_forms_that_are_mixed_are_one_sentence(case: str, tmp_path: Path, call_validate: Command) -> None:
    model = write_mistral(tmp_path / "source", DENSE)
    FORMS[case][0](model)
    outcome = call_validate(model)
    assert outcome.code == 2, outcome
    assert FORMS[case][1] in outcome.err
    assert outcome.err.count("\n") == 1


def test_what_transformers_would_have_to_load_is_refused(
    source: Sources, tmp_path: Path, call_build: Command, call_validate: Command
) -> None:
    from tests.conftest import call_main
    from weighbridge.cli import evaluate

    recipe, build = tmp_path / "draft.yaml", tmp_path / "build"
    recipe.write_text(drafted(open_directory(source("dense"))))
    assert call_build(recipe, "--model", source("dense"), "--output", build).code == 0
    asked = call_main(evaluate.main, [build, "--source", source("dense")])
    recipe.write_text(recipe.read_text().replace("model_free_ptq", "oneshot").replace("FP8_DYNAMIC", "W4A16"))
    calibrated = call_build(recipe, "--model", source("dense"), "--plan")
    for outcome in (asked, calibrated):
        assert outcome.code == 2
        assert "is in Mistral's own form (params.json), of which transformers makes no model" in outcome.err
        assert outcome.err.count("\n") == 1


def test_modelopts_words_are_refused(tmp_path: Path, call_build: Command) -> None:
    model, recipe = write_mistral(tmp_path / "source", *in_fp8(DENSE)), tmp_path / "to.yaml"
    recipe.write_text(
        "name: to\ndescription: modelopt\nbase: {model: org/model, licence: apache-2.0}\nmethod: convert\n"
        "format: modelopt\nconvert: {dequantize: ['re:.*attention.*']}\n"
    )
    outcome = call_build(recipe, "--model", model, "--plan")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
