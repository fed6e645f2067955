"""A checkpoint that is being judged by its evidence: what lies on disk, and what its evidence says, each read once.

Both are a stranger's. Nothing is believed because it is written there, and what cannot be read is a finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from weighbridge.account import Base
from weighbridge.base.identity import Identity, identify
from weighbridge.base.references import base_of, find_references, lock_of
from weighbridge.checkpoint.header import Header
from weighbridge.checkpoint.lock import open_lock
from weighbridge.checkpoint.model import EVIDENCE, Checkpoint, Origin, open_directory, read_small
from weighbridge.checkpoint.weights import is_weights
from weighbridge.checks.expectation import Expected
from weighbridge.errors import StructureError
from weighbridge.evidence.card import BaseModel
from weighbridge.evidence.checked import wrong
from weighbridge.evidence.finished import base_model
from weighbridge.evidence.provenance import RECIPE, SOURCE_FILE
from weighbridge.evidence.results import Result, results_of
from weighbridge.evidence.signing import (
    ADDED_FOLDER,
    MODEL_SIGNATURE_FILE,
    Envelope,
    Verifier,
    read_envelope,
    write_envelope,
)
from weighbridge.evidence.statements import (
    ProvenanceStatement,
    Resource,
    Statement,
    TestResultStatement,
    read_statement,
    sha256_of,
    write_statement,
)
from weighbridge.evidence.subject import (
    HUB_CLIENT,
    Digests,
    Listing,
    hash_files,
    hash_shards,
    list_all,
    read_files,
    root_digest,
)
from weighbridge.evidence.write import ADDED, CLAIMS, FILES, PROVENANCE, START, STATEMENTS, TENSORS, TEST_RESULT
from weighbridge.planning import make_plan
from weighbridge.progress import Progress
from weighbridge.recipe import LoadedRecipe, read_recipe
from weighbridge.report import Finding, Report, Severity, read_report
from weighbridge.text.strict_json import parse_object
from weighbridge.version import __version__

THEIR_OWN = (".git/", f"{HUB_CLIENT}/")
"""Where git and the hub's client keep what no digest covers, each in a copy that it made."""
MOST_BYTES = 8 * 1024 * 1024
"""Of a file of evidence/ but the lists of files and tensors: a statement of so many takes 300 MB to hold."""
MOST_DEPENDENCIES = 20_000
"""Things that a provenance may name: files of a source, and packages."""
ADDED_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")


@dataclass(frozen=True)
class Claim:
    """A statement, the line that it stands in and where, and the envelope that it came in, if it is signed."""

    where: str
    line: bytes
    payload: bytes
    statement: Statement
    envelope: Envelope | None

    @property
    def bound(self) -> Mapping[str, str]:
        """What an added result names in its configuration: name -> SHA-256 (hex)."""
        if not isinstance(self.statement, TestResultStatement):
            return {}
        return {str(item.name): item.sha256 for item in self.statement.predicate.configuration}


