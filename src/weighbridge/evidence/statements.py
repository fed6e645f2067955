"""Statements about a checkpoint, as in-toto and SLSA publish them: strict models, one line of JSON each.

Definitions: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, …/spec/predicates/provenance.md
(https://slsa.dev/provenance/v1) and …/spec/predicates/test-result.md. A test reads what is written here back through
the protobuf messages of in-toto-attestation.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from weighbridge.errors import StructureError
from weighbridge.text.strict_json import parse_object
from weighbridge.text.strict_yaml import Strict, first_problem

BUILD_TYPE = "urn:weighbridge:build:v1"

TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"

AUDITOR = "urn:weighbridge:audit"
"""What judges a derivation."""

Relation = Literal["exact", "nearest", "compensated"]
Outcome = Literal["PASSED", "WARNED", "FAILED"]


class Published(Strict):
    """A part of a statement: its names are written in camel case, and what is not said is left out."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Resource(Published):
    """in-toto's ResourceDescriptor: something by name or address, and its digests (hex)."""

    name: str | None = None
    uri: str | None = None
    digest: dict[str, str] | None = None
    annotations: dict[str, JsonValue] | None = None

    @property
    def sha256(self) -> str:
        """The digest of that name; empty where it has none."""
        return (self.digest or {}).get("sha256", "")


class BuildDefinition(Published):
    """What was built from what."""

    build_type: str
    external_parameters: dict[str, JsonValue]
    internal_parameters: dict[str, JsonValue]
    resolved_dependencies: list[Resource]


class Builder(Published):
    """Who built: the tool and the machine's kind."""

    id: str
    version: dict[str, str]


class Times(Published):
    """When, in UTC."""

    started_on: str = Field(pattern=TIME)
    finished_on: str = Field(pattern=TIME)


class RunDetails(Published):
    """One run, and what it left beside the checkpoint."""

    builder: Builder
    metadata: Times
    byproducts: list[Resource]


class Provenance(Published):
    """SLSA provenance v1."""

    build_definition: BuildDefinition
    run_details: RunDetails


class TestResult(Published):
    """in-toto test-result v0.1: the names of what passed, warned and failed."""

    result: Outcome
    configuration: list[Resource]
    passed_tests: list[str]
    warned_tests: list[str]
    failed_tests: list[str]


class InTotoStatement(Published):
    """What every statement has: its one subject; the rest says what of it."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(default="https://in-toto.io/Statement/v1", alias="_type")
    subject: list[Resource] = Field(min_length=1, max_length=1)


class ProvenanceStatement(InTotoStatement):
    """How the subject was made."""

    predicate_type: Literal["https://slsa.dev/provenance/v1"] = "https://slsa.dev/provenance/v1"
    predicate: Provenance


class TestResultStatement(InTotoStatement):
    """How the subject did in what judged it."""

    predicate_type: Literal["https://in-toto.io/attestation/test-result/v0.1"] = (
        "https://in-toto.io/attestation/test-result/v0.1"
    )
    predicate: TestResult


class Elements(Published):
    """How many of the base's elements were compared."""

    checked: int = Field(ge=0)
    total: int = Field(ge=0)


class Judge(Published):
    """What judged."""

    id: str
    version: dict[str, str]


class Derivation(Published):
    """That the subject derives from a base, and how closely.

    Attributes:
        base: by its name, its address, its commit where that is known, and who it is by its digests.
        relation: ``exact``: each weight is what the recipe makes of the base's; ``nearest``: each is the nearest that
            its format has; ``compensated``: within the limits that docs/explanation/audit.md derives.
        verdicts: how many weights and kept tensors came to each verdict.
        elements: how many were compared.
        recipe: by the digest of its bytes.
        report: the audit, by its digest.
        judged_by: what judged, and of which version.
    """

    base: Resource
    relation: Relation
    verdicts: dict[str, int]
    elements: Elements
    recipe: Resource
    report: Resource
    judged_by: Judge


class DerivationStatement(InTotoStatement):
    """What the subject derives from; docs/reference/derivation-predicate.md defines it."""

    predicate_type: Literal["urn:weighbridge:derivation:v1"] = "urn:weighbridge:derivation:v1"
    predicate: Derivation


Statement = ProvenanceStatement | TestResultStatement | DerivationStatement
_ADAPTER: TypeAdapter[Statement] = TypeAdapter(Annotated[Statement, Field(discriminator="predicate_type")])


def write_statement(statement: InTotoStatement) -> bytes:
    """A statement as one line of JSON without its end."""
    content = statement.model_dump(mode="json", by_alias=True, exclude_none=True)
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def read_statement(raw: bytes, *, where: str) -> Statement:
    """Read a statement of one of the three kinds.

    Raises:
        StructureError: not JSON, or not such a statement.
    """
    try:
        return _ADAPTER.validate_python(parse_object(raw, where=where))
    except ValidationError as error:
        raise StructureError(f"is no statement ({first_problem(error)})", where=where) from None


def subject_of(name: str, root: str) -> Resource:
    """The one subject of every statement: a checkpoint by its root digest."""
    return Resource(name=name, digest={"sha256": root})


def sha256_of(content: bytes) -> dict[str, str]:
    """The digest set of some bytes."""
    return {"sha256": hashlib.sha256(content).hexdigest()}
