"""vLLM's own quantization of what a recipe names: which layers its expressions mean, and how its bytes differ."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.checkpoints import read_tensors
from tests.conftest import call_main
from tests.mistral_native import KINDS, write_mistral
from tests.reference_locks import reference_lock
from tests.serving_answers import serving_python
from tests.test_plan import planned
from tests.vllm_online import ROUNDS
from weighbridge import api
from weighbridge.checkpoint.model import open_directory
from weighbridge.cli import online as online_command
from weighbridge.errors import BuildError
from weighbridge.extras.serving.answer import ServingError
from weighbridge.formats.schemes import PRESETS
from weighbridge.linting.drafting import draft_recipe
from weighbridge.numbers import load_kernels
from weighbridge.planning import Plan, make_plan
from weighbridge.planning.online import NAMES, online
from weighbridge.recipe import read_recipe
from weighbridge.recipe.catalogue import recipe_names
from weighbridge.text.names import expert_of

Bits = npt.NDArray[np.uint16]
KEPT = ["lm_head", "re:.*embed.*", "re:.*router", "re:.*vision_tower.*", "re:.*norm.*"]
EIGHT_BITS = [name for name in recipe_names() if name.endswith(("/fp8-dynamic", "/fp8-block", "/mxfp4"))]


def layers(plan: Plan) -> dict[str, bool]:
    """What vLLM asks about, by the name that it has in vLLM, and whether the plan quantizes it.

    vLLM calls ``model.language_model`` ``language_model.model`` and knows the experts of a layer as one.
    """
    found = {}
    for part in plan.parts:
        if len(part.weight.shape) > 1:
            expert = expert_of(part.module)
            name = expert[0] if expert else re.sub(r"[.]experts[.].*", ".experts", part.module)
            found[re.sub(r"^model[.]language_model", "language_model.model", name)] = part.scheme is not None
    return found


@pytest.mark.parametrize("recipe", EIGHT_BITS)
def test_expressions_mean_what_the_recipe_quantizes_and_nothing_else(recipe: str) -> None:
    loaded = api.load_recipe(recipe)
    source = api.locked_source(loaded)
    if source is None:
        pytest.skip("no structure lock of its base is here")
    plan = api.plan(loaded, source)
    if source.declaration is not None:
        with pytest.raises(BuildError, match="is quantized already"):
            online(plan)
        return
    targets = online(plan).targets
    meant = {
        name: [target for target in targets if re.match(target.removeprefix("re:"), name)] for name in layers(plan)
    }
    assert {name: len(found) for name, found in meant.items()} == {
        n: int(quantized) for n, quantized in layers(plan).items()
    }


def test_layers_that_differ_in_their_numbers_alone_are_told_apart_by_these(tmp_path: Path) -> None:
    first = r"re:.*layers\.(0|29)\..*"
    plan = planned(tmp_path, reference_lock("google/gemma-4-26B-A4B-it"), ignore=[*KEPT, first], scheme="FP8_DYNAMIC")
    targets = [re.compile(target.removeprefix("re:")) for target in online(plan).targets]
    for name, quantized in layers(plan).items():
        assert sum(target.match(name) is not None for target in targets) == quantized, name


def test_layers_of_mistrals_own_form_are_named_as_vllm_calls_them(tmp_path: Path) -> None:
    for kind, params in KINDS.items():
        opened = open_directory(write_mistral(tmp_path / kind, params))
        text = draft_recipe(
            opened, model="org/model", licence="mit", path=Path("recipes/a/b.yaml"), scheme="FP8_DYNAMIC"
        )
        plan = make_plan(read_recipe(text.text.encode(), where="b.yaml"), opened)
        targets = [re.compile(target.removeprefix("re:")) for target in online(plan).targets]
        for part in plan.parts:
            if len(part.weight.shape) == 2:
                name = re.sub(r"(?<=[.]experts)[.].*", "", opened.family.in_vllm(part.module))
                assert sum(target.match(name) is not None for target in targets) == (part.scheme is not None), name


IN_PART: dict[str, tuple[str, str]] = {
    # entry of what is kept, what vLLM holds as one
    "one expert of a layer": (r"re:.*layers\.3\.experts\.5\..*", "layers.3.experts"),
    "one linear of each expert": (r"re:.*experts\.[0-9]+\.down_proj", "layers.0.experts"),
    "one of what is merged with the queries": (r"re:.*layers\.2\.self_attn\.k_proj", "layers.2.self_attn.qkv_proj"),
    "one of two merged linears": (r"re:.*layers\.2\.mlp\.up_proj", "layers.2.mlp.gate_up_proj"),
}


@pytest.mark.parametrize("case", IN_PART)
def test_what_vllm_holds_as_one_and_the_recipe_quantizes_in_part_is_refused_whatever_it_allows(
    case: str, tmp_path: Path
) -> None:
    entry, whole = IN_PART[case]
    allow = [f"fused/{rule} because the test allows it" for rule in ("experts-differ", "partly-ignored")]
    source = reference_lock("google/gemma-4-26B-A4B-it")
    plan = planned(tmp_path, source, ignore=[*KEPT, entry], scheme="FP8_DYNAMIC", allow=allow)
    with pytest.raises(BuildError, match="holds experts of a layer, and merged linears, as one") as refused:
        online(plan)
    assert str(refused.value.where).endswith(whole)


REFUSED = {
    "scales of a KV cache": ("fp8-dynamic-kv8", "KV cache"),
    "integers of four bits": ("w4a16", "vLLM cannot make weights int4"),
    "NVFP4 under a static scale of activations": ("nvfp4", "vLLM cannot make weights float4"),
    "weights alone": ("nvfp4a16", "vLLM cannot make weights float4"),
}


@pytest.mark.parametrize(("recipe", "why"), REFUSED.values(), ids=REFUSED)
def test_what_vllm_cannot_do_while_it_loads_is_refused(recipe: str, why: str) -> None:
    loaded = api.load_recipe(recipe)
    source = api.locked_source(loaded)
    assert source is not None
    with pytest.raises(BuildError, match=why):
        online(api.plan(loaded, source))


def test_heads_are_no_linears_to_vllm(tmp_path: Path) -> None:
    source = reference_lock("meta-llama/Llama-3.1-8B-Instruct")
    plan = planned(tmp_path, source, ignore=["re:.*embed.*", "re:.*norm.*"], scheme="FP8_DYNAMIC")
    with pytest.raises(BuildError, match="is no linear to vLLM"):
        online(plan)


def test_scales_that_are_searched_for_are_refused(tmp_path: Path) -> None:
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "observer": "memoryless_mse"}
    inputs = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    plan = planned(tmp_path, reference_lock("google/gemma-4-26B-A4B-it"), ignore=KEPT, config_groups=groups)
    with pytest.raises(BuildError, match="scales chosen by memoryless_mse"):
        online(plan)


# --- its bytes beside those of a build ---


@pytest.fixture(scope="module")
def weights(mini: Path) -> list[Bits]:
    """Linears of the miniature, as bit patterns of BF16, without zeros of either sign."""
    found = []
    for name, tensor in read_tensors(mini).items():
        if name.endswith(("_proj.weight", "experts.gate_up_proj", "experts.down_proj")) and tensor.dtype == "BF16":
            found.append(np.frombuffer(tensor.data, np.uint16).reshape(-1, tensor.shape[-1]).copy())
    assert found
    return found


def widened(
    bits: Bits,
) -> npt.NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded_to_bf16(
    values: npt.NDArray[np.float32],
) -> Bits:
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize("way", ["fp8_per_channel", "fp8_per_block"])
def test_scales_of_a_build_are_those_of_vllm_rounded_to_bf16(way: str, weights: list[Bits]) -> None:
    preset = next(scheme for scheme in PRESETS.values() if scheme in NAMES[way])
    differing = total = 0
    for bits in weights:
        stored = load_kernels("cpu").quantize(bits, "BF16", preset)
        scales, codes = ROUNDS[way](widened(bits))
        assert (stored["weight_scale"].reshape(-1) == rounded_to_bf16(scales.astype(np.float32)).reshape(-1)).all()
        differing += int((stored["weight"] != codes).sum())
        total += codes.size
    assert 0 < differing < total / 8  # codes follow the scales: next to a tie, the neighbour


@pytest.mark.parametrize("way", ["mxfp8", "mxfp4"])
def test_exponents_and_codes_are_those_of_vllm_but_where_the_docs_say(way: str, weights: list[Bits]) -> None:
    preset = next(scheme for scheme in PRESETS.values() if scheme in NAMES[way])
    blocks = 0
    for bits in weights:
        stored = load_kernels("cpu").quantize(bits, "BF16", preset)
        scales, codes = ROUNDS[way](widened(bits))
        largest = (bits & 0x7FFF).reshape(len(bits), -1, 32).max(axis=2)
        # 7/4 of a power of two, which MXFP8 tells apart, or nothing but zeros.
        named = ((largest & 0x7F) == 0x60) if way == "mxfp8" else np.zeros(largest.shape, np.bool_)
        named |= largest == 0
        assert (stored["weight_scale"] == scales)[~named].all()
        ours = stored["weight"] if way == "mxfp8" else unpacked(stored["weight_packed"])
        same = (ours == codes) | (bits == 0x8000)  # minus zero
        assert same.reshape(len(bits), -1, 32).all(axis=2)[~named].all()
        blocks += int((~named).sum())
    assert blocks


def unpacked(
    packed: npt.NDArray[np.uint8],
) -> npt.NDArray[np.uint8]:
    return np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(len(packed), -1)


# --- the command ---


def test_command_writes_a_call_and_what_differs(mini: Path) -> None:
    outcome = call_main(online_command.main, ["fp8-dynamic"])
    assert outcome.code == 0
    assert outcome.out.startswith("vllm serve google/gemma-4-26B-A4B-it --revision ")
    assert "fp8_per_channel: scales stay F32" in outcome.out


def test_command_writes_the_configuration_alone() -> None:
    outcome = call_main(online_command.main, ["mxfp4", "--format", "json"])
    assert outcome.code == 0
    assert set(json.loads(outcome.out)["targets"].values()) == {"mxfp4"}


def test_command_refuses_in_one_sentence() -> None:
    outcome = call_main(online_command.main, ["w4a16"])
    assert outcome.code == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1


# --- with vLLM itself ---

ASKED = """
import json, sys
import torch
from vllm.config.quantization import resolve_quantization_config
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization.online.base import OnlineQuantizationConfig
from vllm.model_executor.layers.quantization.online.fp8 import _fp8_channel_scale, _fp8_quant_per_channel
from vllm.model_executor.layers.quantization.utils.mxfp8_utils import _mxfp8_e4m3_quantize_torch
from vllm.model_executor.layers.quantization.utils.quant_utils import weight_amax
from vllm.utils.deep_gemm import per_block_cast_to_fp8

