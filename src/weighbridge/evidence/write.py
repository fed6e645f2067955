"""Writing the evidence of a build: the model card into the checkpoint, and what speaks of it into evidence/."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from weighbridge.base.identity import digest_files
from weighbridge.checkpoint.lock import write_lock
from weighbridge.checkpoint.model import EVIDENCE, Checkpoint, Origin, carried_files
from weighbridge.evidence.bom import BomFacts, write_bom
from weighbridge.evidence.card import BASE_CARD, CARD, BaseModel, CardFacts, model_name, write_card
from weighbridge.evidence.derivation import DERIVATION, derivation_statement, relation_of, verdicts_of
from weighbridge.evidence.dossier import DossierFacts, dossier_html, dossier_json
from weighbridge.evidence.environment import installed
from weighbridge.evidence.finished import AUDIT_REPORT, MAIN_REPORT, QUALITY_REPORT, FinishedBuild
from weighbridge.evidence.provenance import RECIPE, base_resource, provenance_statement, stamp
from weighbridge.evidence.results import Result, result_statement, results_of
from weighbridge.evidence.signing import (
    ADDED_FOLDER,
    EVIDENCE_IGNORED,
    EVIDENCE_SIGNATURE_FILE,
    MODEL_SIGNATURE_FILE,
    Signer,
)
from weighbridge.evidence.statements import Resource, sha256_of, subject_of, write_statement
from weighbridge.evidence.subject import hash_files, list_all, root_digest, write_files, write_tensors
from weighbridge.progress import Progress
from weighbridge.recipe import LoadedRecipe
from weighbridge.report import PRESENTERS, Chain, Finding, Link, Report, Section
from weighbridge.version import __version__

GUIDE = "README.md"
FILES, TENSORS = "files.sha256", "tensors.sha256"
START = "source.yaml"
"""The structure of what the build started from, with the digests of its files: what its plan was made of."""
BOM = "bom.cdx.json"
DOSSIER = ("dossier.json", "dossier.html")
LOG = "log.jsonl"
STATEMENTS, CLAIMS = "statements.jsonl", "claims.jsonl"
ADDED = f"{ADDED_FOLDER}/added.jsonl"
"""Statements of results that came after the build; see `weighbridge.evidence.added`."""
PROVENANCE = "provenance"
"""How such a statement names the provenance of its build."""
TEST_RESULT = "test-result/"
"""How provenance names the statement of a report's results among its by-products."""

_GUIDES = Path(__file__).parent


