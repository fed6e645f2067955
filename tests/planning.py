"""Recipes as tests write them, planned against the locks of the repository."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from weighbridge.checkpoint.lock import open_lock
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.errors import RecipeError
from weighbridge.families import Role
from weighbridge.linting import lint
from weighbridge.planning import Plan, make_plan
from weighbridge.recipe import LoadedRecipe, Recipe
from weighbridge.report import Finding, Severity
from weighbridge.text.strict_yaml import parse_yaml, validate

ROOT = Path(__file__).resolve().parents[1]
REAL = "references/google/gemma-4-26B-A4B-it.yaml"
MINI = "references/weighbridge/gemma-4-mini.yaml"
ODD = "tests/data/odd-parts.yaml"
RECIPE_FILE = "recipe.yaml"
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


def plan(content: Mapping[str, Any], lock: str = MINI) -> Plan:
    """The plan of a recipe, read as if from the file `RECIPE_FILE`, against a lock."""
    return _plan(recipe_text(content), lock)


def findings(content: Mapping[str, Any], lock: str = MINI) -> Sequence[Finding]:
    """What lint says of a recipe against a lock."""
    return _findings(recipe_text(content), lock)


def recipe_text(content: Mapping[str, Any]) -> str:
    """A recipe as YAML."""
    return yaml.safe_dump(dict(content), sort_keys=False)


@cache
def _plan(text: str, lock: str) -> Plan:
    document = parse_yaml(text.encode(), where=RECIPE_FILE, error=RecipeError)
    loaded = LoadedRecipe(validate(document, Recipe, error=RecipeError), document)
    return make_plan(loaded, source(lock))


@cache
def _findings(text: str, lock: str) -> Sequence[Finding]:
    return tuple(lint(_plan(text, lock)))


def broken_rules(plan: Plan) -> set[str]:
    """The rules that lint finds broken, notes left out."""
    return {finding.rule for finding in lint(plan) if finding.severity is not Severity.NOTE}


def quantized_roles(plan: Plan) -> Counter[Role]:
    """How many modules of each role a plan quantizes."""
    return Counter(map(plan.source.family.role_of, plan.schemes))


def kept_roles(plan: Plan) -> Counter[Role]:
    """How many tensors of two axes or more stay as they are, by role."""
    kept = [part.module for part in plan.parts if part.module not in plan.schemes and len(part.weight.shape) >= 2]
    return Counter(map(plan.source.family.role_of, kept))


def merged_members(plan: Plan) -> Counter[tuple[str, ...]]:
    """How many groups of quantized linears servers merge, by their members."""
    quantized = [group for group in plan.fused_groups if f"{group.parent}.{group.members[0]}" in plan.schemes]
    return Counter(group.members for group in quantized)
