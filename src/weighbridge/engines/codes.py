"""What the codes of a quantized source mean, asked of `weighbridge.numbers.decoding`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from weighbridge.errors import BuildError
from weighbridge.work.reading import Bytes
from weighbridge.work.regions import CodedRows, Region

Answer = TypeVar("Answer")


def of_codes(read: Callable[[Region, str], Bytes], coded: CodedRows, count: int, ask: Callable[..., Answer]) -> Answer:
    """What a function of `weighbridge.numbers.decoding` says of so many rows.

    Args:
        read: gives the bytes of a region, of which it is also told what they are for; valid until it is told the same
            again.

    Raises:
        BuildError: codes or scales of which no weight can be made.
        StructureError: the source cannot be read, or is no longer the one whose header was read.
    """
    from weighbridge.numbers.decoding import Raw, UnusableCodes  # numba, which a copy does without

    stored = {
        role: Raw(region.tensor.dtype, read(region, role).reshape(region.tensor.shape[0], -1))
        for role, region in coded.beside(count).items()
    }
    rows, columns = coded.how.weight.shape
    try:
        return ask(coded.how.codec, stored, coded.first, count, (rows, columns))
    except UnusableCodes as problem:
        raise BuildError(
            str(problem),
            where=f"{coded.module}.{coded.how.readings[problem.role].local}",
            remedy="the source is damaged: compare its digests with the published ones",
        ) from None
