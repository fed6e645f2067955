"""What a person reads of the evidence: reports and their pages, card, bill of materials and guide, written again."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from weighbridge.base.identity import identity_section
from weighbridge.base.model_card import card_metadata
from weighbridge.checkpoint.model import EVIDENCE
from weighbridge.errors import StructureError
from weighbridge.evidence.bom import BomFacts, bill, written_bom
from weighbridge.evidence.card import CARD, CardFacts, blocks, kept_card, model_name, write_card
from weighbridge.evidence.case import Case
from weighbridge.evidence.checked import Checked, wrong
from weighbridge.evidence.finished import MAIN_REPORT, build_verdict
from weighbridge.evidence.provenance import CALIBRATION
from weighbridge.evidence.signing import is_signed_by
from weighbridge.evidence.stated import moment, packages
from weighbridge.evidence.statements import sha256_of
from weighbridge.evidence.write import (
    BOM,
    FILES,
    GUIDE,
    LOG,
    TENSORS,
    called,
    chain_section,
    dossier_of,
    guide,
    page_of,
)
from weighbridge.report import PRESENTERS, Areas, Finding, Report, Section, Severity
from weighbridge.text.strict_json import parse_object

WORDED = ("description", "modelCard", "pedigree", "properties")
"""Parts of the model in a bill of materials that another version may word otherwise."""
MOST_AREAS = 5_000
"""Of the pictures in a report: to draw so many takes seconds, and the time grows with the square."""
UNPRESENTABLE = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)
"""What presenters raise of figures that no report of ours has: a stranger's may be negative, endless or no numbers."""
_BY_DIGEST = re.compile(r"\W{0,4}\w{2}\W{1,8}\w{3,4}\W{0,3}256")
"""What reads as "by SHA-256" once what nobody sees is gone; other scripts have letters that look alike."""
_SLASHES = frozenset("/\u2044\u2215\u29f8")
_TAG = re.compile(r"<[^<>]{0,1000}>")
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0")
"""Letters that nobody sees."""


def check_card(case: Case) -> Checked:
    """The model card says what recipe, tensors and results say, and not a word more."""
    if CARD not in case.files:
        return Checked("is no card", (wrong("evidence/card", CARD, "is not there"),))
    raw = case.own(CARD)
    facts = CardFacts(case.loaded, case.opened(), case.base, called(case.results), kept_card(case.files))
    text = raw.decode(errors="replace")
    findings = [*_check_metadata(case, raw), *_check_proven(case, CARD, text)]
    untrue = [part for part, block in blocks(facts).items() if block not in text]
    severity = _strictness(case)
    findings += [
        Finding("evidence/card", severity, CARD, f"its part on the {part} does not say what was measured")
        for part in untrue
    ]
    if not untrue and raw != write_card(facts):
        findings.append(Finding("evidence/card", severity, CARD, "says more than was measured"))
    words = () if case.same_version else (_by_another(case, CARD),)
    return Checked("written again from recipe, tensors and reports, and compared", tuple(findings), words)


def _check_metadata(case: Case, raw: bytes) -> Iterator[Finding]:
    """What the hub reads of a card is so, whichever version wrote it."""
    metadata = card_metadata(raw, where=CARD)
    for key, ours in (("base_model", case.base.repository), ("license", case.loaded.recipe.base.licence)):
        if metadata.get(key) != ours:
            yield wrong("evidence/card", CARD, f"its {key} is {metadata.get(key)}, and not {ours}")


def _check_proven(case: Case, name: str, text: str) -> Iterator[Finding]:
    """No text calls the source proven to be what it is not proven to be, whichever version wrote it."""
    said = {name for reading in _as_it_reads(text) for name in _proven_in(reading)}
    ours = set(_proven_in(case.base.claim.sentence))
    for other in sorted(said - ours):
        yield wrong(
            "evidence/identity", name, f"says that the source is {other} by SHA-256, but it {case.base.claim.sentence}"
        )


def _proven_in(text: str) -> Iterator[str]:
    """What reads as ORG/NAME in "ORG/NAME by SHA-256"; each word is looked at once, with the few that follow it."""
    words = text.split()
    for index, word in enumerate(words):
        if not _SLASHES.isdisjoint(word) and _BY_DIGEST.match(" ".join(words[index + 1 : index + 4])[:60]):
            yield word[-200:].strip("()[]<>*_`'\",;:")


def _as_it_reads(text: str) -> Iterator[str]:
    """A text without what nobody sees: marks of no width, kinds of spaces, and what stands for another letter.

    Three times: a tag may stand within a word, or between two, or be none to whoever shows it.
    """
    for reading in (text, _TAG.sub("", text), _TAG.sub(" ", text)):
        plain = unicodedata.normalize("NFKC", html.unescape(reading))
        seen = (one for one in plain if unicodedata.category(one) not in ("Cf", "Mn", "Me") and one not in _FILLERS)
        yield " ".join("".join(seen).split())


