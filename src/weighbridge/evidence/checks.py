"""What is checked of a checkpoint's evidence, one function for each matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from weighbridge.base.model_card import declared_licence
from weighbridge.checkpoint.model import EVIDENCE
from weighbridge.checks.expectation import values_of
from weighbridge.checks.validation import validate
from weighbridge.errors import StructureError, WeighbridgeError
from weighbridge.evidence.card import kept_card
from weighbridge.evidence.case import Case, added_name
from weighbridge.evidence.checked import Checked, wrong
from weighbridge.evidence.derivation import DERIVATION, derivation_statement
from weighbridge.evidence.finished import AUDIT_REPORT, MAIN_REPORT
from weighbridge.evidence.licence import judge_licence
from weighbridge.evidence.pages import check_bom, check_card, check_pages
from weighbridge.evidence.provenance import RECIPE, base_resource
from weighbridge.evidence.results import Result, result_statement
from weighbridge.evidence.signing import (
    ADDED_FOLDER,
    ADDED_IGNORED,
    ADDED_SIGNATURE_FILE,
    EVIDENCE_IGNORED,
    EVIDENCE_SIGNATURE_FILE,
    IGNORED,
    MODEL_SIGNATURE_FILE,
    Envelope,
    read_envelope,
    read_model_statement,
)
from weighbridge.evidence.source import check_source
from weighbridge.evidence.stated import check_provenance
from weighbridge.evidence.statements import (
    DerivationStatement,
    Resource,
    TestResultStatement,
    sha256_of,
    write_statement,
)
from weighbridge.evidence.subject import root_digest, write_tensors
from weighbridge.evidence.write import ADDED, CLAIMS, FILES, PROVENANCE, STATEMENTS, TENSORS, TEST_RESULT
from weighbridge.report import Finding, Section, SectionId, Severity

_FETCH = "fetch it again from whoever built it; until then serve nothing of this"

MOST_NAMED = 20
"""Tensors that are named one by one; of more than so many the rest is counted."""


def _check_files(case: Case) -> Checked:
    """Every file is the one that was listed, and there is none too many or too few."""
    findings = []
    for name, digest in case.files.items():
        if (listed := case.listed.get(name, digest)) != digest:
            what = f"has SHA-256 {digest[:12]}…, listed was {listed[:12]}…"
            findings.append(wrong("evidence/file-altered", name, what, remedy=_FETCH))
    removed = {name for name in case.listed if name not in case.files}
    for name in sorted(case.files.keys() - case.listed.keys()):
        was = next((old for old in sorted(removed) if case.listed[old] == case.files[name]), None)
        removed.discard(was or "")
        if was:
            findings.append(wrong("evidence/file-renamed", name, f"was called {was}"))
        else:
            what = "is not among the files that the evidence is about"
            remedy = "take it out: a server may read it, and nobody has vouched for it"
            findings.append(wrong("evidence/file-added", name, what, remedy=remedy))
    findings += [
        wrong("evidence/file-missing", name, "is listed, but not there", remedy=_FETCH)
        for name in sorted(removed - case.listing.odd.keys())
    ]
    words = tuple(f"what {name} holds: no digest covers it" for name in case.listing.uncovered)
    summary = f"{len(case.files):,} files {case.digests.files_were} with {EVIDENCE}/{FILES}"
    return Checked(summary, tuple(findings), words)


def _check_tensors(case: Case) -> Checked:
    """Every tensor has the digest, dtype and shape that were listed."""
    structure = case.opened().structure
    listed = case.read(TENSORS).decode(errors="replace").splitlines(keepends=True)
    actual = write_tensors(structure, case.digests.tensors).decode().splitlines(keepends=True)
    differ = sorted(set(listed) ^ set(actual)) or (sorted(set(listed)) if len(listed) != len(actual) else [])
    names = sorted({line.rpartition(" ")[2].strip() for line in differ})
    findings = [
        wrong("evidence/tensor-altered", name, "is not the tensor that was listed", remedy="fetch the shard again")
        for name in names[:MOST_NAMED]
    ]
    if len(names) > MOST_NAMED:
        findings.append(
            wrong("evidence/tensor-altered", "further tensors", "are not those listed", count=len(names) - MOST_NAMED)
        )
    if not differ and listed != actual:
        findings.append(wrong("evidence/malformed", f"{EVIDENCE}/{TENSORS}", "is not in order"))
    summary = f"{len(case.digests.tensors):,} tensors {case.digests.tensors_were} with {EVIDENCE}/{TENSORS}"
    return Checked(summary, tuple(findings))


def _check_signatures(case: Case) -> Checked:
    """With a key: every statement, the checkpoint's own digests and those of the evidence are signed with it."""
    if not case.signed:
        severity, remedy = Severity.NOTE if case.verifier is None else Severity.ERROR, "ask whoever built it to sign it"
        finding = Finding("evidence/unsigned", severity, f"{EVIDENCE}/", "is not signed", remedy=remedy)
        words = ("all of it: nothing is signed, so whoever can change the files can change the evidence, too",)
        return Checked("unsigned", (finding,), words, judges=case.verifier is not None)
    findings: list[Finding] = []
    envelopes: list[tuple[str, Envelope | None]] = [
        (claim.where, claim.envelope) for claim in (*case.claims, *case.added)
    ]
    for name, files, called, ignored in _signed(case):
        where = f"{EVIDENCE}/{name}"
        bundle = read_envelope(case.read(name), where=where)
        envelopes.append((where, bundle))
        signed = read_model_statement(bundle, ignored=ignored, where=where)
        if signed.root != root_digest(files) or signed.name != called:
            findings.append(wrong("evidence/subject", where, f"signs something else than {called}"))
        for file in sorted(signed.files.keys() | files.keys()):
            if signed.files.get(file) != files.get(file):
                findings.append(wrong("evidence/subject", where, f"signs another {file} than the one here"))
    if case.verifier is None:
        what = "is signed, but no key was given to check it with"
        remedy = "check it with the signer's public key, taken from the signer and not from this checkpoint"
        finding = Finding("evidence/signature-unchecked", Severity.WARNING, f"{EVIDENCE}/", what, remedy=remedy)
        words = ("all of it, as long as no key is given",)
        return Checked("signed; by whom was not checked", (*findings, finding), words)
    for place, envelope in envelopes:
        try:
            if envelope is None:
                raise StructureError("is not signed", where=place)
            case.verifier.check(envelope)
        except StructureError as error:
            findings.append(wrong("evidence/signature", place, error.what))
    over = "as they are listed" if case.files != case.listed else "as they are here"
    return Checked(f"{len(envelopes)} signatures checked; they sign the files {over}", tuple(findings))


