"""The tensors of a source as transformers loads them: those that are stored, and floats in the place of codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighbridge.engines.codes import of_codes
from weighbridge.planning import Plan
from weighbridge.work.reading import Bytes, Reader, read_stored, reader_of
from weighbridge.work.regions import Region, coded_rows, tensor_regions

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Source:
    """Where each tensor comes from.

    Attributes:
        files: name of a tensor that is stored as it is -> the file that it is in.
        codes: name of a weight -> where its codes lie, and what goes along with them.
        reader: reads those.
    """

    files: Mapping[str, Path]
    codes: Mapping[str, Region]
    reader: Reader

    @contextmanager
    def opened(self, names: list[str]) -> Iterator[dict[str, Any]]:
        """Tensors by name: those of files are read when they are looked at, within the block; codes are decoded."""
        from safetensors import safe_open

        with ExitStack() as stack:
            files = {
                path: stack.enter_context(safe_open(path, framework="pt", device="cpu"))
                for path in {self.files[name] for name in names if name in self.files}
            }
            yield {
                name: files[self.files[name]].get_slice(name) if name in self.files else self._decoded(self.codes[name])
                for name in names
            }

    def _decoded(self, region: Region) -> torch.Tensor:
        """A whole weight, BF16."""
        import numpy as np
        import torch

        from weighbridge.numbers.decoding import decoded

        def read(part: Region, _role: str) -> Bytes:
            content: Bytes = np.empty(part.tensor.nbytes, np.uint8)
            read_stored(self.reader, part, memoryview(content.data))
            return content

        assert region.coded is not None
        return torch.from_numpy(of_codes(read, region.coded, region.tensor.shape[0], decoded)).view(torch.bfloat16)


def open_tensors(plan: Plan) -> Source:
    """The tensors of a plan's source, which is on disk."""
    source = plan.source
    assert source.directory is not None
    regions = tensor_regions(source)
    codes, beside = {}, set()
    for part in plan.parts:
        if part.stored is not None:
            assert part.stored.coded is not None
            codes[f"{part.module}.weight"] = coded_rows(part.module, part.stored.coded, part.stored.places, regions)
            beside |= {place.tensor for place in part.stored.places.values()}
    files = {
        name: source.directory / shard
        for shard, header in source.shards.items()
        for name in header.tensors.keys() - beside
    }
    return Source(files, codes, reader_of(source))
