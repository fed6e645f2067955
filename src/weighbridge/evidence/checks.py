"""What is checked of a checkpoint's evidence, one function for each matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from weighbridge.catalogue import REFERENCES, known_lock
from weighbridge.errors import StructureError, WeighbridgeError
from weighbridge.evidence.bom import model_component
from weighbridge.evidence.card import CARD, CardFacts, blocks, kept_card, model_name
from weighbridge.evidence.case import Case, added_name, wrong
from weighbridge.evidence.finished import MAIN_REPORT
from weighbridge.evidence.licence import judge_licence
from weighbridge.evidence.provenance import BASE, RECIPE, REFERENCE_FILE, REPOSITORY
from weighbridge.evidence.results import result_statement
from weighbridge.evidence.signing import read_envelope, read_model_statement
from weighbridge.evidence.statements import BUILD_TYPE, Resource, TestResultStatement, sha256_of, write_statement
from weighbridge.evidence.subject import write_tensors
from weighbridge.evidence.write import (
    ADDED,
    BOM,
    CLAIMS,
    FILES,
    PROVENANCE,
    SIGNATURE,
    START,
    STATEMENTS,
    TENSORS,
    TEST_RESULT,
    called,
)
from weighbridge.expectation import values_of
from weighbridge.formats.quantization import without_quantization
from weighbridge.identity import digest_files
from weighbridge.model_card import declared_licence
from weighbridge.report import Finding, Section, Severity
from weighbridge.structure.checkpoint import CONFIG_FILE, EVIDENCE
from weighbridge.structure.strict_json import parse_object
from weighbridge.structure.weights import INDEX_FILE
from weighbridge.validation import validate

UNPROVEN = "evidence/base-unproven"
"""The rule of a base that is not the published one by its digests."""
MADE_ANEW = frozenset({CONFIG_FILE, INDEX_FILE, CARD})
"""Files of a source that a build does not carry over under their own name."""
MOST_NAMED = 20
"""Tensors that are named one by one; of more than so many the rest is counted."""


@dataclass(frozen=True)
class Checked:
    """What a check came to.

    Attributes:
        summary: what was held against what, in a clause.
        findings: what is wrong.
        word: what rests on the signer's word all the same.
    """

    summary: str
    findings: tuple[Finding, ...] = ()
    word: str = ""


def _check_files(case: Case) -> Checked:
    """Every file is the one that was listed, and there is none too many or too few."""
    findings = [
        wrong("evidence/file-altered", name, f"has SHA-256 {digest[:12]}…, listed was {case.listed[name][:12]}…")
        for name, digest in case.files.items()
        if name in case.listed and case.listed[name] != digest
    ]
    removed = {name for name in case.listed if name not in case.files}
    for name in sorted(case.files.keys() - case.listed.keys()):
        was = next((old for old in sorted(removed) if case.listed[old] == case.files[name]), None)
        removed.discard(was or "")
        findings.append(
            wrong("evidence/file-renamed", name, f"was called {was}")
            if was
            else wrong("evidence/file-added", name, "is not among the files that the evidence is about")
        )
    findings += [
        wrong("evidence/file-missing", name, "is listed, but not there")
        for name in sorted(removed - case.listing.odd.keys())
    ]
    return Checked(f"{len(case.files):,} files hashed and held against {EVIDENCE}/{FILES}", tuple(findings))


def _check_tensors(case: Case) -> Checked:
    """Every tensor has the digest, dtype and shape that were listed."""
    structure = case.opened().structure
    listed = case.read(TENSORS).decode(errors="replace").splitlines(keepends=True)
    actual = write_tensors(structure, case.tensors).decode().splitlines(keepends=True)
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
    return Checked(f"{len(case.tensors):,} tensors hashed and held against {EVIDENCE}/{TENSORS}", tuple(findings))


def _check_signatures(case: Case) -> Checked:
    """With a key: every statement and the checkpoint's own digests are signed with it, and with no other."""
    if not case.signed:
        what = "nobody signed this"
        severity = Severity.NOTE if case.verifier is None else Severity.ERROR
        finding = Finding("evidence/unsigned", severity, f"{EVIDENCE}/", what, remedy="build it with --sign")
        return Checked(
            "unsigned", (finding,), word="all of it: whoever can change the files can change what is said of them"
        )
    where = f"{EVIDENCE}/{SIGNATURE}"
    model = read_envelope(case.read(SIGNATURE), where=where)
    root, files = read_model_statement(model, where=where)
    findings = []
    if files != case.listed or root != case.root:
        findings.append(wrong("evidence/subject", where, "is a signature over other files than those listed"))
    if case.verifier is None:
        finding = Finding(
            "evidence/signature-unchecked",
            Severity.WARNING,
            f"{EVIDENCE}/",
            "is signed, but no key was given to check it with",
            remedy="--key, with the signer's public key from somewhere else than here",
        )
        return Checked(
            "signed; by whom was not checked", (*findings, finding), word="all of it, as long as no key is given"
        )
    for place, envelope in [(where, model), *((claim.where, claim.envelope) for claim in (*case.claims, *case.added))]:
        try:
            if envelope is None:
                raise StructureError("is not signed", where=place)
            case.verifier.check(envelope)
        except StructureError as error:
            findings.append(wrong("evidence/signature", place, error.what))
    return Checked(f"{len(case.claims) + len(case.added) + 1} signatures checked", tuple(findings))