def _by_another(case: Case, what: str) -> str:
    return f"what {what} says: version {case.version[:40]!r} of Weighbridge is stated to have written it"


def check_bom(case: Case) -> Checked:
    """The bill of materials lists this model, this base and the packages that the provenance lists, and no more."""
    where = f"{EVIDENCE}/{BOM}"
    raw = case.read(BOM)
    bom = parse_object(raw, where=where)
    metadata = bom.get("metadata")
    stamped = metadata.get("timestamp") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(stamped, str):
        raise StructureError("is no bill of materials of a model", where=where)
    signature = bom.pop("signature", None)
    facts = _bom_facts(case, stamped)
    expected = bill(facts)
    findings = [*_check_bom_signature(case, where, bom, signature)]
    for what, ours, theirs in (
        ("subject", expected["metadata"]["component"], metadata.get("component")),
        ("model", expected["components"][0], _first(bom.get("components"))),
    ):
        said = theirs if isinstance(theirs, dict) else {}
        for part in sorted(ours.keys() | said.keys()):
            if ours.get(part) != said.get(part):
                severity = _strictness(case) if part in WORDED else Severity.ERROR
                message = f"the {what}'s {part[:40]} is not what recipe, provenance and tensors give"
                findings.append(Finding("evidence/bom", severity, where, message))
    packaged = expected["formulation"][0].pop("components")
    formula = _first(bom.get("formulation"))
    components = formula.pop("components", None) if isinstance(formula, dict) else None
    listed = [item if isinstance(item, dict) else {} for item in (components if isinstance(components, list) else ())]
    otherwise = "is listed otherwise in the bill than in the provenance"
    findings += [wrong("evidence/bom", item["purl"], otherwise) for item in packaged if item not in listed]
    known = [item["purl"] for item in packaged]
    alone = [item.get("purl") for item in listed if item.get("purl") not in known]
    findings += [wrong("evidence/bom", str(purl), "is listed in the bill alone") for purl in alone]
    del expected["metadata"]
    own = {key: value for key, value in bom.items() if key != "metadata"}
    for part in (own, expected):
        part["components"] = part["components"][1:] if isinstance(part.get("components"), list) else None
    for key in sorted(own.keys() | expected.keys()):
        if own.get(key) != expected.get(key):
            what = f"its {key[:40]} is not what recipe, provenance and tensors give"
            findings.append(Finding("evidence/bom", _strictness(case), where, what))
    findings += [*_check_stamp(case, where, stamped), *_check_dossier(case, facts)]
    if not findings and case.same_version and raw != written_bom({**bill(facts), **_signed_with(signature)}):
        findings.append(wrong("evidence/bom", where, "says more than was built, or otherwise"))
    findings += _check_proven(case, where, raw.decode(errors="replace"))
    words = () if case.same_version else (_by_another(case, where),)
    return Checked(f"{len(listed)} packages and the model compared with provenance and tensors", tuple(findings), words)


def _bom_facts(case: Case, stamped: str) -> BomFacts:
    parameters = case.parameters
    made = str(parameters.get("engine")), str(parameters.get("device")), tuple(packages(case)), stamped
    return BomFacts(case.loaded, case.base, case.opened(), case.root, case.listed, *made, _calibration(case))


def _check_dossier(case: Case, facts: BomFacts) -> Iterator[Finding]:
    """The dossier says what the bill, the reports and the checkpoint say."""
    reports = {name: case.report(name) for name in case.results}
    for name, content in dossier_of(facts, reports, signed=case.signed).items():
        if case.read(name) != content:
            what = "is not the dossier that Weighbridge writes"
            yield Finding("evidence/page", _strictness(case), f"{EVIDENCE}/{name}", what)
        yield from _check_proven(case, f"{EVIDENCE}/{name}", case.read(name).decode(errors="replace"))


def _first(items: object) -> object:
    """The first item of a list; None where there is none."""
    return items[0] if isinstance(items, list) and items else None


def _calibration(case: Case) -> Mapping[str, Any] | None:
    """The record of what it was calibrated with, as the provenance has it."""
    found = case.dependencies.get(CALIBRATION)
    return None if found is None else found.annotations


def _signed_with(signature: object) -> dict[str, object]:
    return {} if signature is None else {"signature": signature}


def _check_bom_signature(case: Case, where: str, bom: Mapping[str, Any], signature: object) -> Iterator[Finding]:
    """The bill's own signature is of the key that signed the provenance; who that is, is checked there."""
    envelope = case.provenance_claim.envelope
    keyid = "" if envelope is None or envelope.bundle is not None else envelope.keyid
    if not keyid and signature is not None:
        yield wrong("evidence/bom", where, "is signed by a key, and the statements are not")
    elif keyid and signature is None:
        yield Finding("evidence/bom", _strictness(case), where, "is not signed, and the statements are")
    elif keyid and not is_signed_by(keyid, {**bom, **_signed_with(signature)}):
        yield wrong("evidence/bom", where, "is not signed by the key that signed the statements")


