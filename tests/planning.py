"""Recipes as tests write them, planned against the locks of the repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from weighbridge.lint import lint
from weighbridge.plan import Plan, make_plan
from weighbridge.recipe import load_recipe
from weighbridge.report import Finding
from weighbridge.structure.checkpoint import Checkpoint
from weighbridge.structure.lock import open_lock

ROOT = Path(__file__).resolve().parents[1]
REAL = "references/google/gemma-4-26B-A4B-it.yaml"
MINI = "references/weighbridge/gemma-4-mini.yaml"
ODD = "tests/data/odd-parts.yaml"
TRANSPOSED = "tests/data/transposed-experts.yaml"

KEPT = ("lm_head", "re:.*embed.*", "re:.*router", "re:.*vision_tower.*", "re:.*norm.*")
"""The ignore list of the main recipe: with it, nothing of Gemma 4 26B-A4B is quantized that should not be."""
KEPT_OF_ODD = ("lm_head", "re:.*embed.*", "re:.*gate$", "re:.*norm.*", "re:.*conv1d", "re:audio_tower.*", "mtp.fc")


@cache
def source(lock: str) -> Checkpoint:
    """A lock by its path in the repository."""
    return open_lock(ROOT / lock)


def recipe(
    ignore: Sequence[str | Mapping[str, Any]] = KEPT, *, scheme: str | None = "FP8_DYNAMIC", **keys: Any
) -> dict[str, Any]:
    """A recipe's content; `keys` add to it or replace what stands there."""
    content: dict[str, Any] = {
        "name": "test",
        "description": "A recipe of a test.",
        "base": {"model": "weighbridge/gemma-4-mini", "revision": "0" * 40, "licence": "apache-2.0"},
        "method": "model_free_ptq",
        "scheme": scheme,
        "ignore": list(ignore),
    }
    return {key: value for key, value in {**content, **keys}.items() if value is not None}


def groups(**targets_and_scheme: tuple[Sequence[str], str | Mapping[str, Any]]) -> dict[str, Any]:
    """Config groups: name -> targets and a preset's name or the weights' arguments."""
    return {
        name: {"targets": list(targets), **({"scheme": spec} if isinstance(spec, str) else {"weights": dict(spec)})}
        for name, (targets, spec) in targets_and_scheme.items()
    }


def integers(group_size: int, *, bits: int = 4) -> dict[str, Any]:
    """Arguments of symmetric integer weights in groups."""
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": group_size}


def write_recipe(directory: Path, content: Mapping[str, Any]) -> Path:
    """Write a recipe file."""
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False))
    return path


def plan(directory: Path, content: Mapping[str, Any], lock: str = MINI) -> Plan:
    """The plan of a recipe against a lock."""
    return make_plan(load_recipe(str(write_recipe(directory, content))), source(lock))


def findings(directory: Path, content: Mapping[str, Any], lock: str = MINI) -> list[Finding]:
    """What lint says of a recipe against a lock."""
    return lint(plan(directory, content, lock))