def _check_statements(case: Case) -> Checked:
    """All statements are about this checkpoint, and belong to one another and to the files beside them."""
    findings = []
    for claim in (*case.claims, *case.added):
        (subject,) = claim.statement.subject
        if (subject.digest or {}) != {"sha256": case.root}:
            findings.append(wrong("evidence/subject", claim.where, "speaks of another checkpoint"))
    bound = {**case.added_files, **case.byproducts}
    for name in case.listing.evidence:
        if name in (f"{EVIDENCE}/{CLAIMS}", f"{EVIDENCE}/{STATEMENTS}", f"{EVIDENCE}/{ADDED}"):
            continue
        digest = sha256_of(case.read(name.removeprefix(f"{EVIDENCE}/")))["sha256"]
        if name not in bound:
            findings.append(wrong("evidence/unbound", name, "lies there, but no statement speaks of it"))
        elif bound[name] != digest:
            findings.append(wrong("evidence/altered", name, "is not the file that the statement about it speaks of"))
    missing = [name for name in bound if name.startswith(f"{EVIDENCE}/") and name not in case.listing.evidence]
    findings += [wrong("evidence/missing", name, "is not there") for name in sorted(missing)]
    findings += [*_check_results_bound(case), *_check_added_bound(case)]
    definition = case.provenance.predicate.build_definition
    if definition.build_type != BUILD_TYPE:
        findings.append(
            wrong("evidence/other-build", "provenance", f"is about a build of type {definition.build_type}")
        )
    names = [str(item.name) for item in definition.resolved_dependencies]
    if len(set(names)) != len(names):
        findings.append(wrong("evidence/malformed", "provenance", "names a dependency twice"))
    word = "when it was built, on what machine, with which packages and which commit of Weighbridge"
    return Checked(
        f"{len(case.claims) + len(case.added)} statements held against one another and {len(bound)} by-products",
        tuple(findings),
        word,
    )


def _check_results_bound(case: Case) -> Iterator[Finding]:
    """The test results are those that the provenance names: none replayed, left out or put in."""
    stated = {digest: name for name, digest in case.byproducts.items() if name.startswith(TEST_RESULT)}
    for claim in case.claims:
        if isinstance(claim.statement, TestResultStatement):
            digest = sha256_of(claim.payload)["sha256"]
            if stated.pop(digest, None) is None:
                yield wrong("evidence/replayed", claim.where, "is not the statement that the provenance belongs to")
    for name in stated.values():
        yield wrong("evidence/missing", name, "the statement that the provenance speaks of is not there")