def _check_stamp(case: Case, where: str, stamped: str) -> Iterator[Finding]:
    """The bill was written while it was built."""
    times = case.provenance.predicate.run_details.metadata
    try:
        within = moment(times.started_on) <= moment(stamped) <= moment(times.finished_on)
    except ValueError:
        within = False
    if not within:
        yield wrong("evidence/bom", where, "is of another time than the build")


def check_pages(case: Case) -> Checked:
    """Reports say of the source what is known of it, and their pages and texts say what they say, not a word more."""
    findings: list[Finding] = []
    told = {name: sha256_of(case.read(name))["sha256"] for name in (TENSORS, FILES, f"{MAIN_REPORT}.json")}
    main = case.report(MAIN_REPORT)
    chain = chain_section(case.base, case.loaded, case.root, told)
    findings += _check_main(case, main)
    for name in case.results:
        report = case.report(name)
        subject = model_name(case.base, case.loaded.recipe)
        if report.subject != subject:
            what = f"is about {report.subject[:80]}, and the build is called {subject}"
            findings.append(Finding("evidence/subject", _strictness(case), f"{EVIDENCE}/{name}.json", what))
        findings += _check_forms(case, name, report, chain)
        if not report.holds:
            findings.append(wrong("evidence/results", f"{EVIDENCE}/{name}.json", "does not hold"))
    if case.read(GUIDE) != guide(signed=case.signed):
        what = "is not the guide that Weighbridge writes"
        findings.append(Finding("evidence/page", _strictness(case), f"{EVIDENCE}/{GUIDE}", what))
    findings += _check_log(case)
    words = ["the places, facts and figures that the reports give beside each result", f"what {EVIDENCE}/{LOG} tells"]
    if not case.same_version:
        words.append(_by_another(case, "each report and the guide"))
    reports = "report" if len(case.results) == 1 else "reports"
    summary = f"{len(case.results)} {reports} written again as text and as page, and compared"
    return Checked(summary, tuple(findings), tuple(words))


def _check_forms(case: Case, name: str, report: Report, chain: Section) -> Iterator[Finding]:
    """A report's text and page say what it says."""
    figures = [figure for section in report.sections for figure in section.figures if isinstance(figure, Areas)]
    if sum(len(figure.areas) for figure in figures) > MOST_AREAS:
        yield wrong("evidence/page", f"{EVIDENCE}/{name}.json", "has more to draw than a report of a build has")
        return
    try:
        forms = {f"{name}.md": PRESENTERS["markdown"](report), f"{name}.html": page_of(report, chain)}
    except UNPRESENTABLE:
        yield wrong("evidence/page", f"{EVIDENCE}/{name}.json", "has figures that cannot be shown")
        return
    for file, text in forms.items():
        raw = case.read(file)
        if raw != text.encode(errors="surrogatepass"):
            what = f"is not the text that Weighbridge writes from {name}.json"
            yield Finding("evidence/page", _strictness(case), f"{EVIDENCE}/{file}", what)
        yield from _check_proven(case, f"{EVIDENCE}/{file}", raw.decode(errors="replace"))


def _check_main(case: Case, report: Report) -> Iterator[Finding]:
    """The build's own report calls the source what it is, and its verdict is the one that its sections come to."""
    where = f"{EVIDENCE}/{MAIN_REPORT}.json"
    beside = case.start.files.keys() - set(case.source_shards)
    expected = identity_section(case.identity, case.model, beside)
    named = [section for section in report.sections if section.id == "source"]
    if named != [expected]:
        what = f"does not say of the source what is known: it {case.base.claim.sentence}"
        yield Finding("evidence/identity", Severity.ERROR, where, what)
    references = [section for section in report.sections if section.id == "against-reference"]
    verdict = build_verdict(report.subject, len(case.opened().structure), references, case.model, case.identity)
    if (report.command, report.verdict) != ("build", verdict):
        yield Finding("evidence/results", _strictness(case), where, "its verdict is not what its sections come to")


def _check_log(case: Case) -> Iterator[Finding]:
    """The log is lines of stages."""
    for number, line in enumerate(case.read(LOG).split(b"\n")[:-1], 1):
        where = f"{EVIDENCE}/{LOG}:{number}"
        try:
            stage = parse_object(line, where=where)
        except StructureError as error:
            yield wrong("evidence/malformed", where, error.what)
            continue
        if not all(isinstance(value, str | int | float) for value in stage.values()):
            yield wrong("evidence/malformed", where, "is no stage of a build")


def _strictness(case: Case) -> Severity:
    """Another version may word things otherwise, and its files are bound by digest all the same."""
    return Severity.ERROR if case.same_version else Severity.WARNING
