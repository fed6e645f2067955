"""A build that is made to be compared with, and goes afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weighbridge.base.references import NO_REFERENCE
from weighbridge.building import BuildRequest, build
from weighbridge.checkpoint.model import Checkpoint, open_directory
from weighbridge.errors import BuildError
from weighbridge.machine.resources import Resources
from weighbridge.progress import Progress
from weighbridge.recipe import LoadedRecipe


@contextmanager
def built_again(
    loaded: LoadedRecipe, source: Checkpoint, *, resources: Resources, progress: Progress
) -> Iterator[Checkpoint]:
    """What a recipe makes of a source on this machine, in a temporary directory.

    Raises:
        BuildError: what came out does not hold.
        WeighbridgeError: it cannot be built.
    """
    with tempfile.TemporaryDirectory(prefix="weighbridge-again-") as scratch:
        output = Path(scratch) / "checkpoint"
        request = BuildRequest(loaded, source, output, references=(NO_REFERENCE,), resources=resources)
        report = build(request, progress=progress)
        if not report.holds:
            raise BuildError(f"it cannot be built again: {report.verdict}", where=loaded.document.where)
        yield open_directory(output, label="what the recipe makes again")