@dataclass
class Case:
    """A checkpoint that is being judged: what was found on disk, and what its evidence says.

    Attributes:
        listing: its files.
        checkpoint: its headers and config; None where these are malformed.
        digests: of each file that the root digest is over, and of each tensor's bytes, as they are now.
        verifier: who is expected to have signed; None where no key was given.
        source: the base that was handed over to compare with, if one was.
        claims: the statements of the build.
        added: those of results that came after it.
    """

    directory: Path
    listing: Listing
    checkpoint: Checkpoint | None
    digests: Digests
    verifier: Verifier | None
    source: Checkpoint | None
    progress: Progress
    claims: list[Claim] = field(default_factory=list)
    added: list[Claim] = field(default_factory=list)

    def read(self, name: str) -> bytes:
        """A file of evidence/.

        Raises:
            StructureError: it is not there, or too large.
        """
        if f"{EVIDENCE}/{name}" not in self.listing.evidence:
            raise StructureError("is not there", where=f"{EVIDENCE}/{name}")
        path = self.directory / EVIDENCE / name
        if name not in (FILES, TENSORS) and path.stat().st_size > MOST_BYTES:
            raise StructureError(f"is larger than {MOST_BYTES:,} bytes", where=f"{EVIDENCE}/{name}")
        return read_small(path, label=EVIDENCE)

    def own(self, name: str) -> bytes:
        """A small file of the checkpoint itself.

        Raises:
            StructureError: it is not there as a regular file, or too large.
        """
        if name not in self.listing.signed:
            raise StructureError("is not there", where=name)
        return read_small(self.directory / name, label=str(self.directory))

    @property
    def files(self) -> Mapping[str, str]:
        """SHA-256 (hex) of each file that the root digest is over, as they are now."""
        return self.digests.files

    @cached_property
    def beside(self) -> Mapping[str, str]:
        """The files of evidence/ by SHA-256 (hex), as they are now."""
        prefix = f"{EVIDENCE}/"
        return {name: sha256_of(self.read(name.removeprefix(prefix)))["sha256"] for name in self.listing.evidence}

    @cached_property
    def listed(self) -> Mapping[str, str]:
        """The files that the evidence speaks of, by SHA-256 (hex)."""
        return read_files(self.read(FILES), where=f"{EVIDENCE}/{FILES}")

    @cached_property
    def root(self) -> str:
        """The root digest of the files that the evidence speaks of."""
        return root_digest(self.listed)

    @property
    def signed(self) -> bool:
        """Whether anybody signed the build, whoever it was."""
        names = (f"{EVIDENCE}/{MODEL_SIGNATURE_FILE}", f"{EVIDENCE}/{CLAIMS}")
        return any(name in self.listing.evidence for name in names)

    @cached_property
    def provenance_claim(self) -> Claim:
        """The one statement of how it was made, as it stands there."""
        found = [claim for claim in self.claims if isinstance(claim.statement, ProvenanceStatement)]
        if len(found) != 1:
            raise StructureError(f"{len(found)} statements of provenance where one belongs", where=EVIDENCE)
        return found[0]

    @property
    def provenance(self) -> ProvenanceStatement:
        """What that statement says."""
        statement = self.provenance_claim.statement
        assert isinstance(statement, ProvenanceStatement)
        return statement

    @cached_property
    def dependencies(self) -> Mapping[str, Resource]:
        """What the provenance says that it was made from, by name.

        Raises:
            StructureError: of more things than any build is.
        """
        count = len(self.provenance.predicate.build_definition.resolved_dependencies)
        if count > MOST_DEPENDENCIES:
            raise StructureError(f"names {count:,} things that it was made from", where="provenance")
        return {str(item.name): item for item in self.provenance.predicate.build_definition.resolved_dependencies}

    @property
    def byproducts(self) -> Mapping[str, str]:
        """What the provenance says lies beside it: name -> SHA-256 (hex)."""
        found = self.provenance.predicate.run_details.byproducts
        return {str(item.name): item.sha256 for item in found}

    @cached_property
    def loaded(self) -> LoadedRecipe:
        """The recipe's copy."""
        return read_recipe(self.read(RECIPE), where=f"{EVIDENCE}/{RECIPE}")

    @property
    def parameters(self) -> Mapping[str, JsonValue]:
        """What the provenance says that the build was asked for."""
        return self.provenance.predicate.build_definition.external_parameters

    @property
    def model(self) -> str:
        """What the provenance says that the source was called."""
        return str(self.parameters.get("model"))

    @property
    def fetched(self) -> Origin:
        """Where on the hub the provenance says that the source was fetched from, if it was."""
        revision = self.parameters.get("revision")
        return Origin(self.model, revision) if isinstance(revision, str) and revision else Origin()

    @cached_property
    def lock(self) -> Checkpoint | None:
        """The lock in references/ of the base that has the tensors that the evidence says of the source."""
        return lock_of(self._base_lock, self.start)

    @cached_property
    def _base_lock(self) -> Checkpoint | None:
        return base_of(self.loaded, self.start)

    @cached_property
    def identity(self) -> Identity:
        """Who the source is: by the digests that the provenance has of its files, and by the locks that are here."""
        return identify(self.source_shards, self.lock, self.sources)

    @cached_property
    def base(self) -> BaseModel:
        """The base as a build of this source by this recipe names it: what the evidence says is held against it."""
        return base_model(self.identity, self.fetched, self.model, self.loaded.recipe)

    @cached_property
    def results(self) -> Mapping[str, tuple[Result, ...]]:
        """The results in the reports, by the reports' names."""
        names = [name.removeprefix(TEST_RESULT) for name in self.byproducts if name.startswith(TEST_RESULT)]
        return {name: self.results_in(f"{name}.json") for name in names}

    def report(self, name: str) -> Report:
        """A report of the build.

        Raises:
            StructureError: it is not there, or not as Weighbridge writes it.
        """
        return read_report(self.read(f"{name}.json"), where=f"{EVIDENCE}/{name}.json")

    @cached_property
    def added_files(self) -> Mapping[str, str]:
        """Reports of results that came after the build: name -> SHA-256 (hex), as their statements have it."""
        return {name: digest for claim in self.added for name, digest in claim.bound.items() if name != PROVENANCE}

    def results_in(self, file: str) -> tuple[Result, ...]:
        """The results in a report of evidence/, as JSON.

        Raises:
            StructureError: it is not there, or no report.
        """
        where = f"{EVIDENCE}/{file}"
        return results_of(parse_object(self.read(file), where=where), where=where)

    @property
    def sources(self) -> Mapping[str, str]:
        """Files of the source by SHA-256 (hex), as the provenance has them."""
        return {
            name.removeprefix(SOURCE_FILE): item.sha256
            for name, item in self.dependencies.items()
            if name.startswith(SOURCE_FILE)
        }

    @property
    def source_shards(self) -> tuple[str, ...]:
        """The shards of the source, among the files that the provenance says were read."""
        return tuple(name for name in self.sources if name.endswith(".safetensors") and is_weights(name))

    def opened(self) -> Checkpoint:
        """The checkpoint by its headers.

        Raises:
            StructureError: these are malformed.
        """
        if self.checkpoint is None:
            raise StructureError("its headers and config cannot be read, so nothing is held against them", where="")
        return self.checkpoint

    @cached_property
    def start(self) -> Checkpoint:
        """What the build started from, as its evidence has it: structure, config and digests of files.

        Raises:
            StructureError: it is not there, or malformed.
        """
        self.read(START)
        lock = open_lock(self.directory / EVIDENCE / START)
        return replace(lock, label="the source in the evidence")

    @cached_property
    def expected(self) -> Expected:
        """What the recipe makes of the source that was handed over, or else of what the evidence says of it.

        Raises:
            WeighbridgeError: the recipe cannot be planned for it.
        """
        start = self.start if self.source is None else self.source
        why = "as the evidence has it" if self.source is None else "as it was named"
        base = self._base_lock if self.source is None else base_of(self.loaded, start)
        references = find_references(self.loaded, base)
        return Expected(make_plan(self.loaded, start), references, Base(start, start.label, listed=True, why=why))

    @property
    def same_version(self) -> bool:
        """Whether the evidence was written by this very version, so that it can be written again and compared."""
        return self.version == __version__

    @property
    def version(self) -> str:
        """The version of Weighbridge that wrote the evidence, by its own word."""
        return self.provenance.predicate.run_details.builder.version.get("weighbridge", "")


