"""Building a checkpoint again from its evidence, and comparing the bytes.

What has to be the same is what the provenance names: the packages, this repository's commit, the source's files, the
recipe. Where one differs there is nothing to compare, and the reason is said before anything is built.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

from weighbridge.base.identity import digest_files
from weighbridge.base.locks import lock_file
from weighbridge.base.references import NO_REFERENCE
from weighbridge.base.source import MADE, MINIATURE, fetch, open_model, open_source
from weighbridge.building import BuildRequest, build, build_base
from weighbridge.building.making import Engine
from weighbridge.checkpoint.model import EVIDENCE, Checkpoint
from weighbridge.checkpoint.opening import hub_name
from weighbridge.errors import EvidenceError, RecipeError, StructureError
from weighbridge.evidence.case import Case, open_case
from weighbridge.evidence.checked import wrong
from weighbridge.evidence.environment import installed, machine, repository
from weighbridge.evidence.finished import AUDIT_REPORT
from weighbridge.evidence.provenance import CALIBRATION, RECIPE, REFERENCE_FILE, REPOSITORY, SOURCE_FILE, stamp
from weighbridge.evidence.results import Result, result_statement, results_of
from weighbridge.evidence.statements import Resource, sha256_of, write_statement
from weighbridge.evidence.subject import root_digest
from weighbridge.evidence.write import PROVENANCE
from weighbridge.machine.resources import Resources
from weighbridge.progress import Progress
from weighbridge.recipe import LoadedRecipe
from weighbridge.recipe.foreign import without_files
from weighbridge.report import PRESENTERS, Finding, Report, Section, Severity, first_error
from weighbridge.version import __version__

REBUILT = "same bytes"
MOST_REFERENCES = 100
ENGINES: Mapping[str, Engine] = {"streaming": "streaming", "layerwise": "streaming", "upstream": "upstream"}
"""Which engine to ask for, by what evidence says that made the numbers."""
_DEVICE = re.compile(r"[a-z]{1,20}(:[0-9]{1,4})?")


@dataclass(frozen=True)
class Rebuild:
    """What is to be built again, from what, and where.

    Attributes:
        directory: the checkpoint whose evidence is followed.
        model: where the source is; None for the repository of the hub that the evidence names.
        calibrated: what makes the recipe one that is calibrated with a local file, where the first build was.
        text: the file that answers are measured on, where the first build's were measured on one.
        references: what it is held against in place of what the evidence names; None for that.
        output: where it is built again; None for a temporary directory that goes afterwards.
        elsewhere: build even where the environment differs, to see whether the bytes do.
        resources: workers and memory; what shows in the bytes is taken from the evidence.
    """

    directory: Path
    model: str | None = None
    calibrated: Callable[[LoadedRecipe], LoadedRecipe] | None = None
    text: str | None = None
    references: tuple[str, ...] | None = None
    output: Path | None = None
    elsewhere: bool = False
    resources: Resources = field(default_factory=Resources)


def rebuild(request: Rebuild, *, progress: Progress) -> tuple[Report, bytes]:
    """Build again and compare.

    Returns:
        The report, and the verdict as an in-toto statement (test-result v0.1) about the checkpoint.

    Raises:
        EvidenceError: the evidence cannot be followed.
        WeighbridgeError: the source cannot be had, or the build could not be started or finished.
    """
    case, findings = open_case(request.directory, None, None, progress=progress)
    if any(finding.severity is Severity.ERROR for finding in findings):
        first = next(finding for finding in findings if finding.severity is Severity.ERROR)
        raise EvidenceError(
            f"{first.where} {first.message}",
            where=str(request.directory),
            remedy="see what validate.py --evidence says",
        )
    loaded = _followed(request, case.loaded)
    references = _references(case) if request.references is None else request.references
    sections = [_environment(case, elsewhere=request.elsewhere)]
    if sections[-1].holds:
        source = _source(request, case, loaded, progress)
        sections.append(_inputs(case, loaded, source, progress))
        if sections[-1].holds:
            sections.append(_built(replace(request, references=references), case, loaded, source, progress))
    failed = next((section for section in sections if not section.holds), None)
    verdict = f"{request.directory} was built again: {sections[-1].summary}"
    if failed is not None:
        verdict = f"{request.directory} was not reproduced; {failed.title}: {first_error([failed])}"
    report = Report("reproduce", str(request.directory), verdict, tuple(sections))
    return report, _statement(report, case)


def _followed(request: Rebuild, loaded: LoadedRecipe) -> LoadedRecipe:
    """The recipe's copy as it is built by: its files are those that were named here, and no others.

    Raises:
        RecipeError: it names one that was not.
    """
    if request.calibrated is not None:
        named = request.calibrated(loaded)
        calibration, loaded = named.recipe.calibration, _changed(named, calibration=None)
    if request.text is not None:
        if loaded.recipe.quality is None:
            what = "measures no answers, so a text has no meaning"
            raise RecipeError(what, where=loaded.document.where, remedy="leave it out")
        quality = loaded.recipe.quality.model_copy(update={"text": None})
        loaded = _changed(loaded, quality=quality)
    own = without_files(loaded)
    if request.calibrated is not None:
        own = _changed(own, calibration=calibration)
    if request.text is not None and own.recipe.quality is not None:
        own = _changed(own, quality=own.recipe.quality.model_copy(update={"text": request.text}))
    return own


def _changed(loaded: LoadedRecipe, **parts: object) -> LoadedRecipe:
    return replace(loaded, recipe=loaded.recipe.model_copy(update=parts))


def _references(case: Case) -> tuple[str, ...]:
    """The references that the evidence names: locks of this repository, and checkpoints on the hub.

    Raises:
        EvidenceError: it names anything else, which is not opened.
    """
    named = case.parameters.get("references")
    if not isinstance(named, list) or len(named) > MOST_REFERENCES:
        raise EvidenceError("names no list of references", where="externalParameters.references")
    return tuple(map(_reference, named))


def _reference(name: object) -> str:
    if name == NO_REFERENCE:
        return NO_REFERENCE
    own = lock_file(name.removeprefix(REFERENCE_FILE).removesuffix(".yaml")) if isinstance(name, str) else None
    if own is not None:
        return str(own)
    try:
        return hub_name(str(name))
    except StructureError as error:
        remedy = "name yourself what it is held against"
        raise EvidenceError(error.what, where=f"externalParameters.references: {name}", remedy=remedy) from error


def _environment(case: Case, *, elsewhere: bool) -> Section:
    """The packages, this repository and the machine, against those of the first build."""
    severity = Severity.WARNING if elsewhere else Severity.ERROR
    findings = [*_packages(case, severity), *_repository(case, severity), *_machine(case)]
    differ = sum(finding.severity is severity for finding in findings)
    stated = sum((item.uri or "").startswith("pkg:pypi/") for item in case.dependencies.values())
    summary = f"{stated} packages as stated" if not differ else f"{differ} differences from what was stated"
    return Section("rebuild-environment", "the environment", summary, findings=tuple(findings))


def _packages(case: Case, severity: Severity) -> Iterator[Finding]:
    here = {found.name: found for found in installed()}
    stated = {
        name: item
        for name, item in case.dependencies.items()
        if (item.uri or "").startswith("pkg:pypi/") and name != REPOSITORY
    }
    for name, item in stated.items():
        if name not in here:
            yield Finding("rebuild/environment", severity, name, f"is not installed; {item.uri} was", remedy=_INSTALL)
        elif here[name].purl != item.uri:
            yield Finding(
                "rebuild/environment", severity, name, f"is {here[name].purl}; it was {item.uri}", remedy=_INSTALL
            )
        elif here[name].content != (item.annotations or {}).get("content"):
            what = f"{here[name].purl} installed other files than it did then"
            yield Finding("rebuild/environment", severity, name, what, remedy=_INSTALL)
    for name in sorted(here.keys() - stated.keys()):
        yield Finding("rebuild/more-packages", Severity.NOTE, name, "is installed here and was not then")


_INSTALL = "make the environment anew from constraints.txt at the stated commit"


def _repository(case: Case, severity: Severity) -> Iterator[Finding]:
    stated = case.dependencies.get(REPOSITORY)
    here = repository()
    commit = (stated.digest or {}).get("gitCommit") if stated is not None else None
    version = case.provenance.predicate.run_details.builder.version.get("weighbridge")
    if version != __version__:
        yield Finding("rebuild/environment", severity, REPOSITORY, f"is {__version__}; it was {version}")
    if commit is None or here is None:
        yield Finding(
            "rebuild/commit-unknown", Severity.WARNING, REPOSITORY, "whether it is the same commit is not known"
        )
    elif here.commit != commit:
        what = f"is at commit {here.commit[:12]}; it was {commit[:12]}"
        yield Finding("rebuild/environment", severity, REPOSITORY, what, remedy=f"git checkout {commit}")
    elif not here.clean or stated is None or (stated.annotations or {}).get("clean") is not True:
        what = "has, or had, changes that were not committed: whether the same ones is not known"
        yield Finding("rebuild/commit-unclean", Severity.WARNING, REPOSITORY, what)


def _machine(case: Case) -> Iterator[Finding]:
    stated = case.provenance.predicate.build_definition.internal_parameters
    for what, value in machine().items():
        if stated.get(what) != value:
            yield Finding("rebuild/machine", Severity.NOTE, what, f"is {value}; it was {stated.get(what)}")


def _source(request: Rebuild, case: Case, loaded: LoadedRecipe, progress: Progress) -> Checkpoint:
    """The source, on disk: what was named, or what the evidence names, under the name that it had the first time.

    Where it comes from shows in the model card; that these are the same bytes is seen by their digests.
    """
    stated, origin = case.model, case.fetched
    model = request.model or (stated if stated in MADE else _on_hub(case))
    if loaded.recipe.method != "convert":
        source = fetch(open_source(model), progress)
    else:
        source = build_base(loaded, progress=progress) if model == MINIATURE else fetch(open_model(model), progress)
    return replace(source, origin=origin, label=stated if stated in MADE else source.label)


def _on_hub(case: Case) -> str:
    """Where the hub has the source: where it was fetched from, or else its base at its commit.

    Raises:
        StructureError: the evidence names no repository of the hub.
    """
    base, fetched = case.base, case.fetched
    named = (fetched.repository, fetched.revision) if fetched.repository else (base.repository, base.revision)
    return hub_name("@".join(filter(None, named)))


def _inputs(case: Case, loaded: LoadedRecipe, source: Checkpoint, progress: Progress) -> Section:
    """The source's files and the recipe, against those of the first build."""
    findings = []
    if case.dependencies.get(RECIPE) != Resource(name=RECIPE, digest={"sha256": loaded.sha256}):
        findings.append(wrong("rebuild/recipe", RECIPE, "is not the recipe that was built"))
    sources = case.sources
    there = {*source.shards, *source.files}
    actual = digest_files(source, [name for name in sources if name in there], progress=progress)
    for name, digest in sources.items():
        if name not in actual:
            findings.append(wrong("rebuild/source", name, "is not in this source"))
        elif actual[name] != digest:
            what = f"has SHA-256 {actual[name][:12]}… here; what was read had {digest[:12]}…"
            findings.append(wrong("rebuild/source", name, what))
    summary = f"{len(sources)} files of {source.label} have the stated digests"
    if findings:
        summary = f"{len(findings)} files are not those that were read"
    return Section("rebuild-inputs", "what it is made from", summary, findings=tuple(findings))


