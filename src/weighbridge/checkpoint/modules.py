"""The modules of a structure that a scheme can apply to, read off its tensor names.

Headers cannot tell a Linear from an Embedding, so the names that embeddings bear stand in a table
(families/units/common.yaml); a test holds it against models that transformers makes on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from weighbridge.errors import StructureError
from weighbridge.families import UNKNOWN
from weighbridge.formats.layouts import FUSED
from weighbridge.formats.tensors import FLOATING_SOURCES, Structure, Tensor
from weighbridge.text.names import MAX_NAMES

QUANTIZATION_PARAMETERS = frozenset(
    {
        "weight_packed",
        "weight_scale",
        "weight_scale_2",
        "weight_scale_inv",
        "weight_zero_point",
        "weight_global_scale",
        "weight_shape",
        "weight_g_idx",
        "input_scale",
        "input_zero_point",
        "input_global_scale",
        "output_scale",
        "output_zero_point",
        "pre_quant_scale",
        "qweight",
        "qzeros",
        "scales",
        "g_idx",
    }
)
"""Local names under which quantization stores things beside a weight, or for it: compressed-tensors', modelopt's,
DeepSeek's, AutoGPTQ's and AutoAWQ's."""

FUSED_SUFFIXES = ("_weight_scale_2", "_weight_scale", "_input_scale", "_scale_inv", "_blocks", "_scales")
"""What the tensors that belong to a fused expert tensor are called after it: modelopt's, transformers', gpt-oss'."""

FUSED_EXPERTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Names under which transformers keeps all experts of a layer as one [experts, out, in] tensor, and what llm-compressor
splits it into. Source: ``split_fused_moe_experts`` in llm-compressor 0.14.0.1."""

MAX_EXPERTS = 65_536
"""More than any model has; a hostile header claims as many as it likes, of no bytes."""

FUSED_WEIGHT = FUSED
"""The local name of a fused expert tensor, which has no ``.weight``."""


def split_parameter(name: str) -> tuple[str, str]:
    """A tensor name's module and local name: ``("a.b", "weight")`` for ``a.b.weight``."""
    module, _, parameter = name.rpartition(".")
    return module, parameter


def is_embedding(module: str) -> bool:
    """Whether a module of this name is an embedding: two axes like a linear, but no target of ``Linear``."""
    return UNKNOWN.is_embedding(module)  # names of embeddings are those of all families


def is_fused_experts(name: str, tensor: Tensor) -> bool:
    """Whether a tensor holds all experts of a layer: three axes and one of the names of `FUSED_EXPERTS`."""
    return len(tensor.shape) == 3 and any(part in FUSED_EXPERTS for part in name.rsplit(".", 2)[-2:])


class ExpertTensor(NamedTuple):
    """What one expert's linear is called once fused experts are split, and which rows of the fused tensor it is."""

    name: str
    tensor: Tensor
    expert: int
    first_row: int


def split_experts(name: str, tensor: Tensor) -> Iterator[ExpertTensor]:
    """Split a fused [experts, rows, columns] tensor (weights, or their scales) as llm-compressor does.

    ``experts.gate_up_proj`` becomes ``experts.0.gate_proj.weight``, ``experts.0.up_proj.weight``, ``experts.1…``; the
    first half of the rows is the gate.
    """
    experts, rows, columns = tensor.shape
    if experts > MAX_EXPERTS:
        raise StructureError(f"holds {experts:,} experts, more than any model", where=name)
    parts = name.split(".")
    position = next(index for index in range(len(parts) - 1, -1, -1) if parts[index] in FUSED_EXPERTS)
    members = FUSED_EXPERTS[parts[position]]
    if rows % len(members):
        raise StructureError(f"has {rows} rows, an odd number, of which one half should be the gate", where=name)
    prefix, parameter = ".".join(parts[:position]), parts[position + 1] if position + 1 < len(parts) else "weight"
    part = Tensor(tensor.dtype, (rows // len(members), columns))
    for expert in range(experts):
        for index, member in enumerate(members):
            yield ExpertTensor(f"{prefix}.{expert}.{member}.{parameter}", part, expert, index * part.shape[0])


def check_experts(structure: Structure, *, where: str) -> None:
    """Refuse fused experts that would be more tensors, one by one, than any checkpoint has.

    Raises:
        StructureError: with the first tensor that is too much.
    """
    count = 0
    for name, tensor in structure.items():
        if is_fused_experts(name, tensor):
            count += 2 * tensor.shape[0]
            if count > MAX_NAMES:
                raise StructureError(f"its experts are more than {MAX_NAMES:,} tensors (see {name[:80]})", where=where)


def quantizable_modules(structure: Structure) -> Mapping[str, Mapping[str, Tensor]]:
    """Every module that the target ``Linear`` could mean, with its tensors by local name.

    These are modules with a weight of two axes that are no embeddings, modules that carry anything that quantization
    stores, and fused experts (local name `FUSED_WEIGHT`, and with it the suffixes of what belongs to them; see
    `tensor_name`).
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in structure.items():
        module, parameter = split_parameter(name)
        fused = _fused_of(name, structure)
        if fused is not None:
            modules.setdefault(fused, {})[name.removeprefix(fused)] = tensor
        elif parameter in QUANTIZATION_PARAMETERS or (parameter == "scale" and _is_scaled(module, structure)):
            modules.setdefault(module, {})[parameter] = tensor
        elif parameter == "weight":
            if len(tensor.shape) == 2 and not is_embedding(module):
                modules.setdefault(module, {})[parameter] = tensor
        elif is_fused_experts(name, tensor):
            modules.setdefault(name, {})[FUSED_WEIGHT] = tensor
    for module in modules.keys() & {split_parameter(name)[0] for name in structure if name.endswith(".weight")}:
        modules[module].setdefault("weight", structure[f"{module}.weight"])
    return modules


def tensor_name(module: str, local: str) -> str:
    """The name of a module's tensor: a fused one's own, what belongs to it with a suffix, any other after a dot."""
    return f"{module}.{local}" if local and not local.startswith("_") else f"{module}{local}"


def _fused_of(name: str, structure: Structure) -> str | None:
    """The fused expert tensor that a tensor of this name belongs to by its suffix; None where it does to none."""
    if not name.endswith(("scale", "scale_2", "scale_inv", "blocks", "scales", "bias")):
        return None
    for suffix in (*FUSED_SUFFIXES, "_bias"):
        fused = name.removesuffix(suffix)
        if fused != name and fused.rpartition(".")[2] in FUSED_EXPERTS:
            belongs = suffix != "_bias" or f"{fused}_blocks" in structure or f"{fused}_scales" in structure
            return fused if belongs else None
    return None


def _is_scaled(module: str, structure: Structure) -> bool:
    """Whether a module's ``scale`` is that of codes, as in DeepSeek V4: others have a parameter of this name, too."""
    weight = structure.get(f"{module}.weight")
    coded = weight is not None and len(weight.shape) == 2 and weight.dtype not in FLOATING_SOURCES
    return coded or structure[f"{module}.scale"].dtype == "F8_E8M0"