class Hashing(Protocol):
    """How the digests of a directory's shards are had, as `weighbridge.evidence.subject.hash_shards` has them."""

    def __call__(self, directory: Path, shards: Mapping[str, Header], *, progress: Progress) -> Digests:
        """SHA-256 of each shard, and of each tensor in them.

        Raises:
            StructureError: they cannot be had.
        """


def open_case(
    directory: Path,
    verifier: Verifier | None,
    source: Checkpoint | None,
    *,
    hashing: Hashing = hash_shards,
    progress: Progress,
) -> tuple[Case, list[Finding]]:
    """Read everything once, and say what cannot be read; a checkpoint that cannot be opened is still hashed.

    Raises:
        StructureError: the directory cannot be read.
    """
    listing = list_all(directory)
    findings = [
        wrong("evidence/link", name, odd, remedy="put the file itself in its place")
        for name, odd in listing.odd.items()
    ]
    what = "is covered by no digest: git or the hub keep it for themselves"
    findings += [Finding("evidence/uncovered", _uncovered(name), name, what) for name in listing.uncovered]
    checkpoint = None
    digests = Digests({}, {})
    try:
        checkpoint = open_directory(directory)
        shards = {name: header for name, header in checkpoint.shards.items() if name in listing.signed}
        digests = hashing(directory, shards, progress=progress)
    except StructureError as error:
        checkpoint = None  # of one that changed while it was hashed nothing can be said either
        findings.append(wrong("evidence/unreadable", error.where, error.what))
    rest = [name for name in listing.signed if name not in digests.files]
    digests = replace(digests, files={**digests.files, **hash_files(directory, rest, progress=progress)})
    case = Case(directory, listing, checkpoint, digests, verifier, source, progress)
    findings += _read_claims(case)
    return case, findings


