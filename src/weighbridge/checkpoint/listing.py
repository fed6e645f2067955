"""Which files a directory holds, and which of its links may be followed.

A link may stay inside the directory; in a snapshot of the hub client's cache it may lead to that repository's blobs
and, from there, to the store that all repositories of the cache share; and it may lead into a directory that the user
named. Nothing else is followed: a stranger's checkpoint does not choose what is read.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weighbridge.checkpoint.hub_client import shared_blob
from weighbridge.errors import Argument, Clause, StructureError

MAX_FOLDERS = 64
MAX_FILES = 10_000
UNCARRIED_DIRECTORIES = (".cache", ".git", ".huggingface")

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Places:
    """Where the links of a directory may lead; every path is free of links itself.

    Attributes:
        root: the directory.
        blobs: where its repository's files lie, if it is a snapshot of the hub client's cache.
        followed: directories that the user named.
    """

    root: Path
    blobs: Path | None
    followed: tuple[Path, ...]


def places_of(directory: Path, *, follow: Sequence[Path] = ()) -> Places:
    """Where the links of a directory may lead.

    Args:
        follow: directories into which links may lead besides.

    Raises:
        StructureError: one of these is no directory.
    """
    for named in follow:
        if not named.is_dir():
            raise StructureError(
                "is no directory that links could lead into", where=Clause(Argument("follow_links"), f" {named}")
            )
    root = directory.resolve()
    return Places(root, _blobs_of(root), tuple(named.resolve() for named in follow))


def _blobs_of(root: Path) -> Path | None:
    """``blobs`` beside the ``snapshots`` that a directory, or a folder that it lies in, is one of.

    A ``blobs`` that is itself a link is none of the client's making, and could be all of the disk.
    """
    for snapshot in (root, *root.parents):
        if snapshot.parent.name == "snapshots" and _COMMIT.fullmatch(snapshot.name):
            blobs = snapshot.parent.parent / "blobs"
            return blobs if blobs.is_dir() and not blobs.is_symlink() else None
    return None


def of_hub(path: Path, places: Places) -> bool:
    """Whether a link is one that the hub's client makes: to a blob of the snapshot's own repository, which is a
    regular file or, by one more link, a regular file of the store that the cache's repositories share."""
    blob = _next(path)
    if places.blobs is None or blob is None or blob.parent.resolve() != places.blobs:
        return False
    blob = places.blobs / blob.name
    return shared_blob(blob) is not None if blob.is_symlink() else blob.is_file()


def _next(link: Path) -> Path | None:
    """What a link says itself; its target's folders may be links, and are not looked at here."""
    try:
        return link.parent / link.readlink()
    except OSError:
        return None


def list_files(directory: Path, *, label: str, follow: Sequence[Path] = ()) -> list[str]:
    """Relative names of all regular files of a checkpoint, sorted; the hub's and git's own folders left out.

    Args:
        follow: directories into which links may lead; see the module.

    Raises:
        StructureError: a symbolic link that may not be followed, or something that is no regular file.
    """
    places = places_of(directory, follow=follow)
    names = []
    for path in _walk(directory, label=label):
        relative = path.relative_to(directory)
        try:
            resolved = path.resolve(strict=True)
            mode = resolved.stat().st_mode
        except (OSError, RuntimeError) as error:
            raise _unreadable(path, relative.as_posix(), error, label=label) from error
        inside = any(resolved.is_relative_to(place) for place in (places.root, *places.followed))
        if not (inside or of_hub(path, places)):
            raise _refused(relative.as_posix(), resolved, places, label=label)
        if path.is_symlink() and stat.S_ISDIR(mode):
            what = f"{relative} is a link to a folder, and folders are not followed through links"
            raise StructureError(what, where=label, remedy="put the folder itself in its place")
        if stat.S_ISREG(mode):
            names.append(relative.as_posix())
        elif not stat.S_ISDIR(mode):
            raise StructureError(f"{relative} is no regular file", where=label)
    return names


def _unreadable(path: Path, name: str, error: Exception, *, label: str) -> StructureError:
    reason = getattr(error, "strerror", None) or "it links to itself"
    if not path.is_symlink():
        return StructureError(f"{name} cannot be read ({reason})", where=label)
    what = f"{name} is a link to {path.readlink()} and cannot be read ({reason})"
    return StructureError(what, where=label, remedy="download or copy the checkpoint again, whole")


def _refused(name: str, target: Path, places: Places, *, label: str) -> StructureError:
    """The refusal of a link, with what to do about it."""
    if places.blobs is not None:
        what = f"{name} is a link to {target}, which is no blob of this hub cache and not followed"
        remedy = "download it again with the hub's client"
    else:
        what = f"{name} is a link that leaves the directory, to {target}, and not followed"
        remedy = "copy the files themselves (cp -rL)"
    ours = f" {shlex.quote(str(target.parent))}; otherwise {remedy}"
    remedy = Clause("if its files are yours, add ", Argument("follow_links"), ours)
    return StructureError(what, where=label, remedy=remedy)


def _walk(directory: Path, *, label: str) -> list[Path]:
    """Everything below a directory, sorted; folders are not followed through links, nor too deep."""
    found = []
    for folder, folders, files in os.walk(directory):
        here = Path(folder)
        if here == directory:
            folders[:] = [name for name in folders if name not in UNCARRIED_DIRECTORIES]
        if len(here.relative_to(directory).parts) > MAX_FOLDERS:
            raise StructureError(f"holds folders more than {MAX_FOLDERS} deep", where=label)
        found += [here / name for name in (*folders, *files)]
        if len(found) > MAX_FILES:
            raise StructureError(f"holds more than {MAX_FILES:,} files", where=label)
    return sorted(found)
