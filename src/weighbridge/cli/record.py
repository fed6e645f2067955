"""Recording a result in the evidence of the checkpoint that it is about: an option of the commands that judge later."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from weighbridge.checkpoint.model import EVIDENCE
from weighbridge.errors import EvidenceError
from weighbridge.progress import Progress
from weighbridge.report import Report


def add_record_options(parser: argparse.ArgumentParser) -> None:
    """``--record`` and ``--sign``."""
    parser.add_argument(
        "--record", action="store_true", help="add the result to the checkpoint's evidence/, if it holds"
    )
    parser.add_argument(
        "--sign", metavar="KEY.pem|sigstore", help="with --record: sign it, as the checkpoint's evidence is signed"
    )


def check_record(options: argparse.Namespace, checkpoint: Path) -> None:
    """Refuse before the work what could not be recorded after it.

    Raises:
        EvidenceError: the checkpoint has no evidence, or nothing is to be recorded but signed.
    """
    if options.sign and not options.record:
        raise EvidenceError("signs what is recorded", where="--sign", remedy="add --record")
    if options.record and not (checkpoint / EVIDENCE).is_dir():
        raise EvidenceError("has no evidence to add to", where=str(checkpoint), remedy="build it with build.py")


def record(
    options: argparse.Namespace, checkpoint: Path, name: str, report: Report, *, names: Mapping[str, str]
) -> None:
    """Add a report that holds to the evidence, if ``--record`` says so; see `weighbridge.evidence.added.add_result`.

    Raises:
        EvidenceError, StructureError: as `add_result`.
    """
    if not options.record or not report.holds:
        return
    from weighbridge.evidence.added import add_result
    from weighbridge.evidence.signing import open_signer

    signer = open_signer(options.sign) if options.sign else None
    try:
        add_result(checkpoint, name, report, names=names, signer=signer, progress=Progress())
    except OSError as error:
        what = f"the result cannot be recorded ({error.strerror})"
        raise EvidenceError(what, where=str(checkpoint)) from error
