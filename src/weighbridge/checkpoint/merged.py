"""Linears that servers merge into one, by the names of vLLM's ``packed_modules_mapping``."""

from __future__ import annotations

from collections.abc import Mapping

MERGED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "w13": ("w1", "w3"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
}
"""The merged linear's name -> its members: Llama's kind, Mixtral's experts, DeepSeek's MLA, Qwen's linear attention."""

MERGED_INTO: Mapping[str, str] = {member: merged for merged, members in MERGED.items() for member in members}
"""A member's name -> that of the linear that it is merged into."""


def expert_of(module: str) -> tuple[str, str] | None:
    """The experts that a module is one of, and its name within one: ``("layers.0.experts", "down_proj")``."""
    parent, found, rest = module.rpartition(".experts.")
    number, _, member = rest.partition(".")
    return (f"{parent}.experts", member) if found and number.isdigit() and member else None