def _signed(case: Case) -> Iterator[tuple[str, Mapping[str, str], str, Collection[str]]]:
    """Each Model Signing bundle that belongs there: its file, what it has to be over, what it calls that, and what it
    may say that it leaves out."""
    yield MODEL_SIGNATURE_FILE, case.listed, str(case.provenance.subject[0].name), IGNORED
    beside = {name.removeprefix(f"{EVIDENCE}/"): digest for name, digest in case.beside.items()}
    later = {name for name in beside if name.startswith(f"{ADDED_FOLDER}/")}
    whole = {name: beside[name] for name in beside.keys() - later - {EVIDENCE_SIGNATURE_FILE}}
    yield EVIDENCE_SIGNATURE_FILE, whole, EVIDENCE, EVIDENCE_IGNORED
    if later:
        signature = f"{ADDED_FOLDER}/{ADDED_SIGNATURE_FILE}"
        added = {name.removeprefix(f"{ADDED_FOLDER}/"): beside[name] for name in later - {signature}}
        yield signature, added, ADDED_FOLDER, ADDED_IGNORED


def _check_statements(case: Case) -> Checked:
    """All statements are about this checkpoint, and belong to one another and to the files beside them."""
    findings = []
    for claim in (*case.claims, *case.added):
        (subject,) = claim.statement.subject
        if (subject.digest or {}) != {"sha256": case.root}:
            what = "is about another checkpoint (its subject has another digest)"
            findings.append(wrong("evidence/subject", claim.where, what))
    bound = {**case.added_files, **case.byproducts}
    own = {f"{EVIDENCE}/{name}" for name in (CLAIMS, STATEMENTS, ADDED)}
    if case.signed:  # they are over what speaks of the rest
        own |= {f"{EVIDENCE}/{name}" for name in (EVIDENCE_SIGNATURE_FILE, f"{ADDED_FOLDER}/{ADDED_SIGNATURE_FILE}")}
    for name, digest in case.beside.items():
        if name in own:
            continue
        if name not in bound:
            findings.append(wrong("evidence/unbound", name, "lies there, but no statement names it"))
        elif bound[name] != digest:
            what = "is altered: its digest is another than the statement about it gives"
            findings.append(wrong("evidence/altered", name, what))
    missing = [name for name in bound if name.startswith(f"{EVIDENCE}/") and name not in case.beside]
    findings += [wrong("evidence/missing", name, "is not there") for name in sorted(missing)]
    findings += [*_check_results_bound(case), *_check_added_bound(case)]
    return Checked(
        f"{len(case.claims) + len(case.added)} statements compared with one another and with the {len(bound)} files "
        "and results that they name",
        tuple(findings),
    )


