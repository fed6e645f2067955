"""Where rows of tensors lie in the files of a checkpoint, however these hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import Place
from weighbridge.formats.codecs import CODES, Coded
from weighbridge.formats.tensors import Tensor
from weighbridge.machine.columns import Columns


class CodedRows(NamedTuple):
    """Codes that rows of a weight are read off.

    Attributes:
        module: whose they are, for messages.
        how: how they become a weight.
        stored: by what each is for, where the whole tensor lies, as a matrix.
        first: the first row of the weight that is meant.
    """

    module: str
    how: Coded
    stored: Mapping[str, Region]
    first: int = 0

    def beside(self, rows: int) -> dict[str, Region]:
        """What is stored of so many rows from the first on, by what each is for; they begin at a whole word."""
        return {
            role: region.beside(self.first, rows, self.how.readings[role].each) for role, region in self.stored.items()
        }


class Region(NamedTuple):
    """Bytes of a file, and the dtype and shape of what they hold.

    Attributes:
        offset: where they begin; of rows that lie as columns, where the whole matrix does.
        columns: where they lie in that matrix; None for rows that lie as such, one after the other.
        coded: where they are stored as codes: which; None for what is stored as it is.
    """

    file: str
    offset: int
    tensor: Tensor
    columns: Columns | None = None
    coded: CodedRows | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that are read for it."""
        if self.coded is None:
            return self.tensor.nbytes
        return sum(region.tensor.nbytes for region in self.coded.beside(self.tensor.shape[0]).values())

    @property
    def as_columns(self) -> bool:
        """Whether its rows, or the codes of them, lie as columns of a matrix."""
        codes = self if self.coded is None else self.coded.stored[CODES]
        return codes.columns is not None and codes.columns.each == 1

    def flat(self, columns: int = 1) -> Region:
        """The same bytes as rows of so many elements."""
        tensor = self.tensor
        return self._replace(tensor=Tensor(tensor.dtype, (tensor.parameters // max(columns, 1), columns)))

    def rows(self, first: int, count: int) -> Region:
        """Rows of a matrix."""
        total, *rest = self.tensor.shape
        tensor = Tensor(self.tensor.dtype, (count, *rest))
        if self.coded is not None:
            return self._replace(tensor=tensor, coded=self.coded._replace(first=self.coded.first + first))
        if self.columns is not None:
            return Region(self.file, self.offset, tensor, self.columns.after(first))
        return Region(self.file, self.offset + first * self.tensor.nbytes // max(total, 1), tensor)

    def beside(self, first: int, count: int, each: int) -> Region:
        """What goes along with rows of a weight: `each` rows of it share one row here; 0: all of them do."""
        if not each:
            return self
        begin = first // each
        return self.rows(begin, -(-(first + count) // each) - begin)


def tensor_regions(checkpoint: Checkpoint) -> dict[str, Region]:
    """Where every tensor of a checkpoint lies, by its name."""
    return {
        name: Region(shard, header.data_offset + stored.begin, stored.tensor)
        for shard, header in checkpoint.shards.items()
        for name, stored in header.tensors.items()
    }


def rows_at(place: Place, tensors: Mapping[str, Region], rows: int) -> Region:
    """Where so many rows at a place lie.

    Args:
        tensors: by name, where the whole tensors do.
    """
    whole = tensors[place.tensor]
    if place.expert is not None:
        experts, *matrix = whole.tensor.shape
        each = whole.tensor.nbytes // experts
        tensor = Tensor(whole.tensor.dtype, tuple(matrix))
        whole = Region(whole.file, whole.offset + place.expert * each, tensor)
    shape = whole.tensor.shape
    columns = place.columns(shape)
    if columns is None:
        return whole if place.expert is None else whole.rows(place.first_row, rows)
    inner = shape[-2:-1] if place.transposed else shape[1:]
    return Region(whole.file, whole.offset, Tensor(whole.tensor.dtype, (rows, *inner)), columns)


def coded_rows(module: str, how: Coded, places: Mapping[str, Place], tensors: Mapping[str, Region]) -> Region:
    """A weight that is stored as codes.

    Args:
        places: local name -> where the module's tensors lie.
        tensors: as for `rows_at`.
    """
    stored = {
        role: rows_at(places[reading.local], tensors, reading.tensor.shape[0])._replace(tensor=reading.tensor)
        for role, reading in how.readings.items()
    }
    codes = stored[CODES]
    return Region(codes.file, codes.offset, how.weight, coded=CodedRows(module, how, stored))
