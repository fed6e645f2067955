"""The bill of materials, CycloneDX 1.7 JSON: the model and what it was made from; apart from it, what made it.

What is delivered is the model, and what reads it are the libraries of the formats that it is stored in: these are the
components. The packages of the environment that built it stand in the formulation, since nobody who serves it has them.

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
from weighbridge.evidence.signing import Signer
from weighbridge.formats.tensors import payload_bytes
from weighbridge.recipe import LoadedRecipe, Recipe
from weighbridge.version import __version__

SCHEMA = "http://cyclonedx.org/schema/bom-1.7.schema.json"
MODEL, SUBJECT = "model", "subject"
READERS = {"compressed-tensors": "Apache-2.0", "safetensors": "Apache-2.0"}
"""Libraries that define the formats of weights, by the licence that their own metadata states."""
TASK = "text-generation"
"""Of the models that are built here: each has an output head over a vocabulary."""
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
        calibration: the record of what it was calibrated with, if it was.
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
    calibration: Mapping[str, Any] | None = None


def write_bom(facts: BomFacts, signer: Signer | None = None) -> bytes:
    """The bill of materials of a build; signed within itself where a key signs."""
    content = bill(facts)
    signature = None if signer is None else signer.sign_document(content)
    return written_bom(content if signature is None else {**content, "signature": signature})


def written_bom(content: Mapping[str, Any]) -> bytes:
    """A bill of materials as it is written."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def bill(facts: BomFacts) -> dict[str, Any]:
    """The same as the value that is written, without a signature."""
    libraries = [_library(found) for found in facts.environment if found.name in READERS]
    return {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, facts.root + facts.finished)}",
        "version": 1,
        "metadata": {
            "timestamp": facts.finished,
            "tools": {"components": [{"type": "application", "name": "weighbridge", "version": __version__}]},
            "component": {"bom-ref": SUBJECT, **_identity(facts)},
            **_made_by(facts.loaded.recipe),
        },
        "components": [_model(facts), *libraries],
        "dependencies": [
            {"ref": SUBJECT, "dependsOn": [MODEL]},
            {"ref": MODEL, "dependsOn": [library["bom-ref"] for library in libraries]},
        ],
        "formulation": [_formula(facts)],
    }


def _identity(facts: BomFacts) -> dict[str, Any]:
    """What the model is called, and what it is known by."""
    recipe = facts.loaded.recipe
    return {
        "type": "machine-learning-model",
        "name": model_name(facts.base, recipe),
        "version": facts.root,
        "hashes": [_hash(facts.root)],
        "licenses": [_licence(recipe.base.licence)],
    }


def _made_by(recipe: Recipe) -> dict[str, Any]:
    """Who answers for the model, if the recipe says so."""
    made = recipe.manufacturer
    if made is None:
        return {}
    contact = {"url": [made.contact]} if made.contact.startswith("https://") else {"contact": [{"email": made.contact}]}
    return {"manufacturer": {"name": made.name, **contact}, "supplier": {"name": made.name, **contact}}


def _model(facts: BomFacts) -> dict[str, Any]:
    """The model itself."""
    recipe, base, built = facts.loaded.recipe, facts.base, facts.built
    how = f"method {recipe.method}, format {recipe.format}"
    return {
        "bom-ref": MODEL,
        **_identity(facts),
        "description": " ".join(recipe.description.split()),
        "pedigree": {
            "ancestors": [_ancestor(recipe, base)],
            "notes": f"Quantized by the recipe {recipe.name} ({how}), which lies beside.",
        },
        "modelCard": {
            "modelParameters": {"task": TASK, **_parameters(built), **_datasets(facts.calibration)},
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


def _datasets(calibration: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the model was calibrated with; what its base was trained on is not known here."""
    if calibration is None:
        return {}
    said = [f"{key} {calibration[key]}" for key in ("revision", "file_sha256") if calibration.get(key)]
    said += [f"SHA-256 of its tokens {calibration.get('token_ids_sha256')}"]
    return {"datasets": [{"type": "dataset", "name": str(calibration.get("dataset")), "description": "; ".join(said)}]}


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


def _library(found: Installed) -> dict[str, Any]:
    """A library that the model is read with, of the version whose format it is stored in."""
    same = {key: value for key, value in _distribution(found).items() if key not in ("bom-ref", "properties")}
    return {**same, "bom-ref": f"format:{found.name}", "licenses": [{"license": {"id": READERS[found.name]}}]}


def _formula(facts: BomFacts) -> dict[str, Any]:
    """How it was made: one workflow from the base and the recipe to the model."""
    return {
        "bom-ref": "formula",
        "components": [_distribution(found) for found in facts.environment],
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