def _uncovered(name: str) -> Severity:
    """Git, the hub and its client put some files there on their own; others have no business there."""
    return Severity.NOTE if name == ".gitattributes" or name.startswith(THEIR_OWN) else Severity.ERROR


def _read_claims(case: Case) -> Iterator[Finding]:
    """Read the statements into the case; what cannot be read is a finding."""
    there = [name for name in (CLAIMS, STATEMENTS) if f"{EVIDENCE}/{name}" in case.listing.evidence]
    if len(there) != 1:
        what = "has signed and unsigned statements" if there else "holds no statements about this checkpoint"
        remedy = "ask whoever built it for its evidence/, or audit it against its base"
        yield wrong("evidence/missing", f"{EVIDENCE}/", what, remedy=remedy)
        return
    signed = there == [CLAIMS]
    yield from _read_lines(case, there[0], case.claims, signed=signed)
    if f"{EVIDENCE}/{ADDED}" in case.listing.evidence:
        yield from _read_lines(case, ADDED, case.added, signed=signed)


def _read_lines(case: Case, name: str, claims: list[Claim], *, signed: bool) -> Iterator[Finding]:
    """Read the statements of a file, in envelopes where the build is signed."""
    try:
        lines = case.read(name).split(b"\n")
    except StructureError as error:
        yield wrong("evidence/unreadable", error.where, error.what)
        return
    if lines.pop() != b"":
        yield wrong("evidence/malformed", f"{EVIDENCE}/{name}", "does not end with a whole line")
    for number, line in enumerate(lines, 1):
        where = f"{EVIDENCE}/{name}:{number}"
        try:
            envelope = read_envelope(line, where=where) if signed else None
            payload = line if envelope is None else envelope.payload
            statement = read_statement(payload, where=where)
            canonical = line if envelope is None or envelope.bundle is not None else write_envelope(envelope)
            if line != canonical or payload != write_statement(statement):
                raise StructureError("is not written as Weighbridge writes it", where=where)
            claims.append(Claim(where, line, payload, statement, envelope))
        except StructureError as error:
            yield wrong("evidence/malformed", where, error.what)


def added_name(claim: Claim) -> str | None:
    """What judged, of a statement in added.jsonl; None where it does not name the two forms of one report."""
    folder = f"{EVIDENCE}/{ADDED_FOLDER}/"
    stems = {name.removesuffix(".json").removesuffix(".md") for name in claim.bound if name != PROVENANCE}
    stem = stems.pop() if len(stems) == 1 else ""
    name = stem.removeprefix(folder)
    whole = claim.bound.keys() == {PROVENANCE, f"{folder}{name}.json", f"{folder}{name}.md"}
    return name if whole and ADDED_NAME.fullmatch(name) else None
