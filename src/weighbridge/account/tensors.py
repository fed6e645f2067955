"""Every tensor of a checkpoint, by what its name, dtype and shape were held against."""

from __future__ import annotations

from collections.abc import Iterator

from weighbridge.account.base import Base
from weighbridge.account.keys import NOTHING_TO_HOLD_AGAINST
from weighbridge.account.model import Judged, Kind, State
from weighbridge.account.quantization import PLAN
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import tensor_name
from weighbridge.planning import Plan

BY_STRUCTURE = "name, dtype, shape and scheme"


def judge_tensors(checkpoint: Checkpoint, base: Base | None, plan: Plan | None, reference: str) -> Iterator[Judged]:
    """The tensors, grouped by what they were held against.

    Args:
        base: whose weights the audit compares with these.
        reference: how a checkpoint is called whose structure they are compared with; empty for none.
    """
    names = tuple(checkpoint.structure)
    if plan is not None:
        yield Judged(Kind.TENSOR, State.HELD, f"{PLAN} ({BY_STRUCTURE})", names)
    elif base is not None:
        yield Judged(Kind.TENSOR, State.HELD, f"{base.name}, by the numbers", names)
    elif reference:
        yield Judged(Kind.TENSOR, State.HELD, f"{reference} ({BY_STRUCTURE})", names)
    else:
        stored = ((module, local) for module in checkpoint.schemes for local in checkpoint.modules.get(module, ()))
        names_of_schemes = (tensor_name(module, local) for module, local in stored)
        scheme = [name for name in names_of_schemes if name in checkpoint.structure]
        rest = checkpoint.structure.keys() - set(scheme)
        if scheme:
            by = f"the scheme that {checkpoint.form.config} declares"
            yield Judged(Kind.TENSOR, State.FOLLOWS, by, tuple(scheme))
        if rest:
            yield Judged(Kind.TENSOR, State.NOT_JUDGED, NOTHING_TO_HOLD_AGAINST, tuple(sorted(rest)))