def _check_added_bound(case: Case) -> Iterator[Finding]:
    """Results that came after the build belong to it, speak of reports of their own, and no two of the same."""
    provenance = sha256_of(case.provenance_claim.payload)["sha256"]
    taken = set(case.byproducts)
    for claim in case.added:
        if claim.bound.get(PROVENANCE) != provenance:
            yield wrong("evidence/replayed", claim.where, "belongs to the provenance of another build")
        reports = claim.bound.keys() - {PROVENANCE}
        if added_name(claim) is None or reports & taken:
            yield wrong("evidence/malformed", claim.where, "speaks of no report of its own")
        taken |= reports


def _check_recipe(case: Case) -> Checked:
    """The recipe's copy is the recipe that was built, and what is stated of it is what it says."""
    raw = case.read(RECIPE)
    findings = []
    stated = case.dependencies.get(RECIPE)
    if stated is None or stated.digest != sha256_of(raw):
        findings.append(wrong("evidence/recipe", f"{EVIDENCE}/{RECIPE}", "is not the recipe that the provenance names"))
    recipe = case.loaded.recipe
    (subject,) = case.provenance.subject
    for what, ours, theirs in (
        ("recipe", recipe.name, case.provenance.predicate.build_definition.external_parameters.get("recipe")),
        ("subject", model_name(case.base, recipe), subject.name),
    ):
        if ours != theirs:
            findings.append(wrong("evidence/recipe", "provenance", f"names the {what} {theirs}; it is {ours}"))
    return Checked(f"{EVIDENCE}/{RECIPE} held against the provenance", tuple(findings))


def _check_results(case: Case) -> Checked:
    """The test results are those of the reports, and those of validation come out the same again."""
    subject = case.provenance.subject[0]
    recipe = Resource(name=RECIPE, digest=sha256_of(case.read(RECIPE)))
    findings = []
    for name, results in case.results.items():
        written = sha256_of(write_statement(result_statement(results, subject, [recipe])))["sha256"]
        if written != case.byproducts[TEST_RESULT + name]:
            findings.append(
                wrong("evidence/results", f"{EVIDENCE}/{name}.json", "is not the report that the test result is about")
            )
        findings += [
            wrong("evidence/results", f"{name}: {result.name}", "failed")
            for result in results
            if result.outcome == "FAILED"
        ]
    findings += _check_added(case)
    stated = {result.name: result for result in case.results.get(MAIN_REPORT, ())}
    again = {section.title: section for section in validated(case) + _again(case)}
    for name, result in stated.items():
        section = again.get(name)
        if section is not None and (section.summary, section.holds) != (result.summary, result.outcome != "FAILED"):
            findings.append(wrong("evidence/results", name, f"was stated: {result.summary}; it is: {section.summary}"))
    unseen = [name for name in stated if name not in again] + [name for name in case.results if name != MAIN_REPORT]
    unseen += [name for name in map(added_name, case.added) if name is not None]
    return Checked(
        f"{len(stated) - len([name for name in stated if name not in again])} of {len(stated)} results of validation "
        "come out the same again",
        tuple(findings),
        word=f"what was not done again: {', '.join(unseen)}" if unseen else "",
    )


def _check_added(case: Case) -> Iterator[Finding]:
    """The statements of results that came later say what their reports say."""
    for claim in case.added:
        name = added_name(claim)
        if name is None or not isinstance(claim.statement, TestResultStatement):
            continue
        results = case.results_in(f"{name}.json")
        written = result_statement(results, case.provenance.subject[0], claim.statement.predicate.configuration)
        if write_statement(written) != claim.payload:
            yield wrong(
                "evidence/results", f"{EVIDENCE}/{name}.json", "is not the report that the test result is about"
            )
        for result in results:
            if result.outcome == "FAILED":
                yield wrong("evidence/results", f"{name}: {result.name}", "failed")