def _built(request: Rebuild, case: Case, loaded: LoadedRecipe, source: Checkpoint, progress: Progress) -> Section:
    """Build, and compare with what is there."""
    with tempfile.TemporaryDirectory(dir=request.directory.absolute().parent, prefix=".rebuild-") as scratch:
        output = request.output or Path(scratch) / "checkpoint"
        report = build(_build_request(request, case, loaded, source, output), progress=progress)
        if not report.holds:
            return Section("rebuild-failed", "building it again", "does not hold", findings=tuple(report.findings()))
        again, _ = open_case(output, None, None, progress=progress)
        return _compared(case, again)


def _build_request(
    request: Rebuild, case: Case, loaded: LoadedRecipe, source: Checkpoint, output: Path
) -> BuildRequest:
    stated = case.provenance.predicate.build_definition.external_parameters
    carried = stated.get("carried")
    engine, device, size = (stated.get(name) for name in ("engine", "device", "shardSize"))
    known = engine in ENGINES and isinstance(device, str) and _DEVICE.fullmatch(device)
    if not known or not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise EvidenceError("has an engine, device or shard size that is unknown here", where="externalParameters")
    return BuildRequest(
        loaded=loaded,
        source=source,
        output=output,
        references=request.references or (),
        engine=ENGINES[str(engine)],
        resources=replace(request.resources, devices=(str(device),), shard_size=size),
        carry=_carried(case, carried),
        audited=f"{EVIDENCE}/{AUDIT_REPORT}.json" in case.listing.evidence,  # the model card says what was found
    )


