"""The formats of quantized checkpoints: what each stores for a weight, and how a config declares it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from weighbridge.formats import modelopt, schemes
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
"""What is written here, and measured against a base: by the name that ``quant_method`` has in config.json.
`codecs.CODECS` has what is decoded, `layouts.LAYOUTS` what is judged by names, dtypes and shapes."""
