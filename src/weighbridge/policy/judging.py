"""A checkpoint's evidence against a policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from weighbridge.checkpoint.model import EVIDENCE, Checkpoint
from weighbridge.errors import EvidenceError, PolicyError, RecipeError, StructureError, WeighbridgeError, printable
from weighbridge.evidence.case import Case, Claim, Hashing, open_case
from weighbridge.evidence.checked import wrong
from weighbridge.evidence.signing import Envelope, SigstoreVerifier, Verifier, open_verifier
from weighbridge.evidence.statements import Resource, sha256_of, subject_of
from weighbridge.evidence.subject import root_digest
from weighbridge.evidence.verify import judge as judge_evidence
from weighbridge.policy.demands import DEMANDS, Asked, now, shown
from weighbridge.policy.digests import hashed
from weighbridge.policy.schema import LoadedPolicy
from weighbridge.progress import Progress
from weighbridge.recipe.catalogue import own_recipe
from weighbridge.report import Finding, Report, Section, Severity, first_error


@dataclass(frozen=True)
class Judged:
    """What a gate came to.

    Attributes:
        policy: what it was held against.
        subject: the checkpoint by the root digest of the files that lie there, whatever its evidence calls it.
        claims: the statements that were read, by their digests.
        held: keys of the policy that hold.
        shards: each shard by the SHA-256 (hex) that it has, or that is promised of it; see `as_listed`.
        checkpoint: by its headers; None where these are malformed.
        at: when it was judged, with its time zone.
    """

    report: Report
    policy: LoadedPolicy
    subject: Resource
    claims: Sequence[Resource]
    held: Sequence[str]
    shards: Mapping[str, str]
    checkpoint: Checkpoint | None
    at: datetime


def judge(
    directory: Path, loaded: LoadedPolicy, *, hashing: Hashing = hashed, progress: Progress | None = None
) -> Judged:
    """Verify a checkpoint's evidence, and hold it against a policy.

    Args:
        directory: the checkpoint on disk.
        hashing: how the digests of shards are had: by reading them here, or as a promise that whoever reads them keeps.

    Raises:
        StructureError: the directory cannot be read.
        EvidenceError: a key of the policy cannot be read, or Sigstore cannot be reached.
    """
    if not directory.is_dir():
        what, remedy = "is no directory", "download the checkpoint: its evidence is about its bytes"
        raise StructureError(what, where=str(directory), remedy=remedy)
    _check_outside(loaded, directory)
    _check_recipes(loaded)
    at, verifier = now(), _verifier(loaded)
    case, findings = open_case(directory, verifier, None, hashing=hashing, progress=progress or Progress())
    verified = judge_evidence(case, findings)
    asked = Asked(case, verified, loaded, at)
    demanded = {key: _demanded(asked, key) for key in DEMANDS if getattr(loaded.policy, key) is not None}
    sections = (*verified.sections, *demanded.values(), *_unsigned(loaded))
    head = {"policy": f"{loaded.path.name}, SHA-256 {loaded.sha256}"}
    checkpoint = case.checkpoint
    return Judged(
        Report("gate", str(directory), _verdict(asked, sections), sections, head=head),
        loaded,
        subject=_subject(case, holds=verified.holds),
        claims=[_named(claim) for claim in (*case.claims, *case.added)],
        held=[key for key, section in demanded.items() if section.holds],
        shards={} if checkpoint is None else {name: case.files[name] for name in checkpoint.shards},
        checkpoint=checkpoint,
        at=at,
    )


def _check_outside(loaded: LoadedPolicy, directory: Path) -> None:
    """A checkpoint does not bring along what it is judged by.

    Raises:
        PolicyError: the policy or one of its keys lies in the checkpoint.
    """
    keys = [loaded.path.parent / signer.key for signer in loaded.policy.signed_by or () if signer.key is not None]
    for path in (loaded.path, *keys):
        if path.resolve().is_relative_to(directory.resolve()):
            what, remedy = "is part of the checkpoint that is judged by it", "have it from whoever you trust"
            raise PolicyError(what, where=str(path), remedy=remedy)


def _check_recipes(loaded: LoadedPolicy) -> None:
    """Recipes that a policy names without a digest are the catalogue's.

    Raises:
        PolicyError: there is none of that name.
    """
    for name in (entry for entry in loaded.policy.recipes or () if isinstance(entry, str)):
        try:
            own_recipe(name)
        except RecipeError as error:
            where, what = loaded.place("recipes"), f"{name[:80]!r} is no recipe of the catalogue ({error.what})"
            raise PolicyError(what, where=where, remedy="name another by its name and sha256") from error


def _verifier(loaded: LoadedPolicy) -> Verifier | None:
    """Who may have signed; None where nobody needs to.

    Raises:
        EvidenceError: a key cannot be read, or what checks signatures is not installed.
    """
    named = loaded.policy.signed_by
    if named is None:
        return None
    return AnyOf(
        [
            SigstoreVerifier(signer.identity or "", signer.issuer or "")
            if signer.key is None
            else open_verifier(loaded.path.parent / signer.key)
            for signer in named
        ]
    )


@dataclass(frozen=True)
class AnyOf:
    """Expects signatures of one of several signers."""

    signers: Sequence[Verifier]

    def check(self, envelope: Envelope) -> None:
        """Nothing, if one of them signed.

        Raises:
            StructureError: none of them did; with what speaks against each.
        """
        said = []
        for signer in self.signers:
            try:
                signer.check(envelope)
            except StructureError as error:
                said.append(str(error.what))
            else:
                return
        raise StructureError("; and ".join(dict.fromkeys(said)), where="")


def _demanded(asked: Asked, key: str) -> Section:
    """A key of the policy as a section; what cannot be read, of evidence, fails it."""
    try:
        findings = tuple(DEMANDS[key](asked))
    except EvidenceError:
        raise
    except WeighbridgeError as error:
        findings = (wrong("policy/unjudged", error.where or EVIDENCE, f"cannot be held against it: {error.what}"),)
    place, value = asked.loaded.place(key), shown(asked.loaded.document.value[key])
    return Section("policy", f"the policy's {key}", f"{place} asks for {value}", findings=findings)


def _unsigned(loaded: LoadedPolicy) -> Iterator[Section]:
    """A policy that does not say who may have signed is one to be warned of."""
    if loaded.policy.signed_by is None:
        what = "does not say who may have signed: whoever can change the files can make up their evidence"
        remedy = "name keys or identities under signed_by"
        finding = Finding("policy/any-signer", Severity.WARNING, loaded.path.name, what, remedy=remedy)
        yield Section("policy", "the policy's signed_by", "is not there", findings=(finding,), judges=False)


def _subject(case: Case, *, holds: bool) -> Resource:
    """What was judged; by the name of its folder where nothing that its evidence says can be believed."""
    name = str(case.provenance.subject[0].name) if holds else case.directory.resolve().name
    return subject_of(printable(name), root_digest(case.files))


def _named(claim: Claim) -> Resource:
    """A statement by where it stands and the digest of its bytes."""
    return Resource(name=claim.where, digest=sha256_of(claim.payload))


def _verdict(asked: Asked, sections: Sequence[Section]) -> str:
    directory, policy = asked.case.directory, asked.loaded.path.name
    if wrong_first := first_error(sections):
        return f"{directory} must not be served by {policy}: {wrong_first}"
    return f"{directory} may be served by {policy}: root digest {asked.case.root[:16]}…, its evidence holds"
