"""What kinds of sections reports have: the one list of their ids, which docs/reference/json-report.md explains."""

from __future__ import annotations

from typing import Literal

SectionId = Literal[
    # plan and lint
    "plan",
    "lint",
    "calibration-needs",
    "capacity",
    # a build
    "source",
    "build",
    "calibration",
    "global-scales",
    "scales",
    "licence",
    "earlier-run",
    "left-behind",
    # a checkpoint by its headers and files
    "cause",
    "structure",
    "serving-rules",
    "account",
    "against-plan",
    "against-reference",
    "weights-unread",
    # an audit
    "schemes",
    "audit",
    "quantized-weights",
    "kept-tensors",
    "dropped-and-added",
    "against-build",
    # two checkpoints side by side
    "diff-bytes",
    "diff-files",
    "diff-tensors",
    "diff-settings",
    # evidence
    "evidence-listing",
    "evidence-files",
    "evidence-tensors",
    "evidence-signatures",
    "evidence-statements",
    "evidence-source",
    "evidence-provenance",
    "evidence-results",
    "evidence-card",
    "evidence-bom",
    "evidence-reports",
    "builders-word",
    "chain",
    # a policy
    "policy",
    # building again and publishing
    "rebuild-environment",
    "rebuild-inputs",
    "rebuild-failed",
    "rebuild-bytes",
    "upload",
    # answers
    "text",
    "answers",
    "answers-compared",
    "role-costs",
    "bits-and-divergence",
    "task",
    # serving
    "loading",
    "generation",
    "agreement-served",
    "agreement-exact",
    "agreement-transformers",
    "source-served",
    "throughput-single",
    "throughput-concurrent",
]
"""One id names a kind of section, and stays whatever its title says; several sections of a report may share it."""
