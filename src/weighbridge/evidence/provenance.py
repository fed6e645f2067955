"""SLSA provenance of a build: what it was made from, by what, and what it left beside the checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from weighbridge import __version__
from weighbridge.catalogue import lock_path
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
                    "revision": build.base.revision,
                    "engine": build.engine,
                    "device": build.device,
                    "shardSize": build.shard_size,
                    "references": list(build.named_references),
                    "carried": list(build.named_files),
                },
                internal_parameters=dict(machine()),
                resolved_dependencies=[
                    _recipe(build),
                    _base(build),
                    *_files(build, source_digests),
                    *_references(build),
                    *_calibration(build.calibration),
                    _repository(repository()),
                    *map(_distribution, environment),
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


def _recipe(build: FinishedBuild) -> Resource:
    return Resource(name=RECIPE, digest={"sha256": build.plan.loaded.sha256})


def _base(build: FinishedBuild) -> Resource:
    base = build.base
    proven = build.identity.proven
    return Resource(
        name=BASE,
        uri=f"https://huggingface.co/{base.repository}",
        digest={"gitCommit": base.revision} if base.revision else None,
        annotations={"identity": base.sentence, "proven": proven},
    )


def _files(build: FinishedBuild, digests: Mapping[str, str]) -> Iterator[Resource]:
    """Each file of the source, as a part of the base only where it is proven to be that."""
    base = build.base
    for name in sorted(digests):
        uri = f"https://huggingface.co/{base.repository}/resolve/{base.revision}/{name}" if base.revision else None
        yield Resource(name=f"{SOURCE_FILE}{name}", uri=uri, digest={"sha256": digests[name]})


def _references(build: FinishedBuild) -> Iterator[Resource]:
    for against in build.references:
        repository = against.reference.origin.repository
        path: Path | None = lock_path(repository) if repository else None
        if path is not None and path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            yield Resource(name=f"{REFERENCE_FILE}{repository}.yaml", digest={"sha256": digest})


def _calibration(record: Mapping[str, Any] | None) -> Iterator[Resource]:
    """The text that was calibrated with, by the digest of the tokens that the model saw of it."""
    if record is not None:
        digest = {"sha256": record["token_ids_sha256"]}
        yield Resource(name=CALIBRATION, digest=digest, annotations=json.loads(json.dumps(record)))


def _repository(found: Repository | None) -> Resource:
    if found is None:
        return Resource(name=REPOSITORY, uri=f"pkg:pypi/weighbridge@{__version__}", annotations={"commit": UNKNOWN})
    return Resource(name=REPOSITORY, digest={"gitCommit": found.commit}, annotations={"clean": found.clean})


def _distribution(found: Installed) -> Resource:
    """A distribution by its wheel, where the constraints file pins one, and by what that installed."""
    return Resource(
        name=found.name,
        uri=found.purl,
        digest=None if found.wheel == UNKNOWN else {"sha256": found.wheel},
        annotations={"wheel": found.wheel, "content": found.content},
    )
