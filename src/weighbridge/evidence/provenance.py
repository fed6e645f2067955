"""SLSA provenance of a build: what it was made from, by what, and what it left beside the checkpoint.

Each part is a plain function of what a verifier has or reads, too, so that each can be written again and compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import JsonValue

from weighbridge.base.identity import Claim
from weighbridge.base.locks import lock_file
from weighbridge.base.references import AgainstReference
from weighbridge.checkpoint.hub import page_of
from weighbridge.evidence.card import BaseModel
from weighbridge.evidence.environment import UNKNOWN, Installed, Repository, machine, repository
from weighbridge.evidence.finished import FinishedBuild
from weighbridge.evidence.statements import (
    BUILD_TYPE,
    BuildDefinition,
    Builder,
    Provenance,
    ProvenanceStatement,
    Resource,
    RunDetails,
    Times,
)
from weighbridge.version import __version__

BUILDER = "urn:weighbridge:builder:local"
SOURCE_FILE = "source/"
REFERENCE_FILE = "references/"
RECIPE = "recipe.yaml"
CALIBRATION = "calibration"
BASE = "base model"
REPOSITORY = "weighbridge"


def provenance_statement(
    build: FinishedBuild,
    subject: Resource,
    *,
    source_digests: Mapping[str, str],
    environment: Sequence[Installed],
    byproducts: Sequence[Resource],
) -> ProvenanceStatement:
    """The statement of how a checkpoint was made.

    Args:
        source_digests: SHA-256 (hex) of every file of the source that was read.
        environment: what was installed where it was built.
        byproducts: what lies beside the checkpoint, with its digests.
    """
    return ProvenanceStatement(
        subject=[subject],
        predicate=Provenance(
            build_definition=BuildDefinition(
                build_type=BUILD_TYPE,
                external_parameters={
                    "recipe": build.plan.loaded.recipe.name,
                    "model": build.model,
                    "revision": build.source.origin.revision,
                    "engine": build.engine,
                    "device": build.device,
                    "shardSize": build.shard_size,
                    "references": list(build.named_references),
                    "carried": list(build.named_files),
                },
                internal_parameters=dict(machine()),
                resolved_dependencies=[
                    recipe_resource(build.plan.loaded.sha256),
                    base_resource(build.base),
                    *file_resources(build.base, source_digests),
                    *reference_resources(build.references),
                    *calibration_resources(build.calibration),
                    repository_resource(repository()),
                    *map(distribution_resource, environment),
                ],
            ),
            run_details=RunDetails(
                builder=Builder(id=BUILDER, version={"weighbridge": __version__}),
                metadata=Times(started_on=stamp(build.started), finished_on=stamp(datetime.now(UTC))),
                byproducts=list(byproducts),
            ),
        ),
    )


def stamp(moment: datetime) -> str:
    """A moment in UTC, to the second, as RFC 3339 has it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def recipe_resource(sha256: str) -> Resource:
    """The recipe by its digest (hex)."""
    return Resource(name=RECIPE, digest={"sha256": sha256})


def base_resource(base: BaseModel) -> Resource:
    """The base by its name on the hub, its commit where that is known, and who the source is by its digests."""
    return Resource(
        name=BASE,
        uri=page_of(base.repository),
        digest={"gitCommit": base.revision} if base.revision else None,
        annotations={"identity": written_claim(base.claim)},
    )


def written_claim(claim: Claim) -> JsonValue:
    """The claim of who a source is, as the provenance has it: one value, of which all that is said of it is made."""
    said = {"repository": claim.repository, "revision": claim.revision, "reason": claim.reason and str(claim.reason)}
    said |= {"file": claim.file, "found": claim.found, "expected": claim.expected}
    return {"proven": claim.proven, **{key: value for key, value in said.items() if value}}


def file_resources(base: BaseModel, digests: Mapping[str, str]) -> Iterator[Resource]:
    """Each file of the source, by its digest (hex), and where the base has it where its commit is known."""
    for name in sorted(digests):
        uri = f"{page_of(base.repository)}/resolve/{base.revision}/{name}" if base.revision else None
        yield Resource(name=f"{SOURCE_FILE}{name}", uri=uri, digest={"sha256": digests[name]})


def reference_resources(references: Sequence[AgainstReference]) -> Iterator[Resource]:
    """The locks of references/ among what a build was held against, by their digests."""
    for against in references:
        repository = against.reference.origin.repository
        path = lock_file(repository)
        if path is not None:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            yield Resource(name=f"{REFERENCE_FILE}{repository}.yaml", digest={"sha256": digest})


def calibration_resources(record: Mapping[str, Any] | None) -> Iterator[Resource]:
    """The text that was calibrated with, by the digest of the tokens that the model saw of it."""
    if record is not None:
        digest = {"sha256": record["token_ids_sha256"]}
        yield Resource(name=CALIBRATION, digest=digest, annotations=json.loads(json.dumps(record)))


def repository_resource(found: Repository | None) -> Resource:
    """This repository by its commit, where that is known."""
    if found is None:
        return Resource(name=REPOSITORY, uri=f"pkg:pypi/weighbridge@{__version__}", annotations={"commit": UNKNOWN})
    return Resource(name=REPOSITORY, digest={"gitCommit": found.commit}, annotations={"clean": found.clean})


def distribution_resource(found: Installed) -> Resource:
    """A distribution by its wheel, where the constraints file pins one, and by what that installed."""
    return Resource(
        name=found.name,
        uri=found.purl,
        digest=None if found.wheel == UNKNOWN else {"sha256": found.wheel},
        annotations={"wheel": found.wheel, "content": found.content},
    )
