"""The audit: whether every tensor of a quantized checkpoint follows from its base, by the numbers.

    structures -> pairing -> pieces of rows -> figures -> verdicts -> report

Values flow one way. Only pieces are in memory; what was seen is journalled, so that a killed audit goes on.
docs/explanation/audit.md derives every bound.
"""

from weighbridge.auditing.assess import Audit, audit
from weighbridge.auditing.compare import compare
from weighbridge.auditing.method import Method, method_of
from weighbridge.auditing.pieces import Sample
from weighbridge.auditing.report import conclusion, metrics, sections

__all__ = ["Audit", "Method", "Sample", "audit", "compare", "conclusion", "method_of", "metrics", "sections"]
