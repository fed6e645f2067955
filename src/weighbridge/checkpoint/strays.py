"""Tensors that only quantization stores, by their names and dtypes: codes, and scales of codes.

Headers do not say what a tensor is for. Codes are told by their dtype, scales by their names; what models keep under
names and dtypes that look alike is listed here, read off transformers 5.17 and the checkpoints of its models.
"""

from __future__ import annotations

import re

from weighbridge.checkpoint.modules import QUANTIZATION_PARAMETERS, split_parameter
from weighbridge.formats.tensors import Structure, Tensor

CODE_FLOATS = ("F8_", "F6_", "F4")
"""How the names of dtypes begin that no model computes in."""

CODE_INTEGERS = frozenset({"I8", "U8", "I16", "U16", "I32", "U32"})

TABLES = frozenset(
    {
        *("position_ids", "token_type_ids", "relative_position_index", "tid2eid", "input_ids", "num_batches_tracked"),
        *("window_index", "rp_bucket", "codebook_indices", "causal_mask", "attn_mask", "attention_mask", "mask"),
    }
)
"""Local names of integers of two or more axes that are no codes: positions, lookup tables, masks."""

_OF_CODES = (
    r"scale|scales|scale_inv|scale_2|global_scale|zero_point|zero_points|zeros|qzeros|g_idx|packed|absmax|quant_map"
)
_SCALE = re.compile(
    rf"(?!correct_output_scale$)(?:.*_)?(?:weight|input|output|activation|act|prob|[qkv]|kv|[kv]_cache)_(?:{_OF_CODES})"
    r"|qweight|qzeros|scales|g_idx|scale_inv|absmax|quant_map|nested_absmax|nested_quant_map|bitsandbytes__\w+|SCB"
)
_OF_ITS_MODULE = re.compile(rf"(?!embed_scale)(?:.*_)?(?:{_OF_CODES}|amax)")
_MATRICES = ("weight", "weight_packed", "qweight")
_OF_ITS_SIBLING = re.compile(rf"(?P<weight>.+?)(?:_weight)?_(?:{_OF_CODES})")


def is_code(name: str, tensor: Tensor) -> bool:
    """Whether a tensor holds codes (or scales in a dtype that only those have), by its dtype and axes."""
    if tensor.dtype.startswith(CODE_FLOATS):
        return True
    local = split_parameter(name)[1]
    if tensor.dtype not in CODE_INTEGERS or len(tensor.shape) < 2 or local in TABLES:
        return False
    is_mask = len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1)  # GPT-2 keeps its causal masks as U8
    return not is_mask


def is_scale(name: str, structure: Structure) -> bool:
    """Whether a tensor of a checkpoint is named as what belongs to codes.

    ``down_proj_scale`` and ``down_proj.smooth_scale`` are where a matrix ``down_proj`` or ``down_proj.weight`` is; a
    ``router.scale`` beside ``router.proj.weight`` is none, nor is a ``logit_scale``, an embedding's
    ``embed_scale``, or Gemma 3n's ``correct_output_scale``.
    """
    module, local = split_parameter(name)
    if local in QUANTIZATION_PARAMETERS or _SCALE.fullmatch(local):
        return True
    if _OF_ITS_MODULE.fullmatch(local) and _is_matrix(module, structure):
        return True
    match = _OF_ITS_SIBLING.fullmatch(name)
    return match is not None and _is_matrix(match["weight"], structure)


def _is_matrix(name: str, structure: Structure) -> bool:
    stored = (structure.get(spelled) for spelled in (name, *(f"{name}.{local}" for local in _MATRICES)))
    return any(tensor is not None and len(tensor.shape) >= 2 for tensor in stored)
