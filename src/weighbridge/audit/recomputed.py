"""What running a recipe again gives, byte by byte: the only judgement of a calibrated weight without a limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from weighbridge.audit.judge import Judged, Verdict
from weighbridge.audit.measure import Measure
from weighbridge.audit.pairing import ATTENTION_SCALES, KeptPair, QuantizedPair, Region
from weighbridge.audit.reading import Reader

PROVEN = frozenset({Verdict.IDENTICAL, Verdict.EXACT})
"""Verdicts that running the recipe again could not improve."""

OF_ACTIVATIONS = ("input_", "output_")

PART_BYTES = 16 * 1024 * 1024

Quantized = Sequence[tuple[QuantizedPair, Measure, Judged]]
Kept = Sequence[tuple[KeptPair, Judged]]


def recomputed(
    quantized: Quantized, kept: Kept, checkpoint: Reader, again: Mapping[str, Region], theirs: Reader
) -> tuple[Quantized, Kept]:
    """The verdicts, with `Verdict.RECOMPUTED` for what `again` holds byte by byte.

    Args:
        again: every tensor of what running the recipe again gave.

    Raises:
        StructureError, HubError: a side cannot be read.
    """

    def improved(judged: Judged, stored: Mapping[str, Region]) -> Judged:
        if judged.verdict in PROVEN or not all(
            name in again and _same(checkpoint, region, theirs, again[name]) for name, region in stored.items()
        ):
            return judged
        return Judged(judged.name, Verdict.RECOMPUTED)

    return (
        [
            (item, seen, improved(judged, {f"{item.name}.{local}": region for local, region in item.stored.items()}))
            for item, seen, judged in quantized
        ],
        [(item, improved(judged, {item.name: item.stored})) for item, judged in kept],
    )


def scales_of_data(
    quantized: Quantized, stored: Mapping[str, Region], checkpoint: Reader, again: Mapping[str, Region], theirs: Reader
) -> dict[str, bool]:
    """Name of each scale that comes from calibration data, of activations and caches, and whether `again` has it so.

    Args:
        stored, again: every tensor of the checkpoint, and of what running the recipe again gave.

    Raises:
        StructureError, HubError: a side cannot be read.
    """
    names = [
        f"{item.name}.{local}" for item, _, _ in quantized for local in item.stored if local.startswith(OF_ACTIVATIONS)
    ]
    names += [name for name in stored if name.rpartition(".")[2] in ATTENTION_SCALES]
    return {name: name in again and _same(checkpoint, stored[name], theirs, again[name]) for name in names}


def _same(one: Reader, region: Region, other: Reader, theirs: Region) -> bool:
    if region.tensor != theirs.tensor:
        return False
    return all(
        bool((_read(one, part) == _read(other, opposite)).all())
        for part, opposite in zip(_parts(region), _parts(theirs), strict=True)
    )


def _parts(region: Region) -> Iterator[tuple[str, int, int]]:
    """File, offset and size of what is compared at a time."""
    for begin in range(0, region.tensor.nbytes, PART_BYTES):
        yield region.file, region.offset + begin, min(PART_BYTES, region.tensor.nbytes - begin)


def _read(reader: Reader, part: tuple[str, int, int]) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    file, offset, size = part
    target = np.empty(size, np.uint8)
    reader.read(file, offset, memoryview(target.data))
    return target
