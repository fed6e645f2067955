"""Nothing half-made: a build grows in a directory beside its target and takes its place when it is whole and valid."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from weighbridge.errors import BuildError
from weighbridge.structure.checkpoint import CONFIG_FILE

log = logging.getLogger(__name__)


def check_target(target: Path, *, force: bool, source: Path | None) -> None:
    """Refuse a target that a build must not or cannot take the place of.

    Raises:
        BuildError: it is a file, a mount point, the working directory, the source or a place within or around it, holds
            something (without `force`), or cannot be written beside.
    """
    where = target.resolve()
    if source is not None and _overlap(where, source.resolve()):
        raise BuildError(
            "the output and the source lie in one another", where=str(target), remedy="name another place with --output"
        )
    if target.is_symlink() or os.path.ismount(target) or Path.cwd().is_relative_to(where):
        raise BuildError(
            "a link, a mount point or the working directory cannot be replaced by a finished build",
            where=str(target),
            remedy="name a directory inside it with --output",
        )
    if target.exists() and not target.is_dir():
        raise BuildError("the output is a file", where=str(target), remedy="name a directory with --output")
    try:
        held = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
        if held and CONFIG_FILE not in held:
            raise BuildError(
                f"the output holds {held[0]!r} and is no checkpoint, which alone a build may take the place of",
                where=str(target),
                remedy="name another with --output",
            )
        if held and not force:
            raise BuildError(
                "the output is not empty",
                where=str(target),
                remedy="name another with --output, or replace it with --force once the new build is whole",
            )
        with tempfile.TemporaryFile(dir=_existing_parent(target)):
            pass
    except OSError as error:
        raise _explained(error, target, "name another place with --output") from error


def _overlap(one: Path, other: Path) -> bool:
    """Whether one path is the other, or lies inside it."""
    return one.is_relative_to(other) or other.is_relative_to(one)


def _existing_parent(target: Path) -> Path:
    """The nearest directory above `target` that is there; directories are made when something goes into them."""
    return next(parent for parent in target.absolute().parents if parent.exists())


def check_space(target: Path, needed: int) -> None:
    """Refuse to start where the disk cannot hold the build.

    Raises:
        BuildError: with what is needed and what there is.
    """
    free = shutil.disk_usage(_existing_parent(target)).free
    if free < needed:
        raise BuildError(
            f"the disk has {free:,} bytes free, the build takes {needed:,}",
            where=str(target),
            remedy="make room, or name another place with --output",
        )


@dataclass
class Staging:
    """A directory that a build grows in.

    Attributes:
        directory: for what a build needs beside its output (a journal, say).
        checkpoint: what becomes the target.
        others: staging directories of the same target that belong to other builds; they are left alone.
    """

    directory: Path
    others: tuple[Path, ...]
    committed: bool = False

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoint"

    def commit(self) -> None:
        """Say that the checkpoint is whole and valid and shall replace the target."""
        self.committed = True


@contextmanager
def staged(target: Path, *, key: str | None = None) -> Iterator[Staging]:
    """A directory beside `target` whose checkpoint takes its place when the block ends committed.

    Args:
        key: a name for everything that determines the build. With one, a directory that an earlier run of the same
            build left is taken up again, and this one stays when it is interrupted. Without, it is fresh and goes.

    Raises:
        BuildError: the disk is full, the target cannot be written or replaced, or another process builds the same.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        others = tuple(sorted(target.parent.glob(f".{target.name}.staging-*")))
        if key is None:
            directory = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.staging-"))
        else:
            directory = target.parent / f".{target.name}.staging-{key}"
            directory.mkdir(exist_ok=True)
        staging = Staging(directory, tuple(other for other in others if other != directory))
        staging.checkpoint.mkdir(exist_ok=True)
        lock = (directory / "lock").open("w")
    except OSError as error:
        raise _explained(error, target, "name another place with --output") from error
    log.info("building in %s", directory)
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            remedy = "wait until it ends, or name another place with --output"
            raise BuildError("another process is building this", where=str(directory), remedy=remedy) from None
        kept = False
        try:
            yield staging
            if staging.committed:
                _replace(staging.checkpoint, target)
                log.info("the build is whole: %s", target)
        except OSError as error:
            kept = key is not None
            raise _explained(error, target, _go_on(directory) if kept else "nothing was left behind") from error
        except KeyboardInterrupt:
            kept = key is not None
            if not kept:
                raise
            raise Interrupted(directory) from None
        finally:
            if not kept:
                shutil.rmtree(directory, ignore_errors=True)


class Interrupted(BuildError):
    """A build that was stopped by the user and can go on."""

    def __init__(self, directory: Path) -> None:
        super().__init__("interrupted", remedy=_go_on(directory))


def _go_on(directory: Path) -> str:
    return f"what is done is kept in {directory}; give the same command again to go on"


def _explained(error: OSError, target: Path, remedy: str) -> BuildError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full" if full else f"the output cannot be written ({error.strerror or error})"
    return BuildError(what, where=str(target), remedy=remedy)


def _replace(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.replaced-"))
    try:
        target.rename(old / target.name)
        staging.rename(target)
    except OSError:
        if (old / target.name).exists():
            (old / target.name).rename(target)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)