def _carried(case: Case, stated: Any) -> tuple[str, ...]:
    """The files that were taken over by name: of those whose digests are stated, and were held against the source's.

    What else lies beside somebody's base is not copied because evidence asks for it.
    """
    patterns = [str(pattern) for pattern in stated] if isinstance(stated, list) else []
    named = [name for name in case.sources if any(fnmatchcase(name, pattern) for pattern in patterns)]
    return tuple(escape(name) for name in named)


def _compared(first: Case, again: Case) -> Section:
    """File by file; where files differ, by what tensors they hold."""
    names = sorted(first.files.keys() | again.files.keys())
    differ = [name for name in names if first.files.get(name) != again.files.get(name)]
    findings = [*_other_inputs(first, again)]
    if not differ:
        summary = f"all {len(names)} files are the same, byte for byte"
        return Section("rebuild-bytes", REBUILT, summary, findings=tuple(findings))
    ours, theirs = first.opened(), again.opened()
    tensors = sorted(
        name
        for name in ours.structure.keys() | theirs.structure.keys()
        if (ours.structure.get(name), first.digests.tensors.get(name))
        != (theirs.structure.get(name), again.digests.tensors.get(name))
    )
    container = {*ours.shards, *theirs.shards, "model.safetensors.index.json"}
    for name in differ:
        if name in container and not tensors:
            what = "differs, but holds the same tensors: they are put into files otherwise"
            findings.append(Finding("rebuild/container", Severity.WARNING, name, what))
        else:
            what = "differs" if name in first.files and name in again.files else "is in one of the two alone"
            findings.append(wrong("rebuild/bytes", name, what))
    findings += [
        wrong("rebuild/tensor", name, "has other bytes, another dtype or another shape") for name in tensors[:20]
    ]
    if len(tensors) > 20:
        findings.append(wrong("rebuild/tensor", "further tensors", "differ too", count=len(tensors) - 20))
    summary = f"{len(differ)} of {len(names)} files differ, and {len(tensors)} of {len(ours.structure):,} tensors"
    return Section("rebuild-bytes", REBUILT, summary, findings=tuple(findings))


