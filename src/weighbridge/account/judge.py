"""Making the account of a checkpoint."""

from __future__ import annotations

from dataclasses import replace

from weighbridge.account.base import Base
from weighbridge.account.files import judge_files, judge_lock
from weighbridge.account.model import Account, account_of
from weighbridge.account.redirects import redirects
from weighbridge.account.tensors import judge_tensors
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.planning import Plan


def judge(
    checkpoint: Checkpoint, *, base: Base | None = None, plan: Plan | None = None, reference: str = ""
) -> Account:
    """Everything that a checkpoint holds, each in one state.

    What its tensors are is compared elsewhere (plan, references, audit); here stands that they were.

    Args:
        base: the model that it was made from, as far as it is at hand.
        plan: what a recipe makes of that base.
        reference: how another checkpoint is called whose structure it is held against.

    Raises:
        StructureError, HubError: a file of either side cannot be read.
    """
    files = account_of(judge_files(checkpoint, base, plan) if checkpoint.shards else judge_lock(checkpoint, base))
    tensors = tuple(judge_tensors(checkpoint, base, plan, reference))
    elsewhere = redirects(checkpoint, base.checkpoint.config if base is not None else None)
    return replace(files, judged=(*files.judged, *tensors), findings=(*files.findings, *elsewhere))
