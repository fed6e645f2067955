"""What a checkpoint's bytes are spent on, by role, layer and scheme, and why: what its report draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import split_parameter, tensor_name
from weighbridge.families import Role
from weighbridge.formats.schemes import Scheme
from weighbridge.report import Area, Areas
from weighbridge.text.names import layer_of


def bytes_by_role(checkpoint: Checkpoint, decided: Mapping[str, str], reasons: Mapping[str, str]) -> Areas:
    """Bytes of every tensor of a checkpoint, scales with their codes.

    Args:
        decided: what decided how a tensor is stored, by its name; nothing where there is no plan.
        reasons: why, by what decided it.
    """
    sizes: Counter[tuple[Role, int | None, str, bool, str]] = Counter()
    family, schemes = checkpoint.family, schemes_by_tensor(checkpoint)
    kinds = {id(scheme): str(scheme.weights) for scheme in checkpoint.schemes.values()}
    for name, tensor in checkpoint.structure.items():
        module = split_parameter(name)[0]
        scheme = schemes.get(name) or checkpoint.schemes.get(module)
        kind = kinds[id(scheme)] if scheme is not None else f"kept {tensor.dtype}"
        by = decided.get(name, "")
        sizes[family.role_of(module or name), layer_of(module or name), kind, scheme is None, by] += tensor.nbytes
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


def schemes_by_tensor(checkpoint: Checkpoint) -> dict[str, Scheme]:
    """The scheme of each tensor that stores a quantized module, by its name."""
    return {
        tensor_name(module, local): scheme
        for module, scheme in checkpoint.schemes.items()
        for local in checkpoint.modules.get(module, ())
    }
