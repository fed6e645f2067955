"""The verdict of a build that holds, which a verifier says again."""

from __future__ import annotations

from collections.abc import Sequence

from weighbridge.base.identity import Identity
from weighbridge.report import Section


def build_verdict(subject: str, tensors: int, references: Sequence[Section], source: str, identity: Identity) -> str:
    """What a build's own report comes to.

    Args:
        tensors: how many it has.
        references: the sections of what it was held against, beside its plan.
        source: what its source is called.
    """
    held = "; ".join(f"{section.title}: {section.summary}" for section in references)
    against = held or "no reference was named for this base, so it was held against its plan alone"
    said = f"{tensors:,} tensors as planned; {against}; the source {source}: {identity.sentence}"
    return f"{subject} is built and holds: {said}"
