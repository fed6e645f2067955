"""What a module is for, read off its name: the families that llm-compressor's users build.

Names are all that headers have. The table below knows Gemma, Llama, Qwen, Mixtral and DeepSeek; what it does not know
is ``other`` and shows as such in a plan.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache

from weighbridge.structure.modules import is_embedding


class Role(StrEnum):
    """What a module does, in the order in which a plan lists it."""

    ATTENTION = "attention"
    MLP = "dense mlp"
    EXPERTS = "experts"
    ROUTER = "router"
    NORMS = "norms"
    EMBEDDINGS = "embeddings"
    HEAD = "head"
    VISION = "vision"
    AUDIO = "audio"
    OTHER = "other"


def _parts(*names: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|\.)(?:{'|'.join(names)})(?:\.|$)")


# The first that matches decides: a norm inside a vision tower is part of the tower, a gate beside experts is a router.
_ROLES: tuple[tuple[Role, re.Pattern[str]], ...] = (
    (Role.VISION, _parts(r"vision\w*", "visual", "embed_vision", "multi_modal_projector", "mm_projector")),
    (Role.AUDIO, _parts(r"audio\w*", "embed_audio", r"speech\w*")),
    (Role.HEAD, _parts("lm_head", "output_head", "score")),
    (Role.NORMS, _parts(r"\w*norm\w*", r"ln_\w+")),
    (Role.ROUTER, _parts("router", r"(?:mlp|block_sparse_moe|moe|feed_forward)\.gate", r"\w*shared_expert_gate")),
    (Role.EXPERTS, _parts(r"experts", r"shared_experts?")),
    (Role.ATTENTION, _parts("self_attn", "attn", "attention", "self_attention", "cross_attn", "linear_attn")),
    (Role.MLP, _parts("mlp", "feed_forward", "ffn", "block_sparse_moe")),
)


@lru_cache(maxsize=1 << 16)
def role_of(module: str) -> Role:
    """The role of a module by its name."""
    for role, pattern in _ROLES:
        if pattern.search(module):
            return role
    if is_embedding(module):
        return Role.EMBEDDINGS
    return Role.OTHER
