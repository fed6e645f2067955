"""Capacity as a section of a report: both accountings side by side, and what each rests on."""

from __future__ import annotations

from dataclasses import astuple, replace

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checks.capacity.accounting import (
    GIB,
    SGLANG_RESERVE,
    VLLM_RESERVE,
    Capacity,
    Demand,
    check_against_structure,
    read_cache_shape,
    sglang_capacity,
    vllm_capacity,
)
from weighbridge.report import Finding, Section, Severity, Table

COLUMNS = (
    *("accounting of", "weights, GiB", "KV cache, GiB", "KV cache, bytes a token", "KV cache, tokens"),
    "requests at once",
)
PARTS = ("weights of", "tensors, bytes", "rotary tables, bytes", "scales kept twice, bytes", "assumed, bytes")


def capacity_section(checkpoint: Checkpoint, demand: Demand) -> Section:
    """What a checkpoint leaves of a card, by vLLM's accounting and by SGLang's.

    Without a dtype in the demand, the cache has the one that the checkpoint declares.

    Raises:
        StructureError: its config.json lacks what the KV cache's size depends on, or contradicts its tensors.
    """
    where = f"{checkpoint.form.config} of {checkpoint.label}"
    shape = read_cache_shape(checkpoint.config, where=where)
    declared = checkpoint.declaration is not None and checkpoint.declaration.kv_cache is not None
    demand = replace(demand, kv_dtype=demand.kv_dtype or ("fp8" if declared else "bf16"))
    check_against_structure(shape, checkpoint.config, checkpoint.structure, where=checkpoint.label)
    found = tuple(account(checkpoint.structure, shape, demand) for account in (vllm_capacity, sglang_capacity))
    fitting = [capacity for capacity in found if capacity.cache > 0]
    left = "; ".join(f"by {capacity.server}'s accounting {capacity.tokens:,} tokens of cache" for capacity in fitting)
    return Section(
        id="capacity",
        title=f"on a card of {demand.memory / GIB:g} GiB",
        summary=f"computed, not measured: {left or 'no room for a KV cache beside the weights'}",
        findings=tuple(_too_large(capacity, demand, fatal=not fitting) for capacity in found if capacity.cache <= 0),
        facts=_assumptions(demand, found[0].context),
        tables=(
            Table(COLUMNS, tuple(_row(capacity) for capacity in found)),
            Table(PARTS, tuple((one.server, *astuple(one.weights)) for one in found)),
        ),
    )


def _row(capacity: Capacity) -> tuple[str | int | float, ...]:
    return (
        capacity.server,
        capacity.weights.total / GIB,
        capacity.cache / GIB,
        capacity.bytes_per_token,
        capacity.tokens,
        capacity.requests,
    )


def _assumptions(demand: Demand, context: int) -> dict[str, str | int]:
    """What the figures rest on, each with the option that changes it."""
    vllm, sglang = (demand.reserve if demand.reserve is not None else own for own in (VLLM_RESERVE, SGLANG_RESERVE))
    return {
        "KV cache": f"{demand.kv_dtype or 'bf16'} (--kv-dtype)",
        "a request": f"{context:,} tokens (--context)",
        "share of the card": f"{demand.utilization:g} (--gpu-memory-utilization; SGLang: --mem-fraction-static)",
        "reserved of it": f"{vllm / GIB:.2f} GiB for vLLM, {sglang / GIB:.2f} for SGLang (--reserve; assumed)",
        "vLLM": f"every layer padded to the widest; batches of {demand.batched_tokens:,} (--max-num-batched-tokens)",
        "SGLang": f"a pool of its own for sliding layers, {demand.sliding_share:g} of the other "
        "(--swa-full-tokens-ratio)",
    }


def _too_large(capacity: Capacity, demand: Demand, *, fatal: bool) -> Finding:
    weights, missing = capacity.weights.total / GIB, -capacity.cache / GIB
    return Finding(
        rule="capacity/too-large",
        severity=Severity.ERROR if fatal else Severity.WARNING,
        where=f"by {capacity.server}'s accounting",
        message=f"weights of {weights:.2f} GiB are {missing:.2f} GiB more than a card of {demand.memory / GIB:g} GiB "
        "leaves, and nothing remains for the KV cache",
        remedy="name a larger card, or a scheme of fewer bits",
    )
