"""The data-free engine: every tensor in pieces, in bounded memory, journalled, from several workers.

The plan is the header: output shards are laid out before a weight is read, and each piece is written at its offset as
soon as it is ready. The numbers are llm-compressor's; see `weighbridge.numbers`.
"""

from weighbridge.engines.streaming.cluster import check_cluster
from weighbridge.engines.streaming.run import Outcome, build_key, write

__all__ = ["Outcome", "build_key", "check_cluster", "write"]
