"""Which rows of a base each stored tensor of a quantized checkpoint must come from, read off the two structures alone.

Both sides are taken one expert at a time, whether they store experts one by one or fused, so that what comes from the
same rows has the same name on both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from weighbridge.checkpoint.consistency import check_consistent
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import (
    QUANTIZATION_PARAMETERS,
    FusedExperts,
    is_embedding,
    place_of,
    split_experts,
    split_parameter,
)
from weighbridge.checkpoint.readable import check_decoded, check_measured
from weighbridge.errors import StructureError
from weighbridge.formats import FORMATS
from weighbridge.formats.observers import search_of
from weighbridge.formats.schemes import Scheme, SchemeMismatch
from weighbridge.formats.tensors import FLOATING_SOURCES, Tensor
from weighbridge.planning import FusedGroup
from weighbridge.work.regions import Region, coded_rows, rows_at, tensor_regions

ATTENTION_SCALES = frozenset({"k_scale", "v_scale", "q_scale"})
HEAD = "lm_head"

OF_SUPPLIER, OF_RECIPE = "its own config.json", "the recipe"

_SCALE_DTYPES = frozenset({"BF16", "F16", "F32"})


@dataclass(frozen=True, slots=True)
class QuantizedPair:
    """A quantized module and the rows of the base that it must have been made of.

    Attributes:
        name: the module; of fused experts, as it would be called one by one.
        scheme: what config.json says that it is quantized with.
        form: whose way of storing it is: ``compressed-tensors`` or ``modelopt``.
        source: the weight in the base, [out, in] of a float dtype.
        stored: local name -> where it lies in the checkpoint.
        derived_from: name of the base's tensor, where that is not the module's own weight (a tied head).
        observed_by: who says by which observer the scheme's scales were chosen: `OF_SUPPLIER` or `OF_RECIPE`.
    """

    name: str
    scheme: Scheme
    form: str
    source: Region
    stored: Mapping[str, Region]
    derived_from: str = ""
    observed_by: str = OF_SUPPLIER

    @property
    def weight(self) -> Tensor:
        """Dtype and shape of the weight itself."""
        return self.source.tensor

    @property
    def is_searched_on_its_word(self) -> bool:
        """Whether nobody but the supplier says how its scales were searched for, and with which arguments."""
        return self.observed_by == OF_SUPPLIER and search_of(self.scheme.weights) is not None


@dataclass(frozen=True, slots=True)
class KeptPair:
    """A tensor that is stored as a float, and what it must be a copy of.

    Attributes:
        name: the tensor in the checkpoint.
        copy_of: name of the base's tensor, where that is another.
    """

    name: str
    source: Region
    stored: Region
    copy_of: str = ""


Pair = QuantizedPair | KeptPair


@dataclass(frozen=True)
class Pairing:
    """A checkpoint beside its base.

    Attributes:
        pairs: everything that can be compared, in the order of the base's bytes.
        dropped: names of the base's tensors that nothing in the checkpoint comes from.
        added: names of the checkpoint's tensors that come from no tensor of the base.
        mismatched: name -> why what is stored cannot be a quantization, or a copy, of what the base has there.
        groups: linears that servers merge under one global scale.
    """

    pairs: tuple[Pair, ...]
    dropped: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    mismatched: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[FusedGroup, ...] = ()


def pair(checkpoint: Checkpoint, base: Checkpoint, groups: Sequence[FusedGroup] = ()) -> Pairing:
    """Say what every tensor of `checkpoint` must come from in `base`.

    Raises:
        StructureError: experts that cannot be split, two tensors of one name once they are, or codes that are not
            decoded here.
    """
    check_decoded(base)
    if base.declaration is not None:
        check_consistent(base)
    source, stored = _as_floats(base, regions(base)), regions(checkpoint)
    schemes = schemes_of(checkpoint)
    modules = modules_of(stored, schemes)
    pairs: list[Pair] = []
    mismatched: dict[str, str] = {}
    used: set[str] = set()
    taken: set[str] = set()
    for module, locals_ in modules.items():
        name = _origin(f"{module}.weight", source)
        if name is None or not is_quantized(locals_):
            continue  # compared as it stands, below
        used.add(name)
        taken.update(f"{module}.{local}" for local in locals_)
        form = checkpoint.declaration.quant_method if checkpoint.declaration else ""
        why = _objection(form, schemes[module], source[name].tensor, locals_)
        if why:
            mismatched[module] = why
        else:
            other = "" if name == f"{module}.weight" else name
            pairs.append(QuantizedPair(module, schemes[module], form, source[name], locals_, other))
    added: list[str] = []
    for name, region in stored.items():
        if name in taken:
            continue
        origin = _origin(name, source)
        if origin is None:
            added.append(name)
        elif source[origin].tensor != region.tensor:
            used.add(origin)
            mismatched[name] = f"is {region.tensor}; the base has {source[origin].tensor}"
        else:
            used.add(origin)
            pairs.append(KeptPair(name, source[origin], region, "" if origin == name else origin))
    pairs.sort(key=lambda item: (item.source.file, item.source.offset))
    return Pairing(
        pairs=tuple(pairs),
        dropped=tuple(name for name in source if name not in used),
        added=tuple(added),
        mismatched=mismatched,
        groups=tuple(groups),
    )


def _as_floats(base: Checkpoint, found: dict[str, Region]) -> dict[str, Region]:
    """What a base holds, each module that its publisher quantized as the one weight that its codes mean."""
    floats = {name: region for name, region in found.items() if name not in base.dropped}
    tensors = tensor_regions(base)
    for modules in base.coded.values():
        for module, item in modules.items():
            assert item.coded is not None  # or the base would be refused
            for local in item.places:
                floats.pop(f"{module}.{local}", None)
            floats[f"{module}.weight"] = coded_rows(module, item.coded, item.places, tensors)
    return floats


def regions(checkpoint: Checkpoint) -> dict[str, Region]:
    """Where every tensor of a checkpoint lies, experts one by one.

    Raises:
        StructureError: fused experts that cannot be split, or two tensors of one name.
    """
    found: dict[str, Region] = {}
    tensors = tensor_regions(checkpoint)
    for name, whole in tensors.items():
        for part, region in _experts(name, whole, checkpoint.fused_experts.get(name), tensors):
            if part in found:
                raise StructureError(f"two of its tensors are {part!r} once experts are split", where=checkpoint.label)
            found[part] = region
    return found


def _experts(
    name: str, whole: Region, fused: FusedExperts | None, tensors: Mapping[str, Region]
) -> Iterator[tuple[str, Region]]:
    if fused is None:
        yield name, whole
        return
    for part in split_experts(name, whole.tensor, fused):
        yield part.name, rows_at(place_of(name, part), tensors, part.tensor.shape[0])


def modules_of(stored: Mapping[str, Region], schemes: Mapping[str, Scheme]) -> dict[str, dict[str, Region]]:
    """The modules that have a scheme, with what is stored of each by local name."""
    found: dict[str, dict[str, Region]] = {}
    for name, region in stored.items():
        module, local = split_parameter(name)
        if module in schemes and local in QUANTIZATION_PARAMETERS | {"weight"}:
            found.setdefault(module, {})[local] = region
    return found


def schemes_of(checkpoint: Checkpoint) -> dict[str, Scheme]:
    """Module -> scheme, with experts one by one.

    Raises:
        StructureError: its codes are not measured here.
    """
    check_measured(checkpoint)
    found: dict[str, Scheme] = {}
    for module, scheme in checkpoint.schemes.items():
        fused = checkpoint.fused_experts.get(module)
        if fused is not None:
            parts = split_experts(module, checkpoint.structure[module], fused)
            found.update((split_parameter(part.name)[0], scheme) for part in parts)
        else:
            found[module] = scheme
    return found


def is_quantized(locals_: Mapping[str, Region]) -> bool:
    weight = locals_.get("weight")
    return weight is None or weight.tensor.dtype not in FLOATING_SOURCES


def _origin(name: str, source: Mapping[str, Region]) -> str | None:
    """The base's tensor that a tensor of this name must come from.

    A head that the base does not store is tied to its embedding; llm-compressor 0.11 and 0.12 left experts without
    ``.weight``.
    """
    if name in source:
        return name
    if f"{name}.weight" in source:
        return f"{name}.weight"
    if split_parameter(name) == (HEAD, "weight"):
        embeddings = [
            other
            for other in source
            if other.endswith("embed_tokens.weight") and is_embedding(split_parameter(other)[0])
        ]
        return min(embeddings, key=len, default=None)
    return None


def _objection(form: str, scheme: Scheme, weight: Tensor, stored: Mapping[str, Region]) -> str:
    """Why `stored` cannot be `weight` quantized by `scheme`, or nothing."""
    if weight.dtype not in FLOATING_SOURCES:
        return f"the base's weight is {weight}, of which nothing is quantized"
    try:
        expected = FORMATS[form].stored_tensors(scheme, weight)
    except SchemeMismatch as mismatch:
        return f"its weight, {weight} in the base, cannot be quantized so: {mismatch}"
    for local, tensor in expected.items():
        if local.startswith(("input_", "output_")):
            continue  # scales of activations are judged by themselves
        if local not in stored:
            return f"has no {local}"
        found = stored[local].tensor
        free = local == "weight_scale" and tensor.dtype in _SCALE_DTYPES and found.dtype in _SCALE_DTYPES
        if found.shape != tensor.shape or (found.dtype != tensor.dtype and not free):
            return f"{local} is {found}; the base's weight, {weight}, would have {tensor}"
    surplus = next((local for local in stored if local.startswith("weight") and local not in expected), None)
    return "" if surplus is None else f"has {surplus}, which its scheme does not store"
