"""The modules of a structure that a scheme can apply to, read off its tensor names.

Headers cannot tell a Linear from an Embedding, so the names that embeddings bear stand in a table
(families/units/common.yaml); a test holds it against models that transformers makes on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from weighbridge.errors import StructureError
from weighbridge.families import UNKNOWN, Experts, Family
from weighbridge.formats.layouts import FUSED
from weighbridge.formats.tensors import FLOATING_SOURCES, Structure, Tensor
from weighbridge.machine.columns import Columns
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
        "activation_scale",
        "output_scale",
        "output_zero_point",
        "pre_quant_scale",
        "qweight",
        "qzeros",
        "scales",
        "g_idx",
        "qscale_weight",
        "qscale_act",
    }
)
"""Local names under which quantization stores things beside a weight, or for it: compressed-tensors', modelopt's,
DeepSeek's, transformers', AutoGPTQ's, AutoAWQ's and Mistral's."""

FUSED_SUFFIXES = ("_weight_scale_2", "_weight_scale", "_input_scale", "_scale_inv", "_blocks", "_scales")
"""What the tensors that belong to a fused expert tensor are called after it: modelopt's, transformers', gpt-oss'."""

FUSED_EXPERTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Names under which transformers keeps all experts of a layer as one [experts, out, in] tensor, and what llm-compressor
splits it into. Source: ``split_fused_moe_experts`` in llm-compressor 0.14.0.1."""

_FUSED = tuple(FUSED_EXPERTS)

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


@dataclass(frozen=True, slots=True)
class FusedExperts:
    """How the linears of a layer's experts lie in one tensor [experts, …].

    Attributes:
        prefix: name of what holds the experts one by one: ``layers.0.mlp.experts``.
        members: names of the linears in each expert's matrix, in their order.
        parameter: what the tensor is of each linear: ``weight``, ``bias``, ``weight_scale``, ``blocks``.
        transposed: whether each matrix lies [in, out].
        step: from one row of a linear to its next: more than 1 where the rows of several linears are interleaved.
    """

    prefix: str
    members: tuple[str, ...]
    parameter: str = "weight"
    transposed: bool = False
    step: int = 1


class ExpertTensor(NamedTuple):
    """What one expert's linear is called once fused experts are split, and which rows of its matrix it is.

    Attributes:
        first_row: its first row, of a transposed matrix its first column.
        step: from one of them to the next.
        transposed: whether the matrix lies [in, out].
    """

    name: str
    tensor: Tensor
    expert: int
    first_row: int
    step: int = 1
    transposed: bool = False


class Place(NamedTuple):
    """A tensor, or some rows of one expert of a fused [experts, rows, columns] tensor.

    Attributes:
        tensor: its name.
        expert: index along the first axis; None for the whole tensor.
        first_row: where the rows begin along the second axis.
        step: from one row to the next.
        transposed: whether the matrix lies [columns, rows].
    """

    tensor: str
    expert: int | None = None
    first_row: int = 0
    step: int = 1
    transposed: bool = False

    def columns(self, matrix: Sequence[int]) -> Columns | None:
        """How the rows lie in the matrix that holds them, of this shape; None where they lie one after the other."""
        if self.transposed:
            return Columns(self.first_row, self.step, matrix[-1])
        return Columns(self.first_row, self.step, matrix[0], prod(matrix[1:])) if self.step > 1 else None


def place_of(tensor: str, part: ExpertTensor) -> Place:
    """Where one expert's linear lies in a fused tensor."""
    return Place(tensor, part.expert, part.first_row, part.step, part.transposed)