def _again(case: Case) -> list[Section]:
    """Sections that a build judges beside the structure: the licence and the scales."""
    sections = []
    try:
        kept = kept_card(case.files)
        sections.append(judge_licence(case.loaded.recipe, declared_licence(case.directory, kept or "no card")))
        sections += values_of(case.opened(), case.expected.plan)
    except WeighbridgeError:  # each is a finding of the check that needs it itself
        return sections
    return sections


def _check_card(case: Case) -> Checked:
    """Every part of the model card says what recipe, tensors and results say."""
    facts = CardFacts(case.loaded, case.opened(), case.base, called(case.results), kept_card(case.files))
    try:
        card = (case.directory / CARD).read_text()
    except (OSError, UnicodeDecodeError):
        return Checked("is no card", (wrong("evidence/card", CARD, "cannot be read"),))
    untrue = [part for part, text in blocks(facts).items() if text not in card]
    findings = [
        Finding("evidence/card", _strictness(case), CARD, f"its part on the {part} does not say what was measured")
        for part in untrue
    ]
    return Checked("its parts written again from recipe, tensors and reports, and compared", tuple(findings))


def _check_bom(case: Case) -> Checked:
    """The bill of materials lists this model, this base and the packages that the provenance lists."""
    where = f"{EVIDENCE}/{BOM}"
    bom = parse_object(case.read(BOM), where=where)
    expected = model_component(case.loaded.recipe, case.base, case.opened(), root=case.root, files=case.listed)
    findings = []
    metadata, components = bom.get("metadata"), bom.get("components")
    actual = metadata.get("component") if isinstance(metadata, dict) else None
    if not isinstance(actual, dict) or not isinstance(components, list):
        raise StructureError("is no bill of materials of a model", where=where)
    findings += [
        Finding("evidence/bom", _strictness(case), where, f"the model's {part} is not what it should be")
        for part in sorted(expected.keys() | actual.keys())
        if expected.get(part) != actual.get(part)
    ]
    listed = {str(item.get("purl")) for item in components if isinstance(item, dict)}
    stated = {item.uri for name, item in case.dependencies.items() if (item.uri or "").startswith("pkg:pypi/")}
    stated.discard(next((item.uri for name, item in case.dependencies.items() if name == REPOSITORY), None))
    findings += [
        wrong("evidence/bom", str(purl), f"is listed in {'the bill' if purl in listed else 'the provenance'} alone")
        for purl in sorted(map(str, listed ^ stated))
    ]
    return Checked(f"{len(components)} packages and the model held against provenance and tensors", tuple(findings))


def _check_source(case: Case) -> Checked:
    """What was read is the base that it is said to be, as far as that can be seen from here."""
    sources = case.sources
    findings = [*_check_carried(case, sources), *_check_start(case, sources)]
    base = case.base
    stated = case.dependencies[BASE]
    proven = (stated.annotations or {}).get("proven") is True
    lock = known_lock(base.repository)
    word = f"that {base.repository} was read"
    summary = f"{len(sources)} files of the source stated"
    if lock is not None:
        pinned = {name: fact.sha256 for name, fact in lock.files.items() if fact.sha256}
        other = [name for name in sorted(pinned) if sources.get(name) != pinned[name]]
        if proven:
            what = f"is stated to be {base.repository}'s, but has another digest than that has"
            findings += [wrong("evidence/identity", name, what) for name in other]
        elif other or not pinned:
            what = (
                f"has another digest than {base.repository} has" if other else "of the base is in no lock by a digest"
            )
            where = other[0] if other else f"{EVIDENCE}/{START}"
            findings.append(Finding(UNPROVEN, Severity.WARNING, where, what, remedy="build it of the published base"))
        summary += f"; {len(pinned) - len(other)} have the digests that references/ has of {base.repository}"
    else:
        what = f"is said to be of {base.repository}, which no lock in references/ is of"
        remedy = "hold it against the base itself: give it as the source"
        findings.append(Finding(UNPROVEN, Severity.WARNING, f"{EVIDENCE}/{START}", what, remedy=remedy))
    if case.source is None:
        return Checked(summary, tuple(findings), f"{word}: no --source was given to compare with")
    actual = digest_files(case.source, [name for name in sources if name in case.source.files], progress=case.progress)
    findings += [
        wrong(
            "evidence/source",
            name,
            f"has SHA-256 {actual[name][:12]}…, stated was {digest[:12]}…"
            if name in actual
            else "is not in the source",
        )
        for name, digest in sources.items()
        if actual.get(name) != digest
    ]
    return Checked(
        f"{summary}; all of them hashed in {case.source.label}",
        tuple(findings),
        "that these bytes became those: rebuild it, or audit the numbers",
    )


