"""Recipe x source structure -> what becomes of every tensor, and the exact structure of the output.

The plan is made from headers alone. It is what lint reads, what a build is held against, what the engine lays its
files out by, and what a killed build resumes from.
"""

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import Place
from weighbridge.checkpoint.readable import check_decoded
from weighbridge.planning.convert import plan_conversion, plan_rewrite
from weighbridge.planning.model import (
    Decision,
    FusedGroup,
    Obstacle,
    Part,
    Plan,
    Stored,
    find_fused_groups,
    find_merged_groups,
    tied_heads,
)
from weighbridge.planning.quantize import plan_quantization
from weighbridge.recipe import LoadedRecipe

__all__ = [
    "Decision",
    "FusedGroup",
    "Obstacle",
    "Part",
    "Place",
    "Plan",
    "Stored",
    "find_fused_groups",
    "find_merged_groups",
    "make_plan",
    "plan_rewrite",
    "tied_heads",
]


def make_plan(loaded: LoadedRecipe, source: Checkpoint) -> Plan:
    """Decide what becomes of every tensor of `source`.

    Raises:
        StructureError: two tensors of the source would be written under one name, a conversion's source is not what it
            can convert, or the source is quantized in a way that is not decoded here.
    """
    check_decoded(source)
    return (plan_conversion if loaded.recipe.method == "convert" else plan_quantization)(loaded, source)