def is_fused_experts(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is called as transformers calls those that hold all experts of a layer, and has three axes."""
    return len(tensor.shape) == 3 and any(part in FUSED_EXPERTS for part in name.rsplit(".", 2)[-2:])


def fused_experts(structure: Structure, family: Family) -> dict[str, FusedExperts]:
    """The tensors of a structure that hold all experts of a layer, and how the experts lie in each.

    A family says what they are called and how they lie; where the shapes of a layer fit [out, in] alone, or [in, out]
    alone, they decide. What no family describes is as transformers has it: [experts, out, in], gate before up.
    """
    found = {}
    ends = tuple(end for layout in family.experts for end in _ends(layout))
    for name, tensor in structure.items():
        described = None
        if name.endswith(ends):
            described = next((layout for layout in family.experts if _is_called(name, layout)), None)
        if described is not None:
            fused = _described(name, described, structure)
            if len(tensor.shape) == _AXES.get(fused.parameter, 3):
                found[name] = fused
        elif len(tensor.shape) == 3 and is_fused_experts(name, tensor):
            found[name] = _usual(name)
    return found


_BESIDE = ("bias", "blocks", "scales")
"""What a described tensor has beside its weights, or in their place: ``gate_up_proj_bias``."""
_AXES = {"bias": 2, "blocks": 4}


def _is_called(name: str, layout: Experts) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in _ends(layout))


def _ends(layout: Experts) -> tuple[str, ...]:
    """What the names of a layout's tensors end with."""
    return (layout.tensor, *(f"{layout.tensor}_{parameter}" for parameter in _BESIDE))


def _usual(name: str) -> FusedExperts:
    """How transformers' own fused experts, and what quantization stores beside them, lie."""
    parts = name.split(".")
    position = next(index for index in range(len(parts) - 1, -1, -1) if parts[index] in FUSED_EXPERTS)
    parameter = parts[position + 1] if position + 1 < len(parts) else "weight"
    return FusedExperts(".".join(parts[:position]), FUSED_EXPERTS[parts[position]], parameter)


def _described(name: str, layout: Experts, structure: Structure) -> FusedExperts:
    """How a described tensor lies; codes and their exponents lie row by row, whatever the axes of weights are."""
    parameter = next((parameter for parameter in _BESIDE if name.endswith(f"_{parameter}")), "weight")
    before = name.removesuffix(f"_{parameter}").removesuffix(layout.tensor)
    holder = layout.into or layout.tensor.rpartition(".")[0]
    turned = parameter == "weight" and _is_transposed(f"{before}{layout.tensor}", layout, structure)
    step = len(layout.members) if layout.order == "interleaved" else 1
    return FusedExperts(f"{before}{holder}", layout.members, parameter, turned, step)


def _is_transposed(name: str, layout: Experts, structure: Structure) -> bool:
    """Whether a layer's matrices lie [in, out]: by their shapes where only one of the two is possible."""
    parent = name.rpartition(".")[0]
    gate_up, down = structure.get(f"{parent}.gate_up_proj"), structure.get(f"{parent}.down_proj")
    if gate_up is None or down is None or len(gate_up.shape) != 3 or len(down.shape) != 3:
        return layout.axes == "in_out"
    upright = gate_up.shape[1:] == (2 * down.shape[2], down.shape[1])
    turned = gate_up.shape[1:] == (down.shape[2], 2 * down.shape[1])
    return turned if upright != turned else layout.axes == "in_out"


def split_experts(name: str, tensor: Tensor, fused: FusedExperts) -> Iterator[ExpertTensor]:
    """Split a fused tensor (weights, biases, or scales of weights) into those of each expert's linears.

    ``experts.gate_up_proj`` becomes ``experts.0.gate_proj.weight``, ``experts.0.up_proj.weight``, ``experts.1…``.

    Raises:
        StructureError: more experts than any model has, or rows that cannot be shared out.
    """
    experts, *matrix = tensor.shape
    if experts > MAX_EXPERTS:
        raise StructureError(f"holds {experts:,} experts, more than any model", where=name)
    rows, *columns = reversed(matrix) if fused.transposed else matrix
    count = len(fused.members)
    if rows % count:
        raise StructureError(f"has {rows} rows, an odd number, of which one half should be the gate", where=name)
    part = Tensor(tensor.dtype, (rows // count, *columns))
    for expert in range(experts):
        for index, member in enumerate(fused.members):
            first = index if fused.step > 1 else index * part.shape[0]
            full = f"{fused.prefix}.{expert}.{member}.{fused.parameter}"
            yield ExpertTensor(full, part, expert, first, fused.step, fused.transposed)


def check_experts(structure: Structure, fused: Mapping[str, FusedExperts], *, where: str) -> None:
    """Refuse fused experts that would be more tensors, one by one, than any checkpoint has.

    Args:
        fused: as `fused_experts` finds them.

    Raises:
        StructureError: with the first tensor that is too much.
    """
    count = 0
    for name, layout in fused.items():
        count += len(layout.members) * structure[name].shape[0]
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
        fused = _fused_of(name, structure) if parameter.startswith(_FUSED) else None
        if fused is not None:
            modules.setdefault(fused, {})[name.removeprefix(fused)] = tensor
        elif parameter in QUANTIZATION_PARAMETERS or (parameter == "scale" and _is_scaled(module, structure)):
            modules.setdefault(module, {})[parameter] = tensor
        elif parameter == "weight":
            if len(tensor.shape) == 2 and not is_embedding(module):
                modules.setdefault(module, {})[parameter] = tensor
        elif is_fused_experts(name, tensor):
            modules.setdefault(name, {})[FUSED_WEIGHT] = tensor
    for module, found in modules.items():
        if "weight" not in found and f"{module}.weight" in structure:
            found["weight"] = structure[f"{module}.weight"]
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