def _check_start(case: Case, sources: Mapping[str, str]) -> Iterator[Finding]:
    """What the plan is made of again is what was read: by its digests, and by the structure that the source has."""
    where = f"{EVIDENCE}/{START}"
    start = case.start
    stated = {name: fact.sha256 for name, fact in start.files.items() if fact.sha256}
    for name in sorted(stated.keys() | sources.keys()):
        if stated.get(name) != sources.get(name):
            yield wrong("evidence/source", f"{where}: {name}", "has another digest than the provenance states")
    known = case.source
    if known is None:
        lock = known_lock(case.base.repository)
        pinned = {name for name, fact in lock.files.items() if fact.sha256} if lock is not None else set()
        shards = {name for name in pinned if lock is not None and lock.files[name].sha256 == sources.get(name)}
        known = lock if shards and shards == pinned else None
    if known is not None and known.structure != start.structure:
        yield wrong("evidence/source", where, f"describes other tensors than {known.label} has")
    if known is not None and without_quantization(known.config) != without_quantization(start.config):
        yield wrong("evidence/source", where, f"has another config.json than {known.label}")


def _check_carried(case: Case, sources: Mapping[str, str]) -> Iterator[Finding]:
    """Files that a build carries over are the source's own, byte for byte."""
    kept = kept_card(case.listed)
    for name, digest in sources.items():
        here = kept if name == CARD else name
        carried = (here != name or name not in MADE_ANEW) and not name.endswith(".safetensors")
        if carried and case.listed.get(here, digest) != digest:
            yield wrong("evidence/carried", here, f"is not the source's own {name}")


def _check_references(case: Case) -> Checked:
    """The references that it was held against are those of this checkout."""
    stated = {name: item for name, item in case.dependencies.items() if name.startswith(REFERENCE_FILE)}
    findings, unknown = [], []
    for name, item in stated.items():
        path = REFERENCES / name.removeprefix(REFERENCE_FILE)
        if ".." in path.parts or not path.is_file():
            unknown.append(name)
        elif sha256_of(path.read_bytes()) != item.digest:
            findings.append(
                Finding(
                    "evidence/reference",
                    Severity.WARNING,
                    name,
                    "is another lock here than the one it was held against",
                )
            )
    word = f"that it was held against {', '.join(unknown)}" if unknown else ""
    return Checked(f"{len(stated) - len(unknown)} of {len(stated)} locks are here", tuple(findings), word)


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
            Section("against its recipe", "no plan can be made", findings=(finding,)),
        ]
    report = validate(
        case.checkpoint,
        plan=expected.plan,
        references=expected.references,
        base=expected.base,
    )
    return list(report.sections)


def _strictness(case: Case) -> Severity:
    """Another version may word things otherwise, and its files are bound by digest all the same."""
    return Severity.ERROR if case.same_version else Severity.WARNING


CHECKS: Mapping[str, Callable[[Case], Checked]] = {
    "the files": _check_files,
    "the tensors": _check_tensors,
    "the signatures": _check_signatures,
    "the statements": _check_statements,
    "the recipe": _check_recipe,
    "the results": _check_results,
    "the model card": _check_card,
    "the bill of materials": _check_bom,
    "the source": _check_source,
    "the references": _check_references,
}
"""What is checked, in order; each function says how."""
