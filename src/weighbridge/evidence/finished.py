"""What a build says of itself when it is done: everything that its evidence is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from weighbridge.base.identity import Identity
from weighbridge.base.references import AgainstReference
from weighbridge.base.source import MADE, MINIATURE
from weighbridge.checkpoint.model import Checkpoint, Origin
from weighbridge.evidence.card import BaseModel
from weighbridge.planning import Plan
from weighbridge.progress import Stage
from weighbridge.recipe import Recipe
from weighbridge.report import Report, Section
from weighbridge.samples import miniature

MAIN_REPORT = "report"
"""The report of the build itself, among the reports by name."""

AUDIT_REPORT = "audit"
"""The report of the audit, where there was one."""

QUALITY_REPORT = "quality"
"""That of the build's answers beside the source's, where the recipe states limits."""


@dataclass(frozen=True)
class FinishedBuild:
    """A finished build, before its evidence is written.

    Attributes:
        plan: what was to be built, with the recipe.
        source: the checkpoint that was quantized, on disk.
        identity: who the source is, with the digests of its shards.
        references: what the build was held against.
        reports: by name, ``report`` for the build's own, ``audit`` and ``quality``; all hold.
        shard_digests: SHA-256 (hex) of each output shard.
        tensor_digests: SHA-256 (hex) of each output tensor's bytes.
        engine: what made the numbers: ``streaming``, ``layerwise`` or ``upstream``.
        device: the kind of device that did the arithmetic, e.g. ``cpu``.
        shard_size: bytes of tensors at which a new shard was begun.
        named_references: what ``--reference`` named, if anything.
        named_files: names or patterns of files that were taken over beside what a model needs.
        started: when the build began, with its time zone.
        stages: what was done when.
        calibration: what calibration really used, as a mapping of plain values; None where nothing was calibrated.
    """

    plan: Plan
    source: Checkpoint
    identity: Identity
    references: Sequence[AgainstReference]
    reports: Mapping[str, Report]
    shard_digests: Mapping[str, str]
    tensor_digests: Mapping[str, str]
    engine: str
    device: str
    shard_size: int
    started: datetime
    named_references: Sequence[str] = ()
    named_files: Sequence[str] = ()
    stages: Sequence[Stage] = field(default_factory=tuple)
    calibration: Mapping[str, Any] | None = None

    @property
    def base(self) -> BaseModel:
        return base_model(self.identity, self.source.origin, self.model, self.plan.loaded.recipe)

    @property
    def model(self) -> str:
        """What ``--model`` named, without the directory that it lay in."""
        return called(self.source)


def base_model(identity: Identity, origin: Origin, model: str, recipe: Recipe) -> BaseModel:
    """The base by its name on the hub and what is proven of it; a verifier names it by this very function.

    A proven base has the name that it was published under, wherever it was fetched from.

    Args:
        origin: the repository and revision that the source was fetched from; an empty one where it was not.
        model: what the source is called; see `called`.
    """
    claim = identity.claim
    if claim.proven:
        return BaseModel(claim.repository, claim.revision, claim)
    if origin.repository:
        return BaseModel(origin.repository, origin.revision, claim)
    if claim.repository:
        return BaseModel(claim.repository, "", claim)
    return BaseModel(miniature.NAME if model == MINIATURE else recipe.base.model, "", claim)


def called(source: Checkpoint) -> str:
    """A source by its hub id, as one that is made on the spot, or by the name of its directory alone."""
    if source.origin.repository:
        return source.origin.repository
    made = source.label.partition(",")[0]
    if made in MADE:
        return made
    return re.split(r"[/\\]", source.label.rstrip("/\\"))[-1]


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