def _other_inputs(first: Case, again: Case) -> Iterator[Finding]:
    """What the two provenances name as read, beside the source and the packages."""
    for name in first.dependencies.keys() | again.dependencies.keys():
        if name == CALIBRATION or name.startswith((REFERENCE_FILE, SOURCE_FILE)):
            one, other = (_digest(case.dependencies, name) for case in (first, again))
            if one != other:
                severity = Severity.WARNING if name.startswith(REFERENCE_FILE) else Severity.ERROR
                remedy = "calibrate with the same file" if name == CALIBRATION else ""
                yield Finding("rebuild/input", severity, name, "is not what was read the first time", remedy=remedy)


def _digest(dependencies: Mapping[str, Resource], name: str) -> dict[str, str] | None:
    return dependencies[name].digest if name in dependencies else None


def _statement(report: Report, case: Case) -> bytes:
    content: dict[str, Any] = json.loads(PRESENTERS["json"](report))
    results: Sequence[Result] = results_of(content, where="rebuild")
    configuration = [
        Resource(name=PROVENANCE, digest=sha256_of(case.provenance_claim.payload)),
        Resource(name="weighbridge", uri=f"pkg:pypi/weighbridge@{__version__}"),
        Resource(
            name="report",
            digest=sha256_of(PRESENTERS["json"](report).encode()),
            annotations={"at": stamp(datetime.now(UTC))},
        ),
    ]
    subject = Resource(name=case.provenance.subject[0].name, digest={"sha256": root_digest(case.files)})
    return write_statement(result_statement(results, subject, configuration))
