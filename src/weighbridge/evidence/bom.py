"""The bill of materials, CycloneDX 1.7 JSON: the model, what it was made from, and the environment that made it.

cyclonedx-python-lib has no classes for model cards, so the JSON is written here; a test validates it with that
library's strict JSON validator. Definitions: https://cyclonedx.org/docs/1.7/json/.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weighbridge.checkpoint.hub import package_url
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.evidence.card import BaseModel, model_name, tensor_rows
from weighbridge.evidence.environment import UNKNOWN, Installed
from weighbridge.evidence.licence import spdx
from weighbridge.formats.tensors import payload_bytes
from weighbridge.recipe import LoadedRecipe, Recipe
from weighbridge.version import __version__

SCHEMA = "http://cyclonedx.org/schema/bom-1.7.schema.json"
MODEL = "model"
NAMESPACE = uuid.UUID("6d2c5c2b-6d0c-5c52-8b2f-2b0f6a1c6d11")


@dataclass(frozen=True)
class BomFacts:
    """All that a bill of materials is made of: what a verifier has, too, or reads in the provenance.

    Attributes:
        built: the build, by its structure and schemes: as planned, or as its headers have it.
        root: the checkpoint's root digest (hex).
        files: SHA-256 (hex) of each of its files.
        engine: what made the numbers; `device`: on what kind of device.
        environment: what was installed where it was built.
        finished: when, RFC 3339 in UTC.
    """

    loaded: LoadedRecipe
    base: BaseModel
    built: Checkpoint
    root: str
    files: Mapping[str, str]
    engine: str
    device: str
    environment: Sequence[Installed]
    finished: str


def write_bom(facts: BomFacts) -> bytes:
    """The bill of materials of a build."""
    return (json.dumps(bill(facts), indent=2, ensure_ascii=False) + "\n").encode()


def bill(facts: BomFacts) -> dict[str, Any]:
    """The same as the value that is written."""
    return {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, facts.root + facts.finished)}",
        "version": 1,
        "metadata": {
            "timestamp": facts.finished,
            "tools": {"components": [{"type": "application", "name": "weighbridge", "version": __version__}]},
            "component": _model(facts),
        },
        "components": [_distribution(found) for found in facts.environment],
        "dependencies": [{"ref": MODEL, "dependsOn": [found.purl for found in facts.environment]}],
        "formulation": [_formula(facts)],
    }


def _model(facts: BomFacts) -> dict[str, Any]:
    """The model itself."""
    recipe, base, built = facts.loaded.recipe, facts.base, facts.built
    how = f"method {recipe.method}, format {recipe.format}"
    return {
        "type": "machine-learning-model",
        "bom-ref": MODEL,
        "name": model_name(base, recipe),
        "version": facts.root,
        "description": " ".join(recipe.description.split()),
        "hashes": [_hash(facts.root)],
        "licenses": [_licence(recipe.base.licence)],
        "pedigree": {
            "ancestors": [_ancestor(recipe, base)],
            "notes": f"Quantized by the recipe {recipe.name} ({how}), which lies beside.",
        },
        "modelCard": {
            "modelParameters": _parameters(built),
            "properties": [
                {"name": f"weighbridge:stored:{role}", "value": f"{stored}; {modules} modules, {size} bytes"}
                for role, stored, modules, size in tensor_rows(built)
            ],
        },
        "components": [
            {"type": "file", "bom-ref": f"file:{file}", "name": file, "hashes": [_hash(digest)]}
            for file, digest in sorted(facts.files.items())
        ],
        "properties": [
            {"name": "weighbridge:tensors", "value": str(len(built.structure))},
            {"name": "weighbridge:bytes", "value": str(payload_bytes(built.structure))},
        ],
    }


def _ancestor(recipe: Recipe, base: BaseModel) -> dict[str, Any]:
    organization, _, name = base.repository.rpartition("/")
    return {
        "type": "machine-learning-model",
        "bom-ref": "base",
        "group": organization,
        "name": name,
        **({"version": base.revision} if base.revision else {}),
        "purl": package_url(base.repository, base.revision),
        "licenses": [_licence(recipe.base.licence)],
        "description": base.claim.sentence,
    }


def _parameters(built: Checkpoint) -> dict[str, str]:
    """What config.json says of the architecture; what it does not say is left out."""
    named = {"architectureFamily": built.config.get("model_type")}
    architectures = built.config.get("architectures")
    if isinstance(architectures, list) and architectures:
        named["modelArchitecture"] = architectures[0]
    return {name: value for name, value in named.items() if isinstance(value, str)}


def _licence(licence: str) -> dict[str, Any]:
    known = spdx(licence)
    return {"license": {"id": known} if known else {"name": licence}}


def _hash(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


def _distribution(found: Installed) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": found.purl,
        "name": found.name,
        "version": found.version,
        "purl": found.purl,
        "properties": [{"name": "weighbridge:content", "value": found.content}],
    }
    return component if found.wheel == UNKNOWN else {**component, "hashes": [_hash(found.wheel)]}


def _formula(facts: BomFacts) -> dict[str, Any]:
    """How it was made: one workflow from the base and the recipe to the model."""
    return {
        "bom-ref": "formula",
        "workflows": [
            {
                "bom-ref": "build",
                "uid": "build",
                "name": f"{facts.engine} build on {facts.device}",
                "taskTypes": ["build", "test"],
                "inputs": [{"resource": {"ref": "base"}}],
                "outputs": [{"type": "artifact", "resource": {"ref": MODEL}}],
                "properties": [{"name": "weighbridge:recipe:sha256", "value": facts.loaded.sha256}],
            }
        ],
    }
