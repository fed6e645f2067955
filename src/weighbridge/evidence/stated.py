"""What the provenance says, part by part, against what it would say if it were written here of the same build."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from pydantic import JsonValue

from weighbridge.base.locks import lock_file
from weighbridge.checkpoint.model import EVIDENCE
from weighbridge.errors import StructureError
from weighbridge.evidence.card import model_name
from weighbridge.evidence.case import Case
from weighbridge.evidence.checked import Checked, wrong
from weighbridge.evidence.derivation import DERIVATION
from weighbridge.evidence.environment import UNKNOWN, Installed, Repository, pinned_wheels
from weighbridge.evidence.finished import AUDIT_REPORT, MAIN_REPORT, QUALITY_REPORT
from weighbridge.evidence.provenance import (
    BASE,
    BUILDER,
    CALIBRATION,
    RECIPE,
    REFERENCE_FILE,
    REPOSITORY,
    SOURCE_FILE,
    calibration_resources,
    distribution_resource,
    file_resources,
    recipe_resource,
    reference_resources,
    repository_resource,
)
from weighbridge.evidence.signing import MODEL_SIGNATURE_FILE
from weighbridge.evidence.statements import BUILD_TYPE, Resource, sha256_of, subject_of
from weighbridge.evidence.write import BOM, DOSSIER, FILES, GUIDE, LOG, START, TENSORS, TEST_RESULT
from weighbridge.recipe.calibration import Calibration
from weighbridge.report import Finding, Severity

PARAMETERS = {
    "recipe": str,
    "model": str,
    "revision": str,
    "engine": str,
    "device": str,
    "shardSize": int,
    "references": list,
    "carried": list,
}
MACHINE = ("machine", "system", "libc", "python")
ENGINES = {
    "model_free_ptq": ("streaming", "upstream"),
    "oneshot": ("layerwise", "upstream"),
    "convert": ("streaming",),
}
"""What may have made the numbers, by a recipe's method."""
CALIBRATED = {
    *("dataset", "revision", "file_sha256", "rows_available", "rows", "tokens", "token_ids_sha256"),
    *("sequence_length", "batch_size", "render", "seed", "experts", "modifiers", "tools"),
}
"""What the record of a calibration says."""
REPORTS = (MAIN_REPORT, AUDIT_REPORT, QUALITY_REPORT)
AHEAD = timedelta(days=1)
"""How far a builder's clock may be before the one here."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PACKAGE = re.compile(r"pkg:pypi/(?P<name>[a-z0-9][a-z0-9-]*)@(?P<version>[A-Za-z0-9][A-Za-z0-9.!%_-]*)")
_DEVICE = re.compile(r"[a-z]{1,20}")


def check_provenance(case: Case) -> Checked:
    """Every part of the provenance is of a kind that is known, and says what it would say of this build."""
    findings = [
        *_check_kind(case),
        *_check_parameters(case),
        *_check_times(case),
        *_check_dependencies(case),
        *_check_references(case),
        *_check_byproducts(case),
    ]
    parameters = case.parameters
    words = [
        "what the recipe says and what shows in no tensor: its name and description, its base, how it is calibrated",
        "when it was built, on what machine, with which packages and which commit of Weighbridge",
        f"that the {parameters.get('engine')} engine made it on {parameters.get('device')}, "
        f"with shards of {parameters.get('shardSize')} bytes",
    ]
    if CALIBRATION in case.dependencies:
        words.append("what it was calibrated with, and that it was")
    named = parameters.get("references")
    if named:
        words.append(f"that it was held against {', '.join(map(str, named)) if isinstance(named, list) else named}")
    return Checked(
        f"{len(case.dependencies)} inputs (source files, recipe, packages), each compared with what is known here",
        tuple(findings),
        tuple(words),
    )


def _lie(where: str, message: str) -> Finding:
    return wrong("evidence/provenance", f"provenance: {where}", message)


def _check_kind(case: Case) -> Iterator[Finding]:
    """It is a build of this kind, of this checkpoint, by this recipe."""
    definition, details = case.provenance.predicate.build_definition, case.provenance.predicate.run_details
    if definition.build_type != BUILD_TYPE:
        yield wrong("evidence/other-build", "provenance", f"is about a build of type {definition.build_type}")
    if details.builder.id != BUILDER or details.builder.version.keys() != {"weighbridge"}:
        yield _lie("builder", "is none that Weighbridge is")
    if case.version != case.version.strip() or not case.version:
        yield _lie("builder", "has no version")
    subject = subject_of(model_name(case.base, case.loaded.recipe), case.root)
    for claim in (*case.claims, *case.added):
        if claim.statement.subject != [subject]:
            what = f"calls the checkpoint otherwise than its base and recipe do: {subject.name}"
            yield wrong("evidence/subject", claim.where, what)


def _check_parameters(case: Case) -> Iterator[Finding]:
    """What was asked for is of the kinds that can be, and agrees with the recipe."""
    parameters = case.parameters
    if parameters.keys() != PARAMETERS.keys():
        yield _lie("externalParameters", f"has not the keys {', '.join(PARAMETERS)}")
    for name, kind in PARAMETERS.items():
        if type(parameters.get(name)) is not kind:
            yield _lie(f"externalParameters.{name}", "is not of its kind")
    recipe = case.loaded.recipe
    if parameters.get("recipe") != recipe.name:
        yield wrong(
            "evidence/recipe", "provenance", f"names the recipe {parameters.get('recipe')}; it is {recipe.name}"
        )
    if parameters.get("engine") not in ENGINES[recipe.method]:
        yield _lie("externalParameters.engine", f"is none that a recipe of method {recipe.method} is built by")
    if not _DEVICE.fullmatch(str(parameters.get("device"))):
        yield _lie("externalParameters.device", "is no kind of device")
    size, revision, named = (parameters.get(name) for name in ("shardSize", "revision", "references"))
    if isinstance(size, int) and size < 1:
        yield _lie("externalParameters.shardSize", "is no size")
    if revision != "" and not _COMMIT.fullmatch(str(revision)):
        yield _lie("externalParameters.revision", "is no commit")
    if isinstance(named, list) and not all(isinstance(name, str) and name for name in named):
        yield _lie("externalParameters.references", "names no references")
    carried = parameters.get("carried")
    if isinstance(carried, list) and not all(fnmatch.filter(case.listed, str(pattern)) for pattern in carried):
        yield _lie("externalParameters.carried", "names files that are not there")
    internal = case.provenance.predicate.build_definition.internal_parameters
    if tuple(internal) != MACHINE or not all(isinstance(value, str) for value in internal.values()):
        yield _lie("internalParameters", f"has not the keys {', '.join(MACHINE)}")


def _check_times(case: Case) -> Iterator[Finding]:
    """A build ends after it began, and not in the future."""
    times = case.provenance.predicate.run_details.metadata
    try:
        started, finished = moment(times.started_on), moment(times.finished_on)
    except ValueError:
        yield _lie("metadata", "has a time that there is not")
        return
    if not started <= finished:
        yield _lie("metadata", "ends before it begins")
    if finished > datetime.now(UTC) + AHEAD:
        yield _lie("metadata", "ends in the future")


def moment(text: str) -> datetime:
    """A moment as `stamp` writes it.

    Raises:
        ValueError: there is no such moment.
    """
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def _check_dependencies(case: Case) -> Iterator[Finding]:
    """Each dependency is one of a kind that is known, and says of it what is written of such a one."""
    stated = case.provenance.predicate.build_definition.resolved_dependencies
    names = [str(item.name) for item in stated]
    if len(set(names)) != len(names):
        yield wrong("evidence/malformed", "provenance", "names a dependency twice")
    recipe = recipe_resource(sha256_of(case.read(RECIPE))["sha256"])
    if case.dependencies.get(RECIPE) != recipe:
        yield wrong("evidence/recipe", f"{EVIDENCE}/{RECIPE}", "is not the recipe that the provenance names")
    files = {str(item.name): item for item in file_resources(case.base, case.sources)}
    pinned = pinned_wheels()
    for item in (item for item in stated if item.name not in (RECIPE, BASE)):
        name = str(item.name)
        if name.startswith(SOURCE_FILE):
            so = item == files.get(name) and _has_sha256(item)
        elif name.startswith(REFERENCE_FILE):
            so = item == Resource(name=name, digest=item.digest) and _has_sha256(item)
        elif name == REPOSITORY:
            so = item in _repositories(item)
        elif name == CALIBRATION:
            so = _is_calibration(item)
            yield from _check_calibration(case, item)
        else:
            so = _package(item) is not None
            yield from _check_wheel(item, pinned)
        if not so:
            yield _lie(name, "is nothing that a build is made from, or is not stated as such a thing is")
    for name in (BASE, REPOSITORY):
        if name not in names:
            yield _lie(name, "is not named")
    if (case.loaded.recipe.calibration is not None) != (CALIBRATION in names):
        yield _lie(CALIBRATION, "is named where the recipe has none, or is not where it has one")


def _has_sha256(item: Resource) -> bool:
    return (item.digest or {}).keys() == {"sha256"} and _SHA256.fullmatch(item.sha256) is not None


def _repositories(item: Resource) -> Collection[Resource]:
    """How this repository can be stated."""
    commit = (item.digest or {}).get("gitCommit", "")
    known = [Repository(commit, clean) for clean in (True, False) if _COMMIT.fullmatch(commit)]
    return [repository_resource(None), *map(repository_resource, known)]


def _is_calibration(item: Resource) -> bool:
    """Whether it is the record of a calibration by its form."""
    try:
        return list(calibration_resources(item.annotations or {})) == [item] and _has_sha256(item)
    except (KeyError, TypeError):
        return False


def _check_calibration(case: Case, item: Resource) -> Iterator[Finding]:
    """The record of a calibration does not contradict the recipe."""
    calibration = case.loaded.recipe.calibration
    if calibration is not None:
        for key in _other(item.annotations or {}, calibration):
            yield _lie(f"{CALIBRATION}.{key}", "is not what the recipe says")


def _other(record: Mapping[str, JsonValue], calibration: Calibration) -> Iterator[str]:
    """What a record has otherwise than the recipe: a file in the place of its data set is another text, and may be of
    less."""
    rows, available = record.get("rows"), record.get("rows_available")
    if record.keys() != CALIBRATED:
        yield "keys"
    for key in ("seed", "experts"):
        if record.get(key) != getattr(calibration, key):
            yield key
    for key in ("sequence_length", "batch_size"):
        value = record.get(key)
        if not isinstance(value, int) or not 0 < value <= getattr(calibration, key):
            yield key
    numbers = [row for row in rows if isinstance(row, int)] if isinstance(rows, list) else []
    whole = isinstance(rows, list) and isinstance(available, int) and len(numbers) == len(rows) == len(set(numbers))
    if not whole or len(numbers) > calibration.samples or not all(0 <= row < int(str(available)) for row in numbers):
        yield "rows"
    dataset, said = calibration.dataset, str(record.get("dataset"))
    if dataset.hub is not None and not record.get("file_sha256"):
        if not said.startswith(dataset.hub) or (dataset.revision and record.get("revision") != dataset.revision):
            yield "dataset"
        if len(numbers) != calibration.samples:
            yield "samples"


def packages(case: Case) -> Iterator[Installed]:
    """The packages that the provenance names.

    Raises:
        StructureError: one is not named as a package is.
    """
    for name, item in case.dependencies.items():
        if (item.uri or "").startswith("pkg:pypi/") and name != REPOSITORY:
            found = _package(item)
            if found is None:
                raise StructureError("is no package", where=f"provenance: {name}")
            yield found


def _package(item: Resource) -> Installed | None:
    match = _PACKAGE.fullmatch(item.uri or "")
    annotations = item.annotations or {}
    wheel, content = annotations.get("wheel"), annotations.get("content")
    if match is None or not isinstance(wheel, str) or not isinstance(content, str):
        return None
    found = Installed(match["name"], match["version"].replace("%2B", "+"), wheel, content)
    known = all(digest == UNKNOWN or _SHA256.fullmatch(digest) for digest in (wheel, content))
    return found if known and distribution_resource(found) == item else None


def _check_wheel(item: Resource, wheels: Mapping[tuple[str, str], str]) -> Iterator[Finding]:
    """A package of a version that is pinned here is of the wheel that is."""
    found = _package(item)
    pinned = UNKNOWN if found is None else wheels.get((found.name, found.version), UNKNOWN)
    if found is not None and UNKNOWN not in (found.wheel, pinned) and found.wheel != pinned:
        yield _lie(found.name, f"is said to be of another wheel than constraints.txt has of {found.version}")


def _check_references(case: Case) -> Iterator[Finding]:
    """The locks that it was held against are those that the recipe names, as they are here."""
    stated = {name: item for name, item in case.dependencies.items() if name.startswith(REFERENCE_FILE)}
    for name, item in stated.items():
        path = lock_file(name.removeprefix(REFERENCE_FILE).removesuffix(".yaml"))
        if path is None:
            what = "is no lock in references/"
            yield Finding("evidence/reference", Severity.WARNING, name, what)
        elif sha256_of(path.read_bytes()) != item.digest:
            what = "is another lock here than the one it was held against"
            yield Finding("evidence/reference", Severity.WARNING, name, what)
    if not case.parameters.get("references"):
        own = {str(item.name) for item in reference_resources(case.expected.references)}
        severity = Severity.ERROR if case.same_version else Severity.WARNING
        for name in sorted(own ^ stated.keys()):
            what = "was not held against, but the recipe names it" if name in own else "is none that the recipe names"
            yield Finding("evidence/reference", severity, name, what)


def _check_byproducts(case: Case) -> Iterator[Finding]:
    """It names what a build of this kind leaves, each once and by its digest, and nothing else."""
    stated: Sequence[Resource] = case.provenance.predicate.run_details.byproducts
    names = [str(item.name) for item in stated]
    if len(set(names)) != len(names):
        yield wrong("evidence/malformed", "provenance", "names a by-product twice")
    for item in stated:
        if item != Resource(name=item.name, digest=item.digest) or not _has_sha256(item):
            yield _lie(str(item.name), "is not stated as a by-product is")
    results = {TEST_RESULT + name for name in REPORTS}
    reports = {f"{EVIDENCE}/{name}.{kind}" for name in case.results for kind in ("json", "md", "html")}
    beside = {f"{EVIDENCE}/{name}" for name in (BOM, *DOSSIER, FILES, GUIDE, LOG, RECIPE, START, TENSORS)} | reports
    if case.signed:
        beside.add(f"{EVIDENCE}/{MODEL_SIGNATURE_FILE}")
    for name in sorted(set(names) - results - beside - {DERIVATION}):
        yield wrong("evidence/unbound", name, "is nothing that a build leaves")
    for name in sorted((beside | {TEST_RESULT + MAIN_REPORT}) - set(names)):
        yield wrong("evidence/missing", name, "is not among the by-products")
