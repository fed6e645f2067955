"""Nothing half-made, and nothing lost: a build grows in a directory of its own beside its target and takes its place
when it is whole and valid, if there is still what was there when it began.

What is relied on: ``flock``, which ends with the process that holds it, also one that was killed, and which NFS passes
on to other hosts unless it is mounted without locks; that a rename within a directory is atomic; and, where the file
system has them, Linux's renames that replace nothing (``RENAME_NOREPLACE``) or swap two names (``RENAME_EXCHANGE``).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from weighbridge.checkpoint.form import HUGGING_FACE, MISTRAL
from weighbridge.checkpoint.model import read_small
from weighbridge.errors import Argument, BuildError, Clause, StructureError
from weighbridge.families import family_of
from weighbridge.machine.standing import Standing, standing_of
from weighbridge.text.strict_json import parse_config

log = logging.getLogger(__name__)

Contents = Mapping[str, Standing]
"""Everything in a directory by its name in it, the directory itself as ``.``."""

REPLACING = "replacing.json"
"""In a staging directory: which directory takes the target's place, written down before anything is renamed."""
REPLACED = "replaced"
"""In a staging directory: what stood at the target, where a file system cannot swap two names."""
JOURNAL = "journal.jsonl"
"""In a staging directory: which pieces are finished."""
UNFINISHED = "unfinished"
"""In a staging directory: what llm-compressor makes, before it is laid out."""
OWN = frozenset({REPLACING, REPLACED, "checkpoint", JOURNAL, UNFINISHED})
"""What a build puts into its staging directory; one that holds anything else is none of ours."""

_ANOTHER, _ELSEWHERE = (Clause(text, Argument("output")) for text in ("name another as ", "name another place as "))


@dataclass(frozen=True)
class Claim:
    """A target that no other build may build, as long as this process lives.

    Attributes:
        found: what stood there when the build began; None where nothing did.
        settled: what was done about a build that was killed while it took its place; empty where there was none.
    """

    target: Path
    found: Contents | None
    settled: str = ""


@contextmanager
def claimed(target: Path, *, force: bool, source: Path | None) -> Iterator[Claim]:
    """Claim a target for a build, until the block ends.

    A build of the same target that was killed between two renames is brought to an end first.

    Args:
        force: whether a checkpoint that stands there may be replaced.
        source: where the build's source lies, if that is on disk.

    Raises:
        BuildError: another build has it; or as `check_target`.
    """
    check_target(target, force=force, source=source)
    with ExitStack() as stack:
        try:
            stack.enter_context(_folders(target.parent))
            stack.enter_context(_locked(_beside(target, "claim")))
            settled = _settle(target)
            found = _contents(target)
        except OSError as error:
            raise _explained(error, target, _ELSEWHERE) from error
        try:
            check_target(target, force=force, source=source)  # by a build nobody else changes it from here on
        except BuildError as error:
            remedy = Clause(f"{settled}; " if settled else "", error.remedy)
            raise BuildError(error.what, where=error.where, remedy=remedy) from error
        yield Claim(target, found, settled)