def _check_results_bound(case: Case) -> Iterator[Finding]:
    """The test results are those that the provenance names: none replayed, left out or put in."""
    stated = {digest: name for name, digest in case.byproducts.items() if name.startswith(TEST_RESULT)}
    for claim in case.claims:
        if isinstance(claim.statement, TestResultStatement):
            digest = sha256_of(claim.payload)["sha256"]
            if stated.pop(digest, None) is None:
                yield wrong("evidence/replayed", claim.where, "names another provenance than the one that is here")
    for name in stated.values():
        yield wrong("evidence/missing", name, "is missing: the provenance names this statement")


def _check_added_bound(case: Case) -> Iterator[Finding]:
    """Results that came after the build belong to it, speak of reports of their own, and no two of the same."""
    provenance = sha256_of(case.provenance_claim.payload)["sha256"]
    taken = set(case.byproducts)
    for claim in case.added:
        if claim.bound.get(PROVENANCE) != provenance:
            yield wrong("evidence/replayed", claim.where, "belongs to the provenance of another build")
        reports = claim.bound.keys() - {PROVENANCE}
        if added_name(claim) in (None, *case.results) or reports & taken:
            yield wrong("evidence/malformed", claim.where, "speaks of no report of its own")
        taken |= reports


def _check_results(case: Case) -> Checked:
    """The test results are those of the reports, and those of validation come out the same again."""
    subject = case.provenance.subject[0]
    recipe = Resource(name=RECIPE, digest=sha256_of(case.read(RECIPE)))
    findings: list[Finding] = []
    for name, results in case.results.items():
        written = sha256_of(write_statement(result_statement(results, subject, [recipe])))["sha256"]
        findings += _check_result(name, f"{name}.json", results, stated=written == case.byproducts[TEST_RESULT + name])
    findings += [*_check_derivation(case), *_check_added(case)]
    stated = case.report(MAIN_REPORT).sections
    again = {_key(section): section for section in (*validated(case), *_again(case))}
    others = [*_stated_otherwise(case, stated, again)]
    findings += [*others, *_under_another_id(stated, again.values()), *_not_stated(case, stated, again)]
    unseen = [said.title for said in stated if _key(said) not in again and said.id != "source"]  # that: see the pages
    same = len(stated) - len(unseen) - len(others)
    again_not = f"; {len(unseen)} cannot be done again here" if unseen else ""
    unseen += [name for name in case.results if name != MAIN_REPORT]
    unseen += [name for name in map(added_name, case.added) if name is not None]
    return Checked(
        f"validated again: {same} of {len(stated)} sections of the report are the same{again_not}",
        tuple(findings),
        (f"what was not done again: {', '.join(unseen)}",) if unseen else (),
    )


def _key(section: Section) -> tuple[SectionId, str]:
    """What a section is known by in its report."""
    return section.id, section.title


def _stated_otherwise(
    case: Case, stated: Iterable[Section], again: Mapping[tuple[SectionId, str], Section]
) -> Iterator[Finding]:
    for said in stated:
        section = again.get(_key(said))
        if section is not None and not _same(said, section, case):
            differ = f"was stated: {said.summary}; it is: {section.summary}"
            if said.summary == section.summary:
                differ = "has other findings, facts or figures when it is done again"
            yield wrong("evidence/results", said.title, differ)


def _under_another_id(stated: Iterable[Section], again: Iterable[Section]) -> Iterator[Finding]:
    """What people know by its title is what programs know by its id: no two kinds of sections have the same title."""
    kinds: dict[str, SectionId] = {}
    for section in (*again, *stated):
        kind = kinds.setdefault(section.title, section.id)
        if section.id != kind:
            yield wrong("evidence/results", section.title, f"was stated as {section.id}; it is: {kind}")


def _not_stated(
    case: Case, stated: Iterable[Section], again: Mapping[tuple[SectionId, str], Section]
) -> Iterator[Finding]:
    """What a build is held against is told. References that were named by hand take the place of the recipe's own."""
    named = bool(case.parameters.get("references"))
    known = set(map(_key, stated))
    for key, section in again.items():
        if key not in known and not (named and section.id == "against-reference"):
            yield wrong("evidence/results", section.title, "was not stated")


