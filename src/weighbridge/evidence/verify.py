"""Checking a checkpoint's evidence: against its files and tensors, against itself, against a key and a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from weighbridge.checkpoint.model import EVIDENCE, Checkpoint
from weighbridge.errors import EvidenceError, StructureError, WeighbridgeError
from weighbridge.evidence.case import Case, open_case
from weighbridge.evidence.checked import Checked, wrong
from weighbridge.evidence.checks import CHECKS, validated
from weighbridge.evidence.signing import Verifier
from weighbridge.evidence.source import UNPROVEN
from weighbridge.progress import Progress
from weighbridge.report import Finding, Report, Section, first_error


def verify(
    directory: Path, *, verifier: Verifier | None = None, source: Checkpoint | None = None, progress: Progress
) -> Report:
    """Check a checkpoint's evidence.

    Args:
        directory: the checkpoint on disk.
        verifier: who is expected to have signed it; without, no signature is checked, and that is said.
        source: the base model on disk, to be compared with what the evidence says was read.

    Raises:
        StructureError: the directory cannot be read.
        EvidenceError: Sigstore cannot be reached.
    """
    if not directory.is_dir():
        raise StructureError(
            "is no directory", where=str(directory), remedy="download the checkpoint: evidence is about its bytes"
        )
    return judge(*open_case(directory, verifier, source, progress=progress))


def judge(case: Case, findings: Sequence[Finding]) -> Report:
    """The report of a case that was opened, with what was found in doing so."""
    there = Section("evidence-listing", "what lies there", f"{len(case.files):,} files", findings=tuple(findings))
    sections = [there] if findings else []
    words: dict[str, str | int] = {}
    for check in CHECKS:
        checked = _checked(check.run, case)
        sections.append(
            Section(check.id, check.title, checked.summary, findings=checked.findings, judges=checked.judges)
        )
        if checked.words:
            words[check.title] = "; ".join(checked.words)
    sections += validated(case)
    rest = "check rests" if len(words) == 1 else "checks rest"
    summary = f"{len(words)} {rest} in part on the builder's word"
    sections.append(Section("builders-word", "not verified", summary, facts=words, judges=False))
    return Report("evidence", str(case.directory), _verdict(case, sections), tuple(sections))


def _checked(check: Callable[[Case], Checked], case: Case) -> Checked:
    """Run a check; evidence that cannot be read is what it has found.

    Raises:
        EvidenceError: it needs what is not to be had here: a library, Sigstore.
    """
    try:
        return check(case)
    except EvidenceError:
        raise
    except WeighbridgeError as error:
        return Checked("could not be checked", (wrong("evidence/unreadable", error.where or EVIDENCE, error.what),))


def _verdict(case: Case, sections: Sequence[Section]) -> str:
    directory = case.directory
    if wrong_first := first_error(sections):
        return f"{directory}: its evidence does not hold: {wrong_first}"
    signed = "signed" if case.signed else "unsigned"
    unchecked = ", by whom was not checked" if case.signed else ""
    who = unchecked if case.verifier is None else ", by the signer that was asked for"
    found = {finding.rule for section in sections for finding in section.findings}
    base = "; its base is not proven to be the published one" if UNPROVEN in found else ""
    return (
        f"{directory} is the checkpoint that its evidence is about: root digest {case.root[:16]}…; {signed}{who}{base}"
    )
