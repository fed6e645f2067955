"""Whether vLLM has a way to compute with a scheme, as compressed-tensors stores it.

Source: ``CompressedTensorsConfig._get_scheme_from_parts`` of vLLM 0.32.0, the parameters that its schemes ask for, and
its list of kernels (``model_executor/kernels/linear``).
"""

from __future__ import annotations

from collections.abc import Mapping

from weighbridge.formats.schemes import QuantizationArgs, Scheme

INTEGER_GROUP_SIZES = (32, 64, 128)
"""Group sizes of integer weights that vLLM's Marlin kernels know (``MARLIN_SUPPORTED_GROUP_SIZES``)."""
MARLIN_BITS = (4, 8)
"""Sizes of integer weights that they know."""

_NOTHING = "vLLM 0.32 has nothing that computes with it, and refuses to load it"


def unserved(scheme: Scheme) -> str:
    """Why vLLM cannot compute with a scheme; empty where it can."""
    weights = scheme.weights
    if weights.type == "int":
        return _integers(weights, scheme.input_activations, scheme.output_activations)
    return _floats(weights, scheme.input_activations)


def _integers(weights: QuantizationArgs, inputs: QuantizationArgs | None, outputs: QuantizationArgs | None) -> str:
    by_group = weights.strategy in ("channel", "group")
    if inputs is None:
        return "" if by_group and 2 <= weights.num_bits <= 8 else _NOTHING
    if by_group and _is_static_int8(inputs) and outputs is not None and _is_static_int8(outputs):
        return ""
    given = (weights.num_bits, weights.strategy, inputs.type, inputs.num_bits, inputs.strategy, inputs.dynamic)
    if not weights.symmetric:
        return _NOTHING
    if given in _INT8:
        return ""
    return _NEARLY.get(given, _NOTHING)


_INT8 = [
    (8, strategy, "int", 8, *inputs)
    for strategy in ("tensor", "channel")
    for inputs in (("token", True), ("tensor", False))
]
_NEARLY: Mapping[tuple[object, ...], str] = {
    **dict.fromkeys(
        [(4, strategy, "int", 8, "token", True) for strategy in ("channel", "group")],
        "vLLM 0.32 has kernels for it on CPUs and Intel's GPUs alone",
    ),
    (4, "group", "float", 8, "token", True): (
        f"{_NOTHING}: it wants two codes in a byte, and compressed-tensors stores one"
    ),
}
"""Bits and strategy of weights; type, bits, strategy and moment of activations -> what stands against them."""


def _floats(weights: QuantizationArgs, inputs: QuantizationArgs | None) -> str:
    if weights.strategy == "tensor_group":
        alike = inputs is None or (inputs.num_bits, inputs.strategy, inputs.group_size) == (4, "tensor_group", 16)
        return "" if alike else f"{_NOTHING}: NVFP4 weights go with NVFP4 activations, or with none"
    if weights.group_size == 32:
        return "" if weights.num_bits == 4 or weights.scale_dtype == "torch.uint8" else _NOTHING
    return "" if weights.symmetric and weights.strategy in ("tensor", "channel", "block") else _NOTHING


def _is_static_int8(args: QuantizationArgs) -> bool:
    return (args.type, args.num_bits, args.strategy, args.dynamic) == ("int", 8, "tensor", False)
