"""What a checkpoint's bytes are spent on, by role, layer and scheme, and why: what its report draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import FUSED_WEIGHT, split_parameter, tensor_name
from weighbridge.families import Role
from weighbridge.formats.tensors import Tensor
from weighbridge.report import Area, Areas
from weighbridge.text.names import layer_of


def bytes_by_role(checkpoint: Checkpoint, decided: Mapping[str, str], reasons: Mapping[str, str]) -> Areas:
    """Bytes of every tensor of a checkpoint, scales with their codes.

    Args:
        decided: what decided how a tensor is stored, by its name; nothing where there is no plan.
        reasons: why, by what decided it.
    """
    sizes: Counter[tuple[Role, int | None, str, bool, str]] = Counter()
    layers: dict[str, int | None] = {}
    for name, module, tensor, role, kind in kinds_of_tensors(checkpoint):
        if module not in layers:
            layers[module] = layer_of(module)
        sizes[role, layers[module], kind or f"kept {tensor.dtype}", not kind, decided.get(name, "")] += tensor.nbytes
    order = list(Role)
    ordered = sorted(
        sizes.items(), key=lambda item: (order.index(item[0][0]), -1 if item[0][1] is None else item[0][1])
    )
    return Areas(
        "bytes of the checkpoint, by role and layer",
        tuple(
            Area(str(role), "" if layer is None else f"layer {layer}", kind, size, kept, by)
            for (role, layer, kind, kept, by), size in ordered
        ),
        dict(reasons),
    )


def kinds_of_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, str, Tensor, Role, str]]:
    """Every tensor with its module (its own name where it has none), its role, and what its module is quantized to.

    That is empty where it is not quantized.
    """
    family, schemes, words = checkpoint.family, checkpoint.schemes, dict[int, str]()
    # Scales of fused experts are called after their tensor, and not as parameters of a module.
    fused = {
        tensor_name(module, local): module
        for module in schemes
        for local in checkpoint.modules.get(module, ())
        if local == FUSED_WEIGHT or local.startswith("_")
    }
    roles: dict[str, Role] = {}
    for name, tensor in checkpoint.structure.items():
        module = split_parameter(name)[0] or name
        role = roles.get(module)
        if role is None:
            role = roles[module] = family.role_of(module)
        scheme = schemes.get(module) or schemes.get(fused.get(name, ""))
        if scheme is None:
            yield name, module, tensor, role, ""
            continue
        if id(scheme) not in words:
            words[id(scheme)] = str(scheme.weights)
        yield name, module, tensor, role, words[id(scheme)]