def check_target(target: Path, *, force: bool, source: Path | None) -> None:
    """Raise if the output directory may not be replaced.

    Raises:
        BuildError: it is a file, a mount point, the working directory, the source or a place within or around it, lies
            in another checkpoint, holds something (without `force`), or cannot be written beside.
    """
    where = Path(os.path.realpath(target))
    if source is not None and _overlap(where, Path(os.path.realpath(source))):
        what = "the output directory is inside the source, or contains it"
        raise BuildError(what, where=str(target), remedy=_ELSEWHERE)
    if target.is_symlink() or os.path.ismount(target) or Path.cwd().is_relative_to(where):
        what = "a link, a mount point or the working directory cannot be replaced by a finished build"
        raise BuildError(what, where=str(target), remedy=Clause("name a directory inside it as ", Argument("output")))
    around = next((folder for folder in where.parents if _is_checkpoint(folder)), None)
    if around is not None:
        what = f"the output lies in a checkpoint, {around}, which would no longer be what its evidence says"
        raise BuildError(what, where=str(target), remedy=Clause("name a directory beside it as ", Argument("output")))
    if target.exists() and not target.is_dir():
        remedy = Clause("name a directory as ", Argument("output"))
        raise BuildError("the output is a file", where=str(target), remedy=remedy)
    try:
        held = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
        if held and not {HUGGING_FACE.config, MISTRAL.config}.intersection(held):
            what = f"refusing to replace this directory: it contains {held[0]!r} and no config.json: no checkpoint"
            raise BuildError(what, where=str(target), remedy=_ANOTHER)
        if held and not force:
            remedy = Clause(_ANOTHER, ", or replace it (", Argument("force"), ") once the new build is whole")
            raise BuildError("the output is not empty", where=str(target), remedy=remedy)
        with tempfile.TemporaryFile(dir=_existing_parent(target)):
            pass
    except OSError as error:
        raise _explained(error, target, _ELSEWHERE) from error


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds weights and a config that says of which model they are."""
    configs = [folder / form.config for form in (HUGGING_FACE, MISTRAL) if (folder / form.config).is_file()]
    if not configs or next(folder.glob("*.safetensors"), None) is None:
        return False
    try:
        config = parse_config(read_small(configs[0], label=str(folder)), where=configs[0].name)
    except StructureError:
        return False
    return not config.keys().isdisjoint(("model_type", "architectures")) or bool(family_of(config).params)


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
        what = f"the disk has {free:,} bytes free, the build takes {needed:,}"
        raise BuildError(what, where=str(target), remedy=Clause("make room, or ", _ELSEWHERE))


@contextmanager
def _folders(folder: Path) -> Iterator[None]:
    """A directory and those above it, which go again if nothing was put into them."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for made in missing:
            with suppress(OSError):  # something is in it now
                made.rmdir()


def _beside(target: Path, what: str) -> Path:
    return target.absolute().parent / f".{target.absolute().name}.{what}"


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """A file that is this process's until the block ends, and then goes."""
    descriptor = _lock(place)
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(place: Path) -> int:
    """Lock a file, made if need be; gives its descriptor, with which the lock goes.

    Raises:
        BuildError: another process has it.
    """
    while True:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), place.lstat()):
                _check_claim(descriptor, place)
                os.ftruncate(descriptor, 0)
                who = (
                    f"{_CLAIM}{os.getpid()} of {socket.gethostname()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
                )
                os.pwrite(descriptor, who.encode(), 0)
                return descriptor
        except FileNotFoundError:  # who had it is done, and took the file away before this process had locked it
            pass
        except (BlockingIOError, PermissionError) as error:
            by = os.pread(descriptor, 200, 0).decode(errors="replace")
            os.close(descriptor)
            remedy = Clause("wait until it ends, or ", _ELSEWHERE)
            raise BuildError(f"another build of it is under way ({by})", where=str(place), remedy=remedy) from error
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


_CLAIM = "process "


def _check_claim(descriptor: int, place: Path) -> None:
    """Refuse to write into, and later remove, a file of that name that no build made.

    Raises:
        BuildError: it is somebody's.
    """
    found = os.fstat(descriptor)
    said = os.pread(descriptor, len(_CLAIM), 0).decode(errors="replace")
    if not _is_own(found, os.geteuid()) or (said and said != _CLAIM):
        os.close(descriptor)
        remedy = "move it; a build locks its target under this name"
        raise BuildError("holds something that no build wrote", where=str(place), remedy=remedy)


def _contents(directory: Path) -> Contents | None:
    """What stands at a place; None where nothing does.

    Without the directory's own time of change, which a rename of it sets.
    """
    try:
        found = {".": replace(standing_of(directory.lstat()), changed=0)}
    except FileNotFoundError:
        return None
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = Path(folder, name)
            found[path.relative_to(directory).as_posix()] = standing_of(path.lstat())
    return found


