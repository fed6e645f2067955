"""vLLM's own choice of how to compute with a scheme, and what lint says of it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.planning import KEPT, broken_rules, plan, recipe
from tests.serving_answers import serving_python
from weighbridge.extras.serving.answer import ServingError
from weighbridge.formats.compressed_tensors import read_scheme
from weighbridge.formats.schemes import PRESETS, Scheme, to_config
from weighbridge.linting.vllm_kernels import unserved

UNSERVED = ("W4AFP8", "W2A8", "W3A8", "W4A8", "W5A8", "W6A8", "W7A8", "W2A4", "W3A4", "W4A4")

ASKING = """\
import json, sys
from compressed_tensors.quantization import QuantizationArgs
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
config = CompressedTensorsConfig.__new__(CompressedTensorsConfig)
found = {}
for name, group in json.load(sys.stdin).items():
    parts = [group[key] and QuantizationArgs.model_validate(group[key]) for key in KEYS]
    try:
        config._get_scheme_from_parts(*parts, format=group["format"], layer_name="x")
    except (NotImplementedError, AttributeError):  # the latter of weights alone, while it looks at their activations
        found[name] = False
    except (AssertionError, ValueError):  # that it is found, and that this machine has no kernel for it
        found[name] = True
    else:
        found[name] = True
print("found", json.dumps(found))
""".replace("KEYS", "('weights', 'input_activations', 'output_activations')")


def spelled(weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> Scheme:
    return read_scheme({"weights": weights, **({"input_activations": inputs} if inputs else {})}, where="group")


INT8 = {"num_bits": 8, "type": "int"}
FP8 = {"num_bits": 8, "type": "float"}
SCHEMES = {
    **PRESETS,
    "integers in blocks": spelled({**INT8, "strategy": "block", "block_structure": [128, 128]}),
    "one scale of integers": spelled({**INT8, "strategy": "tensor"}),
    "W8A8 with zero points": spelled(
        {**INT8, "strategy": "channel", "symmetric": False}, {**INT8, "strategy": "token", "dynamic": True}
    ),
    "W8A8 static": spelled({**INT8, "strategy": "channel"}, {**INT8, "strategy": "tensor"}),
    "W8A8 by tensor as they arrive": spelled(
        {**INT8, "strategy": "channel"}, {**INT8, "strategy": "tensor", "dynamic": True}
    ),
    "FP8 by row alone": spelled({**FP8, "strategy": "channel"}),
    "FP8 in groups": spelled({**FP8, "strategy": "group", "group_size": 128}),
}


def test_presets_that_vllm_cannot_compute_with_are_these() -> None:
    assert tuple(name for name, scheme in PRESETS.items() if unserved(scheme)) == UNSERVED


@pytest.mark.parametrize("name", PRESETS)
def test_a_plan_says_whether_vllm_can_compute_with_a_preset(name: str) -> None:
    group = {key: value for key, value in to_config(PRESETS[name]).items() if value is not None and key != "format"}
    weights = group["weights"]
    if weights["type"] == "int" and weights["group_size"] is not None:
        weights["group_size"] = 32  # which divides the miniature's widths
    made = plan(recipe(KEPT, scheme=None, config_groups={"all": {"targets": ["Linear"], **group}}, method="oneshot"))
    assert ("serve/no-kernel" in broken_rules(made)) is (name in UNSERVED)


@pytest.mark.campaign
def test_vllm_itself_finds_nothing_for_what_lint_says_it_has_nothing_for() -> None:
    try:
        python = serving_python()
    except ServingError as error:
        pytest.skip(str(error))
    configs = {name: to_config(scheme) for name, scheme in SCHEMES.items()}
    command = [str(python), "-c", ASKING]
    done = subprocess.run(command, input=json.dumps(configs), capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    found = json.loads(line.removeprefix("found "))
    # Of W4A8 it has kernels for CPUs, of which this vLLM is one.
    assert {name for name, has in found.items() if not has} == {
        name for name, scheme in SCHEMES.items() if unserved(scheme) and name != "W4A8"
    }
