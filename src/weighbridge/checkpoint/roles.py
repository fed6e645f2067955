"""What a module is for, read off its name: the families that llm-compressor's users build.

Names are all that headers have. The table below knows Gemma, Llama, Qwen, Mixtral and DeepSeek, and what older models
call the same things; what it does not know is ``other`` and shows as such in a plan.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache

from weighbridge.checkpoint.modules import is_embedding
from weighbridge.checkpoint.names import split_name


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
    (
        Role.VISION,
        _parts(r"vision\w*", r"image_\w+", "visual", "embed_vision", "multi_modal_projector", "mm_projector"),
    ),
    (Role.AUDIO, _parts(r"audio\w*", "embed_audio", r"speech\w*")),
    (Role.HEAD, _parts("lm_head", "output_head", "embed_out", "score", r"shared_head\.head")),
    (Role.NORMS, _parts(r"\w*[nN]orm\w*", r"ln_\w+")),
    (Role.ROUTER, _parts("router", r"(?:mlp|block_sparse_moe|moe|feed_forward|ffn)\.gate", r"\w*shared_expert_gate")),
    (Role.EXPERTS, _parts(r"experts", r"shared_experts?")),
    (Role.ATTENTION, _parts("self_attn", "attn", "attention", "self_attention", "cross_attn", "linear_attn")),
    (Role.MLP, _parts("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc1", "fc2")),
)


_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)(?:\.|$)")


def layer_of(module: str) -> int | None:
    """The layer that a module belongs to, by its name; None for one that belongs to none."""
    match = _LAYER.search(module)
    return int(match[1]) if match else None


def role_of(module: str) -> Role:
    """The role of a module by its name."""
    return _role_of_template(split_name(module)[0])


@lru_cache(maxsize=1 << 12)
def _role_of_template(template: str) -> Role:
    """The role of all modules that differ only in their numbers: experts are many, and one is like the other."""
    for role, pattern in _ROLES:
        if pattern.search(template):
            return role
    if is_embedding(template):
        return Role.EMBEDDINGS
    return Role.OTHER
