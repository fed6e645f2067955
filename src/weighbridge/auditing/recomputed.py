"""What running a recipe again gives, byte by byte: the only judgement of a calibrated weight without a limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weighbridge.auditing.judge import Judged, Verdict
from weighbridge.auditing.measure import Measure
from weighbridge.auditing.pairing import KeptPair, QuantizedPair
from weighbridge.auditing.reading import read
from weighbridge.work.pieces import in_strips
from weighbridge.work.reading import Reader
from weighbridge.work.regions import Region

PROVEN = frozenset({Verdict.IDENTICAL, Verdict.EXACT})
"""Verdicts that running the recipe again could not improve."""

OF_ACTIVATIONS = ("input_", "output_")

Quantized = Sequence[tuple[QuantizedPair, Measure, Judged]]
Kept = Sequence[tuple[KeptPair, Judged]]


@dataclass(frozen=True)
class Recomputed:
    """What came of running the recipe again.

    Attributes:
        compared: tensors on either side.
        others: names of those that are not the same byte by byte, or that one side alone has.
    """

    compared: int
    others: frozenset[str]


def compare(
    stored: Mapping[str, Region], checkpoint: Reader, again: Mapping[str, Region], theirs: Reader
) -> Recomputed:
    """Compare every tensor of a checkpoint, whatever was said of it, with what running the recipe again gave.

    Raises:
        StructureError, HubError: a side cannot be read.
    """
    names = stored.keys() | again.keys()
    same = {name for name in stored.keys() & again.keys() if _same(checkpoint, stored[name], theirs, again[name])}
    return Recomputed(len(names), frozenset(names - same))


def improved(quantized: Quantized, kept: Kept, found: Recomputed) -> tuple[Quantized, Kept]:
    """The verdicts, with `Verdict.RECOMPUTED` for what came out the same and is not proven without."""

    def better(judged: Judged, names: Iterable[str]) -> Judged:
        if judged.verdict in PROVEN or not found.others.isdisjoint(names):
            return judged
        return Judged(judged.name, Verdict.RECOMPUTED)

    return (
        [(item, seen, better(judged, names_of(item))) for item, seen, judged in quantized],
        [(item, better(judged, (item.name,))) for item, judged in kept],
    )


def names_of(item: QuantizedPair) -> list[str]:
    """The tensors that store a quantized weight, without the scales of its activations."""
    return [f"{item.name}.{local}" for local in item.stored if not local.startswith(OF_ACTIVATIONS)]


def _same(one: Reader, region: Region, other: Reader, theirs: Region) -> bool:
    if region.tensor != theirs.tensor:
        return False
    if region.columns is None and theirs.columns is None:
        region, theirs = region.flat(), theirs.flat()
    rows = region.tensor.shape[0]
    for strip in in_strips(rows, region.tensor.nbytes // max(rows, 1)):
        spans = ((strip.start, len(strip)),)
        rows_of_one = read(one, region, spans, "one").view(np.uint8)
        if (rows_of_one != read(other, theirs, spans, "other").view(np.uint8)).any():
            return False
    return True
