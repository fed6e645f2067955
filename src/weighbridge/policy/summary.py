"""What a gate came to, as other programs read it: in-toto's Simple Verification Result and SLSA's Verification Summary.

Definitions: https://github.com/in-toto/attestation/blob/main/spec/predicates/svr.md (v0.2) and
https://slsa.dev/spec/v1.1/verification_summary (v1). A test reads the latter back through the protobuf messages of
in-toto-attestation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from weighbridge.evidence.provenance import stamp
from weighbridge.evidence.statements import InTotoStatement, Published, Resource
from weighbridge.policy.judging import Judged

VERIFIER = "urn:weighbridge:gate:v1"
"""Who judged, where nobody else is named; its number changes with what the keys of a policy mean."""

PREFIX = "WEIGHBRIDGE_"


class Verifier(Published):
    """Who judged."""

    id: str


class VerifierWithPolicies(Verifier):
    """Who judged, by what."""

    policies: list[Resource]


class SimpleVerification(Published):
    """in-toto svr v0.2: the properties that hold."""

    verifier: VerifierWithPolicies
    time_created: str
    properties: list[str]


class Attestation(Published):
    """A file or statement by its address and digest."""

    uri: str
    digest: dict[str, str]


class VerificationSummary(Published):
    """SLSA verification summary v1: passed or failed, and what was verified."""

    verifier: Verifier
    time_verified: str
    resource_uri: str
    policy: Attestation
    input_attestations: list[Attestation]
    verification_result: Literal["PASSED", "FAILED"]
    verified_levels: list[str]
    slsa_version: str


class SimpleVerificationStatement(InTotoStatement):
    """What holds of the subject."""

    predicate_type: Literal["https://in-toto.io/attestation/svr/v0.2"] = "https://in-toto.io/attestation/svr/v0.2"
    predicate: SimpleVerification


class VerificationSummaryStatement(InTotoStatement):
    """Whether the subject passed."""

    predicate_type: Literal["https://slsa.dev/verification_summary/v1"] = "https://slsa.dev/verification_summary/v1"
    predicate: VerificationSummary


def properties(judged: Judged) -> list[str]:
    """What holds, a word each: the evidence as a whole, and each key of the policy; nothing where the gate is shut."""
    if not judged.report.holds:
        return []
    return [f"{PREFIX}EVIDENCE_VERIFIED", *(f"{PREFIX}POLICY_{key.upper()}" for key in judged.held)]


def simple_verification(judged: Judged, *, verifier: str) -> SimpleVerificationStatement:
    """The result as in-toto's svr."""
    return SimpleVerificationStatement(
        subject=[judged.subject],
        predicate=SimpleVerification(
            verifier=VerifierWithPolicies(
                id=verifier, policies=[Resource(name=judged.policy.path.name, digest={"sha256": judged.policy.sha256})]
            ),
            time_created=stamp(judged.at),
            properties=properties(judged),
        ),
    )


def verification_summary(judged: Judged, *, verifier: str) -> VerificationSummaryStatement:
    """The result as SLSA's verification summary.

    No level of SLSA is claimed: what is verified stands there in words of this project.
    """
    return VerificationSummaryStatement(
        subject=[judged.subject],
        predicate=VerificationSummary(
            verifier=Verifier(id=verifier),
            time_verified=stamp(judged.at),
            resource_uri=f"urn:weighbridge:checkpoint:sha256:{judged.subject.sha256}",
            policy=Attestation(uri=judged.policy.path.name, digest={"sha256": judged.policy.sha256}),
            input_attestations=[
                Attestation(uri=str(claim.name), digest=dict(claim.digest or {})) for claim in judged.claims
            ],
            verification_result="PASSED" if judged.report.holds else "FAILED",
            verified_levels=["SLSA_BUILD_LEVEL_UNEVALUATED", *properties(judged)],
            slsa_version="1.1",
        ),
    )


FORMS: Mapping[str, Callable[..., InTotoStatement]] = {"svr": simple_verification, "vsa": verification_summary}
"""By what they are called."""