def write(directory: Path, build: FinishedBuild, *, signer: Signer | None = None, progress: Progress) -> None:
    """Write the model card and evidence/ of a build that holds.

    The card is part of the checkpoint, so it holds no clock and no path; builder and times stand in evidence/ alone.
    What was hashed while it was built is not hashed again.

    Args:
        directory: the finished checkpoint, before it takes its place.
        signer: who signs; None leaves plain statements, which say nothing of who made them.

    Raises:
        EvidenceError: the signer cannot sign.
        StructureError, OSError: a file cannot be read or written.
    """
    beside = directory / EVIDENCE
    shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed here
    beside.mkdir()
    written = {name: _write_report(beside, name, build) for name in build.reports}
    _write_card(directory, build, written)
    (beside / RECIPE).write_bytes(build.plan.loaded.raw)
    sources = source_digests(build.source, build.identity.digests, progress=progress)
    (beside / START).write_text(_start(build, sources))

    listing = list_all(directory)
    small = [name for name in listing.signed if name not in build.shard_digests]
    files = {**build.shard_digests, **hash_files(directory, small, progress=progress)}
    root = root_digest(files)
    (beside / FILES).write_bytes(write_files(files))
    (beside / TENSORS).write_bytes(write_tensors(build.plan.predicted.structure, build.tensor_digests))
    environment = installed()
    loaded, predicted = build.plan.loaded, build.plan.predicted
    finished = stamp(datetime.now(UTC))
    made = build.engine, build.device, environment, finished
    bom = BomFacts(loaded, build.base, predicted, root, files, *made, build.calibration)
    (beside / BOM).write_bytes(write_bom(bom, signer))
    for name, content in dossier_of(bom, build.reports, signed=signer is not None).items():
        (beside / name).write_bytes(content)
    (beside / GUIDE).write_bytes(guide(signed=signer is not None))
    (beside / LOG).write_text("".join(json.dumps(asdict(stage)) + "\n" for stage in build.stages))

    subject = subject_of(model_name(build.base, loaded.recipe), root)
    if signer is not None:
        (beside / MODEL_SIGNATURE_FILE).write_bytes(signer.sign_model(files, name=str(subject.name)))
    told_by = {name: _sha256(beside / name) for name in (TENSORS, FILES, f"{MAIN_REPORT}.json")}
    reports = {name: _without_paths(report, build) for name, report in build.reports.items()}
    chain = chain_section(build.base, loaded, root, told_by)
    for name, report in reports.items():
        (beside / f"{name}.html").write_text(page_of(report, chain))
    recipe = Resource(name=RECIPE, digest=sha256_of(loaded.raw))
    payloads = {
        TEST_RESULT + name: write_statement(result_statement(results, subject, [recipe]))
        for name, results in written.items()
    }
    if (audit := build.reports.get(AUDIT_REPORT)) is not None:
        derived = derivation_statement(
            audit,
            (beside / f"{AUDIT_REPORT}.json").read_bytes(),
            subject=subject,
            base=base_resource(build.base),
            recipe=loaded.sha256,
            version=__version__,
        )
        payloads[DERIVATION] = write_statement(derived)
    files_beside = {f"{EVIDENCE}/{path.name}": _sha256(path) for path in sorted(beside.iterdir())}
    byproducts = [
        *(Resource(name=name, digest={"sha256": digest}) for name, digest in files_beside.items()),
        *(Resource(name=name, digest=sha256_of(payload)) for name, payload in payloads.items()),
    ]
    how = provenance_statement(build, subject, source_digests=sources, environment=environment, byproducts=byproducts)
    lines = [*payloads.values(), write_statement(how)]
    if signer is not None:
        lines = [signer.sign_statement(line) for line in lines]
    (beside / (STATEMENTS if signer is None else CLAIMS)).write_bytes(b"".join(line + b"\n" for line in lines))
    if signer is not None:
        there = {path.name: _sha256(path) for path in beside.iterdir()}
        signature = signer.sign_model(there, name=EVIDENCE, ignored=EVIDENCE_IGNORED)
        (beside / EVIDENCE_SIGNATURE_FILE).write_bytes(signature)


def dossier_of(bom: BomFacts, reports: Mapping[str, Report], *, signed: bool) -> dict[str, bytes]:
    """The dossier's files, of what a writer and a verifier have: name -> content."""
    audit, quality = reports.get(AUDIT_REPORT), reports.get(QUALITY_REPORT)
    facts = DossierFacts(
        bom,
        signed=signed,
        relation="" if audit is None else relation_of(verdicts_of(audit)),
        quality={} if quality is None else measured_of(quality),
    )
    return dict(zip(DOSSIER, (dossier_json(facts), dossier_html(facts)), strict=True))


def measured_of(quality: Report) -> Mapping[str, int | float]:
    """The figures of a report of answers, without its counts of findings."""
    return {name: value for name, value in quality.metrics.items() if not name.endswith("s_count")}


def source_digests(source: Checkpoint, known: Mapping[str, str], *, progress: Progress) -> dict[str, str]:
    """SHA-256 (hex) of every file of a source that a build reads: shards, config, index, what is carried over, and what
    says who it is."""
    described = {source.form.config, source.form.index} & source.files.keys()
    read = {*source.shards, *carried_files(source), *described}
    return {**known, **digest_files(source, sorted(read - known.keys()), progress=progress)}


def _start(build: FinishedBuild, digests: Mapping[str, str]) -> str:
    """What the build started from, as a lock: under its own name, with the digest of each file that was read."""
    source = build.plan.source
    files = {name: replace(build.source.files[name], sha256=digests.get(name)) for name in build.source.files}
    return write_lock(replace(source, files=files, origin=start_origin(build.model, build.source.origin, build.base)))


def start_origin(model: str, fetched: Origin, base: BaseModel) -> Origin:
    """What a build started from, by what it is called: it names nothing but that, and the base."""
    return Origin(repository=model, revision=fetched.revision, base=base.repository)


def guide(*, signed: bool) -> bytes:
    """evidence/README.md: what each file is, and how to check it with the tools of others."""
    return (_GUIDES / f"guide-{'signed' if signed else 'unsigned'}.md").read_bytes()


