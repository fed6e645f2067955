"""The evidence of a build: digests, statements, signatures, bill of materials, model card; written, and checked."""

from weighbridge.evidence.finished import AUDIT_REPORT, MAIN_REPORT, QUALITY_REPORT, FinishedBuild, build_verdict
from weighbridge.evidence.licence import licence_section
from weighbridge.evidence.signing import Signer, open_signer
from weighbridge.evidence.write import write

__all__ = [
    "AUDIT_REPORT",
    "MAIN_REPORT",
    "QUALITY_REPORT",
    "FinishedBuild",
    "Signer",
    "build_verdict",
    "licence_section",
    "open_signer",
    "write",
]