asked = json.load(open(sys.argv[1]))
config = OnlineQuantizationConfig(resolve_quantization_config("online", asked["config"]))
config.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
kinds = {"linear": LinearBase, "experts": RoutedExperts}
said = {}
for name, kind in asked["layers"].items():
    found = config.resolve_quant_method_cls(kinds[kind], name)
    said[name] = None if found is None else found[1]
weight = torch.tensor(asked["weight"], dtype=torch.float32).to(torch.bfloat16)
scale = _fp8_channel_scale(weight_amax(weight, dim=-1, keepdim=True))
blocks, block_scale = per_block_cast_to_fp8(weight, block_size=[128, 128], use_ue8m0=False)
mx, mx_scale = _mxfp8_e4m3_quantize_torch(weight)
rounded = {
    "fp8_per_channel": [scale.tolist(), _fp8_quant_per_channel(weight, scale).view(torch.uint8).tolist()],
    "fp8_per_block": [block_scale.tolist(), blocks.view(torch.uint8).tolist()],
    "mxfp8": [mx_scale.tolist(), mx.view(torch.uint8).tolist()],
}
json.dump({"layers": said, "rounded": rounded}, open(sys.argv[2], "w"))
"""


@pytest.mark.campaign
def test_vllm_reads_the_configuration_and_rounds_as_the_second_implementation(tmp_path: Path) -> None:
    try:
        python = serving_python()
    except ServingError as error:
        pytest.skip(str(error))
    plan = api.plan("fp8-dynamic", reference_lock("google/gemma-4-26B-A4B-it"))
    merged = {
        re.sub(r"[qkv]_proj$", "qkv_proj", re.sub(r"(gate|up)_proj$", "gate_up_proj", name)): quantized
        for name, quantized in layers(plan).items()
        if name.startswith("language_model.model.layers.") and not name.endswith("router.proj")
    }
    weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32) * 0.02
    bits = rounded_to_bf16(weight)
    asked = {
        "config": online(plan).config,
        "layers": {name: "experts" if name.endswith(".experts") else "linear" for name in merged},
        "weight": widened(bits).tolist(),
    }
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    (tmp_path / "asked.py").write_text(ASKED)
    call = [python, tmp_path / "asked.py", tmp_path / "asked.json", tmp_path / "said.json"]
    subprocess.run(call, check=True, capture_output=True)
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["layers"] == {name: "fp8_per_channel" if quantized else None for name, quantized in merged.items()}
    for way, (scales, codes) in said["rounded"].items():
        ours_scales, ours_codes = ROUNDS[way](widened(bits))
        assert (ours_codes == np.array(codes)).all(), way
        assert (ours_scales == np.array(scales, ours_scales.dtype).reshape(ours_scales.shape)).all(), way
