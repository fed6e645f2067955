"""May this checkpoint be served: its evidence, verified, and held against what an organisation asks of it.

    policy, checkpoint -> evidence verified -> each demand of the policy -> report -> verification summary

Nothing here imports torch, transformers or llm-compressor: a gate stands where models are served, not where they are
made.
"""

from weighbridge.policy.judging import Judged, judge
from weighbridge.policy.schema import LoadedPolicy, Policy, open_policy

__all__ = ["Judged", "LoadedPolicy", "Policy", "judge", "open_policy"]
