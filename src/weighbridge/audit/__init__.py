"""The audit: whether every tensor of a quantized checkpoint follows from its base, by the numbers.

    structures -> pairing -> pieces of rows -> figures -> verdicts -> report

Values flow one way. Only pieces are in memory; what was seen is journalled, so that a killed audit goes on.
docs/explanation/audit.md derives every bound.
"""

from weighbridge.audit.assess import Audit, audit
from weighbridge.audit.compare import compare
from weighbridge.audit.method import Method, method_of
from weighbridge.audit.pieces import Sample
from weighbridge.audit.report import conclusion, sections

__all__ = ["Audit", "Method", "Sample", "audit", "compare", "conclusion", "method_of", "sections"]
