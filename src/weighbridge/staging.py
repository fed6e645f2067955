"""Nothing half-made: a build grows in a directory beside its target and takes its place when it is whole and valid."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from weighbridge.cache import umask
from weighbridge.errors import BuildError


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a target that a build must not or cannot take the place of.

    Raises:
        BuildError: it is a file, holds something (without `force`), or cannot be written beside.
    """
    if target.exists() and not target.is_dir():
        raise BuildError("the output is a file", where=str(target), remedy="name a directory with --output")
    try:
        if target.is_dir() and any(target.iterdir()) and not force:
            raise BuildError(
                "the output is not empty",
                where=str(target),
                remedy="name another with --output, or replace it with --force once the new build is whole",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise BuildError(f"the output cannot be written ({error.strerror})", where=str(target)) from error


def check_space(target: Path, needed: int) -> None:
    """Refuse to start where the disk cannot hold the build.

    Raises:
        BuildError: with what is needed and what there is.
    """
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise BuildError(
            f"the disk has {free:,} bytes free, the build takes {needed:,}",
            where=str(target),
            remedy="make room, or name another place with --output",
        )


@dataclass
class Staging:
    """A directory that a build grows in; `commit` says that it is whole and valid and shall replace the target."""

    directory: Path
    committed: bool = False

    def commit(self) -> None:
        self.committed = True


@contextmanager
def staged(target: Path) -> Iterator[Staging]:
    """A fresh directory beside `target` that takes its place when the block ends committed, and vanishes otherwise.

    Raises:
        BuildError: the disk is full, or the target cannot be written or replaced.
    """
    try:
        staging = Staging(Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.staging-")))
        staging.directory.chmod(0o777 & ~umask())
    except OSError as error:
        raise BuildError(f"the output cannot be written ({error.strerror})", where=str(target)) from error
    try:
        yield staging
        if staging.committed:
            _replace(staging.directory, target)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"writing failed ({error.strerror or error})"
        raise BuildError(
            what, where=str(target), remedy="nothing was left behind; build again when there is room"
        ) from error
    finally:
        shutil.rmtree(staging.directory, ignore_errors=True)


def _replace(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.replaced-"))
    target.rename(old / target.name)
    try:
        staging.rename(target)
    except OSError:
        (old / target.name).rename(target)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)
