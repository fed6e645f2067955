"""How much a build hides: the bits of what is stored that neither its base nor its recipe explains.

What is exact follows from the base: nothing can be hidden in it. Elsewhere, whoever made the build had a choice, by
calibration or by ill will, and the entropy of what was chosen bounds what can lie in it. Codes are held against the
nearest under the stored scales, apart by how far the weight is from its nearest place: honest compensation seldom moves
a code whose weight lies on it. docs/explanation/audit.md has the limits that honest builds keep.
"""

from __future__ import annotations

from weighbridge.auditing.judge import Judged, Verdict
from weighbridge.auditing.measure import Measure
from weighbridge.auditing.moves import entropy
from weighbridge.auditing.pairing import KeptPair, QuantizedPair
from weighbridge.formats.tensors import DTYPE_BITS

_EXPLAINED = frozenset({Verdict.IDENTICAL, Verdict.EXACT, Verdict.RECOMPUTED, Verdict.DEQUANTIZED})


def bits_of_module(item: QuantizedPair, seen: Measure, judged: Judged) -> float:
    """Bits a weight of a quantized module that are not explained: of its codes, and of scales beside the recipe's.

    Of a smoothed module every scale counts: factors are recovered from them. Of a scheme that is not known here, and of
    a base that holds NaN, all that is stored.
    """
    if judged.verdict in _EXPLAINED or not seen.elements:
        return 0.0
    if not seen.moves:
        stored = (region.tensor for region in item.stored.values())
        return sum(tensor.parameters * DTYPE_BITS[tensor.dtype] for tensor in stored) / item.weight.parameters
    args, scale = item.scheme.weights, DTYPE_BITS[item.stored["weight_scale"].tensor.dtype]
    each = scale + (0 if args.symmetric else args.num_bits)
    chosen = seen.scales if seen.unpredicted else seen.different_scales
    return entropy(seen.moves, args.num_bits) + (each * chosen + seen.for_nothing) / seen.elements


def bits_of_kept(item: KeptPair, judged: Judged) -> int:
    """Bits of a kept tensor that are not explained: all, where it is not a copy of the base's."""
    tensor = item.stored.tensor
    return 0 if judged.verdict in _EXPLAINED else tensor.parameters * DTYPE_BITS[tensor.dtype]
