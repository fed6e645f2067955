"""Running a source and a build over the same windows."""

from __future__ import annotations

from weighbridge.errors import StructureError
from weighbridge.extras.quality.forward import Forward
from weighbridge.extras.quality.metrics import Measured, gathered, measure_window
from weighbridge.extras.quality.text import Tokens
from weighbridge.progress import Progress


def measure(source: Forward, build: Forward, tokens: Tokens, *, progress: Progress) -> Measured:
    """Compare what two models expect after each token, window by window.

    Args:
        tokens: [windows, tokens].

    Raises:
        StructureError: their vocabularies are not the same.
    """
    if source.vocabulary != build.vocabulary:
        raise StructureError(
            f"has {build.vocabulary:,} tokens, and {source.label} has {source.vocabulary:,}",
            where=build.label,
            remedy="name the source that it was built from",
        )
    windows = []
    with progress.stage(f"reading with {build.label}", tokens.nbytes):
        for window in tokens:
            one, other = (model.log_probabilities(window) for model in (source, build))
            windows.append(measure_window(one, other, window))
            progress.advance(window.nbytes)
    return gathered(windows)
