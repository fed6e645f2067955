"""What a calibration by layer takes: its figures by hand, beside what one takes, and what too little memory says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import RawTensor, edit_tensors
from tests.conftest import Once, run_script
from tests.test_layerwise import ALL, METHODS, by_layer, planned
from tests.tiny import write_tiny
from tests.toy_models import TOYS
from weighbridge.checkpoint.opening import open_checkpoint
from weighbridge.engines.layerwise import memory
from weighbridge.engines.layerwise.activations import Activations
from weighbridge.engines.layerwise.memory import USUAL_ROOM, room_for_hessians
from weighbridge.errors import BuildError, WeighbridgeError
from weighbridge.linting import lint
from weighbridge.planning import make_plan
from weighbridge.planning.calibrating import Needs, calibration_needs
from weighbridge.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

# Of 12 samples of 48 tokens in batches of 4; a model 128 wide, of 4 heads, BF16.
ATTENTION = 2 * 128 * (128 + 64 + 64 + 128) + 2 * 2 * 128  # with its two norms
LLAMA = ATTENTION + 3 * 2 * 128 * 192
ALL_OF_LLAMA = 2 * LLAMA + 2 * 2 * 256 * 128 + 2 * 128
EXPERTS = ATTENTION + 4 * 3 * 2 * 128 * 96 + 2 * 4 * 128
BATCH = 4 * 4 * 48 * (3 * 4 * 48 + 12 * 128)
BETWEEN = 2 * 12 * 48 * (3 * 128 + 2 * 48)
FIGURES = {
    ("llama", "FP8, nothing calibrated"): Needs(LLAMA, 0, 0, 0, 0),
    ("llama", "NVFP4"): Needs(LLAMA, 0, BATCH, 0, BETWEEN),
    ("llama", "W4A16 by GPTQ"): Needs(LLAMA, 4 * (6 * 128**2 + 192**2), BATCH, 0, BETWEEN),
    ("qwen3-moe", "NVFP4"): Needs(max(EXPERTS + 2 * 2 * 32, LLAMA + 2 * 2 * 32), 0, BATCH, 0, BETWEEN),
    ("llama", "W4A16 by AWQ"): Needs(LLAMA, 0, BATCH, 2 * 12 * 48 * (6 * 128 + 192 + 48), BETWEEN + ALL_OF_LLAMA),
}


@pytest.mark.parametrize(("toy", "method"), FIGURES, ids=str)
def test_needs_are_those_that_a_hand_computes(toy: str, method: str, once: Once, tmp_path: Path) -> None:
    plan = planned(once(f"toy-{toy}", TOYS[toy]), METHODS[method], tmp_path)
    assert calibration_needs(plan) == FIGURES[toy, method]


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*.safetensors") if "shards" not in path.parts) + sum(
        path.stat().st_size for path in directory.glob("activations/*/*/*")
    )


@pytest.mark.parametrize("method", ["NVFP4", "W8A8, smoothed, by GPTQ"])
def test_no_more_disk_is_taken_than_was_computed(
    method: str, once: Once, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    put = Activations.put

    def measured(self: Activations, batch: int, values: Any) -> dict[str, str]:
        digests = put(self, batch, values)
        sizes.append(size_of(tmp_path / "layers"))
        return digests

    monkeypatch.setattr(Activations, "put", measured)
    plan = planned(once("toy-llama", TOYS["llama"]), METHODS[method], tmp_path)
    by_layer(plan, tmp_path / "layers")
    assert 0 < max(sizes) <= calibration_needs(plan).disk


@pytest.mark.parametrize("toy", ["llama", "qwen2"])
def test_awq_holds_no_more_of_all_samples_than_was_computed(
    toy: str, once: Once, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmcompressor.modifiers.transform.awq import AWQModifier

    sizes: list[int] = []
    smooth, run_samples = AWQModifier._apply_smoothing, AWQModifier._run_samples

    def measured(self: Any, model: Any) -> None:
        sizes.append(sum(sum(cache.size().values()) for cache in self._parent_args_cache.values()))
        smooth(self, model)

    def ran(self: Any, module: Any) -> list[torch.Tensor]:
        outputs: list[torch.Tensor] = run_samples(self, module)
        beside.append(2 * sum(output.nbytes for output in outputs))  # of the weights as they are, and rounded
        return outputs

    beside: list[int] = []
    monkeypatch.setattr(AWQModifier, "_apply_smoothing", measured)
    monkeypatch.setattr(AWQModifier, "_run_samples", ran)
    plan = planned(once(f"toy-{toy}", ALL[toy]), METHODS["W4A16 by AWQ"], tmp_path)
    by_layer(plan, tmp_path / "layers")
    kept = calibration_needs(plan).kept
    assert kept / 2 < max(sizes) + max(beside) <= kept


# --- room -------------------------------------------------------------------------------------------------------------

NEEDS = Needs(layer=100, hessians=30, batch=20, kept=5, disk=0)
"""255 bytes beside what is held."""


@pytest.mark.parametrize(
    ("needs", "limit", "room"),
    [
        pytest.param(NEEDS, None, USUAL_ROOM, id="the usual"),
        pytest.param(Needs(0, USUAL_ROOM + 1, 0, 0, 0), None, USUAL_ROOM + 1, id="what one expert needs"),
        pytest.param(NEEDS, 1255, 30, id="just enough"),
        pytest.param(NEEDS, 1300, 75, id="what is over"),
    ],
)
def test_hessians_have_what_the_rest_leaves(
    needs: Needs, limit: int | None, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "resident", lambda: 1000)
    monkeypatch.setattr(memory, "HELD", 900)
    assert room_for_hessians(needs, limit) == room


def test_too_little_memory_is_refused_with_what_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "resident", lambda: 1000)
    monkeypatch.setattr(memory, "HELD", 900)
    with pytest.raises(WeighbridgeError, match="1,254 bytes of memory are too little") as refused:
        room_for_hessians(NEEDS, 1254)
    assert refused.value.remedy == "allow 1,255 bytes or more"


# --- values between layers --------------------------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "nothing": None,
    "numbers": [True, 7, -0.5, float("inf"), "text"],
    "a dtype and a device": (torch.bfloat16, torch.device("cpu")),
    "nested": {"pair": (torch.ones(2), [torch.zeros(1, dtype=torch.bool)]), "empty": {}},
    "BF16": torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16),
    "complex": torch.tensor([1 + 2j]),
    "one number": torch.tensor(3),
    "a view": torch.arange(6).reshape(2, 3).T,
    "the same row again": torch.arange(3).expand(4, 3),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and torch.equal(one.contiguous().flatten().view(torch.uint8), other.flatten().view(torch.uint8))
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    kept = Activations(tmp_path, {"value": "value"}, torch.device("cpu"))
    kept.put(0, {"value": VALUES[name]})
    assert same(VALUES[name], kept.get(0, ["value"])["value"])


def test_a_value_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="a value of type slice passes between its layers"):
        Activations(tmp_path, {"value": "value"}, torch.device("cpu")).put(0, {"value": slice(3)})


def test_a_calibration_is_not_shared_out_to_a_cluster(tmp_path: Path) -> None:
    arguments = ("nvfp4", "--model", "mini", "--executor", "ray", "--ray", "local", "--output", tmp_path / "build")
    outcome = run_script("build.py", *arguments)
    assert (outcome.code, list(tmp_path.iterdir())) == (2, [])
    assert "cannot be shared out to a cluster" in outcome.err and "leave out --executor ray" in outcome.err


@pytest.mark.parametrize(("name", "found"), [("model.layers.0.self_attn.rotary_emb.inv_freq", True), ("x.y", False)])
def test_stored_frequencies_are_refused_by_the_plan(name: str, found: bool, tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "model")
    edit_tensors(model, lambda tensors: tensors.update({name: RawTensor("F32", (4,), bytes(16))}), shards=2)
    loaded = load_recipe(str(written(tmp_path)))
    rules = {finding.rule for finding in lint(make_plan(loaded, open_checkpoint(str(model))))}
    assert ("calibration/computed" in rules) == found


def written(directory: Path) -> Path:
    """A recipe of method oneshot for the tiny Llama."""
    path = directory / "tried.yaml"
    path.write_text(
        "name: tried\ndescription: tried\nbase: {model: org/tiny, licence: mit}\nmethod: oneshot\n"
        "scheme: FP8_DYNAMIC\nignore: [lm_head, 're:.*embed.*', 're:.*norm.*']\n"
    )
    return path
