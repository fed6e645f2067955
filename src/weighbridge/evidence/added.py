"""Results that come after a build (does it serve, is it still good), added to its evidence.

A result is a report in the folder ``added``, beside a statement of its own in ``added.jsonl``: about the same subject,
bound by digests to the provenance of the very build and to its report, and signed if the build is. The build's own
signature over evidence/ is not over that folder, so it stays as it was; the folder has one of its own, made anew with
each result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from weighbridge.checkpoint.model import EVIDENCE
from weighbridge.errors import Argument, Clause, EvidenceError
from weighbridge.evidence.case import ADDED_NAME, Case, added_name, open_case
from weighbridge.evidence.results import result_statement, results_of
from weighbridge.evidence.signing import ADDED_FOLDER, ADDED_IGNORED, ADDED_SIGNATURE_FILE, Signer
from weighbridge.evidence.statements import Resource, sha256_of, write_statement
from weighbridge.evidence.verify import judge
from weighbridge.evidence.write import ADDED, PROVENANCE, called_by_name
from weighbridge.machine.cache import write_atomically
from weighbridge.progress import Progress
from weighbridge.report import PRESENTERS, Report, Severity


def add_result(
    directory: Path,
    name: str,
    report: Report,
    *,
    names: Mapping[str, str],
    signer: Signer | None = None,
    progress: Progress,
) -> None:
    """Add a report to a build's evidence, in the place of an earlier one of the same name.

    Args:
        name: what judged it, e.g. ``serving``: the report becomes ``evidence/added/serving.json`` and ``.md``.
        names: path -> what the report calls it instead: where things lay is nobody's business who reads it elsewhere.
        signer: who signs; the one who signed the build, or None where nobody did.

    Raises:
        EvidenceError: report or evidence does not hold, it is not signed alike, or the signer cannot sign.
        StructureError: the directory cannot be read.
        OSError: it cannot be written.
    """
    if not ADDED_NAME.fullmatch(name):
        raise EvidenceError(f"{name!r} is no name of a result", where="evidence", remedy="a short word such as serving")
    if not report.holds:
        raise EvidenceError("does not hold, so it is not recorded", where=name, remedy="see the report")
    case = _sound_case(directory, name, progress)
    if case.signed != (signer is not None):
        what = "is unsigned, and what is added must be"
        remedy = Clause("leave out ", Argument("sign"), ", or build signed")
        if case.signed:
            what = "is signed, and what is added must be, too"
            remedy = Clause(Argument("sign"), " with the key that signed the build")
        raise EvidenceError(what, where=f"{directory}/{EVIDENCE}", remedy=remedy)
    report = called_by_name(report, names)
    contents = {
        f"{ADDED_FOLDER}/{name}.json": PRESENTERS["json"](report).encode(),
        f"{ADDED_FOLDER}/{name}.md": PRESENTERS["markdown"](report).encode(),
    }
    results = results_of(json.loads(contents[f"{ADDED_FOLDER}/{name}.json"]), where=name)
    configuration = [
        Resource(name=PROVENANCE, digest=sha256_of(case.provenance_claim.payload)),
        *(Resource(name=f"{EVIDENCE}/{file}", digest=sha256_of(content)) for file, content in contents.items()),
    ]
    payload = write_statement(result_statement(results, case.provenance.subject[0], configuration))
    line = payload if signer is None else signer.sign_statement(payload)
    kept = [claim for claim in case.added if added_name(claim) != name]
    beside = directory / EVIDENCE
    (beside / ADDED_FOLDER).mkdir(exist_ok=True)
    # Its old statement goes first and its new one comes last: a kill leaves a file that nothing speaks of, not a lie.
    _write_lines(beside / ADDED, [claim.line for claim in kept])
    for file, content in contents.items():
        write_atomically(beside / file, content)
    lines = _write_lines(beside / ADDED, [*(claim.line for claim in kept), line])
    if signer is not None:
        reports = [name, *(str(added_name(claim)) for claim in kept)]
        files = {f"{report}.{kind}" for report in reports for kind in ("json", "md")}
        there = {file: sha256_of((beside / ADDED_FOLDER / file).read_bytes())["sha256"] for file in files}
        there[Path(ADDED).name] = sha256_of(lines)["sha256"]
        signature = signer.sign_model(there, name=ADDED_FOLDER, ignored=ADDED_IGNORED)
        write_atomically(beside / ADDED_FOLDER / ADDED_SIGNATURE_FILE, signature)


def _sound_case(directory: Path, name: str, progress: Progress) -> Case:
    """The evidence of a checkpoint, which holds, but perhaps for an earlier result of the same name."""
    own = {f"{EVIDENCE}/{ADDED_FOLDER}/{file}" for file in (f"{name}.json", f"{name}.md", ADDED_SIGNATURE_FILE)}
    case, findings = open_case(directory, None, None, progress=progress)
    report = judge(case, findings)
    wrong = [
        finding
        for section in report.sections
        for finding in section.findings
        if finding.severity is Severity.ERROR and finding.where not in own
    ]
    if wrong:
        what = f"its evidence does not hold: {wrong[0].where} {wrong[0].message}"
        raise EvidenceError(what, where=str(directory), remedy="validate.py --evidence says more")
    if name in case.results:
        raise EvidenceError("is a report of the build itself", where=name, remedy="choose another name")
    return case


def _write_lines(path: Path, lines: list[bytes]) -> bytes:
    """Write a file of lines, and give what was written."""
    content = b"".join(line + b"\n" for line in lines)
    write_atomically(path, content)
    return content
