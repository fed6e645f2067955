"""Declarative, provable quantization of LLM checkpoints.

    import weighbridge as wb

    plan = wb.plan("fp8-dynamic", "mini")
    assert wb.lint(plan).holds
    report = wb.build("fp8-dynamic", "mini", Path("builds/x"), audit=True)
    print(report.verdict)

`weighbridge.api` documents each function. Nothing is imported before it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from weighbridge.version import __version__

if TYPE_CHECKING:
    from weighbridge.api import (
        audit,
        build,
        diff,
        gate,
        lint,
        load_recipe,
        online,
        open_checkpoint,
        plan,
        reproduce,
        validate,
        verify,
    )
    from weighbridge.checkpoint.model import Checkpoint
    from weighbridge.checks.capacity.accounting import Demand
    from weighbridge.errors import (
        BuildError,
        DatasetError,
        EvidenceError,
        HubError,
        PolicyError,
        RecipeError,
        StructureError,
        WeighbridgeError,
    )
    from weighbridge.evidence import Signer
    from weighbridge.evidence.signing import Verifier
    from weighbridge.machine.resources import Resources
    from weighbridge.planning import Plan
    from weighbridge.planning.online import Online
    from weighbridge.policy import Judged
    from weighbridge.progress import Progress
    from weighbridge.recipe import LoadedRecipe
    from weighbridge.report import Finding, Report, Section, Severity

_ROOMS = {
    **dict.fromkeys(
        (
            *("audit", "build", "diff", "gate", "lint", "load_recipe", "online", "open_checkpoint", "plan"),
            *("reproduce", "validate", "verify"),
        ),
        "api",
    ),
    "Checkpoint": "checkpoint.model",
    "Demand": "checks.capacity.accounting",
    "Finding": "report",
    "Judged": "policy",
    "LoadedRecipe": "recipe",
    "Online": "planning.online",
    "Plan": "planning",
    "Progress": "progress",
    "Report": "report",
    "Resources": "machine.resources",
    "Section": "report",
    "Severity": "report",
    "Signer": "evidence",
    "Verifier": "evidence.signing",
    **dict.fromkeys(
        (
            *("BuildError", "DatasetError", "EvidenceError", "HubError", "PolicyError", "RecipeError"),
            "StructureError",
            "WeighbridgeError",
        ),
        "errors",
    ),
}
"""Public name -> the module that has it."""

__all__ = [
    "BuildError",
    "Checkpoint",
    "DatasetError",
    "Demand",
    "EvidenceError",
    "Finding",
    "HubError",
    "Judged",
    "LoadedRecipe",
    "Online",
    "Plan",
    "PolicyError",
    "Progress",
    "RecipeError",
    "Report",
    "Resources",
    "Section",
    "Severity",
    "Signer",
    "StructureError",
    "Verifier",
    "WeighbridgeError",
    "__version__",
    "audit",
    "build",
    "diff",
    "gate",
    "lint",
    "load_recipe",
    "online",
    "open_checkpoint",
    "plan",
    "reproduce",
    "validate",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'weighbridge' has no attribute {name!r}")
    return getattr(import_module(f"weighbridge.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
