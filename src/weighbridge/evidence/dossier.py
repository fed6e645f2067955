"""The dossier: what is known of a checkpoint, element by element, and how it is known.

The elements are those of the G7's "Software Bill of Materials for AI: Minimum Elements" (May 2026) as public summaries
of it name them; the paper itself was not to be had here (derived). Beside each stands the field of CycloneDX 1.7 and of
SPDX 3.0 that is for it. Nothing is claimed but what stands there: no compliance with anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING

from weighbridge.evidence.bom import TASK, BomFacts
from weighbridge.evidence.card import model_name
from weighbridge.formats.tensors import payload_bytes
from weighbridge.version import __version__

if TYPE_CHECKING:
    from jinja2 import Template

SOURCE = "G7, Software Bill of Materials for AI: Minimum Elements (May 2026), as public summaries name them (derived)"


class Known(StrEnum):
    """How an element is known."""

    CHECKED = "checked against bytes"
    SAID = "signer's word"
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Element:
    """One element.

    Attributes:
        cluster: of the G7's paper.
        value: empty where nothing is known.
        cyclonedx: the field of CycloneDX 1.7; empty where there is none.
        spdx: the property of SPDX 3.0 (AI and Dataset profiles); empty where there is none.
    """

    cluster: str
    element: str
    value: str
    known: Known
    cyclonedx: str = ""
    spdx: str = ""


@dataclass(frozen=True)
class DossierFacts:
    """All that a dossier is made of; a verifier has it, too.

    Attributes:
        bom: what the bill of materials is made of.
        signed: whether the evidence is.
        relation: how closely it derives from its base, by the audit; empty where there was none.
        quality: the metrics of the report of its answers, if they were measured.
    """

    bom: BomFacts
    signed: bool
    relation: str = ""
    quality: Mapping[str, int | float] = field(default_factory=dict)


def elements(facts: DossierFacts) -> tuple[Element, ...]:
    """Every element, cluster by cluster."""
    return (
        *_metadata(facts),
        *_system(facts),
        *_model(facts),
        *_datasets(facts),
        *_infrastructure(facts),
        *_security(facts),
        *_indicators(facts),
    )


def _said(value: object) -> Known:
    return Known.SAID if value else Known.UNKNOWN


def _metadata(facts: DossierFacts) -> Iterator[Element]:
    cluster, bom = "metadata", facts.bom
    made = bom.loaded.recipe.manufacturer
    author = "" if made is None else made.name
    signature = "by the key or identity that signed the evidence" if facts.signed else ""
    yield Element(cluster, "author of the bill", author, _said(author), "metadata.manufacturer", "createdBy")
    yield Element(cluster, "version of the bill", "1", Known.CHECKED, "version")
    yield Element(cluster, "format", "CycloneDX 1.7", Known.CHECKED, "bomFormat, specVersion", "specVersion")
    signed = Known.CHECKED if signature else Known.UNKNOWN
    yield Element(cluster, "signature", signature, signed, "signature", "verifiedUsing")
    yield Element(cluster, "tool", f"weighbridge {__version__}", Known.SAID, "metadata.tools", "createdUsing")
    context = "with the build, of the files that it wrote"
    yield Element(cluster, "generation context", context, Known.SAID, "metadata.lifecycles", "sbomType")
    yield Element(cluster, "time", bom.finished, Known.SAID, "metadata.timestamp", "created")
    what = "the model, the libraries of its formats; apart from these what built it"
    yield Element(cluster, "dependencies", what, Known.CHECKED, "dependencies, formulation", "relationship")


def _system(facts: DossierFacts) -> Iterator[Element]:
    cluster, bom = "system level", facts.bom
    made = bom.loaded.recipe.manufacturer
    producer = "" if made is None else made.name
    name = model_name(bom.base, bom.loaded.recipe)
    yield Element(cluster, "name", name, Known.CHECKED, "metadata.component.name", "name")
    yield Element(cluster, "producer", producer, _said(producer), "metadata.supplier", "suppliedBy")
    yield Element(cluster, "version", bom.root, Known.CHECKED, "metadata.component.version", "packageVersion")
    files = f"{len(bom.files):,} files, each by its SHA-256"
    yield Element(cluster, "components", files, Known.CHECKED, "components[].components", "contains")
    yield Element(cluster, "time", bom.finished, Known.SAID, "metadata.timestamp", "builtTime")
    yield Element(cluster, "data flow and usage", "", Known.UNKNOWN, "services[].data")
    yield Element(cluster, "input and output", "text to text", Known.SAID, "modelCard.modelParameters.inputs")
    yield Element(
        cluster, "intended area", "", Known.UNKNOWN, "modelCard.considerations", "informationAboutApplication"
    )


def _model(facts: DossierFacts) -> Iterator[Element]:
    cluster, bom = "models", facts.bom
    recipe, base, built = bom.loaded.recipe, bom.base, bom.built
    architectures = built.config.get("architectures")
    architecture = str(architectures[0])[:200] if isinstance(architectures, list) and architectures else ""
    stored = sorted({tensor.dtype for tensor in built.structure.values()})
    named = f"{base.repository}@{base.revision}" if base.revision else base.repository
    whose = Known.CHECKED if base.claim.proven else Known.SAID
    yield Element(cluster, "name", model_name(base, recipe), Known.CHECKED, "components[].name", "name")
    yield Element(cluster, "identifier", bom.root, Known.CHECKED, "components[].version", "packageVersion")
    yield Element(cluster, "hash", f"SHA-256 {bom.root}", Known.CHECKED, "components[].hashes", "verifiedUsing")
    description = " ".join(recipe.description.split())
    yield Element(cluster, "description", description, Known.SAID, "components[].description", "description")
    yield Element(
        cluster,
        "architecture",
        architecture,
        Known.CHECKED if architecture else Known.UNKNOWN,
        "modelCard.modelParameters.modelArchitecture",
        "typeOfModel",
    )
    yield Element(cluster, "task", TASK, Known.SAID, "modelCard.modelParameters.task", "domain")
    size = f"{len(built.structure):,} tensors, {payload_bytes(built.structure):,} bytes; {', '.join(stored)}"
    yield Element(cluster, "weights", size, Known.CHECKED, "modelCard.properties", "hyperparameter")
    yield Element(cluster, "base model", named, whose, "pedigree.ancestors", "hasDataFile, descendantOf")
    how = f"recipe {recipe.name} (SHA-256 {bom.loaded.sha256}), method {recipe.method}, engine {bom.engine}"
    yield Element(cluster, "how the weights were made", how, Known.SAID, "formulation", "informationAboutTraining")
    relation = f"{facts.relation}: every weight was compared with the base's" if facts.relation else ""
    yield Element(cluster, "derivation", relation, _said(relation), "pedigree.notes", "descendantOf")
    licence = recipe.base.licence
    yield Element(cluster, "licence", licence, Known.SAID, "components[].licenses", "hasDeclaredLicense")
    yield Element(cluster, "limitations", "", Known.UNKNOWN, "modelCard.considerations", "limitation")


def _datasets(facts: DossierFacts) -> Iterator[Element]:
    cluster, record = "datasets", facts.bom.calibration
    if record is None:
        nothing = "none: the recipe looks at no data"
        yield Element(cluster, "of the quantization", nothing, Known.CHECKED, "modelCard.modelParameters.datasets")
    else:
        revision = f" at {record['revision']}" if record.get("revision") else ""
        said = f"{record.get('dataset')}{revision}, SHA-256 of its tokens {record.get('token_ids_sha256')}"
        field_, property_ = "modelCard.modelParameters.datasets", "datasetType, dataCollectionProcess"
        yield Element(cluster, "of the quantization", said, Known.SAID, field_, property_)
    yield Element(
        cluster, "of the base's training", "", Known.UNKNOWN, "modelCard.modelParameters.datasets", "trainedOn"
    )
    yield Element(cluster, "sensitivity", "", Known.UNKNOWN, "data[].sensitiveData", "sensitivePersonalInformation")
    yield Element(cluster, "licence", "", Known.UNKNOWN, "data[].governance", "hasDeclaredLicense")


def _infrastructure(facts: DossierFacts) -> Iterator[Element]:
    packages = f"{len(facts.bom.environment):,} packages, each with its version and digest"
    yield Element("infrastructure", "software", packages, Known.SAID, "formulation[].components", "usesTool")
    yield Element("infrastructure", "hardware", facts.bom.device, Known.SAID, "formulation[].workflows")
    yield Element("infrastructure", "where it is served", "", Known.UNKNOWN, "services")


def _security(facts: DossierFacts) -> Iterator[Element]:
    made = facts.bom.loaded.recipe.manufacturer
    contact = "" if made is None else made.contact
    yield Element("security", "contact for vulnerabilities", contact, _said(contact), "metadata.manufacturer.contact")
    yield Element("security", "vulnerabilities", "", Known.UNKNOWN, "vulnerabilities", "hasAssociatedVulnerability")
    yield Element("security", "controls", "", Known.UNKNOWN, "declarations", "safetyRiskAssessment")
    yield Element("security", "compliance", "", Known.UNKNOWN, "definitions.standards", "standardCompliance")


def _indicators(facts: DossierFacts) -> Iterator[Element]:
    measured = ", ".join(f"{name} {value:.6g}" for name, value in sorted(facts.quality.items()))
    place = "modelCard.quantitativeAnalysis"
    yield Element("indicators", "answers beside the base's", measured, _said(measured), place, "metric")
    yield Element("indicators", "operation", "", Known.UNKNOWN, place, "metric")


def dossier_json(facts: DossierFacts) -> bytes:
    """The dossier for programs."""
    content = {"dossier": 1, "source": SOURCE, "elements": [asdict(element) for element in elements(facts)]}
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def dossier_html(facts: DossierFacts) -> bytes:
    """The dossier as a page that needs nothing else."""
    clusters: dict[str, list[Element]] = {}
    for element in elements(facts):
        clusters.setdefault(element.cluster, []).append(element)
    name = model_name(facts.bom.base, facts.bom.loaded.recipe)
    return (_template().render(name=name, clusters=clusters, source=SOURCE) + "\n").encode()


@cache
def _template() -> Template:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    from weighbridge.errors import printable

    loaders = [PackageLoader(package, ".") for package in ("weighbridge.evidence", "weighbridge.report")]
    environment = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        finalize=lambda value: printable(value) if isinstance(value, str) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("dossier.html.j2")