def _same(said: Section, section: Section, case: Case) -> bool:
    """Whether a section comes out as it was stated; another version may have found other things on the way."""
    if (section.summary, section.holds) != (said.summary, said.holds):
        return False
    return not case.same_version or _found(said) == _found(section)


def _found(section: Section) -> Mapping[tuple[str, Severity, int, str, str], int]:
    """What a section has found, without the places, which name files and lines that lie elsewhere now."""
    return Counter(
        (finding.rule, finding.severity, finding.count, finding.message, finding.remedy) for finding in section.findings
    )


def _check_derivation(case: Case) -> Iterator[Finding]:
    """The statement of the derivation says what the audit's report says; where nothing was audited, there is none."""
    claims = [claim for claim in case.claims if isinstance(claim.statement, DerivationStatement)]
    if AUDIT_REPORT not in case.results:
        for claim in claims:
            yield wrong("evidence/results", claim.where, "states a derivation, and nothing was audited")
        return
    made = derivation_statement(
        case.report(AUDIT_REPORT),
        case.read(f"{AUDIT_REPORT}.json"),
        subject=case.provenance.subject[0],
        base=base_resource(case.base),
        recipe=case.loaded.sha256,
        version=case.version,
    )
    payload = write_statement(made)
    named = case.byproducts.get(DERIVATION) == sha256_of(payload)["sha256"]
    if not named or [claim.payload for claim in claims] != [payload]:
        what = "is not the one statement of what the audit found that the provenance names"
        yield wrong("evidence/results", claims[0].where if claims else f"{EVIDENCE}/", what)


def _check_added(case: Case) -> Iterator[Finding]:
    """The statements of results that came later say what their reports say."""
    for claim in case.added:
        name = added_name(claim)
        if name is None or not isinstance(claim.statement, TestResultStatement):
            continue
        file = f"{ADDED_FOLDER}/{name}.json"
        results = case.results_in(file)
        written = result_statement(results, case.provenance.subject[0], claim.statement.predicate.configuration)
        yield from _check_result(name, file, results, stated=write_statement(written) == claim.payload)


def _check_result(name: str, file: str, results: Iterable[Result], *, stated: bool) -> Iterator[Finding]:
    """A report's results are those of the statement about it, and none of them failed."""
    if not stated:
        yield wrong("evidence/results", f"{EVIDENCE}/{file}", "is not the report whose digest the test result gives")
    for result in results:
        if result.outcome == "FAILED":
            yield wrong("evidence/results", f"{name}: {result.name}", "failed")


def _again(case: Case) -> list[Section]:
    """Sections that a build judges beside the structure: the licence and the scales."""
    sections = []
    with suppress(WeighbridgeError):  # each is a finding of the check that needs it itself
        kept = kept_card(case.files)
        case.opened()  # where it cannot be, there may be links among its files
        sections.append(judge_licence(case.loaded.recipe, declared_licence(case.directory, kept or "no card")))
        sections += values_of(case.opened(), case.expected.plan)
    return sections


def validated(case: Case) -> list[Section]:
    """The checkpoint against itself, and against the plan and references of its recipe where these can be had."""
    if case.checkpoint is None:
        return []
    try:
        expected = case.expected
    except WeighbridgeError as error:
        finding = Finding("evidence/no-plan", Severity.ERROR, f"{EVIDENCE}/{RECIPE}", str(error))
        return [
            *validate(case.checkpoint).sections,
            Section("against-plan", "against its recipe", "no plan can be made", findings=(finding,)),
        ]
    plan, references, base = expected.plan, expected.references, expected.base
    return [*validate(case.checkpoint, plan=plan, references=references, base=base).sections]


@dataclass(frozen=True)
class Check:
    """One matter, and the section of the report that it becomes."""

    id: SectionId
    title: str
    run: Callable[[Case], Checked]


CHECKS = (
    Check("evidence-files", "the files", _check_files),
    Check("evidence-tensors", "the tensors", _check_tensors),
    Check("evidence-signatures", "the signatures", _check_signatures),
    Check("evidence-statements", "the statements", _check_statements),
    Check("evidence-source", "the source", check_source),
    Check("evidence-provenance", "the provenance", check_provenance),
    Check("evidence-results", "the results", _check_results),
    Check("evidence-card", "the model card", check_card),
    Check("evidence-bom", "the bill of materials", check_bom),
    Check("evidence-reports", "the reports", check_pages),
)
"""What is checked, in order; each function says how."""
