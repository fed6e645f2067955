"""Calibration data: rows of a file or of a data set on the hub, and which of them are taken.

Nothing here runs code of a stranger's: files are text, JSON or Parquet, data sets on the hub are files of these kinds
(``datasets`` 5 knows no loading scripts).
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighbridge.checkpoint.hub_client import hushed, wary_client
from weighbridge.errors import Argument, Clause, DatasetError, first_line
from weighbridge.machine.hashing import hash_file
from weighbridge.progress import Progress
from weighbridge.recipe.calibration import Calibration, Dataset
from weighbridge.text.strict_json import parse_object

if TYPE_CHECKING:
    import pyarrow.parquet

_COMMIT = re.compile(r"@([0-9a-f]{40})(?:/|$)")


@dataclass(frozen=True)
class Rows:
    """A data set that was opened.

    Attributes:
        name: what messages and reports call it.
        count: how many rows it has.
        take: row numbers (from 0, ascending or not) -> their values, in that order; raises DatasetError.
        revision: the commit that a hub's data set was read at; empty for a file.
        sha256: digest of a file; empty for a hub's data set.
    """

    name: str
    count: int
    take: Callable[[Sequence[int]], list[Any]]
    revision: str = ""
    sha256: str = ""


def open_rows(calibration: Calibration) -> Rows:
    """Open the data set that a calibration names.

    Raises:
        DatasetError: not there, not of its kind, or without the column; with file and line where there is one.
        StructureError: a line of a ``.jsonl`` file that is no JSON object.
    """
    dataset = calibration.dataset
    if dataset.file is None:
        return _hub(dataset)
    path = Path(dataset.file)
    if not path.is_file():
        raise DatasetError("no such file", where=dataset.file, remedy="check calibration.dataset.file")
    if path.suffix == ".txt":
        return _lines(path)
    return (_json_lines if path.suffix == ".jsonl" else _parquet)(path, dataset)


def with_file(calibration: Calibration, file: str) -> Calibration:
    """The calibration with a local file in the place of its data set; a line of a ``.txt`` is always taken as text.

    Raises:
        DatasetError: a file of a kind that is not read, or none.
    """
    if not file.endswith((".jsonl", ".parquet", ".txt")):
        raise DatasetError("is no .jsonl, .parquet or .txt file", where=file)
    if not Path(file).is_file():
        raise DatasetError("no such file", where=file, remedy="name one that is there")
    changed: dict[str, object] = {"dataset": Dataset(file=file, column=calibration.dataset.column)}
    if file.endswith(".txt"):
        changed["render"] = "text"
    return calibration.model_copy(update=changed)


def choose_rows(count: int, samples: int, seed: int) -> tuple[int, ...]:
    """The rows that a seed takes of `count`: those whose digest is smallest, in the order of their digests.

    The digest is SHA-256 of the seed and the row's number, each as eight bytes, little-endian: no library's generator,
    whose sequence a new release may change.
    """

    def digest(row: int) -> bytes:
        return hashlib.sha256(struct.pack("<QQ", seed, row)).digest()

    return tuple(nsmallest(samples, range(count), key=digest))


def _lines(path: Path) -> Rows:
    """A ``.txt`` file: each line that is not blank is a row."""
    values = [line.strip() for line in _text_lines(path) if line.strip()]
    return Rows(path.name, len(values), lambda rows: [values[row] for row in rows], sha256=_digest(path))


def _json_lines(path: Path, dataset: Dataset) -> Rows:
    """A ``.jsonl`` file: each line is a row; every one is read, so that a broken one is found whatever the seed."""

    def values() -> Iterator[Any]:
        for number, line in enumerate(_text_lines(path), start=1):
            where = f"{path}:{number}"
            row = parse_object(line.encode(), where=where)
            if dataset.column not in row:
                raise _lacks(dataset, list(row), where)
            yield row[dataset.column]

    def take(rows: Sequence[int]) -> list[Any]:
        wanted = set(rows)
        found = {row: value for row, value in enumerate(values()) if row in wanted}
        return [found[row] for row in rows]

    return Rows(path.name, sum(1 for _ in values()), take, sha256=_digest(path))


def _parquet(path: Path, dataset: Dataset) -> Rows:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise DatasetError(f"is no Parquet file that can be read ({first_line(error)})", where=str(path)) from error
    if dataset.column not in file.schema_arrow.names:
        raise _lacks(dataset, file.schema_arrow.names, str(path))

    def take(rows: Sequence[int]) -> list[Any]:
        try:
            return _parquet_values(file, dataset.column, rows)
        except (ArrowException, OSError) as error:
            raise DatasetError(f"cannot be read ({first_line(error)})", where=str(path)) from error

    return Rows(path.name, file.metadata.num_rows, take, sha256=_digest(path))


def _parquet_values(file: pyarrow.parquet.ParquetFile, column: str, rows: Sequence[int]) -> list[Any]:
    """Values of a column at some rows, read a row group at a time."""
    found: dict[int, Any] = {}
    first = 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        here = [row for row in rows if first <= row < first + size]
        if here:
            table = file.read_row_group(group, columns=[column])
            found |= zip(here, table.column(column).take([row - first for row in here]).to_pylist(), strict=True)
        first += size
    return [found[row] for row in rows]


def _hub(dataset: Dataset) -> Rows:
    """A data set of the hub, downloaded into the hub client's own cache; a directory of its name is never taken."""
    import datasets
    import httpx
    from datasets.exceptions import DatasetsError
    from huggingface_hub import set_client_factory

    name = f"{dataset.hub}@{dataset.revision}" if dataset.revision else str(dataset.hub)
    where = f"{name}, {dataset.split}"
    datasets.disable_progress_bars()
    set_client_factory(wary_client)
    try:
        with hushed():
            builder = datasets.load_dataset_builder(
                f"hf://datasets/{dataset.hub}", dataset.config, revision=dataset.revision
            )
            builder.download_and_prepare()
            found = builder.as_dataset(split=dataset.split)
    except (DatasetsError, httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
        what = f"the data set cannot be loaded ({first_line(error)})"
        raise DatasetError(
            what, where=where, remedy=Clause("check its name, or name a file as ", Argument("calibration"))
        ) from error
    if dataset.column not in found.column_names:
        raise _lacks(dataset, found.column_names, where)
    commit = _COMMIT.search(str(builder.base_path))
    return Rows(
        where,
        len(found),
        lambda rows: list(found.select(rows)[dataset.column]),
        revision=dataset.revision or (commit[1] if commit else ""),
    )


def _text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, without their ends."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield line.rstrip(b"\r\n").decode()
                except UnicodeDecodeError as error:
                    raise DatasetError("is not UTF-8", where=f"{path}:{number}") from error
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror})", where=str(path)) from error


def _digest(path: Path) -> str:
    return hash_file(path, Progress(shown=False))


def _lacks(dataset: Dataset, columns: Sequence[str], where: str) -> DatasetError:
    return DatasetError(
        f"has no {dataset.column!r}",
        where=where,
        remedy=f"name another under calibration.dataset.column; there is {', '.join(map(repr, columns)) or 'none'}",
    )
