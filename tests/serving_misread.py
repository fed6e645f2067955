"""A server that misreads one scale: ``python -m tests.serving_misread CHECKPOINT TENSOR``.

A copy of the checkpoint in which one BF16 scale is doubled stands for a server that takes it for twice what it is: the
server is given the copy, our own forward the checkpoint. Prints both comparisons of the serving check.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.checkpoints import Tensors, copy_checkpoint, edit_tensors
from tests.serving_answers import serving_python
from weighbridge.checkpoint.model import open_directory
from weighbridge.extras.serving.check import (
    EXACT,
    SERVED,
    ServingCheck,
    agreement_section,
    ask_server,
    own_scores,
    served_scores,
    token_windows,
)
from weighbridge.progress import Progress
from weighbridge.report import PRESENTERS, Report, Section
from weighbridge.samples.trained.text import held_out_text


def doubled(name: str) -> Callable[[Tensors], None]:
    """Twice a BF16 scale: one more in its exponent."""

    def change(tensors: Tensors) -> None:
        content = bytearray(tensors[name].data)
        for high in range(1, len(content), 2):
            word = int.from_bytes(content[high - 1 : high + 1], "little") + (1 << 7)
            content[high - 1 : high + 1] = word.to_bytes(2, "little")
        tensors[name] = replace(tensors[name], data=bytes(content))

    return change


def misread(checkpoint: Path, tensor: str, scratch: Path) -> tuple[Section, Section]:
    """The comparison in float32 and the one in BFloat16 of a server that doubles one scale."""
    copy = copy_checkpoint(checkpoint, scratch / "misread")
    edit_tensors(copy, doubled(tensor))
    honest = open_directory(checkpoint)
    tokens = token_windows(honest, held_out_text(), windows=16, length=128)
    request = ServingCheck(open_directory(copy), None, serving_python(), tokens, scratch / "log")

    def section(exact: bool) -> Section:
        served = served_scores(ask_server(request.checkpoint, request, exact=exact))
        ours = own_scores(honest, tokens, EXACT if exact else SERVED, Progress())
        if exact:
            return agreement_section("in float32", served, *ours, id="agreement-exact")
        return agreement_section("in BFloat16", served, *ours, id="agreement-served")

    return section(True), section(False)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        sections = misread(Path(sys.argv[1]), sys.argv[2], Path(place))
    sys.stdout.write(PRESENTERS["text"](Report("misread", sys.argv[1], sys.argv[2], sections)))
