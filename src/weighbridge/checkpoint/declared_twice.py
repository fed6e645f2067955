"""Two files that say how one checkpoint is quantized: config.json, and modelopt's hf_quant_config.json beside it."""

from __future__ import annotations

from collections.abc import Iterator

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.quantized import declared_schemes
from weighbridge.formats.declaration import Declaration
from weighbridge.formats.modelopt import HF_QUANT_CONFIG, METHOD
from weighbridge.formats.modelopt_reading import read_document
from weighbridge.report import Finding, Severity
from weighbridge.text.names import compact

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
        return [_finding(HF_QUANT_CONFIG, checkpoint.form.config, "the quantization", ours.quant_method, METHOD)]
    return list(_differences(checkpoint, ours, theirs))


def _differences(checkpoint: Checkpoint, ours: Declaration, theirs: Declaration) -> Iterator[Finding]:
    config = checkpoint.form.config
    if ours.kv_cache != theirs.kv_cache:
        yield _finding(config, config, "the KV cache", str(ours.kv_cache or "none"), str(theirs.kv_cache or "none"))
    if ours.format != theirs.format:
        yield _finding(config, config, "quant_algo", ours.format or "none", theirs.format or "none")
        return
    sides = [declared_schemes(side, checkpoint.modules, where=checkpoint.label) for side in (ours, theirs)]
    different: dict[tuple[str, str], list[str]] = {}
    for module in checkpoint.modules:
        own, other = (str(side.get(module, "not quantized")) for side in sides)
        if own != other:
            different.setdefault((own, other), []).append(module)
    for (own, other), modules in different.items():
        for pattern in compact(modules):
            yield _finding(str(pattern), config, "it", own, other, count=len(pattern))


def _finding(where: str, config: str, what: str, ours: str, theirs: str, *, count: int = 1) -> Finding:
    message = f"{what} is {ours} by {config}, and {theirs} by {HF_QUANT_CONFIG}"
    return Finding("config/declared-twice", Severity.ERROR, where, message, count=count, remedy=REMEDY)
