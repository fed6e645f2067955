"""Two files that say how one checkpoint is quantized: config.json, and modelopt's hf_quant_config.json beside it."""

from __future__ import annotations

from collections.abc import Iterator

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.problems import Problem, findings_of
from weighbridge.checkpoint.quantized import declared_schemes
from weighbridge.formats.declaration import Declaration
from weighbridge.formats.modelopt import HF_QUANT_CONFIG, METHOD
from weighbridge.formats.modelopt_reading import read_document
from weighbridge.report import Finding

REMEDY = "servers differ in which of the two they read; make both say what is stored"


def declared_twice(checkpoint: Checkpoint) -> list[Finding]:
    """Where the two files disagree by effect; empty where only one of them declares anything.

    Raises:
        StructureError: modelopt's own is malformed.
    """
    ours = checkpoint.declaration
    if checkpoint.quant_config is None or ours is None or checkpoint.declared_in != checkpoint.form.config:
        return []
    theirs = read_document(checkpoint.quant_config, where=f"{checkpoint.label}/{HF_QUANT_CONFIG}")
    if ours.quant_method != METHOD:
        return findings_of(
            [_differs(HF_QUANT_CONFIG, checkpoint.form.config, "the quantization", ours.quant_method, METHOD)]
        )
    return findings_of(_differences(checkpoint, ours, theirs))


def _differences(checkpoint: Checkpoint, ours: Declaration, theirs: Declaration) -> Iterator[Problem]:
    config = checkpoint.form.config
    if ours.kv_cache != theirs.kv_cache:
        yield _differs(config, config, "the KV cache", str(ours.kv_cache or "none"), str(theirs.kv_cache or "none"))
    if ours.format != theirs.format:
        yield _differs(config, config, "quant_algo", ours.format or "none", theirs.format or "none")
        return
    sides = [declared_schemes(side, checkpoint.modules, where=checkpoint.label) for side in (ours, theirs)]
    for module in checkpoint.modules:
        own, other = (str(side.get(module, "not quantized")) for side in sides)
        if own != other:
            yield _differs(module, config, "it", own, other)


def _differs(where: str, config: str, what: str, ours: str, theirs: str) -> Problem:
    return (
        "config/declared-twice",
        where,
        f"{what} is {ours} by {config}, and {theirs} by {HF_QUANT_CONFIG}",
        REMEDY,
    )