def _write_report(beside: Path, name: str, build: FinishedBuild) -> tuple[Result, ...]:
    """Write a report as JSON and Markdown; gives the results in it."""
    report = _without_paths(build.reports[name], build)
    content = PRESENTERS["json"](report)
    (beside / f"{name}.json").write_text(content)
    (beside / f"{name}.md").write_text(PRESENTERS["markdown"](report))
    return results_of(json.loads(content), where=name)


def _without_paths(report: Report, build: FinishedBuild) -> Report:
    """A report that calls source and build by their names, whatever their directories are called."""
    name = model_name(build.base, build.plan.loaded.recipe)
    named = called_by_name(report, {build.source.label: build.model}, build.source.origin.repository)
    said = named.verdict.removeprefix(f"{named.subject} ")
    return replace(named, subject=name, verdict=named.verdict if said == named.verdict else f"{name} {said}")


def page_of(report: Report, chain: Section) -> str:
    """A report as its page in the evidence."""
    return PRESENTERS["html"](replace(report, sections=(*report.sections, chain)))


def chain_section(base: BaseModel, loaded: LoadedRecipe, root: str, told_by: Mapping[str, str]) -> Section:
    """From the base to the evidence, each by what it can be told from every other.

    Args:
        root: the checkpoint's root digest (hex).
        told_by: SHA-256 (hex) of the lists of tensors and files and of that report, by their names.
    """
    tensors, files, report = (told_by[name] for name in (TENSORS, FILES, f"{MAIN_REPORT}.json"))
    said = base.claim.sentence
    links = (
        Link("base", base.repository, {"commit": base.revision or "unknown", "whether it is that": said}),
        Link("recipe", loaded.recipe.name, {f"SHA-256 of {RECIPE}": loaded.sha256}),
        Link(
            "build",
            model_name(base, loaded.recipe),
            {"root digest (OpenSSF Model Signing v1.0)": root, "content digest of its tensors": tensors},
        ),
        Link(
            "evidence",
            f"{EVIDENCE}/, whose provenance names this page too by its digest",
            {f"SHA-256 of {FILES}": files, f"SHA-256 of {MAIN_REPORT}.json": report},
        ),
    )
    summary = "base, recipe, build, and what is stated of it"
    chain = Chain("what was made from what", links)
    return Section("chain", "from base to evidence", summary, figures=(chain,), judges=False)


def called_by_name(report: Report, names: Mapping[str, str], known: str = "") -> Report:
    """A report that calls checkpoints by their names: where they lay is nobody's business who reads it elsewhere.

    Args:
        names: path -> what it is called.
        known: a name with a slash that is no path.
    """
    paths = {report.subject: report.subject.rstrip("/").rpartition("/")[2], **names}
    named = {path: name for path, name in paths.items() if path not in ("", name, known)}

    def renamed(text: str) -> str:
        for path, name in named.items():
            text = text.replace(path, name)
        return text

    def of_finding(finding: Finding) -> Finding:
        return replace(finding, where=renamed(finding.where), message=renamed(finding.message))

    sections = tuple(
        replace(
            section,
            title=renamed(section.title),
            summary=renamed(section.summary),
            facts={label: renamed(fact) if isinstance(fact, str) else fact for label, fact in section.facts.items()},
            findings=tuple(map(of_finding, section.findings)),
        )
        for section in report.sections
    )
    return replace(report, subject=renamed(report.subject), verdict=renamed(report.verdict), sections=sections)


def _write_card(directory: Path, build: FinishedBuild, results: Mapping[str, tuple[Result, ...]]) -> None:
    source = build.source
    kept = base_card(source.files) if CARD in source.files else ""
    if kept:
        (directory / CARD).replace(directory / kept)
    facts = CardFacts(build.plan.loaded, build.plan.predicted, build.base, called(results), kept)
    (directory / CARD).write_bytes(write_card(facts))


def called(results: Mapping[str, tuple[Result, ...]]) -> dict[str, tuple[Result, ...]]:
    """Results by who judged, as the card calls them.

    Figures of quality stand in the evidence alone: they are sums of floats that another machine adds up in another
    order, and the card is part of a checkpoint that has the same bytes everywhere.
    """
    said = {MAIN_REPORT: "validation", AUDIT_REPORT: "audit"}
    return {said[name]: found for name, found in results.items() if name in said}


def base_card(names: Mapping[str, object]) -> str:
    """Under which name the source's own card is kept: one that no other file of the source has."""
    name = BASE_CARD
    while name in names:
        name = f"{name.removesuffix('.md')}.base.md"
    return name


def _sha256(path: Path) -> str:
    return sha256_of(path.read_bytes())["sha256"]
