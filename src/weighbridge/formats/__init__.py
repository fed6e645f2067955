"""The formats of quantized checkpoints: what each stores for a weight, and how a config declares it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from weighbridge.formats import fp8, modelopt, schemes
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import Tensor


@dataclass(frozen=True)
class Format:
    """One way of storing quantized modules.

    Attributes:
        stored_tensors: scheme, weight ([out, in], float) -> local name -> dtype and shape of what is stored; raises
            SchemeMismatch where that cannot be.
        weight_of: scheme, what is stored -> the weight that it must have been made of, or None.
    """

    stored_tensors: Callable[[Scheme, Tensor], dict[str, Tensor]]
    weight_of: Callable[[Scheme, Mapping[str, Tensor]], Tensor | None]


FORMATS: Mapping[str, Format] = {
    "compressed-tensors": Format(schemes.stored_tensors, schemes.weight_of),
    modelopt.METHOD: Format(modelopt.stored_tensors, modelopt.weight_of),
}
"""What is written here, and decoded: by the name that ``quant_method`` has in config.json. `layouts.LAYOUTS` has those
that are judged by names, dtypes and shapes alone."""

DECODED: Mapping[str, Callable[[Scheme, Mapping[str, Tensor]], Tensor | None]] = {
    **{method: form.weight_of for method, form in FORMATS.items()},
    fp8.METHOD: fp8.weight_of,
}
"""What is turned into numbers here, and what weight each method's tensors were made of; some of it is only read."""