@dataclass
class Staging:
    """A directory that a build grows in.

    Attributes:
        directory: for what a build needs beside its output (a journal, say); open to its user alone.
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
def staged(claim: Claim, *, key: str | None = None) -> Iterator[Staging]:
    """A directory beside a target whose checkpoint takes its place when the block ends committed.

    Args:
        key: a name for everything that determines the build. With one, a directory that an earlier run of the same
            build left is taken up again, and this one stays when it is interrupted. Without, it is fresh and goes.

    Raises:
        BuildError: the disk is full, the target cannot be written, or is no longer what it was when the build began;
            what an earlier run left could have been written by somebody else.
    """
    target = claim.target
    try:
        others = tuple(_staging_of(target))
        directory = _beside(target, f"staging-{key}")
        if key is None:
            directory = Path(tempfile.mkdtemp(dir=directory.parent, prefix=_beside(target, "staging-").name))
        elif directory not in others:
            directory.mkdir(mode=0o700)
        else:
            check_private(directory)
        staging = Staging(directory, tuple(other for other in others if other != directory))
        make_own(staging.checkpoint)
    except OSError as error:
        raise _explained(error, target, _ELSEWHERE) from error
    log.info("building in %s", directory)
    kept = False
    try:
        yield staging
        if staging.committed:
            _take_place(staging, claim)
            log.info("the build is whole: %s", target)
    except _Kept:
        kept = True
        raise
    except OSError as error:
        kept = key is not None
        raise _explained(error, target, _go_on(directory) if kept else "nothing was left behind") from error
    except KeyboardInterrupt:
        kept = key is not None
        raise (Interrupted(directory) if kept else KeyboardInterrupt()) from None  # what else was said to go on is gone
    finally:
        if not kept:
            shutil.rmtree(directory, ignore_errors=True)


def _staging_of(target: Path) -> list[Path]:
    """The staging directories of a target, and whatever else is called so."""
    start = _beside(target, "staging-")
    return sorted(path for path in start.parent.iterdir() if path.name.startswith(start.name))


def check_private(directory: Path) -> None:
    """Refuse a directory that anybody but this user could have put something into.

    Raises:
        BuildError: it is a link or none at all, somebody else's, or open to others.
    """
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        what = "an earlier run is said to have left this, but others than this user could have written into it"
        raise BuildError(what, where=str(directory), remedy="remove it, and build anew")


def make_own(directory: Path) -> None:
    """A directory where there may be one already, and nothing else than a directory."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        directory.unlink()
    directory.mkdir(exist_ok=True)


def clear_but(directory: Path, names: Collection[str]) -> None:
    """Take everything out of a directory that is not a regular file of these names, and this user's under one name.

    What a killed run leaves besides its shards is written again; what else lies there was never this build's.

    Raises:
        OSError: it cannot be removed.
    """
    owner = directory.lstat().st_uid
    for path in sorted(directory.iterdir()):
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path)
        elif path.name not in names or not _is_own(found, owner):
            log.info("removed %s: it is no part of the build", path)
            path.unlink()


def _is_own(found: os.stat_result, owner: int) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == owner


def check_exact(directory: Path, names: Collection[str]) -> None:
    """Refuse a directory that holds anything but these regular files.

    Raises:
        BuildError: with the first that is too many or too few.
    """
    folders = {parent.as_posix() for name in names for parent in Path(name).parents}
    remedy = "find out who writes there, and build anew"
    owner = directory.lstat().st_uid
    found = set()
    for path in sorted(directory.rglob("*")):
        name, its = path.relative_to(directory).as_posix(), path.lstat()
        if stat.S_ISDIR(its.st_mode) and name in folders:
            continue
        if name not in names or not _is_own(its, owner):
            raise BuildError(f"holds {name!r}, which this build did not put there", where=str(directory), remedy=remedy)
        found.add(name)
    for name in sorted(set(names) - found):
        raise BuildError(f"no longer holds {name!r}, which this build wrote", where=str(directory), remedy=remedy)


class _Kept(BuildError):
    """A finished build that could not take its place, and is kept where it is."""


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


# Taking the target's place.


def _take_place(staging: Staging, claim: Claim) -> None:
    """Put a finished checkpoint where its target is, in the place of nothing but what was there at the start.

    Raises:
        BuildError: something else is there now.
    """
    target, new = claim.target, staging.checkpoint
    if claim.found is None:
        if not _renamed(new, target, NOREPLACE):
            _rename_over_nothing(new, target)
    elif claim.found.keys() == {"."}:
        _rename_over_nothing(new, target)
    else:
        if _contents(target) != claim.found:
            raise _changed(target, staging)
        _note(staging)
        if _renamed(new, target, EXCHANGE):
            if _contents(new) != claim.found:
                _renamed(new, target, EXCHANGE)
                raise _changed(target, staging)
        else:
            _replace_in_two_steps(staging, claim)


