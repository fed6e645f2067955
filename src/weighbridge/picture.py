"""What a checkpoint's bytes are spent on, by role, layer and scheme: what its report draws."""

from __future__ import annotations

from collections import Counter

from weighbridge.report import Area, Areas
from weighbridge.roles import Role, layer_of, role_of
from weighbridge.structure.checkpoint import Checkpoint
from weighbridge.structure.modules import split_parameter


def bytes_by_role(checkpoint: Checkpoint) -> Areas:
    """Bytes of every tensor of a checkpoint, scales with their codes."""
    sizes: Counter[tuple[Role, int | None, str]] = Counter()
    for name, tensor in checkpoint.structure.items():
        module = split_parameter(name)[0]
        scheme = checkpoint.schemes.get(module) or checkpoint.schemes.get(name)
        kind = str(scheme.weights) if scheme is not None else f"kept {tensor.dtype}"
        sizes[role_of(module or name), layer_of(name), kind] += tensor.nbytes
    order = list(Role)
    ordered = sorted(
        sizes.items(), key=lambda item: (order.index(item[0][0]), -1 if item[0][1] is None else item[0][1])
    )
    return Areas(
        "bytes of the checkpoint, by role and layer",
        tuple(
            Area(str(role), "" if layer is None else f"layer {layer}", kind, size)
            for (role, layer, kind), size in ordered
        ),
    )