def _replace_in_two_steps(staging: Staging, claim: Claim) -> None:
    """Where two names cannot be swapped: what is there goes aside first; `_settle` knows what a kill then leaves."""
    target, aside = claim.target, staging.directory / REPLACED
    target.rename(aside)
    try:
        if _contents(aside) == claim.found:
            _rename_over_nothing(staging.checkpoint, target)
            return
        _rename_over_nothing(aside, target)
    except _Kept as error:  # in the place of what was moved aside
        raise _Kept(error.what, where=error.where, remedy=f"what stood there before is kept in {aside}") from error
    raise _changed(target, staging)


def _rename_over_nothing(new: Path, target: Path) -> None:
    """Rename a directory to where there is nothing or, as POSIX allows it, an empty directory."""
    try:
        new.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise _came_into_being(target, new) from error


def _changed(target: Path, staging: Staging) -> BuildError:
    return _Kept(
        "what was to be replaced changed while the build went on, and was left as it is",
        where=str(target),
        remedy=f"the finished build is kept in {staging.checkpoint}; look at both, then give the same command again",
    )


def _came_into_being(target: Path, new: Path) -> BuildError:
    return _Kept(
        "something came into being there while the build went on, and was left as it is",
        where=str(target),
        remedy=f"the finished build is kept in {new}; move it where you want it, or give the same command again",
    )


def _note(staging: Staging) -> None:
    """Write down which directory is the new one, so that whatever a kill leaves can be told apart."""
    new = staging.checkpoint.lstat()
    path = staging.directory / REPLACING
    path.unlink(missing_ok=True)
    with path.open("x") as file:
        json.dump([new.st_dev, new.st_ino], file)


def _settle(target: Path) -> str:
    """Bring to an end what a build of this target was killed in: the old stands again or the new does, never neither.

    Raises:
        BuildError: what it left cannot be told apart any more.
    """
    said = []
    for directory in _staging_of(target):
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            continue  # `staged` refuses it where it is this build's, and leaves it alone where it is not
        aside, checkpoint = directory / REPLACED, directory / "checkpoint"
        new = _noted(directory / REPLACING)
        if new is not None and _which(target) == new:
            said.append("the build that a run was killed in stands at its target; what it replaced was removed")
            shutil.rmtree(directory)
        elif new is not None and _which(checkpoint) == new:
            if _which(aside) is not None:
                if not target.exists():
                    aside.rename(target)
                    said.append("what a killed run had moved aside stands at the target again")
                else:
                    raise _stranded(aside, target)
            (directory / REPLACING).unlink()
        elif new is not None:
            raise _stranded(aside if _which(aside) is not None else checkpoint, target)
        elif _which(checkpoint) is None and all(_is_of_a_build(path.name) for path in directory.iterdir()):
            shutil.rmtree(directory)  # it was renamed, and the rest is of no use
    for sentence in said:
        log.info("%s: %s", target, sentence)
    return "; ".join(said)


def _is_of_a_build(name: str) -> bool:
    """Whether a build put it into its staging directory, or was killed while it began the journal anew."""
    return name in OWN or name.startswith(f".{JOURNAL}.")


def _noted(path: Path) -> tuple[int, int] | None:
    try:
        device, inode = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:  # killed while it was written, and so before anything was renamed
        path.unlink()
        return None
    return device, inode


def _which(path: Path) -> tuple[int, int] | None:
    """Which directory stands under a name."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _stranded(left: Path, target: Path) -> BuildError:
    what = f"what stood at {target} was moved here by a run that was killed, and something else stands there now"
    remedy = "move it where you want it, or remove the directory that it lies in"
    return BuildError(what, where=str(left), remedy=remedy)


NOREPLACE, EXCHANGE = 1, 2
"""``RENAME_NOREPLACE`` and ``RENAME_EXCHANGE`` of renameat2(2)."""
_AT_FDCWD = -100
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def _renamed(old: Path, new: Path, how: int) -> bool:
    """Rename as renameat2(2) can; False where the C library, the kernel or the file system cannot.

    Raises:
        BuildError: something stands under the new name (`NOREPLACE`).
        OSError: it failed otherwise.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), ctypes.c_uint(how)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    if code == errno.EEXIST:
        raise _came_into_being(new, old)
    raise OSError(code, os.strerror(code), str(old), None, str(new))
